"""The report as Markdown, to read and to put into docs/benchmarks.md."""

# ruff: noqa: INP001

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

TICKS_PER_SECOND = 50
CALL_TICKS = 30_000
KEEPS_UP = 0.99  # of the ticks that were due
OLD = 2_000  # milliseconds: five flushes missed

Figures = dict[str, Any]

NAMES = {
    "wave": "`wave`, header right after each tick",
    "wave-raw": "`wave`, header at the end",
    "soundfile": "soundfile",
    "pipecat": "Pipecat's AudioBufferProcessor, RAM only",
    "blocks": "numpy on 0.5 s and `os.write`: the floor",
    "ours": "**edge-recorder, everything on**",
}


def render(report: Figures) -> str:
    """Return all tables of `report`."""
    facts = "; ".join(f"{name}: {fact}" for name, fact in report["machine"].items())
    parts = [facts]
    for name, figures in report["tables"].items():
        parts.append("\n".join(LAYOUTS[name](figures, report["scale"])))
    return "\n\n".join(parts)


def cpu(rows: Sequence[Figures], scale: Figures) -> Iterator[str]:
    repeats, crowd = scale["repeats"], scale["crowd"]
    yield f"### 1. CPU for a tick of 20 ms (user, assistant, mixed; median of {repeats})\n"
    by_name = {row["writer"]: row for row in rows}
    yield from _table(
        ("writer", f"us, {crowd} calls in real time", "x `wave`", "x Pipecat", "us, alone at full speed", "RAM, MB"),
        (_cpu_cells(row, by_name, scale) for row in rows),
    )
    if feeder := next((row["feeder_us"] for row in rows if "feeder_us" in row), None):
        yield f"\nThe feeder's own {feeder:.1f} us for a tick in real time are taken off."


def _cpu_cells(row: Figures, rows: dict[str, Figures], scale: Figures) -> Sequence[str]:
    if problem := _problem(row):
        return NAMES[row["writer"]], problem
    alone = f"{row['alone_us']:.1f}" if "alone_us" in row else "-"
    return (
        NAMES[row["writer"]],
        f"{row['paced_us']:.1f}",
        _ratio(row["paced_us"], rows["wave"].get("paced_us")),
        _ratio(row["paced_us"], rows["pipecat"].get("paced_us")),
        alone,
        _ram(row, scale),
    )


def _ram(row: Figures, scale: Figures) -> str:
    """Return what a 10-minute call has in RAM; ours has the same at any age."""
    if "alone" not in row:
        return f"{row['paced'][-1]['call_kb'] / 1000:.2f}"
    figures = row["alone"][-1]
    times = CALL_TICKS / scale["ticks"]
    grown, peak = figures["grown_mb"] * times, figures["peak_mb"] * times
    return f"{grown:.1f}, at its end {peak:.0f}" if grown > 1 else "< 1"


def calls(rows: Sequence[Figures], _scale: Figures) -> Iterator[str]:
    yield "### 2. Cost against the number of calls\n"
    heads = ("calls", "us a tick", "feeder's us", "% of a core", "`write()` us: median / p99 / p99.9 / max")
    more = ("feeder late, ms: median / p99.9 / max", "RAM a call, kB", "peak RAM, MB")
    yield from _table((*heads, *more), (_calls_cells(row) for row in rows))
    yield "\nWhether it keeps up:\n"
    heads = ("calls", "handed over", "not taken yet, ms: median / max", "not synced yet, ms: median / max", "lost, s")
    yield from _table((*heads, "all ended in, s"), (_safety_cells(row) for row in rows if not _problem(row)))


def _calls_cells(row: Figures) -> Sequence[str]:
    if problem := _problem(row):
        return str(row["calls"]), problem
    return (
        str(row["calls"]),
        f"{row['cpu_us']:.1f}" + " (falls behind)" * _is_behind(row),
        f"{row['feeder_us']:.1f}",
        f"{row['core_percent']:.1f}",
        _quantiles(row["write_us"], ("p50", "p99", "p99.9", "max")),
        _quantiles(row["late_ms"], ("p50", "p99.9", "max")),
        f"{row['call_kb']:.0f}",
        f"{row['peak_mb']:.0f}",
    )


def _is_behind(row: Figures) -> bool:
    """Whether the machine can't take so many calls: what is not done costs nothing, so the other figures flatter."""
    return bool(row["handed_over"] < KEEPS_UP or row["incomplete"] or row["untaken_ms"].get("max", 0) > OLD)


def _safety_cells(row: Figures) -> Sequence[str]:
    return (
        str(row["calls"]),
        f"{min(1.0, row['handed_over']):.1%}",
        _quantiles(row["untaken_ms"], ("p50", "max")),
        _quantiles(row["unsynced_ms"], ("p50", "max")),
        "-" if row["lost_s"] is None else f"{row['lost_s']:g}",
        f"{row['end_s']:.1f}" + f", {row['incomplete']} are incomplete" * bool(row["incomplete"]),
    )


def fsync(rows: Sequence[Figures], scale: Figures) -> Iterator[str]:
    yield f"### 3. What fsync adds, {scale['crowd']} calls\n"
    heads = ("`capture.fsync_interval`", "us a tick", "% of a core", "`write()` us: median / p99 / p99.9 / max")
    yield from _table(heads, (_fsync_cells(row) for row in rows))


def _fsync_cells(row: Figures) -> Sequence[str]:
    interval = f"{row['fsync_interval']:g} s"
    if problem := _problem(row):
        return interval, problem
    return (
        interval,
        f"{row['cpu_us']:.1f}",
        f"{row['core_percent']:.1f}",
        _quantiles(row["write_us"], ("p50", "p99", "p99.9", "max")),
    )


def flat(figures: Figures, scale: Figures) -> Iterator[str]:
    yield f"### 4. Flat over time, {scale['crowd']} calls\n"
    if problem := _problem(figures):
        yield problem
        return
    heads = ("after, s", "RAM, MB", "open files")
    yield from _table(heads, ((f"{after:.0f}", f"{ram:.1f}", str(files)) for after, ram, files in figures["flat"]))


def syncing(figures: Figures, scale: Figures) -> Iterator[str]:
    yield f"### 5. Syncing {scale['files']} open files, half a second of audio in each\n"
    if problem := _problem(figures):
        yield problem
        return
    rows = ((name, f"{each['wall_ms']:.0f}", f"{each['cpu_ms']:.0f}") for name, each in figures.items())
    yield from _table(("way", "ms", "ms of CPU in this process"), rows)


LAYOUTS: dict[str, Callable[[Any, Figures], Iterator[str]]] = {
    "cpu": cpu,
    "calls": calls,
    "fsync": fsync,
    "flat": flat,
    "syncing": syncing,
}


def _problem(figures: Figures) -> str | None:
    problem: str | None = figures.get("missing") or figures.get("error")
    return problem


def _ratio(figure: float, other: float | None) -> str:
    return f"{figure / other:.2f}" if other else "-"


def _quantiles(figures: Figures, names: Sequence[str]) -> str:
    return " / ".join(_short(figures[name]) for name in names) if figures else "-"


def _short(figure: float) -> str:
    """Return three digits of it, and all of those before the point."""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.3g}"  # noqa: PLR2004 (three digits)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join([*row, *[''] * (len(heads) - len(row))])} |"
