"""The incident in small: the callbacks that lost every row, on a recorder that does not."""

from __future__ import annotations

import asyncio
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from sites import Site

from edge_recorder import Call, Recorder, Settings, model

TURNS = 6
RATES = {"user": 8000, "assistant": 24000}


def turn(track: str, n: int) -> np.ndarray:
    """Return 0.7 s of a turn's audio, that no other turn has."""
    seed = 2 * n + (track == "user")
    return np.random.default_rng(seed).integers(-3000, 3000, RATES[track] * 7 // 10).astype(np.int16)


async def on_turn(call: Call, track: str, n: int) -> None:
    """Take a finished turn, as the platform's callback does."""
    audio = turn(track, n)
    for start in range(0, len(audio), 400):
        call.write(track, audio[start : start + 400])
    call.add_message(track, f"turn {n} of {track}")
    call.add_usage("stt" if track == "user" else "tts", quantity=n, unit="character")


def in_fresh_loops(call: Call, track: str) -> None:
    """Run each callback in an event loop of its own, closed behind it: where the old pool's futures died."""
    for n in range(TURNS):
        asyncio.run(on_turn(call, track, n))


def in_a_loop_that_closes_half_way(call: Call, track: str) -> None:
    """Run the callbacks in one loop that is closed while a caller still waits in it, then in another."""
    loop = asyncio.new_event_loop()

    async def first_half() -> None:
        for n in range(TURNS // 2):
            await on_turn(call, track, n)
        asyncio.ensure_future(_flush(call))  # noqa: RUF006 (nobody will ever await it: the loop is closed first)

    loop.run_until_complete(first_half())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for n in range(TURNS // 2, TURNS):
        asyncio.run(on_turn(call, track, n))


async def _flush(call: Call) -> None:
    await call.flush()


def stored_track(site: Site, call_id: str, track: str) -> np.ndarray:
    """Return a track as S3 has it, put together by what the centre says of its segments."""
    found = site.query(
        "select s.first_sample, o.key from recorder.segments s join recorder.objects o on o.object_id = s.segment_id"
        " where s.call_id = %s and s.track = %s order by s.first_sample",
        call_id,
        track,
    )
    return np.concatenate([soundfile.read(io.BytesIO(site.bucket.read(key)), dtype="int16")[0] for _, key in found])


def test_every_segment_of_the_incident_arrives_in_both_stores(site: Site, data_dir: Path) -> None:
    """Callbacks in foreign loops and threads, some closed half way: every segment, message and usage arrives, once."""
    settings = Settings.of({"node": {"data_dir": data_dir}, "capture": {"segment_seconds": 1, "late_window": 0.1}})
    with Recorder(settings) as recorder:
        calls = [recorder.start_call(external_id=f"CA{n}", tracks=RATES, pace="media") for n in range(3)]
        work = [
            (in_fresh_loops, calls[0], "user"),
            (in_a_loop_that_closes_half_way, calls[0], "assistant"),
            (in_a_loop_that_closes_half_way, calls[1], "user"),
            (in_fresh_loops, calls[1], "assistant"),
            (in_fresh_loops, calls[2], "user"),
            (in_fresh_loops, calls[2], "assistant"),
        ]
        with ThreadPoolExecutor(len(work)) as threads:
            list(threads.map(lambda each: each[0](each[1], each[2]), work))
        recorder_thread = next(thread for thread in threading.enumerate() if thread.name == "edge-recorder")
        assert recorder_thread.is_alive()
        summaries = [call.end().result(20) for call in calls]
    assert all(summary.complete for summary in summaries)

    assert site.sync().exit_code == 0

    expected = sum(summary.segments for summary in summaries)
    tracks = dict(site.query("select track, count(*) from recorder.segments group by track"))
    assert sum(tracks.values()) == len(site.bucket.keys()) == expected
    assert tracks["user"] == tracks["assistant"] == tracks["mixed"]
    assert site.query("select count(*) from recorder.messages") == [(3 * 2 * TURNS,)]
    assert site.query("select sum(quantity) from recorder.usage") == [(3 * 2 * sum(range(TURNS)),)]
    assert site.query("select state, audio_owed from recorder.call_list") == [("ended", 0)] * 3
    for call in calls:
        for track in RATES:
            spoken = np.concatenate([turn(track, n) for n in range(TURNS)])
            assert np.array_equal(stored_track(site, call.id, track), spoken)
        messages = site.query(
            "select message_id::text, n from recorder.messages where call_id = %s order by n", call.id
        )
        assert messages == [(model.message_id(call.id, n), n) for n in range(1, 2 * TURNS + 1)]
