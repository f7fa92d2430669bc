"""Which names some code uses, and whether they must be there when it runs."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(slots=True)
class Uses:
    """The names that code uses."""

    at_runtime: set[str] = field(default_factory=set)
    for_typing: set[str] = field(default_factory=set)
    """Those in annotations that nothing evaluates, in type aliases, and in the text of a cast."""

    @property
    def all(self) -> set[str]:
        """Both."""
        return self.at_runtime | self.for_typing


def uses(code: str, *, postponed: bool) -> Uses:
    """Find the names that some code uses.

    Parameters
    ----------
    code : str
        Statements, not indented.
    postponed : bool
        Whether `from __future__ import annotations` holds there.

    Returns
    -------
    Uses
        The names; of an attribute, what it is an attribute of. What `__all__` lists is used at runtime.
    """
    found = Uses()
    _Visitor(found, postponed=postponed).visit(ast.parse(code))
    return found


class _Visitor(ast.NodeVisitor):
    def __init__(self, found: Uses, *, postponed: bool) -> None:
        self._found = found
        self._postponed = postponed
        self._names = found.at_runtime
        self._local: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in self._local:
            self._names.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self._annotation(node.annotation)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for name, value in ast.iter_fields(node):
            if name == "returns":
                self._annotation(value)
            elif name == "type_params":
                self._typing(*value)
            elif name == "body":
                self._inside(value, node.args)
            else:
                self._visit_all(value)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._inside([node.body], node.args)

    def _inside(self, body: Sequence[ast.AST], arguments: ast.arguments) -> None:
        """Visit the body of a function: what is bound there is not what its module binds."""
        before = self._local
        inner = set(_bound(body))
        free = {name for n in body if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
        parameters = {node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)}
        self._local = (before | inner | parameters) - free
        self._visit_all(list(body))
        self._local = before

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._annotation(node.annotation)
        self._visit_all(node.value)

    def visit_TypeAlias(self, node: ast.TypeAlias) -> None:
        self._typing(node.value, *node.type_params)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self._found.at_runtime.update(
                item.value
                for item in ast.walk(node.value)
                if isinstance(item, ast.Constant) and isinstance(item.value, str)
            )
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        first = node.args[0] if node.args else None
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        if called == "cast" and isinstance(first, ast.Constant):
            self._typing(first)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self._names is self._found.for_typing and isinstance(node.value, str):
            try:
                self.visit(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                return

    def _annotation(self, node: ast.expr | None) -> None:
        if node is None:
            return
        if self._postponed:
            self._typing(node)
        else:
            self.visit(node)
            self._typing(*(n for n in ast.walk(node) if isinstance(n, ast.Constant)))

    def _typing(self, *nodes: ast.AST) -> None:
        before, self._names = self._names, self._found.for_typing
        self._visit_all(list(nodes))
        self._names = before

    def _visit_all(self, value: object) -> None:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                self.visit(item)


def _bound(body: Sequence[ast.AST]) -> Iterator[str]:
    """Yield the names that the body of a function binds, other than in functions within it."""
    for node in body:
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case (
                ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp()
            ):
                pass
            case _:
                yield from _bound(list(ast.iter_child_nodes(node)))
