"""Tests for `zarr.core._bounded`: what runs when, what is raised, and that nothing is left running."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.event_loop import nothing_left_behind, turns
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core import _bounded
from zarr.core._bounded import (
    Fetch,
    FetchSlots,
    _Window,
    attach_others,
    cancel_and_wait,
    checked,
    closing_groups,
    expected_nbytes,
    fetch_limit,
    fetch_slots,
    flat_task_group,
    get_each,
    process_bounded,
    run_bounded,
    split_requests,
)
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from typing import Any

    from zarr.abc.store import ByteRequest
    from zarr.core._bounded import ReadGroup
    from zarr.core.buffer import Buffer, BufferPrototype


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


def buffer(nbytes: int) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(bytes(nbytes))


class Scripted:
    """Fetches that end when they are told to, and that keep a record of what became of them."""

    def __init__(self, count: int, *, nbytes: int | None = None) -> None:
        self.count = count
        self.nbytes = nbytes
        self.planned = 0
        self.started: list[int] = []
        self.running: set[int] = set()
        self.cancelled: list[int] = []
        self.most_running = 0
        self._ends: dict[int, asyncio.Future[ReadGroup]] = {}

    def __iter__(self) -> Iterator[Fetch]:
        for index in range(self.count):
            self.planned += 1
            yield Fetch(partial(self._run, index), self.nbytes)

    async def _run(self, index: int) -> ReadGroup:
        self.started.append(index)
        self.running.add(index)
        self.most_running = max(self.most_running, len(self.running))
        try:
            return await self._end(index)
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        finally:
            self.running.discard(index)

    def _end(self, index: int) -> asyncio.Future[ReadGroup]:
        return self._ends.setdefault(index, asyncio.get_running_loop().create_future())

    def finish(self, *indices: int, nbytes: int = 1) -> None:
        for index in indices:
            self._end(index).set_result(((index, buffer(nbytes)),))

    def fail(self, index: int, error: BaseException) -> None:
        self._end(index).set_exception(error)


async def consume(groups: AsyncIterator[ReadGroup], taken: list[int]) -> None:
    """Take all of `groups`, noting the index of each result in `taken`."""
    async for group in groups:
        taken.extend(index for index, _ in group)


class Running:
    """A `run_bounded` that a task consumes."""

    def __init__(self, fetches: Scripted, *, limit: int) -> None:
        self.taken: list[int] = []
        self.task = asyncio.create_task(consume(run_bounded(fetches, limit=limit), self.taken))


def following(error: BaseException) -> list[BaseException]:
    """The chain of `__cause__` that starts at `error`."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


# ---------------------------------------------------------------------------
# fetch_limit
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "backend", "expected"),
    [
        (10, None, 10),
        (10, 100, 100),
        (10, 4, 4),
        (3, None, 3),
        (3, 100, 3),
        (250, None, 250),
        (250, 100, 250),
        (0, None, 1),
        (-4, 100, 1),
        (None, None, sys.maxsize),
        (None, 100, sys.maxsize),
    ],
)
def test_fetch_limit(configured: int | None, backend: int | None, expected: int) -> None:
    """A limit that differs from the default is the user's; at the default the backend decides."""
    with config.set({"async.concurrency": configured}):
        assert fetch_limit(backend) == expected


def test_the_default_concurrency_is_the_one_assumed_here() -> None:
    assert config.defaults[0]["async"]["concurrency"] == 10


# ---------------------------------------------------------------------------
# split_requests
# ---------------------------------------------------------------------------


def test_split_requests() -> None:
    ranges: list[ByteRequest | None] = [
        RangeByteRequest(0, 1),
        OffsetByteRequest(2),
        SuffixByteRequest(3),
        None,
    ]
    requests: list[str | tuple[str, ByteRequest | None]] = ["a", "a"]
    requests[1:1] = [("b", byte_range) for byte_range in ranges]
    expected = [("a", None), *[("b", byte_range) for byte_range in ranges], ("a", None)]
    assert list(split_requests(requests)) == expected


@pytest.mark.parametrize("requests", ["key", "", b"key", b""], ids=repr)
def test_split_requests_rejects_a_single_key(requests: Any) -> None:
    with pytest.raises(TypeError, match="sequence of keys or pairs"):
        list(split_requests(requests))


@pytest.mark.parametrize(
    "request_",
    [None, 1, b"key", ("key",), ("key", None, None), (), ["key", None], {"key": None}],
    ids=repr,
)
def test_split_requests_rejects_what_is_neither_key_nor_pair(request_: Any) -> None:
    split = split_requests(["a", request_, "b"])
    assert next(split) == ("a", None)
    with pytest.raises(TypeError, match="must be a key or a"):
        next(split)


# ---------------------------------------------------------------------------
# _Window
# ---------------------------------------------------------------------------

MIN_BYTES, MAX_BYTES = 100, 1000
sizes = st.one_of(st.none(), st.integers(0, 2 * MAX_BYTES))


class WindowMachine(RuleBasedStateMachine):
    """A `_Window` against the plain list of what is in flight and of what has arrived."""

    expected_nbytes: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", MAX_BYTES)
        self.patch.setattr(_bounded, "MIN_BYTES_IN_FLIGHT", MIN_BYTES)
        self.patch.setattr(_bounded, "SECONDS_IN_FLIGHT", 2.0)
        self.seconds = 0
        self.window = _Window(5, 2, self.expected_nbytes, self.now)
        self.in_flight: list[int | None] = []
        self.arrived: list[int] = []
        self.guess = self.expected_nbytes
        self.largest = 0
        self.total = 0

    def teardown(self) -> None:
        self.patch.undo()

    @property
    def now(self) -> float:
        return 1000.0 + self.seconds

    def admits(self, nbytes: int | None) -> bool:
        count = len(self.in_flight) + len(self.arrived)
        if count < 2:
            return True
        if count >= 5:
            return False
        sizes = [self.guess if size is None else size for size in [*self.in_flight, nbytes]]
        known = [size for size in sizes if size is not None]
        rate = self.total / self.seconds if self.seconds else self.total * MAX_BYTES
        budget = min(MAX_BYTES, max(MIN_BYTES, 2 * rate))
        return len(known) == len(sizes) and sum(known) + sum(self.arrived) <= budget

    @rule(nbytes=sizes)
    def start(self, nbytes: int | None) -> None:
        admitted = self.window.admits(nbytes, self.now)
        assert admitted == self.admits(nbytes)
        if admitted:
            self.window.start(nbytes)
            self.in_flight.append(nbytes)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), actual=st.integers(0, 2 * MAX_BYTES))
    def arrive(self, data: st.DataObject, actual: int) -> None:
        position = data.draw(st.integers(0, len(self.in_flight) - 1))
        announced = self.in_flight.pop(position)
        self.window.arrive(announced, actual)
        self.arrived.append(actual)
        self.total += actual
        self.largest = max(self.largest, actual)
        self.guess = self.largest or self.expected_nbytes

    @precondition(lambda self: self.arrived)
    @rule()
    def take(self) -> None:
        self.window.take(self.arrived.pop(0))

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.seconds += seconds

    @invariant()
    def agrees(self) -> None:
        for nbytes in (None, 0, 1, MIN_BYTES, MAX_BYTES // 2, MAX_BYTES):
            assert self.window.admits(nbytes, self.now) == self.admits(nbytes)


class ExpectingWindowMachine(WindowMachine):
    """The same where the consumer knows what to expect."""

    expected_nbytes = MIN_BYTES // 4


machine_settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestWindow = WindowMachine.TestCase
TestWindow.settings = machine_settings
TestExpectingWindow = ExpectingWindowMachine.TestCase
TestExpectingWindow.settings = machine_settings


def test_window_admits_the_unmetered_whatever_their_size() -> None:
    window = _Window(limit=100, unmetered=3, expected=None, now=0)
    for _ in range(3):
        assert window.admits(1 << 40, 0)
        window.start(1 << 40)
    assert not window.admits(0, 0)


def test_window_never_admits_more_than_the_limit() -> None:
    window = _Window(limit=2, unmetered=10, expected=None, now=0)
    window.start(0)
    window.start(0)
    assert not window.admits(0, 0)


@pytest.mark.parametrize("expected", [None, 10])
def test_window_learns_nothing_from_an_absent_key(expected: int | None) -> None:
    """That one chunk is missing does not mean that the next one is small."""
    window = _Window(limit=1 << 40, unmetered=2, expected=expected, now=0)
    for _ in range(2):
        window.start(None)
    before = window.admits(None, 0)
    window.arrive(None, 0)
    assert window.admits(None, 1) is before is (expected is not None)


def test_window_is_wide_for_a_fast_backend_and_narrow_for_a_slow_one() -> None:
    """A slow link is not flooded with requests that would wait for each other."""
    mebibyte = 1 << 20
    for seconds, expected in [(0.01, 64), (1, 32), (2, 16), (8, 8), (100, 8)]:
        window = _Window(limit=1 << 40, unmetered=1, expected=None, now=50)
        window.start(32 * mebibyte)
        window.arrive(32 * mebibyte, 32 * mebibyte)
        window.take(32 * mebibyte)
        while window.admits(mebibyte, 50 + seconds):
            window.start(mebibyte)
        assert window.count == expected


# ---------------------------------------------------------------------------
# run_bounded
# ---------------------------------------------------------------------------


async def test_run_bounded_of_nothing() -> None:
    assert [group async for group in run_bounded([], limit=3)] == []


async def test_run_bounded_of_one_fetch_makes_no_task() -> None:
    fetches = Scripted(1)
    groups = run_bounded(fetches, limit=3)
    waiting = asyncio.ensure_future(anext(groups))
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task(), waiting}
    fetches.finish(0)
    assert [index for index, _ in await waiting] == [0]
    with pytest.raises(StopAsyncIteration):
        await anext(groups)


async def test_run_bounded_yields_in_completion_order() -> None:
    fetches = Scripted(5)
    run = Running(fetches, limit=5)
    for index in (3, 0, 4, 2, 1):
        await turns()
        fetches.finish(index)
    await run.task
    assert run.taken == [3, 0, 4, 2, 1]
    assert fetches.started == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("limit", [1, 2, 7, 40])
async def test_run_bounded_keeps_to_the_limit(limit: int) -> None:
    """As many as the limit allows are in flight, and never more."""
    fetches = Scripted(30)
    with config.set({"async.concurrency": limit}):
        run = Running(fetches, limit=limit)
        for done in range(30):
            await turns()
            assert len(fetches.started) == min(30, limit + done)
            fetches.finish(done)
        await run.task
    assert fetches.most_running == min(30, limit)
    assert run.taken == list(range(30))


async def test_run_bounded_starts_more_than_a_burst() -> None:
    """The event loop gets a turn between bursts, but nothing has to finish for the next one."""
    count = 5 * _bounded.BURST + 3
    fetches = Scripted(count)
    with config.set({"async.concurrency": None}):
        run = Running(fetches, limit=count)
        await turns()
        assert len(fetches.started) == count
        fetches.finish(*range(count))
        await run.task
    assert run.taken == list(range(count))


async def test_run_bounded_gives_the_loop_a_turn_within_a_long_start() -> None:
    """Fetches of the first burst are under way before the last one is planned."""
    fetches = Scripted(10 * _bounded.BURST)
    planned_at_first_start: list[int] = []
    original = fetches._run

    async def run(index: int) -> ReadGroup:
        planned_at_first_start.append(fetches.planned)
        return await original(index)

    fetches._run = run  # type: ignore[method-assign]
    with config.set({"async.concurrency": None}):
        running = Running(fetches, limit=sys.maxsize)
        await turns()
        fetches.finish(*range(fetches.count))
        await running.task
    assert planned_at_first_start[0] <= 2 * _bounded.BURST


async def test_run_bounded_plans_no_further_ahead_than_it_must() -> None:
    fetches = Scripted(1_000_000)
    async with aclosing(run_bounded(fetches, limit=4)) as groups:
        for index in range(10):
            waiting = asyncio.ensure_future(anext(groups))
            await turns()
            assert fetches.planned <= 4 + index + 2
            assert len(asyncio.all_tasks()) <= 4 + 2
            fetches.finish(index)
            assert [i for i, _ in await waiting] == [index]
    assert sorted(fetches.cancelled) == list(range(10, 13))


async def test_run_bounded_waits_for_a_slow_consumer() -> None:
    """What has arrived and was not taken counts: nothing starts while the consumer is away."""
    fetches = Scripted(100)
    async with aclosing(run_bounded(fetches, limit=6)) as groups:
        waiting = asyncio.ensure_future(anext(groups))
        await turns()
        fetches.finish(*range(6))
        await waiting
        await turns()
        assert len(fetches.started) == 6
        for taken in range(1, 6):
            await anext(groups)
            await turns()
            assert len(fetches.started) == 6 + taken


async def test_run_bounded_holds_back_by_announced_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 100)
    fetches = Scripted(50, nbytes=30)
    with config.set({"async.concurrency": 2}):
        run = Running(fetches, limit=50)
        await turns()
        assert len(fetches.started) == 3
        for done in range(50):
            fetches.finish(done, nbytes=30)
            await turns()
            assert len(fetches.running) <= 3
        await run.task
    assert run.taken == list(range(50))


async def test_run_bounded_holds_back_by_bytes_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that have arrived stay on the account until the consumer takes them."""
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 100)
    fetches = Scripted(50, nbytes=1)
    with config.set({"async.concurrency": 1}):
        async with aclosing(run_bounded(fetches, limit=5)) as groups:
            waiting = asyncio.ensure_future(anext(groups))
            await turns()
            assert len(fetches.started) == 5
            fetches.finish(*range(5), nbytes=40)
            await waiting
            started = []
            for _ in range(4):
                await anext(groups)
                await turns()
                started.append(len(fetches.started))
    # Of the five values, four and then three are too many. With two left there is room again.
    assert started == [5, 5, 8, 9]


async def test_run_bounded_learns_the_size_of_what_it_fetches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until the first result is there, only `async.concurrency` fetches of unknown size start."""
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 100)
    fetches = Scripted(50)
    with config.set({"async.concurrency": 3}):
        run = Running(fetches, limit=50)
        await turns()
        assert len(fetches.started) == 3
        fetches.finish(0, nbytes=10)
        await turns()
        assert len(fetches.running) == 10
        fetches.finish(1, nbytes=50)
        await turns()
        assert len(fetches.running) == 9
        fetches.finish(*range(2, 10), nbytes=50)
        await turns()
        assert len(fetches.running) == 3
        run.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.task


async def test_run_bounded_believes_what_its_consumer_expects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the consumer knows how large the values are, nobody has to wait for the first one."""
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 100)
    fetches = Scripted(50)
    token = expected_nbytes.set(20)
    try:
        with config.set({"async.concurrency": 3}):
            run = Running(fetches, limit=50)
            await turns()
            assert len(fetches.started) == 5
            fetches.finish(0, nbytes=5)
            await turns()
            assert len(fetches.running) == 20
            fetches.finish(*range(1, 50), nbytes=5)
            await run.task
    finally:
        expected_nbytes.reset(token)


async def test_run_bounded_serves_one_fetch_that_is_larger_than_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 10)
    fetches = Scripted(4, nbytes=1000)
    with config.set({"async.concurrency": 1}):
        run = Running(fetches, limit=50)
        for index in range(4):
            await turns()
            assert fetches.running == {index}
            fetches.finish(index, nbytes=1000)
        await run.task


async def test_run_bounded_raises_the_failure_as_itself() -> None:
    fetches = Scripted(10)
    run = Running(fetches, limit=4)
    await turns()
    fetches.finish(1)
    await turns()
    error = OSError("the cable is out")
    fetches.fail(2, error)
    with pytest.raises(OSError) as caught:
        await run.task
    assert caught.value is error
    assert error.__cause__ is None
    assert run.taken == [1]
    assert not fetches.running
    assert sorted(fetches.cancelled) == [0, 3, 4]


async def test_run_bounded_hands_over_what_arrived_before_the_failure() -> None:
    fetches = Scripted(3)
    run = Running(fetches, limit=3)
    await turns()
    fetches.finish(2, 0)
    fetches.fail(1, OSError("late"))
    with pytest.raises(OSError, match="late"):
        await run.task
    assert run.taken == [2, 0]


async def test_run_bounded_attaches_the_other_failures() -> None:
    fetches = Scripted(5)
    run = Running(fetches, limit=5)
    await turns()
    errors = [OSError("first"), ValueError("second"), KeyError("third")]
    for index, error in zip((3, 0, 2), errors, strict=True):
        fetches.fail(index, error)
    with pytest.raises(OSError) as caught:
        await run.task
    assert caught.value is errors[0]
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert set(group.exceptions) == set(errors[1:])


async def test_run_bounded_attaches_a_failure_while_cancelling() -> None:
    """A fetch that fails instead of being cancelled is reported as well."""
    rude = ValueError("not now")

    async def fail_when_cancelled() -> ReadGroup:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise rude from None
        raise AssertionError

    async def fail() -> ReadGroup:
        await turns(3)
        raise OSError("first")

    fetches = [Fetch(fail_when_cancelled, None), Fetch(fail, None)]
    with pytest.raises(OSError, match="first") as caught:
        await consume(run_bounded(fetches, limit=2), [])
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (rude,)


async def test_run_bounded_keeps_the_cause_of_the_failure() -> None:
    root, middle, error = KeyError("root"), ValueError("middle"), OSError("top")
    error.__cause__, middle.__cause__ = middle, root
    other = RuntimeError("other")
    fetches = Scripted(2)
    run = Running(fetches, limit=2)
    await turns()
    fetches.fail(0, error)
    fetches.fail(1, other)
    with pytest.raises(OSError):
        await run.task
    *chain, group = following(error)
    assert chain == [error, middle, root]
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (other,)


async def test_run_bounded_with_one_exception_raised_by_all() -> None:
    error = OSError("shared")
    fetches = Scripted(4)
    run = Running(fetches, limit=4)
    await turns()
    for index in range(4):
        fetches.fail(index, error)
    with pytest.raises(OSError) as caught:
        await run.task
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("position", [0, 1, 5])
async def test_run_bounded_with_a_failure_in_the_iterable(position: int) -> None:
    fetches = Scripted(position)

    def plan() -> Iterator[Fetch]:
        yield from fetches
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await consume(run_bounded(plan(), limit=20), [])
    assert not fetches.running


async def test_run_bounded_with_failures_in_the_iterable_and_of_fetches() -> None:
    """The iterable fails, and a fetch that is in flight fails instead of being cancelled."""
    error, rude = LookupError("no more"), ValueError("not now")

    async def end() -> ReadGroup:
        await turns(5)
        return ((0, None),)

    async def fail_when_cancelled() -> ReadGroup:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise rude from None
        raise AssertionError

    def plan() -> Iterator[Fetch]:
        for run in (end, fail_when_cancelled, end):
            yield Fetch(run, None)
        raise error

    groups = run_bounded(plan(), limit=2)
    assert await anext(groups) == ((0, None),)
    with pytest.raises(LookupError) as caught:
        await anext(groups)
    assert caught.value is error
    assert isinstance(error.__cause__, ExceptionGroup)
    assert error.__cause__.exceptions == (rude,)


async def test_run_bounded_stops_when_closed() -> None:
    fetches = Scripted(10)
    groups = run_bounded(fetches, limit=3)
    waiting = asyncio.ensure_future(anext(groups))
    await turns()
    fetches.finish(1)
    await waiting
    await groups.aclose()
    assert not fetches.running
    assert sorted(fetches.cancelled) == [0, 2]
    assert fetches.started == [0, 1, 2]


async def test_run_bounded_stops_when_closed_before_it_began() -> None:
    fetches = Scripted(10)
    await run_bounded(fetches, limit=3).aclose()
    assert fetches.planned == 0


async def test_run_bounded_stops_when_the_consumer_breaks_off() -> None:
    fetches = Scripted(10)

    async def take_one() -> None:
        async with aclosing(run_bounded(fetches, limit=3)) as groups:
            async for _ in groups:
                break

    task = asyncio.create_task(take_one())
    await turns()
    fetches.finish(0)
    await task
    assert not fetches.running


async def test_run_bounded_forgets_failures_that_nobody_asked_for() -> None:
    """When it is closed early, what had failed by then is not logged as never retrieved."""
    fetches = Scripted(3)
    groups = run_bounded(fetches, limit=3)
    waiting = asyncio.ensure_future(anext(groups))
    await turns()
    fetches.finish(0)
    fetches.fail(1, OSError("unseen"))
    await waiting
    await turns()
    await groups.aclose()


async def test_run_bounded_stops_when_cancelled() -> None:
    fetches = Scripted(10)
    run = Running(fetches, limit=3)
    await turns()
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert not fetches.running
    assert sorted(fetches.cancelled) == [0, 1, 2]


async def test_run_bounded_raises_a_cancellation_that_a_fetch_raised() -> None:
    """A backend may raise `CancelledError` by itself. That is a failure, not the end."""
    fetches = Scripted(3)
    run = Running(fetches, limit=3)
    await turns()
    fetches.fail(1, asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert not fetches.running


class Stubborn:
    """Fetches that take their time when they are cancelled, and may then fail."""

    def __init__(self, count: int, error: type[Exception] | None = None) -> None:
        self.count = count
        self.error = error
        self.cancellations = 0
        self.ended = 0
        self.release = asyncio.Event()

    def __iter__(self) -> Iterator[Fetch]:
        return (Fetch(self._run, None) for _ in range(self.count))

    async def _run(self) -> ReadGroup:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancellations += 1
            await self.release.wait()
            if self.error is not None:
                raise self.error from None
            raise
        finally:
            self.ended += 1
        raise AssertionError


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("error", [None, OSError])
async def test_run_bounded_waits_for_its_fetches_however_often_it_is_cancelled(
    times: int, error: type[Exception] | None
) -> None:
    fetches = Stubborn(3, error)
    task = asyncio.create_task(consume(run_bounded(fetches, limit=3), []))
    await turns()
    for _ in range(times):
        task.cancel()
        await turns()
        assert not task.done()
        assert fetches.ended == 0
    fetches.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fetches.ended == 3
    assert fetches.cancellations == 3


@pytest.mark.parametrize("error", [None, OSError])
async def test_run_bounded_waits_for_its_fetches_when_closing_is_cancelled(
    error: type[Exception] | None,
) -> None:
    fetches = Stubborn(3, error)

    async def one() -> ReadGroup:
        return ()

    async def take_one() -> None:
        groups = run_bounded([Fetch(one, None), *fetches], limit=4)
        await anext(groups)
        await groups.aclose()

    task = asyncio.create_task(take_one())
    await turns()
    assert fetches.cancellations == 3
    task.cancel()
    await turns()
    assert not task.done()
    fetches.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fetches.ended == 3


async def test_run_bounded_is_cancelled_while_it_clears_up_after_a_failure() -> None:
    fetches = Stubborn(2)

    async def fail() -> ReadGroup:
        raise OSError("first")

    task = asyncio.create_task(consume(run_bounded([*fetches, Fetch(fail, None)], limit=3), []))
    await turns()
    assert fetches.cancellations == 2
    task.cancel()
    await turns()
    assert not task.done()
    fetches.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fetches.ended == 2


async def test_run_bounded_within_a_timeout() -> None:
    """Ending by a timeout is a cancellation, and `asyncio.timeout` gets to turn it into itself."""
    fetches = Scripted(3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await consume(run_bounded(fetches, limit=3), [])
    assert not fetches.running


# ---------------------------------------------------------------------------
# get_each
# ---------------------------------------------------------------------------


class RecordedGet:
    """A `get` that answers with the key, once it is released."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, BufferPrototype, ByteRequest | None]] = []
        self.release = asyncio.Event()

    async def __call__(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.calls.append((key, prototype, byte_range))
        await self.release.wait()
        return prototype.buffer.from_bytes(key.encode())


async def test_get_each_passes_everything_on() -> None:
    get = RecordedGet()
    get.release.set()
    prototype = default_buffer_prototype()
    byte_range = RangeByteRequest(2, 5)
    values: dict[int, Buffer | None] = {}
    async for group in get_each(get, ["a", ("b", byte_range), ("c", None)], prototype=prototype):
        assert len(group) == 1
        values.update(group)
    assert {index: value and value.to_bytes() for index, value in values.items()} == {
        0: b"a",
        1: b"b",
        2: b"c",
    }
    expected = [("a", prototype, None), ("b", prototype, byte_range), ("c", prototype, None)]
    assert get.calls == expected


async def test_get_each_of_one_request_makes_no_task() -> None:
    get = RecordedGet()
    groups = get_each(get, ["a"], prototype=default_buffer_prototype())
    waiting = asyncio.ensure_future(anext(groups))
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task(), waiting}
    get.release.set()
    assert [index for index, _ in await waiting] == [0]
    with pytest.raises(StopAsyncIteration):
        await anext(groups)


@pytest.mark.parametrize(
    ("configured", "backend", "expected"), [(10, None, 10), (10, 20, 10), (4, 20, 4), (15, 2, 15)]
)
async def test_get_each_keeps_to_the_limits(
    configured: int, backend: int | None, expected: int
) -> None:
    """Nobody knows how large whole values are: no more than `async.concurrency` to begin with."""
    get = RecordedGet()
    prototype = default_buffer_prototype()
    requests = [f"{index}" for index in range(50)]
    with config.set({"async.concurrency": configured}):
        groups = get_each(get, requests, prototype=prototype, backend_limit=backend)
        async with aclosing(groups):
            waiting = asyncio.ensure_future(anext(groups))
            await turns()
            assert len(get.calls) == expected
            get.release.set()
            await waiting


async def test_get_each_knows_the_size_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 70)
    get = RecordedGet()
    prototype = default_buffer_prototype()
    requests = [("key", RangeByteRequest(10 * index, 10 * index + 10)) for index in range(50)]
    with config.set({"async.concurrency": 10}):
        groups = get_each(get, requests, prototype=prototype, backend_limit=20)
        async with aclosing(groups):
            waiting = asyncio.ensure_future(anext(groups))
            await turns()
            assert len(get.calls) == 10
            waiting.cancel()
            await asyncio.wait([waiting])
    get.calls.clear()
    monkeypatch.setattr(_bounded, "MAX_BYTES_IN_FLIGHT", 170)
    with config.set({"async.concurrency": 10}):
        groups = get_each(get, requests, prototype=prototype, backend_limit=20)
        async with aclosing(groups):
            waiting = asyncio.ensure_future(anext(groups))
            await turns()
            assert len(get.calls) == 17
            waiting.cancel()
            await asyncio.wait([waiting])


# ---------------------------------------------------------------------------
# cancel_and_wait
# ---------------------------------------------------------------------------


async def test_cancel_and_wait_for_nothing() -> None:
    await cancel_and_wait([])


async def test_cancel_and_wait_leaves_what_has_ended_alone() -> None:
    async def fail() -> None:
        raise OSError("before")

    done = asyncio.create_task(asyncio.sleep(0, "result"))
    failed = asyncio.create_task(fail())
    await turns()
    await cancel_and_wait([done, failed])
    assert done.result() == "result"
    assert isinstance(failed.exception(), OSError)


@pytest.mark.parametrize("times", [0, 1, 2, 5])
async def test_cancel_and_wait_ends_when_the_last_one_has(times: int) -> None:
    """Each is cancelled once and awaited, even if the waiting is cancelled meanwhile."""
    release = [asyncio.Event() for _ in range(3)]
    cancellations = 0

    async def work(index: int) -> None:
        nonlocal cancellations
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations += 1
            await release[index].wait()
            raise

    tasks = [asyncio.create_task(work(index)) for index in range(3)]
    await turns()
    waiting = asyncio.create_task(cancel_and_wait(tasks))
    await turns()
    release[1].set()
    for _ in range(times):
        waiting.cancel()
        await turns()
    assert not waiting.done()
    release[0].set()
    await turns()
    assert not waiting.done()
    release[2].set()
    await asyncio.wait([waiting])
    assert waiting.cancelled() == (times > 0)
    assert all(task.cancelled() for task in tasks)
    assert cancellations == 3


async def test_cancel_and_wait_for_a_task_that_takes_no_notice() -> None:
    async def insist() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished"
        raise AssertionError

    task = asyncio.create_task(insist())
    await turns()
    await cancel_and_wait([task])
    assert task.result() == "finished"


# ---------------------------------------------------------------------------
# attach_others
# ---------------------------------------------------------------------------


def test_attach_nothing() -> None:
    error = OSError()
    attach_others(error, [])
    attach_others(error, [error, error])
    assert error.__cause__ is None


def test_attach_others_at_the_end_of_the_chain() -> None:
    error, cause, root = OSError(), ValueError(), KeyError()
    error.__cause__, cause.__cause__ = cause, root
    others = [TypeError(), RuntimeError()]
    attach_others(error, [*others, error, cause, root])
    *chain, group = following(error)
    assert chain == [error, cause, root]
    assert isinstance(group, ExceptionGroup)
    assert list(group.exceptions) == others


def test_attach_others_that_are_no_exceptions() -> None:
    error = OSError()
    attach_others(error, [SystemExit(3)])
    assert isinstance(error.__cause__, BaseExceptionGroup)
    assert not isinstance(error.__cause__, ExceptionGroup)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_attach_others_leaves_a_circle_alone(length: int) -> None:
    errors = [OSError(index) for index in range(length)]
    for error, cause in zip(errors, errors[1:] + errors[:1], strict=True):
        error.__cause__ = cause
    attach_others(errors[0], [ValueError()])
    for error, cause in zip(errors, errors[1:] + errors[:1], strict=True):
        assert error.__cause__ is cause


def test_attach_others_leaves_a_circle_behind_a_chain_alone() -> None:
    error, first, second = OSError(), KeyError(), ValueError()
    error.__cause__, first.__cause__, second.__cause__ = first, second, first
    attach_others(error, [TypeError()])
    assert (error.__cause__, first.__cause__, second.__cause__) == (first, second, first)


# ---------------------------------------------------------------------------
# flat_task_group
# ---------------------------------------------------------------------------


async def fail_with(error: BaseException) -> None:
    await turns()
    raise error


async def hang(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("hung")


async def test_flat_task_group_waits_for_its_tasks() -> None:
    done: list[int] = []

    async def work(index: int) -> None:
        await turns(index)
        done.append(index)

    async with flat_task_group() as tasks:
        for index in (5, 3, 9):
            tasks.create_task(work(index))
    assert done == [3, 5, 9]


async def test_flat_task_group_raises_the_failure_as_itself() -> None:
    error = OSError("task")
    ended: list[str] = []

    async def work() -> None:
        async with flat_task_group() as tasks:
            tasks.create_task(fail_with(error))
            tasks.create_task(hang(ended))
            await hang(ended)

    with pytest.raises(OSError) as caught:
        await work()
    assert caught.value is error
    assert error.__cause__ is None
    assert ended == ["hung", "hung"]


async def test_flat_task_group_attaches_the_other_failures() -> None:
    errors = [OSError("first"), ValueError("second"), KeyError("third")]

    async def work() -> None:
        async with flat_task_group() as tasks:
            for error in errors:
                tasks.create_task(fail_with(error))

    with pytest.raises(OSError) as caught:
        await work()
    assert caught.value is errors[0]
    group = errors[0].__cause__
    assert isinstance(group, ExceptionGroup)
    assert list(group.exceptions) == errors[1:]


async def test_flat_task_group_raises_the_failure_of_its_body() -> None:
    error = OSError("body")
    ended: list[str] = []

    async def work() -> None:
        async with flat_task_group() as tasks:
            tasks.create_task(hang(ended))
            await turns()
            raise error

    with pytest.raises(OSError) as caught:
        await work()
    assert caught.value is error
    assert ended == ["hung"]


async def test_flat_task_group_keeps_a_group_that_a_task_raised() -> None:
    error = ExceptionGroup("mine", [OSError(), KeyError()])

    async def work() -> None:
        async with flat_task_group() as tasks:
            tasks.create_task(fail_with(error))

    with pytest.raises(ExceptionGroup) as caught:
        await work()
    assert caught.value is error


async def test_flat_task_group_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> None:
        async with flat_task_group() as tasks:
            tasks.create_task(hang(ended))
            await turns()
            task.cancel()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["hung"]


# ---------------------------------------------------------------------------
# closing_groups
# ---------------------------------------------------------------------------


async def two_groups(closed: list[bool]) -> AsyncGenerator[ReadGroup]:
    try:
        yield ((0, None),)
        yield ((1, None),)
    finally:
        closed.append(True)


async def test_closing_groups_closes_a_generator() -> None:
    closed: list[bool] = []
    async with closing_groups(two_groups(closed)) as groups:
        assert await anext(groups) == ((0, None),)
    assert closed == [True]


async def test_closing_groups_closes_after_a_failure() -> None:
    closed: list[bool] = []

    async def work() -> None:
        async with closing_groups(two_groups(closed)) as groups:
            await anext(groups)
            raise OSError("consumer")

    with pytest.raises(OSError, match="consumer"):
        await work()
    assert closed == [True]


async def test_closing_groups_takes_an_iterator_without_aclose() -> None:
    class Plain:
        def __aiter__(self) -> Plain:
            return self

        async def __anext__(self) -> ReadGroup:
            raise StopAsyncIteration

    async with closing_groups(Plain()) as groups:
        assert [group async for group in groups] == []


# ---------------------------------------------------------------------------
# checked
# ---------------------------------------------------------------------------


async def reports(*groups: list[int]) -> AsyncGenerator[ReadGroup]:
    for group in groups:
        yield [(index, None) for index in group]


async def test_checked_passes_groups_on() -> None:
    groups = [group async for group in checked(reports([2], [], [0, 3], [1]), 4)]
    assert [[index for index, _ in group] for group in groups] == [[2], [], [0, 3], [1]]


@pytest.mark.parametrize(
    ("groups", "count", "message"),
    [
        ([[0], [0]], 1, "request 0 of 1 twice"),
        ([[1, 0, 1]], 2, "request 1 of 2 twice"),
        ([[0], [2]], 2, "request 2 of 2, which does not exist"),
        ([[-1]], 2, "request -1 of 2, which does not exist"),
        ([[0]], 0, "request 0 of 0, which does not exist"),
        ([[0, 2]], 3, "1 of 3 requests, the first of them number 1"),
        ([], 2, "2 of 2 requests, the first of them number 0"),
    ],
    ids=range(7),
)
async def test_checked_takes_no_wrong_report(
    groups: list[list[int]], count: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        await consume(checked(reports(*groups), count), [])


async def test_checked_closes_what_it_checks() -> None:
    closed: list[bool] = []
    groups = checked(two_groups(closed), 2)
    await anext(groups)
    await groups.aclose()
    assert closed == [True]


# ---------------------------------------------------------------------------
# process_bounded
# ---------------------------------------------------------------------------


class Processing:
    """What `process_bounded` does with ten groups, each of which is let through when told to."""

    def __init__(self, *, limit: int = 3, cleanup: asyncio.Event | None = None) -> None:
        self.given = 0
        self.closed = False
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.taken: list[int] = []
        self.failures: dict[int, Exception] = {}
        self.cleanup = cleanup
        self.gates = [asyncio.Event() for _ in range(10)]
        self.task = asyncio.create_task(
            consume(process_bounded(self._groups(), self._process, limit=limit), self.taken)
        )

    async def _groups(self) -> AsyncGenerator[ReadGroup]:
        try:
            for index in range(10):
                self.given += 1
                yield ((index, None),)
            if -1 in self.failures:
                raise self.failures[-1]
        finally:
            self.closed = True

    async def _process(self, group: ReadGroup) -> ReadGroup:
        [(index, _)] = group
        self.started.append(index)
        try:
            await self.gates[index].wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
            if self.cleanup is not None:
                await self.cleanup.wait()
            raise
        if index in self.failures:
            raise self.failures[index]
        return ((index, buffer(1)),)

    def let(self, *indices: int) -> None:
        for index in indices:
            self.gates[index].set()


async def test_process_bounded_yields_what_is_done() -> None:
    processing = Processing(limit=10)
    for index in (3, 9, 0, 4, 1, 2, 8, 7, 5, 6):
        await turns()
        processing.let(index)
    await processing.task
    assert processing.taken == [3, 9, 0, 4, 1, 2, 8, 7, 5, 6]
    assert processing.closed


@pytest.mark.parametrize("limit", [1, 4])
async def test_process_bounded_keeps_to_the_limit(limit: int) -> None:
    processing = Processing(limit=limit)
    for index in range(10):
        await turns()
        assert len(processing.started) == min(10, limit + index)
        assert processing.given <= limit + index + 1
        processing.let(index)
    await processing.task
    assert processing.taken == list(range(10))


async def test_process_bounded_of_nothing() -> None:
    async def process(group: ReadGroup) -> ReadGroup:
        raise AssertionError(group)

    await consume(process_bounded(reports(), process, limit=3), [])


async def test_process_bounded_raises_the_failure_of_processing() -> None:
    error = OSError("full")
    processing = Processing()
    processing.failures[1] = error
    await turns()
    processing.let(0)
    await turns()
    processing.let(1)
    with pytest.raises(OSError) as caught:
        await processing.task
    assert caught.value is error
    assert processing.taken == [0]
    assert processing.closed
    assert sorted(processing.started) == sorted([0, 1, *processing.cancelled])


async def test_process_bounded_raises_the_failure_of_the_groups() -> None:
    error = OSError("the cable is out")
    processing = Processing(limit=20)
    processing.failures[-1] = error
    with pytest.raises(OSError) as caught:
        await processing.task
    assert caught.value is error
    assert processing.closed
    assert sorted(processing.started) == sorted(processing.cancelled)


@pytest.mark.parametrize("times", [1, 3])
async def test_process_bounded_is_cancelled(times: int) -> None:
    cleanup = asyncio.Event()
    processing = Processing(cleanup=cleanup)
    await turns()
    for _ in range(times):
        processing.task.cancel()
        await turns()
        assert not processing.task.done()
    cleanup.set()
    with pytest.raises(asyncio.CancelledError):
        await processing.task
    assert sorted(processing.cancelled) == [0, 1, 2]
    assert processing.closed


async def test_process_bounded_is_closed_early() -> None:
    closed: list[bool] = []

    async def process(group: ReadGroup) -> ReadGroup:
        return group

    groups = process_bounded(two_groups(closed), process, limit=1)
    assert await anext(groups) == ((0, None),)
    await groups.aclose()
    assert closed == [True]


async def test_process_bounded_takes_groups_in_one_task() -> None:
    """An iterator may hold on to the task that it runs in: a task group does, and so on."""
    tasks = set()

    async def groups() -> AsyncGenerator[ReadGroup]:
        for index in range(4):
            tasks.add(asyncio.current_task())
            await turns(3)
            tasks.add(asyncio.current_task())
            yield ((index, None),)
        tasks.add(asyncio.current_task())

    async def process(group: ReadGroup) -> ReadGroup:
        return group

    taken: list[int] = []
    await consume(process_bounded(groups(), process, limit=2), taken)
    assert sorted(taken) == [0, 1, 2, 3]
    assert len(tasks) == 1


# --- slots for the fetches of several reads --------------------------------------------------------


class Slotted:
    """Reads under `FetchSlots`, and the most fetches of them that were in flight."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0

    async def get(self, key: str, **options: Any) -> None:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await turns()
        self.in_flight -= 1

    async def read(self, count: int) -> None:
        keys = [str(number) for number in range(count)]
        async with aclosing(
            get_each(self.get, keys, prototype=default_buffer_prototype())
        ) as groups:
            assert len([group async for group in groups]) == count


@pytest.mark.parametrize("limit", [1, 3, 40])
async def test_slots_limit_several_reads_together(limit: int) -> None:
    slotted = Slotted()
    fetch_slots.set(FetchSlots(limit))
    assert fetch_limit() == fetch_limit(7) == limit
    await asyncio.gather(*(slotted.read(count) for count in (1, 20, 30, 1, 1)))
    assert slotted.most == limit


async def test_what_reads_to_serve_a_fetch_needs_no_slot_of_its_own() -> None:
    """A wrapper whose `get` reads many keys of another store holds the one slot meanwhile."""
    inner = Slotted()

    async def get(key: str, **options: Any) -> None:
        await inner.read(2)

    fetch_slots.set(FetchSlots(1))
    async with aclosing(get_each(get, ["a", "b"], prototype=default_buffer_prototype())) as groups:
        assert len([group async for group in groups]) == 2
    assert isinstance(fetch_slots.get(), FetchSlots)


async def test_a_slot_is_free_again_after_a_failure() -> None:
    fetch_slots.set(FetchSlots(1))

    async def get(key: str, **options: Any) -> None:
        raise KeyError(key)

    for keys in (["a"], ["a", "b"]):
        with pytest.raises(KeyError):
            async with aclosing(
                get_each(get, keys, prototype=default_buffer_prototype())
            ) as groups:
                await anext(groups)
    await Slotted().read(3)
