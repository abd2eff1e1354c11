"""`demo`: the whole way in one command, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from services import make_room

import sync.commands.demo as demo_module
from edge_recorder.commands import cli

DEMO = [sys.executable, "-c", "from edge_recorder.commands import main; main()"]


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory for temporary files that the demo has to itself, and that its Postgres can pass through."""
    room = make_room("edge-recorder-test-")
    yield room
    shutil.rmtree(room)


@pytest.fixture
def demo(room: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo at work; whatever a failed test leaves of it is ended."""
    process = _start(room, "demo")
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate()


def test_the_demo_leaves_nothing(room: Path, demo: subprocess.Popen[str]) -> None:
    """The demo ends well, shows the outage and its healing, and leaves no process and no directory."""
    out, err = demo.communicate(timeout=55)
    assert demo.returncode == 0, err
    assert "All four agree" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["CAdemo2", "ended", "64.5", "9", "0", "9"] in lines
    assert ["CAdemo2", "ended", "64.5", "9", "9", "0"] in lines
    assert list(room.iterdir()) == []
    assert _processes(room) == []


@pytest.mark.parametrize(
    ("during", "number"),
    [
        ("Starting", signal.SIGINT),
        ("Recording", signal.SIGINT),
        ("Recording", signal.SIGTERM),
        ("S3 is down", signal.SIGINT),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    room: Path, demo: subprocess.Popen[str], during: str, number: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM in the middle ends the demo with 130, without a process or a directory left."""
    assert demo.stdout is not None
    seen = ""
    while during not in seen:
        letter = demo.stdout.read(1)
        assert letter, seen
        seen += letter
    demo.send_signal(number)
    demo.communicate(timeout=55)
    assert demo.returncode == 130
    assert list(room.iterdir()) == []
    assert _processes(room) == []


def test_a_kept_demo_can_be_used_and_stopped(room: Path) -> None:
    """`--keep` leaves services with which every command works, and says how to end them."""
    process = _start(room, "--json", "demo", "--keep")
    out, err = process.communicate(timeout=55)
    facts = json.loads(out)
    try:
        assert process.returncode == 0, err
        assert all(len(set(cells.values())) == 1 for cells in facts["places"].values())
        verify = _start(room, "--config", facts["config"], "--json", "verify", AWS_ACCESS_KEY_ID="demo")
        report = json.loads(verify.communicate(timeout=30)[0])
        assert report["counts"] == {"files": 18, "rows": 18, "objects": 18, "held": 18}
        assert Path(facts["export"]).read_bytes()[:4] == b"RIFF"
    finally:
        os.kill(facts["pids"]["s3"], signal.SIGTERM)
        os.kill(facts["pids"]["postgres"], signal.SIGINT)
        while _processes(room):
            pass


def test_a_demo_without_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a package, or without the conversation (an installed wheel), the demo says so and starts nothing."""
    monkeypatch.setattr(demo_module, "CONVERSATION", tmp_path)
    assert "Clone the repository" in str(CliRunner().invoke(cli, ["demo"]).exception)
    monkeypatch.setattr(demo_module, "PACKAGES", ("moto_is_absent",))
    assert "edge-recorder[demo]" in str(CliRunner().invoke(cli, ["demo"]).exception)


def _start(room: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    aws = {"AWS_SECRET_ACCESS_KEY": "demo", "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.Popen(
        [*DEMO, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **aws, "TMPDIR": str(room), "PYTHONUNBUFFERED": "1", **environ},
    )


def _processes(room: Path) -> list[str]:
    """Return the command lines of the processes that work in `room`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = (process / "cwd").readlink()
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if here.is_relative_to(room) or str(room) in words:
            found.append(words)
    return found
