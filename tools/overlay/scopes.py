"""A module or class body as a list of pieces: definitions, and what stands between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import libcst as cst

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

type Statement = cst.SimpleStatementLine | cst.BaseCompoundStatement

_DIRECTIVE = re.compile(r"#\s*overlay\s*:")
_MARKER = re.compile(r"# overlay: after (\S+)")
_BLANK = cst.EmptyLine(indent=False)


@dataclass(slots=True, eq=False)
class Piece:
    """Statements that belong together: one definition, or one statement that defines nothing."""

    names: tuple[str, ...]
    """What it defines; empty for a statement that defines nothing."""
    statements: list[Statement]
    """More than one for overloads, for a property and its setter, for a field and its docstring."""
    fresh: bool = False
    """Whether the overlay put it there."""

    @property
    def name(self) -> str:
        """The name by which messages and the lock call it."""
        return self.names[0]

    @property
    def leading(self) -> tuple[cst.EmptyLine, ...]:
        """The blank lines and comments above it."""
        return tuple(self.statements[0].leading_lines)

    @leading.setter
    def leading(self, lines: Iterable[cst.EmptyLine]) -> None:
        self.statements[0] = self.statements[0].with_changes(leading_lines=tuple(lines))

    @property
    def code(self) -> str:
        """Its text, not indented, without the lines above it."""
        first = self.statements[0].with_changes(leading_lines=())
        return cst.Module(body=[first, *self.statements[1:]]).code


def pieces(body: Iterable[Statement]) -> list[Piece]:
    """Group the statements of a scope.

    Parameters
    ----------
    body : Iterable of statements
        The body of a module or class.

    Returns
    -------
    list of Piece
        All of the statements in their order. Functions that follow each other under one name are one piece
        (overloads, a property with its setter), and so are an assignment and the bare string that documents it.
    """
    found: list[Piece] = []
    for statement in body:
        names = _defined(statement)
        last = found[-1] if found else None
        if last is not None and last.names:
            head = last.statements[-1]
            overloaded = isinstance(statement, cst.FunctionDef) and isinstance(
                head, cst.FunctionDef
            )
            documented = is_string(statement) and isinstance(head, cst.SimpleStatementLine)
            if (overloaded and last.names == names) or documented:
                last.statements.append(statement)
                continue
        found.append(Piece(names, [statement]))
    return found


def is_string(statement: Statement) -> bool:
    """Tell a bare string, which is how docstrings are written."""
    match statement:
        case cst.SimpleStatementLine(
            body=[cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString())]
        ):
            return True
    return False


def is_placeholder(statement: Statement) -> bool:
    """Tell `pass` and `...`, which stand where there is nothing to say."""
    match statement:
        case cst.SimpleStatementLine(body=[cst.Pass() | cst.Expr(value=cst.Ellipsis())]):
            return True
    return False


def is_import(statement: Statement) -> bool:
    """Tell an import statement."""
    match statement:
        case cst.SimpleStatementLine(body=[cst.Import() | cst.ImportFrom()]):
            return True
    return False


def is_block(statement: Statement) -> bool:
    """Tell a function or class, which stands apart from its neighbours by blank lines."""
    return isinstance(statement, cst.FunctionDef | cst.ClassDef)


def hidden_names(body: Iterable[Statement]) -> dict[str, str]:
    """Collect the names that a scope binds other than by a definition of its own.

    Parameters
    ----------
    body : Iterable of statements
        The body of a module or class.

    Returns
    -------
    dict
        For each name how it is bound: by an import, or inside `if`, `try` and the like.
    """
    found: dict[str, str] = {}
    for statement in body:
        if is_import(statement):
            found |= dict.fromkeys(imported_names(statement), "an import")
        elif isinstance(statement, cst.BaseCompoundStatement) and not is_block(statement):
            for inner in nested(statement):
                names = imported_names(inner) if is_import(inner) else _defined(inner)
                found |= dict.fromkeys(names, f"a statement inside `{_keyword(statement)}`")
    return found


def imported_names(statement: Statement) -> Iterator[str]:
    """Yield the names that an import statement binds."""
    match statement:
        case cst.SimpleStatementLine(
            body=[cst.Import(names=aliases) | cst.ImportFrom(names=aliases)]
        ) if not isinstance(aliases, cst.ImportStar):
            for alias in aliases:
                yield alias.evaluated_alias or alias.evaluated_name.partition(".")[0]


def nested(statement: cst.CSTNode) -> Iterator[Statement]:
    """Yield the simple statements, functions and classes inside of `if`, `try` and the like."""
    for child in statement.children:
        if isinstance(child, cst.SimpleStatementLine | cst.FunctionDef | cst.ClassDef):
            yield child
        else:
            yield from nested(child)


def _keyword(statement: Statement) -> str:
    return type(statement).__name__.lower()


def _defined(statement: Statement) -> tuple[str, ...]:
    match statement:
        case cst.FunctionDef(name=name) | cst.ClassDef(name=name):
            return (name.value,)
        case cst.SimpleStatementLine(body=[cst.TypeAlias(name=name)]):
            return (name.value,)
        case cst.SimpleStatementLine(body=[cst.AnnAssign(target=cst.Name(value=value))]):
            return (value,)
        case cst.SimpleStatementLine(body=[cst.Assign(targets=targets)]):
            return tuple(name for target in targets for name in _targets(target.target))
    return ()


def _targets(target: cst.BaseExpression) -> Iterator[str]:
    match target:
        case cst.Name(value=value):
            yield value
        case cst.Tuple(elements=elements) | cst.List(elements=elements):
            for element in elements:
                yield from _targets(element.value)


@dataclass(frozen=True, slots=True)
class Markers:
    """The directives among the lines above a definition."""

    after: tuple[str, ...]
    """The siblings that `# overlay: after` names; more than one is a mistake."""
    malformed: tuple[str, ...]
    """Directives that say nothing known."""


def take_markers(piece: Piece) -> Markers:
    """Strip the directives off a piece.

    Parameters
    ----------
    piece : Piece
        A piece of the overlay; the directives above it are removed from it.

    Returns
    -------
    Markers
        What they said.
    """
    after: list[str] = []
    malformed: list[str] = []
    kept: list[cst.EmptyLine] = []
    for line in piece.leading:
        comment = line.comment.value if line.comment else ""
        if match := _MARKER.fullmatch(comment.rstrip()):
            after.append(match[1])
        elif _DIRECTIVE.match(comment):
            malformed.append(comment)
        else:
            kept.append(line)
    if len(kept) < len(piece.leading):
        while kept and kept[-1].comment is None:
            kept.pop()
    piece.leading = kept
    return Markers(tuple(after), tuple(malformed))


def comments(definition: cst.ClassDef) -> str:
    """Return the first comment around the members of a class that is not part of one; empty for none."""
    lines: list[cst.EmptyLine | cst.TrailingWhitespace] = [*definition.leading_lines]
    if isinstance(definition.body, cst.IndentedBlock):
        lines += [definition.body.header, *definition.body.footer]
    return next((line.comment.value for line in lines if line.comment), "")


def attached(lines: Sequence[cst.EmptyLine]) -> tuple[cst.EmptyLine, ...]:
    """Return the comments that stand directly above a statement, no blank line between."""
    first = len(lines)
    while first and lines[first - 1].comment is not None:
        first -= 1
    return tuple(lines[first:])


def gap(lines: Sequence[cst.EmptyLine]) -> int:
    """Count the blank lines that come first."""
    return next((i for i, line in enumerate(lines) if line.comment is not None), len(lines))


def with_gap(lines: Sequence[cst.EmptyLine], count: int) -> tuple[cst.EmptyLine, ...]:
    """Return the lines with `count` blank lines first."""
    return (_BLANK,) * count + tuple(lines[gap(lines) :])
