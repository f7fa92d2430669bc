"""Taking the overlay's files apart into the smallest things that a pull request can name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import exports, scopes, tree
from tools.overlay.markdown import headings, marker_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.overlay.scopes import Statement

EXPORTS = "__all__"

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
        mark = "#" if is_document(self.path) else "::"
        for name in (self.name, *self.above):
            if name:
                yield f"{self.path}{mark}{name}"
        yield self.path

    def __str__(self) -> str:
        return next(self.selectors())


def is_document(path: str) -> bool:
    """Tell a Markdown document, whose sections can be named; a change fragment is a whole."""
    return path.endswith(".md") and path.startswith(f"{tree.DOCUMENTS}/")


def is_module(path: str) -> bool:
    """Tell a Python module, whose definitions can be named."""
    return PurePosixPath(path).suffix == ".py"


def overlay_files(root: Path) -> dict[str, bytes]:
    """Read all that the fork has for upstream: the package, tests, documents and change fragments.

    Parameters
    ----------
    root : Path
        A checkout of the fork.

    Returns
    -------
    dict
        By path in a checkout of upstream's.
    """
    return {
        f"{above}/{path}".lstrip("/"): (root / above / path).read_bytes()
        for above, folder in _FOLDERS
        for path in tree.files(root / above, folder)
    }


def leaves(path: str, content: bytes, upstream: bytes | None) -> list[Leaf]:
    """Take a file of the overlay apart.

    Parameters
    ----------
    path : str
        The path.
    content : bytes
        The overlay's file.
    upstream : bytes or None
        Upstream's file, if it has one.

    Returns
    -------
    list of Leaf
        At least one. A class of the overlay's is one, and so is each of its members; a class that upstream
        has is not.
    """
    found: list[Leaf] = []
    if is_module(path):
        body: Sequence[Statement] = cst.parse_module(content.decode()).body
        theirs = defined(upstream.decode()) if upstream is not None else set()
        found = [Leaf(path, *names) for names in _names(body, theirs)]
    elif is_document(path):
        found = [Leaf(path, *names) for names in section_names(content.decode())]
    return list(dict.fromkeys(found)) or [Leaf(path)]


def defined(text: str) -> set[str]:
    """Return the qualified names of what a module defines, members of classes among them."""
    return {name for name, _ in _names(cst.parse_module(text).body, ())}


def members(definition: cst.ClassDef) -> list[Statement]:
    """Return the body of a class; nothing where it stands on the line of the class."""
    if isinstance(definition.body, cst.IndentedBlock):
        return list(definition.body.body)  # type: ignore[arg-type]
    return []


def _names(
    body: Sequence[Statement], opened: Container[str], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix = f"{above[0]}." if above else ""
    parts = scopes.pieces(body)
    here = {name for piece in parts for name in piece.names}
    for piece in parts:
        if not piece.names:
            continue
        name = prefix + piece.name
        statement = piece.statements[0]
        if name == EXPORTS:
            # What the module defines goes where its definition goes.
            for exported in exports.names(piece.statements):
                if exported not in here:
                    yield exported, above
        elif isinstance(statement, cst.ClassDef):
            if name not in opened:
                yield name, above
            yield from _names(members(statement), opened, (name, *above))
        else:
            yield name, above


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


def texts(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the files that are text, as such."""
    for path, content in sorted(files.items()):
        try:
            yield path, content.decode()
        except UnicodeDecodeError:
            continue
