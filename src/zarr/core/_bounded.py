"""Run many reads at once, within limits, and hand over each result as it arrives.

`run_bounded` starts them lazily, holds back when the consumer is slow, and leaves nothing running
behind. What a fetch *is* (one `get`, one merged byte range) is the caller's business.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import chain, islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
        Sequence,
    )
    from concurrent.futures import Executor
    from typing import Any

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

type ReadGroup = Sequence[tuple[int, Buffer | None]]
"""What one underlying operation returned: `(index of the request, value)` for each it served."""

MAX_BYTES_IN_FLIGHT = 64 << 20
"""Bytes of fetches in flight and of results not yet taken, beyond which no further one starts.

By Little's law 64 MiB keep a 10 Gbit/s link busy up to 50 ms of latency.
"""

MIN_BYTES_IN_FLIGHT = 8 << 20
"""The same while nothing is known about the speed of the backend, and where it is slow."""

SECONDS_IN_FLIGHT = 1.0
"""Between the two, what arrives in this time may be in flight: a slow link is not flooded with
requests that would wait for each other until they time out."""

BURST = 16
"""Fetches started at most in one turn of the event loop, so that it gets to send them and to see
what has arrived."""

expected_nbytes: ContextVar[int | None] = ContextVar("expected_nbytes", default=None)
"""How large a whole value may be, if the consumer knows: a chunk is seldom larger encoded than
decoded. With it, many small values are fetched at once from the start, not only when the first
of them has shown its size. A store need not care."""

ranges_are_merged: ContextVar[bool] = ContextVar("ranges_are_merged", default=False)
"""Whether the consumer has merged byte ranges of one key as it was told to (by the configuration of
an array): a store should not merge them further, except with those of other keys."""

fetch_slots: ContextVar[FetchSlots | None] = ContextVar("fetch_slots", default=None)
"""How many fetches a consumer wants in flight, in all its reads together, whatever the store and
`async.concurrency` say."""


class Fetch(NamedTuple):
    """One operation to run, and how many bytes it will return (`None`: not known beforehand).

    To a `ReadWatcher` it is a read, unless its bytes are at hand, or it waits for its turn first.
    """

    run: Callable[[], Coroutine[Any, Any, ReadGroup]]
    nbytes: int | None
    is_read: bool = True


class ReadWatcher(Protocol):
    """Is told what reads ask of stores, if it is the `read_watcher` of the context."""

    def watch(self, groups: AsyncIterator[ReadGroup], requests: int) -> AsyncIterator[ReadGroup]:
        """Pass on what a read of so many requests yields."""

    def fetch(self, fetch: Fetch) -> Fetch:
        """Return an operation that does what `fetch` does."""

    def has_merged(self, nbytes: int, wasted: int) -> None:
        """Take note that the operation under way has read `nbytes`, so many of them in gaps."""


read_watcher: ContextVar[ReadWatcher | None] = ContextVar("read_watcher", default=None)
"""Follows a read into the event loop, its tasks and its threads."""


async def watched(run: Callable[[], Coroutine[Any, Any, ReadGroup]]) -> ReadGroup:
    """Run what a `Fetch` that is no read does when its turn has come: from here on it reads."""
    (fetch,) = _observed([Fetch(run, None)])
    return await fetch.run()


class FetchSlots:
    """Lets so many fetches of several reads in one event loop be in flight at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = asyncio.Semaphore(limit)

    def fetch(self, fetch: Fetch) -> Fetch:
        """A fetch that does what `fetch` does, once there is a slot for it."""
        return fetch._replace(run=partial(self._run, fetch.run)) if fetch.is_read else fetch

    async def _run(self, run: Callable[[], Coroutine[Any, Any, ReadGroup]]) -> ReadGroup:
        async with self._free:
            # What a store reads to serve a fetch must not wait for the slot of that fetch.
            token = fetch_slots.set(None)
            try:
                return await run()
            finally:
                # A read that was abandoned with its event loop is closed in another context.
                with suppress(ValueError):
                    fetch_slots.reset(token)


def _observed(fetches: Iterable[Fetch]) -> Iterable[Fetch]:
    """Have fetches watched, and held back, as the consumer has asked for."""
    if (watcher := read_watcher.get()) is not None:
        fetches = map(watcher.fetch, fetches)
    slots = fetch_slots.get()
    return fetches if slots is None else map(slots.fetch, fetches)


def fetch_limit(backend: int | None = None) -> int:
    """How many fetches of one read may be in flight at once.

    A user's `async.concurrency` (one that differs from its default) holds for every store, up
    or down. At the default, a store asks for what its backend is made for.

    Parameters
    ----------
    backend
        The number of concurrent requests that suits the backend, or `None` if it has no
        preference: then `async.concurrency` applies.
    """
    if (slots := fetch_slots.get()) is not None:
        return slots.limit
    configured: int | None = config.get("async.concurrency")
    if configured is None:
        return sys.maxsize
    if backend is None or concurrency_is_chosen():
        return max(1, configured)
    return backend


def concurrency_is_chosen() -> bool:
    """Whether somebody has set `async.concurrency` to something other than its default."""
    chosen: bool = config.get("async.concurrency") != config.defaults[0]["async"]["concurrency"]
    return chosen


def split_requests(
    requests: Sequence[str | tuple[str, ByteRequest | None]],
) -> Iterator[tuple[str, ByteRequest | None]]:
    """Yield `(key, byte_range)` for each request of a `get_many`, in order.

    Raises
    ------
    TypeError
        If `requests` is a single key, or one of them is neither a key nor a pair.
    """
    if isinstance(requests, str | bytes):
        raise TypeError(f"requests must be a sequence of keys or pairs, got the key {requests!r}.")
    for request in requests:
        if isinstance(request, str):
            yield request, None
        elif isinstance(request, tuple) and len(request) == 2:  # type: ignore[redundant-expr]
            yield request
        else:
            raise TypeError(
                f"A request must be a key or a (key, byte_range) pair, got {request!r}."
            )


async def get_each(
    get: Callable[..., Coroutine[Any, Any, Buffer | None]],
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    *,
    prototype: BufferPrototype,
    backend_limit: int | None = None,
) -> AsyncGenerator[ReadGroup]:
    """Serve `requests` with one call of `get` each, several at a time.

    Parameters
    ----------
    get
        The `get` of a store.
    requests, prototype
        As for `Store.get_many`.
    backend_limit
        As for `fetch_limit`.

    Yields
    ------
    ReadGroup
        One result each, in completion order.
    """

    def fetch(index: int, key: str, byte_range: ByteRequest | None) -> Fetch:
        async def run() -> ReadGroup:
            return ((index, await get(key, prototype=prototype, byte_range=byte_range)),)

        return Fetch(run, value_nbytes(byte_range))

    split = enumerate(split_requests(requests))
    if len(requests) == 1:
        for index, (key, byte_range) in split:
            alone, slots = fetch(index, key, byte_range), fetch_slots.get()
            yield await (alone if slots is None else slots.fetch(alone)).run()
        return
    fetches = (fetch(index, key, byte_range) for index, (key, byte_range) in split)
    async with aclosing(run_bounded(fetches, limit=fetch_limit(backend_limit))) as groups:
        async for group in groups:
            yield group


def value_nbytes(byte_range: ByteRequest | None) -> int | None:
    """How many bytes a request returns at most, or `None` if only the store knows."""
    from zarr.abc.store import RangeByteRequest

    if isinstance(byte_range, RangeByteRequest):
        start, end = byte_range.start, byte_range.end
        if type(start) is type(end) is int:
            return max(0, end - start)
    return None


class _Window:
    """How much is in flight or waiting to be taken, and whether one fetch more may start.

    The first `unmetered` of them may, whatever their size: zarr has always had that many under way.
    A fetch of unknown size counts as the largest value seen so far; until there is one, as what the
    consumer expects. An absent key teaches nothing: the next one may be large.
    """

    def __init__(self, limit: int, unmetered: int, expected: int | None, now: float) -> None:
        self.limit = limit
        self.unmetered = min(limit, unmetered)
        self.expected = expected
        self.began = now
        self.received = 0
        self.seen: int | None = None
        self.count = 0
        self.known_bytes = 0
        self.unknown = 0

    def admits(self, nbytes: int | None, now: float) -> bool:
        if self.count < self.unmetered:
            return True
        if self.count >= self.limit:
            return False
        estimate = self.seen or self.expected
        if estimate is None:
            if nbytes is None or self.unknown:
                return False
            estimate = 0
        held = self.known_bytes + self.unknown * estimate
        return held + (estimate if nbytes is None else nbytes) <= self.budget(now)

    def budget(self, now: float) -> float:
        """How many bytes may be held at a time, from how fast they have been coming."""
        elapsed = max(now - self.began, 1e-3)
        recently = self.received / elapsed * SECONDS_IN_FLIGHT
        return min(MAX_BYTES_IN_FLIGHT, max(MIN_BYTES_IN_FLIGHT, recently))

    def start(self, nbytes: int | None) -> None:
        self.count += 1
        if nbytes is None:
            self.unknown += 1
        else:
            self.known_bytes += nbytes

    def arrive(self, announced: int | None, actual: int) -> None:
        if announced is None:
            self.unknown -= 1
        else:
            self.known_bytes -= announced
        self.known_bytes += actual
        self.received += actual
        if actual:
            self.seen = max(self.seen or 0, actual)

    def take(self, actual: int) -> None:
        self.count -= 1
        self.known_bytes -= actual


async def run_bounded(fetches: Iterable[Fetch], *, limit: int) -> AsyncGenerator[ReadGroup]:
    """Run `fetches`, several at a time, and yield what each returns, in completion order.

    `fetches` is consumed lazily. What is in flight and what has arrived but was not taken are
    limited together, to `limit` in number, and in bytes: to `MAX_BYTES_IN_FLIGHT`, or less where
    the backend is slow. The first `async.concurrency` of them start whatever their size. So a slow
    consumer holds the producer back.

    Parameters
    ----------
    fetches
        The operations, in the order in which they are to start.
    limit
        The largest number of them in flight at once.

    Yields
    ------
    ReadGroup
        The result of one operation.

    Raises
    ------
    Exception
        The first failure, as itself. Other fetches that had failed by then are in a
        `BaseExceptionGroup` at the end of its chain of `__cause__`. Whether it ends by a
        failure, by cancellation or by `aclose`, every fetch in flight is cancelled and
        awaited first.
    """
    loop = asyncio.get_running_loop()
    window = _Window(limit, fetch_limit(), expected_nbytes.get(), loop.time())
    upcoming = iter(_observed(fetches))
    held: dict[asyncio.Task[ReadGroup], int | None] = {}
    done: deque[asyncio.Task[ReadGroup]] = deque()
    arrived: deque[tuple[asyncio.Task[ReadGroup], int]] = deque()
    wake = asyncio.Event()
    credit = BURST

    def on_done(task: asyncio.Task[ReadGroup]) -> None:
        done.append(task)
        wake.set()

    def renew_credit() -> None:
        nonlocal credit
        credit = BURST
        wake.set()

    following = next(upcoming, None)
    second = next(upcoming, None)
    if following is not None and second is None:
        yield await following.run()  # nothing to schedule
        return
    if second is not None:
        upcoming = chain([second], upcoming)
    try:
        while following is not None or held:
            while done and not (arrived and _failed(done[0])):
                task = done.popleft()
                actual = sum(len(value) for _, value in task.result() if value is not None)
                window.arrive(held[task], actual)
                arrived.append((task, actual))
            while (
                following is not None
                and not done
                and credit
                and window.admits(following.nbytes, loop.time())
            ):
                window.start(following.nbytes)
                task = asyncio.create_task(following.run())
                held[task] = following.nbytes
                task.add_done_callback(on_done)
                following = next(upcoming, None)
                credit -= 1
                if not credit:
                    loop.call_soon(renew_credit)
            if not arrived:
                wake.clear()
                await wake.wait()
                continue
            task, actual = arrived.popleft()
            del held[task]
            window.take(actual)
            yield task.result()
    except Exception as error:
        await cancel_and_wait(held)
        attach_others(error, _failures(held))
        raise
    finally:
        await cancel_and_wait(held)


def _failed(task: asyncio.Task[ReadGroup]) -> bool:
    return task.cancelled() or task.exception() is not None


def _failures(tasks: Iterable[asyncio.Task[ReadGroup]]) -> list[BaseException]:
    return [error for task in tasks if not task.cancelled() and (error := task.exception())]


async def cancel_and_wait(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel `tasks` and wait until the last of them has ended, even if cancelled meanwhile."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await settle(*tasks)


async def settle(*futures: asyncio.Future[Any]) -> None:
    """Wait until all `futures` have ended, even if cancelled meanwhile; look at no result."""
    interrupted: asyncio.CancelledError | None = None
    while unfinished := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(unfinished)
        except asyncio.CancelledError as error:
            interrupted = error
    for future in futures:
        if not future.cancelled():
            future.exception()  # seen: nothing is logged as never retrieved
    if interrupted is not None:
        raise interrupted


async def run_in_thread[T](
    function: Callable[[], T],
    *,
    executor: Executor | None = None,
    stop: Callable[[], object],
    wait: bool,
) -> T:
    """Run a function on a worker thread.

    Parameters
    ----------
    function
        What to run, in a copy of the caller's context.
    executor
        Where the thread comes from; `None` for the default executor of the event loop.
    stop
        Called when this is cancelled: a thread can't be, so `function` should look for a sign.
        If it still waits for its turn, it does not run at all.
    wait
        Whether to wait, when this is cancelled, until a function that has begun has ended. One
        that only reads may block for as long as storage does.
    """
    context = copy_context()
    turn = Lock()  # whoever takes it first decides whether the function runs

    def begin() -> T:
        if not turn.acquire(blocking=False):
            raise asyncio.CancelledError
        return context.run(function)

    thread = asyncio.get_running_loop().run_in_executor(executor, begin)
    try:
        await asyncio.wait([thread])
    except asyncio.CancelledError:
        stop()
        if turn.acquire(blocking=False) or not wait:
            thread.cancel()
        else:
            await settle(thread)
        raise
    return thread.result()


def attach_others(error: BaseException, others: Iterable[BaseException]) -> None:
    """Hang failures of the same moment at the end of the `__cause__` chain of `error`."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and all(cause is not e for e in causes):
        causes.append(cause)
    distinct = [other for other in others if all(other is not e for e in causes)]
    if distinct and causes[-1].__cause__ is None:
        group = BaseExceptionGroup("other reads failed as well", distinct)
        # A cause hides the context in a traceback: let it show behind the group.
        group.__context__ = causes[-1].__context__
        causes[-1].__cause__ = group


async def map_ahead[T, R](
    function: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], *, limit: int
) -> AsyncGenerator[R]:
    """Call `function` for each item, several at a time, and yield what it returns, in order.

    Parameters
    ----------
    function
        What to call.
    items
        What to call it with. Taken lazily.
    limit
        How many calls are under way, or done and not yet taken, at most.

    Raises
    ------
    Exception
        What `function` raises, as itself, in its turn. The calls under way are cancelled.
    """
    upcoming = iter(items)
    running: deque[asyncio.Task[R]] = deque()
    try:
        while True:
            for item in islice(upcoming, limit - len(running)):
                running.append(asyncio.create_task(function(item)))
            if not running:
                return
            result = await running[0]
            running.popleft()
            yield result
    finally:
        await cancel_and_wait(running)


class FlatTaskGroup(asyncio.TaskGroup):
    """An `asyncio.TaskGroup` that also fails if a task raises `CancelledError` of its own accord.

    A store or a codec may raise it although nobody has cancelled the task: what it awaits was
    cancelled. `asyncio.TaskGroup` would pass over it, and what the task had to read or write would
    be missing, and nobody would know.
    """

    has_failed = False

    def create_task[T](self, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        task = super().create_task(self._watch(coro), **options)
        task.add_done_callback(lambda _: coro.close())  # if it was cancelled before it began
        return task

    async def _watch[T](self, coro: Coroutine[Any, Any, T]) -> T:
        try:
            return await coro
        except asyncio.CancelledError as error:
            # `Task.cancelling` does not tell: a task group within the task may have changed it.
            if getattr(self, "_aborting", False):
                raise
            self.has_failed = True
            raise CancelledInside from error
        except BaseException:
            self.has_failed = True
            raise


class CancelledInside(Exception):
    """Stands for the `CancelledError` that is its cause, where that would mean something else."""


@asynccontextmanager
async def flat_task_group() -> AsyncIterator[FlatTaskGroup]:
    """A `FlatTaskGroup` that raises the first failure as itself, not in a group."""
    failures: BaseExceptionGroup[BaseException] | None = None
    try:
        async with FlatTaskGroup() as group:
            yield group
    except BaseExceptionGroup as raised:
        failures = raised
    if failures is not None:
        first, *others = map(_uncovered, failures.exceptions)
        attach_others(first, others)
        raise first


def _uncovered(error: BaseException) -> BaseException:
    return error.__cause__ or error if isinstance(error, CancelledInside) else error


@asynccontextmanager
async def closing_groups(
    groups: AsyncIterator[ReadGroup],
) -> AsyncIterator[AsyncIterator[ReadGroup]]:
    """`contextlib.aclosing` for an iterator that need not be a generator: a store may return any."""
    try:
        yield groups
    finally:
        aclose: Callable[[], Awaitable[None]] | None = getattr(groups, "aclose", None)
        if aclose is not None:
            await aclose()


async def checked(groups: AsyncIterator[ReadGroup], count: int) -> AsyncGenerator[ReadGroup]:
    """Pass on what a `get_many` of `count` requests reports, and check that it reports each once.

    Whatever acts on a report for the wrong request, or takes one that never came for an absent
    key, makes wrong data of it.

    Raises
    ------
    RuntimeError
        If a request is reported twice, or not at all, or was never made.
    """
    reported = bytearray(count)
    async with closing_groups(groups):
        async for group in groups:
            for index, _ in group:
                if not 0 <= index < count or reported[index]:
                    raise RuntimeError(
                        f"A store's get_many reported on request {index} of {count}"
                        + (" twice." if 0 <= index < count else ", which does not exist.")
                    )
                reported[index] = True
            yield group
    if missing := reported.count(0):
        raise RuntimeError(
            f"A store's get_many did not report on {missing} of {count} requests, the first of "
            f"them number {reported.index(0)}."
        )


async def process_bounded(
    groups: AsyncIterator[ReadGroup],
    process: Callable[[ReadGroup], Coroutine[Any, Any, ReadGroup]],
    *,
    limit: int,
) -> AsyncGenerator[ReadGroup]:
    """Pass each group through `process`, several at a time, and yield them as they get done.

    Parameters
    ----------
    groups
        An iterator of `get_many`. It is closed at the end.
    process
        What to do with a group.
    limit
        How many groups are processed at once. No further one is taken meanwhile.

    Raises
    ------
    Exception
        The first failure of `groups` or of `process`, as itself.
    """
    slots = asyncio.Semaphore(limit)
    running: set[asyncio.Task[ReadGroup]] = set()
    processed: deque[asyncio.Task[ReadGroup]] = deque()
    wake = asyncio.Event()

    def on_done(task: asyncio.Task[ReadGroup]) -> None:
        processed.append(task)
        wake.set()

    async def take() -> None:
        # In one task from beginning to end: a store may well use a task group or a timeout.
        async with closing_groups(groups):
            async for group in groups:
                await slots.acquire()
                task = asyncio.create_task(process(group))
                running.add(task)
                task.add_done_callback(on_done)

    taking = asyncio.create_task(take())
    taking.add_done_callback(lambda _: wake.set())
    try:
        while True:
            while processed:
                task = processed.popleft()
                result = task.result()
                running.remove(task)
                slots.release()
                yield result
            if taking.done():
                taking.result()
                if not running:
                    return
            wake.clear()
            await wake.wait()
    finally:
        await cancel_and_wait([taking, *running])
