"""The command line of the stack."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools import suite
from tools.environment import SetupError, alone
from tools.overlay import upstream
from tools.overlay.problems import OverlayError
from tools.overlay.project import ROOT, Project
from tools.stack import branches, repository
from tools.stack import check as checks
from tools.stack import rebase as rebasing
from tools.stack.cut import FIRST_NUMBER, Stack
from tools.stack.manifest import NAME, load
from tools.stack.verify import prepare, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tools.stack.branches import Made
    from tools.stack.repository import Repository

type Command = Callable[[Project, argparse.Namespace], int | None]


def show(project: Project, options: argparse.Namespace) -> None:
    """List the pull requests, what each does to which file, and how many lines that are."""
    checkout, made = _made(project, options)
    print("\n".join([*checks.contents(made, checkout), *checks.table(made, checkout)]))


def check(project: Project, options: argparse.Namespace) -> None:
    """See to it that all the fork has belongs to one pull request, and that each is small and stands alone."""
    checkout, made = _made(project, options)
    print("\n".join(checks.table(made, checkout)))
    with checkout.files(made.base) as folder:
        checks.expect_sound(Stack(project, folder), made, checkout)


def build(project: Project, options: argparse.Namespace) -> None:
    """Make the branches on a checkout of zarr-python: one commit each, on top of those that it needs."""
    checkout, made = _made(project, options)
    # A checkout that was made here has no branches but those.
    branches.build(checkout, made, force=options.force or options.checkout is None)
    rows = [(branch.name, branch.commit) for branch in made.branches]
    print("\n".join([f"in {checkout.path}:", *checks.aligned(rows)]))


def export(project: Project, options: argparse.Namespace) -> None:
    """Write the branches as patches that `git am` applies to the base."""
    checkout, made = _made(project, options)
    into = options.into or _folder(project) / "patches"
    force = options.force or options.into is None
    print("\n".join(map(str, branches.export(checkout, made, into, force=force))))


def verify(project: Project, options: argparse.Namespace) -> int:
    """Try each branch by itself: installed from source, linted and tested as upstream does it."""
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
    """Tell what another release means for the overlay; with --accept, pin the fork to it."""
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


def _folder(project: Project) -> Path:
    return project.root / "build" / "stack"


def _made(project: Project, options: argparse.Namespace) -> tuple[Repository, Made]:
    """Make the commits on the checkout that is meant."""
    version = options.release or project.pinned
    if options.checkout is None:
        checkout = repository.of_release(project, version, _folder(project))
    else:
        checkout = repository.at(options.checkout)
        checkout.expect_clean()
    base = checkout.commit(options.base or f"v{version}")
    sent = "author" in options
    who = (
        checkout.identity(base=base, author=options.author, date=options.date)
        if sent
        else checkout.nobody(base)
    )
    numbers = dict(options.number) if sent else {}
    manifest = load(project.root / NAME)
    numbers = {
        manifest.pull_requests[manifest.number(name)].branch: n for name, n in numbers.items()
    }
    first = options.first_number if sent else FIRST_NUMBER
    return checkout, branches.commits(
        project, checkout, base, who, first_number=first, numbers=numbers
    )


def _number(text: str) -> tuple[str, int]:
    branch, _, number = text.rpartition("=")
    if not branch or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not BRANCH=NUMBER")
    return branch, int(number)


def _with_base(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--checkout",
        type=Path,
        metavar="PATH",
        help="a clone of zarr-python; left out, one is made of the source distribution of the release, "
        "in build/stack",
    )
    where.add_argument(
        "--release",
        metavar="VERSION",
        help="the release to make a checkout of, the pinned one if left out",
    )
    parser.add_argument(
        "--base",
        metavar="REF",
        help="the commit, tag or branch to start from; the tag of the release if left out",
    )


def _with_sending(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--author",
        metavar="AUTHOR",
        help="`Name <name@example.org>`; the user that git knows if left out",
    )
    parser.add_argument(
        "--date",
        metavar="DATE",
        help="the date of the commits; that of the base if left out, so that building twice gives the "
        "same commits",
    )
    parser.add_argument(
        "--number",
        type=_number,
        action="append",
        default=[],
        metavar="BRANCH=NUMBER",
        help="the number that a pull request has, for the names of its change fragments; may be given "
        "more than once",
    )
    parser.add_argument(
        "--first-number",
        type=int,
        default=FIRST_NUMBER,
        metavar="NUMBER",
        help="the number of the first pull request, for those without --number: the second has the "
        f"next, and so on; {FIRST_NUMBER} if left out",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace branches, or patches, that are there"
    )


def _with_branches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--branch",
        action="append",
        metavar="NAME",
        help="verify this one alone; may be given more than once",
    )
    parser.add_argument(
        "--suite", action="store_true", help="run upstream's whole suite on all series together too"
    )


def _with_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="the release, 3.5.0")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="write the release into pyproject.toml and its fingerprints into overlay.lock, once all "
        "applies and what drifted has been carried over",
    )


def _with_into(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into",
        type=Path,
        metavar="DIR",
        help="the folder for the patches; left out, build/stack/patches",
    )


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let a signal that ends this program end what it has started first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, _: sys.exit(128 + number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_COMMANDS: dict[str, tuple[Command, tuple[Callable[[argparse.ArgumentParser], None], ...]]] = {
    "show": (show, (_with_base,)),
    "check": (check, (_with_base,)),
    "build": (build, (_with_base, _with_sending)),
    "export": (export, (_with_base, _with_sending, _with_into)),
    "rebase": (rebase, (_with_version,)),
    "verify": (verify, (_with_base, _with_branches)),
}


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
        description="Cut the overlay into pull requests, as stack.toml says, and make branches of them.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (command, extras) in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        for extra in extras:
            extra(sub)
    options = parser.parse_args(arguments)
    try:
        with _ended_in_order():
            return options.command(Project(root), options) or 0
    except (OverlayError, SetupError) as error:
        print(error, file=sys.stderr)
        return 1
