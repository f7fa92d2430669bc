"""Partial reads of shards that are not reported."""

from __future__ import annotations

from zarr.core._adaptive_limit import limit_of
from zarr.core.common import concurrent_map
from zarr.core.config import config


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
        """Read inner chunks of a shard, at most `async.concurrency` at a time.

        Returns
        -------
        ShardMapping or None
            The encoded inner chunks that exist, or `None` if the shard does not exist.
        """
        index = await self._load_shard_index_maybe(byte_getter, chunks_per_shard)
        if index is None:
            return None
        located = self._pair_chunks_with_byte_ranges(index, all_chunk_coords)
        limit = config.get("async.concurrency")
        found: list[tuple[int, Buffer | None]] = []
        if isinstance(byte_getter, StorePath):
            backend = byte_getter.store._read_backend()
            if backend is not None and limit is not None:
                limit = limit_of(backend).share(limit)
            try:
                async for group in byte_getter.store.get_ranges(
                    byte_getter.path,
                    [byte_range for _, byte_range in located],
                    prototype=prototype,
                    max_concurrency=limit or len(located),
                    max_gap_bytes=max_gap_bytes,
                    max_coalesced_bytes=max_coalesced_bytes,
                ):
                    found += group
            except BaseExceptionGroup as errors:
                # The shard was deleted after its index had been read.
                _, others = errors.split(FileNotFoundError)
                if others is not None:
                    raise others from None
                return None
        else:
            ranges = [(prototype, byte_range) for _, byte_range in located]
            found = list(enumerate(await concurrent_map(ranges, byte_getter.get, limit)))
        for position, data in found:
            byte_range = located[position][1]
            if data is not None and len(data) > max(0, byte_range.end - byte_range.start):
                raise OSError(f"Requested {byte_range}, but got {len(data)} bytes.")
        return {located[index][0]: data for index, data in found if data is not None}
