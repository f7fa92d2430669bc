"""Which pull request everything that the fork has for upstream belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.overlay.problems import Problem
from tools.stack.leaves import Leaf, defined
from tools.stack.manifest import NAME, Manifest, StackError


def assign(manifest: Manifest, leaves: Sequence[Leaf]) -> dict[Leaf, int]:
    """Find the pull request of each leaf: that which names it, or else the nearest that encloses it.

    What stays with the fork is left out. It is an error if something belongs to no pull request or to two, if
    a pull request names what there is not, or if something comes before what encloses it.
    """
    requests = manifest.pull_requests
    problems: list[Problem] = []
    claimed: dict[str, int] = {}
    for index, request in enumerate(requests):
        for said, selector in request.selectors():
            other = claimed.setdefault(selector, index)
            if other != index or list(request.selectors()).count((said, selector)) > 1:
                what = f"`{said}` belongs to {requests[other].branch} and to {request.branch}"
                problems.append(Problem(f"{NAME}, {request.branch}", what, "keep one of the two"))
    owners: dict[Leaf, int] = {}
    used: set[str] = set()
    homeless: dict[str, None] = {}
    for leaf in leaves:
        nearest = next((s for s in leaf.selectors() if s in claimed), None)
        if leaf.path in manifest.own:
            used.add(leaf.path)
        elif nearest is None:
            homeless[str(leaf)] = None
        else:
            used.add(nearest)
            owners[leaf] = claimed[nearest]
    problems += (
        Problem(name, "belongs to no pull request", f"name it, or its file, in {NAME}")
        for name in homeless
    )
    for selector in dict.fromkeys([*claimed, *manifest.own]):
        if selector not in used:
            where = requests[claimed[selector]].branch if selector in claimed else "own"
            what = f"`{selector}` names nothing, or nothing that is not named more closely"
            problems.append(Problem(f"{NAME}, {where}", what, "remove it, or correct the name"))
    problems += _too_early(manifest, owners)
    if problems:
        raise StackError(problems)
    return owners


def _too_early(manifest: Manifest, owners: Mapping[Leaf, int]) -> Iterator[Problem]:
    """Report each leaf whose branch does not have the new class or section that encloses it."""
    by_name = {(leaf.path, leaf.name): index for leaf, index in owners.items()}
    for leaf, index in owners.items():
        for name in leaf.above:
            around = by_name.get((leaf.path, name), index)
            if around not in (index, *manifest.below(index)):
                yield Problem(
                    str(leaf),
                    f"belongs to {manifest.pull_requests[index].branch}, which does not have `{name}`, "
                    f"which encloses it, of {manifest.pull_requests[around].branch}",
                    "let the earlier one bring what encloses",
                )


def forms(
    above: Path, manifest: Manifest, owners: Mapping[Leaf, int]
) -> dict[tuple[int, str], str]:
    """Read the definitions that a branch has in another form than the one that brings the overlay's.

    They lie in a folder for each such branch, in modules at their paths, and come back by the index of the
    pull request and the path. A later pull request must have each of them.
    """
    by_name = {(leaf.path, leaf.name): owner for leaf, owner in owners.items()}
    found: dict[tuple[int, str], str] = {}
    problems: list[Problem] = []
    for file in sorted(path for path in above.rglob("*.*") if "__pycache__" not in path.parts):
        place = file.relative_to(above).as_posix()
        numbers = [
            number
            for number, request in enumerate(manifest.pull_requests)
            if place.startswith(f"{request.branch}/") and file.suffix == ".py"
        ]
        if not numbers:
            what = "is no module in the folder of a branch"
            problems.append(Problem(place, what, f"move it to {above.name}/BRANCH/src/"))
            continue
        number = numbers[0]
        path = place.removeprefix(f"{manifest.pull_requests[number].branch}/")
        found[number, path] = file.read_text()
        names = defined(found[number, path])
        problems += (
            Problem(f"{place}::{name}", "no later pull request has this definition", "remove it")
            for name in sorted(names)
            if by_name.get((path, name), -1) <= number
            and not any(other.startswith(f"{name}.") for other in names)
        )
    if problems:
        raise StackError(problems)
    return found
