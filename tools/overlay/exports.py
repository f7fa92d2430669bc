"""The union of two `__all__`."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import layout, ordering

if TYPE_CHECKING:
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
    names = _names(upstream)
    missing = [name for name in _names(overlay) if name not in names]
    if not missing:
        return upstream, []
    (statement,) = upstream
    text = cst.Module([statement.with_changes(leading_lines=())]).code
    for name in missing:
        names = _names([cst.parse_module(text).body[0]])
        text = layout.insert_item(
            text, f'"{name}"', layout.sorted_place(names, name, ordering.export)
        )
    merged = cst.parse_module(text).body[0]
    return [merged.with_changes(leading_lines=statement.leading_lines)], missing


def _names(statements: list[Statement]) -> list[str]:
    code = cst.Module(statements).code
    match ast.parse(code).body:
        case [ast.Assign(value=ast.List() | ast.Tuple() as value)]:
            pass
        case [ast.AnnAssign(value=ast.List() | ast.Tuple() as value)]:
            pass
        case _:
            raise ValueError("`__all__` is not a plain list of names")
    names = [item.value for item in value.elts if isinstance(item, ast.Constant)]
    if len(names) < len(value.elts) or not all(isinstance(name, str) for name in names):
        raise ValueError("`__all__` holds more than names")
    return [name for name in names if isinstance(name, str)]
