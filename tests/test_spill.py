"""Audio in a file without a name: given back as it was, or refused; nothing of it stays."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from disks import failing, names, noise, open_files

from edge_recorder.spill import Spill


def test_what_was_stored_is_given_back(tmp_path: Path) -> None:
    """Each piece, and each part of one, comes back sample for sample, in any order, from a file that has no name."""
    spill = Spill(tmp_path)
    pieces = [noise(1000, n) for n in range(3)]
    stored = [spill.store(piece) for piece in pieces]
    assert names(tmp_path) == []
    for piece, kept in reversed(list(zip(pieces, stored, strict=True))):
        assert kept is not None
        assert len(kept) == 1000
        assert np.array_equal(kept.load(), piece)
        assert np.array_equal(kept[200:900][100:].load(), piece[300:900])
        assert len(kept[500:500].load()) == 0
    spill.close()


def test_spill_without_use_makes_no_file(tmp_path: Path) -> None:
    """A call that never has too much waiting opens nothing, and closing twice is no harm."""
    before = open_files()
    spill = Spill(tmp_path)
    assert open_files() == before
    spill.close()
    spill.close()


def test_call_without_its_directory_yet_spills_above_it(tmp_path: Path) -> None:
    """A long prompt that is played before the call's directory is made has a place all the same."""
    spill = Spill(tmp_path / "2026" / "09" / "22" / "call")
    stored = spill.store(noise(100))
    assert stored is not None
    assert np.array_equal(stored.load(), noise(100))
    assert names(tmp_path) == []
    spill.close()


@pytest.mark.parametrize(("operation", "number"), [("open", errno.EMFILE), ("pwrite", errno.ENOSPC)])
def test_disk_that_refuses_takes_nothing(tmp_path: Path, operation: str, number: int) -> None:
    """What is not stored is refused as a whole, leaves no name behind, and does not spoil what comes after."""
    spill = Spill(tmp_path)
    with failing(operation, lambda _: True, number):
        assert spill.store(noise(100)) is None
    kept = spill.store(noise(100, 2))
    assert kept is not None
    assert np.array_equal(kept.load(), noise(100, 2))
    assert names(tmp_path) == []
    spill.close()


def test_half_written_piece_is_written_over(tmp_path: Path) -> None:
    """When the disk takes a part of a piece and refuses the rest, the next piece has its place."""
    spill = Spill(tmp_path)
    first = spill.store(noise(100))
    with failing("pwrite", lambda n: n == 1, errno.ENOSPC):
        assert spill.store(noise(500, 2)) is None
    second = spill.store(noise(50, 3))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.load(), noise(100))
    assert np.array_equal(second.load(), noise(50, 3))
    spill.close()


def test_disk_that_gives_nothing_back_is_an_error(tmp_path: Path) -> None:
    """A piece that cannot be read, or is no longer all there, is an error that says why."""
    spill = Spill(tmp_path)
    stored = spill.store(noise(100))
    assert stored is not None
    with failing("pread", lambda _: True), pytest.raises(OSError, match="Input/output") as failure:
        stored.load()
    assert failure.value.errno == errno.EIO
    spill.close()
    with pytest.raises(OSError, match="closed") as closed:
        stored.load()
    assert closed.value.strerror


def test_closing_gives_the_room_back(tmp_path: Path) -> None:
    """Nothing of a spill is open once it is closed."""
    before = open_files()
    spill = Spill(tmp_path)
    assert spill.store(noise(100)) is not None
    assert open_files() != before
    spill.close()
    assert open_files() == before
