"""Serve `Store.get_many` from a function that blocks: many requests for each hop to a thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core._bounded import (
    Fetch,
    fetch_limit,
    run_bounded,
    run_in_thread,
    split_requests,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core._bounded import ReadGroup
    from zarr.core.buffer import Buffer

SHARE = 128
"""Requests that a thread serves at most before it hands over what it has."""

SHARE_BYTES = 2 << 20
"""The same in bytes: a thread goes on until it holds so many, or more."""

SHARE_SECONDS = 0.004
"""The same in seconds, so that on slow storage decoding need not wait for a whole share."""

SLOW_SECONDS = 0.0002
"""Where not one request of a share took less, the thread is taken to wait for storage. A single
one may also have waited for the GIL."""


class Request(NamedTuple):
    """One request of a `get_many`."""

    number: int
    key: str
    byte_range: ByteRequest | None


def clipped(byte_range: ByteRequest | None, size: int) -> tuple[int, int] | None:
    """Where a byte range begins and ends in a value of `size` bytes.

    `None` if there are no bytes in it, or if it is odd: then `get` has to say what it means.
    """
    match byte_range:
        case None:
            start, end = 0, size
        case RangeByteRequest(int(start), int(end)) if start >= 0:
            end = min(end, size)
        case OffsetByteRequest(int(start)) if start >= 0:
            end = size
        case SuffixByteRequest(int(suffix)):
            start, end = max(0, size - suffix), size
        case _:
            return None
    return (start, end) if start < end else None


async def get_in_threads(
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    read: Callable[[Iterable[Request]], Generator[tuple[int, Buffer | None]]],
    *,
    threads: int | None = None,
) -> AsyncGenerator[ReadGroup]:
    """Serve `requests` with `read`, on worker threads, a share of them at a time.

    One thread takes shares, as long as storage is fast: a second one would wait for the first to
    let go of the GIL at each system call. Once a share shows that the thread waits for storage,
    there are as many as `async.concurrency` allows.

    Parameters
    ----------
    requests
        As for `Store.get_many`.
    read
        Serves requests. Those of one key come one after another.
    threads
        How many threads may run `read` at once, if the store has a limit of its own.

    Yields
    ------
    ReadGroup
        What one thread has read, in completion order.
    """
    pending = _by_key(requests)
    limit = min(fetch_limit(), threads or fetch_limit())
    slots = asyncio.Semaphore(1)
    waits_for_storage = False

    def take() -> tuple[ReadGroup, float]:
        began = before = time.monotonic()
        share: list[tuple[int, Buffer | None]] = []
        nbytes = 0
        fastest = math.inf

        def next_requests() -> Iterator[Request]:
            while len(share) < SHARE and nbytes < SHARE_BYTES:
                if share and before - began > SHARE_SECONDS:
                    return
                try:
                    yield pending.popleft()
                except IndexError:
                    return

        with closing(read(next_requests())) as results:
            for index, value in results:
                share.append((index, value))
                nbytes += 0 if value is None else len(value)
                now = time.monotonic()
                fastest = min(fastest, now - before)
                before = now
        return share, fastest

    async def run() -> ReadGroup:
        async with slots:
            return await watched(read_share) if pending else ()

    async def read_share() -> ReadGroup:
        nonlocal waits_for_storage
        try:
            share, fastest = await run_in_thread(take, stop=pending.clear, wait=False)
        except BaseException:
            pending.clear()  # no other thread goes on
            raise
        if share and not waits_for_storage and fastest > SLOW_SECONDS:
            waits_for_storage = True
            for _ in range(min(limit, len(pending)) - 1):
                slots.release()
        return share

    fetches = (Fetch(run, None, is_read=False) for _ in iter(pending.__len__, 0))
    async with aclosing(run_bounded(fetches, limit=limit)) as groups:
        async for group in groups:
            if group:
                yield group


def _by_key(requests: Sequence[str | tuple[str, ByteRequest | None]]) -> deque[Request]:
    """The requests, those of one key together, in the order in which the keys first occur."""
    of_key: dict[str, list[Request]] = {}
    for index, (key, byte_range) in enumerate(split_requests(requests)):
        of_key.setdefault(key, []).append(Request(index, key, byte_range))
    return deque(request for same_key in of_key.values() for request in same_key)
