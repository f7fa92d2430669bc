"""Measuring how much of the overlay is covered."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest

from tools import covered
from tools.covered import Covered
from tools.overlay.problems import Change
from tools.overlay.tree import Part, Plan

MODULE = dedent("""\
    import os

    LIMIT = (
        100
    )

    @decorated
    def first(x):
        if x:
            return 1
        return 2

    class Store:
        async def get(self):
            return None

        async def many(self):
            for _ in self:
                pass
    """)


def _report(
    run: list[int], missing: list[int], *branches: tuple[int, int], lost: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    return {
        "executed_lines": run,
        "missing_lines": missing,
        "executed_branches": [list(branch) for branch in branches],
        "missing_branches": [list(lost)] if lost != (0, 0) else [],
    }


REPORT = _report(
    [1, 3, 7, 9, 10, 13, 14, 17], [11, 15, 18, 19], (9, 10), (18, 19), (18, -17), lost=(9, 11)
)


def test_measure_counts_only_what_is_named() -> None:
    row = covered.measure("zarr/a.py", MODULE, {"Store.many", "first"}, REPORT)
    assert row == Covered("zarr/a.py", 7, 4, 4, 3, ("11", "18", "19", "9->11"))


def test_measure_counts_all_of_a_new_module() -> None:
    row = covered.measure("zarr/a.py", MODULE, None, REPORT)
    assert (row.lines, row.lines_run, row.branches, row.branches_run) == (12, 8, 4, 3)


def test_measure_counts_decorators_overloads_and_assignments() -> None:
    text = (
        "@overload\ndef f(): ...\n@overload\ndef f(a): ...\n\n\ntype Key = str\na = b = 1\nc = 2\n"
    )
    report = _report([1, 2, 3, 4], [7, 8, 9])
    row = covered.measure("zarr/a.py", text, {"f", "Key", "b"}, report)
    assert row == Covered("zarr/a.py", 6, 4, 0, 0, ("7", "8"))


@pytest.mark.parametrize(
    ("row", "enough"),
    [
        (Covered("", 100, 95, 100, 95), True),
        (Covered("", 100, 94, 100, 100), False),
        (Covered("", 100, 100, 100, 94), False),
        (Covered("", 10, 10), True),
        (Covered(""), True),
    ],
)
def test_enough(row: Covered, enough: bool) -> None:
    assert row.enough() is enough


def test_table() -> None:
    row = covered.measure("zarr/a.py", MODULE, {"first", "Store.get", "LIMIT"}, REPORT)
    _, module, missing, overlay = (line.split() for line in covered.table([row]))
    assert module == ["zarr/a.py", "5/7", "71%", "1/2", "50%"]
    assert missing == ["11,", "15,", "9->11"]
    assert overlay[-4:] == module[-4:]


def test_modules() -> None:
    changes = (Change("opens", "Store"), Change("adds", "Store.many"), Change("replaces", "first"))
    parts = {
        "zarr/_version.py": Part(b"", new=False),
        "zarr/a.py": Part(b"", new=False, changes=changes),
        "zarr/b.py": Part(b"", new=True),
        "zarr/c.json": Part(b"", new=True),
    }
    assert covered.modules(Plan("zarr", parts, ())) == {
        "zarr/a.py": {"Store.many", "first"},
        "zarr/b.py": None,
    }
