"""Before chunks are decoded on worker threads, and before shards are read together."""

from __future__ import annotations

from itertools import batched, chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.core._chunk_reads import ChunkRead


async def _async_read_fallback(
    pipeline: CodecPipeline,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read whole chunks: fetch them with one request, decode and scatter as bytes arrive.

    `pipeline.decode` gets the chunks in batches.
    """
    # Local import: zarr.core._chunk_reads imports zarr.storage, which leads back here.
    from zarr.core._chunk_reads import decode_in_batches

    size = max(1, getattr(pipeline, "batch_size", 1))
    return await decode_in_batches(batch, out, drop_axes, pipeline, batch_size=size)


class BatchedCodecPipeline:
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = list(batch_info)
        if not batch:
            return ()
        own = any(_overrides(self, method) for method in ("read_batch", "decode_partial_batch"))
        if not own and not self.supports_partial_decode:
            # `batch_size` governs decoding alone: what is fetched is asked for in one go.
            return await _async_read_fallback(self, batch, out, drop_axes)
        parts = [(part, out, drop_axes) for part in batched(batch, self.batch_size)]
        results = await concurrent_map(parts, self.read_batch, config.get("async.concurrency"))
        return tuple(chain.from_iterable(results))
