"""The fork reads the correct data or raises what the release raises, and does not hang."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from checks.faults.cells import FAULTS, Cell, Outcome, all_cells, fault_in
from checks.faults.conftest import FOUND

_TOO_MANY = "the fork makes more requests at once than the release, and does not retry with fewer"
_CUT = "the whole object is taken for the requested range, as on the release"
EXPECTED_TO_FAIL = {
    "http-inner-whole-*": _CUT,
    "s3-inner-whole-*": _CUT,
    "http-100-*": _TOO_MANY,
    "obstore-100-*-beyond-16-*": _TOO_MANY,
    "*-256-chunks-http.server-*": _TOO_MANY,
}
"""Known faults of the fork: patterns of cells, with the reason."""


def _parameter(cell: Cell) -> object:
    # How many requests reach a limited server at once depends on timing: fewer on a busy machine.
    marks = [
        pytest.mark.xfail(reason=reason, strict=not cell.limited)
        for pattern, reason in EXPECTED_TO_FAIL.items()
        if fnmatchcase(str(cell), pattern)
    ]
    return pytest.param(cell, id=str(cell), marks=marks)


@pytest.mark.parametrize("cell", [_parameter(cell) for cell in all_cells()])
def test_the_fork_does_not_do_worse(cell: Cell, pytestconfig: pytest.Config) -> None:
    found = pytestconfig.stash[FOUND][cell]
    assert fault_in(cell, found["stock"], found["fork"]) is None


DATA, FILL, WRONG, HANG = Outcome("data"), Outcome("fill"), Outcome("wrong"), Outcome("hang")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_counts_as_a_fault(fault: str) -> None:
    """Whatever the release does, only its error or the correct data is accepted."""
    cell = Cell("http", "chunks", fault)
    error, other = Outcome("error", "OSError"), Outcome("error", "KeyError")
    for stock in (DATA, FILL, WRONG, HANG, error):
        assert fault_in(cell, stock, DATA) is None
        assert fault_in(cell, stock, WRONG)
        assert fault_in(cell, stock, HANG)
        assert bool(fault_in(cell, stock, FILL)) is not (stock == FILL and fault == "404")
    assert fault_in(cell, DATA, error)
    assert fault_in(cell, error, error) is None
    assert fault_in(cell, error, other)
