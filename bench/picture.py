"""The waterfall: every request of a read as a bar over time, stock zarr above the fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from bench.tables import duration, factor
from bench.trials import middle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.trials import Comparison, Reading, Served

# Two colours of Okabe and Ito's palette, which readers with any colour vision tell apart.
STOCK_COLOUR = "#D55E00"
FORK_COLOUR = "#0072B2"
QUIET = "#555555"

# Of the height of the drawing. A bar among a thousand would be too thin to see.
THINNEST_BAR = 1 / 70

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
}


def draw(comparisons: Sequence[Comparison], subtitle: str, files: Sequence[Path]) -> None:
    """Write the waterfalls of `comparisons` to each of `files`, in the format of its suffix."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.5, 3.7 * len(comparisons)), 5.6), layout="constrained")
        figure.suptitle(
            "Every HTTP request of one read: from when the server got it to when it had answered",
            x=0.008,
            ha="left",
            fontsize=12,
        )
        grid = figure.subplots(2, len(comparisons), sharex="col", squeeze=False)
        for comparison, above, below in zip(comparisons, *grid, strict=True):
            stock, fork = middle(comparison.stock), middle(comparison.fork)
            above.set_title(comparison.title, loc="left", fontweight="bold", pad=10)
            _waterfall(above, stock, STOCK_COLOUR, duration(stock.seconds))
            gain = f"{duration(fork.seconds)}, {factor(comparison.faster)} as fast"
            _waterfall(below, fork, FORK_COLOUR, gain)
            below.set_xlim(0, max(stock.seconds, fork.seconds) * 1.03)
            below.set_xlabel("seconds since the read began")
        for axes in grid[:, 0]:
            axes.set_ylabel("request number")
        footnote = f"{subtitle}; dotted: the read was done"
        figure.supxlabel(footnote, x=0.008, ha="left", fontsize=9, color=QUIET)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Without a date, the same measurement makes the same file.
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, dpi=150, metadata=metadata)


def _waterfall(axes: Axes, reading: Reading, colour: str, result: str) -> None:
    served = sorted(reading.served, key=lambda one: one.start)
    count = len(served)
    axes.add_patch(PathPatch(_bars(served), facecolor=colour, linewidth=0))
    axes.axvline(reading.seconds, color=colour, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_ylim(count + 0.5, 0.5)
    axes.set_yticks([1, count] if count > 1 else [1])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    lines = (
        (f"zarr {reading.zarr}", "normal"),
        (result, "bold"),
        (f"{count:,} request{'s' * (count > 1)}", "normal"),
        (f"up to {reading.in_flight:,} at once", "normal"),
    )
    for number, (text, weight) in enumerate(lines):
        axes.annotate(
            text,
            (0.94, 1),
            (0, -6 - 15 * number),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            color=colour,
            fontweight=weight,
        )


def _bars(served: Sequence[Served]) -> Outline:
    """One outline of all bars: a thousand patches would make a drawing file of megabytes."""
    height = max(0.8, len(served) * THINNEST_BAR)
    corners, codes = [], []
    for row, one in enumerate(served, start=1):
        top, bottom = row - height / 2, row + height / 2
        corners += [(one.start, top), (one.end, top), (one.end, bottom), (one.start, bottom)]
        corners += [(one.start, top)]
        codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    return Outline(corners, codes)
