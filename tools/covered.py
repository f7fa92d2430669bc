"""How much of what the overlay adds and replaces its tests cover: lines and branches."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.overlay.tree import Plan

REQUIRED = 95
"""Percent of the lines, and percent of the branches."""


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of one definition, or of several together, was executed."""

    name: str
    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_run: int = 0
    missing: tuple[str, ...] = ()
    """Lines that were not run, `12-14`, and branches that were not taken, `20->23`."""

    def enough(self) -> bool:
        """Tell whether as much is covered as is required."""
        return (
            self.lines_run * 100 >= self.lines * REQUIRED
            and self.branches_run * 100 >= self.branches * REQUIRED
        )

    @staticmethod
    def total(name: str, rows: Iterable[Covered]) -> Covered:
        """Add up several."""
        rows = list(rows)
        return Covered(
            name,
            sum(row.lines for row in rows),
            sum(row.lines_run for row in rows),
            sum(row.branches for row in rows),
            sum(row.branches_run for row in rows),
        )


def modules(plan: Plan) -> dict[str, set[str] | None]:
    """Return what the overlay has in each module.

    Parameters
    ----------
    plan : Plan
        The merge.

    Returns
    -------
    dict
        By path, `zarr/abc/store.py`, the qualified names of what is added or replaced there; `None`
        for a module that is the overlay's own.
    """
    return {
        path: None
        if part.new
        else {c.name for c in part.changes if c.action in ("adds", "replaces")}
        for path, part in plan.parts.items()
        if path.endswith(".py") and (part.new or part.changes)
    }


def spans(text: str) -> dict[str, set[int]]:
    """Find the lines of each definition in a module.

    Parameters
    ----------
    text : str
        The module.

    Returns
    -------
    dict
        By qualified name, `Store.get`, the lines of the functions, classes and assignments of the
        module and of its classes. The members of a class are part of its lines, and have entries of
        their own.
    """
    found: dict[str, set[int]] = {}
    _collect(ast.parse(text).body, "", found)
    return found


def _collect(body: Iterable[ast.stmt], within: str, found: dict[str, set[int]]) -> None:
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        for name in _names(node):
            lines = found.setdefault(within + name, set())
            lines.update(range(first, (node.end_lineno or first) + 1))
        if isinstance(node, ast.ClassDef):
            _collect(node.body, f"{within}{node.name}.", found)


def _names(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.TypeAlias(name=ast.Name(id=name)):
            yield name


def measure(
    path: str, text: str, names: set[str] | None, report: Mapping[str, Any]
) -> Iterator[Covered]:
    """Measure one module.

    Parameters
    ----------
    path : str
        Its path, for the names.
    text : str
        Its text as it was run.
    names : set of str or None
        The qualified names that count; `None` where all of it counts.
    report : Mapping
        What `coverage json` says of the file.

    Yields
    ------
    Covered
        One for each of the names, or one for each definition of the module and one for the rest.
    """
    lines = {line: line in report["executed_lines"] for line in _statements(report)}
    branches = {tuple(branch): True for branch in report["executed_branches"]}
    branches |= {tuple(branch): False for branch in report["missing_branches"]}
    for name, span in _counted(text, names):
        mine = {line: run for line, run in lines.items() if line in span}
        turns = {branch: run for branch, run in branches.items() if branch[0] in span}
        if mine:
            yield Covered(
                f"{path}::{name}" if name else path,
                len(mine),
                sum(mine.values()),
                len(turns),
                sum(turns.values()),
                tuple(_missing(mine, turns)),
            )


def _statements(report: Mapping[str, Any]) -> list[int]:
    return sorted([*report["executed_lines"], *report["missing_lines"]])


def _counted(text: str, names: set[str] | None) -> Iterator[tuple[str, set[int]]]:
    found = spans(text)
    if names is not None:
        yield from ((name, found[name]) for name in sorted(names, key=lambda n: min(found[n])))
        return
    rest = set(range(1, text.count("\n") + 2))
    for name, span in found.items():
        if "." not in name:
            yield name, span & rest
            rest -= span
    yield "", rest


def _missing(lines: Mapping[int, bool], branches: Mapping[tuple[int, ...], bool]) -> Iterator[str]:
    # Statements that follow each other in the source, and were not run, make one range.
    for run, group in groupby(lines.items(), key=lambda item: item[1]):
        numbers = [line for line, _ in group]
        if not run:
            yield f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    for (start, end), run in branches.items():
        if not run and lines.get(start):
            yield f"{start}->{end if end > 0 else 'exit'}"


def table(rows: Sequence[Covered]) -> list[str]:
    """Lay out what was measured: a line for each module, and one for each incomplete definition.

    Parameters
    ----------
    rows : Sequence of Covered
        What was measured.

    Returns
    -------
    list of str
        The lines, with the total last.
    """
    lines = [f"{'':50} {'lines':>12} {'branches':>12}"]
    by_module = groupby(rows, key=lambda row: row.name.partition("::")[0])
    for path, group in by_module:
        parts = list(group)
        lines.append(_row(Covered.total(path, parts)))
        for part in parts:
            if part.missing:
                name = part.name.partition("::")[2] or "(the rest of the module)"
                lines.append(f"    {name}: {', '.join(part.missing)}")
    return [*lines, _row(Covered.total("the overlay", rows))]


def _row(row: Covered) -> str:
    def share(run: int, all_: int) -> str:
        return f"{run}/{all_} {run * 100 // all_ if all_ else 100:3}%"

    return (
        f"{row.name:50} {share(row.lines_run, row.lines):>12} "
        f"{share(row.branches_run, row.branches):>12}"
    )


def measure_all(plan: Plan, packages: Path, files: Mapping[Path, Any]) -> list[Covered]:
    """Measure the whole overlay.

    Parameters
    ----------
    plan : Plan
        The merge.
    packages : Path
        The folder that holds the installed `zarr/`.
    files : Mapping
        What `coverage json` says of each file.

    Returns
    -------
    list of Covered
        One for each definition, module by module.
    """
    return [
        row
        for path, names in sorted(modules(plan).items())
        for row in measure(path, (packages / path).read_text(), names, files[packages / path])
    ]
