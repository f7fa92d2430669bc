"""How many fetches from a backend are in flight: more than `async.concurrency` while that helps."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from contextlib import aclosing
from dataclasses import dataclass, field
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from zarr.core.common import concurrent_as_completed
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator

MAX_CONCURRENCY = 128
"""Default of `async.max_concurrency`."""

MAX_EXTRA_BYTES = 64 << 20
"""How many bytes the fetches beyond the first `async.concurrency` may hold, in flight or not yet
taken."""

FIRST_BYTES = 4 << 20
"""How many bytes twice `async.concurrency` fetches may hold to be in flight from the start: what
a link of 120 kB/s transfers in 35 s, long before a client's time-out."""

SLOWER = 3
"""The limit grows while fetches take at most this many times as long as the fastest ones. By then,
most of their time is spent in a queue, of the server, the link or the client."""

RANGES = 10
"""How many ranges of a key `Store.get_ranges` reads at once by default."""


@dataclass(eq=False)
class _Read:
    """An iteration over fetches: the numbers of those in flight, how many failed and are repeated."""

    in_flight: set[int] = field(default_factory=set)
    to_repeat: int = 0


@dataclass(eq=False)
class AdaptiveLimit:
    """The number of fetches in flight that a backend answers without delay.

    All reads of a backend in one event loop share it. `async.concurrency` fetches of each read are
    always allowed. The limit decides about the extra ones. When it is reached, a round begins: once
    all fetches that are in flight then have ended, their durations decide how the limit changes.
    """

    limit: int = 0
    careful: bool = False
    """Whether extra fetches have failed. The limit then grows by one instead of doubling."""

    reads: list[_Read] = field(default_factory=list)
    started: int = 0
    extra_started: int = 0
    _round: set[int] = field(default_factory=set)
    _durations: list[float] = field(default_factory=list)
    _fastest: float = math.inf
    _no_extra: asyncio.Event = field(default_factory=asyncio.Event)

    def in_flight(self) -> int:
        return sum(len(read.in_flight) for read in self.reads)

    def extra(self, concurrency: int) -> int:
        """Return how many fetches are in flight beyond the first ones of each read."""
        return sum(max(0, len(read.in_flight) - concurrency) for read in self.reads)

    def has_room(self, concurrency: int, held: int, largest: int) -> bool:
        """Whether a read may start an extra fetch if it holds so many, in flight or not yet taken.

        Until the first round has ended, twice `async.concurrency` fetches may start if they are small.
        """
        most = max_concurrency(concurrency)
        limit = self.limit = min(self.limit, most)
        is_first = self._fastest == math.inf and not self.careful
        if is_first and 2 * concurrency * largest <= FIRST_BYTES:
            limit = max(limit, min(2 * concurrency, most))
        has_room = held < most and self.in_flight() < limit
        return has_room and not any(read.to_repeat for read in self.reads)

    def start(self, read: _Read, concurrency: int) -> int:
        """Count a fetch that starts, and return its number."""
        self.limit = max(self.limit, concurrency)
        self.started += 1
        read.in_flight.add(self.started)
        if len(read.in_flight) > concurrency:
            self.extra_started += 1
            self._no_extra.clear()
        if not self._round and self.in_flight() >= self.limit:
            self._round.update(*(read.in_flight for read in self.reads))
        return self.started

    def end(self, read: _Read, number: int, concurrency: int, seconds: float | None = None) -> None:
        """Count a fetch that has ended, after so many seconds if it succeeded."""
        read.in_flight.discard(number)
        if not self.extra(concurrency):
            self._no_extra.set()
        if number in self._round:
            self._round.remove(number)
            if seconds is not None:
                self._durations.append(seconds)
            if not self._round and self._durations:
                self._adapt()
                self._durations.clear()

    def _adapt(self) -> None:
        # A few very slow fetches show that there are too many, so the mean counts. Without them,
        # the median is what a fetch takes.
        self._fastest = min(self._fastest, median(self._durations))
        slower = mean(self._durations) / self._fastest
        if slower > 2 * SLOWER:
            self.limit //= 2
        elif slower <= SLOWER:
            self.limit += 1 if self.careful else self.limit

    def failed(self) -> None:
        """Fall back to `async.concurrency`, since a fetch failed while there were extra ones."""
        self.limit, self.careful = 0, True
        self._round.clear()
        self._durations.clear()

    def share(self, concurrency: int) -> int:
        """Return how many requests a fetch may make at once, if each fetch makes several.

        Together they make no more than `async.concurrency` fetches that read `RANGES` ranges each.
        """
        allowed = len(self.reads) * concurrency * min(concurrency, RANGES)
        in_flight = self.in_flight()
        return max(1, min(concurrency, allowed // in_flight)) if in_flight else concurrency

    async def as_completed[T: tuple[Any, ...], V](
        self,
        items: Iterable[T],
        func: Callable[..., Coroutine[Any, Any, V]],
        nbytes: Callable[[V], int],
        concurrency: int,
        size: Callable[..., int],
    ) -> AsyncGenerator[V]:
        """Call `func(*item)` for every item concurrently, and yield the results as they arrive.

        A call that fails while there are extra ones is repeated once, without any.
        """
        read = _Read()
        failed: list[T] = []
        largest = 0

        def admits(held: int) -> bool:
            if held < concurrency:
                return True
            extra_bytes = (held + 1 - concurrency) * largest
            most_bytes = MAX_EXTRA_BYTES // len(self.reads)
            return 0 < extra_bytes <= most_bytes and self.has_room(concurrency, held, largest)

        def calls() -> Iterator[tuple[int, T, bool]]:
            nonlocal largest
            for item in items:
                largest = max(largest, size(*item))
                while failed and not self.extra(concurrency):
                    yield self.start(read, concurrency), failed.pop(), True
                yield self.start(read, concurrency), item, False

        async def call(number: int, item: T, is_repeated: bool) -> V | None:
            nonlocal largest
            had_extra, extra_started = self.extra(concurrency), self.extra_started
            started, seconds = time.perf_counter(), None
            try:
                result = await func(*item)
                seconds = time.perf_counter() - started
            except Exception:
                if is_repeated or not (had_extra or self.extra_started != extra_started):
                    raise
                self.failed()
                failed.append(item)
                read.to_repeat += 1
                return None
            finally:
                self.end(read, number, concurrency, seconds)
                read.to_repeat -= is_repeated
            largest = max(largest, nbytes(result), 1)
            return result

        self.reads.append(read)
        try:
            async with aclosing(concurrent_as_completed(calls(), call, admits)) as results:
                async for result in results:
                    if result is not None:
                        yield result
            if failed:
                await self._no_extra.wait()
                async with aclosing(concurrent_as_completed(failed, func, concurrency)) as repeated:
                    async for result in repeated:
                        yield result
        finally:
            # Calls that were cancelled before they began have not been counted as ended.
            for number in list(read.in_flight):
                self.end(read, number, concurrency)
            self.reads.remove(read)


_limits: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[int, tuple[weakref.ref[Any], AdaptiveLimit]]
] = weakref.WeakKeyDictionary()
_all_limits: weakref.WeakSet[AdaptiveLimit] = weakref.WeakSet()


def limit_of(backend: Any) -> AdaptiveLimit:
    """Return the limit of a filesystem or object store in the running event loop."""
    limits = _limits.setdefault(asyncio.get_running_loop(), {})
    key = id(backend)  # obstore's stores cannot be hashed
    if key not in limits:
        limits[key] = weakref.ref(backend, lambda _: limits.pop(key, None)), AdaptiveLimit()
        _all_limits.add(limits[key][1])
    return limits[key][1]


def max_concurrency(concurrency: int) -> int:
    """Return how many fetches from one backend may be in flight if `async.concurrency` are always.

    `async.concurrency` has been lowered on purpose if it is less than its default, so there are no
    extra fetches then. Each takes a file descriptor for its connection; the backends share a quarter
    of those that the process may have.
    """
    if concurrency < config.defaults[0]["async"]["concurrency"]:
        return concurrency
    most: int = config.get("async.max_concurrency", MAX_CONCURRENCY)
    try:
        import resource
    except ImportError:
        return max(concurrency, most)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        most = min(most, files // 4 // max(1, len(_all_limits)))
    return max(concurrency, most)


def fetch_as_completed[T: tuple[Any, ...], V](
    backend: object | None,
    items: Iterable[T],
    func: Callable[..., Coroutine[Any, Any, V]],
    nbytes: Callable[[V], int],
    max_concurrency: int | None = None,
    *,
    size: Callable[..., int] = lambda *_: 0,
) -> AsyncGenerator[V]:
    """Call `func(*item)`, which fetches from `backend`, for every item, as `concurrent_as_completed`.

    Parameters
    ----------
    backend
        The filesystem or object store, or `None` if no more than `async.concurrency` calls may be
        in flight.
    nbytes
        Returns how many bytes a result has. The largest result stands for those in flight.
    max_concurrency
        How many calls may be in flight. By default, `async.concurrency`, and more if that helps.
    size
        Returns how many bytes the result of `func(*item)` will have, given `*item`, or 0 if that is
        not known. Until it is known for an item, or a result has arrived, no extra calls start.
    """
    concurrency = max_concurrency or config.get("async.concurrency")
    if backend is None or concurrency is None or max_concurrency is not None:
        return concurrent_as_completed(items, func, concurrency)
    return limit_of(backend).as_completed(items, func, nbytes, concurrency, size)
