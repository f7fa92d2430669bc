"""Tests for `map_ahead`, which calls a function for several items at once and keeps their order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from tests.event_loop import nothing_left_behind, turns
from zarr.core._bounded import map_ahead

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


class Calls:
    """Calls that end when they are told to."""

    def __init__(self) -> None:
        self.ends: defaultdict[int, asyncio.Future[int]] = defaultdict(
            asyncio.get_running_loop().create_future
        )
        self.planned = 0
        self.started: list[int] = []
        self.cancelled: list[int] = []

    def items(self, count: int) -> Iterator[int]:
        for item in range(count):
            self.planned += 1
            yield item

    async def __call__(self, item: int) -> int:
        self.started.append(item)
        try:
            return await self.ends[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise

    def end(self, *items: int) -> None:
        for item in items:
            self.ends[item].set_result(item * 10)


async def take(results: AsyncIterator[int], taken: list[int]) -> None:
    async for result in results:
        taken += [result]


async def test_results_come_in_order_within_the_limit() -> None:
    calls, taken = Calls(), list[int]()
    task = asyncio.create_task(take(map_ahead(calls, calls.items(6), limit=3), taken))
    await turns()
    assert (calls.started, calls.planned) == ([0, 1, 2], 3)
    calls.end(2, 1)
    await turns()
    assert (calls.started, taken) == ([0, 1, 2], [])
    calls.end(0)
    await turns()
    assert (calls.started, calls.planned, taken) == ([0, 1, 2, 3, 4, 5], 6, [0, 10, 20])
    calls.end(3, 4, 5)
    await task
    assert taken == [0, 10, 20, 30, 40, 50]


async def test_a_slow_consumer_holds_calls_back() -> None:
    calls = Calls()
    async with aclosing(map_ahead(calls, calls.items(100), limit=3)) as results:
        calls.end(*range(3))
        assert await anext(results) == 0
        await turns()
        assert calls.started == [0, 1, 2]
        assert await anext(results) == 10
        await turns()
        assert calls.started == [0, 1, 2, 3]
    assert calls.cancelled == [3]


@pytest.mark.parametrize("items", [0, 1])
async def test_few_items(items: int) -> None:
    calls = Calls()
    calls.end(0)
    assert [result async for result in map_ahead(calls, range(items), limit=3)] == [0] * items


async def test_an_error_of_a_call_comes_in_its_turn() -> None:
    calls, taken = Calls(), list[int]()
    task = asyncio.create_task(take(map_ahead(calls, calls.items(9), limit=4), taken))
    await turns()
    errors = [OSError("one"), ValueError("two")]
    for item, error in enumerate(errors, 1):
        calls.ends[item].set_exception(error)
    await turns()
    assert not task.done()
    calls.end(0)
    with pytest.raises(OSError, match="one") as raised:
        await task
    assert raised.value is errors[0]
    assert taken == [0]
    assert sorted(calls.cancelled) == [item for item in calls.started if item > 2]


async def test_an_error_of_the_items() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise LookupError("no more")

    calls = Calls()
    with pytest.raises(LookupError, match="no more"):
        await anext(map_ahead(calls, items(), limit=2))
    assert calls.started == []


async def test_cancelling_cancels_the_calls() -> None:
    calls, taken = Calls(), list[int]()
    task = asyncio.create_task(take(map_ahead(calls, calls.items(9), limit=4), taken))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(calls.cancelled) == [0, 1, 2, 3]
