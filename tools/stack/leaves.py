"""Taking the overlay's files apart into the smallest things that a pull request can name."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.overlay import pieces, tree
from tools.overlay.markdown import headings, marker_of
from tools.overlay.module import EXPORTS, exported
from tools.overlay.pieces import Scope

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
