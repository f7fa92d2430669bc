#!/usr/bin/env python3
"""Run all tests and checks of the fork: `python3 tools/test.py [OPTIONS] [PYTEST ARGS]`.

It needs Python 3.12 or newer with pip, `ensurepip` or uv. Everything that it installs or creates is
in `build/`.
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
    "types": "mypy over tools/ and checks/; with upstream's settings over merged modules and tests/",
    "fork": "the fork's tests, and how much of the overlay they cover",
    "tools": "the tests of the tools, measurements and checks: tools/tests/, bench/tests/, checks/tests/",
    "faults": "reads from a failing server, compared with the release; --whole runs all cells",
    "differential": "random reads and writes, compared with the release",
    "clients": "reads with xarray and kerchunk over HTTP, compared with the release",
    "upstream": "upstream's suite on the installed fork, compared with the release",
    "docs": "the examples in upstream's documentation and docstrings",
    "stack": "the branches for upstream: built on two releases, each installed and tested alone",
    "provenance": "no text here is copied from upstream; skipped where the tool for it is missing",
}

QUICK = 400
"""Number of cases of the differential test by default, for a minute or two."""

_DESCRIPTION = """\
Install the fork and test it: all sections in turn, a table at the end, and as the last line how
many tests passed, failed and were skipped. The exit status is 0 if nothing failed.
"""

_ARGUMENTS = """\
All other arguments go to pytest. Paths select tests: those in tests/, tools/tests/, bench/tests/
and checks/tests/ are the fork's; those in upstream's source distribution are run from there, on
the installed fork; a path that exists in both selects both.

  python3 tools/test.py tests/test_codecs/test_sharding.py -k partial

"""


def main() -> int:
    """Set up the environment, then run the sections inside of it."""
    parser = argparse.ArgumentParser(
        prog="python3 tools/test.py",
        usage="%(prog)s [OPTIONS] [PYTEST ARGS]",
        description=_DESCRIPTION,
        epilog=_ARGUMENTS + "\n".join(f"  {name:14} {what}" for name, what in SECTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="SECTIONS",
        type=_sections,
        default=(),
        help="run only these sections, separated by commas; see the list below",
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
        help="number of test processes; 0 runs the tests in one, the default for selected tests",
    )
    add("--python", metavar="PYTHON", help="the interpreter to test with (default: this one)")
    add(
        "--cases",
        metavar="NUMBER",
        type=int,
        default=QUICK,
        help=f"number of cases of the section differential (default: {QUICK})",
    )
    add("--seed", metavar="NUMBER", type=int, default=0, help="the seed of these cases")
    add("--example", metavar="FILE", type=Path, help="run only the case in this file")
    options, arguments = parser.parse_known_args()

    if sys.version_info < (3, 12):  # noqa: UP036, any Python may run it
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
