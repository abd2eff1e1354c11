"""`calls list`, `calls show` and `calls export`."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from nodes import MadeCall, Node, noise
from numpy.typing import NDArray

from edge_recorder import Recorder, Settings, wav
from edge_recorder.catalog.statements import storing
from edge_recorder.errors import Exit
from edge_recorder.model import Span, span_id

USER = [noise(8000), noise(4000, 2)]
ASSISTANT = [noise(24_000, 3), noise(11_000, 4)]


@pytest.fixture
def node(data_dir: Path) -> Node:
    return Node(data_dir)


@pytest.fixture
def call(node: Node) -> MadeCall:
    return node.call({"user": (8000, USER), "assistant": (24_000, ASSISTANT)})


def read_wav(source: Path | io.BytesIO) -> tuple[NDArray[np.int16], int]:
    with wave.open(str(source) if isinstance(source, Path) else source) as reader:
        samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
        return samples.reshape(-1, reader.getnchannels()), reader.getframerate()


def test_list(node: Node, call: MadeCall) -> None:
    """Each call is a line, the latest first, with what of its audio is owed; the filters leave the others out."""
    other = node.call({}, external_id="CA2", recording=False, not_recording_reason="no consent")
    shown = node.run("--json", "calls", "list").document
    assert shown["version"] == 1
    assert {row["call_id"] for row in shown["calls"]} == {call.id, other.id}
    (one,) = node.run("--json", "calls", "list", "--external-id", "CA1").document["calls"]
    assert (one["call_id"], one["segments"], one["audio_owed"]) == (call.id, 4, 4)
    assert (one["recording"], one["tags"]) == (True, ["vip"])
    assert len(node.run("--json", "calls", "list", "--limit", "1").document["calls"]) == 1
    assert call.id in node.run("calls", "list").out


def test_list_of_nothing(node: Node) -> None:
    """A node that recorded nothing says so."""
    assert node.run("calls", "list").out == "no calls\n"


def test_show(node: Node, call: MadeCall) -> None:
    """A call is shown with everything that belongs to it, for people and for programs."""
    shown = node.run("--json", "calls", "show", call.id).document
    assert shown["call"]["duration_s"] == 1.5
    assert [(row["track"], row["seq"], row["state"]) for row in shown["segments"]] == [
        ("assistant", 1, "pending"),
        ("assistant", 2, "pending"),
        ("user", 1, "pending"),
        ("user", 2, "pending"),
    ]
    assert [len(shown[name]) for name in ("spans", "messages", "usage")] == [1, 1, 1]
    text = node.run("calls", "show", call.id).out
    assert all(word in text for word in ("hangup", "2026-09-", "disk full", "Hello", "character", "pending"))


@pytest.mark.parametrize("ref", ["id", "prefix", "external"])
def test_how_a_call_is_named(node: Node, call: MadeCall, ref: str) -> None:
    """A call_id, the beginning of one, and the provider's id all name a call."""
    name = {"id": call.id, "prefix": call.id[:20], "external": "CA1"}[ref]
    assert node.run("--json", "calls", "show", name).document["call"]["call_id"] == call.id


def test_an_ambiguous_name(node: Node, call: MadeCall) -> None:
    """Two calls with one external id are two calls: the error lists them."""
    other = node.call({})
    done = node.run("calls", "show", "CA1")
    assert done.code == Exit.USAGE
    assert call.id in done.err
    assert other.id in done.err
    assert "call_id" in done.err


def test_an_unknown_name(node: Node) -> None:
    """A call that is not there is a usage error that says how to find one."""
    done = node.run("calls", "show", "CA9")
    assert done.code == Exit.USAGE
    assert "calls list" in done.err


def test_no_catalog(node: Node, tmp_path: Path) -> None:
    """A directory without a catalog is left without one, and exits 10."""
    empty = tmp_path / "empty"
    empty.mkdir()
    node.data_dir = empty
    node.configure()
    done = node.run("calls", "list")
    assert done.code == Exit.NO_CATALOG
    assert "init" in done.err
    assert list(empty.iterdir()) == []


def test_export_is_sample_for_sample(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """A track's export is what went in, as WAV and as FLAC, and silent to the end of the call."""
    for name, samples, rate in (("user", USER, 8000), ("assistant", ASSISTANT, 24_000)):
        expected = np.concatenate(samples)
        target = tmp_path / f"{name}.wav"
        shown = node.run("--json", "calls", "export", call.id, "--track", name, "-o", str(target)).document
        assert (shown["rate"], shown["channels"], shown["frames"]) == (rate, 1, int(1.5 * rate))
        exported, exported_rate = read_wav(target)
        assert exported_rate == rate
        assert np.array_equal(exported[: len(expected), 0], expected)
        assert not exported[len(expected) :].any()
        node.run("calls", "export", call.id, "--track", name, "-o", str(target.with_suffix(".flac")))
        assert np.array_equal(soundfile.read(target.with_suffix(".flac"), dtype="int16")[0], exported[:, 0])


def test_export_of_stereo(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """Stereo has the user left and the assistant right, at the higher rate."""
    node.run("calls", "export", call.id, "--track", "stereo", "-o", str(tmp_path / "both.wav"))
    both, rate = read_wav(tmp_path / "both.wav")
    assert (rate, both.shape) == (24_000, (36_000, 2))
    assert np.array_equal(both[:35_000, 1], np.concatenate(ASSISTANT))
    assert both[:, 0].any()


@pytest.mark.parametrize("mixed_rate", [0, 16_000, 8000])
def test_export_of_the_mix(node: Node, tmp_path: Path, mixed_rate: int) -> None:
    """The mix of a recorded call is its mixed files, joined, bit for bit; and all its exports are equally long."""
    audio = {"user": (8000, noise(8000 * 9 + 77)), "assistant": (22_050, noise(22_050 * 7, 2)), "guest": (16_000, [])}
    capture = {"segment_seconds": 3, "mixed_rate": mixed_rate}
    with Recorder(Settings.of({"node": {"data_dir": node.data_dir}, "capture": capture})) as recorder:
        call = recorder.start_call(tracks={name: rate for name, (rate, _) in audio.items()}, pace="media")
        for name, (_, samples) in audio.items():
            call.write(name, np.asarray(samples, np.int16))
            call.end_track(name)
        summary = call.end().result(30)
    rows = [row for row in node.fetch("segments.of_call", call_id=call.id) if row["track"] == "mixed"]
    files = sorted(node.data_dir.rglob("mixed-*.wav"))
    assert len(rows) == len(files) == 4
    joined = np.concatenate([np.frombuffer(file.read_bytes()[wav.HEADER_BYTES :], "<i2") for file in files])
    frames = {}
    for track in ("mixed", "user", "assistant", "guest", "stereo"):
        target = tmp_path / f"{track}.wav"
        shown = node.run("--json", "calls", "export", call.id, "--track", track, "-o", str(target)).document
        frames[track] = shown["frames"] / shown["rate"]
        assert abs(frames[track] - summary.duration_s) < 1 / shown["rate"]
    exported, rate = read_wav(tmp_path / "mixed.wav")
    assert rate == (mixed_rate or 22_050)
    assert np.array_equal(exported[:, 0], joined)


def spans(node: Node, call: MadeCall, *places: tuple[str, str | None, float, float]) -> None:
    """Give `call` spans: kind, track, from, to."""
    facts = [
        Span(
            span_id=span_id(call.id, n),
            call_id=call.id,
            n=n,
            track=track,
            kind=kind,
            start_s=start,
            end_s=end,
            reason="",
        )
        for n, (kind, track, start, end) in enumerate(places, 2)
    ]
    node.write_all(list(storing(facts)))


@pytest.mark.parametrize("track", ["user", "assistant", "mixed", "stereo"])
def test_what_was_paused_is_left_out(node: Node, call: MadeCall, tmp_path: Path, track: str) -> None:
    """With --skip the time of a pause is gone from every export alike, to the sample; without it nothing is."""
    spans(node, call, ("paused", None, 0.5, 0.7), ("paused", None, 0.6, 0.75), ("paused", None, 1.2, 9.0))
    whole, short = tmp_path / "whole.wav", tmp_path / "short.wav"
    kept = node.run("--json", "calls", "export", call.id, "--track", track, "-o", str(whole)).document
    assert (kept["frames"], kept["skipped_s"], kept["skipped"]) == (1.5 * kept["rate"], 0, [])
    cut = node.run(
        "--json", "calls", "export", call.id, "--track", track, "--skip", "paused", "-o", str(short)
    ).document
    assert cut["skipped"] == [{"start_s": 0.5, "end_s": 0.75}, {"start_s": 1.2, "end_s": 1.5}]
    assert cut["skipped_s"] == pytest.approx(0.55)
    assert cut["frames"] == round(0.95 * cut["rate"])
    (before, rate), (after, _) = read_wav(whole), read_wav(short)
    fade = round(0.005 * rate)
    first, last = rate // 2, 3 * rate // 4
    assert len(after) == cut["frames"]
    assert np.array_equal(after[: first - fade], before[: first - fade])
    assert np.array_equal(after[first + fade : -fade], before[last + fade : round(1.2 * rate) - fade])


def test_a_gap_of_one_voice_is_left_out_of_that_voice_alone(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """While one voice has a gap the others go on: only its own export is shorter, and only if it is asked for."""
    target = str(tmp_path / "x.wav")
    seconds = {}
    for track in ("user", "assistant", "mixed", "stereo"):
        shown = node.run(
            "--json", "calls", "export", call.id, "--track", track, "--skip", "gap", "-o", target, "--force"
        )
        seconds[track] = shown.document["skipped_s"]
    assert seconds == {"user": 0.25, "assistant": 0, "mixed": 0, "stereo": 0}
    paused = node.run("calls", "export", call.id, "--track", "user", "--skip", "paused", "-o", target, "--force")
    assert "0.00 s left out" in paused.out


def test_kinds_to_skip_add_up(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """--skip may be given for several kinds; a kind whose time may hold sound is a usage error."""
    spans(node, call, ("paused", None, 0.4, 1.0), ("gap", None, 1.25, 1.5), ("unheard", "user", 1.0, 1.1))
    skip = ("--skip", "paused", "--skip", "gap")
    done = node.run("calls", "export", call.id, "--track", "user", *skip, "-o", str(tmp_path / "x.wav"))
    assert "0.50 s at 8000 Hz, 1.00 s left out" in done.out
    refused = node.run("calls", "export", call.id, "--skip", "unheard", "-o", str(tmp_path / "y.wav"))
    assert refused.code == Exit.USAGE
    assert "'paused', 'gap'" in refused.err


def test_a_pipe_knows_its_length(node: Node, call: MadeCall) -> None:
    """A WAV on standard output says in its header how long it is, also when something was skipped."""
    spans(node, call, ("paused", None, 0.5, 1.0))
    done = node.run("calls", "export", call.id, "--skip", "paused", "-o", "-")
    samples, rate = read_wav(io.BytesIO(done.raw))
    assert (len(samples), rate) == (24_000, 24_000)
    assert int.from_bytes(done.raw[40:44], "little") == len(done.raw) - 44 == 48_000


def test_export_to_stdout(node: Node, call: MadeCall) -> None:
    """`-o -` writes nothing to standard output but the WAV."""
    done = node.run("calls", "export", call.id, "--track", "user", "-o", "-")
    samples, _ = read_wav(io.BytesIO(done.raw))
    assert np.array_equal(samples[:, 0], np.concatenate(USER))


def test_an_export_is_not_written_over(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """An existing file stays without --force, and is replaced with it."""
    target = tmp_path / "user.wav"
    target.write_bytes(b"mine")
    done = node.run("calls", "export", call.id, "--track", "user", "-o", str(target))
    assert (done.code, target.read_bytes()) == (Exit.USAGE, b"mine")
    assert "--force" in done.err
    assert node.run("calls", "export", call.id, "--track", "user", "-o", str(target), "--force").code == 0
    assert target.read_bytes()[:4] == b"RIFF"


def test_a_failed_export_leaves_nothing(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """Where a segment's file is gone the export fails with its name and leaves no file, not even half a one."""
    call.path("user", 2).unlink()
    before = sorted(tmp_path.iterdir())
    done = node.run("calls", "export", call.id, "--track", "user", "-o", str(tmp_path / "user.wav"))
    assert done.code == Exit.INTEGRITY
    assert "user-000002.wav" in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_gone_here_is_named_in_its_store(node: Node, call: MadeCall, tmp_path: Path) -> None:
    """The error of a missing file says where the store has it."""
    (segment,) = (each for each in call.segments if (each.track, each.seq) == ("user", 1))
    place = {"id": segment.segment_id, "store_url": "s3://bucket", "key": "k/user-000001.flac", "format": "flac"}
    node.write("objects.place", **place)
    node.write("objects.mark_stored", id=segment.segment_id, file_bytes=1, file_sha256="ab", now=1)
    call.path("user", 1).unlink()
    done = node.run("calls", "export", call.id, "--track", "user", "-o", str(tmp_path / "user.wav"))
    assert "k/user-000001.flac in s3://bucket" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--track", "agent", "-o", "x.wav"), "It has: assistant, mixed, user"),
        (("--track", "user", "-o", "x.mp3"), ".wav or .flac"),
        (("--track", "user", "-o", "/nowhere/x.wav"), "No such file or directory"),
    ],
)
def test_what_cannot_be_exported(node: Node, call: MadeCall, arguments: tuple[str, ...], message: str) -> None:
    """A track that is not there, a format that is not ours and a directory that is not there are clear errors."""
    done = node.run("calls", "export", call.id, *arguments)
    assert done.code in {Exit.USAGE, Exit.FAILED}
    assert message in done.err


def test_a_call_without_audio(node: Node, tmp_path: Path) -> None:
    """A call that was not recorded says why when it is exported."""
    call = node.call({}, recording=False, not_recording_reason="no consent")
    done = node.run("calls", "export", call.id, "-o", str(tmp_path / "x.wav"))
    assert done.code == Exit.USAGE
    assert "no consent" in done.err


def test_a_live_call_is_exported_as_far_as_it_is_sealed(node: Node, tmp_path: Path) -> None:
    """What is sealed of a live call can be heard, and the command says that it is not all."""
    call = node.call({"user": (8000, USER)}, state="live", ended_at=None, end_reason=None, duration_s=None)
    done = node.run("calls", "export", call.id, "--track", "user", "-o", str(tmp_path / "x.wav"))
    assert done.code == 0
    assert "still live" in done.err


def test_flac_without_soundfile(node: Node, call: MadeCall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without soundfile a FLAC export names the extra to install."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    done = node.run("calls", "export", call.id, "--track", "user", "-o", str(tmp_path / "x.flac"))
    assert done.code == Exit.FAILED
    assert "edge-recorder[files]" in done.err
    assert not (tmp_path / "x.flac").exists()
