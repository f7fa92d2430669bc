"""Measurements as text."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING, Any

from bench.trials import middle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.trials import Comparison, Reading

HEADINGS = ("read", "", "time", "requests", "data", "at once", "faster")


def duration(seconds: float) -> str:
    """Three digits that count, in a unit that suits them."""
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{_three_digits(seconds * scale)} {unit}"


def volume(size: int) -> str:
    """Bytes in decimal units."""
    if size < 1000:
        return f"{size} B"
    scale, unit = (1e3, "kB") if size < 1e6 else (1e6, "MB") if size < 1e9 else (1e9, "GB")
    return f"{_three_digits(size / scale)} {unit}"


def factor(value: float) -> str:
    """How many times as much."""
    return f"{_three_digits(value)}x"


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def side_by_side(comparisons: Sequence[Comparison]) -> list[tuple[tuple[str, ...], ...]]:
    """For each comparison the row of stock zarr and the row of the fork, under `HEADINGS`."""
    return [
        (
            (comparison.title, "stock", *_cells(middle(comparison.stock)), ""),
            ("", "fork", *_cells(middle(comparison.fork)), factor(comparison.faster)),
        )
        for comparison in comparisons
    ]


def _cells(reading: Reading) -> tuple[str, ...]:
    return (
        duration(reading.seconds),
        f"{reading.requests:,}",
        volume(reading.sent),
        f"{reading.in_flight:,}",
    )


def reports(comparisons: Sequence[Comparison]) -> list[str]:
    """What the fork's own report says of each read of many chunks, where there is one."""
    many = [each for each in comparisons if each.case.rounds == 1]
    told = [(each.title, middle(each.fork).report) for each in many]
    width = max((len(title) for title, _ in told), default=0)
    return [
        f"{title:<{width}}  {report['requests']:,} requests, {report['reads']:,} reads "
        f"({report['merged']:,} merged), {volume(report['nbytes'])}"
        for title, report in told
        if report is not None
    ]


def markdown(comparisons: Sequence[Comparison]) -> str:
    """A table with a row for each comparison."""
    stock, fork = (f"zarr {side[0].zarr}" for side in (comparisons[0].stock, comparisons[0].fork))
    headings = ("case", "read", stock, "tuned", fork, "tuned", "to stock", "both tuned")
    headings += ("requests", "data", "peak memory")
    names = sorted({name for comparison in comparisons for name in comparison.peers})
    headings += tuple(names)
    rows = [headings, ("---",) * len(headings)]
    for each in comparisons:
        peers = (each.peers.get(name) for name in names)
        rows.append(_row(each) + tuple(duration(middle(r).seconds) if r else "" for r in peers))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def figures(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON: every duration, and what the median run requested."""
    sides = {"stock": comparison.stock, "fork": comparison.fork}
    return {
        "case": comparison.case.name,
        "title": comparison.title,
        "sides": {
            name: {
                "zarr": readings[0].zarr,
                "seconds": [reading.seconds for reading in readings],
                "requests": middle(readings).requests,
                "bytes": middle(readings).sent,
                "in_flight": middle(readings).in_flight,
                "peak_memory": middle(readings).peak,
            }
            for name, readings in (
                sides
                | comparison.tuned
                | {f"fork {name}": tuned for name, tuned in comparison.fork_tuned.items()}
                | comparison.peers
            ).items()
        },
    }


def _row(comparison: Comparison) -> tuple[str, ...]:
    stock, fork = middle(comparison.stock), middle(comparison.fork)
    how, tuned = comparison.best_tuned
    fork_how, fork_tuned = comparison.best_fork
    over_http = bool(stock.requests)
    return (
        f"`{comparison.case.name}`",
        comparison.title,
        duration(stock.seconds),
        f"{duration(tuned.seconds)} ({how})",
        duration(fork.seconds),
        f"{duration(fork_tuned.seconds)} ({fork_how})",
        factor(comparison.faster),
        factor(tuned.seconds / fork_tuned.seconds),
        f"{stock.requests:,} → {fork.requests:,}" if over_http else "",
        f"{volume(stock.sent)} → {volume(fork.sent)}" if over_http else "",
        _memory(comparison),
    )


def _memory(comparison: Comparison) -> str:
    """Peak memory of the process, where the case is about it, and what it held before the read."""
    peaks, before = _peaks(comparison), middle(comparison.fork).baseline
    if not comparison.case.memory or peaks is None or before is None:
        return ""
    return f"{' → '.join(map(volume, peaks))} ({volume(before)} before)"


def _peaks(comparison: Comparison) -> tuple[int, int] | None:
    """The median peak memory of both sides, where the platform tells it."""
    stock = [reading.peak for reading in comparison.stock if reading.peak is not None]
    fork = [reading.peak for reading in comparison.fork if reading.peak is not None]
    return (median_low(stock), median_low(fork)) if stock and fork else None
