"""What the host's process feels of a recorder: its threads, loops, forks, hooks, signals and exits."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_recorder import Recorder, RecorderClosed, Settings, durable, model, spool, wav
from edge_recorder.tape import Progress, Tape

RATE = 8000


def settings(data_dir: Path, **capture: object) -> Settings:
    fast = {"segment_seconds": 1, "late_window": 0.1, "flush_interval": 0.05, "fsync_interval": 0.1}
    return Settings.of({"node": {"data_dir": data_dir}, "capture": fast | capture})


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, frames).astype(np.int16)


def sealed(data_dir: Path, track: str) -> np.ndarray:
    files = sorted(data_dir.rglob(f"{track}-*.wav"))
    return np.concatenate([wav.read_file(each)[1] for each in files])


def test_a_stalled_fsync_holds_up_no_write(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a round of fsyncs hangs, what is written goes on reaching the files, and no sample is lost."""
    real, stalled, go_on = durable.sync_all, threading.Event(), threading.Event()

    def slow(fds: list[int], *, root: int | None) -> dict[int, OSError]:
        if stalled.is_set():
            assert go_on.wait(30)
        return real(fds, root=root)

    with Recorder(settings(data_dir, segment_seconds=60)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        call.flush().result(10)
        monkeypatch.setattr(durable, "sync_all", slow)
        stalled.set()
        (part,) = data_dir.rglob("user-*.part")
        for n in range(1, 6):
            call.write("user", noise(RATE, seed=n))
            call.drain().result(10)
            assert len(wav.read_file(part)[1]) == (n + 1) * RATE
        assert call.stats().unsynced_s == 5
        go_on.set()
        assert call.end().result(10).complete
    assert np.array_equal(sealed(data_dir, "user"), np.concatenate([noise(RATE, seed=n) for n in range(6)]))


def test_hooks_hear_of_segments_and_gaps(data_dir: Path) -> None:
    """on_segment gets each sealed segment, on_gap each piece that could not be recorded, on the recorder's threads."""
    segments: list[model.Segment] = []
    gaps: list[model.Span] = []
    threads: set[str] = set()

    def on_segment(segment: model.Segment) -> None:
        segments.append(segment)
        threads.add(threading.current_thread().name)

    with (
        Recorder(settings(data_dir, queue_bytes=4 * RATE), on_segment=on_segment, on_gap=gaps.append) as recorder,
        recorder.start_call(tracks={"user": RATE}, pace="media") as call,
    ):
        call.write("user", noise(RATE))
        call.drain().result(10)
        call.write("user", noise(3 * RATE))  # more than the process may queue
    assert {(each.track, each.seq) for each in segments} >= {("user", 1), ("mixed", 1)}
    assert threads == {"edge-recorder"}
    assert [(each.track, each.start_s, each.end_s) for each in gaps] == [("user", 1, 4)]
    assert (call.stats().gap_s, call.stats().lost_s) == (3, 3)


def test_a_hook_that_raises_is_logged_and_counted(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken hook changes nothing for the recording, stands in the log once, and in the count each time."""

    def broken(_: model.Segment) -> None:
        raise ZeroDivisionError

    with Recorder(settings(data_dir), on_segment=broken) as recorder:
        with recorder.start_call(tracks={"user": RATE}, pace="media") as call:
            call.write("user", noise(RATE * 2))
        assert recorder.stats().hook_failures == 4
    assert call.end().result(1).complete
    assert sum("on_segment raised" in record.message for record in caplog.records) == 1


def test_stats_say_how_a_call_stands(data_dir: Path) -> None:
    """What is queued, then what is sealed, is told from any thread."""
    with Recorder(settings(data_dir, flush_interval=0.5)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.flush().result(10)
        call.write("user", noise(400))
        before = call.stats()
        assert (before.queued_s, before.queued_bytes) in {(0.05, 800), (0.0, 0)}
        assert recorder.stats().calls == 1
        assert call.end().result(10).complete
        after = call.stats()
        assert (after.queued_bytes, after.segments, after.gap_s, after.lost_s) == (0, 2, 0, 0)
        assert after.unsynced_s == 0


def test_a_forked_child_is_refused(data_dir: Path) -> None:
    """In a forked child every use of a running recorder and its calls raises at once, and the parent goes on."""
    program = f"""
import os, sys, numpy as np
from edge_recorder import Recorder, RecorderClosed
recorder = Recorder({str(data_dir)!r}).start()
call = recorder.start_call(tracks={{"user": 8000}}, pace="media")
call.write("user", np.full(800, 7, np.int16))
child = os.fork()
if not child:
    refused = 0
    uses = [lambda: call.write("user", b"\\0\\0"), lambda: call.play("user", b"\\0\\0"), lambda: call.pause("x"),
            lambda: call.end().result(1), lambda: call.flush().result(1), lambda: call.add_message("user", "x"),
            lambda: recorder.start_call(), lambda: call.interrupt("user")]
    for use in uses:
        try:
            use()
        except RecorderClosed as error:
            refused += "forked child" in str(error)
    recorder.close()
    with Recorder({str(data_dir / "other")!r}) as own:
        own.start_call(tracks={{"user": 8000}}).end().result(10)
    os._exit(0 if refused == len(uses) else 1)
_, status = os.waitpid(child, 0)
call.write("user", np.full(800, 7, np.int16))
summary = call.end().result(10)
recorder.close()
sys.exit(status != 0 or not summary.complete)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(sealed(data_dir / "spool", "user"), np.full(1600, 7))


def test_importing_starts_nothing() -> None:
    """`import edge_recorder`, and all that a recorder needs, opens no file, starts no thread and hooks no signal."""
    program = """
import os, signal, threading
before = set(os.listdir("/proc/self/fd")), [signal.getsignal(n) for n in signal.valid_signals()]
import edge_recorder; edge_recorder.Recorder
after = set(os.listdir("/proc/self/fd")), [signal.getsignal(n) for n in signal.valid_signals()]
assert before == after and threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_nothing_is_left_after_close(data_dir: Path) -> None:
    """A recorder that closed leaves no thread, no file descriptor, no signal handler and no lock behind."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    gc.collect()
    threads, files = set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with Recorder(settings(data_dir)) as recorder, recorder.start_call(tracks={"user": RATE}, pace="media") as call:
            call.write("user", noise(RATE * 2))
            call.flush().result(10)
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert spool.writers(data_dir) == []


def test_a_loop_or_thread_that_dies_between_two_writes_changes_nothing(data_dir: Path) -> None:
    """Each write comes from a loop of its own in a thread of its own, all of them gone by the next."""
    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")

        async def speak(part: np.ndarray) -> None:
            call.write("user", part)

        for part in np.split(noise(RATE), 10):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, speak(part)).result(10)
        assert call.end().result(10).complete
    assert np.array_equal(sealed(data_dir, "user"), noise(RATE))


def test_many_calls_are_spread_over_the_lanes(data_dir: Path) -> None:
    """Calls that start at once do not land in one lane, and all end whole."""
    with Recorder(settings(data_dir)) as recorder:
        calls = [recorder.start_call(tracks={"user": RATE}, pace="media") for _ in range(40)]
        assert {lane.calls for lane in recorder._lanes} == {10}
        for n, call in enumerate(calls):
            call.write("user", noise(RATE, seed=n))
        assert all(call.end().result(20).complete for call in calls)
        assert {lane.calls for lane in recorder._lanes} == {0}


def test_a_call_with_a_bug_does_not_end_the_others(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One tape that raises breaks off its own call, told to on_error; its neighbours in the lane go on."""
    errors: list[Exception] = []
    with Recorder(settings(data_dir), on_error=errors.append) as recorder:
        calls = [recorder.start_call(tracks={"user": RATE}, pace="media") for _ in range(8)]
        real = Tape.advance

        def advance(tape: Tape, *args: Any, **options: Any) -> Progress:
            if tape.call.call_id == calls[0].id:
                raise ZeroDivisionError
            return real(tape, *args, **options)

        monkeypatch.setattr(Tape, "advance", advance)
        for call in calls:
            call.write("user", noise(RATE))
        assert [call.end().result(20).complete for call in calls] == [False] + [True] * 7
    assert [type(each) for each in errors] == [ZeroDivisionError]
    assert any(record.levelno == logging.ERROR and "broke off" in record.message for record in caplog.records)


def test_more_tracks_than_a_call_has_are_refused(data_dir: Path) -> None:
    """User, assistant and eight further tracks, and no more."""
    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={f"voice_{n}": RATE for n in range(10)})
        with pytest.raises(Exception, match="10 tracks"):
            call.write("one_more", b"\0\0", rate=RATE)
        assert call.end().result(10).complete


def test_a_closed_recorder_takes_no_call(data_dir: Path) -> None:
    """start_call on a recorder that closed says so."""
    recorder = Recorder(settings(data_dir)).start()
    assert recorder.close()
    with pytest.raises(RecorderClosed, match="start"):
        recorder.start_call()
