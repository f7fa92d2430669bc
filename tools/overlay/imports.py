"""Adding imports to a module, where a person would put them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import libcst as cst

from tools.overlay import layout, ordering, scopes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tools.overlay.definitions import Log
    from tools.overlay.scopes import Statement


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

    @property
    def is_package(self) -> bool:
        """Whether it is `import a.b`, which goes together with `import a.c`."""
        return self.name is None and self.asname is None

    def clashes(self, other: Import) -> bool:
        """Tell whether the two give one name two meanings."""
        packages = self.is_package and other.is_package
        return self.binds == other.binds and self != other and not packages

    @property
    def item(self) -> str:
        """What stands behind `import`."""
        return (self.name or self.module) + (f" as {self.asname}" if self.asname else "")

    @property
    def text(self) -> str:
        """A statement that imports this alone."""
        return f"from {self.module} import {self.item}" if self.name else f"import {self.item}"

    def statement(self, indent: int) -> str:
        """The same, laid out for where it stands."""
        if self.name is None:
            return f"{self.text}\n"
        return layout.listing(f"from {self.module} import ", [self.item], indent=indent)

    @property
    def key(self) -> ordering.Key:
        """Where a statement that imports this alone sorts."""
        members = ((self.name, self.asname),) if self.name else ()
        return ordering.statement(self.module, members, None if self.name else self.asname)


_FLAG = Import("typing", "TYPE_CHECKING", None)


def imports_of(statement: Statement) -> list[Import]:
    """Return what an import statement imports, in its order; nothing for another statement."""
    match statement:
        case cst.SimpleStatementLine(body=[cst.Import(names=aliases)]):
            return [Import(a.evaluated_name, None, a.evaluated_alias) for a in aliases]
        case cst.SimpleStatementLine(body=[cst.ImportFrom() as node]):
            module = "." * len(node.relative) + (_dotted(node.module) if node.module else "")
            if isinstance(node.names, cst.ImportStar):
                return [Import(module, "*", None)]
            return [Import(module, a.evaluated_name, a.evaluated_alias) for a in node.names]
    return []


def merge_imports(
    upstream: Sequence[Statement], overlay: Sequence[Statement], log: Log
) -> tuple[list[Statement], list[Statement]]:
    """Add the imports of the overlay's module to upstream's.

    Parameters
    ----------
    upstream, overlay : Sequence of statements
        The two module bodies.
    log : Log
        Takes what was wrong.

    Returns
    -------
    tuple of two lists of statements
        Upstream's body with the imports, and what is left of the overlay's body without them.
    """
    runtime: list[Import] = []
    typing: list[Import] = []
    rest: list[Statement] = []
    for statement in overlay:
        if scopes.is_import(statement):
            _refuse_comments(statement, log)
            runtime += imports_of(statement)
        elif _is_typing(statement):
            _refuse_comments(statement, log)
            block = _block(statement)
            if statement.orelse or not all(map(scopes.is_import, block)):
                log.problem(
                    "",
                    "the overlay's `if TYPE_CHECKING:` holds more than imports",
                    "keep imports there, and put the rest at module level",
                )
            typing += [found for inner in block for found in imports_of(inner)]
        else:
            rest.append(statement)

    # The condition comes with the block that needs it.
    wanted = [(name, False) for name in runtime if name != _FLAG] + [
        (name, True) for name in typing
    ]
    body = list(upstream)
    for name, for_typing in wanted:
        if name in _anywhere(body, typing=for_typing) or _taken(name, body, log):
            continue
        try:
            body = _add_typing(body, name) if for_typing else _add(_without(body, name), name)
        except ValueError as error:
            log.problem("", f"`{name.text}` cannot be added: {error}", "write the import elsewhere")
    return body, rest


def take_out(body: Sequence[Statement], unwanted: Import) -> list[Statement]:
    """Take an import out of a module: what stands at its top level, or for typing only.

    Parameters
    ----------
    body : Sequence of statements
        The body of the module.
    unwanted : Import
        The import.

    Returns
    -------
    list of statements
        The body without it, and without the statement or block that held no other.
    """
    remaining = _without(list(body), unwanted)
    for place, statement in enumerate(remaining):
        if unwanted in imports_of(statement):
            return _drop(remaining, place, unwanted)
    return remaining


def put_for_typing(body: Sequence[Statement], wanted: Import) -> list[Statement]:
    """Add an import that is for typing only.

    Parameters
    ----------
    body : Sequence of statements
        The body of the module.
    wanted : Import
        The import.

    Returns
    -------
    list of statements
        The body with it in the `if TYPE_CHECKING:` block, which is made where there is none.
    """
    return _add_typing(list(body), wanted)


def laid_out(body: Sequence[Statement], *, indent: int = 0) -> list[Statement]:
    """Put imports on one line that fit there; those with comments are left as they are.

    Parameters
    ----------
    body : Sequence of statements
        The body of a module, or of its `if TYPE_CHECKING:` block.
    indent : int
        How far it is indented.

    Returns
    -------
    list of statements
        The body.
    """
    made: list[Statement] = []
    for statement in body:
        code = cst.Module([statement.with_changes(leading_lines=())]).code
        found = imports_of(statement)
        if _is_typing(statement):
            made.append(_with_block(statement, laid_out(_block(statement), indent=4)))
        elif found and found[0].name and code.count("\n") > 1 and "#" not in code:
            items = [i.item for i in found]
            text = layout.listing(f"from {found[0].module} import ", items, indent=indent)
            made.append(_parse(text, statement.leading_lines))
        else:
            made.append(statement)
    return made


def at_runtime(body: Sequence[Statement]) -> list[Import]:
    """Return what the import statements at the top level of a module import."""
    return [found for statement in body for found in imports_of(statement)]


def for_typing(body: Sequence[Statement]) -> list[Import]:
    """Return what a module imports for typing only."""
    return [
        found
        for statement in body
        if _is_typing(statement)
        for inner in _block(statement)
        for found in imports_of(inner)
    ]


def is_typing_block(statement: Statement) -> bool:
    """Tell an `if TYPE_CHECKING:` that holds nothing but imports."""
    return (
        _is_typing(statement)
        and not statement.orelse
        and all(map(scopes.is_import, _block(statement)))
    )


def _refuse_comments(statement: Statement, log: Log) -> None:
    """Refuse comments on an import, which would have no sure place in a statement that upstream has."""
    for line in cst.Module([statement]).code.splitlines():
        if "#" in line:
            log.problem(
                "",
                f"`{line.strip()}` is a comment on an import, which has no place to go",
                "put it into the module docstring of the overlay's file",
            )


def _anywhere(body: Sequence[Statement], *, typing: bool) -> Iterator[Import]:
    """Yield all that a module imports outside of functions, with or without what is for typing only."""
    for statement in body:
        if scopes.is_import(statement):
            yield from imports_of(statement)
        elif isinstance(statement, cst.If | cst.Try | cst.With) and (
            typing or not _is_typing(statement)
        ):
            for inner in scopes.nested(statement):
                yield from imports_of(inner)


def _taken(wanted: Import, body: Sequence[Statement], log: Log) -> bool:
    """Refuse an import whose name stands for something else in upstream's module."""
    others = [f"`{i.text}`" for i in _anywhere(body, typing=True) if i.clashes(wanted)]
    others += [
        f"a definition of `{name}`"
        for piece in scopes.pieces(body)
        for name in piece.names
        if name == wanted.binds
    ]
    for other in others[:1]:
        log.problem(
            "",
            f"the overlay has `{wanted.text}`, but upstream has {other}",
            "import it under another name",
        )
    return bool(others)


def _add(body: list[Statement], wanted: Import, *, indent: int = 0) -> list[Statement]:
    """Add one import to a list of statements: to a statement that is there, else by one of its own."""
    if wanted.name and not wanted.asname and wanted.name != "*":
        for index, statement in enumerate(body):
            found = imports_of(statement)
            if _extensible(found, wanted):
                names = [i.name or "" for i in found]
                place = layout.sorted_place(names, wanted.name, ordering.member)
                code = cst.Module([statement.with_changes(leading_lines=())]).code
                text = layout.insert_item(code, wanted.item, place, indent=indent)
                return [*body[:index], _parse(text, statement.leading_lines), *body[index + 1 :]]
    index = _place(body, wanted)
    new = _parse(wanted.statement(indent))
    before = body[index - 1] if index else None
    if before is not None and _section(before) != ordering.section(wanted.module):
        new = new.with_changes(leading_lines=scopes.with_gap((), 1))
    merged = [*body[:index], new, *body[index:]]
    if index < len(body):
        same = _section(body[index]) == ordering.section(wanted.module)
        merged[index + 1] = _apart(body[index], 0 if same else 1, 1 if indent else 2)
    return merged


def _apart(statement: Statement, gap: int, around: int) -> Statement:
    """Return the statement with the blank lines that it needs after imports.

    Another import needs `gap`, a function or class `around`, and anything else one at least.
    """
    lines = statement.leading_lines
    if not scopes.is_import(statement):
        gap = around if scopes.is_block(statement) else max(1, scopes.gap(lines))
    return statement.with_changes(leading_lines=scopes.with_gap(lines, gap))


def _extensible(found: list[Import], wanted: Import) -> bool:
    """Tell whether a statement imports plain names from the module that another is wanted from."""
    return bool(found) and all(
        i.module == wanted.module and i.name not in (None, "*") and not i.asname for i in found
    )


def _place(body: Sequence[Statement], wanted: Import) -> int:
    """Find where a new import statement goes: sorted into a run of imports that has its section."""
    runs = _runs(body)
    if not runs:
        return 1 if body and scopes.is_string(body[0]) else 0
    section = ordering.section(wanted.module)
    chosen = next((run for run in runs if any(_section(body[i]) == section for i in run)), runs[0])
    for index in chosen:
        if min(i.key for i in imports_of(body[index])) > wanted.key:
            return index
    return chosen[-1] + 1


def _runs(body: Sequence[Statement]) -> list[list[int]]:
    """Return the indexes of the imports, grouped where nothing stands between them."""
    runs: list[list[int]] = []
    for index, statement in enumerate(body):
        if not imports_of(statement):
            continue
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _section(statement: Statement) -> int | None:
    found = imports_of(statement)
    return ordering.section(found[0].module) if found else None


def _add_typing(body: list[Statement], wanted: Import) -> list[Statement]:
    """Add one import to the `if TYPE_CHECKING:` block, which is made where there is none."""
    blocks = {i: statement for i, statement in enumerate(body) if _is_typing(statement)}
    if not blocks:
        return _with_typing_block(body, wanted)
    chosen = next(
        (
            index
            for index, block in blocks.items()
            if any(_extensible(imports_of(statement), wanted) for statement in _block(block))
        ),
        min(blocks),
    )
    changed = _add(_block(blocks[chosen]), wanted, indent=4)
    return [*body[:chosen], _with_block(blocks[chosen], changed), *body[chosen + 1 :]]


def _with_typing_block(body: list[Statement], wanted: Import) -> list[Statement]:
    """Make the block, after the imports among which its condition is imported."""
    if _FLAG not in _anywhere(body, typing=False):
        body = _add(body, _FLAG)
    run = next(run for run in _runs(body) if any(_FLAG in imports_of(body[i]) for i in run))
    index = run[-1] + 1
    lines = textwrap.indent(wanted.statement(4), "    ")
    block = _parse(f"if TYPE_CHECKING:\n{lines}", scopes.with_gap((), 1))
    following = [_apart(statement, 1, 2) for statement in body[index : index + 1]]
    return [*body[:index], block, *following, *body[index + 1 :]]


def _with_block(conditional: cst.If, block: list[Statement]) -> cst.If:
    return conditional.with_deep_changes(conditional.body, body=block)


def _without_flag(body: list[Statement]) -> list[Statement]:
    """Take out the import of `TYPE_CHECKING` where nothing needs it any more."""
    if cst.Module(body).code.count(_FLAG.item) != 1:
        return body
    place = next((i for i, statement in enumerate(body) if _FLAG in imports_of(statement)), None)
    return body if place is None else _drop(body, place, _FLAG)


def _without(body: list[Statement], unwanted: Import) -> list[Statement]:
    """Take an import out of the `if TYPE_CHECKING:` blocks."""
    for index, statement in enumerate(body):
        if not _is_typing(statement):
            continue
        block = _block(statement)
        for place, inner in enumerate(block):
            if unwanted in imports_of(inner):
                if changed := _drop(block, place, unwanted):
                    return [*body[:index], _with_block(statement, changed), *body[index + 1 :]]
                return _without_flag([*body[:index], *body[index + 1 :]])
    return body


def _drop(block: list[Statement], place: int, unwanted: Import) -> list[Statement]:
    """Take an import out of the statement that holds it, and the statement with it if it held no other."""
    statement = block[place]
    if imports_of(statement) == [unwanted]:
        remaining = [*block[:place], *block[place + 1 :]]
        if place < len(remaining):
            gap = scopes.gap(statement.leading_lines)
            if scopes.gap(remaining[place].leading_lines) < gap or place == 0:
                lines = scopes.with_gap(remaining[place].leading_lines, gap)
                remaining[place] = remaining[place].with_changes(leading_lines=lines)
        return remaining
    code = cst.Module([statement.with_changes(leading_lines=())]).code
    text = layout.remove_item(code, unwanted.item)
    return [*block[:place], _parse(text, statement.leading_lines), *block[place + 1 :]]


def _is_typing(statement: Statement) -> TypeGuard[cst.If]:
    """Tell `if TYPE_CHECKING:`."""
    match statement:
        case cst.If(
            test=cst.Name(value="TYPE_CHECKING")
            | cst.Attribute(value=cst.Name(value="typing"), attr=cst.Name(value="TYPE_CHECKING")),
            body=cst.IndentedBlock(),
        ):
            return True
    return False


def _block(conditional: cst.If) -> list[Statement]:
    return list(conditional.body.body)  # type: ignore[arg-type]


def _parse(text: str, leading: Iterable[cst.EmptyLine] = ()) -> Statement:
    (statement,) = cst.parse_module(text).body
    return statement.with_changes(leading_lines=tuple(leading))


def _dotted(node: cst.BaseExpression) -> str:
    return cst.Module([]).code_for_node(node)
