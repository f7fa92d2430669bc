"""How the duration of a read depends on latency, bandwidth, and the number and size of chunks.

python3 bench/curves.py                     all curves
python3 bench/curves.py latency --quick     one of them, with few values, each measured once

Writes a picture and the figures of each curve to `docs/images` and `docs/measurements`, or to `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES
from bench.launch import checkout_or_wheel, positive, run_in_tools_environment
from tools.environment import ROOT

if TYPE_CHECKING:
    from bench.trials import Settings


class Curve(NamedTuple):
    """A quantity that is varied: its values, and the cases that are measured at each."""

    label: str
    values: tuple[float, ...]
    cases: tuple[str, ...]


WHOLE = ("http-whole", "references-whole")
CURVES = {
    "latency": Curve("latency of the server, ms", (1, 5, 20, 50, 200), (*WHOLE, "shards-band")),
    "bandwidth": Curve("bandwidth of the link, MB/s", (1, 10, 100, 1000), (*WHOLE, "shards-band")),
    "chunks": Curve(
        "number of chunks of 16 KiB", (1, 16, 256, 4096, 16_384), (*WHOLE, "local-whole")
    ),
    "chunk-size": Curve(
        "size of each of 16 chunks, KiB", (1, 16, 256, 4096, 32_768), (*WHOLE, "local-whole")
    ),
}
PEERS = ("TensorStore", "floor")  # not zarrs, which requests one chunk after another


def at(settings: Settings, quantity: str, value: float) -> Settings:
    """The settings with which a value of a quantity is measured."""
    if quantity == "latency":
        return replace(settings, latency_ms=value)
    if quantity == "bandwidth":
        return replace(settings, bandwidth=value)
    if quantity == "chunks":
        return replace(settings, size=64 * round(value**0.5), chunk=64)
    edge = round((value * 256) ** 0.5)
    return replace(settings, size=4 * edge, chunk=edge)


def main(options: argparse.Namespace) -> int:
    """Measure and draw. Runs in the environment of the tools."""
    from rich.console import Console

    from bench.picture import draw_curves
    from bench.progress import Progress
    from bench.trials import Laboratory, Settings, TrialFailed, middle

    settings = Settings(
        size=2048, chunk=64, latency_ms=20, repeats=options.repeats, fork=options.fork
    )
    progress = Progress(Console(stderr=True))
    for quantity in options.curves or CURVES:
        curve = CURVES[quantity]
        values = curve.values[::2] if options.quick else curve.values
        found: dict[str, dict[str, list[float | None]]] = {name: {} for name in curve.cases}
        for value in values:
            try:
                with Laboratory(at(settings, quantity, value), progress, peers=PEERS) as laboratory:
                    cases = [CASES[name] for name in curve.cases]
                    comparisons = laboratory.compare(cases, alone=True, tuned=True)
            except TrialFailed as failure:
                print(f"error: {failure}", file=sys.stderr)
                return 1
            for each in comparisons:
                sides = {"stock": each.stock, **each.tuned, "fork": each.fork, **each.peers}
                for name, readings in sides.items():
                    found[each.case.name].setdefault(name, []).append(middle(readings).seconds)
        conditions = (
            f"median of {options.repeats}; Python {platform.python_version()}, "
            f"{os.cpu_count()} CPUs"
        )
        panels = [(CASES[n].title, values, dict(curves)) for n, curves in found.items()]
        figures = {"quantity": curve.label, "values": values, "conditions": conditions}
        pictures = options.output or ROOT / "docs" / "images"
        texts = options.output or ROOT / "docs" / "measurements"
        texts.mkdir(parents=True, exist_ok=True)
        draw_curves(panels, curve.label, conditions, pictures / f"{quantity}.svg")
        (texts / f"{quantity}.json").write_text(json.dumps({**figures, "cases": found}, indent=1))
        print(f"{pictures / f'{quantity}.svg'}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="bench/curves.py",
        description="Measure reads against latency, bandwidth, and the number and size of chunks, beside stock "
        "zarr, stock zarr tuned and other libraries, and draw the curves.",
    )
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"of: {', '.join(CURVES)}")
    parser.add_argument("--quick", action="store_true", help="fewer values, each once")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write everything")
    parser.add_argument("--fork", type=checkout_or_wheel, default=ROOT, metavar="PATH")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.curves) - set(CURVES)):
        parser.error(f"no such curve: {', '.join(unknown)}")
    if chosen.quick:
        chosen.repeats = 1
    run_in_tools_environment(lambda: main(chosen))
