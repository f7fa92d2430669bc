"""Merging one module of the overlay into upstream's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import scopes
from tools.overlay.definitions import Change, Log, merge_scope
from tools.overlay.imports import merge_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.overlay.problems import Problem
    from tools.overlay.scopes import Statement


_DIRECTIVE = re.compile(r"^[ \t]*(#\s*overlay\s*:.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged module."""

    text: str
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]


def merge_module(upstream: str, overlay: str, *, path: str) -> Merged:
    """Merge the text of a module.

    Parameters
    ----------
    upstream : str
        The module as released.
    overlay : str
        What the overlay adds to it or replaces in it. Its docstring is for its readers and is left out.
    path : str
        The module's path, for messages.

    Returns
    -------
    Merged
        The text, what was done, and what was wrong: the text is of use only where nothing was.
    """
    log = Log(path)
    theirs, mine = _parse(upstream, log, "upstream's"), _parse(overlay, log, "the overlay's")
    if theirs is None or mine is None:
        return Merged(upstream, (), tuple(log.problems))
    body: Sequence[Statement] = theirs.body
    added: list[Statement] = list(mine.body)
    if added:
        lines = (*mine.header, *added[0].leading_lines)
        added[0] = added[0].with_changes(leading_lines=lines)
    if added and scopes.is_string(added[0]):
        added = added[1:]
    body, added = merge_imports(body, added, log)
    body = merge_scope(body, added, log)
    for line in mine.footer:
        if line.comment:
            log.problem(
                "",
                f"`{line.comment.value}` follows the last definition, so it has no place to go",
                "put it above a definition, or into the module docstring of the overlay's file",
            )
    ends = theirs.has_trailing_newline or len(body) > len(theirs.body)
    text = theirs.with_changes(body=body, has_trailing_newline=ends).code
    for directive in _DIRECTIVE.findall(text):
        log.problem(
            "",
            f"`{directive}` stands where it directs nothing",
            "markers go above a definition of a module, or of a class that upstream has",
        )
    return Merged(text, tuple(log.changes), tuple(log.problems))


def _parse(text: str, log: Log, whose: str) -> cst.Module | None:
    try:
        return cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        log.problem(
            "", f"{whose} text is not Python: {error.message}", f"see line {error.raw_line}"
        )
        return None
