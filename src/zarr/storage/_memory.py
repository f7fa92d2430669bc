"""`MemoryStore.get_many`: values are looked up in a loop, without a task for each."""

from __future__ import annotations

import asyncio
from itertools import batched
from typing import TYPE_CHECKING

from zarr.abc.store import numbered_requests, paired_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

GROUP_SIZE = 64
"""How many values `MemoryStore.get_many` looks up before other tasks get their turn."""


class MemoryStore:
    # overlay: after get
    _own_get = get
    """The `get` that `get_sync` may stand in for, if nothing has replaced it."""

    # overlay: after _own_get
    @paired_with(get)
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        for group in batched(numbered_requests(requests), GROUP_SIZE):
            yield [
                (index, await self.get(key, prototype=prototype, byte_range=byte_range))
                for index, key, byte_range in group
            ]
            await asyncio.sleep(0)
