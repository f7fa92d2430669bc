"""Reads that are not reported, of no more shards at once than `async.concurrency`."""

from __future__ import annotations

from contextlib import aclosing, nullcontext, suppress
from contextvars import copy_context
from itertools import batched, chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
    from concurrent.futures import Executor


# overlay: after _decoded_nbytes
async def _fetch_chunks(batch: Sequence[ChunkRead]) -> AsyncGenerator[FetchedChunks]:
    """Fetch whole chunks: with one `get_many` if all of them are in the same store."""
    from zarr.codecs.sharding import _ShardingByteGetter
    from zarr.storage._common import StorePath

    async def fetch(index: int, byte_getter: ByteGetter, spec: ArraySpec) -> FetchedChunks:
        return ((index, await byte_getter.get(spec.prototype)),)

    prototype = batch[0][1].prototype
    store = getattr(batch[0][0], "store", None)
    keys = [g.path for g, *_ in batch if type(g) is StorePath and g.store is store]
    items = ((index, getter, spec) for index, (getter, spec, *_) in enumerate(batch))
    groups: Any
    if isinstance(store, Store) and len(keys) == len(batch):
        groups = store.get_many(keys, prototype=prototype)
    elif all(type(getter) is _ShardingByteGetter for getter, *_ in batch):
        # The inner chunks of a shard are in memory.
        yield [chunk for item in items for chunk in await fetch(*item)]
        return
    else:
        groups = concurrent_as_completed(items, fetch, config.get("async.concurrency"))
    async with aclosing(groups) if hasattr(groups, "aclose") else nullcontext():
        async for group in groups:
            yield group


# overlay: after _process_as_fetched
async def _run_in_thread[T, V](pool: Executor | None, func: Callable[[T], V], argument: T) -> V:
    """Run `func(argument)` on a thread, and wait until it has ended, even if cancelled."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(pool, copy_context().run, func, argument)
    try:
        return await asyncio.shield(future)
    finally:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])


# overlay: after _run_in_thread
async def _read_parts(
    pipeline: BatchedCodecPipeline,
    parts: Sequence[tuple[ChunkRead, ...]],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read parts of a batch concurrently."""

    async def read(*part: ChunkRead) -> tuple[GetResult, ...]:
        with _noting(part):
            return await pipeline.read_batch(part, out, drop_axes)

    results = await concurrent_map(parts, read, config.get("async.concurrency"))
    return tuple(chain.from_iterable(results))


class BatchedCodecPipeline:
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = list(batch_info)
        if batch and not self.supports_partial_decode:
            # All chunks are requested together; `batch_size` only applies to decoding.
            return await self.read_batch(batch, out, drop_axes)
        return await _read_parts(self, list(batched(batch, self.batch_size)), out, drop_axes)
