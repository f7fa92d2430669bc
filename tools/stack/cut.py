"""The files of upstream's checkout, as each pull request leaves them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import lock, tree
from tools.overlay.markdown import headings
from tools.overlay.problems import Problem
from tools.stack import ownership
from tools.stack.earlier import load_earlier, put_back
from tools.stack.leaves import Leaf, is_document, is_module, leaves, overlay_files
from tools.stack.manifest import NAME, StackError, load
from tools.stack.restrict import restrict_document, restrict_module

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.overlay.project import Project
    from tools.stack.earlier import Earlier
    from tools.stack.manifest import Manifest

_MARK = "overlay: after"


@dataclass(frozen=True)
class Stack:
    """The overlay, cut into pull requests and merged into a checkout of upstream's."""

    project: Project
    base: Path
    """The folder with upstream's files. Only those at paths that the overlay has matter."""
    _merged: dict[tuple[object, ...], bytes | None] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """What `stack.toml` says."""
        return load(self.project.root / NAME)

    @cached_property
    def overlay(self) -> dict[str, bytes]:
        """The files of the fork, by path in upstream's checkout."""
        return overlay_files(self.project.root)

    @cached_property
    def upstream(self) -> dict[str, bytes | None]:
        """Upstream's files at these paths, `None` where it has none."""
        return {
            path: (self.base / path).read_bytes() if (self.base / path).is_file() else None
            for path in self.overlay
        }

    @cached_property
    def leaves(self) -> dict[str, list[Leaf]]:
        """By path, what can be named in each file."""
        found: dict[str, list[Leaf]] = {}
        problems: list[Problem] = []
        for path, content in self.overlay.items():
            try:
                found[path] = leaves(path, content, self.upstream[path])
            except (cst.ParserSyntaxError, ValueError) as error:
                problems.append(Problem(path, f"cannot be taken apart: {error}", "correct it"))
            if path.startswith("changes/") and self.upstream[path] is not None:
                what = "upstream has a fragment of this name"
                problems.append(Problem(path, what, "give it another number: 1234.feature.1.md"))
            if self.upstream[path] is None and _MARK in content.decode(errors="ignore"):
                problems.append(
                    Problem(path, "upstream lacks this file, so it takes no marker", "remove it")
                )
        if problems:
            raise StackError(problems)
        return found

    @cached_property
    def owners(self) -> dict[Leaf, int]:
        """By leaf, the index of the pull request that it belongs to."""
        return ownership.assign(
            self.manifest, (leaf for found in self.leaves.values() for leaf in found)
        )

    @cached_property
    def earlier(self) -> list[Earlier]:
        """What earlier pull requests have otherwise than the overlay."""
        return load_earlier(self.project.root, self.manifest, self.owners)

    @cached_property
    def plans(self) -> list[tree.Plan]:
        """What becomes of the package, the tests and the documents when the whole overlay is merged."""
        return [
            tree.plan(self.base / "src", self.project.overlay),
            tree.plan(self.base, self.project.root, folder="tests"),
            tree.plan(self.base, self.project.root, folder=tree.DOCUMENTS),
        ]

    def check_base(self) -> None:
        """See to it that the overlay fits the base.

        Raises
        ------
        StackError
            If it does not merge, or a definition that it replaces is not the one that the lock knows.
        """
        plans = self.plans
        problems = [problem for plan in plans for problem in plan.problems]
        locked = self.project.load_lock()
        known = {(c.definition, c.fingerprint) for c in self.manifest.compatible}
        there = {item for plan in plans for item in plan.replaced().items()}
        locked = replace(locked, replaced={**locked.replaced, **dict(sorted(there & known))})
        problems += (problem for plan in plans for problem in lock.verify(plan, locked))
        if problems:
            raise StackError(problems)

    def files(self, number: int) -> dict[str, bytes]:
        """Return the files that the first pull requests change or add, as they leave them.

        Parameters
        ----------
        number : int
            How many pull requests; with 0 there are no files.

        Returns
        -------
        dict
            By path in upstream's checkout.

        Raises
        ------
        StackError
            If something does not merge.
        """
        made: dict[str, bytes] = {}
        problems: list[Problem] = []
        for path, found in self.leaves.items():
            old = [
                each
                for each in self.earlier
                if each.path == path and each.number < number <= max(each.until.values())
            ]
            names = {name for each in old for name, until in each.until.items() if number <= until}
            kept = [
                leaf
                for leaf in found
                if self.owners.get(leaf, number) < number or leaf.name in names
            ]
            if kept and (content := self._make(path, kept, old, number, problems)) is not None:
                made[path] = content
        if problems:
            raise StackError(problems)
        return made

    def _make(
        self,
        path: str,
        kept: Sequence[Leaf],
        old: Sequence[Earlier],
        number: int,
        problems: list[Problem],
    ) -> bytes | None:
        names = frozenset(leaf.name for leaf in kept)
        known = (path, names, *((each.number, *sorted(each.names(number))) for each in old))
        if known not in self._merged:
            theirs = self.upstream[path]
            cut = self.overlay[path]
            if old or len(kept) < len(self.leaves[path]):
                cut = self._restrict(path, names, old, number)
            part, wrong = tree.merge_file(theirs, cut, path=path)
            problems += wrong
            self._merged[known] = part.content if part else None
        return self._merged[known]

    def _restrict(
        self, path: str, names: frozenset[str], old: Sequence[Earlier], number: int
    ) -> bytes:
        final = text = self.overlay[path].decode()
        for each in old:
            text = put_back(text, each, each.names(number))
        theirs = self.upstream[path]
        upstream = theirs.decode() if theirs is not None else None
        if is_module(path):
            return restrict_module(text, names, upstream, final=final).encode()
        if is_document(path):
            known = None
            if upstream is not None:
                known = [h.text for h in headings(upstream.splitlines(keepends=True))]
            return restrict_document(text, names, theirs=known).encode()
        raise AssertionError(f"{path} is not taken apart")

    def diff(self, number: int) -> dict[str, tuple[bytes | None, bytes]]:
        """Return each file that a pull request changes or adds, as it finds it and as it leaves it.

        Parameters
        ----------
        number : int
            The index of the pull request.

        Returns
        -------
        dict
            By path.
        """
        before, after = self.files(number), self.files(number + 1)
        return {
            path: (before.get(path, self.upstream[path]), content)
            for path, content in after.items()
            if before.get(path, self.upstream[path]) != content
        }
