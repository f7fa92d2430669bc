"""The inner chunks of a partially read shard are fetched concurrently, by any byte getter."""

from __future__ import annotations

from zarr.core._adaptive_limit import limit_of
from zarr.core.common import concurrent_map
from zarr.core.config import config as zarr_config
from zarr.storage._common import report_read


class ShardingCodec:
    async def _load_partial_shard_maybe(
        self,
        byte_getter: ByteGetter,  # of the shard
        prototype: BufferPrototype,
        chunks_per_shard: tuple[int, ...],
        all_chunk_coords: set[tuple[int, ...]],
        max_gap_bytes: int,
        max_coalesced_bytes: int,
    ) -> ShardMapping | None:
        """Read the inner chunks of a shard that exist, at most `async.concurrency` at a time."""
        shard_index = await self._load_shard_index_maybe(byte_getter, chunks_per_shard)
        if shard_index is None:
            return None
        located = self._pair_chunks_with_byte_ranges(shard_index, all_chunk_coords)
        limit = zarr_config.get("async.concurrency") or max(1, len(located))
        found: list[tuple[int, Buffer | None]] = []
        if isinstance(byte_getter, StorePath):
            if (backend := byte_getter.store._read_backend()) is not None:
                limit = limit_of(backend).share(limit)
            try:
                async for group in byte_getter.store.get_ranges(
                    byte_getter.path,
                    [byte_range for _, byte_range in located],
                    prototype=prototype,
                    max_concurrency=limit,
                    max_gap_bytes=max_gap_bytes,
                    max_coalesced_bytes=max_coalesced_bytes,
                ):
                    report_read([value for _, value in group])
                    found += group
            except BaseExceptionGroup as eg:
                _, rest = eg.split(FileNotFoundError)
                if rest is not None:
                    raise rest from None
                return None  # the shard was deleted after its index had been read
        elif isinstance(byte_getter, _ShardingByteGetter):  # in memory
            found = [(i, await byte_getter.get(prototype, at)) for i, (_, at) in enumerate(located)]
        else:
            ranges = [(prototype, byte_range) for _, byte_range in located]
            found += enumerate(await concurrent_map(ranges, byte_getter.get, limit))
        for index, data in found:
            byte_range = located[index][1]
            if data is not None and len(data) > max(0, byte_range.end - byte_range.start):
                raise OSError(f"Requested {byte_range}, but got {len(data)} bytes.")
        return {located[index][0]: data for index, data in found if data is not None}
