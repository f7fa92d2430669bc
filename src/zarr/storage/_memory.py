"""`MemoryStore.get_many`: no task for each key, few groups."""

from __future__ import annotations

import asyncio
from itertools import batched
from typing import TYPE_CHECKING

from zarr.core._bounded import closing_groups, split_requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

HANDED_OVER = 64
"""How many values `MemoryStore.get_many` hands over at a time: other tasks get their turn between."""


class MemoryStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        if not self._is_open:
            await self._open()
        for window in batched(enumerate(split_requests(requests)), HANDED_OVER):
            yield [
                (index, self._look_up(key, prototype, byte_range))
                for index, (key, byte_range) in window
            ]
            await asyncio.sleep(0)

    # overlay: after get_many
    def _look_up(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        try:
            value = self._store_dict[key]
        except KeyError:
            return None
        if byte_range is not None:
            start, stop = _normalize_byte_range_index(value, byte_range)
            return prototype.buffer.from_buffer(value[start:stop])
        buffer = prototype.buffer.from_buffer(value)
        return value[:] if buffer is value else buffer  # never the very buffer that is stored


class ManagedMemoryStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        prefixed = [(_join_paths([self.path, key]), at) for key, at in split_requests(requests)]
        async with closing_groups(super().get_many(prefixed, prototype=prototype)) as groups:
            async for group in groups:
                yield group
