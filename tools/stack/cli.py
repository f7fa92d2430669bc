"""The command line of the stack."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools import suite
from tools.environment import SetupError, alone
from tools.overlay import upstream
from tools.overlay.problems import OverlayError
from tools.overlay.project import ROOT, Project
from tools.stack import branches, repository
from tools.stack import check as checks
from tools.stack import rebase as rebasing
from tools.stack.branches import Made
from tools.stack.cut import FIRST_NUMBER, Stack
from tools.stack.manifest import NAME, load
from tools.stack.repository import Repository
from tools.stack.verify import prepare, table

type Command = Callable[[Project, argparse.Namespace], int | None]


def show(project: Project, options: argparse.Namespace) -> None:
    """List the pull requests, what each does to which file, and how many lines that are."""
    checkout, made = _made(project, options)
    print("\n".join([*checks.contents(made, checkout), *checks.table(made, checkout)]))


def check(project: Project, options: argparse.Namespace) -> None:
    """Check that everything belongs to one pull request, and that each is small and self-contained."""
    checkout, made = _made(project, options)
    print("\n".join(checks.table(made, checkout)))
    with checkout.files(made.base) as folder:
        checks.check(Stack(project, folder), made, checkout)


def build(project: Project, options: argparse.Namespace) -> None:
    """Create the branches in a clone of zarr-python: one commit each, on top of those that it needs."""
    checkout, made = _made(project, options)
    # A checkout that was made here has no other branches.
    branches.build(checkout, made, force=options.force or options.checkout is None)
    rows = [(branch.name, branch.commit) for branch in made.branches]
    print("\n".join([f"in {checkout.path}:", *checks.aligned(rows)]))


def export(project: Project, options: argparse.Namespace) -> None:
    """Write the branches as patches that `git am` applies to the base."""
    checkout, made = _made(project, options)
    into = options.into or project.root / "build" / "stack" / "patches"
    force = options.force or options.into is None
    print("\n".join(map(str, branches.export(checkout, made, into, force=force))))


def verify(project: Project, options: argparse.Namespace) -> int:
    """Verify each branch separately: install it from source, lint and test it as upstream does."""
    manifest = load(project.root / NAME)
    numbers = [manifest.number(name) for name in options.branch or ()]
    names = [manifest.pull_requests[number].branch for number in numbers]
    checkout, made = _made(project, options)
    version = options.release or project.pinned
    with alone():
        verification = prepare(project, checkout, made, version, suite=options.suite)
        verdicts = verification.run(names or [branch.name for branch in made.branches])
    print("\n".join(["", *table(verification, verdicts)]))
    return not all(verdict.good for verdict in verdicts)


def rebase(project: Project, options: argparse.Namespace) -> int:
    """Report what has to change in the overlay for another release; with --accept, pin that release."""
    version = options.version
    old = suite.unpacked(project)
    sdist = upstream.fetch(version, "sdist", project.downloads)
    new = upstream.unpack(sdist, project.downloads)
    report = rebasing.compare(Stack(project, old), new, version)
    print("\n".join(rebasing.lines(report)))
    if options.accept:
        wheel = upstream.fetch(version, "wheel", project.downloads)
        digests = {"sdist": upstream.digest(sdist), "wheel": upstream.digest(wheel)}
        found = upstream.at(new, unpack_into=project.downloads)
        rebasing.accept(project, report, found, digests)
        print(f"\nthe fork is pinned to zarr {version}")
        return 0
    return bool(report.findings)


def _made(project: Project, options: argparse.Namespace) -> tuple[Repository, Made]:
    """Make the commits in the selected checkout."""
    version = options.release or project.pinned
    if options.checkout is None:
        checkout = repository.of_release(project, version, project.root / "build" / "stack")
    else:
        checkout = repository.at(options.checkout)
    base = checkout.commit(options.base or f"v{version}")
    if "author" not in options:  # nothing is sent
        return checkout, branches.commits(project, checkout, base, checkout.nobody(base))
    who = checkout.identity(base=base, author=options.author, date=options.date)
    manifest = load(project.root / NAME)
    numbers = {
        manifest.pull_requests[manifest.number(name)].branch: n for name, n in options.number
    }
    first = options.first_number
    return checkout, branches.commits(
        project, checkout, base, who, first_number=first, numbers=numbers
    )


def _number(text: str) -> tuple[str, int]:
    branch, _, number = text.rpartition("=")
    if not branch or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not BRANCH=NUMBER")
    return branch, int(number)


_OPTIONS: dict[str, dict[str, Any]] = {
    "--checkout": {
        "type": Path,
        "help": "a clone of zarr-python (default: one made from the release)",
    },
    "--release": {"help": "the release to use (default: the pinned one)"},
    "--base": {"help": "the commit to start from (default: the release's tag)"},
    "--author": {"help": "`Name <name@example.org>` (default: git's user)"},
    "--date": {"help": "the date of the commits (default: that of the base)"},
    "--number": {
        "type": _number,
        "action": "append",
        "default": [],
        "metavar": "BRANCH=NUMBER",
        "help": "the number of a pull request, for its change fragments; may be repeated",
    },
    "--first-number": {
        "type": int,
        "default": FIRST_NUMBER,
        "help": f"the number of the first pull request; the others follow it (default: {FIRST_NUMBER})",
    },
    "--force": {"action": "store_true", "help": "replace existing branches or patches"},
    "--into": {"type": Path, "help": "a folder for the patches (default: build/stack/patches)"},
    "--branch": {"action": "append", "help": "verify only this branch; may be repeated"},
    "--suite": {"action": "store_true", "help": "also run upstream's suite on all series together"},
    "version": {"help": "the release, such as 3.5.0"},
    "--accept": {
        "action": "store_true",
        "help": "pin the fork to it, if everything applies or has only drifted",
    },
}
_BASE = ("--checkout", "--release", "--base")
_SENDING = (*_BASE, "--author", "--date", "--number", "--first-number", "--force")
_COMMANDS: dict[str, tuple[Command, tuple[str, ...]]] = {
    "show": (show, _BASE),
    "check": (check, _BASE),
    "build": (build, _SENDING),
    "export": (export, (*_SENDING, "--into")),
    "rebase": (rebase, ("version", "--accept")),
    "verify": (verify, (*_BASE, "--branch", "--suite")),
}


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Run the command line for a checkout of the fork, and return 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.stack",
        description="Split the overlay into the pull requests of stack.toml, and create their branches.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (command, extras) in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        for option in extras:
            sub.add_argument(option, **_OPTIONS[option])
    options = parser.parse_args(arguments)
    try:
        return options.command(Project(root), options) or 0
    except (OverlayError, SetupError) as error:
        print(error, file=sys.stderr)
        return 1
