"""Pictures of measurements: waterfalls of requests, bars beside other libraries, and curves."""

from __future__ import annotations

import re
from textwrap import fill
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogLocator, NullFormatter

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
COLOURS = {
    "stock": STOCK_COLOUR,
    "128": "#E69F00",
    "Fused": "#F0E442",
    "fork": FORK_COLOUR,
    "zarrs": "#009E73",
    "TensorStore": "#CC79A7",
    "floor": "#BBBBBB",
}

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

VERSION_TIME = re.compile(r"\.\d{14}$")
"""The time of the commit at the end of the fork's version."""


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
        footnote = f"{subtitle.rstrip('.')}; dotted: the read was done"
        figure.supxlabel(footnote, x=0.008, ha="left", fontsize=9, color=QUIET)
        for file in files:
            _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, the same measurement makes the same file.
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=150, metadata=metadata)


def draw_bars(comparisons: Sequence[Comparison], subtitle: str, file: Path) -> None:
    """Write the duration of each case with each library to `file`: short bars are good."""
    columns = min(3, len(comparisons))
    rows = -(-len(comparisons) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 2.1 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(comparisons) :]:
            axes.set_axis_off()
        for comparison, axes in zip(comparisons, grid.flat, strict=False):
            sides = {"stock": comparison.stock, **comparison.tuned, "fork": comparison.fork}
            sides |= comparison.peers
            seconds = [middle(readings).seconds for readings in sides.values()]
            bars = axes.barh(list(sides), seconds, color=[COLOURS[name] for name in sides])
            axes.bar_label(bars, [duration(each) for each in seconds], padding=3, fontsize=8)
            title = fill(comparison.title, 44)
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axes.invert_yaxis()
            axes.set_xlim(0, max(seconds) * 1.2)
            axes.set_xticks([])
        figure.supxlabel(subtitle, x=0.008, ha="left", fontsize=9, color=QUIET)
        _save(figure, file)


def draw_curves(
    panels: Sequence[tuple[str, Sequence[float], dict[str, Sequence[float | None]]]],
    label: str,
    subtitle: str,
    file: Path,
) -> None:
    """Write durations against a quantity to `file`.

    Parameters
    ----------
    panels : sequence of tuple
        For each panel its title, the values of the quantity, and for each library the seconds at
        each value; `None` where it was not measured.
    label : str
        What the quantity is, with its unit.
    subtitle : str
        The conditions, for the foot of the picture.
    file : Path
        Where to.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
        for axes, (title, values, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for name, seconds in curves.items():
                points = [each if each is not None else float("nan") for each in seconds]
                axes.plot(values, points, color=COLOURS[name], marker="o", markersize=4, label=name)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(values, [f"{value:,g}" for value in values], minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda seconds, _: duration(seconds))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel(label)
            axes.legend(frameon=False, fontsize=8)
        figure.supxlabel(subtitle, x=0.008, ha="left", fontsize=9, color=QUIET)
        _save(figure, file)


def _waterfall(axes: Axes, reading: Reading, colour: str, result: str) -> None:
    served = sorted(reading.served, key=lambda one: one.start)
    count = len(served)
    axes.add_patch(PathPatch(_bars(served), facecolor=colour, linewidth=0))
    axes.axvline(reading.seconds, color=colour, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_ylim(count + 0.5, 0.5)
    axes.set_yticks([1, count] if count > 1 else [1])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    lines = (
        (f"zarr {VERSION_TIME.sub('', reading.zarr)}", "normal"),
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
