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


def test_spans() -> None:
    assert covered.spans(MODULE) == {
        "LIMIT": {3, 4, 5},
        "first": {7, 8, 9, 10, 11},
        "Store": set(range(13, 20)),
        "Store.get": {14, 15},
        "Store.many": {17, 18, 19},
    }


def test_spans_of_overloads_are_joined() -> None:
    text = "@overload\ndef f(): ...\n@overload\ndef f(a): ...\ndef f(a=1):\n    return a\n"
    assert covered.spans(text) == {"f": {1, 2, 3, 4, 5, 6}}


@pytest.mark.parametrize(
    ("text", "name"),
    [("type Key = str", "Key"), ("x: int = 1", "x"), ("a = b = 1", "b"), ("c, d = 1, 2", "d")],
)
def test_spans_of_assignments(text: str, name: str) -> None:
    assert covered.spans(text)[name] == {1}


def test_measure_counts_only_what_is_named() -> None:
    rows = list(covered.measure("zarr/a.py", MODULE, {"Store.many", "first"}, REPORT))
    assert rows == [
        Covered("zarr/a.py::first", 4, 3, 2, 1, ("11", "9->11")),
        Covered("zarr/a.py::Store.many", 3, 1, 2, 2, ("18-19",)),
    ]


def test_measure_counts_all_of_a_new_module() -> None:
    rows = list(covered.measure("zarr/a.py", MODULE, None, REPORT))
    assert [row.name.partition("::")[2] for row in rows] == ["LIMIT", "first", "Store", ""]
    whole = Covered.total("", rows)
    assert (whole.lines, whole.lines_run, whole.branches, whole.branches_run) == (12, 8, 4, 3)


def test_what_is_excluded_does_not_count() -> None:
    report = _report([1], [])
    assert [row.name for row in covered.measure("zarr/a.py", MODULE, None, report)] == ["zarr/a.py"]


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
    rows = list(covered.measure("zarr/a.py", MODULE, {"first", "Store.get", "LIMIT"}, REPORT))
    _, module, first, get, overlay = (line.split() for line in covered.table(rows))
    assert module == ["zarr/a.py", "5/7", "71%", "1/2", "50%"]
    assert first == ["first:", "11,", "9->11"]
    assert get == ["Store.get:", "15"]
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
