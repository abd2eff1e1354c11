"""What the host's process feels of a recorder: its threads, loops, forks, hooks, signals and exits."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import Stage

from edge_recorder import CallerError, EdgeRecorderError, Recorder, RecorderClosed, Settings, durable, model, spool, wav
from edge_recorder.pending import Pending
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


def test_a_hook_that_exits_ends_no_call(data_dir: Path) -> None:
    """A hook that asks for the process's exit is one that raises: the recorder's thread goes on."""
    with Recorder(settings(data_dir), on_segment=lambda _: sys.exit(1)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        assert call.end().result(10).complete
        assert recorder.stats().hook_failures == 2
        assert recorder.start_call().end().result(10).complete


def test_a_call_that_ends_waits_for_a_full_disk_at_rest(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that cannot be ended is tried at each flush, not in a loop, and the disk's refusal is logged once."""
    real, tries, enough = durable.write_all, [0], threading.Event()
    steps, advance = [0], Tape.advance

    def full(fd: int, data: Any, *, at: int | None = None) -> None:
        tries[0] += 1
        if tries[0] == 10:
            enough.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def counted(tape: Tape, *args: Any, **options: Any) -> Progress:
        steps[0] += 1
        return advance(tape, *args, **options)

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        call.flush().result(10)
        monkeypatch.setattr(durable, "write_all", full)
        monkeypatch.setattr(Tape, "advance", counted)
        call.write("user", noise(RATE, seed=1))
        since = time.monotonic()
        ended = call.end()
        assert enough.wait(20)
        assert (
            steps[0] <= 5 + (time.monotonic() - since) / 0.025
        )  # a flush_interval may be half as long after a slow one
        monkeypatch.setattr(durable, "write_all", real)
        assert ended.result(10).complete
    messages = [record.message for record in caplog.records if "the disk" in record.message]
    assert [message[:16] for message in messages] == ["the disk refuses", "the disk takes w"]


def test_a_flush_waits_for_what_is_held_back(data_dir: Path) -> None:
    """What ends a silence is held back for a moment, as more may follow: a flush is not over before that."""
    with Recorder(settings(data_dir, segment_seconds=60)) as recorder:
        call = recorder.start_call(tracks={"user": RATE})
        call._began -= 5_000_000_000  # five seconds of silence, without the wait
        call.write("user", noise(RATE // 50))
        call.flush().result(10)
        (part,) = data_dir.rglob("user-*.part")
        assert np.array_equal(wav.read_file(part)[1][-RATE // 50 :], noise(RATE // 50))


def test_a_flush_is_not_answered_by_a_round_begun_before(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk takes only while a round's fsyncs are made is safe with the next round, and no sooner."""
    real_sync, real_write, full = durable.sync_all, durable.write_all, threading.Event()
    began, go_on = threading.Event(), threading.Event()

    def write_all(fd: int, data: Any, *, at: int | None = None) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_write(fd, data, at=at)

    def sync_all(fds: list[int], *, root: int | None) -> dict[int, OSError]:
        if full.is_set():
            full.clear()
            began.set()
            assert go_on.wait(30)
        return real_sync(fds, root=root)

    with Recorder(settings(data_dir, segment_seconds=60, fsync_interval=60)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        call.flush().result(10)
        call.write("user", noise(RATE))
        call.drain().result(10)  # in the file, for a round to sync
        monkeypatch.setattr(durable, "write_all", write_all)
        monkeypatch.setattr(durable, "sync_all", sync_all)
        full.set()
        call.write("user", noise(RATE))
        flushed = call.flush()
        assert began.wait(10)
        call.drain().result(10)  # now it is in the file too
        unsynced: list[float] = []
        flushed._future.add_done_callback(lambda _: unsynced.append(call.stats().unsynced_s))
        go_on.set()
        flushed.result(10)
    assert unsynced == [0]


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many open files"), ZeroDivisionError()])
def test_a_round_that_cannot_begin_is_told_and_does_not_hang_close(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Where no round can be begun, on_error hears of it, and close() leaves the call to the next start."""
    errors: list[Exception] = []

    def refused(tape: Tape) -> list[int]:
        raise error

    recorder = Recorder(settings(data_dir), on_error=errors.append).start()
    call = recorder.start_call(tracks={"user": RATE}, pace="media")
    call.write("user", noise(RATE))
    call.flush().result(10)
    monkeypatch.setattr(Tape, "begin_sync", refused)
    assert recorder.close(10)
    assert not call.end().result(10).complete
    assert errors == [error]


def test_a_call_that_broke_off_is_not_turned_on_again(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consent to record does not let a call that nobody takes any more fill the queue of all others."""

    def broken(tape: Tape, *args: Any, **options: Any) -> Progress:
        raise ZeroDivisionError

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE})
        monkeypatch.setattr(Tape, "advance", broken)
        with pytest.raises(EdgeRecorderError, match="not all on disk"):
            call.flush().result(10)
        call.set_consent(record=True)
        call.write("user", noise(RATE))
        assert not call.recording
        assert recorder.stats().queued_bytes == 0


def test_two_answers_at_once_are_one() -> None:
    """A caller's thread and the recorder's may both answer a flush at a call's end: neither of them raises."""
    pending: Pending[int] = Pending()
    pending.settle(1)
    pending._future.done = lambda: False  # type: ignore[method-assign] # as it was a moment before
    pending.settle(2)
    pending.fail(EdgeRecorderError("too late", fix="None"))
    assert pending._future.result(1) == 1


def test_lost_audio_is_a_gap_in_its_place(data_dir: Path) -> None:
    """What fits in after something that did not is behind the gap, where audio moves time too."""
    kept = noise(RATE // 8)
    with Stage(data_dir, tracks={"user": RATE}, pace="media", capture={"queue_seconds": 1}) as stage:
        for piece in (noise(RATE * 3 // 4), noise(RATE // 2), kept, noise(RATE // 2), noise(RATE // 2)):
            stage.call.write("user", piece)
        recording = stage.end()
    assert recording.spans_of("gap", "user") == [(0.75, 1.25), (1.375, 2.375)]
    assert np.array_equal(recording.track("user")[RATE * 5 // 4 :][: len(kept)], kept)


def test_audio_lost_long_after_other_is_another_gap(data_dir: Path) -> None:
    """With a pause between two losses, the gaps are where they were, and not one at the first."""
    with Stage(data_dir, tracks={"user": RATE}, capture={"queue_seconds": 1}) as stage:
        for at in (0.0, 1.0, 1.5, 9.0):
            stage.stall(at + 0.5)
            stage.call.write("user", noise(RATE if not at else RATE // 2), at=at)
        recording = stage.end()
    assert recording.spans_of("gap", "user") == [(1, 2), (9, 9.5)]


@pytest.mark.parametrize("what", ["start_turn", "end_turn", "interrupt"])
def test_a_time_of_day_is_no_place_of_a_turn(data_dir: Path, what: str) -> None:
    """A mark far ahead of the call is refused as audio is: with turns it would be millions of cuts."""
    with Stage(data_dir, tracks={"user": RATE}, capture={"segmentation": "turn"}) as stage:
        with pytest.raises(CallerError, match="far ahead"):
            getattr(stage.call, what)("user", at=1_790_000_000.0)
        stage.end()


def test_a_track_that_ended_before_consent_is_not_waited_for(data_dir: Path) -> None:
    """With pace media, a track that ended while nothing was recorded does not hold the others' time still."""
    with Stage(data_dir, tracks={"user": RATE, "far": RATE}, pace="media", record=False) as stage:
        stage.call.end_track("far")
        stage.call.set_consent(record=True)
        stage.call.write("user", noise(RATE * 6))
        stage.go(2)
        assert stage.tape.on_disk().segments
        stage.end()


def test_what_was_lost_is_in_the_summary(data_dir: Path) -> None:
    """A call that ended whole on disk still says how much of it could not be recorded."""
    with Recorder(settings(data_dir, queue_bytes=RATE)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        summary = call.end().result(10)
    assert (summary.complete, summary.gap_s) == (True, 1.0)


def test_an_interruption_has_one_place(data_dir: Path) -> None:
    """`at` and `played` together are refused, and each is named where it is no number of seconds."""
    with Recorder(settings(data_dir)) as recorder, recorder.start_call(tracks={"user": RATE}) as call:
        with pytest.raises(CallerError, match="two answers"):
            call.interrupt("user", at=0.0, played=0.0)
        with pytest.raises(CallerError, match="played=-1"):
            call.interrupt("user", played=-1)
        with pytest.raises(CallerError, match="neither True nor False"):
            call.set_consent(record="false")  # type: ignore[arg-type]


def test_a_refused_message_takes_no_number(data_dir: Path) -> None:
    """What is refused leaves no hole in the numbers of a call's messages: a hole would look like a loss."""
    with Recorder(settings(data_dir)) as recorder, recorder.start_call() as call:
        first = call.add_message("user", "a")
        with pytest.raises(CallerError):
            call.add_message("user", 5)  # type: ignore[arg-type]
        second = call.add_message("user", "b")
    assert [first, second] == [model.message_id(call.id, n) for n in (1, 2)]
