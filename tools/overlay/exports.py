"""The union of two `__all__`."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import layout, ordering

if TYPE_CHECKING:
    from collections.abc import Collection

    from tools.overlay.scopes import Statement


def union(upstream: list[Statement], overlay: list[Statement]) -> tuple[list[Statement], list[str]]:
    """Add the names that the overlay exports to those that upstream exports.

    Parameters
    ----------
    upstream, overlay : list of statements
        The two assignments of `__all__`.

    Returns
    -------
    tuple
        Upstream's assignment, with the other names where sorting puts them, and those names.

    Raises
    ------
    ValueError
        If one of the two is not a list or tuple of strings, or the overlay's has comments.
    """
    if "#" in cst.Module(overlay).code:
        raise ValueError("the overlay's `__all__` carries a comment, which has no place to go")
    known = names(upstream)
    missing = [name for name in names(overlay) if name not in known]
    if not missing:
        return upstream, []
    (statement,) = upstream
    text = cst.Module([statement.with_changes(leading_lines=())]).code
    for name in missing:
        known = names([cst.parse_module(text).body[0]])
        text = layout.insert_item(
            text, f'"{name}"', layout.sorted_place(known, name, ordering.export)
        )
    merged = cst.parse_module(text).body[0]
    return [merged.with_changes(leading_lines=statement.leading_lines)], missing


def without(statements: list[Statement], unwanted: Collection[str]) -> list[Statement]:
    """Take names out of an assignment of `__all__`.

    Parameters
    ----------
    statements : list of statements
        The assignment.
    unwanted : Collection of str
        The names; those that it does not hold do no harm.

    Returns
    -------
    list of statements
        The assignment of the others; nothing where there are none.
    """
    kept = [name for name in names(statements) if name not in unwanted]
    if len(kept) == len(names(statements)):
        return statements
    statement = statements[0]
    code = cst.Module([statement.with_changes(leading_lines=())]).code
    head, opening = code[: code.index("=") + 2], code[code.index("=") + 2]
    text = layout.listing(
        head,
        [f'"{name}"' for name in kept],
        brackets=(opening, {"[": "]", "(": ")"}[opening]),
    )
    return [
        parsed.with_changes(leading_lines=statement.leading_lines)
        for parsed in cst.parse_module(text).body
        if kept
    ]


def names(statements: list[Statement]) -> list[str]:
    """Return the names in an assignment of `__all__`.

    Parameters
    ----------
    statements : list of statements
        The assignment.

    Returns
    -------
    list of str
        The names, in their order.

    Raises
    ------
    ValueError
        If it is not a list or tuple of strings.
    """
    code = cst.Module(statements).code
    match ast.parse(code).body:
        case [ast.Assign(value=ast.List() | ast.Tuple() as value)]:
            pass
        case [ast.AnnAssign(value=ast.List() | ast.Tuple() as value)]:
            pass
        case _:
            raise ValueError("`__all__` is not a plain list of names")
    found = [item.value for item in value.elts if isinstance(item, ast.Constant)]
    if len(found) < len(value.elts) or not all(isinstance(name, str) for name in found):
        raise ValueError("`__all__` holds more than names")
    return [name for name in found if isinstance(name, str)]
