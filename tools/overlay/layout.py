"""Lists of names as a formatter lays them out: on one line where they fit, else one name to a line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.overlay.ordering import Key

WIDTH = 100
"""Upstream's line length."""

_COMMENT = r"(?P<comment>\s*#.*)?"
_IMPORT = re.compile(rf"(?P<head>from \S+ import )\(?(?P<items>[^()#]*?)\)?{_COMMENT}")
_LIST = re.compile(rf"(?P<head>[^#=]*= )(?P<open>[\[(])(?P<items>[^#]*)(?P<close>[\])]){_COMMENT}")


def sorted_place(names: Sequence[str], name: str, key: Callable[[str], Key]) -> int:
    """Return the index at which a name belongs in a sorted list of names."""
    return next((i for i, other in enumerate(names) if key(other) > key(name)), len(names))


def insert_item(text: str, item: str, index: int, *, indent: int = 0) -> str:
    """Add an item to the list in a statement.

    Parameters
    ----------
    text : str
        A `from … import` of names, or an assignment of a list, not indented, as a formatter lays it out.
    item : str
        The text of the item.
    index : int
        Where it goes among the items that are there.
    indent : int
        How far the statement is indented where it stands.

    Returns
    -------
    str
        The statement with the item in it, and the comments where they were.

    Raises
    ------
    ValueError
        If the statement is laid out in another way.
    """
    lines = text.rstrip("\n").split("\n")
    if len(lines) == 1:
        return _insert_inline(lines[0], item, index, indent)
    rows = [i for i, line in enumerate(lines[1:-1], 1) if line.strip() and line.strip()[0] != "#"]
    laid_out = all(re.fullmatch(r"[^,#]+,(\s*#.*)?", lines[row]) for row in rows)
    if not laid_out or not re.fullmatch(r"[^#]*[(\[](\s*#.*)?", lines[0]):
        raise ValueError(f"`{lines[0]}` is not laid out one name to a line")
    lines.insert(rows[index - 1] + 1 if index else 1, f"    {item},")
    return "\n".join(lines) + "\n"


def _insert_inline(line: str, item: str, index: int, indent: int) -> str:
    match = _IMPORT.fullmatch(line) or _LIST.fullmatch(line)
    if match is None:
        raise ValueError(f"`{line}` is not a plain list of names")
    found = match.groupdict()
    items = [part.strip() for part in found["items"].split(",") if part.strip()]
    items.insert(index, item)
    return listing(
        found["head"],
        items,
        brackets=(found.get("open", ""), found.get("close", "")),
        comment=found["comment"] or "",
        indent=indent,
    )


def listing(
    head: str,
    items: Sequence[str],
    *,
    brackets: tuple[str, str] = ("", ""),
    comment: str = "",
    indent: int = 0,
) -> str:
    """Lay out a statement that ends in a list of names.

    Parameters
    ----------
    head : str
        What stands before the list.
    items : Sequence of str
        The items, in their order.
    brackets : tuple of str
        The brackets of the list; empty for an import, which is bracketed only where it must be.
    comment : str
        What follows at the end of the line.
    indent : int
        How far the statement is indented where it stands.

    Returns
    -------
    str
        The statement, ending in a newline.
    """
    opening, closing = brackets
    line = f"{head}{opening}{', '.join(items)}{closing}"
    if indent + len(line) <= WIDTH:
        return f"{line}{comment}\n"
    opening, closing = brackets if opening else ("(", ")")
    return "\n".join(
        [f"{head}{opening}{comment}", *(f"    {item}," for item in items), closing, ""]
    )


def remove_item(text: str, item: str) -> str:
    """Take an item out of the list in a `from … import` that holds others too.

    Parameters
    ----------
    text : str
        The statement, not indented, as a formatter lays it out.
    item : str
        The text of the item.

    Returns
    -------
    str
        The statement without it.
    """
    lines = text.rstrip("\n").split("\n")
    if len(lines) == 1:
        head, _, items = lines[0].partition(" import ")
        items, mark, comment = items.partition("  #")
        kept = [part.strip() for part in items.strip("()").split(",") if part.strip() != item]
        return f"{head} import {', '.join(filter(None, kept))}{mark}{comment}\n"
    kept = [line for line in lines if line.partition(",")[0].strip() != item]
    return "\n".join(kept) + "\n"
