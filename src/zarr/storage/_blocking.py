"""`Store.get_many` for stores whose reads block: a worker thread serves many requests in a row."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING

from zarr.abc.store import noting, numbered_requests
from zarr.core.common import concurrent_as_completed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

SHARE = 64
"""How many requests a thread serves at most before it returns the values."""

SHARE_BYTES = 1 << 20
"""How many bytes a thread reads, or more, before it returns the values."""


async def get_in_threads(
    store: Store,
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    get: Callable[[str, ByteRequest | None], Buffer | None],
    threads: int | None,
) -> AsyncGenerator[Sequence[tuple[int, Buffer | None]]]:
    """Call `get(key, byte_range)` of `store` for each request, on at most `threads` threads at a time.

    Each thread takes the next request when it is done with one. So if storage is fast, few threads
    do all the work; if it is slow, all of them wait for it together. After a failure or a
    cancellation, a thread finishes the request at hand and stops.

    See `Store.get_many` for `requests` and what is yielded.
    """
    pending = deque(numbered_requests(requests))

    def get_share() -> Sequence[tuple[int, Buffer | None]]:
        share: list[tuple[int, Buffer | None]] = []
        nbytes = 0
        while len(share) < SHARE and nbytes < SHARE_BYTES:
            try:
                index, key, byte_range = pending.popleft()
            except IndexError:
                break
            with noting(store, key):
                value = get(key, byte_range)
            share.append((index, value))
            nbytes += 0 if value is None else len(value)
        return share

    limit = min(threads or len(pending), len(pending)) or None
    calls = ((get_share,) for _ in iter(pending.__len__, 0))
    try:
        async with aclosing(concurrent_as_completed(calls, asyncio.to_thread, limit)) as shares:
            async for share in shares:
                if share:
                    yield share
    finally:
        pending.clear()
