"""Blocks wait until they are taken, in order."""

from __future__ import annotations

import pytest

from zarr.experimental._handover import Handover, Outcome, failed
from zarr.experimental._readahead import Readahead


def make(count: int = 4, budget: int = 1 << 30) -> tuple[Handover, list[str]]:
    """A handover of which all blocks have started, and what it signals."""
    signals: list[str] = []
    handover = Handover(
        Readahead(count, lambda position: 1, budget), lambda: signals.append("room")
    )
    assert list(handover.admit(1)) == [0]
    handover.put([(0, Outcome("block 0"))])
    handover.admit()
    assert handover.take(lambda: None, None) == Outcome("block 0")
    return handover, signals


def test_blocks_wait_for_their_turn() -> None:
    handover, signals = make()
    handover.put([(2, Outcome("block 2"))])
    assert handover.take(lambda: signals.append("woken"), None) is None
    handover.put([(3, Outcome("block 3"))])
    assert signals == []
    handover.put([(1, Outcome("block 1"))])
    assert signals == ["woken"]
    taken = [handover.take(lambda: None, None) for _ in range(4)]
    assert [each.value for each in taken if each] == ["block 1", "block 2", "block 3", None]
    assert taken[3] is not None
    assert isinstance(taken[3].error, StopIteration)


def test_the_first_outcome_of_a_block_counts() -> None:
    handover, _ = make()
    error = KeyError("first")
    handover.put([(1, failed(error)), (1, Outcome("late"))])
    handover.put([(0, Outcome("later still"))])
    assert handover.failed_at == 1
    outcome = handover.take(lambda: None, None)
    assert outcome is not None
    assert outcome.error is error


def test_an_error_of_no_block_in_particular() -> None:
    handover, _ = make()
    handover.put([(1, Outcome("block 1")), (3, Outcome("block 3"))])
    handover.fail(OSError())
    assert handover.failed_at == 2


@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration()])
def test_an_error_that_would_end_an_iteration(error: BaseException) -> None:
    failure = failed(error).error
    assert isinstance(failure, RuntimeError)
    assert failure.__cause__ is error


def test_room_is_signalled_once() -> None:
    handover, signals = make(count=5, budget=1)
    assert signals == ["room"]  # block 0 was taken
    assert list(handover.admit()) == [1]
    handover.put([(1, Outcome("block 1"))])
    handover.take(lambda: None, None)
    assert signals == ["room"]  # nobody has found that there is none since
    assert list(handover.admit()) == [2]
    assert list(handover.admit()) == []
    handover.put([(2, Outcome("block 2"))])
    handover.take(lambda: None, None)
    assert signals == ["room", "room"]


def test_whoever_waits_is_woken_when_it_is_closed() -> None:
    handover, signals = make()
    assert handover.take(lambda: signals.append("woken"), None) is None
    handover.closed = True
    handover.clear()
    assert signals == ["woken"]
    handover.put([(1, Outcome("block 1"))])
    outcome = handover.take(lambda: None, None)
    assert outcome is not None
    assert isinstance(outcome.error, StopIteration)
