"""What the commands share: their options, and the way into the environment of the tools.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bench.environments import TOOLS, prepare_tools
from tools.environment import ROOT, Environment, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable


def add_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """Add what every measurement can be told."""
    parser.add_argument(
        "--latency-ms",
        type=not_negative,
        default=20.0,
        metavar="MS",
        help="how long the server delays each response (default: 20)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=2048,
        metavar="N",
        help="edge of the square int32 array (default: 2048)",
    )
    parser.add_argument(
        "--chunk", type=positive, default=64, metavar="N", help="edge of a chunk (default: 64)"
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=repeats,
        metavar="N",
        help=f"number of reads on each side; the median is reported (default: {repeats})",
    )
    parser.add_argument(
        "--fork",
        type=checkout_or_wheel,
        default=ROOT,
        metavar="PATH",
        help="a checkout of the fork or of zarr-python, or a wheel (default: this checkout)",
    )
    parser.add_argument(
        "--before",
        type=checkout_or_wheel,
        metavar="PATH",
        help="the same, for what it is compared with (default: the release)",
    )


def positive(text: str) -> int:
    """A whole number above zero."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1, and is {number}")
    return number


def not_negative(text: str) -> float:
    """A finite number from zero up."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"has to be zero or more, and is {text}")
    return number


def checkout_or_wheel(text: str) -> Path:
    """Something that pip can install zarr from."""
    path = Path(text).resolve()
    if path.suffix == ".whl" and path.is_file():
        return path
    if (path / "pyproject.toml").is_file():
        return path
    raise argparse.ArgumentTypeError(f"neither a wheel nor a checkout: {text}")


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Parse the options, and check what concerns several of them."""
    options = parser.parse_args(arguments)
    if options.chunk > options.size:
        parser.error(f"a chunk of {options.chunk} does not fit an array of {options.size}")
    return options


def run_in_tools_environment(program: Callable[[], int]) -> NoReturn:
    """Run `program` where rich and matplotlib are, and end this process as it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if Environment.running() == TOOLS:
            sys.exit(program())
        with contextlib.redirect_stdout(sys.stderr):
            prepare_tools()
        os.execv(TOOLS.python, [str(TOOLS.python), *sys.argv])
    except SetupError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
