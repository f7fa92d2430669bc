"""The command line of the stack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tools import suite
from tools.environment import SetupError
from tools.overlay import upstream
from tools.overlay.problems import OverlayError
from tools.overlay.project import ROOT, Project
from tools.stack import check as checks
from tools.stack.cut import Stack
from tools.stack.diffstat import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

type Command = Callable[[Project, argparse.Namespace], int | None]


def _stack(project: Project, options: argparse.Namespace) -> Stack:
    """Cut against the sources that were named, or those of the pinned release."""
    if options.upstream is None:
        return Stack(project, suite.unpacked(project))
    found = upstream.at(options.upstream, unpack_into=project.downloads)
    project.expect(found, where=str(options.upstream))
    return Stack(project, found.root.parent)


def show(project: Project, options: argparse.Namespace) -> None:
    """List the pull requests, and what each does to which file."""
    stack = _stack(project, options)
    stats = [measure(stack.diff(n)) for n in range(len(stack.manifest.pull_requests))]
    print("\n".join([*checks.contents(stack, stats), *checks.table(stack, stats)]))


def check(project: Project, options: argparse.Namespace) -> None:
    """See to it that all the fork has belongs to one pull request, and that each is small and stands alone."""
    stack = _stack(project, options)
    print("\n".join(checks.table(stack, checks.check(stack))))


_COMMANDS: dict[str, Command] = {"show": show, "check": check}


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : Sequence of str, optional
        The arguments; those of the process if left out.
    root : Path
        The checkout of the fork; the one that this module is in if left out.

    Returns
    -------
    int
        The exit status: 1 when something is wrong with the stack.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.stack",
        description="Cut the overlay into pull requests, as stack.toml says.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--upstream",
            type=Path,
            metavar="PATH",
            help="the source distribution of zarr, packed or not; left out, the pinned one, which is "
            "kept in build/upstream",
        )
    options = parser.parse_args(arguments)
    try:
        return options.command(Project(root), options) or 0
    except (OverlayError, SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
