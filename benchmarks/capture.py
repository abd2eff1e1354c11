"""
What capture costs, beside peers: `python benchmarks/capture.py`. Figures to look at, never a test: docs/benchmarks.md.

Each case runs in a process of its own (`case.py`), which feeds a writer (`writers.py`) with speech (`load.py`). The
feeder's own cost is measured with a writer that does nothing, and taken off.
"""

# ruff: noqa: INP001

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from typing import Any, TextIO

import click
import machine
import tables
from case import Case, run

VERSION = 1  # of what --json prints
PEERS = ("wave", "wave-raw", "soundfile", "pipecat", "blocks")
CALL_TICKS = 30_000  # ten minutes
CROWD = 100  # calls at once, where there is no other number

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. Calls are started over one segment, so that any one segment's time has one seal of each."""

    calls: tuple[int, ...]
    crowd: int
    repeats: int
    ticks: int = CALL_TICKS
    segment: int = 30  # seconds
    ramp: float = 30.0
    ours: float = 30.0
    late_window: float = 2.0
    peer: float = 10.0  # seconds for those who do the same at every tick
    flat: float = 60.0
    every: float = 10.0
    files: int = 900


class Bench:
    """Runs cases one after another, and says so."""

    def __init__(self, scale: Scale, directory: Path) -> None:
        self._scale = scale
        self._directory = directory
        self._began = time.monotonic()
        self._feeder: dict[int, Figures] = {}
        self.failed = False

    def cpu(self) -> list[Figures]:
        """Measure every writer alone, as fast as it can, and many of each in real time; the repeats take turns."""
        found: dict[str, list[Figures]] = {name: [] for name in ("nothing", *PEERS, "ours")}
        for _ in range(self._scale.repeats):
            for name, rounds in found.items():
                alone = {} if name == "ours" else self._burst(name)
                rounds.append(
                    {"alone": alone, "paced": alone if _unable(alone) else self._pace(name, self._scale.crowd)}
                )
        return [_cpu_row(name, rounds, found["nothing"]) for name, rounds in found.items() if name != "nothing"]

    def calls(self) -> list[Figures]:
        """Measure ours with more and more calls."""
        return [self._net(calls) for calls in self._scale.calls]

    def fsync(self) -> list[Figures]:
        """Measure ours with an fsync each second, and each minute."""
        return [
            {"fsync_interval": seconds, **self._net(self._scale.crowd, {"fsync_interval": seconds})}
            for seconds in (1.0, 60.0)
        ]

    def flat(self) -> Figures:
        """Watch ours for as long as was asked."""
        return self._pace("ours", self._scale.crowd, seconds=self._scale.flat)

    def syncing(self) -> Figures:
        return self._run(Case(kind="syncing", files=self._scale.files, repeats=max(3, self._scale.repeats)))

    def _net(self, calls: int, capture: Figures | None = None) -> Figures:
        """Return the figures of that many calls of ours, with the CPU less the feeder's."""
        if calls not in self._feeder:
            self._feeder[calls] = self._pace("nothing", calls)
        feeder, ours = self._feeder[calls], self._pace("ours", calls, capture)
        if _unable(ours) or _unable(feeder):
            return {"calls": calls, **feeder, **ours}
        net = ours["cpu_us"] - feeder["cpu_us"]
        core = net * ours["handed_over"] * calls * tables.TICKS_PER_SECOND / 1e4
        return {**ours, "gross_us": ours["cpu_us"], "feeder_us": feeder["cpu_us"], "cpu_us": net, "core_percent": core}

    def _burst(self, name: str) -> Figures:
        return self._run(Case(kind="burst", writer=name, ticks=self._scale.ticks))

    def _pace(self, name: str, calls: int, capture: Figures | None = None, *, seconds: float = 0.0) -> Figures:
        scale = self._scale
        if name != "ours":
            brief = min(1.0, scale.peer)
            return self._run(
                Case(kind="pace", writer=name, calls=calls, ramp=brief, settle=brief / 2, seconds=scale.peer)
            )
        settings = {"segment_seconds": scale.segment, "late_window": scale.late_window, **(capture or {})}
        return self._run(
            Case(
                kind="pace",
                writer=name,
                calls=calls,
                ramp=scale.ramp,
                settle=1.5 * scale.late_window,
                seconds=seconds or scale.ours,
                every=scale.every,
                capture=settings,
            )
        )

    def _run(self, case: Case) -> Figures:
        lasts = case.ramp + case.settle + case.seconds
        click.echo(f"{time.monotonic() - self._began:6.0f} s  {case.name}" + f", {lasts:.0f} s" * bool(lasts), err=True)
        figures = run(case, self._directory)
        if "error" in figures:
            click.echo(f"          {figures['error']}", err=True)
        self.failed = self.failed or "error" in figures or bool(figures.get("incomplete"))
        return figures


def _cpu_row(name: str, rounds: list[Figures], feeder: list[Figures]) -> Figures:
    """Return the medians of one writer's repeats, each less what the feeder took in the same round."""
    unable = next((each[kind] for each in (*rounds, *feeder) for kind in each if _unable(each[kind])), None)
    if unable is not None:
        return {"writer": name, **unable}
    row: Figures = {"writer": name, "repeats": len(rounds)}
    for kind in ("alone", "paced"):
        pairs = list(zip((each[kind] for each in rounds), (each[kind] for each in feeder), strict=True))
        if rounds[0][kind]:
            row[f"{kind}_us"] = median(own["cpu_us"] - less["cpu_us"] for own, less in pairs)
            row[kind] = [own for own, _ in pairs]
    row["feeder_us"] = median(each["paced"]["cpu_us"] for each in feeder)
    return row


def _unable(figures: Figures) -> bool:
    return "missing" in figures or "error" in figures


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list like 1,10,100") from None
    if min(numbers) < 1:
        raise click.BadParameter(f"{min(numbers)} is too few")
    return numbers


def _scale(*, quick: bool, calls: tuple[int, ...], repeats: int, minutes: float) -> Scale:
    if quick:
        return Scale(
            calls=(2,),
            crowd=2,
            repeats=1,
            ticks=500,
            segment=1,
            ramp=0.2,
            ours=0.4,
            late_window=0.1,
            peer=0.1,
            flat=0.4,
            every=0.1,
            files=20,
        )
    return Scale(calls=calls, crowd=CROWD, repeats=repeats, flat=60 * minutes)


def _measure(bench: Bench, wanted: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    every: list[Callable[[], Any]] = [bench.cpu, bench.calls, bench.fsync, bench.flat, bench.syncing]
    for number, table in enumerate(every, start=1):
        if number in wanted:
            yield table.__name__, table()


@click.command()
@click.option("--calls", default="1,10,100,500,1000", callback=_numbers, help="Numbers of calls for table 2.")
@click.option("--repeats", default=3, type=click.IntRange(1), help="Repeats of table 1, of which medians are shown.")
@click.option("--minutes", default=1.0, type=click.FloatRange(0.1), help="How long table 4 watches the RAM.")
@click.option("--tables", "wanted", default="1,2,3,4,5", callback=_numbers, help="Which tables to make.")
@click.option("--dir", "directory", default=gettempdir(), help="Where to record: on the disk that matters.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--from", "saved", type=click.File(), help="Show the tables of a report that --json printed.")
@click.option("--quick", is_flag=True, help="See in seconds that it runs; the figures mean nothing.")
def main(
    *,
    calls: tuple[int, ...],
    repeats: int,
    minutes: float,
    wanted: tuple[int, ...],
    directory: str,
    as_json: bool,
    saved: TextIO | None,
    quick: bool,
) -> None:
    """Measure what capture costs: CPU, latency, RAM and fsync, beside other ways to record."""
    if saved is not None:
        click.echo(tables.render(json.load(saved)))
        return
    if not sys.platform.startswith("linux"):
        raise click.ClickException("this needs Linux: it reads /proc")
    if not Path(directory).is_dir():
        raise click.BadParameter(f"{directory} is no directory: make it, or name another", param_hint="--dir")
    scale = _scale(quick=quick, calls=calls, repeats=repeats, minutes=minutes)
    bench = Bench(scale, Path(directory))
    report = {"version": VERSION, "machine": machine.facts(Path(directory)), "scale": asdict(scale)}
    report["tables"] = dict(_measure(bench, wanted))
    click.echo(json.dumps(report, indent=1) if as_json else tables.render(report))
    if bench.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
