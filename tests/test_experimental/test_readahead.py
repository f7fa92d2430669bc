"""How many blocks are in flight within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr.experimental._readahead import MAX_ADMITTED, OVERHEAD, UNSEEN, Readahead, parse_nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (1, 1),
        (256 << 20, 256 << 20),
        ("4096", 4096),
        ("64MiB", 64 << 20),
        (" 1.5 GB ", 1_500_000_000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("2gib", 2 << 30),
        (".5 TiB", 1 << 39),
        ("7 B", 7),
    ],
)
def test_a_number_of_bytes(text: int | str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "MiB", "-1", "0", "0.1 B", "1 MB B", "1 miles", 0, -1, 1.5, None, True],
    ids=repr,
)
def test_no_number_of_bytes(text: int | str) -> None:
    with pytest.raises(ValueError, match="number of bytes"):
        parse_nbytes(text)


@pytest.mark.parametrize(
    ("budget", "sized"), [(2 * UNSEEN * (10 + OVERHEAD) - 1, True), (1 << 40, False)]
)
def test_the_first_block_runs_alone(budget: int, sized: bool) -> None:
    readahead = Readahead(10, lambda position: 10, budget, sized=sized)
    assert list(readahead.admit()) == [0]
    assert not readahead.admits()
    assert list(readahead.admit()) == []
    readahead.finish(0, 10, 10)
    assert list(readahead.admit()) == (list(range(1, 10)) if sized else [1])


def test_light_blocks_do_not_wait_for_the_first() -> None:
    weight = 10 + OVERHEAD
    readahead = Readahead(100, lambda position: 10, 3 * UNSEEN * weight)
    assert list(readahead.admit(2)) == [0, 1]
    assert list(readahead.admit()) == [2]
    assert list(readahead.admit()) == []
    readahead.finish(1, 4 * weight, 10)  # all turn out to be heavier
    assert readahead.nbytes > 3 * weight
    assert len(readahead.admit()) > 0
    assert readahead.nbytes <= 3 * UNSEEN * weight


def test_the_first_block_tells_what_the_others_weigh() -> None:
    readahead = Readahead(100, lambda position: 1000, 10 * (3000 + OVERHEAD))
    readahead.admit()
    readahead.finish(0, 3000, 1000)
    readahead.take(0)
    assert len(readahead.admit()) == 10
    # Blocks that are there weigh what they hold.
    for position in range(1, 11):
        readahead.finish(position, 3000, 1000)
    assert readahead.nbytes == 10 * (1000 + OVERHEAD)
    free = 10 * (3000 - 1000)
    assert len(readahead.admit()) == free // (3000 + OVERHEAD)


def test_a_part_of_a_byte_counts_as_one() -> None:
    readahead = Readahead(2, lambda position: 2 - position, 1 << 40, sized=False)
    readahead.admit()
    readahead.finish(0, 3, 2)
    readahead.take(0)
    readahead.admit()
    assert readahead.nbytes == 2 + OVERHEAD


def test_a_block_that_exceeds_the_budget_runs_alone() -> None:
    readahead = Readahead(3, lambda position: 100, 1)
    for position in range(3):
        assert list(readahead.admit()) == [position]
        readahead.finish(position, 100, 100)
        assert not readahead.admits()
        readahead.take(position)
    assert not readahead.admits()
    assert readahead.max_blocks == 1


def test_blocks_start_several_at_a_time() -> None:
    weight = 1000 + OVERHEAD
    readahead = Readahead(1000, lambda position: 1000, 16 * weight)
    readahead.admit(1)
    readahead.finish(0, 1000, 1000)
    readahead.take(0)
    assert len(readahead.admit()) == 16
    for position in range(1, 17):
        readahead.finish(position, 1000, 1000)
    for position in range(1, 4):
        readahead.take(position)
        assert not readahead.admits()
    readahead.take(4)
    assert len(readahead.admit()) == 4


def test_not_all_blocks_are_planned_at_once() -> None:
    readahead = Readahead(MAX_ADMITTED * 3, lambda position: 0, 1 << 40)
    readahead.admit()
    readahead.finish(0, 0, 0)
    assert len(readahead.admit()) == MAX_ADMITTED
    assert len(readahead.admit()) == MAX_ADMITTED


@given(
    expected=st.lists(st.integers(0, 50_000), max_size=40),
    budget=st.integers(1, 400_000),
    factors=st.lists(st.floats(0, 4), min_size=1, max_size=5),
    data=st.data(),
)
def test_whatever_happens(
    expected: list[int], budget: int, factors: list[float], data: st.DataObject
) -> None:
    """Blocks start in order, within the budget, and something always goes on."""
    readahead = Readahead(len(expected), expected.__getitem__, budget)
    running: list[int] = []
    there: set[int] = set()
    taken = 0
    while taken < len(expected):
        before, held = readahead.admitted, len(readahead)
        admits = readahead.admits()
        admitted = readahead.admit()
        assert bool(admitted) == admits
        assert list(admitted) == list(range(before, readahead.admitted))
        if admitted and held + len(admitted) > 1:
            assert readahead.nbytes <= budget
        if not there and not taken:
            assert readahead.admitted <= 1 or readahead.nbytes <= budget // UNSEEN
        running.extend(admitted)
        assert running or there
        assert readahead.running == len(running)
        assert len(readahead) == len(running) + len(there)
        can_take = taken in there
        if running and (not can_take or data.draw(st.booleans())):
            position = running.pop(data.draw(st.integers(0, len(running) - 1)))
            finished = int(expected[position] * factors[position % len(factors)])
            readahead.finish(position, finished * 2, finished)
            there.add(position)
        elif can_take:
            readahead.take(taken)
            there.remove(taken)
            taken += 1
        assert readahead.max_nbytes >= readahead.nbytes
    assert readahead.nbytes == 0
    assert not readahead.admit()
