"""The benchmarks run and give figures. What the figures are is for people to look at: a test of them would lie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "capture.py"
WRITERS = {"wave", "wave-raw", "soundfile", "pipecat", "blocks", "ours"}

Report = dict[str, Any]

pytestmark = pytest.mark.faults  # a quarter of a minute, in real time


def capture(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=55, check=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One quick run, shared by all."""
    room = tmp_path_factory.mktemp("bench")
    done = capture("--quick", "--json", "--dir", str(room))
    assert done.returncode == 0, done.stderr
    assert list(room.iterdir()) == []
    found: Report = json.loads(done.stdout)
    return found


def test_every_writer_has_figures(report: Report) -> None:
    """Each writer has its CPU and its RAM, or the row says what to install."""
    rows = {row["writer"]: row for row in report["tables"]["cpu"]}
    assert set(rows) == WRITERS
    for name, row in rows.items():
        if "missing" in row:
            assert "edge-recorder[bench]" in row["missing"]
            continue
        assert all(each["cpu_us"] > 0 and each["handed_over"] > 0 for each in row["paced"])
        assert name == "ours" or row["alone_us"] > 0
    assert "missing" not in rows["ours"]
    assert "missing" not in rows["wave"]


def test_ours_has_figures_at_every_size(report: Report) -> None:
    """CPU, latency and RAM are there for each number of calls and each interval of fsync, and no audio is lost."""
    for row in (*report["tables"]["calls"], *report["tables"]["fsync"]):
        assert row["gross_us"] > 0
        assert row["feeder_us"] > 0
        assert 0 < row["write_us"]["p50"] <= row["write_us"]["p99.9"] <= row["write_us"]["max"]
        assert row["late_ms"]["max"] > 0
        assert row["peak_mb"] > row["idle_mb"] > 0
        assert row["incomplete"] == 0
        assert not row["lost_s"]


def test_the_ram_is_watched(report: Report) -> None:
    """The long run has its RAM and open files at several times."""
    looks = report["tables"]["flat"]["flat"]
    assert len(looks) > 2
    assert all(ram > 0 and files > 0 for _, ram, files in looks)
    assert [after for after, _, _ in looks] == sorted(after for after, _, _ in looks)


def test_the_ways_to_sync_are_compared(report: Report) -> None:
    """Each of the three ways took its time."""
    ways = report["tables"]["syncing"]
    assert len(ways) == 3
    assert all(way["wall_ms"] > 0 for way in ways.values())


def test_all_tables_are_shown(report: Report, tmp_path: Path) -> None:
    """The text has the five tables, a row for each writer, and the machine that they come from."""
    saved = tmp_path / "report.json"
    saved.write_text(json.dumps(report))
    text = capture("--from", str(saved)).stdout
    assert [line[4] for line in text.splitlines() if line.startswith("### ")] == list("12345")
    assert text.index("edge-recorder, everything on") < text.index("### 2")
    assert all(fact in text for fact in report["machine"].values())


def test_a_wrong_directory_is_refused(tmp_path: Path) -> None:
    """A directory that is not there is named, and nothing is measured."""
    done = capture("--dir", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "is no directory" in done.stderr
