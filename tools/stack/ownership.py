"""Which pull request everything that the fork has for upstream belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.overlay.problems import Problem
from tools.stack.manifest import NAME, StackError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tools.stack.leaves import Leaf
    from tools.stack.manifest import Manifest


def assign(manifest: Manifest, leaves: Iterable[Leaf]) -> dict[Leaf, int]:
    """Find the pull request of each leaf: that which names it, or else the nearest that encloses it.

    Parameters
    ----------
    manifest : Manifest
        What `stack.toml` says.
    leaves : Iterable of Leaf
        All that the fork has.

    Returns
    -------
    dict
        By leaf, the index of the pull request. What stays with the fork is left out.

    Raises
    ------
    StackError
        If something belongs to no pull request or to two, if a pull request names what there is not, or
        if something comes before what encloses it.
    """
    problems: list[Problem] = []
    claimed = _claims(manifest, problems)
    waiting = dict.fromkeys([*claimed, *manifest.own])
    known: set[str] = set()
    owners: dict[Leaf, int] = {}
    homeless: list[Leaf] = []
    for leaf in leaves:
        known.update(leaf.selectors())
        if leaf.path in manifest.own:
            waiting.pop(leaf.path, None)
            continue
        selector = next((s for s in leaf.selectors() if s in claimed), None)
        if selector is None:
            homeless.append(leaf)
            continue
        waiting.pop(selector, None)
        owners[leaf] = claimed[selector]
    problems += _homeless(homeless, {leaf.path for leaf in owners})
    for selector in waiting:
        where = manifest.pull_requests[claimed[selector]].branch if selector in claimed else "own"
        problems.append(
            Problem(
                f"{NAME}, {where}",
                f"`{selector}` names nothing that is not named more closely"
                if selector in known
                else f"`{selector}` names nothing that the fork has",
                "remove it, or correct the name",
            )
        )
    problems += _too_early(manifest, owners)
    if problems:
        raise StackError(problems)
    return owners


def _claims(manifest: Manifest, problems: list[Problem]) -> dict[str, int]:
    """Return the pull request that gives each name, by the name with its path in upstream's checkout."""
    claimed: dict[str, int] = {}
    for index, pull_request in enumerate(manifest.pull_requests):
        for said, selector in pull_request.selectors():
            if selector in claimed:
                other = manifest.pull_requests[claimed[selector]].branch
                twice = "twice" if other == pull_request.branch else f"and so does {other}"
                problems.append(
                    Problem(
                        f"{NAME}, {pull_request.branch}",
                        f"it names `{said}` {twice}",
                        "keep one of the two",
                    )
                )
            claimed.setdefault(selector, index)
    return claimed


def _homeless(leaves: Sequence[Leaf], paths: Collection[str]) -> Iterable[Problem]:
    """Report what belongs to no pull request: a file, a class or a section as one."""
    names = {(leaf.path, leaf.name) for leaf in leaves}
    told = [
        str(leaf) if leaf.path in paths else leaf.path
        for leaf in leaves
        if leaf.path not in paths or not any((leaf.path, name) in names for name in leaf.above)
    ]
    for name in dict.fromkeys(told):
        yield Problem(name, "belongs to no pull request", f"name it, or its file, in {NAME}")


def _too_early(manifest: Manifest, owners: Mapping[Leaf, int]) -> Iterable[Problem]:
    """Report each leaf that comes before the new class or section that encloses it."""
    by_name = {(leaf.path, leaf.name): index for leaf, index in owners.items()}
    for leaf, index in owners.items():
        for name in leaf.above:
            around = by_name.get((leaf.path, name), index)
            if around > index:
                yield Problem(
                    str(leaf),
                    f"belongs to {manifest.pull_requests[index].branch}, but `{name}`, which encloses "
                    f"it, to {manifest.pull_requests[around].branch}, which comes later",
                    "let the earlier one bring what encloses",
                )
