"""Both pipelines read whole chunks with one `get_many`, see `zarr.core._chunk_reads`.

So they do where they write, with the chunks that have to be merged with what is stored.
"""

from __future__ import annotations

from itertools import batched, chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.core._chunk_reads import ChunkRead
    from zarr.core._chunk_writes import ChunkWrite


async def _async_read_fallback(
    pipeline: CodecPipeline,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read whole chunks: fetch them with one request, decode and scatter as bytes arrive.

    Where every codec can decode synchronously, worker threads do so: those of the event loop
    for `BatchedCodecPipeline`, those of `codec_pipeline.max_workers` for `FusedCodecPipeline`.
    Otherwise `pipeline.decode` gets the chunks in batches.
    """
    # Local import: zarr.core._chunk_reads imports zarr.storage, which leads back here.
    from zarr.core._chunk_reads import bulk_transform, decode_in_batches, decode_in_threads

    transform = executor = None
    workers = os.cpu_count() or 1
    if isinstance(pipeline, FusedCodecPipeline):
        transform, workers = pipeline.sync_transform, _resolve_max_workers()
        executor = _get_pool(workers)
    elif isinstance(pipeline, BatchedCodecPipeline) and not (
        _overrides(pipeline, "decode") or _overrides(pipeline, "decode_batch")
    ):
        transform = bulk_transform(pipeline)
        limit = config.get("threading.max_workers")
        if isinstance(limit, int) and limit > 0:
            workers = limit
    if transform is None:
        size = max(1, getattr(pipeline, "batch_size", 1))
        return await decode_in_batches(batch, out, drop_axes, pipeline, batch_size=size)
    return await decode_in_threads(
        batch, out, drop_axes, transform, executor=executor, workers=workers
    )


# overlay: after _async_read_fallback
def _overrides(pipeline: BatchedCodecPipeline, method: str) -> bool:
    """Whether the class of `pipeline` has a `method` other than that of `BatchedCodecPipeline`."""
    return getattr(type(pipeline), method) is not getattr(BatchedCodecPipeline, method)


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
        if not self.supports_partial_decode and not _overrides(self, "read_batch"):
            # `batch_size` governs decoding alone: what is fetched is asked for in one go.
            return await _async_read_fallback(self, batch, out, drop_axes)
        parts = [(part, out, drop_axes) for part in batched(batch, self.batch_size)]
        results = await concurrent_map(parts, self.read_batch, config.get("async.concurrency"))
        return tuple(chain.from_iterable(results))

    async def write(
        self,
        batch_info: Iterable[ChunkWrite],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        # Local import: zarr.core._chunk_writes imports zarr.storage, which leads back here.
        from zarr.core._chunk_writes import write_batches

        batch, size = list(batch_info), self.batch_size
        several = sum(not is_complete for *_, is_complete in batch) > 1
        if several and not self.supports_partial_encode and not _overrides(self, "write_batch"):
            await write_batches(self, batch, value, drop_axes, batch_size=size)
            return
        parts = [(part, value, drop_axes) for part in batched(batch, size)]
        await concurrent_map(parts, self.write_batch, config.get("async.concurrency"))


class FusedCodecPipeline:
    async def write(
        self,
        batch_info: Iterable[ChunkWrite],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        from zarr.abc.store import SyncByteSetter, _store_supports_sync_io
        from zarr.core._chunk_writes import fetch_existing
        from zarr.storage._common import StorePath

        batch = list(batch_info)
        if not batch:
            return
        setter = batch[0][0]
        if isinstance(setter, StorePath):
            in_thread = _store_supports_sync_io(setter.store)
        else:
            in_thread = isinstance(setter, SyncByteSetter)
        if in_thread and self.sync_transform is not None:
            write, workers = self.write_sync, _resolve_max_workers()
            await asyncio.to_thread(write, batch, value, drop_axes, max_workers=workers)
        else:
            await _async_write_fallback(self, await fetch_existing(batch), value, drop_axes)
