"""The pages that draw the house draw the house that stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)
NETWORK = (
    "aiohttp",
    "boto3",
    "botocore",
    "aioboto3",
    "aiobotocore",
    "httpx",
    "requests",
    "urllib3",
    "psycopg",
    "http.client",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_a_page_names_exists(page: Path) -> None:
    """A path in backquotes is a file or folder of this repository."""
    named = re.findall(
        r"`((?:edge_recorder|sync|dashboard|tests|docs|examples|deploy|benchmarks)/[\w./-]*)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_architecture_names_the_files_a_newcomer_follows() -> None:
    """Every module of the core and of the agent stands on the map."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [*ROOT.glob("edge_recorder/*.py"), *ROOT.glob("sync/*.py")]
    absent = [str(each.relative_to(ROOT)) for each in modules if each.stem != "__init__" and each.name not in page]
    assert not absent


def test_importing_the_recorder_loads_no_network_library() -> None:
    """`import edge_recorder` in a call process brings no HTTP, S3 or Postgres library with it."""
    program = "import edge_recorder, sys; edge_recorder.Recorder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.split()
    assert "edge_recorder.recorder" in loaded
    assert not {name for name in loaded for bad in NETWORK if name == bad or name.startswith(bad + ".")}
