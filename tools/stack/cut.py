"""The files of upstream's checkout, as each pull request leaves them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tools.overlay import lock, tree
from tools.overlay.problems import Problem
from tools.overlay.project import Project
from tools.stack import ownership
from tools.stack.manifest import NAME, Manifest, StackError, load
from tools.stack.ownership import Leaf

FORMS = "stack"
"""The folder with definitions as branches have them that come before the branch that brings the overlay's."""
FIRST_NUMBER = 9001
"""The number of the first pull request, where none is given."""
_MARK = "overlay: after"


@dataclass(frozen=True)
class Stack:
    """The overlay, cut into pull requests and merged into a checkout of upstream's."""

    project: Project
    base: Path
    """The folder with upstream's files. Only those at paths that the overlay has matter."""
    first_number: int = FIRST_NUMBER
    """The number of the first pull request; the others follow."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """By branch, numbers that are known."""
    _merged: dict[tuple[object, ...], tree.Part] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """What `stack.toml` says."""
        return load(self.project.root / NAME)

    @cached_property
    def overlay(self) -> dict[str, bytes]:
        """The files of the fork, by path in upstream's checkout."""
        return ownership.overlay_files(self.project.root)

    @cached_property
    def upstream(self) -> dict[str, bytes | None]:
        """Upstream's files at these paths, `None` where it has none."""
        return {path: self._upstream(path) for path in self.overlay}

    def _upstream(self, path: str) -> bytes | None:
        return (self.base / path).read_bytes() if (self.base / path).is_file() else None

    @cached_property
    def leaves(self) -> dict[str, list[Leaf]]:
        """By path, what can be named in each file."""
        found: dict[str, list[Leaf]] = {}
        problems: list[Problem] = []
        for path, content in self.overlay.items():
            try:
                found[path] = ownership.leaves(path, content, self.upstream[path])
            except (SyntaxError, ValueError) as error:
                problems.append(Problem(path, f"cannot be taken apart: {error}", "correct it"))
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
            self.manifest, [leaf for found in self.leaves.values() for leaf in found]
        )

    @cached_property
    def forms(self) -> dict[tuple[int, str], str]:
        """By pull request and path, modules with the forms that it has of what later ones bring."""
        return ownership.forms(self.project.root / FORMS, self.manifest, self.owners)

    @cached_property
    def fragments(self) -> dict[str, str]:
        """By the path that each change fragment has here, its path on its branch."""
        found: dict[str, str] = {}
        for number, request in enumerate(self.manifest.pull_requests, self.first_number):
            found |= request.fragment_paths(self.numbers.get(request.branch, number))
        problems = [
            Problem(path, f"upstream has {there}", "give the pull request another number")
            for path, there in found.items()
            if self._upstream(there) is not None or list(found.values()).count(there) > 1
        ]
        if problems:
            raise StackError(problems)
        return found

    @cached_property
    def plans(self) -> list[tree.Plan]:
        """What becomes of the package, the tests and the documents when the whole overlay is merged."""
        return [
            tree.plan(self.base / above, self.project.root / above, folder=folder, lay_out=False)
            for above, folder in (("src", tree.PACKAGE), ("", "tests"), ("", tree.DOCUMENTS))
        ]

    def check_base(self) -> None:
        """See to it that the overlay merges into the base, and replaces what the lock knows there."""
        plans = self.plans
        problems = [problem for plan in plans for problem in plan.problems]
        locked = self.project.load_lock()
        known = {(c.definition, c.fingerprint) for c in self.manifest.compatible}
        there = {item for plan in plans for item in plan.replaced().items()}
        locked = replace(locked, replaced={**locked.replaced, **dict(sorted(there & known))})
        problems += (problem for plan in plans for problem in lock.verify(plan, locked))
        if problems:
            raise StackError(problems)

    def files(self, numbers: Collection[int]) -> dict[str, bytes]:
        """Return by path the files that some pull requests, given by their indexes, change or add together."""
        keys: dict[str, tuple[object, ...]] = {}
        problems: list[Problem] = []
        for path, found in self.leaves.items():
            names = frozenset(leaf.name for leaf in found if self.owners.get(leaf) in numbers)
            ordered = sorted(self.forms.items())
            forms = {n: text for (n, p), text in ordered if p == path and n in numbers}
            if not names and not forms:
                continue
            where = self.fragments.get(path, path)
            keys[where] = key = (where, names, *forms)
            if key in self._merged:
                continue
            whole = len(names) == len(found)
            part, wrong = tree.merge_file(
                self.upstream[path],
                self.overlay[path],
                path=path,
                keep=None if whole else names.__contains__,
                forms=[] if whole else list(forms.values()),
            )
            problems += wrong
            if part:
                self._merged[key] = part
        if problems:
            raise StackError(problems)
        fresh = {
            path: self._merged[key] for path, key in keys.items() if self._merged[key].composed
        }
        for path, part in tree.laid_out(fresh).items():
            self._merged[keys[path]] = replace(part, composed=False)
        return {path: self._merged[key].content for path, key in keys.items()}

    def diff(self, number: int) -> dict[str, bytes]:
        """Return each file that a pull request changes or adds, by path, as it leaves it."""
        below = self.manifest.below(number)
        before = self.files(below)
        return {
            path: content
            for path, content in self.files((*below, number)).items()
            if before.get(path, self.upstream.get(path)) != content
        }
