"""Both pipelines read whole chunks with one `get_many`, see `zarr.core._chunk_reads`.

So they do where they write, with the chunks that have to be merged with what is stored.
"""

from __future__ import annotations

import os
from itertools import batched, chain
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor

    from zarr.codecs.sharding import ShardingCodec
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
    from zarr.core._chunk_reads import decode_in_batches, decode_in_threads

    transform, executor, workers = _bulk_decoding(pipeline)
    if transform is None:
        size = max(1, getattr(pipeline, "batch_size", 1))
        return await decode_in_batches(batch, out, drop_axes, pipeline, batch_size=size)
    return await decode_in_threads(
        batch, out, drop_axes, transform, executor=executor, workers=workers
    )


# overlay: after _async_read_fallback
def _bulk_decoding(pipeline: CodecPipeline) -> tuple[ChunkTransform | None, Executor | None, int]:
    """How the chunks of a pipeline are decoded on several threads.

    Returns
    -------
    transform
        What decodes a chunk, or `None` if `pipeline.decode` has to.
    executor
        Where the threads come from; `None` for the default executor of the event loop.
    workers
        How many threads decode at once.
    """
    from zarr.core._chunk_reads import bulk_transform

    if isinstance(pipeline, FusedCodecPipeline):
        workers = _resolve_max_workers()
        return pipeline.sync_transform, _get_pool(workers), workers
    limit = config.get("threading.max_workers")
    workers = limit if isinstance(limit, int) and limit > 0 else os.cpu_count() or 1
    if not isinstance(pipeline, BatchedCodecPipeline) or any(
        _overrides(pipeline, method) for method in ("decode", "decode_batch")
    ):
        return None, None, workers
    return bulk_transform(pipeline), None, workers


# overlay: after _bulk_decoding
async def _read_shards(
    pipeline: CodecPipeline,
    codec: ShardingCodec,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read the selected parts of shards, see `zarr.core._shard_reads`."""
    from zarr.core._shard_reads import read_shards

    transforms: dict[int, ChunkTransform | None] = {}  # by the id of a spec, which `batch` holds

    def transform_of(shard_spec: ArraySpec) -> ChunkTransform | None:
        if id(shard_spec) not in transforms:
            inner = codec._get_inner_pipeline(shard_spec)
            known = type(inner) in (BatchedCodecPipeline, FusedCodecPipeline)
            codecs = cast("Iterable[Codec]", inner if known else ())
            nested = any(hasattr(each, "_sync_capable") for each in codecs)
            bulk = _bulk_decoding(inner)[0] if known and not nested else None
            transforms[id(shard_spec)] = bulk
        return transforms[id(shard_spec)]

    _, executor, workers = _bulk_decoding(pipeline)
    return await read_shards(
        codec, batch, out, drop_axes, transform_of=transform_of, executor=executor, workers=workers
    )


# overlay: after _async_read_fallback
def _is_synchronous(getter: ByteGetter, protocol: type) -> bool:
    """Whether a byte getter, or the store behind it, has the synchronous methods of a protocol."""
    from zarr.abc.store import _store_supports_sync_io
    from zarr.storage._common import StorePath

    if isinstance(getter, StorePath):
        return _store_supports_sync_io(getter.store)
    return isinstance(getter, protocol)


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
        # Local import: zarr.core._shard_plan imports zarr.storage, which leads back here.
        from zarr.core._shard_plan import reads_together

        codec = self.array_bytes_codec
        own = any(_overrides(self, method) for method in ("read_batch", "decode_partial_batch"))
        if not own and not self.supports_partial_decode:
            # `batch_size` governs decoding alone: what is fetched is asked for in one go.
            return await _async_read_fallback(self, batch, out, drop_axes)
        if not own and reads_together(codec, batch):
            return await _read_shards(self, cast("ShardingCodec", codec), batch, out, drop_axes)
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
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        from zarr.abc.store import SyncByteGetter
        from zarr.core._shard_plan import reads_together

        batch = list(batch_info)
        if not batch:
            return ()
        codec = self.array_bytes_codec
        if self.sync_transform is not None and _is_synchronous(batch[0][0], SyncByteGetter):
            read, workers = self.read_sync, _resolve_max_workers()
            return await asyncio.to_thread(read, batch, out, drop_axes, max_workers=workers)
        if not self.supports_partial_decode:
            return await _async_read_fallback(self, batch, out, drop_axes)
        if reads_together(codec, batch):
            return await _read_shards(self, cast("ShardingCodec", codec), batch, out, drop_axes)
        partly = cast("ArrayBytesCodecPartialDecodeMixin", codec)
        chunks = await partly.decode_partial([(item[0], item[2], item[1]) for item in batch])
        return tuple(
            scatter_chunk(chunk, out, chunk_spec=spec, out_selection=selection, drop_axes=drop_axes)
            for chunk, (_, spec, _, selection, _) in zip(chunks, batch, strict=True)
        )

    async def write(
        self,
        batch_info: Iterable[ChunkWrite],
        value: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> None:
        from zarr.abc.store import SyncByteSetter
        from zarr.core._chunk_writes import fetch_existing

        batch = list(batch_info)
        if not batch:
            return
        if self.sync_transform is not None and _is_synchronous(batch[0][0], SyncByteSetter):
            write, workers = self.write_sync, _resolve_max_workers()
            await asyncio.to_thread(write, batch, value, drop_axes, max_workers=workers)
        else:
            await _async_write_fallback(self, await fetch_existing(batch), value, drop_axes)
