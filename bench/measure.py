"""Measure cases with stock zarr, as it is and tuned, and with this fork, and print a table in Markdown.

python3 bench/measure.py                     all cases
python3 bench/measure.py http-whole …        some of them
python3 bench/measure.py --peers --output F  beside other libraries; table, figures and pictures in folder F
python3 bench/measure.py --quick             a few cases, once
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES
from bench.launch import add_options, parse, run_in_tools_environment

QUICK = ("http-whole", "references-whole", "shards-band", "local-whole")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    listed = "\n".join(f"  {case.name:20} {case.title}" for case in CASES.values())
    parser = argparse.ArgumentParser(
        prog="bench/measure.py",
        description="Measure cases with stock zarr and this fork, both as they are and tuned (the better of "
        "async.concurrency = 128 and FusedCodecPipeline), alternating, in separate "
        "processes, and print a Markdown table.",
        epilog=f"cases:\n{listed.format(tile='640')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: all)")
    parser.add_argument(
        "--peers", action="store_true", help="also with zarrs, with TensorStore, and without any"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write table.md, figures.json, bars.svg and requests.svg as well",
    )
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, once")
    add_options(parser, repeats=5)
    return parser


def main(options: argparse.Namespace) -> int:
    """Measure and print. Runs in the environment of the tools."""
    from rich.console import Console

    from bench.picture import draw, draw_bars
    from bench.progress import Progress
    from bench.tables import figures, markdown
    from bench.trials import PEER_SIDES, Laboratory, Settings, TrialFailed, middle

    if options.quick:
        options.repeats = 1
    cases = [CASES[name] for name in options.cases or (QUICK if options.quick else CASES)]
    load = f"{os.getloadavg()[0]:.1f}"
    try:
        progress = Progress(Console(stderr=True))
        with Laboratory(
            Settings.of(options), progress, peers=PEER_SIDES if options.peers else ()
        ) as laboratory:
            comparisons = laboratory.compare(cases, alone=True, tuned=True, fork_tuned=True)
    except TrialFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    conditions = (
        f"{options.size}x{options.size} int32 in chunks of {options.chunk}x{options.chunk}, "
        f"{options.latency_ms:g} ms, median of {options.repeats}; "
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load} at the start."
    )
    text = f"{conditions}\n\n{markdown(comparisons)}"
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "table.md").write_text(f"{text}\n")
        results = {"conditions": conditions, "cases": [figures(each) for each in comparisons]}
        (options.output / "figures.json").write_text(json.dumps(results, indent=1))
        draw_bars(comparisons, conditions, options.output / "bars.svg")
        if remote := [each for each in comparisons if middle(each.stock).in_flight > 1][:4]:
            draw(remote, conditions, [options.output / "requests.svg"])
    problems = [f"{c.case.name}: {problem}" for c in comparisons for problem in c.problems]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    parser = make_parser()
    chosen = parse(parser)
    unknown = sorted(set(chosen.cases) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)} (--help lists them)")
    run_in_tools_environment(lambda: main(chosen))
