"""Definitions as an earlier pull request has them, before a later one rewrites them.

A definition of the overlay belongs to the pull request that brings the text that it has there. Where an
earlier one needs it too, in another form, that form stands in a file of the same name below
`stack/BRANCH/`, which holds such definitions and the imports that they need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import module
from tools.overlay.problems import Problem
from tools.stack.leaves import defined, is_module
from tools.stack.manifest import StackError
from tools.stack.restrict import restrict_module

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from tools.stack.leaves import Leaf
    from tools.stack.manifest import Manifest

FOLDER = "stack"


@dataclass(frozen=True, slots=True)
class Earlier:
    """The definitions of one module that one pull request has otherwise than the overlay."""

    path: str
    """In a checkout of upstream's."""
    number: int
    """The index of the pull request."""
    text: str
    until: Mapping[str, int]
    """By qualified name, the index of the pull request that rewrites it."""

    def names(self, number: int) -> set[str]:
        """Return the qualified names of what so many pull requests have in this form."""
        return {name for name, until in self.until.items() if self.number < number <= until}


def load_earlier(root: Path, manifest: Manifest, owners: Mapping[Leaf, int]) -> list[Earlier]:
    """Read what stands in `stack/`, in the order of the pull requests.

    Parameters
    ----------
    root : Path
        A checkout of the fork.
    manifest : Manifest
        What `stack.toml` says.
    owners : Mapping
        The pull request of each leaf of the overlay.

    Returns
    -------
    list of Earlier
        One for each file.

    Raises
    ------
    StackError
        If a file lies elsewhere than in the folder of a branch, or defines what no later pull request has.
    """
    above = root / FOLDER
    by_name = {(leaf.path, leaf.name): owner for leaf, owner in owners.items()}
    found: list[Earlier] = []
    problems: list[Problem] = []
    lost = {path for path in above.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for number, pull_request in enumerate(manifest.pull_requests):
        folder = above / pull_request.branch
        for file in sorted(lost):
            if not file.is_relative_to(folder):
                continue
            lost.discard(file)
            path = file.relative_to(folder).as_posix()
            if is_module(path):
                found.append(_read(file, path, number, by_name, problems))
            else:
                problems.append(Problem(str(file), "is no Python module", "remove it"))
    problems += (
        Problem(
            path.relative_to(root).as_posix(),
            "is in the folder of no branch",
            f"move it to {FOLDER}/BRANCH/src/, or remove it",
        )
        for path in sorted(lost)
    )
    if problems:
        raise StackError(problems)
    return found


def _read(
    file: Path,
    path: str,
    number: int,
    owners: Mapping[tuple[str, str], int],
    problems: list[Problem],
) -> Earlier:
    text = file.read_text()
    until: dict[str, int] = {}
    try:
        names = defined(text)
    except cst.ParserSyntaxError as error:
        problems.append(Problem(str(file), f"is not Python: {error.message}", "correct it"))
        names = set()
    for name in sorted(names):
        owner = owners.get((path, name))
        if owner is None and any(other.startswith(f"{name}.") for other in names):
            continue  # a class of upstream's, or one that came before: its members count
        if owner is not None and owner > number:
            until[name] = owner
        elif not any(other.startswith(f"{name}.") for other in names):
            problems.append(
                Problem(
                    f"{FOLDER}/{file.name}::{name}",
                    "no later pull request has this definition",
                    "remove it, or let a later one bring the overlay's",
                )
            )
    return Earlier(path, number, text, until)


def put_back(text: str, earlier: Earlier, names: Collection[str]) -> str:
    """Give definitions of a module of the overlay the form that a pull request has them in.

    Parameters
    ----------
    text : str
        The overlay's module.
    earlier : Earlier
        The definitions.
    names : Collection of str
        The qualified names of those that are not rewritten yet.

    Returns
    -------
    str
        The module, with the imports of both.

    Raises
    ------
    StackError
        If that does not merge.
    """
    opened = {name.rpartition(".")[0] for name in earlier.until}
    form = restrict_module(earlier.text, {*names, *opened} - {""}, None)
    merged = module.merge_module(text, form, path=earlier.path)
    # The markers of the overlay's module stay where they are, for the merge with upstream's.
    problems = [problem for problem in merged.problems if "directs nothing" not in problem.what]
    if problems:
        raise StackError(problems)
    return merged.text
