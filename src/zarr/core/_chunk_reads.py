"""Read whole chunks: fetch all of them with one request, decode and scatter as bytes arrive.

The three steps of a read overlap. Fetching is `Store.get_many`'s business. What has arrived is
decoded and written to its place in the output by a few worker threads, each of which goes on for
as long as there is something to do: no task and no change of thread for each chunk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import batched
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from zarr.abc.codec import _codec_supports_sync
from zarr.abc.store import SyncByteGetter, _read_many
from zarr.codecs.bytes import BytesCodec
from zarr.core._bounded import (
    CancelledInside,
    Fetch,
    FlatTaskGroup,
    checked,
    closing_groups,
    expected_nbytes,
    fetch_limit,
    flat_task_group,
    ranges_are_merged,
    run_bounded,
    run_in_thread,
)
from zarr.core.buffer.cpu import Buffer as NumpyBuffer
from zarr.core.buffer.cpu import NDBuffer as NumpyNDBuffer
from zarr.core.chunk_utils import ChunkTransform, decode_and_scatter_chunk, scatter_chunk
from zarr.core.dtype.common import HasItemSize
from zarr.storage._common import StorePath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from zarr.abc.codec import Codec, CodecPipeline, GetResult
    from zarr.abc.store import ByteGetter, ByteRequest, Store
    from zarr.core._bounded import ReadGroup
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
    from zarr.core.indexing import SelectorTuple

type ChunkRead = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
"""One element of the `batch_info` of `CodecPipeline.read`."""

MAX_BYTES_INLINE = 64 << 10
"""Size, decoded, up to which a single chunk is decoded in the event loop: a thread takes longer to
get going than the chunk does."""

SHARE = 16
"""Chunks that a thread takes at a time, unless they hold `SHARE_BYTES` or more."""

SHARE_BYTES = 256 << 10

COLLECTED_BYTES = 16 << 20
"""Encoded bytes that are collected before a thread is started to decode them."""

COLLECTING_SECONDS = 0.04
"""How long less than that waits, while more is being fetched. What arrives faster is better fetched
first and decoded then: a thread that decodes and one that fetches wait for each other's GIL."""

MAX_BYTES_UNDECODED = 32 << 20
"""Encoded bytes that may wait for a worker thread before reading on is held back."""


@asynccontextmanager
async def fetch_chunks(batch: Sequence[ChunkRead]) -> AsyncIterator[AsyncIterator[ReadGroup]]:
    """Fetch the encoded bytes of each chunk of `batch`, as `Store.get_many` does.

    One `get_many` serves the batch if all of it comes from one store, through `StorePath`, with
    one prototype. Otherwise each byte getter is asked by itself.
    """
    prototype = batch[0][1].prototype
    paths = [getter for getter, *_ in batch if type(getter) is StorePath]
    if (
        len(paths) == len(batch)
        and all(path.store is paths[0].store for path in paths)
        and all(spec.prototype == prototype for _, spec, *_ in batch)
    ):
        keys = [path.path for path in paths]
        fetched = fetch_many(paths[0].store, keys, prototype, expected=_largest_chunk(batch))
    else:
        fetched = closing_groups(checked(_fetch_each(batch), len(batch)))
    async with fetched as groups:
        yield groups


@asynccontextmanager
async def fetch_many(
    store: Store,
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    prototype: BufferPrototype,
    *,
    expected: int | None = None,
    merged: bool = False,
) -> AsyncIterator[AsyncIterator[ReadGroup]]:
    """`Store.get_many`, closed at the end and checked.

    Parameters
    ----------
    store, requests, prototype
        As for `Store.get_many`.
    expected
        How large a value is at most, in bytes, if that is known.
    merged
        Whether byte ranges of one key have been merged already, and are not to be merged further.
    """
    tokens = (expected_nbytes.set(expected), ranges_are_merged.set(merged))
    fetched = checked(_read_many(store, requests, prototype=prototype), len(requests))
    try:
        async with closing_groups(fetched) as groups:
            yield groups
    finally:
        # A read that was abandoned with its event loop is closed in another context.
        with suppress(ValueError):
            expected_nbytes.reset(tokens[0])
            ranges_are_merged.reset(tokens[1])


def _largest_chunk(batch: Sequence[ChunkRead]) -> int | None:
    """The size in bytes of the largest chunk, decoded, or `None` if the data type has no size."""
    specs = {id(spec): spec for _, spec, *_ in batch}.values()
    sizes = [
        prod(spec.shape) * spec.dtype.item_size
        for spec in specs
        if isinstance(spec.dtype, HasItemSize)
    ]
    return max(sizes) if len(sizes) == len(specs) else None


async def _fetch_each(batch: Sequence[ChunkRead]) -> AsyncIterator[ReadGroup]:
    def fetch(index: int, getter: ByteGetter, spec: ArraySpec) -> Fetch:
        async def run() -> ReadGroup:
            return ((index, await getter.get(prototype=spec.prototype)),)

        return Fetch(run, None)

    fetches = (fetch(index, getter, spec) for index, (getter, spec, *_) in enumerate(batch))
    if all(isinstance(g, SyncByteGetter) and not isinstance(g, StorePath) for g, *_ in batch):
        # The inner chunks of a shard: their bytes are in memory already.
        yield [result for fetch_ in fetches for result in await fetch_.run()]
        return
    async with closing_groups(run_bounded(fetches, limit=fetch_limit())) as groups:
        async for group in groups:
            yield group


def bulk_transform(codecs: Iterable[Codec]) -> ChunkTransform | None:
    """The codec chain as a function that several threads may run, or `None` if it has none.

    That asks for codecs of this package. Anybody else's may count on being called in the event
    loop, one chunk at a time, and one that overrides `decode` or `_decode_single` further down
    the class hierarchy than `_decode_sync` means something else by it. A codec whose chunks hold
    chunks again (`_sync_capable`) has a codec pipeline of its own.
    """
    codecs = tuple(codecs)
    return ChunkTransform(codecs=codecs) if all(map(_decodes_in_bulk, codecs)) else None


def _decodes_in_bulk(codec: Codec) -> bool:
    cls = type(codec)
    if not _codec_supports_sync(codec) or hasattr(cls, "_sync_capable"):
        return False
    definers = [
        next(base for base in cls.__mro__ if name in vars(base))
        for name in ("_decode_sync", "_decode_single", "decode", "resolve_metadata")
    ]
    in_order = cls.__mro__.index(definers[0]) <= min(map(cls.__mro__.index, definers[1:3]))
    return in_order and all(base.__module__.partition(".")[0] == "zarr" for base in definers)


async def decode_in_threads(
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
    transform: ChunkTransform,
    *,
    executor: Executor | None,
    workers: int,
) -> tuple[GetResult, ...]:
    """Read the chunks of `batch` into `out`, decoding on up to `workers` threads.

    Parameters
    ----------
    batch, out, drop_axes
        As for `CodecPipeline.read`.
    transform
        Decodes a chunk.
    executor
        Where the threads come from; `None` for the default executor of the event loop.
    workers
        How many threads decode at once.

    Returns
    -------
    tuple[GetResult, ...]
        Whether each chunk was there, in the order of `batch`.
    """
    results: list[GetResult | None] = [None] * len(batch)
    scatter = chunk_decoder(transform, drop_axes)

    def decode(index: int, value: Buffer | None) -> None:
        _, spec, chunk_selection, out_selection, _ = batch[index]
        results[index] = scatter(value, out, spec, chunk_selection, out_selection)

    decoders = Decoders(decode, executor, workers)
    if len(batch) == 1:
        async with fetch_chunks(batch) as groups:
            async for group in groups:
                decoders.put(group)
        if (_largest_chunk(batch) or MAX_BYTES_INLINE + 1) <= MAX_BYTES_INLINE:
            decoders.work_inline()
        await decoders.work()
    else:
        async with flat_task_group() as tasks, fetch_chunks(batch) as groups:
            with decoders.started_in(tasks):
                async for group in groups:
                    decoders.put(group)
                    await decoders.room()
    return complete(results)


def chunk_decoder(
    transform: ChunkTransform, drop_axes: tuple[int, ...] = ()
) -> Callable[[Buffer | None, NDBuffer, ArraySpec, SelectorTuple, SelectorTuple], GetResult]:
    """A function that decodes one chunk and writes it to its place in an output.

    Several threads may call it. Where the chunks are NumPy arrays as they are stored, it leaves
    out the buffer objects around each step: threads that decode small chunks spend much of their
    time waiting for one another to let go of the GIL.

    Parameters
    ----------
    transform
        Decodes a chunk.
    drop_axes
        As for `CodecPipeline.read`.

    Returns
    -------
    Callable
        It takes the encoded chunk or `None`, the output, the `ArraySpec` of the chunk, its
        `chunk_selection` and its `out_selection`, and returns whether the chunk was there.
    """
    bytes_codecs = transform._bb_codecs[::-1]
    to_array = transform._ab_codec
    # The chunks of an array mostly share their spec.
    latest: tuple[ArraySpec | None, np.dtype[Any] | None] = None, None

    def decode(
        value: Buffer | None,
        out: NDBuffer,
        spec: ArraySpec,
        chunk_selection: SelectorTuple,
        out_selection: SelectorTuple,
    ) -> GetResult:
        return decode_and_scatter_chunk(
            value,
            out,
            chunk_spec=spec,
            chunk_selection=chunk_selection,
            out_selection=out_selection,
            drop_axes=drop_axes,
            decode=transform.decode_chunk,
        )

    def decode_plain(
        value: Buffer | None,
        out: NDBuffer,
        spec: ArraySpec,
        chunk_selection: SelectorTuple,
        out_selection: SelectorTuple,
    ) -> GetResult:
        nonlocal latest
        if value is None or type(out) is not NumpyNDBuffer or type(chunk_selection) is not tuple:
            return decode(value, out, spec, chunk_selection, out_selection)
        seen, dtype = latest
        if seen is not spec:
            dtype = _plain_dtype(spec, cast("BytesCodec", to_array))
            latest = spec, dtype
        array: Any = out.as_ndarray_like()
        if dtype is None or type(array) is not np.ndarray:
            return decode(value, out, spec, chunk_selection, out_selection)
        for codec in bytes_codecs:
            value = codec._decode_sync(value, spec)
        chunk = np.asanyarray(value.as_array_like()).view(dtype)
        if chunk.shape != spec.shape:
            chunk = chunk.reshape(spec.shape)
        array[out_selection] = chunk[(*chunk_selection, ...)]
        return {"status": "present"}

    plain = not drop_axes and not transform._aa_codecs and type(to_array) is BytesCodec
    return decode_plain if plain else decode


def _plain_dtype(spec: ArraySpec, codec: BytesCodec) -> np.dtype[Any] | None:
    """The data type of chunks in memory, if NumPy can take them for that as they are stored."""
    dtype = spec.dtype.to_native_dtype()
    on_host = spec.prototype.nd_buffer is NumpyNDBuffer and spec.prototype.buffer is NumpyBuffer
    return dtype if on_host and codec._stored_dtype(spec, dtype) == dtype else None


class Decoders:
    """Worker threads that decode what `put` hands them.

    Each call of `work` occupies a thread until it finds the queue empty. To start one costs more
    than to decode a small chunk, so a few of them are collected first. While chunks are still being
    fetched, one thread fewer decodes, unless they are large: the event loop needs the processor, and
    the GIL, to fetch.
    """

    def __init__(
        self,
        decode: Callable[[int, Buffer | None], None],
        executor: Executor | None,
        workers: int,
    ) -> None:
        self._decode = decode
        self._executor = executor
        self._idle = workers
        self._kept_free = 1 if workers > 1 else 0
        self._queue: deque[ReadGroup] = deque()
        self._stopped = False
        self._waiting_bytes = 0
        self._lock = Lock()
        self._loop = asyncio.get_running_loop()
        self._has_room = asyncio.Event()
        self._tasks: FlatTaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def started_in(self, tasks: FlatTaskGroup) -> Iterator[None]:
        """Start threads for what is put within this block, as tasks of a group."""
        self._tasks = tasks
        try:
            yield
            self._kept_free = 0
            self._start()
        finally:
            self._tasks = None
            if self._timer is not None:
                self._timer.cancel()

    def put(self, group: ReadGroup) -> None:
        """Queue a group."""
        with self._lock:
            self._waiting_bytes += _nbytes(group)
        self._queue.extend(_shares(group))
        if self._waiting_bytes >= COLLECTED_BYTES:
            self._start()
        elif self._timer is None and self._tasks is not None:
            self._timer = self._loop.call_later(COLLECTING_SECONDS, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tasks is not None and not self._stopped and not self._tasks.has_failed:
            kept_free = (
                0 if self._waiting_bytes > SHARE_BYTES * len(self._queue) else self._kept_free
            )
            worth = 1 + self._waiting_bytes // SHARE_BYTES
            for _ in range(min(self._idle - kept_free, len(self._queue), worth)):
                self._idle -= 1
                self._tasks.create_task(self.work())

    async def room(self) -> None:
        """Wait until few enough bytes are waiting to be decoded."""
        while self._waiting_bytes > MAX_BYTES_UNDECODED:
            self._has_room.clear()
            if self._waiting_bytes > MAX_BYTES_UNDECODED:
                await self._has_room.wait()

    def work_inline(self) -> None:
        """Decode what there is, in the event loop."""
        try:
            self._drain()
        except CancelledInside as error:
            raise error.__cause__ or error from None

    async def work(self) -> None:
        """Decode on a thread for as long as there is something to decode."""
        try:
            while self._queue and not self._stopped:
                await run_in_thread(
                    self._drain, executor=self._executor, stop=self._stop, wait=True
                )
        except CancelledInside as error:
            self._stop()
            raise error.__cause__ or error from None
        except BaseException:
            self._stop()
            raise
        self._idle += 1

    def _stop(self) -> None:
        self._stopped = True

    def _drain(self) -> None:
        while self._queue:
            try:
                share = self._queue.popleft()
            except IndexError:  # another thread was quicker
                return
            self._take(share)
            try:
                for index, value in share:
                    if self._stopped:
                        return
                    self._decode(index, value)
            except asyncio.CancelledError as error:
                raise CancelledInside from error  # nobody has cancelled this thread
            except StopIteration as error:  # to a future this means something else
                raise RuntimeError("A codec raised StopIteration.") from error

    def _take(self, share: ReadGroup) -> None:
        nbytes = _nbytes(share)
        with self._lock:
            before = self._waiting_bytes
            self._waiting_bytes -= nbytes
        if before > MAX_BYTES_UNDECODED >= before - nbytes:
            self._loop.call_soon_threadsafe(self._has_room.set)


def _nbytes(group: ReadGroup) -> int:
    return sum([len(value) for _, value in group if value is not None])


def _shares(group: ReadGroup) -> Iterator[ReadGroup]:
    """Part a group into what a thread takes at a time: few chunks, and not many bytes."""
    if len(group) <= 1:
        yield group
        return
    size = max(1, min(SHARE, SHARE_BYTES * len(group) // max(1, _nbytes(group))))
    yield from batched(group, size)


async def decode_in_batches(
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
    pipeline: CodecPipeline,
    *,
    batch_size: int,
) -> tuple[GetResult, ...]:
    """Read the chunks of `batch` into `out`, decoding `batch_size` at a time as they arrive.

    For codecs whose decoding is asynchronous, or is defined for batches: `pipeline.decode` gets
    them. `async.concurrency` limits how many batches are decoded at once.

    Parameters
    ----------
    batch, out, drop_axes
        As for `CodecPipeline.read`.
    pipeline
        Decodes the chunks.
    batch_size
        How many chunks `pipeline.decode` gets at once.

    Returns
    -------
    tuple[GetResult, ...]
        Whether each chunk was there, in the order of `batch`.
    """
    results: list[GetResult | None] = [None] * len(batch)
    slots = asyncio.Semaphore(fetch_limit())

    async def decode(arrived: list[tuple[int, Buffer | None]]) -> None:
        try:
            decoded = await pipeline.decode([(value, batch[index][1]) for index, value in arrived])
        finally:
            slots.release()
        for (index, _), chunk in zip(arrived, decoded, strict=True):
            _, spec, chunk_selection, out_selection, _ = batch[index]
            results[index] = scatter_chunk(
                None if chunk is None else chunk[chunk_selection],
                out,
                chunk_spec=spec,
                out_selection=out_selection,
                drop_axes=drop_axes,
            )

    async with flat_task_group() as tasks, fetch_chunks(batch) as groups:
        waiting: list[tuple[int, Buffer | None]] = []
        async for group in groups:
            waiting.extend(group)
            while len(waiting) >= batch_size:
                await slots.acquire()
                tasks.create_task(decode(waiting[:batch_size]))
                del waiting[:batch_size]
        if waiting:
            await slots.acquire()
            tasks.create_task(decode(waiting))
    return complete(results)


def complete(results: Sequence[GetResult | None]) -> tuple[GetResult, ...]:
    """The results of a read that has ended: one for each chunk."""
    there = tuple(result for result in results if result is not None)
    if len(there) < len(results):
        raise RuntimeError("The read has ended, and some chunks were not decoded.")
    return there
