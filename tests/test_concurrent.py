"""Calls that run concurrently: in which order, how many at once, and what is left when one fails."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from tests.event_loop import nothing_left_behind, turns
from zarr.core.common import concurrent_as_completed, concurrent_map

if TYPE_CHECKING:
    from collections.abc import Iterator


class Calls:
    """Calls that end when they are told to."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.running: dict[int, asyncio.Future[int]] = {}
        self.cancelled: list[int] = []

    async def call(self, number: int) -> int:
        self.started.append(number)
        self.running[number] = asyncio.get_running_loop().create_future()
        try:
            return await self.running[number]
        except asyncio.CancelledError:
            await turns(3)  # cleaning up takes a while
            self.cancelled.append(number)
            raise
        finally:
            del self.running[number]

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.running[number].set_result(number)

    def fail(self, number: int, error: BaseException) -> None:
        self.running[number].set_exception(error)


def items(taken: list[int], count: int = 10) -> Iterator[tuple[int]]:
    for number in range(count):
        taken.append(number)
        yield (number,)


async def test_results_come_in_completion_order() -> None:
    async with nothing_left_behind():
        calls, taken = Calls(), list[int]()
        results = concurrent_as_completed(items(taken, 4), calls.call, 3)
        first = asyncio.ensure_future(anext(results))
        await turns()
        assert taken == calls.started == [0, 1, 2]
        calls.finish(2)
        assert await first == 2
        calls.finish(0, 1)
        rest = asyncio.ensure_future(anext(results))
        await turns()
        assert calls.started == [0, 1, 2, 3]
        assert await rest == 0
        calls.finish(3)
        assert [result async for result in results] == [1, 3]


async def test_a_slow_consumer_holds_the_calls_back() -> None:
    async with nothing_left_behind():

        async def call(number: int) -> int:
            return number

        taken: list[int] = []
        async with aclosing(concurrent_as_completed(items(taken), call, 3)) as results:
            assert await anext(results) == 0
            await turns()
            assert taken == [0, 1, 2]
            assert await anext(results) == 1
            assert taken == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 3, None])
async def test_a_limit_of_none_is_no_limit(limit: int | None) -> None:
    most = 0
    running = 0

    async def call(number: int) -> int:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await turns(2)
        running -= 1
        return number

    results = concurrent_as_completed(items([]), call, limit)
    assert sorted([result async for result in results]) == list(range(10))
    assert most == (limit or 10)


async def test_there_may_be_nothing_to_call() -> None:
    assert [result async for result in concurrent_as_completed([], Calls().call, 3)] == []
    assert await concurrent_map([], Calls().call, 3) == []


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_is_positive(limit: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {limit}"):
        await anext(concurrent_as_completed([(0,)], Calls().call, limit))


@pytest.mark.parametrize("error", [OSError("reset"), KeyError("key")])
async def test_a_failure_is_raised_as_itself_when_the_others_have_ended(
    error: BaseException,
) -> None:
    async with nothing_left_behind():
        calls = Calls()
        results = concurrent_as_completed(items([]), calls.call, 3)
        step = asyncio.ensure_future(anext(results))
        await turns()
        calls.fail(1, error)
        calls.running[2].set_exception(RuntimeError("at the same time"))
        with pytest.raises(type(error)) as caught:
            await step
        assert caught.value is error
        assert 0 in calls.cancelled
        assert calls.started == [0, 1, 2]


async def test_an_item_that_cannot_be_had_ends_the_calls() -> None:
    def some() -> Iterator[tuple[int]]:
        yield (0,)
        raise ValueError("no more")

    async with nothing_left_behind():
        calls = Calls()
        with pytest.raises(ValueError, match="no more"):
            await anext(concurrent_as_completed(some(), calls.call, 3))


@pytest.mark.parametrize("how", ["closed", "cancelled", "abandoned"])
async def test_an_early_end_awaits_what_was_cancelled(how: str) -> None:
    async with nothing_left_behind():
        calls = Calls()
        results = concurrent_as_completed(items([]), calls.call, 3)
        step = asyncio.ensure_future(anext(results))
        await turns()
        calls.finish(1)
        assert await step == 1
        if how == "closed":
            await results.aclose()
        elif how == "cancelled":
            step = asyncio.ensure_future(anext(results))
            await turns()
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        else:
            del results, step
            await turns()
        assert {0, 2} <= set(calls.cancelled)
        assert not calls.running


@pytest.mark.parametrize("limit", [2, None])
@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_concurrent_map_leaves_no_call_running(limit: int | None, how: str) -> None:
    """`asyncio.gather` would raise at once, and leave the others running."""
    async with nothing_left_behind():
        calls = Calls()
        mapped = asyncio.ensure_future(concurrent_map(items([], 4), calls.call, limit))
        await turns()
        if how == "failed":
            calls.fail(1, OSError("reset"))
            with pytest.raises(OSError, match="reset"):
                await mapped
        else:
            mapped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mapped
        assert set(calls.cancelled) == set(calls.started) - ({1} if how == "failed" else set())


async def test_concurrent_map_returns_results_in_order() -> None:
    calls = Calls()
    mapped = asyncio.ensure_future(concurrent_map(items([], 3), calls.call, None))
    await turns()
    calls.finish(2, 0, 1)
    assert await mapped == [0, 1, 2]
