"""The simulated latency applies to each fetch of a `get_many`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from zarr.core._bounded import get_each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class LatencyStore:
    # overlay: after get_ranges
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Reads built on `self.get`, so that each fetch pays latency.

        As many are in flight as a remote backend serves at once: a hundred, the size of
        aiohttp's connection pool, unless `async.concurrency` is set.
        """
        each = get_each(self.get, requests, prototype=prototype, backend_limit=100)
        async with aclosing(each) as groups:
            async for group in groups:
                yield group
