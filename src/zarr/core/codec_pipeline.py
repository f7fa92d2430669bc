"""Whole chunks are read with one `get_many`, and decoded on threads as they arrive."""

from __future__ import annotations

from collections import deque
from contextlib import aclosing, nullcontext, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import batched, chain
from typing import TYPE_CHECKING, cast

from zarr.abc.store import Store, noting
from zarr.core._adaptive_limit import fetch_as_completed
from zarr.core.common import concurrent_as_completed, product

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
    from concurrent.futures import Executor

    from zarr.codecs.sharding import ShardingCodec

type ChunkRead = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
"""An element of the `batch_info` of `CodecPipeline.read`."""

type FetchedChunks = Sequence[tuple[int, Buffer | None]]
"""Encoded chunks with their index in a batch; `None` if the chunk does not exist."""

DECODED_PER_SHARE = 1 << 19
"""Decoded size, in bytes, of the chunks that a thread is given at a time. Decoding them takes much
longer than starting the thread."""

decode_pool: ContextVar[Executor | None] = ContextVar("decode_pool", default=None)
"""The threads that decode for the running task, if it has threads of its own."""


async def _async_read_fallback(
    pipeline: CodecPipeline,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Read whole chunks: request all of them together, and decode them as they arrive.

    They are decoded on threads if the codecs allow it, or else by `pipeline.decode`.
    """
    results: list[GetResult | None] = [None] * len(batch)

    def scatter(index: int, chunk: NDBuffer | None) -> None:
        _, spec, chunk_selection, out_selection, _ = batch[index]
        selected = None if chunk is None else chunk[chunk_selection]
        results[index] = scatter_chunk(
            selected, out, chunk_spec=spec, out_selection=out_selection, drop_axes=drop_axes
        )

    async def decode(chunks: FetchedChunks) -> None:
        with _noting([batch[index] for index, _ in chunks]):
            decoded = await pipeline.decode([(data, batch[index][1]) for index, data in chunks])
        for (index, _), chunk in zip(chunks, decoded, strict=True):
            scatter(index, chunk)

    transform = _thread_transform(pipeline, len(batch))
    if transform is None:
        process = decode
        size = getattr(pipeline, "batch_size", 1)
        workers = config.get("async.concurrency") or len(batch)
    else:

        def decode_sync(chunks: FetchedChunks) -> None:
            for index, data in chunks:
                with _noting([batch[index]]):
                    chunk = None if data is None else transform.decode_chunk(data, batch[index][1])
                scatter(index, chunk)

        workers = _resolve_max_workers()
        process = partial(_run_in_thread, _get_pool(workers), decode_sync)
        size = max(1, DECODED_PER_SHARE // _decoded_nbytes(batch))
    await _process_as_fetched(_fetch_chunks(batch), process, size=size, workers=workers)
    if None in results:
        raise RuntimeError(f"No result for {results.count(None)} of {len(batch)} chunks.")
    return cast("tuple[GetResult, ...]", tuple(results))


# overlay: after _async_read_fallback
def _noting(batch: Sequence[ChunkRead]) -> noting | nullcontext[None]:
    """Add a note that names the chunk to any exception raised in the block, if there is only one."""
    getter: Any = batch[0][0] if len(batch) == 1 else None
    store = getattr(getter, "store", None)
    return noting(store, getattr(getter, "path", "")) if isinstance(store, Store) else nullcontext()


# overlay: after _noting
def _thread_transform(pipeline: CodecPipeline, count: int) -> ChunkTransform | None:
    """Return what decodes chunks on threads, or `None` if `pipeline.decode` has to be called.

    Codecs of other packages may rely on how `pipeline.decode` calls them, and on how many calls are
    made at once. A codec that decodes partially has a codec pipeline of its own.
    """
    if isinstance(pipeline, FusedCodecPipeline):
        return pipeline.sync_transform
    if not isinstance(pipeline, BatchedCodecPipeline):
        return None
    if count == 1 and not pipeline.bytes_bytes_codecs:
        return None  # a chunk that is not compressed is not worth a switch to a thread
    cls: type[BatchedCodecPipeline] = type(pipeline)
    base = BatchedCodecPipeline
    if cls.decode is not base.decode or cls.decode_batch is not base.decode_batch:
        return None
    codecs = tuple(pipeline)
    return ChunkTransform(codecs=codecs) if _run_on_threads(codecs) else None


# overlay: after _thread_transform
def _run_on_threads(codecs: Iterable[Codec]) -> bool:
    """Whether all codecs are known to allow decoding on any thread, several chunks at once."""
    from zarr.codecs._v2 import V2Codec
    from zarr.codecs.numcodecs._codecs import _NumcodecsCodec

    for codec in codecs:
        numcodecs = (codec.compressor, *(codec.filters or ())) if type(codec) is V2Codec else ()
        if (
            not type(codec).__module__.startswith("zarr.codecs.")
            or isinstance(codec, ArrayBytesCodecPartialDecodeMixin | _NumcodecsCodec)
            or not all(type(each).__module__.startswith("numcodecs.") for each in numcodecs if each)
        ):
            return False
    return True


# overlay: after _run_on_threads
async def _read_shards_on_threads(
    codec: ShardingCodec,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
) -> tuple[GetResult, ...]:
    """Fetch and decode each shard on a thread, without a task for each request and inner chunk."""

    def read(share: Sequence[ChunkRead]) -> list[GetResult]:
        results = []
        for shard in share:
            byte_getter, spec, chunk_selection, out_selection, _ = shard
            with _noting([shard]):
                selected = codec._decode_partial_sync(byte_getter, chunk_selection, spec)
            result = scatter_chunk(
                selected, out, chunk_spec=spec, out_selection=out_selection, drop_axes=drop_axes
            )
            results.append(result)
        return results

    # Whole shards take longer to decode than to read, parts of shards may not.
    is_whole = all(is_complete for *_, is_complete in batch)
    limit = config.get("async.concurrency") or len(batch)
    threads = min(limit, _resolve_max_workers()) if is_whole else limit
    shares = [(None, read, share) for share in batched(batch, -(-len(batch) // threads))]
    return tuple(chain.from_iterable(await concurrent_map(shares, _run_in_thread, threads)))


# overlay: after _read_shards_on_threads
def _read_synchronously(batch: Sequence[ChunkRead]) -> bool:
    """Whether all chunks are in memory or on a local disk, and `get_sync` is as good as `get`."""
    from zarr.storage import LocalStore, MemoryStore
    from zarr.storage._common import StorePath

    def is_sync(store: Store) -> bool:
        cls: Any = type(store)
        is_known = cls in (LocalStore, MemoryStore)
        return is_known and getattr(store.get, "__func__", None) is cls._own_get

    return all(type(getter) is StorePath and is_sync(getter.store) for getter, *_ in batch)


# overlay: after _read_synchronously
def _decoded_nbytes(batch: Sequence[ChunkRead]) -> int:
    """Return the size of the largest chunk when decoded."""
    return max(product(s.shape) * s.dtype.to_native_dtype().itemsize for _, s, *_ in batch)


# overlay: after _decoded_nbytes
def _read_backend(batch: Sequence[ChunkRead]) -> object | None:
    """Return what chunks of one store are read from, if its reads may share an adaptive limit."""
    store = getattr(batch[0][0], "store", None)
    return store._read_backend() if isinstance(store, Store) else None


# overlay: after _read_backend
async def _fetch_chunks(batch: Sequence[ChunkRead]) -> AsyncGenerator[FetchedChunks]:
    """Fetch whole chunks: with one `get_many` if all of them are in the same store."""
    from zarr.codecs.sharding import _ShardingByteGetter
    from zarr.storage._common import StorePath, report_read

    async def fetch(index: int, byte_getter: ByteGetter, spec: ArraySpec) -> FetchedChunks:
        return ((index, await byte_getter.get(spec.prototype)),)

    prototype = batch[0][1].prototype
    store = getattr(batch[0][0], "store", None)
    keys = [g.path for g, *_ in batch if type(g) is StorePath and g.store is store]
    items = ((index, getter, spec) for index, (getter, spec, *_) in enumerate(batch))
    groups: Any
    from_store = False
    if isinstance(store, Store) and len(keys) == len(batch):
        groups, from_store = store.get_many(keys, prototype=prototype), True
    elif all(type(getter) is _ShardingByteGetter for getter, *_ in batch):
        # The inner chunks of a shard are in memory.
        yield [chunk for item in items for chunk in await fetch(*item)]
        return
    else:
        groups = concurrent_as_completed(items, fetch, config.get("async.concurrency"))
    async with aclosing(groups) if hasattr(groups, "aclose") else nullcontext():
        async for group in groups:
            if from_store:
                report_read([value for _, value in group])
            yield group


# overlay: after _fetch_chunks
async def _process_as_fetched(
    groups: AsyncGenerator[FetchedChunks],
    process: Callable[[FetchedChunks], Coroutine[Any, Any, None]],
    *,
    size: int,
    workers: int,
) -> None:
    """Pass fetched chunks to `process`, at most `size` at a time, in at most `workers` tasks.

    A second task is started only when `size` chunks are waiting, so the number of tasks follows
    the rate at which chunks arrive. When the tasks fall behind, fetching pauses.
    """
    waiting: deque[tuple[int, Buffer | None]] = deque()
    taken = asyncio.Event()
    busy = 0
    failure: BaseException | None = None

    async def work() -> None:
        nonlocal busy, failure
        try:
            while waiting:
                chunks = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                taken.set()
                await process(chunks)
        except asyncio.CancelledError as error:
            failure = error  # a task group ignores that a codec raised this
            raise
        busy -= 1

    try:
        async with aclosing(groups), asyncio.TaskGroup() as tasks:
            async for group in groups:
                waiting.extend(group)
                while busy < min(workers, max(1, len(waiting) // size)):
                    busy += 1
                    tasks.create_task(work())
                while len(waiting) > size * workers:
                    taken.clear()
                    await taken.wait()
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
    if failure is not None:
        raise failure


# overlay: after _process_as_fetched
async def _run_in_thread[T, V](pool: Executor | None, func: Callable[[T], V], argument: T) -> V:
    """Run `func(argument)` on a thread, and wait until it has ended, even if cancelled."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(decode_pool.get() or pool, copy_context().run, func, argument)
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
    results: dict[int, tuple[GetResult, ...]] = {}

    async def read(index: int, part: Sequence[ChunkRead]) -> int:
        with _noting(part):
            results[index] = await pipeline.read_batch(part, out, drop_axes)
        return index

    backend, nbytes = None, 0
    if parts:
        backend, nbytes = _read_backend(parts[0]), len(parts[0]) * _decoded_nbytes(parts[0])
    async for _ in fetch_as_completed(
        backend, enumerate(parts), read, lambda _: nbytes, size=lambda *_: nbytes
    ):
        pass
    return tuple(chain.from_iterable(results[index] for index in sorted(results)))


class BatchedCodecPipeline:
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        from zarr.codecs.sharding import ShardingCodec

        batch = list(batch_info)
        codec = self.array_bytes_codec
        if (
            type(self) is BatchedCodecPipeline
            and type(codec) is ShardingCodec
            and self.supports_partial_decode
            and _run_on_threads(chain(codec.codecs, codec.index_codecs))
            # One thread decodes a shard. Of few shards, inner chunks are decoded side by side.
            and len(batch) >= (os.cpu_count() or 1)
            and _read_synchronously(batch)
        ):
            return await _read_shards_on_threads(codec, batch, out, drop_axes)
        if batch and not self.supports_partial_decode:
            # All chunks are requested together; `batch_size` only applies to decoding.
            return await self.read_batch(batch, out, drop_axes)
        return await _read_parts(self, list(batched(batch, self.batch_size)), out, drop_axes)
