"""`record`: what goes in comes out of `calls export`, and what is wrong with the input is said."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from nodes import Done, Node, noise
from numpy.typing import NDArray

from edge_recorder.errors import Exit

CONVERSATION = Path(__file__).parents[1] / "examples" / "conversation"
PROGRAM = [sys.executable, "-c", "from edge_recorder.commands import main; main()"]
Samples = NDArray[np.int16]


@pytest.fixture
def node(data_dir: Path) -> Node:
    return Node(data_dir)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A second of the user at 8 kHz."""
    soundfile.write(tmp_path / "user.wav", noise(8000), 8000, subtype="PCM_16")
    return tmp_path / "user.wav"


def exported(node: Node, call: str, track: str) -> Samples:
    target = node.data_dir.with_name(f"{track}.wav")
    assert node.run("calls", "export", call, "--track", track, "-o", str(target), "--force").code == 0
    with wave.open(str(target)) as reader:
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2")


def facts(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    document: dict[str, Any] = done.document
    return document


def test_a_conversation_is_exported_as_it_went_in(node: Node) -> None:
    """The example conversation comes out sample for sample, with its messages and usage, and its mix is aligned."""
    voices = {name: soundfile.read(CONVERSATION / f"{name}.flac", dtype="int16")[0] for name in ("user", "assistant")}
    files = [word for name in voices for word in (f"--{name}", str(CONVERSATION / f"{name}.flac"))]
    transcript = ["--transcript", str(CONVERSATION / "transcript.json")]
    ids = ["--external-id", "CA7", "--tenant", "acme", "--agent", "a1", "--direction", "inbound"]
    made = facts(node.run("--json", "record", *files, *transcript, "--usage", "tts", "412", "character", *ids))
    assert (made["state"], made["complete"], made["recording"]) == ("ended", True, True)
    for name, samples in voices.items():
        out = exported(node, "CA7", name)
        assert np.array_equal(out[: len(samples)], samples)
        assert not out[len(samples) :].any()
    shown = node.run("--json", "calls", "show", made["call_id"]).document
    assert len(shown["messages"]) == 14
    assert (shown["messages"][1]["start_s"], shown["messages"][1]["end_s"]) == (4.74, 10.061)
    assert [(row["kind"], row["quantity"]) for row in shown["usage"]] == [("tts", "412")]
    assert (shown["call"]["tenant"], shown["call"]["direction"]) == ("acme", "inbound")
    mixed = exported(node, "CA7", "mixed")
    alone = slice(0, 24_000 * 4)  # until the user speaks for the first time
    assert np.abs(mixed[alone].astype(int) - voices["assistant"][alone]).max() <= 2


def test_raw_audio_on_standard_input(node: Node) -> None:
    """Raw s16le is recorded as it comes; any track may be it, beside files."""
    samples = noise(4000)
    arguments = ("--track", "caller=-", "--rate", "8000", "--pace", "media")
    made = facts(node.run("--json", "record", *arguments, stdin=samples.tobytes()))
    assert np.array_equal(exported(node, made["call_id"], "caller"), samples)


def test_live_pace_takes_real_time(node: Node, user: Path) -> None:
    """In live pace a second of audio lasts a second, and is recorded without loss."""
    made = facts(node.run("--json", "record", "--user", str(user), "--pace", "live"))
    assert made["duration_s"] >= 1.0
    assert np.array_equal(exported(node, made["call_id"], "user")[:8000], noise(8000))
    assert node.run("--json", "calls", "show", made["call_id"]).document["spans"] == []


def test_a_float_file(node: Node, tmp_path: Path) -> None:
    """A file of floating-point samples is recorded at its level, not as silence."""
    soundfile.write(tmp_path / "f.wav", np.full(800, 0.5, np.float32), 8000, subtype="FLOAT")
    made = facts(node.run("--json", "record", "--user", str(tmp_path / "f.wav")))
    assert np.abs(exported(node, made["call_id"], "user") - 16384).max() <= 1


def test_two_calls_with_one_external_id(node: Node, user: Path) -> None:
    """Two calls may share the provider's id: they are two calls."""
    calls = {facts(node.run("--json", "record", "--user", str(user), "--external-id", "CA1"))["call_id"] for _ in "12"}
    assert len(calls) == 2


def test_an_odd_byte_count_loses_nothing(node: Node) -> None:
    """Input that ends in the middle of a sample is an error; all before that is kept, and the call is ended."""
    samples = noise(801)
    done = node.run("record", "--user", "-", "--rate", "8000", "--pace", "media", stdin=samples.tobytes()[:-1])
    assert done.code == Exit.USAGE
    assert "middle of a sample" in done.err
    (call,) = node.run("--json", "calls", "list").document["calls"]
    assert (call["state"], call["end_reason"]) == ("ended", "error")
    assert np.array_equal(exported(node, call["call_id"], "user"), samples[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to record"),
        (("--user", "-"), "Give --rate HZ"),
        (("--user", "user.wav", "--rate", "8000"), "a file says its own rate"),
        (("--user", "-", "--assistant", "-", "--rate", "8000"), "cannot all be standard input"),
        (("--user", "absent.wav"), "not a file"),
        (("--user", "text.wav"), "Convert it"),
        (("--user", "stereo.wav"), "remix 1"),
        (("--user", "slow.wav"), "Give 1000 to 192000 Hz"),
        (("--track", "user.wav"), "NAME=FILE"),
        (("--user", "user.wav", "--track", "user=user.wav"), "given twice"),
        (("--track", "mixed=user.wav"), "we make that"),
        (("--track", "The User=user.wav"), "cannot name a track"),
        (("--user", "user.wav", "--transcript", "absent.json"), "No such file"),
        (("--user", "user.wav", "--transcript", "text.wav"), "is no transcript"),
        (("--user", "user.wav", "--usage", "tts", "many", "character"), "not a number"),
    ],
)
def test_bad_input(
    node: Node, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    """Each mistake is a usage error that says what to do, before or without losing anything."""
    soundfile.write(tmp_path / "stereo.wav", np.zeros((80, 2), np.int16), 8000)
    soundfile.write(tmp_path / "slow.wav", np.zeros(80, np.int16), 500)
    (tmp_path / "text.wav").write_text("hello")
    monkeypatch.chdir(tmp_path)
    done = node.run("record", *arguments)
    assert done.code == Exit.USAGE, done
    assert message in done.err


def test_a_rate_of_zero(node: Node) -> None:
    """A rate out of range is refused with the range."""
    done = node.run("record", "--user", "-", "--rate", "0", stdin=b"")
    assert done.code == Exit.USAGE
    assert "1000<=x<=192000" in done.err


def test_a_data_dir_that_cannot_be_written(node: Node, user: Path, tmp_path: Path) -> None:
    """A data_dir where no directory can be made is an error of access that names the setting."""
    (tmp_path / "file").write_text("")
    node.data_dir = tmp_path / "file" / "data"
    node.configure()
    done = node.run("record", "--user", str(user))
    assert done.code == Exit.ACCESS
    assert "node.data_dir" in done.err


def test_a_full_disk_keeps_the_facts(node: Node, user: Path) -> None:
    """Below the low-water mark the call is kept without audio, the reason is said, and the command fails."""
    node.configure(disk={"low_water": 2**60})
    done = node.run("--json", "record", "--user", str(user), "--usage", "tts", "1", "character")
    assert done.code == Exit.FAILED
    assert done.document["recording"] is False
    shown = node.run("--json", "calls", "show", done.document["call_id"]).document
    assert (len(shown["segments"]), len(shown["usage"])) == (0, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_is_kept(node: Node, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM ends the call in order, with 130 and nothing lost."""
    samples = noise(4000)
    process = _start_recording(node, samples)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED
    made = json.loads(out)
    (call,) = node.run("--json", "calls", "list").document["calls"]
    assert (made["call_id"], made["state"], call["end_reason"]) == (call["call_id"], "ended", "interrupted")
    assert np.array_equal(_heard(exported(node, call["call_id"], "user"), 4000), samples)


def test_messages_come_with_the_call(node: Node, tmp_path: Path) -> None:
    """A live recording that breaks off has the messages up to there, and none that were still to be said."""
    transcript = tmp_path / "transcript.json"
    turns = [{"speaker": "user", "text": text, "start": at, "end": at} for text, at in (("now", 0.0), ("later", 60.0))]
    transcript.write_text(json.dumps(turns))
    process = _start_recording(node, noise(4000), "--transcript", str(transcript))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    shown = node.run("--json", "calls", "show", json.loads(out)["call_id"]).document
    assert [message["text"] for message in shown["messages"]] == ["now"]


def test_a_killed_recording_is_salvaged(node: Node) -> None:
    """After SIGKILL, and with the catalog deleted too, `repair local` brings back all that was handed over."""
    samples = noise(4000)
    process = _start_recording(node, samples)
    process.kill()
    process.communicate()
    for path in node.data_dir.glob("catalog.db*"):
        path.unlink()
    report = node.run("--json", "repair", "local").document
    assert (report["calls_closed"], report["segments_salvaged"]) == (1, 1)
    (call,) = node.run("--json", "calls", "list").document["calls"]
    assert call["state"] == "interrupted"
    assert _heard(exported(node, call["call_id"], "user"), 4000).tolist() == samples.tolist()
    assert node.run("--json", "verify").document["differences"] == []


def _start_recording(node: Node, samples: Samples, *options: str) -> subprocess.Popen[bytes]:
    """Start a live recording in a process of its own, and return when `samples` are in its file."""
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(node.config), "--json", "record", "--user", "-", "--rate", "8000", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"recording ")
    process.stdin.write(samples.tobytes())
    process.stdin.flush()
    _wait_for_audio(node)
    return process


def _heard(samples: Samples, count: int) -> Samples:
    """Return `count` samples from the first that is not silent."""
    return samples[np.flatnonzero(samples)[0] :][:count]


def _wait_for_audio(node: Node) -> None:
    """Wait until the file of the call being recorded holds all that was sent (half a second in 20 ms pieces)."""
    while not any(path.stat().st_size >= 512 + 8000 for path in node.data_dir.glob("spool/*/*/*/*/user-*.wav.part")):
        pass
