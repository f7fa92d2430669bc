"""Compare the fork with the release: `python -m checks.differential --stock PY --fork PY`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from checks.differential.compare import Comparison, compare
from tools.environment import BUILD


def main() -> int:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(prog="python -m checks.differential")
    parser.add_argument("--stock", type=Path, required=True, help="an interpreter with the release")
    parser.add_argument("--fork", type=Path, required=True, help="an interpreter with the fork")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--example", type=Path, help="run the case in this file alone")
    options = parser.parse_args()
    interpreters = {"stock": options.stock, "fork": options.fork}
    with Comparison(interpreters, BUILD / "differential") as comparison:
        failed = compare(comparison, options.cases, options.seed, options.example)
        return bool(failed or not comparison.tally.compared)


if __name__ == "__main__":
    sys.exit(main())
