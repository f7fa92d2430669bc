"""Run many reads at once, within limits, and hand over each result as it arrives.

`run_bounded` is what every `Store.get_many` in this package schedules its fetches with:
it starts them lazily, holds back when the consumer is slow, and leaves nothing running
behind. What a fetch *is* (one `get`, one merged byte range) is the caller's business.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

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
    from typing import Any

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

type ReadGroup = Sequence[tuple[int, Buffer | None]]
"""What one underlying operation returned: `(index of the request, value)` for each it served."""

MAX_BYTES_IN_FLIGHT = 64 << 20
"""Bytes of fetches in flight and of results not yet taken, beyond which no further one starts.

By Little's law 64 MiB keep a 10 Gbit/s link busy up to 50 ms of latency. It never holds back the
first `async.concurrency` fetches, whatever their size: zarr has always had that many under way.
"""

BURST = 16
"""Fetches started at most in one turn of the event loop, so that it gets to send them and to see
what has arrived."""

expected_nbytes: ContextVar[int | None] = ContextVar("expected_nbytes", default=None)
"""How large a whole value may be, if the consumer knows: a chunk is seldom larger encoded than
decoded. With it, many small values are fetched at once from the start, not only when the first
of them has shown its size. A store need not care."""


class Fetch(NamedTuple):
    """One operation to run, and how many bytes it will return (`None`: not known beforehand)."""

    run: Callable[[], Coroutine[Any, Any, ReadGroup]]
    nbytes: int | None


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
    configured: int | None = config.get("async.concurrency")
    if configured is None:
        return sys.maxsize
    if backend is None or configured != config.defaults[0]["async"]["concurrency"]:
        return max(1, configured)
    return backend


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
            yield await fetch(index, key, byte_range).run()
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

    A fetch of unknown size counts as the largest value seen so far; until there is one, as what
    the consumer expects. Where nothing is known, only `unmetered` of them may start. An absent
    key teaches nothing: the next one may be large.
    """

    def __init__(self, limit: int, unmetered: int, expected: int | None) -> None:
        self.limit = limit
        self.unmetered = min(limit, unmetered)
        self.expected = expected
        self.seen: int | None = None
        self.count = 0
        self.known_bytes = 0
        self.unknown = 0

    def admits(self, nbytes: int | None) -> bool:
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
        return held + (estimate if nbytes is None else nbytes) <= MAX_BYTES_IN_FLIGHT

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
        if actual:
            self.seen = max(self.seen or 0, actual)

    def take(self, actual: int) -> None:
        self.count -= 1
        self.known_bytes -= actual


async def run_bounded(fetches: Iterable[Fetch], *, limit: int) -> AsyncGenerator[ReadGroup]:
    """Run `fetches`, several at a time, and yield what each returns, in completion order.

    `fetches` is consumed lazily. What is in flight and what has arrived but was not taken
    are limited together: to `limit` in number, and to `MAX_BYTES_IN_FLIGHT`, which does not
    hold back the first `async.concurrency` of them. So a slow consumer holds the producer back.

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
    window = _Window(limit, fetch_limit(), expected_nbytes.get())
    loop = asyncio.get_running_loop()
    upcoming = iter(fetches)
    held: dict[asyncio.Task[ReadGroup], int | None] = {}
    arrived: deque[asyncio.Task[ReadGroup]] = deque()
    wake = asyncio.Event()
    credit = BURST

    def on_done(task: asyncio.Task[ReadGroup]) -> None:
        window.arrive(held[task], _nbytes(task))
        arrived.append(task)
        wake.set()

    def renew_credit() -> None:
        nonlocal credit
        credit = BURST
        wake.set()

    try:
        following = next(upcoming, None)
        while following is not None or held:
            while following is not None and credit and window.admits(following.nbytes):
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
            group = arrived[0].result()
            task = arrived.popleft()
            del held[task]
            window.take(_nbytes(task))
            yield group
    except Exception as error:
        await cancel_and_wait(held)
        attach_others(error, _failures(held))
        raise
    finally:
        await cancel_and_wait(held)


def _failures(tasks: Iterable[asyncio.Task[ReadGroup]]) -> list[BaseException]:
    return [error for task in tasks if not task.cancelled() and (error := task.exception())]


def _nbytes(task: asyncio.Task[ReadGroup]) -> int:
    if task.cancelled() or task.exception() is not None:
        return 0
    return sum(len(value) for _, value in task.result() if value is not None)


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


def attach_others(error: BaseException, others: Iterable[BaseException]) -> None:
    """Hang failures of the same moment at the end of the `__cause__` chain of `error`."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and all(cause is not e for e in chain):
        chain.append(cause)
    distinct = [other for other in others if all(other is not e for e in chain)]
    if distinct and chain[-1].__cause__ is None:
        chain[-1].__cause__ = BaseExceptionGroup("other reads failed as well", distinct)


@asynccontextmanager
async def flat_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first failure as itself, not in a group."""
    failures: BaseExceptionGroup[BaseException] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as raised:
        failures = raised
    if failures is not None:
        first, *others = failures.exceptions
        attach_others(first, others)
        raise first


@asynccontextmanager
async def closing_groups(
    groups: AsyncIterator[ReadGroup],
) -> AsyncIterator[AsyncIterator[ReadGroup]]:
    """Close an iterator of `get_many` on exit, if it has anything to close.

    `contextlib.aclosing` for an iterator that need not be a generator: a store may return any.
    """
    try:
        yield groups
    finally:
        aclose: Callable[[], Awaitable[None]] | None = getattr(groups, "aclose", None)
        if aclose is not None:
            await aclose()
