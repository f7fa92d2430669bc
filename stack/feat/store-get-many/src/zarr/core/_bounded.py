"""Before a consumer can limit the fetches of several reads together."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from typing import Any

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


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
