"""The command line of the overlay."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tools.overlay import lock, tree, upstream
from tools.overlay.problems import Change, OverlayError
from tools.overlay.project import ROOT, Project

type Command = Callable[[Project, argparse.Namespace], None]


def merge(project: Project, options: argparse.Namespace) -> None:
    """Merge the overlay into the release, write the whole package, and print what changed."""
    found = project.release(options.upstream)
    into = options.into or project.merged
    changed = tree.materialise(project.plan(found), found.root, into)
    print("\n".join(changed) or "nothing changed")
    print(f"{into / 'zarr'} is zarr {project.version}")


def show(project: Project, options: argparse.Namespace) -> None:
    """List what the overlay adds and replaces, file by file."""
    for plan in project.plans(project.release(options.upstream), lay_out=False):
        for path, part in sorted(plan.parts.items(), key=lambda item: (item[1].new, item[0])):
            if part.new:
                lines = part.content.count(b"\n")
                print(f"{path}\n    new, {lines} line{'s' if lines != 1 else ''}")
            elif path in plan.opened():
                print("\n".join([path, *map(_row, part.changes)]))


def _row(change: Change) -> str:
    after = f"    after {change.after}" if change.after else ""
    return f"    {change.action:<10}{change.name}{after}"


def write_lock(project: Project, options: argparse.Namespace) -> None:
    """Rewrite overlay.lock for the pinned release, and print which entries changed."""
    try:
        old = lock.load(project.lock_file)
    except OverlayError:
        old = lock.Lock("", "", "")
    path = options.upstream
    if old.upstream != project.pinned:
        sdist, wheel = (
            upstream.fetch(project.pinned, kind, project.downloads) for kind in upstream.KINDS
        )
        old = replace(old, sdist=upstream.digest(sdist), wheel=upstream.digest(wheel))
        path = path or wheel
    new = project.rewritten(project.release(path), old)
    project.lock_file.write_text(new.text())
    for name in sorted({*old.replaced, *new.replaced}):
        was, now = old.replaced.get(name), new.replaced.get(name)
        if was != now:
            print("-" if now is None else "+" if was is None else "~", name)


_COMMANDS: dict[str, Command] = {"merge": merge, "lock": write_lock, "show": show}


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Run the command line for a checkout of the fork, and return 1 when the overlay cannot be merged."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.overlay",
        description="Merge the additions and replacements of the fork into the pinned release of zarr.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--upstream",
            type=Path,
            metavar="PATH",
            help="a wheel, an sdist or a source folder of zarr (default: the pinned wheel)",
        )
        if name == "merge":
            sub.add_argument(
                "--into", type=Path, metavar="DIR", help="a folder (default: build/merged)"
            )
    options = parser.parse_args(arguments)
    try:
        options.command(Project(root), options)
    except OverlayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
