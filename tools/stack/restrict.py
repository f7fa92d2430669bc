"""Leaving out of a file of the overlay what belongs to later pull requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import exports, imports, scopes
from tools.overlay.markdown import headings, marker_of
from tools.stack.leaves import EXPORTS, defined, members
from tools.stack.uses import Uses, uses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from tools.overlay.scopes import Piece, Statement

_FUTURE = imports.Import("__future__", "annotations", None)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known of a module or class whose body is restricted."""

    kept: Collection[str]
    """The qualified names of all that stays."""
    theirs: Collection[str]
    """The qualified names of what upstream's module defines."""
    opened: bool
    """Whether it is merged into one of upstream's: then markers order it."""
    within: str = ""
    """The qualified name of the class, empty for a module."""

    def name(self, piece: Piece) -> str:
        """The qualified name of a definition."""
        return f"{self.within}.{piece.name}" if self.within else piece.name


def restrict_module(
    text: str, kept: Collection[str], upstream: str | None, *, final: str | None = None
) -> str:
    """Leave out the definitions of a module that do not stay, and imports that only these use.

    Parameters
    ----------
    text : str
        The overlay's module.
    kept : Collection of str
        The qualified names of what stays.
    upstream : str or None
        Upstream's module, if it has one.
    final : str, optional
        The overlay's module as it is in the end, if `text` has definitions in an earlier form.

    Returns
    -------
    str
        The module. Definitions that stay keep their order, also where a marker names a sibling that is
        left out.
    """
    module = cst.parse_module(text)
    theirs = defined(upstream) if upstream is not None else set()
    scope = Scope(kept, theirs, opened=upstream is not None)
    body = _restrict(list(module.body), scope)
    before = list(module.body)
    if final is not None and final != text:
        before += cst.parse_module(final).body
    body = _without_imports(before, body, new=upstream is None)
    if not scope.opened:
        body = imports.laid_out(_spaced(body, list(module.body), depth=0))
    return module.with_changes(body=body).code


def _restrict(body: list[Statement], scope: Scope) -> list[Statement]:
    """Leave out what does not stay, imports aside."""
    before = scopes.pieces(body)
    gone = {name for piece in before if not _stays(piece, scope) for name in piece.names}
    stays: list[Piece] = []
    for piece in before:
        if piece.names == (EXPORTS,) and not scope.within:
            piece.statements = _exports(piece, before, gone, scope)
            if piece.statements:
                stays.append(piece)
        elif not piece.names:
            if _keeps_statement(piece, gone):
                stays.append(piece)
        elif not gone.intersection(piece.names):
            statement = piece.statements[0]
            if isinstance(statement, cst.ClassDef):
                piece.statements[0] = _restrict_class(statement, scope, scope.name(piece))
            stays.append(piece)
    if scope.opened and gone:
        _remark(body, stays, scope)
    return [statement for piece in stays for statement in piece.statements]


def _stays(piece: Piece, scope: Scope) -> bool:
    """Tell whether a definition stays; a class of upstream's does if one of its members does."""
    if not piece.names or piece.names == (EXPORTS,):
        return True
    name = scope.name(piece)
    statement = piece.statements[0]
    if isinstance(statement, cst.ClassDef) and name in scope.theirs:
        inner = Scope(scope.kept, scope.theirs, opened=True, within=name)
        found = scopes.pieces(members(statement))
        named = [member for member in found if member.names]
        return not named or any(_stays(member, inner) for member in named)
    return name in scope.kept


def _restrict_class(definition: cst.ClassDef, scope: Scope, name: str) -> cst.ClassDef:
    body = members(definition)
    if not body:
        return definition
    opened = scope.opened and name in scope.theirs
    stays = _restrict(body, Scope(scope.kept, scope.theirs, opened, within=name))
    if not opened:
        stays = _spaced(stays, body, depth=1)
    if len(stays) == len(body) and all(a is b for a, b in zip(stays, body, strict=True)):
        return definition
    return definition.with_deep_changes(definition.body, body=stays)


def _exports(
    piece: Piece, siblings: Iterable[Piece], gone: Collection[str], scope: Scope
) -> list[Statement]:
    """Leave out of `__all__` what is left out of the module, or stands for an import that is."""
    here = {name for sibling in siblings for name in sibling.names}
    unwanted = {
        name
        for name in exports.names(piece.statements)
        if name in gone or (name not in here and name not in scope.kept)
    }
    return exports.without(piece.statements, unwanted)


def _keeps_statement(piece: Piece, gone: set[str]) -> bool:
    """Tell whether a statement that defines nothing stays: it does unless it uses what is left out."""
    (statement,) = piece.statements
    if scopes.is_import(statement) or scopes.is_string(statement):
        return True
    return not gone.intersection(uses(cst.Module([statement]).code, postponed=True).all)


def _remark(body: Iterable[Statement], stays: Sequence[Piece], scope: Scope) -> None:
    """Write markers anew, so that what stays has the order that it has when nothing is left out."""
    left = {piece.names: piece for piece in stays if piece.names}
    for anchor, sequence in _sequences(body, scope):
        before = anchor
        for names in sequence:
            if piece := left.get(names):
                _mark(piece, before)
                before = piece.name


def _sequences(
    body: Iterable[Statement], scope: Scope
) -> Iterator[tuple[str | None, list[tuple[str, ...]]]]:
    """Yield the added definitions in the order in which a merge puts them, behind each anchor."""
    prefix = f"{scope.within}." if scope.within else ""
    added: dict[tuple[str, ...], str | None] = {}
    for piece in scopes.pieces(body):
        if piece.names and not any(prefix + name in scope.theirs for name in piece.names):
            after = scopes.take_markers(piece).after
            added[piece.names] = after[0] if after else None
    known: dict[str | None, tuple[str, ...]] = {n: names for names in added for n in names}
    followers: dict[object, list[tuple[str, ...]]] = {}
    anchors: dict[str | None, None] = {}
    for names, sibling in added.items():
        if sibling in known:
            followers.setdefault(known[sibling], []).append(names)
        else:
            anchors[sibling] = None
            followers.setdefault(sibling, []).append(names)

    def chain(above: object) -> Iterator[tuple[str, ...]]:
        for names in followers.pop(above, ()):
            yield names
            yield from chain(names)

    for anchor in anchors:
        yield anchor, list(chain(anchor))


def _mark(piece: Piece, after: str | None) -> None:
    """Let a marker above a definition name the sibling that it follows."""
    scopes.take_markers(piece)
    if after is not None:
        lines = piece.leading
        place = scopes.gap(lines)
        comment = cst.EmptyLine(comment=cst.Comment(f"# overlay: after {after}"))
        piece.leading = (*lines[:place], comment, *lines[place:])


def _without_imports(
    before: Sequence[Statement], body: list[Statement], *, new: bool
) -> list[Statement]:
    """Take out imports that only served what is left out, and let those serve typing that do no more."""
    postponed = _FUTURE in imports.at_runtime(before)
    was, now = (_uses(part, postponed=postponed) for part in (before, body))
    lost = was.all - now.all
    for unwanted in [*imports.at_runtime(body), *imports.for_typing(body)]:
        if unwanted.binds in lost and unwanted.binds != "TYPE_CHECKING":
            body = imports.take_out(body, unwanted)
    if postponed:
        needed = {i.module for i in imports.at_runtime(body) if i.binds in now.at_runtime}
        for found in imports.at_runtime(body):
            only = found.binds in was.at_runtime and found.binds not in now.at_runtime
            if only and found.module not in needed and found.binds in now.for_typing:
                body = imports.put_for_typing(imports.take_out(body, found), found)
    if new and not imports.for_typing(body) and "TYPE_CHECKING" not in _uses(body).all:
        for found in imports.at_runtime(body):
            if found.binds == "TYPE_CHECKING":
                body = imports.take_out(body, found)
    return body


def _uses(body: Iterable[Statement], *, postponed: bool = True) -> Uses:
    rest = [s for s in body if not scopes.is_import(s) and not imports.is_typing_block(s)]
    return uses(cst.Module(rest).code, postponed=postponed)


def _spaced(body: list[Statement], before: Sequence[Statement], *, depth: int) -> list[Statement]:
    """Give what has a new neighbour above it the blank lines that a formatter would give it."""
    above = dict(zip(map(_identity, before), [None, *map(_identity, before)], strict=False))
    spaced: list[Statement] = []
    for statement in body:
        last = spaced[-1] if spaced else None
        known = above.get(_identity(statement), "")
        if known != (_identity(last) if last is not None else None):
            lines = scopes.with_gap(
                statement.leading_lines, _gap(last, statement, first=len(spaced) == 1, depth=depth)
            )
            statement = statement.with_changes(leading_lines=lines)
        spaced.append(statement)
    return spaced


def _identity(statement: Statement) -> str:
    """Return what tells a statement from others even if the lines above it or its members change."""
    if scopes.is_block(statement):
        kind, name = type(statement).__name__, statement.name.value  # type: ignore[union-attr]
        return f"{kind} {name}"
    return cst.Module([statement.with_changes(leading_lines=())]).code


def _gap(above: Statement | None, statement: Statement, *, first: bool, depth: int) -> int:
    if above is None:
        return 0
    if scopes.is_block(above) or scopes.is_block(statement):
        return 1 if depth else 2
    own = min(scopes.gap(statement.leading_lines), 1)
    compound = isinstance(above, cst.BaseCompoundStatement)
    imported = scopes.is_import(above) and not scopes.is_import(statement)
    return 1 if compound or imported or (first and scopes.is_string(above)) else own


def restrict_document(text: str, kept: Collection[str], *, theirs: Collection[str] | None) -> str:
    """Leave out the sections of a document that do not stay.

    Parameters
    ----------
    text : str
        The overlay's document.
    kept : Collection of str
        The headings of the sections that stay. A section reaches to the next heading, whatever its level.
    theirs : Collection of str or None
        The headings of upstream's document, if it has one.

    Returns
    -------
    str
        The document.
    """
    lines = text.splitlines(keepends=True)
    found = headings(lines)
    markers = {heading.text: marker_of(lines, heading) for heading in found}
    starts = [_start(lines, heading.line, markers[heading.text]) for heading in found]
    out = lines[: starts[0]] if starts else lines
    ends = [*starts[1:], len(lines)]
    for heading, end in zip(found, ends[: len(found)], strict=True):
        if heading.text not in kept:
            continue
        marker = _nearest(heading.text, markers, {*kept, *(theirs or ())})
        if marker is not None:
            out.append(f"<!-- overlay: after {marker} -->\n")
        section = lines[heading.line : end]
        out += section
    while out and not out[-1].strip():
        out.pop()
    return "".join(out)


def _start(lines: Sequence[str], line: int, marker: str | None) -> int:
    """Return the line at which a section starts: that of its marker, else of its heading."""
    if marker is not None:
        while "overlay" not in lines[line]:
            line -= 1
    return line


def _nearest(heading: str, markers: Mapping[str, str | None], known: Collection[str]) -> str | None:
    """Follow markers until one names a heading that is there."""
    after = markers[heading]
    while after is not None and after not in known:
        after = markers.get(after)
    return after
