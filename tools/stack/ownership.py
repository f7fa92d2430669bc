"""The smallest things that a pull request can name, and which pull request each belongs to."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.overlay import pieces, tree
from tools.overlay.markdown import headings, marker_of
from tools.overlay.module import EXPORTS, exported
from tools.overlay.pieces import Scope
from tools.overlay.problems import Problem
from tools.stack.manifest import NAME, Manifest, StackError

_FOLDERS = (("src", tree.PACKAGE), ("", "tests"), ("", tree.DOCUMENTS), ("", "changes"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One definition, one section of a document without those below it, or one file."""

    path: str
    """Its file in a checkout of upstream's, `src/zarr/abc/store.py`."""
    name: str = ""
    """`Store.get_many`, or the heading; empty for a file that is not taken apart."""
    above: tuple[str, ...] = ()
    """What encloses it, from the inside out: classes, or headings."""

    def selectors(self) -> Iterator[str]:
        """Yield what it can be named by, the most specific first."""
        mark = "#" if self.path.endswith(".md") else "::"
        for name in (self.name, *self.above):
            if name:
                yield f"{self.path}{mark}{name}"
        yield self.path

    def __str__(self) -> str:
        return next(self.selectors())


def overlay_files(root: Path) -> dict[str, bytes]:
    """Read all that the fork has for upstream, by path in a checkout of upstream's."""
    return {
        f"{above}/{path}".lstrip("/"): (root / above / path).read_bytes()
        for above, folder in _FOLDERS
        for path in tree.files(root / above, folder)
    }


def leaves(path: str, content: bytes, upstream: bytes | None) -> list[Leaf]:
    """Take a file of the overlay apart.

    A class of the overlay's is one leaf, and so is each of its members; a class that upstream has is not.
    """
    found: list[Leaf] = []
    if path.endswith(".py"):
        theirs = defined(upstream.decode()) if upstream is not None else set()
        found = [Leaf(path, *names) for names in _names(pieces.module(content.decode()), theirs)]
    elif path.endswith(".md") and path.startswith(f"{tree.DOCUMENTS}/"):
        found = [Leaf(path, *names) for names in section_names(content.decode())]
    return list(dict.fromkeys(found)) or [Leaf(path)]


def defined(text: str) -> set[str]:
    """Return the qualified names of what a module defines, members of classes among them."""
    return {name for name, _ in _names(pieces.module(text), ())}


def _names(
    scope: Scope, opened: Container[str], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix = f"{above[0]}." if above else ""
    here = {name for piece in scope.pieces for name in piece.names}
    for piece in scope.pieces:
        name = prefix + piece.name
        if name == EXPORTS:
            # What the module defines goes where its definition goes.
            yield from ((other, above) for other in exported(piece) if other not in here)
        elif piece.names:
            if not piece.class_ or name not in opened:
                yield name, above
            yield from _names(pieces.members(piece), opened, (name, *above))


def section_names(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each heading of a document of the overlay, with the headings that enclose it."""
    lines = text.splitlines(keepends=True)
    enclosing: list[tuple[int, str]] = []
    for heading in headings(lines):
        # A section that says itself where it goes is no part of the one that stands above it here.
        enclosing = [
            above
            for above in enclosing
            if above[0] < heading.level and marker_of(lines, heading) is None
        ]
        yield heading.text, tuple(text for _, text in reversed(enclosing))
        enclosing.append((heading.level, heading.text))


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
    """Read the earlier versions of definitions, which a later branch replaces with the overlay's version.

    Each such branch has a folder with modules at their paths. The result is keyed by the index of the pull
    request and the path. A later pull request must have each of the definitions.
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
