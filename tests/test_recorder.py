"""The recorder as its callers meet it: any thread, any event loop, wrong arguments, a disk that refuses."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_recorder import (
    CallEnded,
    CallerError,
    DataDirError,
    EdgeRecorderError,
    InvalidAudio,
    Recorder,
    RecorderClosed,
    Settings,
    UnknownTrack,
    UnsafeRuntime,
    durable,
    model,
    recovery,
    spool,
    tape,
    wav,
)
from edge_recorder import call as call_module
from edge_recorder import recorder as recorder_module
from edge_recorder import rows as rows_module
from edge_recorder.catalog.connection import Catalog

RATE = 8000
ALL = {"external_id": None, "limit": 100}


def settings(data_dir: Path, **capture: Any) -> Settings:
    fast = {"segment_seconds": 1, "late_window": 0.2}
    return Settings.of({"node": {"data_dir": data_dir}, "capture": fast | capture})


@pytest.fixture
def recorder(data_dir: Path) -> Iterator[Recorder]:
    with Recorder(settings(data_dir)) as running:
        yield running


def rows(data_dir: Path, name: str, **values: Any) -> list[dict[str, Any]]:
    async def fetch() -> list[dict[str, Any]]:
        catalog = await Catalog.open(data_dir)
        try:
            return await catalog.fetch(name, **values)
        finally:
            await catalog.close()

    return asyncio.run(fetch())


def track_of(data_dir: Path, call_id: str, track: str) -> np.ndarray:
    """Return all samples of a track, as its sealed files hold them."""
    (directory,) = (each for each in spool.call_dirs(data_dir) if each.name == call_id)
    files = [file for file in spool.segment_files(directory) if file.track == track]
    assert all(file.sealed for file in files)
    read = sorted((wav.read_file(file.path) for file in files), key=lambda each: each[0].first_sample)
    return np.concatenate([samples for _, samples in read])


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, frames).astype(np.int16)


def test_media_pace_keeps_every_sample(recorder: Recorder, data_dir: Path) -> None:
    """Tracks of different rates come back sample for sample, equally long, with their sum as the mix."""
    user, assistant = noise(RATE * 4 + 123), noise(24000 * 3, seed=1)
    with recorder.start_call(tracks={"user": RATE, "assistant": 24000}, pace="media") as call:
        for start in range(0, len(user), 160):
            call.write("user", user[start : start + 160])
            call.write("assistant", assistant[start * 3 : start * 3 + 480].tobytes())
        call.end_track("assistant")
    assert np.array_equal(track_of(data_dir, call.id, "user"), user)
    kept = track_of(data_dir, call.id, "assistant")
    assert np.array_equal(kept[: len(assistant)], assistant)
    assert not kept[len(assistant) :].any()
    mixed = track_of(data_dir, call.id, "mixed")
    assert len(kept) == len(mixed) == len(user) * 3


def test_callbacks_of_many_loops_and_threads(recorder: Recorder, data_dir: Path) -> None:
    """The incident in small: callbacks in several loops and threads, some closed half way, lose nothing."""
    call = recorder.start_call(tracks={f"voice_{n}": RATE for n in range(4)}, pace="media")
    audio = {n: noise(RATE * 2, seed=n) for n in range(4)}

    def speak(n: int) -> None:
        async def callback(part: np.ndarray) -> None:
            call.write(f"voice_{n}", part)
            await call.drain()

        for part in np.split(audio[n], 8):
            asyncio.run(callback(part))  # a loop of its own, closed after each callback

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(speak, range(4)))
    summary = asyncio.run(_end(call))
    assert summary.complete
    for n in range(4):
        assert np.array_equal(track_of(data_dir, call.id, f"voice_{n}"), audio[n])
    assert {row["track"] for row in rows(data_dir, "segments.counts")} == {*(f"voice_{n}" for n in range(4)), "mixed"}


async def _end(call: Any) -> Any:
    return await call.end()


def test_cancelled_await_cancels_no_work(recorder: Recorder, data_dir: Path) -> None:
    """A caller that gives up waiting for the end changes nothing: the call is sealed, and its rows are there."""
    call = recorder.start_call(tracks={"user": RATE}, pace="media")
    call.write("user", noise(RATE))

    async def impatient() -> None:
        task = asyncio.ensure_future(_end(call))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(impatient())
    assert call.end().result(10).complete
    assert [row["state"] for row in rows(data_dir, "calls.get", call_id=call.id)] == ["ended"]


def test_flush_from_any_thread_reaches_the_disk(recorder: Recorder, data_dir: Path) -> None:
    """After flush() what was written is in the call's files, readable, before any segment is sealed."""
    call = recorder.start_call(tracks={"user": RATE}, pace="media")
    call.write("user", noise(400))
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: call.flush().result(10)).result(10)
    (directory,) = spool.call_dirs(data_dir)
    (part,) = directory.glob("*.part")
    tag, samples = wav.read_file(part)
    assert np.array_equal(samples, noise(400))
    assert tag.synced == 400


def test_facts_are_kept_beside_the_audio(recorder: Recorder, data_dir: Path) -> None:
    """Messages and usage become rows, exact and cleaned of what no database stores."""
    with recorder.start_call(external_id="CA1", tags=["vip"], metadata={"plan": "gold"}) as call:
        call.add_message("user", "Hel\0lo \ud800!", at=1.2, metadata={"a\0": ["\ud800", "\\u0000"]})
        call.add_usage("tts", quantity="412", unit="character", cost=Decimal("0.0000100"), currency="EUR")
    (message,) = rows(data_dir, "messages.of_call", call_id=call.id)
    (usage,) = rows(data_dir, "usage.of_call", call_id=call.id)
    (row,) = rows(data_dir, "calls.get", call_id=call.id)
    assert (message["text"], message["start_s"]) == ("Hel\ufffdlo \ufffd!", 1.2)
    assert json.loads(message["metadata"]) == {"a\ufffd": ["\ufffd", "\\u0000"]}
    assert (usage["quantity"], usage["cost"], usage["currency"]) == ("412", "0.0000100", "EUR")
    assert (row["external_id"], row["tags"], row["metadata"]) == ("CA1", '["vip"]', '{"plan": "gold"}')
    assert row["state"] == "ended"


def test_two_calls_may_share_an_external_id(recorder: Recorder, data_dir: Path) -> None:
    """One external id twice makes two calls, as a provider may send a call's id again."""
    for _ in range(2):
        recorder.start_call(external_id="CA1").end().result(10)
    assert len(rows(data_dir, "calls.list", external_id="CA1", limit=10)) == 2


def test_end_is_idempotent_and_closes_the_handle(recorder: Recorder) -> None:
    """A second end() gives the same summary, and whatever is handed over afterwards is the caller's mistake."""
    call = recorder.start_call(tracks={"user": RATE})
    first = call.end("hangup").result(10)
    assert call.end("other").result(10) is first
    for late in (
        lambda: call.write("user", b"\0\0"),
        lambda: call.play("user", b"\0\0"),
        lambda: call.add_message("user", "late"),
        lambda: call.add_usage("stt", quantity=1, unit="second"),
        lambda: call.end_track("user"),
    ):
        with pytest.raises(CallEnded, match="Start a new call"):
            late()
    call.flush().result(10)


def test_exception_in_the_block_is_the_calls_reason(recorder: Recorder, data_dir: Path) -> None:
    """A call whose handler fails ends with reason `error`, sealed like any other."""
    with pytest.raises(ZeroDivisionError), recorder.start_call(tracks={"user": RATE}) as call:
        raise ZeroDivisionError
    (row,) = rows(data_dir, "calls.get", call_id=call.id)
    assert (row["state"], row["end_reason"]) == ("ended", "error")


@pytest.mark.parametrize(
    ("audio", "options", "error", "says"),
    [
        (b"\0\0", {"track": "nobody"}, UnknownTrack, "rate="),
        (b"\0\0\0", {}, InvalidAudio, "3 bytes"),
        (np.zeros((10, 2), np.int16), {}, InvalidAudio, "mono"),
        (np.zeros(10, np.float64), {}, InvalidAudio, "float64"),
        (np.zeros(10, np.int32), {}, InvalidAudio, "int32"),
        ("text", {}, InvalidAudio, "not audio"),
        (12, {}, InvalidAudio, "not audio"),
        (b"\0\0", {"rate": 900}, InvalidAudio, "1000 to 192000"),
        (b"\0\0", {"encoding": "mp3"}, InvalidAudio, "pcm16, float32, mulaw, alaw"),
        (b"\0\0\0", {"encoding": "float32"}, InvalidAudio, "4 bytes"),
        (b"\0\0", {"track": "new", "rate": 0}, InvalidAudio, "1000 to 192000"),
        (b"\0\0", {"track": "new", "rate": 8000.0}, InvalidAudio, "1000 to 192000"),
        (b"\0\0", {"track": "mixed", "rate": 8000}, CallerError, "mixed"),
        (b"\0\0", {"track": "Bad Name", "rate": 8000}, CallerError, "name a track"),
        (b"\0\0", {"at": -1.0}, CallerError, "at=-1.0"),
        (b"\0\0", {"at": float("nan")}, CallerError, "at=nan"),
        (b"\0\0", {"at": 1.7e9}, CallerError, "not a time of day"),
    ],
)
def test_bad_audio_is_refused_before_any_harm(
    recorder: Recorder, data_dir: Path, audio: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A wrong argument says what to do, and what was written before and after it is all there."""
    call = recorder.start_call(tracks={"user": RATE}, pace="media")
    call.write("user", noise(100))
    arguments = {"track": "user", **options}
    with pytest.raises(error, match=says):
        call.write(arguments.pop("track"), audio, **arguments)
    call.write("user", noise(100, seed=1))
    assert call.end().result(10).complete
    assert np.array_equal(track_of(data_dir, call.id, "user"), np.concatenate([noise(100), noise(100, seed=1)]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tracks": {"user": 0}}, "1000 to 192000"),
        ({"tracks": {"user": None}}, "1000 to 192000"),
        ({"tracks": ["user"]}, "no mapping"),
        ({"tracks": {"mixed": 8000}}, "mixed"),
        ({"pace": "fast"}, "live, media"),
        ({"record": "no"}, "neither True nor False"),
        ({"tags": "vip"}, "sequence"),
        ({"metadata": {"x": object()}}, "metadata is not JSON"),
        ({"metadata": {"x": float("nan")}}, "metadata is not JSON"),
        ({"external_id": 7}, "7 is not text"),
    ],
)
def test_bad_start_is_refused(recorder: Recorder, data_dir: Path, arguments: dict[str, Any], says: str) -> None:
    """start_call raises only for the caller's mistakes, and leaves no half call behind."""
    with pytest.raises(CallerError, match=says):
        recorder.start_call(**arguments)
    recorder.start_call().end().result(10)
    assert len(rows(data_dir, "calls.all")) == 1


@pytest.mark.parametrize("quantity", [1.5, "many", "nan", True, "1e1000000", "9" * 60])
def test_usage_is_exact_or_refused(recorder: Recorder, quantity: Any) -> None:
    """A float, or what is no finite number, never becomes a bill."""
    call = recorder.start_call()
    with pytest.raises(CallerError, match="quantity"):
        call.add_usage("tts", quantity=quantity, unit="character")


def test_float_audio_is_scaled_and_never_wraps(recorder: Recorder, data_dir: Path) -> None:
    """float32 audio from -1 to 1 becomes int16; beyond that it is limited, and NaN is silence."""
    with recorder.start_call(tracks={"user": RATE}, pace="media") as call:
        call.write("user", np.array([0, 0.5, 1, 2, -1, -2, np.nan], np.float32))
    assert track_of(data_dir, call.id, "user").tolist() == [0, 16384, 32767, 32767, -32767, -32768, 0]


def test_one_long_piece_is_taken_whole(data_dir: Path) -> None:
    """A piece longer than the queue is taken when nothing else waits: a whole file in one write is no gap."""
    with Recorder(settings(data_dir, queue_seconds=0.5)) as recorder:
        call = recorder.start_call(tracks={"user": np.int64(RATE)}, pace="media")
        call.write("user", noise(RATE * 3))
        assert call.end().result(10).complete
    assert np.array_equal(track_of(data_dir, call.id, "user"), noise(RATE * 3))


def test_removed_segment_file_leaves_a_gap(data_dir: Path) -> None:
    """A file that somebody removes while it is written keeps no call from ending; a span says what went with it."""
    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE, "assistant": RATE}, pace="media")
        call.write("user", noise(RATE // 2))
        call.write("assistant", noise(RATE // 2, seed=1))
        call.flush().result(10)
        for part in data_dir.rglob("user-*.part"):
            part.unlink()
        assert call.end().result(10).complete
    (span,) = rows(data_dir, "spans.of_call", call_id=call.id)
    assert (span["track"], span["kind"], span["start_s"], span["end_s"]) == ("user", "gap", 0, 0.5)
    assert "removed" in span["reason"]
    assert np.array_equal(track_of(data_dir, call.id, "assistant"), noise(RATE // 2, seed=1))


def test_mutable_audio_is_copied(recorder: Recorder, data_dir: Path) -> None:
    """A buffer that its caller uses again right after write() does not change what is recorded."""
    buffers: list[Any] = [bytearray(b"\1\0" * 50), np.full(50, 1, np.int16)]
    with recorder.start_call(tracks={"user": RATE}, pace="media") as call:
        for buffer in buffers:
            call.write("user", buffer)
            buffer[:] = bytes(100) if isinstance(buffer, bytearray) else 0
    assert (track_of(data_dir, call.id, "user") == 1).all()


def test_full_queue_becomes_a_gap(data_dir: Path) -> None:
    """Audio beyond queue_seconds is a visible gap with its reason, and write() never blocks."""
    with Recorder(settings(data_dir, queue_seconds=0.5)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        for _ in range(30):
            call.write("user", noise(800))  # 3 s at once
        assert call.end().result(10).complete
        spans = rows(data_dir, "spans.of_call", call_id=call.id)
    lost = sum(span["end_s"] - span["start_s"] for span in spans)
    assert {(span["kind"], span["reason"]) for span in spans} == {("gap", "the queue was full")}
    kept = track_of(data_dir, call.id, "user")
    assert len(kept) == 30 * 800
    assert lost * RATE == pytest.approx(np.count_nonzero(~kept.reshape(-1, 800).any(axis=1)) * 800)


def test_no_room_keeps_facts_without_audio(data_dir: Path) -> None:
    """Below the low-water mark a call is not refused: it says that it does not record and why, and keeps its facts."""
    full = Settings.of({"node": {"data_dir": data_dir}, "disk": {"low_water": 2**60}})
    with Recorder(full) as recorder, recorder.start_call(tracks={"user": RATE}) as call:
        assert (call.recording, call.reason) == (False, "the disk is below disk.low_water")
        call.write("user", noise(800))
        call.add_message("user", "hello")
    (row,) = rows(data_dir, "calls.get", call_id=call.id)
    assert (row["recording"], row["not_recording_reason"]) == (0, "the disk is below disk.low_water")
    assert len(rows(data_dir, "messages.of_call", call_id=call.id)) == 1
    assert not rows(data_dir, "segments.of_call", call_id=call.id)


def test_record_false_keeps_facts_without_audio(recorder: Recorder, data_dir: Path) -> None:
    """A call with record=False takes audio silently, keeps none of it, and still has its row."""
    with recorder.start_call(tracks={"user": RATE}, record=False) as call:
        call.write("user", noise(800))
        call.end_track("user")
    assert (call.recording, call.reason) == (False, "record=False")
    assert not rows(data_dir, "segments.of_call", call_id=call.id)


def test_refusing_disk_is_waited_for(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ENOSPC at every write for a while, callers notice nothing, and with room again nothing is lost."""
    refused = threading.Event()
    real = durable.write_all

    def full(fd: int, data: Any, *, at: int | None = None) -> None:
        refused.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        call.flush().result(10)
        monkeypatch.setattr(durable, "write_all", full)
        call.write("user", noise(RATE, seed=1))
        call.add_message("user", "still there")
        assert refused.wait(10)
        flushed = call.flush()
        monkeypatch.setattr(durable, "write_all", real)
        flushed.result(10)
        assert call.end().result(10).complete
    assert np.array_equal(track_of(data_dir, call.id, "user"), np.concatenate([noise(RATE), noise(RATE, seed=1)]))
    assert len(rows(data_dir, "messages.of_call", call_id=call.id)) == 1


def test_catalog_that_cannot_be_opened_keeps_nobody_from_recording(data_dir: Path) -> None:
    """With a catalog that is no catalog, calls are recorded to disk and journal all the same."""
    spool.prepare(data_dir)
    (data_dir / "catalog.db").write_bytes(b"this is not a database, whatever its name says" * 100)
    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(RATE))
        assert call.end().result(10).complete
    assert np.array_equal(track_of(data_dir, call.id, "user"), noise(RATE))


def test_catalog_deleted_under_a_running_recorder_is_rebuilt(recorder: Recorder, data_dir: Path) -> None:
    """With catalog.db gone in the middle, recording goes on, and every row comes back from the journals."""
    first = recorder.start_call(external_id="before", tracks={"user": RATE}, pace="media")
    first.write("user", noise(RATE))
    assert first.end().result(10).complete
    second = recorder.start_call(external_id="during", tracks={"user": RATE}, pace="media")
    second.write("user", noise(RATE))
    second.flush().result(10)
    for leftover in data_dir.glob("catalog.db*"):
        leftover.unlink()
    second.write("user", noise(RATE))
    assert second.end().result(10).complete
    recorder.start_call(external_id="after").end().result(10)  # its row is committed after the others are back
    states = {row["external_id"]: (row["state"], row["segments"]) for row in rows(data_dir, "calls.list", **ALL)}
    assert states == {"before": ("ended", 2), "during": ("ended", 4), "after": ("ended", 0)}


def test_unfinished_close_calls_for_recovery(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a closing recorder could not finish is salvaged by the next one, though nobody died."""

    def broken(fd: int, data: Any, *, at: int | None = None) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        call.write("user", noise(800))
        call.flush().result(10)
        monkeypatch.setattr(durable, "write_all", broken)
        call.write("user", noise(800))
    monkeypatch.undo()
    with Recorder(settings(data_dir)) as recorder:
        recorder.start_call().end().result(10)
    (row,) = rows(data_dir, "calls.get", call_id=call.id)
    assert row["state"] == "interrupted"
    assert np.array_equal(track_of(data_dir, call.id, "user"), noise(800))


def test_unusable_data_dir_is_said_at_once(tmp_path: Path) -> None:
    """A data_dir that cannot be one raises at start, names the path, and says what to do; no thread is left."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match=r"node\.data_dir"):
        Recorder(tmp_path / "file" / "data").start()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-recorder")]


def test_recorder_that_is_not_running_says_so(data_dir: Path) -> None:
    """A call before start() or after close() is the caller's mistake, with what to do."""
    recorder = Recorder(data_dir)
    with pytest.raises(RecorderClosed, match="start"):
        recorder.start_call()
    with recorder:
        pass
    with pytest.raises(RecorderClosed, match="not running"):
        recorder.start_call()
    assert recorder.close()


def test_close_seals_open_calls_and_leaves_no_thread(data_dir: Path) -> None:
    """close() ends every open call, seals it, and takes the recorder's threads with it."""
    with Recorder(settings(data_dir)) as recorder:
        calls = [recorder.start_call(tracks={"user": RATE}, pace="media") for _ in range(5)]
        for call in calls:
            call.write("user", noise(800))
    assert all(call.end().result(1).complete for call in calls)
    assert not [thread for thread in threading.enumerate() if "edge-recorder" in thread.name]
    assert not list(data_dir.glob("writers/*.lock"))
    assert {row["end_reason"] for row in rows(data_dir, "calls.list", external_id=None, limit=9)} == {"recorder closed"}


def test_interpreter_exit_seals_open_calls(data_dir: Path) -> None:
    """A program that just ends, with a call open and no close(), still has that call sealed, and does not hang."""
    program = """
import sys
import numpy as np
from edge_recorder import Recorder

recorder = Recorder(sys.argv[1]).start()
call = recorder.start_call(tracks={"user": 8000}, pace="media")
call.write("user", np.ones(800, np.int16))
print(call.id)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert not done.stderr
    assert len(track_of(data_dir, done.stdout.strip(), "user")) == 800
    assert not list(data_dir.glob("writers/*.lock"))


def test_forked_child_is_refused_clearly(recorder: Recorder) -> None:
    """A recorder does not live on in a forked child, and says so there."""
    recorder._pid += 1
    with pytest.raises(RecorderClosed, match="forked child"):
        recorder.start_call()
    recorder._pid -= 1


def test_leaving_the_block_waits_for_a_refusing_disk_with_an_end(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `with` block on a full disk is left after a bounded wait, and the call is still being ended behind it."""

    def full(fd: int, data: Any, *, at: int | None = None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call_module, "END_WAIT", 0.01)
    with Recorder(settings(data_dir)) as recorder:
        with monkeypatch.context() as disk:
            disk.setattr(durable, "write_all", full)
            with recorder.start_call(tracks={"user": RATE}, pace="media") as call:
                call.write("user", noise(800))
            assert not call.end().done()
        assert call.end().result(10).complete
    assert np.array_equal(track_of(data_dir, call.id, "user"), noise(800))


def test_flush_of_a_lost_call_is_no_success(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the recorder closes while the disk refuses, flush() fails and the summary says that it is not complete."""

    def broken(fd: int, data: Any, *, at: int | None = None) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE}, pace="media")
        monkeypatch.setattr(durable, "write_all", broken)
        call.write("user", noise(800))
        flushed = call.flush()
    monkeypatch.undo()
    assert not call.end().result(10).complete
    with pytest.raises(EdgeRecorderError, match="not all on disk"):
        flushed.result(10)


def test_live_tracks_are_aligned_by_arrival(data_dir: Path) -> None:
    """In live pace a track that speaks later stands later, and all tracks are equally long."""
    tracks = {"user": RATE, "assistant": 16000}
    with Recorder(settings(data_dir)) as recorder, recorder.start_call(tracks=tracks) as call:
        call.write("user", noise(RATE), at=0.0)
        call.write("assistant", noise(16000), at=2.0)
        call.write("user", noise(RATE, seed=1), at=2.0)
    user, assistant = (track_of(data_dir, call.id, track) for track in ("user", "assistant"))
    assert len(assistant) == 2 * len(user) == 2 * 3 * RATE
    assert np.array_equal(user[2 * RATE :], noise(RATE, seed=1))
    assert not user[RATE : 2 * RATE].any()
    assert np.array_equal(assistant[2 * 16000 :], noise(16000))


def test_unheard_audio_is_not_recorded(recorder: Recorder, data_dir: Path) -> None:
    """What was queued for the speaker when the caller hung up is an `unheard` span, not a recording."""
    call = recorder.start_call(tracks={"assistant": RATE})
    call.play("assistant", noise(RATE * 20))
    assert call.end().result(10).complete
    (span,) = rows(data_dir, "spans.of_call", call_id=call.id)
    heard = len(track_of(data_dir, call.id, "assistant"))
    assert span["kind"] == "unheard"
    assert heard < RATE * 10
    assert heard == pytest.approx(span["start_s"] * RATE, abs=1)


@pytest.mark.parametrize("at", [np.float32(1.5), np.float64(1.5), Decimal("1.5")])
def test_times_of_other_kinds_are_taken(recorder: Recorder, data_dir: Path, at: Any) -> None:
    """A time that came out of numpy, or is a Decimal, is a time: it does not break its call off."""
    call = recorder.start_call()
    call.add_message("user", "hello", at=at, end=at)
    assert call.end().result(10).complete
    (message,) = rows(data_dir, "messages.of_call", call_id=call.id)
    assert (message["start_s"], message["end_s"]) == (1.5, 1.5)


@pytest.mark.parametrize("at", [-1, float("nan"), float("inf"), pytest.param(10**400, id="huge"), "1.5", 1j])
def test_what_is_no_time_is_refused(recorder: Recorder, at: Any) -> None:
    """Whatever else is given as a time is the caller's mistake, and said so."""
    call = recorder.start_call(tracks={"user": RATE})
    with pytest.raises(CallerError, match="is not a place in the call"):
        call.write("user", b"\0\0", at=at)
    with pytest.raises(CallerError, match="is not a place in the call"):
        call.add_message("user", "hello", at=at)


@pytest.mark.parametrize(
    ("name", "value"),
    [("external_id", []), ("direction", b""), ("from_number", 0), ("to_number", {}), ("agent", False)],
)
def test_empty_values_that_are_not_text_are_refused(recorder: Recorder, name: str, value: Any) -> None:
    """What no journal and no database could hold is refused, though it is empty."""
    with pytest.raises(CallerError, match="is not text"):
        recorder.start_call(**{name: value})


def test_call_that_starts_while_the_recorder_closes_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that closes in the middle of start_call() refuses the call: its end would be waited for in vain."""
    recorder = Recorder(data_dir).start()
    real = model.new_call_id

    def close_first(now: int) -> str:
        assert recorder.close()
        return real(now)

    monkeypatch.setattr(model, "new_call_id", close_first)
    with pytest.raises(RecorderClosed, match="not running"):
        recorder.start_call()


def test_failed_start_leaves_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that refuses to start leaves no lock, no descriptor and no thread behind."""

    async def refuse(_: Catalog) -> None:
        raise UnsafeRuntime("this SQLite is too old")

    monkeypatch.setattr(Catalog, "start", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UnsafeRuntime):
        Recorder(data_dir).start()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list(data_dir.glob("writers/*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-recorder")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_start_that_breaks_off_does_not_hang(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the recorder's thread before it is ready ends start() with an error."""

    async def broken(_: Catalog) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Catalog, "start", broken)
    with pytest.raises(EdgeRecorderError, match="broke off"):
        Recorder(data_dir).start()


def test_rows_given_up_while_they_are_committed_stop_no_other(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many rows wait, those that are left to the journal may be in a commit: later rows still arrive."""
    real, asked, go = Catalog.write_all, threading.Event(), threading.Event()

    async def held(self: Catalog, statements: Any) -> list[int]:
        if any(name == "put.messages" for name, _ in statements):
            asked.set()
            await asyncio.to_thread(go.wait, 30)
        return await real(self, statements)

    monkeypatch.setattr(Catalog, "write_all", held)
    monkeypatch.setattr(rows_module, "LIMIT", 3)
    with Recorder(settings(data_dir)) as recorder:
        first = recorder.start_call()
        first.flush().result(10)
        for n in range(6):
            first.add_message("user", str(n))
            first.flush().result(10)
            assert asked.wait(10)
        go.set()
        assert first.end().result(10).complete
        second = recorder.start_call()
        assert second.end().result(10).complete
    assert {row["state"] for row in rows(data_dir, "calls.get", call_id=second.id)} == {"ended"}


def test_bug_in_recovery_is_not_the_end_of_all_rows(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a recovery raises is logged and tried again: the rows of this recorder still arrive."""
    real, recovered = recovery.recover, threading.Event()

    async def broken_once(*args: Any, **options: Any) -> Any:
        if "a bug" not in caplog.text:
            raise KeyError("a bug")
        report = await real(*args, **options)
        recovered.set()
        return report

    monkeypatch.setattr(recovery, "recover", broken_once)
    monkeypatch.setattr(recorder_module, "ROWS_RETRY", 0.01)
    with Recorder(settings(data_dir)) as recorder:
        assert recovered.wait(10)
        monkeypatch.undo()
        call = recorder.start_call()
        assert call.end().result(10).complete
    assert [row["state"] for row in rows(data_dir, "calls.get", call_id=call.id)] == ["ended"]


def test_call_that_broke_off_takes_nothing_more(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes for a call that a bug has ended is not queued for ever, at the cost of the others, and says why."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    with Recorder(settings(data_dir)) as recorder:
        call = recorder.start_call(tracks={"user": RATE})
        monkeypatch.setattr(tape.Tape, "advance", broken)
        with pytest.raises(EdgeRecorderError, match="not all on disk"):
            call.flush().result(10)
        call.write("user", noise(RATE))
        assert (call.recording, call.reason) == (False, "the recorder could not go on with it")
        assert recorder._budget.take(recorder.settings.capture.queue_bytes)
