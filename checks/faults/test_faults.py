"""The fork reads the correct data or raises what the release raises, and does not hang."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest

from checks.faults.cells import FAULTS, Cell, Outcome, all_cells, fault_in
from checks.faults.conftest import FOUND


class Known(NamedTuple):
    """A known fault of the fork."""

    kinds: tuple[str, ...]
    """The outcomes that are expected; any other one fails the test."""
    reason: str


_LONG = Known(
    ("error",), "a server that sends too much may have ignored the range, so it is an error"
)
EXPECTED_TO_FAIL = {"*-inner-long-*": _LONG}
"""Known faults by patterns of cells."""


@pytest.mark.parametrize("cell", all_cells(), ids=str)
def test_the_fork_does_not_do_worse(cell: Cell, pytestconfig: pytest.Config) -> None:
    found = pytestconfig.stash[FOUND][cell]
    fault = fault_in(cell, found["stock"], found["fork"])
    patterns = [pattern for pattern in EXPECTED_TO_FAIL if fnmatchcase(str(cell), pattern)]
    for known in map(EXPECTED_TO_FAIL.__getitem__, patterns):
        if fault and found["fork"].kind in known.kinds:
            pytest.xfail(known.reason)
    assert fault is None
    # How many requests reach a limited server at once depends on timing: fewer on a busy machine.
    assert cell.limited or not patterns, "remove it from EXPECTED_TO_FAIL"


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
