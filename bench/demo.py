"""Read one array over HTTP with stock zarr and with this fork, and show what each of them did.

    python3 bench/demo.py

The first run installs everything that it needs under `build/`. The server that it reads from runs
on this machine, and delays each response as a distant one would.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.launch import add_options, parse, run_in_tools_environment
from tools.environment import BUILD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from bench.trials import Comparison, Settings

CASES = {
    "http": ["http-whole", "http-chunk"],
    "references": ["references-whole", "references-tile", "references-chunk"],
    "both": ["http-whole", "references-whole", "references-tile", "http-chunk"],
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/demo.py",
        description="Read one array over HTTP with stock zarr and with this fork, alternating, and "
        "show the seconds, the requests, and a picture of the requests over time.",
    )
    parser.add_argument(
        "--store",
        choices=CASES,
        default="both",
        help="a chunk in each file, references into one file as kerchunk makes them, or both "
        "(default)",
    )
    add_options(parser, repeats=3)
    parser.add_argument(
        "--quick",
        action="store_const",
        dest="repeats",
        const=1,
        help="read once on each side, as --repeats 1 does",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=BUILD / "demo" / "requests",
        metavar="PATH",
        help="where to write the picture: PATH.png and PATH.svg (default: build/demo/requests)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every measurement to a file"
    )
    return parser


def main(options: argparse.Namespace) -> int:
    """Measure and show. Runs in the environment of the tools."""
    from rich.console import Console

    from bench.cases import CASES as ALL_CASES
    from bench.progress import Progress
    from bench.trials import Laboratory, Settings, TrialFailed

    console = Console()
    settings = Settings.of(options)
    try:
        with Laboratory(settings, Progress(console)) as laboratory:
            cases = [ALL_CASES[name] for name in CASES[options.store]]
            comparisons = laboratory.compare(cases, alone=False)
    except TrialFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    show(console, comparisons, settings)
    if options.json is not None:
        write_json(options.json, comparisons, settings)
        console.print(f"measurements: {options.json}", markup=False, soft_wrap=True)
    problems = [problem for comparison in comparisons for problem in comparison.problems]
    if problems:
        print("error: " + "\nerror: ".join(problems), file=sys.stderr)
        return 1
    console.print("Both read the same values, to the byte.")
    written = draw_picture(options.picture, comparisons, settings)
    console.print(f"picture: {written}", markup=False, highlight=False, soft_wrap=True)
    return 0


def show(console: Console, comparisons: Sequence[Comparison], settings: Settings) -> None:
    """Print the table, and what the fork reports of its own reads."""
    from rich import box
    from rich.table import Table

    from bench.tables import HEADINGS, reports, side_by_side

    stock, fork = (side[0].zarr for side in (comparisons[0].stock, comparisons[0].fork))
    table = Table(
        title=describe(settings),
        title_justify="left",
        caption=f"stock is zarr {stock}, fork is zarr {fork}",
        caption_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in HEADINGS:
        left = heading in ("read", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "read")
    for above, below in side_by_side(comparisons):
        table.add_row(*above)
        table.add_row(*below, style="bold", end_section=True)
    console.print(table)
    if lines := reports(comparisons):
        console.print("What the fork itself reports (zarr.experimental.read_report):", markup=False)
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        console.print()


def describe(settings: Settings) -> str:
    """The array and the server in one line."""
    chunks = math.ceil(settings.size / settings.chunk) ** 2
    return (
        f"{settings.size}x{settings.size} int32 in {chunks:,} chunk{'s' * (chunks > 1)}, "
        f"each answer after {settings.latency_ms:g} ms, median of {settings.repeats}"
    )


def draw_picture(path: Path, comparisons: Sequence[Comparison], settings: Settings) -> str:
    """Write the picture of what is more than one chunk, and tell where it is."""
    from bench.picture import draw

    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".svg")]
    many = [comparison for comparison in comparisons if comparison.case.rounds == 1]
    draw(many, describe(settings), files)
    return " and ".join(os.path.relpath(file) for file in files)


def write_json(file: Path, comparisons: Sequence[Comparison], settings: Settings) -> None:
    """Write what was measured, each request included."""
    content: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "settings": dataclasses.asdict(settings),
        "cases": {
            comparison.case.name: {
                "title": comparison.title,
                "faster": comparison.faster,
                "stock": [dataclasses.asdict(reading) for reading in comparison.stock],
                "fork": [dataclasses.asdict(reading) for reading in comparison.fork],
            }
            for comparison in comparisons
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, default=str))


if __name__ == "__main__":
    chosen = parse(make_parser())
    run_in_tools_environment(lambda: main(chosen))
