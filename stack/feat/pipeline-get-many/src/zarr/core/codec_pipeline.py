"""Reads as the core series has them: no more parts at once than `async.concurrency`."""

from __future__ import annotations

from itertools import batched, chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


# overlay: after _run_in_thread
async def _read_parts(
    pipeline: BatchedCodecPipeline,
    parts: Sequence[Sequence[ChunkRead]],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read parts of a batch concurrently: shards, or all whole chunks as one part."""
    calls = [(part, out, drop_axes) for part in parts]
    results = await concurrent_map(calls, pipeline.read_batch, config.get("async.concurrency"))
    return tuple(chain.from_iterable(results))


class BatchedCodecPipeline:
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = list(batch_info)
        # Whole chunks are requested together; `batch_size` then only applies to decoding.
        size = self.batch_size if self.supports_partial_decode else max(1, len(batch))
        return await _read_parts(self, list(batched(batch, size)), out, drop_axes)
