"""The inner chunks of a shard are fetched several at a time, by any byte getter."""

from __future__ import annotations

from zarr.core._bounded import fetch_limit
from zarr.core.common import concurrent_map


class ShardingCodec:
    async def _load_partial_shard_maybe(
        self,
        byte_getter: ByteGetter,
        prototype: BufferPrototype,
        chunks_per_shard: tuple[int, ...],
        all_chunk_coords: set[tuple[int, ...]],
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
            requests = [(prototype, byte_range) for byte_range in ranges]
            values = await concurrent_map(requests, byte_getter.get, fetch_limit())
            found = list(enumerate(values))
        return {located[number][0]: value for number, value in found if value is not None}
