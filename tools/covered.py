"""Test coverage of the definitions that the overlay adds and replaces: lines and branches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.overlay import pieces
from tools.overlay.tree import Plan

REQUIRED = 95
"""Percent of the lines, and percent of the branches."""


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of the overlay's part of one module, or of several together, was executed."""

    name: str
    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_run: int = 0
    missing: tuple[str, ...] = ()
    """Lines that were not run, and branches that were not taken, `20->23`."""

    def enough(self) -> bool:
        """Tell whether as much is covered as is required."""
        return (
            self.lines_run * 100 >= self.lines * REQUIRED
            and self.branches_run * 100 >= self.branches * REQUIRED
        )

    def row(self) -> str:
        """Lay it out as a line of the table."""
        counts = ((self.lines_run, self.lines), (self.branches_run, self.branches))
        shares = (f"{run}/{n} {run * 100 // n if n else 100:3}%" for run, n in counts)
        return f"{self.name:50}" + "".join(f" {share:>12}" for share in shares)


def total(name: str, rows: Iterable[Covered]) -> Covered:
    """Add up several."""
    sums = [0, 0, 0, 0]
    for r in rows:
        numbers = (r.lines, r.lines_run, r.branches, r.branches_run)
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
    lines, lines_run, branches, branches_run = sums
    return Covered(name, lines, lines_run, branches, branches_run)


def modules(plan: Plan) -> dict[str, set[str] | None]:
    """Return by path the names that the overlay adds or replaces; `None` for a module of its own."""
    return {
        path: None
        if part.new
        else {c.name for c in part.changes if c.action in ("adds", "replaces")}
        for path, part in plan.parts.items()
        if path.endswith(".py") and (part.new or part.changes)
    }


def measure(path: str, text: str, names: set[str] | None, report: Mapping[str, Any]) -> Covered:
    """Measure one module.

    `names` are the definitions in `text` that count, `None` where all do; `report` is what `coverage json`
    says of the file.
    """
    found = pieces.qualified(pieces.module(text))
    spans = [range(p.head + 1, p.end + 1) for name, p in found if names is None or name in names]

    def counts(line: int) -> bool:
        return names is None or any(line in span for span in spans)

    run = [line for line in report["executed_lines"] if counts(line)]
    missed = [line for line in report["missing_lines"] if counts(line)]
    taken = [start for start, _ in report["executed_branches"] if counts(start)]
    left = [(start, end) for start, end in report["missing_branches"] if counts(start)]
    missing = [str(line) for line in missed]
    missing += [f"{start}->{end if end > 0 else 'exit'}" for start, end in left if start in run]
    lines, branches = len(run) + len(missed), len(taken) + len(left)
    return Covered(path, lines, len(run), branches, len(taken), tuple(missing))


def table(rows: Iterable[Covered]) -> list[str]:
    """Lay out what was measured: a line for each module, with what it lacks, and the total last."""
    lines = [f"{'':50} {'lines':>12} {'branches':>12}"]
    for row in rows:
        lines += [row.row(), *([f"    {', '.join(row.missing)}"] if row.missing else [])]
    return [*lines, total("the overlay", rows).row()]


def measure_all(plan: Plan, packages: Path, files: Mapping[Path, Any]) -> list[Covered]:
    """Measure the whole overlay as installed in a folder, from the coverage report of each file."""
    return [
        measure(path, (packages / path).read_text(), names, files[packages / path])
        for path, names in sorted(modules(plan).items())
    ]
