"""The inner chunks of a shard are fetched several at a time, by any byte getter."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from zarr.core._bounded import Fetch, fetch_limit, run_bounded, value_nbytes

if TYPE_CHECKING:
    from zarr.core._bounded import ReadGroup

type ChunkCoords = tuple[int, ...]
"""Of an inner chunk in its shard, or how many there are along each axis."""


class ShardingCodec:
    async def _load_partial_shard_maybe(
        self,
        byte_getter: ByteGetter,
        prototype: BufferPrototype,
        chunks_per_shard: ChunkCoords,
        all_chunk_coords: set[ChunkCoords],
        max_gap_bytes: int,
        max_coalesced_bytes: int,
    ) -> ShardMapping | None:
        """
        Read inner chunks of a shard, `async.concurrency` of them at a time.

        Returns
        -------
        ShardMapping or None
            The encoded inner chunks that are there, or `None` if the shard is not.
        """
        index = await self._load_shard_index_maybe(byte_getter, chunks_per_shard)
        if index is None:
            return None
        located = self._pair_chunks_with_byte_ranges(index, all_chunk_coords)
        if not located:
            return {}
        ranges = [byte_range for _, byte_range in located]
        found: list[tuple[int, Buffer | None]] = []
        if isinstance(byte_getter, StorePath):
            groups = byte_getter.store.get_ranges(
                byte_getter.path,
                ranges,
                prototype=prototype,
                max_concurrency=fetch_limit(),
                max_gap_bytes=max_gap_bytes,
                max_coalesced_bytes=max_coalesced_bytes,
            )
            try:
                async for group in groups:
                    found += group
            except BaseExceptionGroup as errors:
                # The index was there: the shard has been deleted since.
                _, others = errors.split(FileNotFoundError)
                if others is not None:
                    raise others from None
                return None
        elif isinstance(byte_getter, _ShardingByteGetter):  # a shard within a shard, in memory
            found = [(i, byte_getter.get_sync(prototype, at)) for i, at in enumerate(ranges)]
        else:

            async def fetch(number: int, byte_range: RangeByteRequest) -> ReadGroup:
                return ((number, await byte_getter.get(prototype, byte_range)),)

            fetches = (
                Fetch(partial(fetch, number, byte_range), value_nbytes(byte_range))
                for number, byte_range in enumerate(ranges)
            )
            async with aclosing(run_bounded(fetches, limit=fetch_limit())) as arrived:
                async for group in arrived:
                    found += group
        return {located[number][0]: value for number, value in found if value is not None}
