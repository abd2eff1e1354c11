"""What a fault left on disk and in the catalog, judged against what was handed over: present, or named by a span."""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nodes import Node
from numpy.typing import NDArray
from speaker import TICK, Board, voice

from edge_recorder import spool, wav
from edge_recorder.catalog.connection import Row

Taken = NDArray[np.bool_]

HEALED = (
    "calls_closed",
    "calls_failed",
    "segments_salvaged",
    "segments_adopted",
    "segments_mixed",
    "files_quarantined",
)


@dataclass(frozen=True, slots=True)
class Missing:
    """Samples of a track that were handed over and are neither in a sealed file nor named by a span."""

    track: str
    ranges: list[tuple[float, float]]  # seconds
    instead: str  # what the first of them has

    def __bool__(self) -> bool:
        return bool(self.ranges)


class Evidence:
    """The calls of one data_dir after a fault, as its catalog and its files tell them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.node = Node(data_dir)
        self.calls = {row["call_id"]: row for row in self._rows("calls.list", external_id=None, limit=10_000)}

    def heal(self) -> dict[str, Any]:
        """Run `repair local`, and return what it counted."""
        done = self.node.run("--json", "repair", "local")
        assert done.code == 0, done.err or done.out
        self.calls = {row["call_id"]: row for row in self._rows("calls.list", external_id=None, limit=10_000)}
        counted: dict[str, Any] = done.document
        return counted

    def check(self) -> None:
        """Disk and catalog agree, call by call, and nothing is left half done."""
        directories = {path.name: path for path in spool.call_dirs(self.data_dir)}
        assert directories.keys() == self.calls.keys()
        verified = self.node.run("verify")
        assert verified.code == 0, verified.out
        for call_id, directory in directories.items():
            assert self.calls[call_id]["state"] in {"ended", "interrupted"}
            self._check_call(call_id, directory)
        for path in self._set_aside():  # a file that was just made holds nothing yet
            assert path.stat().st_size <= wav.HEADER_BYTES or b"holds all of it" in _note(path), _note(path)

    def check_nothing_to_heal(self) -> None:
        """To heal once more finds nothing to do, and tells the centre nothing."""
        before = self._rows("changes.last")
        counted = self.heal()
        assert not any(counted[name] for name in HEALED), counted
        assert self._rows("changes.last") == before

    def _check_call(self, call_id: str, directory: Path) -> None:
        rows = {(row["track"], row["seq"]): row for row in self._rows("segments.of_call", call_id=call_id)}
        files = {(file.track, file.seq): file for file in spool.segment_files(directory)}
        assert all(file.sealed for file in files.values()), "a .part is left"
        assert files.keys() == rows.keys()
        assert {path.name for path in directory.iterdir()} == {f.path.name for f in files.values()} | {spool.JOURNAL}
        for key, row in rows.items():
            tag, samples = wav.read_file(files[key].path)
            assert hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest() == row["pcm_sha256"]
            assert (tag.first_sample, len(samples)) == (row["first_sample"], row["frames"])
            assert row["state"] in {"pending", "unknown"}, "the store is not owed it"
        self._check_mixed(call_id, list(rows.values()))
        for track in {row["track"] for row in rows.values()}:
            self._check_export(call_id, track)

    def _check_mixed(self, call_id: str, rows: list[Row]) -> None:
        """The mix covers the call without a hole, if anything was said."""
        mixed = sorted((row["first_sample"], row["frames"]) for row in rows if row["track"] == "mixed")
        duration = self.calls[call_id]["duration_s"]
        if not any(row["track"] != "mixed" for row in rows):
            return
        rate = next(row["rate"] for row in rows if row["track"] == "mixed")
        covered = 0
        for first, frames in mixed:
            assert first <= covered, "the mix has a hole"
            covered = max(covered, first + frames)
        assert abs(covered - duration * rate) <= 1

    def _check_export(self, call_id: str, track: str) -> None:
        output = self.data_dir.with_name(f"{self.data_dir.name}.{track}.wav")
        done = self.node.run("calls", "export", call_id, "--track", track, "-o", str(output), "--force")
        assert done.code == 0, done.err
        with wave.open(str(output)) as exported:
            seconds = exported.getnframes() / exported.getframerate()
        assert abs(seconds - self.calls[call_id]["duration_s"]) < 0.001
        output.unlink()

    def samples(self, call_id: str, track: str) -> NDArray[np.int16]:
        """Return a track of a call as its files hold it, with silence where none does."""
        directory = spool.call_dir(self.data_dir, call_id, self.calls[call_id]["started_at"])
        files = [wav.read_file(file.path) for file in spool.segment_files(directory) if file.track == track]
        end = max((tag.first_sample + len(samples) for tag, samples in files), default=0)
        whole = np.zeros(end, np.int32)
        for tag, samples in files:
            whole[tag.first_sample : tag.first_sample + len(samples)] += samples
        return whole.astype(np.int16)

    def spans(self, call_id: str, *kinds: str) -> list[Row]:
        return [row for row in self._rows("spans.of_call", call_id=call_id) if row["kind"] in kinds]

    def missing(self, board: Board, n: int, *, tracks: dict[str, int], until: float | None = None) -> list[Missing]:
        """Return what call `n` handed over, before `until` (monotonic), that is neither recorded nor named by a span.

        A call that is not in the catalog has recorded nothing.
        """
        found = [call_id for call_id, row in self.calls.items() if row["external_id"] == f"call-{n}"]
        times, places = board.handed
        if until is not None:
            places = places[times < until]
        return [
            missing
            for track, rate in tracks.items()
            if (missing := self._missing_of(found[0] if found else None, n, track, rate, places))
        ]

    def is_all_said(self, board: Board, n: int, *, tracks: dict[str, int]) -> bool:
        """Say whether call `n`, whose chunks did not say where they belong, has each of their samples, in order."""
        (call_id,) = (call_id for call_id, row in self.calls.items() if row["external_id"] == f"call-{n}")
        kept = {track: self.samples(call_id, track) for track in tracks}
        said = {track: voice(n, track, 0, board.ticks * round(TICK * rate)) for track, rate in tracks.items()}
        return all(np.array_equal(kept[track][kept[track] != 0], said[track]) for track in tracks)

    def _missing_of(self, call_id: str | None, n: int, track: str, rate: int, places: NDArray[np.int64]) -> Missing:
        frames = round(TICK * rate)
        wanted = np.zeros((int(places.max(initial=-1)) + 1) * frames, bool)
        for place in places:
            wanted[place * frames : (place + 1) * frames] = True
        kept = np.zeros(0, np.int16)
        if call_id is not None:
            kept = self.samples(call_id, track)[: len(wanted)]
            wanted[: len(kept)] &= kept != voice(n, track, 0, len(kept))
            for span in self.spans(call_id, "gap", "late", "paused"):
                if span["track"] in {track, None}:
                    wanted[max(0, int(span["start_s"] * rate) - 1) : int(span["end_s"] * rate) + 2] = False
        first = int(np.argmax(wanted)) if wanted.any() else 0
        instead = "nothing" if first >= len(kept) else f"{kept[first]}, where {voice(n, track, first, 1)[0]} belongs"
        return Missing(track, _ranges(wanted, rate), instead)

    def _set_aside(self) -> list[Path]:
        return [path for path in (self.data_dir / "quarantine").rglob("*.wav*") if path.suffix != ".txt"]

    def _rows(self, name: str, **values: Any) -> list[Row]:
        rows: list[Row] = self.node.fetch(name, **values)
        return rows


def _note(path: Path) -> bytes:
    return path.with_name(path.name + ".txt").read_bytes()


def _ranges(taken: Taken, rate: int) -> list[tuple[float, float]]:
    """Return where `taken` is true, in seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], taken, [False])).astype(np.int8)))
    return [(int(first) / rate, int(end) / rate) for first, end in edges.reshape(-1, 2)]
