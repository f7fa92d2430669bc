#!/usr/bin/env python3
"""Run everything that says whether the fork is sound: `python3 tools/test.py [PYTEST ARGS]`.

It needs Python 3.12 or newer with pip, `ensurepip` or uv. All that it installs or makes lies in
`build/`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SECTIONS = {
    "lint": "ruff over this checkout, and with upstream's settings over the merged modules",
    "types": "mypy over tools/, and with upstream's settings over the merged modules and tests/",
    "fork": "the fork's tests, and how much of the overlay they cover",
    "tools": "the tests of tools/ and bench/",
    "faults": "reads from a server that misbehaves, beside the release's; --whole tries all of it",
    "differential": "the same arrays read and written by the fork and by the release, and compared",
    "upstream": "upstream's suite on the installed fork, compared with the release",
    "docs": "the examples in upstream's documentation and docstrings",
    "stack": "the branches for upstream: made on two releases, each installed and tested by itself",
    "provenance": "that nothing here repeats upstream's text, where the tool for that is at hand",
}

QUICK = 400
"""Cases of a differential test that take a minute or two."""

_DESCRIPTION = """\
Install the fork and test it: all sections in turn, a table at the end, and as the last line how
many tests passed, failed and were skipped. The exit status is 0 if nothing failed.
"""

_ARGUMENTS = """\
Any other argument goes to pytest. Paths select tests: those of tests/, tools/tests/ and
bench/tests/ are the fork's; those that upstream's source distribution has are run from there, on
the installed fork; a path that both have selects both.

  python3 tools/test.py tests/test_codecs/test_sharding.py -k partial

"""


def main() -> int:
    """Set up the environment, then run the sections inside of it."""
    parser = argparse.ArgumentParser(
        prog="python3 tools/test.py",
        usage="%(prog)s [OPTIONS] [PYTEST ARGS]",
        description=_DESCRIPTION,
        epilog=_ARGUMENTS + "\n".join(f"  {name:11} {what}" for name, what in SECTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="SECTIONS",
        type=_sections,
        default=(),
        help="run these alone, separated by commas; they are explained below",
    )
    add(
        "--stock",
        action="store_true",
        help="run upstream's suite on the release too, and compare the two test by test",
    )
    add(
        "--pipeline",
        choices=("batched", "fused"),
        default="batched",
        help="the codec pipeline that upstream's suite runs with",
    )
    add(
        "-n",
        dest="workers",
        metavar="WORKERS",
        type=int,
        help="how many processes share the tests; 0 for pytest's own alone, as for a selection",
    )
    add("--python", metavar="PYTHON", help="the interpreter to test with, left out: this one")
    add(
        "--cases",
        metavar="NUMBER",
        type=int,
        default=QUICK,
        help=f"how many cases the section differential compares; left out, {QUICK}",
    )
    add("--seed", metavar="NUMBER", type=int, default=0, help="the seed that they are drawn with")
    add("--example", metavar="FILE", type=Path, help="compare the case in this file alone")
    options, arguments = parser.parse_known_args()

    if sys.version_info < (3, 12):  # noqa: UP036, it may be run by any
        found = sys.version.split()[0]
        parser.error(f"run this with Python 3.12 or newer: {sys.executable} is {found}")
    sys.path[0] = str(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return _run(options, arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        return 130


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    from tools.environment import Environment, SetupError, alone

    try:
        with alone():
            environment = Environment.running() or Environment.of(options.python or sys.executable)
            settings = ROOT / "pyproject.toml"
            environment.install("the runner", ["--group", f"{settings}:dev"], made_of=[settings])
            if Environment.running() is None:
                python = str(environment.python)
                os.execv(python, [python, str(ROOT / "tools" / "test.py"), *sys.argv[1:]])

            from tools.sections import run

            return run(environment, options, arguments)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"`{name}` is not one of {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
