"""Adding the overlay's imports to a module: ruff sorts them in."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from tools.overlay.pieces import IMPORTS, defined, is_string, lines_of
from tools.overlay.problems import Log


@dataclass(frozen=True, slots=True)
class Import:
    """One name that is imported."""

    module: str
    """What is imported, or imported from; with its leading dots where it is relative."""
    name: str | None
    """The name for `from … import`, `None` for a plain `import`."""
    asname: str | None

    @property
    def binds(self) -> str:
        """The name that it makes known."""
        return self.asname or self.name or self.module.partition(".")[0]

    def clashes(self, other: Import) -> bool:
        """Tell whether the two give one name two meanings; `import a.b` goes with `import a.c`."""
        packages = not (self.name or self.asname or other.name or other.asname)
        return self.binds == other.binds and self != other and not packages

    @property
    def text(self) -> str:
        """A statement that imports this alone."""
        item = (self.name or self.module) + (f" as {self.asname}" if self.asname else "")
        return f"from {self.module} import {item}" if self.name else f"import {item}"


_FLAG = Import("typing", "TYPE_CHECKING", None)


def imports_of(node: ast.AST) -> list[Import]:
    """Return what an import statement imports; nothing for another statement."""
    match node:
        case ast.Import(names=aliases):
            return [Import(a.name, None, a.asname) for a in aliases]
        case ast.ImportFrom(module=source, names=aliases, level=level):
            return [Import("." * level + (source or ""), a.name, a.asname) for a in aliases]
    return []


def is_typing(node: ast.stmt) -> TypeGuard[ast.If]:
    """Tell `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def for_typing(body: Sequence[ast.stmt]) -> list[Import]:
    """Return what a module imports for typing only."""
    blocks = [node for node in body if is_typing(node)]
    return [found for block in blocks for node in block.body for found in imports_of(node)]


def _anywhere(body: Sequence[ast.stmt]) -> Iterator[Import]:
    """Yield all that a module imports outside of functions and classes."""
    for node in body:
        if isinstance(node, (*IMPORTS, ast.If, ast.Try, ast.With)):
            yield from (found for inner in ast.walk(node) for found in imports_of(inner))


def add_imports(text: str, sources: Sequence[Sequence[ast.stmt]], log: Log) -> str:
    """Add the imports of other modules, given by their bodies, to the text of a module.

    They go somewhere among its own. One that it has for typing alone, and that is wanted at runtime, moves.
    """
    wanted: dict[Import, bool] = {}
    for source in sources:
        wanted |= dict.fromkeys(for_typing(source), True)
    for source in sources:
        wanted |= dict.fromkeys((i for node in source for i in imports_of(node)), False)
    text = _without_typing(text, {found for found, late in wanted.items() if not late})
    body = ast.parse(text).body
    known = set(_anywhere(body))
    new = {i: late for i, late in wanted.items() if i not in known and not _taken(i, body, log)}
    late = [found for found, only_typing in new.items() if only_typing]
    early = [found for found, only_typing in new.items() if not only_typing]
    if late and _FLAG not in known:
        early = list(dict.fromkeys([*early, _FLAG]))
    lines = lines_of(text)
    imports = [node for node in body if imports_of(node)]
    block = next((node for node in body if is_typing(node)), None)
    docstring = body[0].end_lineno or 0 if body and is_string(body[0]) else 0
    insertions: dict[int, list[str]] = {}
    for each in early:
        at = _behind(each, imports) if imports else docstring
        insertions.setdefault(at, [] if imports else ["\n"]).append(f"{each.text}\n")
    if late and block:
        at, indent = block.body[0].lineno - 1, " " * block.body[0].col_offset
        insertions.setdefault(at, []).extend(f"{indent}{i.text}\n" for i in late)
    elif late:
        at = _end_of_run(body, imports[0]) if imports else docstring
        block_lines = ["\n", "if TYPE_CHECKING:\n", *(f"    {i.text}\n" for i in late), "\n"]
        insertions.setdefault(at, []).extend(block_lines)
    for at in sorted(insertions, reverse=True):
        lines[at:at] = insertions[at]
    return "".join(lines)


def _behind(wanted: Import, imports: Sequence[ast.stmt]) -> int:
    """Return the index of the line behind an import of the same package, else behind the first import."""
    package = wanted.module.partition(".")[0]
    alike = [node for node in imports if imports_of(node)[0].module.partition(".")[0] == package]
    return (alike or imports)[0].end_lineno or 0


def _without_typing(text: str, wanted: set[Import]) -> str:
    """Take imports that are wanted at runtime out of the `if TYPE_CHECKING:` blocks."""
    lines = lines_of(text)
    blocks = [node for node in ast.parse(text).body if is_typing(node)]
    for node in reversed([node for block in blocks for node in block.body]):
        start, end = node.lineno - 1, node.end_lineno or 0
        kept = [i for i in imports_of(node) if i not in wanted]
        if len(kept) == len(imports_of(node)) or "#" in "".join(lines[start:end]):
            continue
        indent = " " * node.col_offset
        lines[start:end] = [f"{indent}{found.text}\n" for found in kept] or [f"{indent}pass\n"]
    return "".join(lines)


def _end_of_run(body: Sequence[ast.stmt], first: ast.stmt) -> int:
    """Return the index of the line behind the imports that follow each other."""
    run = body.index(first)
    while run + 1 < len(body) and imports_of(body[run + 1]):
        run += 1
    return body[run].end_lineno or 0


def _taken(wanted: Import, body: Sequence[ast.stmt], log: Log) -> bool:
    """Refuse an import whose name stands for something else in the module."""
    others = [f"`{i.text}`" for i in _anywhere(body) if i.clashes(wanted)]
    if any(wanted.binds in defined(node) for node in body):
        others.append(f"a definition of `{wanted.binds}`")
    for other in others[:1]:
        what = f"the overlay has `{wanted.text}`, but upstream has {other}"
        log.problem("", what, "import it under another name")
    return bool(others)
