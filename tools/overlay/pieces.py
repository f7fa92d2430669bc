"""A module or class body as a list of pieces: definitions, and what stands between them."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

type Block = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
"""What stands apart from its neighbours by blank lines."""
IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(slots=True, eq=False)
class Piece:
    """Statements that belong together: one definition, or one statement that defines nothing."""

    names: tuple[str, ...]
    """What it defines; empty for a statement that defines nothing."""
    nodes: list[ast.stmt]
    """More than one for overloads, for a property and its setter, for a field and its docstring."""
    lines: Sequence[str]
    """Those of the file."""
    start: int
    """The index of the line behind the piece before it."""
    head: int
    """The index of its first line that is neither blank nor a comment."""
    end: int
    """The index of the line behind it, and behind the comments that belong to it."""

    @property
    def name(self) -> str:
        """The name by which messages and the lock call it."""
        return self.names[0] if self.names else ""

    @property
    def is_block(self) -> bool:
        """Whether it is a function or a class."""
        return isinstance(self.nodes[0], BLOCKS)

    @property
    def above(self) -> list[str]:
        """The lines between the piece before and this one: blank ones and comments."""
        return list(self.lines[self.start : self.head])

    @property
    def own(self) -> list[str]:
        """Its lines, decorators included, without those above."""
        return list(self.lines[self.head : self.end])

    @property
    def is_alias(self) -> bool:
        """Whether it is a `type` statement."""
        return isinstance(self.nodes[0], ast.TypeAlias)

    @property
    def class_(self) -> ast.ClassDef | None:
        """The class that it is, if it is one."""
        node = self.nodes[0]
        return node if isinstance(node, ast.ClassDef) else None

    def uses(self) -> set[str]:
        """Return the names that it mentions."""
        return {n.id for node in self.nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


@dataclass(slots=True)
class Scope:
    """The body of a module or of a class."""

    pieces: list[Piece]
    tail: list[str] = field(default_factory=list)
    """The lines behind the last piece."""


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, each with its end."""
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")] if text else []


def module(text: str) -> Scope:
    """Take a module apart: all of its statements in their order, and all of its lines."""
    lines = lines_of(text)
    return _scope(ast.parse(text).body, lines, 0, len(lines), indent=0)


def members(piece: Piece) -> Scope:
    """Split the body of a class into pieces; a body on the line of the class has none."""
    node = piece.class_
    start = _header_end(piece)
    if node is None or node.body[0].lineno <= start:
        return Scope([])
    return _scope(node.body, piece.lines, start, piece.end, indent=node.body[0].col_offset)


def qualified(scope: Scope, within: str = "") -> Iterator[tuple[str, Piece]]:
    """Yield the definitions of a scope and of its classes, each with its qualified name."""
    for piece in scope.pieces:
        for name in piece.names:
            yield within + name, piece
        yield from qualified(members(piece), f"{within}{piece.name}.")


def header(piece: Piece) -> list[str]:
    """Return the lines of a class that come before its body."""
    node, end = piece.class_, _header_end(piece)
    lines = list(piece.lines[piece.head : end])
    if node and node.body[0].lineno <= end:
        line = piece.lines[end - 1].encode()
        lines[-1] = line[: node.body[0].col_offset].decode().rstrip() + "\n"
    return lines


def _header_end(piece: Piece) -> int:
    """Return the index of the line behind the colon of a class."""
    node = piece.class_
    if node is None:
        return piece.head
    last = node.lineno
    while last < node.body[0].lineno:
        if piece.lines[last - 1].partition("#")[0].rstrip().endswith(":"):
            break
        last += 1
    return last


def _scope(
    body: Sequence[ast.stmt], lines: Sequence[str], start: int, stop: int, *, indent: int
) -> Scope:
    found: list[Piece] = []
    if not body:
        return Scope([], list(lines[start:stop]))
    heads = [_head(node) for node in body]
    for node, head, following in zip(body, heads, [*heads[1:], stop], strict=True):
        end = node.end_lineno or 0
        for index in range(end, following):
            line = lines[index].lstrip()
            # A comment that is indented more deeply is part of what comes before it.
            if line.startswith("#") and len(lines[index]) - len(line) > indent:
                end = index + 1
        names = defined(node)
        last = found[-1] if found else None
        if last and (_goes_with(node, last, names) or head < last.end):
            if head < last.end:  # on the line of another statement
                last.names += names
            last.nodes.append(node)
            last.end = max(end, last.end)
        else:
            found.append(Piece(names, [node], lines, last.end if last else start, head, end))
    return Scope(found, list(lines[found[-1].end if found else start : stop]))


def _head(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, BLOCKS) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _goes_with(node: ast.stmt, last: Piece, names: tuple[str, ...]) -> bool:
    """Tell an overload, a setter, and the bare string that documents an assignment."""
    if not last.names:
        return False
    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if function and isinstance(last.nodes[-1], ast.FunctionDef | ast.AsyncFunctionDef):
        return names == last.names
    return is_string(node) and not isinstance(last.nodes[-1], (*BLOCKS, ast.Expr))


def defined(node: ast.stmt) -> tuple[str, ...]:
    """Return the names that a statement defines; an import defines none."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.TypeAlias(name=ast.Name(id=name)) | ast.AnnAssign(target=ast.Name(id=name)):
            return (name,)
        case ast.Assign(targets=targets):
            return tuple(name for target in targets for name in _targets(target))
    return ()


def _targets(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Tuple(elts=items) | ast.List(elts=items):
            for item in items:
                yield from _targets(item)


def is_string(node: ast.stmt) -> bool:
    """Tell a bare string, which is how docstrings are written."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def is_placeholder(node: ast.stmt) -> bool:
    """Tell `pass` and `...`, which stand where there is nothing to say."""
    return ast.unparse(node) in ("pass", "...")


def hidden_names(scope: Scope) -> dict[str, str]:
    """Collect the names that a scope binds by an import or inside `if`, `try` and the like, and say how."""
    found: dict[str, str] = {}
    for node in (piece.nodes[0] for piece in scope.pieces if not piece.names):
        how = f"a statement inside `{type(node).__name__.lower()}`"
        for inner in ast.walk(node):
            if isinstance(inner, ast.alias):
                imported = inner.asname or inner.name.partition(".")[0]
                found[imported] = "an import" if isinstance(node, IMPORTS) else how
            elif isinstance(inner, ast.stmt):
                found |= dict.fromkeys(defined(inner), how)
    return found
