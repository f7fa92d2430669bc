"""`Store.get_many` without an adaptive limit."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zarr.core.buffer import Buffer, BufferPrototype


class Store:
    # overlay: after _get_many
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many values, or byte ranges of values, of many keys.

        The default calls `get` for each request, at most `max_concurrency` at a time. Stores
        whose backend can batch or merge requests should override it.

        Parameters
        ----------
        requests
            Keys, or `(key, byte_range)` pairs. A `byte_range` of `None` means the whole value,
            as does a key by itself. A key may occur several times.
        prototype
            Buffer prototype of the values.
        max_concurrency
            How many requests may be in flight. By default, `async.concurrency`.

        Yields
        ------
        Sequence[tuple[int, Buffer | None]]
            Groups of `(index, value)` pairs in completion order. Each index into `requests` is
            reported once. `None` means that the key does not exist.

        Raises
        ------
        TypeError
            If a request is neither a key nor a pair.
        Exception
            Whatever `get` raises. A failure is never reported as `None`.

        Notes
        -----
        Requests are started lazily. When the iteration fails, is cancelled, or is closed early
        (`contextlib.aclosing`), the requests in flight are cancelled and awaited first.

        Decorate an override with `zarr.abc.store.paired_with(get)` in the class that defines
        `get`. A subclass that overrides only `get` is then read through its `get`. As any `get_many`
        may call `get`, a subclass that translates keys must not pass translated ones to `super()`.
        """
        # Local imports: these modules import symbols from this one.
        from zarr.core.common import concurrent_as_completed
        from zarr.core.config import config

        async def fetch(
            index: int, key: str, byte_range: ByteRequest | None
        ) -> Sequence[tuple[int, Buffer | None]]:
            with noting(self, key):
                value = await self.get(key, prototype=prototype, byte_range=byte_range)
            return ((index, value),)

        limit = max_concurrency or config.get("async.concurrency")
        async with aclosing(
            concurrent_as_completed(numbered_requests(requests), fetch, limit)
        ) as groups:
            async for group in groups:
                yield group
