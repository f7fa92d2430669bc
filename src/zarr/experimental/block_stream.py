"""Blocks of arrays straight from the store.

A window of consecutive blocks is one read of each array through the ordinary read path, and is then
cut into blocks. A few windows are in flight, as many as fit into a budget of bytes.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
)
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import batched, chain, islice
from math import prod
from queue import SimpleQueue
from sys import getsizeof
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, cast
from weakref import WeakSet, finalize

import numpy as np
from typing_extensions import TypeVar

from zarr.abc.store import Store
from zarr.codecs import ShardingCodec
from zarr.core.array import Array, AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.chunk_grids import FixedDimension
from zarr.core.codec_pipeline import (
    BatchedCodecPipeline,
    FusedCodecPipeline,
    _thread_transform,
    decode_pool,
)
from zarr.core.common import _cancel_and_wait
from zarr.core.config import config
from zarr.core.dtype.common import HasItemSize
from zarr.core.indexing import (
    BlockIndexer,
    OrthogonalIndexer,
    ensure_tuple,
    is_integer,
    pop_fields,
    replace_lists,
)
from zarr.core.sync import SyncError, _get_loop, sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore, StorePath, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    import numpy.typing as npt

    from zarr.core.buffer import Buffer, BufferPrototype, NDArrayLikeOrScalar
    from zarr.core.chunk_grids import DimensionGrid

    type AnyArray = Array[Any] | AsyncArray[Any]
    type Span = tuple[int, int]  # the first row, and the one after the last
    type Blocks = Sequence[tuple[int, Span]]
    type Pieces = Mapping[str, Sequence[_Piece]]
    type Outcome = tuple[Any, int] | BaseException  # what is delivered, and the size of the block

__all__ = ["Block", "BlockStream", "BlockStreamStats", "read_block", "read_block_async"]

logger = logging.getLogger(__name__)

IO_CONCURRENCY = 32  # requests in flight where `async.concurrency` is at its default
SHARES = 8  # calls of `get_many` of a store that merges requests share this number
WINDOWS = 4  # windows of full size that fit into the budget
MAX_BLOCKS = 256  # blocks in a window; the first has one, the others up to 8 times all before
OVERHEAD = 1 << 10  # approximate memory of a chunk or a block besides its data, in bytes
ITEM_NBYTES = 16  # expected size of an element of variable length, until some have been read
CLOSE_SECONDS = 1.0  # how long `close` waits for cancelled reads to end


def read_block(array: AnyArray, coords: Any) -> NDArrayLikeOrScalar:
    """Read a block of an array: what `array.blocks[coords]` returns, without its overhead.

    A chunk of a `LocalStore` or a `MemoryStore` is read and decoded by the calling thread itself,
    so that a pool of threads does not queue for zarr's event loop.

    Parameters
    ----------
    array
        The array.
    coords
        Which block: an integer or a slice for each axis, counted in chunks, or in shards where the
        array is sharded. Axes that are left out are taken as a whole.

    Examples
    --------
    >>> import zarr
    >>> from zarr.experimental.block_stream import read_block
    >>> array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="uint8", fill_value=7)
    >>> read_block(array, 2)
    array([7], dtype=uint8)
    """
    source, read = _read_of_block(array, coords)
    here = _on_calling_thread(source)
    if here is None or len(list(islice(read.keywords["indexer"], 2))) != 1:
        return cast("NDArrayLikeOrScalar", sync(read(source)))
    try:
        read(here).send(None)  # it waits for nothing
    except StopIteration as done:
        return cast("NDArrayLikeOrScalar", done.value)
    raise RuntimeError("The codecs of this array wait for something.")


async def read_block_async(array: AnyArray, coords: Any) -> NDArrayLikeOrScalar:
    """Read a block of an array, as `read_block` does, without blocking the event loop.

    An `AsyncArray` is read in the event loop that runs, an `Array` in zarr's.
    """
    source, read = _read_of_block(array, coords)
    if isinstance(array, Array) and asyncio.get_running_loop() is not (loop := _get_loop()):
        reading = asyncio.run_coroutine_threadsafe(read(source), loop)
        return cast("NDArrayLikeOrScalar", await asyncio.wrap_future(reading))
    return cast("NDArrayLikeOrScalar", await read(source))


def _read_of_block(array: Any, coords: Any) -> tuple[AsyncArray[Any], partial[Any]]:
    """Return the array, and what reads the block that `array.blocks` would read."""
    if not isinstance(array, Array | AsyncArray):
        raise TypeError(f"Expected a zarr array, got an object of type {type(array).__name__}.")
    source = array.async_array if isinstance(array, Array) else array
    fields, selection = pop_fields(coords)
    selection = cast("Any", replace_lists(ensure_tuple(selection)))
    indexer = BlockIndexer(selection, source.shape, source._chunk_grid)
    prototype = default_buffer_prototype()
    read = AsyncArray._get_selection
    return source, partial(read, indexer=indexer, prototype=prototype, fields=fields)


class _CallingThread(FusedCodecPipeline):
    """Reads on the thread that calls it."""

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        return self.read_sync(batch_info, out, drop_axes)


def _on_calling_thread(array: AsyncArray[Any]) -> AsyncArray[Any] | None:
    """Return the array with a pipeline that reads on the calling thread, or `None` if it cannot.

    Stores of other kinds, and codecs of other packages, may count on the event loop.
    """
    store, pipeline = array.store_path.store, cast("Any", array.codec_pipeline)
    if (
        type(store) not in (LocalStore, MemoryStore)
        or "get" in vars(store)
        or type(pipeline) not in (BatchedCodecPipeline, FusedCodecPipeline)
        or pipeline.supports_partial_decode
        or not all(type(codec).__module__.startswith("zarr.") for codec in pipeline)
        or (transform := _thread_transform(pipeline, 2)) is None
    ):
        return None
    here = copy(array)
    parts = pipeline.array_array_codecs, pipeline.array_bytes_codec, pipeline.bytes_bytes_codecs
    calling_thread = _CallingThread(tuple(pipeline), *parts, transform, 1)
    object.__setattr__(here, "codec_pipeline", calling_thread)
    return here


@dataclass(slots=True)
class Block:
    """Block `index` of one or several arrays: the rows `span` of the first axis."""

    index: int
    span: slice
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def array(self) -> npt.NDArray[Any]:
        """The values, if there is one array. If there are several, `ValueError` is raised."""
        if len(self.arrays) > 1:
            raise ValueError(f"There are several arrays, use `arrays`: {[*self.arrays]}")
        return next(iter(self.arrays.values()))


@dataclass(slots=True, kw_only=True)
class BlockStreamStats:
    """Figures of a stream of blocks. They print as a table.

    `blocks` were delivered, which hold `nbytes`. What is in flight is being read, or waits to be
    taken. `requests` is how many operations the stores ran. The program waited for blocks for
    `waited_seconds`, and did something else for `consumer_seconds`.
    """

    blocks: int = 0
    nbytes: int = 0
    nbytes_in_flight: int = 0
    max_nbytes_in_flight: int = 0
    max_blocks_in_flight: int = 0
    requests: int = 0
    waited_seconds: float = 0.0
    consumer_seconds: float = 0.0

    def __str__(self) -> str:
        figures = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(f"{k:<20}{n:>16,{'.3f' if 'sec' in k else ''}}" for k, n in figures)


T = TypeVar("T", default=Block)


class BlockStream(
    Iterator[T],
    AsyncIterator[T],
    AbstractContextManager["BlockStream[T]", None],
    AbstractAsyncContextManager["BlockStream[T]", None],
):
    """Blocks of arrays along the first axis, read ahead of the program that takes them.

    Consecutive blocks are read together: the first alone, then more and more of them, several such
    windows at a time, within a budget of bytes. A slow program holds reading back.

    A stream is an iterator, for `for` and for `async for`. It begins when it is first asked for a
    block. Several threads may share it: each block goes to one of them. `with` closes it.

    Parameters
    ----------
    arrays
        An array, or a mapping of names to arrays, which must have the same length.
    block_length
        How many rows of the first axis a block has. By default as many as in `array.blocks`: a
        chunk, or a shard. Arrays whose chunks differ in that need a `block_length`.
    start, stop
        The first block, and the one after the last. Negative numbers count from the end.
    blocks
        The blocks themselves instead, in the order in which they are wanted.
    selection
        What to take of the other axes: integers, slices, or what `array.oindex` takes. For several
        arrays, a mapping of names to that; arrays that are not in it are read in full.
    readahead_bytes
        How many bytes may be in flight.
    io_concurrency
        How many requests to stores are in flight at once. By default 32, or `async.concurrency` if
        that was set.
    decode_threads
        How many threads decode at once. By default the number of CPUs. Codecs of other packages
        are called by zarr's own threads.
    transform
        Called with each block on one of these threads. What it returns is delivered in place of
        the block.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument makes no sense. An error that reading a block raises comes when that block
        is due, and ends the stream.

    Examples
    --------
    >>> import zarr
    >>> from zarr.experimental.block_stream import BlockStream
    >>> array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="uint8", fill_value=7)
    >>> with BlockStream(array) as stream:
    ...     [(block.index, block.span.stop, block.array.sum()) for block in stream]
    [(0, 2, np.uint64(14)), (1, 4, np.uint64(14)), (2, 5, np.uint64(7))]
    """

    def __init__(
        self,
        arrays: AnyArray | Mapping[str, AnyArray],
        *,
        block_length: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        blocks: Iterable[int] | None = None,
        selection: Any = None,
        readahead_bytes: int = 256 << 20,
        io_concurrency: int | None = None,
        decode_threads: int | None = None,
        transform: Callable[[Block], T] | None = None,
    ) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function, got {transform!r}.")
        default = config.get("async.concurrency")
        if default is None or default == config.defaults[0]["async"]["concurrency"]:
            default = IO_CONCURRENCY
        sources = _sources(arrays, selection)
        axis = _axis([*sources.values()], block_length)
        try:
            self._indices = _chosen(axis.nchunks, start, stop, blocks)
        except IndexError as error:
            raise IndexError(f"{next(iter(sources.values())).label}: {error}") from None
        self._reader = _Reader(
            sources,
            axis,
            self._indices,
            _positive("readahead_bytes", readahead_bytes),
            _positive("io_concurrency", io_concurrency, default),
            _positive("decode_threads", decode_threads, os.cpu_count() or 1),
            transform,
        )
        given = arrays.values() if isinstance(arrays, Mapping) else [arrays]
        self._is_async = any(isinstance(array, AsyncArray) for array in given)
        self._lock = threading.RLock()  # a signal handler may look at the stream, or close it
        self._window: Future[deque[Outcome]] | None = None  # whose blocks are being delivered
        self._taken = 0  # blocks
        self._failed_at: int | None = None

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return len(self._indices)

    def __next__(self) -> T:
        while True:
            window = self._current_window(_get_loop)
            if not window.done():
                if asyncio._get_running_loop() is self._reader.home:
                    raise SyncError("A block is awaited by blocking the loop that fetches it.")
                wait([window])
            if (taken := self._take(window)) is not None:
                return cast("T", taken[0])

    async def __anext__(self) -> T:
        home = asyncio.get_running_loop if self._is_async else _get_loop
        while True:
            try:
                window = self._current_window(home)
            except StopIteration:
                raise StopAsyncIteration from None
            if not window.done():
                await asyncio.wait([asyncio.wrap_future(window)])
            if (taken := self._take(window)) is not None:
                return cast("T", taken[0])

    def _current_window(
        self, home: Callable[[], asyncio.AbstractEventLoop]
    ) -> Future[deque[Outcome]]:
        """Return the window of the next block, which may still be in flight."""
        with self._lock:
            if self._reader.pid not in (None, os.getpid()):
                raise RuntimeError("A stream cannot be used after a fork. Make another one.")
            if self._taken == len(self._indices):
                raise StopIteration
            if self._failed_at is not None:
                raise RuntimeError(f"The stream has ended: block {self._failed_at} failed.")
            if self._reader.closed:
                raise ValueError("The stream of blocks is closed.")
            if self._reader.home is None:
                self._reader.home, self._reader.pid = home(), os.getpid()
                _readers.add(self._reader)
                # When a program ends, its readers are stopped together.
                finalize(self, self._reader.cancel).atexit = False
            if self._window is None:
                self._window = self._reader.begin_next_window()
            return self._window

    def _take(self, window: Future[deque[Outcome]]) -> tuple[Any, int] | None:
        """Take the next block of a window, or return `None` if another thread took the last one."""
        with self._lock:
            if self._window is not window or self._reader.closed:
                return None
            error = _error_of(window)
            outcome = error if error is not None else window.result().popleft()
            if isinstance(outcome, StopIteration | StopAsyncIteration):  # would look like the end
                error = RuntimeError(f"Block {self._indices[self._taken]} raised {outcome!r}.")
                error.__cause__, outcome = outcome, error
            if isinstance(outcome, BaseException):
                self._failed_at = self._indices[self._taken]
                self._reader.cancel()
                try:
                    raise outcome
                finally:
                    del outcome, error, window  # the traceback holds this frame
            if not window.result():
                self._window = None
            self._taken += 1
            self._reader.stats.blocks += 1
            self._reader.stats.nbytes += outcome[1]
            if self._taken == len(self._indices):
                self._reader.cancel()
            return outcome

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A BlockStream cannot be pickled. Make one in the process that uses it.")

    def close(self) -> None:
        """Cancel what is in flight. Taking another block is an error from now on."""
        self._reader.cancel()
        if self._window is not None:
            self._window.cancel()  # which wakes whoever waits for it
        self._reader.wait()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    @property
    def stats(self) -> BlockStreamStats:
        """What the stream has done so far."""
        return replace(self._reader.stats, nbytes_in_flight=self._reader.nbytes_in_flight())


def _sources(arrays: Any, selection: Any) -> dict[str, _Source]:
    if isinstance(arrays, Array | AsyncArray):
        arrays, selection = {"array": arrays}, {"array": selection}
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"Expected an array or a mapping of names to arrays, such as {{'a': a, 'b': b}}, got a "
            f"{type(arrays).__name__}."
        )
    selections = {} if selection is None else selection
    if not isinstance(selections, Mapping):
        raise TypeError(f"For several arrays, give selections by name, got {selection!r}.")
    if not arrays:
        raise ValueError("There is no array to read.")
    if unknown := selections.keys() - arrays.keys():
        raise ValueError(f"`selection` names unknown arrays: {sorted(map(str, unknown))}.")
    return {name: _Source(name, array, selections.get(name)) for name, array in arrays.items()}


def _axis(sources: Sequence[_Source], block_length: int | None) -> DimensionGrid:
    """Return how the first axis of the arrays is divided into blocks."""
    axes = [source.axis for source in sources]
    same_chunks = all(axis == axes[0] for axis in axes)
    if not same_chunks and not (block_length and len({axis.extent for axis in axes}) == 1):
        each = [
            f"{source.label} has {axis.extent} in {axis.nchunks} chunks"
            + (f" of {axis.chunk_size(0)}" if axis.nchunks else "")
            for source, axis in zip(sources, axes, strict=True)
        ]
        raise ValueError(
            "The arrays must have the same length, and without a `block_length` the same chunks, "
            f"along the first axis: {', '.join(each)}."
        )
    if block_length is None:
        return axes[0]
    return FixedDimension(_positive("block_length", block_length), axes[0].extent)


def _chosen(count: int, start: Any, stop: Any, blocks: Any) -> Sequence[int]:
    """Return the indices of the blocks to read, of `count`."""

    def checked(block: Any, end: int) -> int:
        if not is_integer(block):
            raise TypeError(f"A block index must be an integer, got {block!r}.")
        if not -count <= block < end:
            raise IndexError(f"block {block} is out of range, there are {count}")
        return int(block) + (count if block < 0 else 0)

    if blocks is None:
        first = 0 if start is None else checked(start, count + 1)
        return range(first, max(first, count if stop is None else checked(stop, count + 1)))
    if start is not None or stop is not None:
        raise ValueError("Give either start and stop, or blocks.")
    if not isinstance(blocks, Iterable):
        raise TypeError(f"blocks must be several indices, such as [{blocks!r}], got {blocks!r}.")
    return [checked(block, count) for block in blocks]


def _positive(name: str, value: int | None, default: int = 1) -> int:
    if value is None:
        return default
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


class _DecodePool(Executor):
    """Daemon threads, which do not delay the exit of the program."""

    def __init__(self, limit: int) -> None:
        self._limit, self._started, self._stopped = limit, 0, False
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        # docstring inherited
        future: Future[Any] = Future()
        if self._stopped:
            future.cancel()
            return future
        if self._started < self._limit:
            try:
                threading.Thread(target=self._run, name="zarr_block_decode", daemon=True).start()
                self._started += 1
            except RuntimeError:  # the system has no more threads
                if not self._started:
                    raise
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        # docstring inherited
        self._stopped = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if self._stopped:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 -- it is for whoever has the future
                    future.set_exception(error)
            del job, future, work
        self._jobs.put(None)  # for the next thread


class _LimitedStore(WrapperStore[Store]):
    """Limits how many requests a stream has in flight, for all its stores together."""

    _supports_sync_io = False  # every request passes through here
    get_ranges = Store.get_ranges  # type: ignore[assignment]  # which merges, and calls `get`

    def __init__(self, store: Store, reader: _Reader) -> None:
        super().__init__(store)
        # The nearest class that has either decides how several requests are served.
        nearest = next(c for c in type(store).__mro__ if {"get", "get_many"} & vars(c).keys())
        is_own = vars(nearest).get("get_many", Store.get_many) is not Store.get_many
        # Object stores, and file systems but for that of references, have a request for each key.
        protocol = getattr(getattr(store, "fs", None), "protocol", "reference")
        self._merges = is_own and protocol == "reference" and not isinstance(store, ObjectStore)
        # Several calls that read files would wait for one another.
        self._calls = 1 if isinstance(store, LocalStore) else SHARES
        self._reader = reader

    def __str__(self) -> str:
        return str(self._store)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Any:
        # docstring inherited
        async with self._reader.in_flight(1):
            value = await self._store.get(key, prototype, byte_range)
        self._reader.stats.requests += 1
        return value

    async def get_many(
        self, requests: Any, *, prototype: BufferPrototype, max_concurrency: int | None = None
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        get_many: Any = partial(Store.get_many, self)
        most, held = self._reader.io_concurrency, 0  # by this call; each `get` is counted by itself
        if self._merges:
            most = held = min(len(requests), max(1, most // self._calls))
            get_many = self._store.get_many
        groups = get_many(requests, prototype=prototype, max_concurrency=most)
        async with self._reader.in_flight(held), aclosing(groups):
            async for group in groups:
                self._reader.stats.requests += self._merges
                yield group


@dataclass(slots=True, eq=False)
class _Piece:
    """Consecutive rows of an array that are read together: one chunk or more."""

    start: int
    stop: int
    nbytes: int = 0  # in memory, by its shape
    task: Any = None  # that reads it


class _Source:
    """An array that blocks are read from, and what is selected of its axes after the first."""

    def __init__(self, name: str, array: Any, selection: Any) -> None:
        if not isinstance(array, Array | AsyncArray):
            raise TypeError(f"{name!r} is not a zarr.Array, but a {type(array).__name__}.")
        self.array = array = array.async_array if isinstance(array, Array) else array
        self.label = f"Array {name!r} ({array.store_path})"
        self._selection = () if selection is None else ensure_tuple(selection)
        if not array.shape:
            raise IndexError(f"{self.label} has no axis")
        if (count := sum(part is not ... for part in self._selection)) >= array.ndim:
            raise IndexError(
                f"{self.label}: the selection is for {count} axes, and there are {array.ndim - 1} "
                "after the first"
            )
        # The blocks of `array.blocks`, and what can be read by itself: a part of a shard, too.
        self.axis: DimensionGrid = array._chunk_grid._dimensions[0]
        self._chunks = self.axis
        codec = getattr(array.codec_pipeline, "array_bytes_codec", None)
        if isinstance(codec, ShardingCodec) and array.codec_pipeline.supports_partial_decode:
            self._chunks = FixedDimension(codec.chunk_shape[0], array.shape[0])
        dtype = array.metadata.dtype
        self.is_sized = isinstance(dtype, HasItemSize)
        item_nbytes = dtype.item_size if isinstance(dtype, HasItemSize) else ITEM_NBYTES
        self.row_nbytes = prod(self._indexer(0, array.shape[0]).shape[1:]) * item_nbytes

    def _indexer(self, *span: int) -> OrthogonalIndexer:
        selection = (slice(*span), *self._selection)
        return OrthogonalIndexer(selection, self.array.shape, self.array._chunk_grid)

    def limit(self, reader: _Reader, *, whole_shards: bool) -> None:
        """Read within the limits of a stream from here on."""
        array = self.array = copy(self.array)
        if not whole_shards:  # what lies between inner chunks of a window is read for another one
            settings = replace(array.config, sharding_coalesce_max_gap_bytes=0)
            array = self.array = array.with_config(settings)
        path = StorePath(_LimitedStore(array.store_path.store, reader), array.store_path.path)
        object.__setattr__(array, "store_path", path)

    async def read(self, start: int, stop: int) -> Any:
        return await self.array.get_orthogonal_selection((slice(start, stop), *self._selection))

    def pieces(self, spans: Iterable[Span], last: _Piece | None = None) -> list[_Piece]:
        """Return the pieces that hold some rows: `last`, and one for each run of other chunks."""
        pieces: list[_Piece] = []
        chunk_at = self._chunks.index_to_chunk
        for number in sorted(
            {n for a, b in spans for n in range(chunk_at(a), chunk_at(b - 1) + 1)}
        ):
            start, length = self._chunks.chunk_offset(number), self._chunks.data_size(number)
            if last is not None and last.start <= start < last.stop:
                pieces += [last] if last not in pieces else []
                continue
            if not pieces or pieces[-1] is last or pieces[-1].stop != start:
                pieces.append(_Piece(start, start))
            pieces[-1].stop += length
            pieces[-1].nbytes += length * self.row_nbytes + OVERHEAD
        return pieces


@dataclass(slots=True, eq=False)
class _Window:
    """Blocks that are read together."""

    blocks: Blocks
    nbytes: int  # in memory, as expected until it is read
    task: asyncio.Task[deque[Outcome]]  # that reads it


class _Reader:
    """Reads blocks in windows, in `home`, the event loop of their stores.

    It does not refer to the stream, so that a forgotten stream is collected, which ends the reads.
    """

    def __init__(
        self,
        sources: Mapping[str, _Source],
        axis: DimensionGrid,
        indices: Sequence[int],
        budget: int,
        io_concurrency: int,
        decode_threads: int,
        transform: Callable[[Block], Any] | None,
    ) -> None:
        self.home: asyncio.AbstractEventLoop | None = None
        self.pid: int | None = None
        self.closed, self.stats, self.io_concurrency = False, BlockStreamStats(), io_concurrency
        self._requests, self._turn = asyncio.Semaphore(io_concurrency), asyncio.Lock()
        self._sources, self._axis, self._indices = sources, axis, indices
        self._budget, self._transform, self._threads = budget, transform, decode_threads
        self._pool = _DecodePool(decode_threads)
        self._row_nbytes = sum(source.row_nbytes for source in sources.values())
        for source in sources.values():
            source.limit(self, whole_shards=source.axis == axis)
        self._windows: deque[_Window] = deque()  # the first has been asked for
        self._planned: tuple[Blocks, Pieces, int] | None = None  # what did not fit yet
        self._last: dict[str, _Piece | None] = {}  # pieces that go on where the windows end
        self._begun, self._returned_at = 0, 0.0
        # What elements of variable length take in memory is known once some have been read.
        self._is_sized = all(source.is_sized for source in sources.values())
        self._growth = 1.0  # how much larger arrays are in memory than their shapes say
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = threading.Lock()  # held until then; a future would need other locks
        self._ended.acquire()

    @asynccontextmanager
    async def in_flight(self, count: int) -> AsyncIterator[None]:
        """Count so many requests, and wait until they are within the limit."""
        held = 0
        try:
            async with self._turn:  # or two that hold a part would wait for each other
                while held < count:
                    await self._requests.acquire()
                    held += 1
            yield
        finally:
            for _ in range(held):
                self._requests.release()

    def begin_next_window(self) -> Future[deque[Outcome]]:
        """Ask for the next blocks, from any thread."""
        waiting = self._next_window()
        try:
            return asyncio.run_coroutine_threadsafe(waiting, cast("Any", self.home))
        except RuntimeError:  # the event loop was closed
            waiting.close()
            raise

    async def _next_window(self) -> deque[Outcome]:
        since = perf_counter()
        self.stats.consumer_seconds += since - (self._returned_at or since)
        if self._windows:
            self._windows.popleft()
        self._begin_windows()
        if not self._windows:  # it was closed
            return deque()
        window = self._windows[0]
        await asyncio.wait([window.task])
        error = _error_of(window.task)
        outcomes: deque[Outcome] = window.task.result() if error is None else deque([error])
        window.nbytes = sum(each[1] + OVERHEAD for each in outcomes if isinstance(each, tuple))
        self._is_sized = True
        self._begin_windows()
        self._returned_at = perf_counter()
        self.stats.waited_seconds += self._returned_at - since
        return outcomes

    def nbytes_in_flight(self) -> int:
        """Return how many bytes are being read, or wait to be taken."""
        return 0 if self.closed else sum(window.nbytes for window in tuple(self._windows))

    def _begin_windows(self) -> None:
        """Start reading windows while the budget allows it, and at least one."""
        while self._begun < len(self._indices) and not self.closed:
            if self._windows and not self._is_sized:
                return
            blocks, pieces, nbytes = self._planned = self._planned or self._plan()
            in_flight = self.nbytes_in_flight() + nbytes
            if self._windows and in_flight > self._budget:
                return
            stop = blocks[-1][1][1]
            for name, of_array in pieces.items():
                self._last[name] = next((p for p in of_array if p.start < stop < p.stop), None)
            self._planned = None
            task = self._start(self._read(blocks, pieces))
            self._windows.append(_Window(blocks, nbytes, task))
            self._begun += len(blocks)
            stats, count = self.stats, sum(len(window.blocks) for window in self._windows)
            stats.max_nbytes_in_flight = max(stats.max_nbytes_in_flight, in_flight)
            stats.max_blocks_in_flight = max(stats.max_blocks_in_flight, count)

    def _plan(self) -> tuple[Blocks, Pieces, int]:
        """Return the next window: its blocks, what to read for them, and how much memory it takes."""
        count = min(8 * self._begun or 1, MAX_BLOCKS)
        indices = self._indices[self._begun : self._begun + count]
        starts = [(index, self._axis.chunk_offset(index)) for index in indices]
        blocks = [(index, (at, at + self._axis.data_size(index))) for index, at in starts]
        while True:
            spans = [span for _, span in blocks]
            pieces = {k: s.pieces(spans, self._last.get(k)) for k, s in self._sources.items()}
            # Encoded and decoded, or in pieces and as blocks.
            nbytes = sum(piece.nbytes for of_array in pieces.values() for piece in of_array)
            rows = sum(stop - start for start, stop in spans)
            as_blocks = rows * self._row_nbytes + len(pieces) * len(blocks) * OVERHEAD
            nbytes = int(self._growth * (nbytes + max(nbytes, as_blocks)))
            if len(blocks) == 1 or nbytes <= self._budget / WINDOWS:
                return blocks, pieces, nbytes
            blocks = blocks[: len(blocks) // 2]

    def _start[V](self, work: Coroutine[Any, Any, V]) -> asyncio.Task[V]:
        decode_pool.set(self._pool)  # of the task that runs, and of those it starts
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_error_of)  # or asyncio would report it
        return task

    async def _read(self, blocks: Blocks, pieces: Pieces, again: bool = False) -> deque[Outcome]:
        """Read blocks together. If that fails, read each by itself to find out which one fails."""
        each = [(self._sources[k], piece) for k, of_array in pieces.items() for piece in of_array]
        for source, piece in each:
            piece.task = piece.task or self._start(source.read(piece.start, piece.stop))
        await asyncio.wait([piece.task for _, piece in each])
        failed = [(s, error) for s, p in each if (error := _error_of(p.task)) is not None]
        if not failed:
            run = asyncio.get_running_loop().run_in_executor
            size = -(-len(blocks) // (4 * self._threads)) if self._transform else len(blocks)
            jobs = [run(self._pool, self._make, part, pieces) for part in batched(blocks, size)]
            return deque(chain.from_iterable(await asyncio.gather(*jobs)))
        if not again:

            def read_alone(block: tuple[int, Span]) -> Coroutine[Any, Any, deque[Outcome]]:
                own = {name: source.pieces([block[1]]) for name, source in self._sources.items()}
                return self._read([block], own, again=True)

            return deque(chain.from_iterable(await asyncio.gather(*map(read_alone, blocks))))
        ((index, (start, stop)),), (source, error) = blocks, failed[0]
        error.add_note(f"{source.label}, block {index} (rows {start} to {stop - 1})")
        return deque([error])

    def _make(self, blocks: Blocks, pieces: Pieces) -> list[Outcome]:
        """Make blocks of what was read, and what is delivered of them."""
        outcomes: list[Outcome] = []
        for index, span in blocks:
            try:
                arrays = {name: _cut(*span, of_array) for name, of_array in pieces.items()}
                nbytes = sum(map(_held_nbytes, arrays.values()))
                expected = self._row_nbytes * (span[1] - span[0]) + OVERHEAD * len(arrays)
                self._growth = max(self._growth, nbytes / expected)
                block = Block(index, slice(*span), arrays)
                value = block if self._transform is None else self._transform(block)
                outcomes.append((value, nbytes))
            except BaseException as error:  # noqa: BLE001 -- it is delivered
                outcomes.append(error)
        return outcomes

    def cancel(self) -> None:
        """Cancel all reads without waiting. It takes no lock: the garbage collector may call it."""
        if not self.closed:
            self.closed = True
            if (home := self.home) is not None and self.pid == os.getpid():
                try:
                    home.call_soon_threadsafe(lambda: home.create_task(self._end()))
                except RuntimeError:  # the event loop was closed
                    self._pool.shutdown()
                    self._ended.release()

    async def _end(self) -> None:
        self._pool.shutdown()
        await _cancel_and_wait(self._tasks)
        stats, count = self.stats, len(self._indices)
        logger.info("%d of %d blocks were taken:\n%s", stats.blocks, count, stats)
        self._windows.clear()
        self._ended.release()

    def wait(self, timeout: float = CLOSE_SECONDS) -> None:
        """Wait until nothing is in flight, unless called in the event loop that has to do that."""
        here = self.home in (None, asyncio._get_running_loop()) or self.pid != os.getpid()
        if not here and self._ended.acquire(timeout=timeout):
            self._ended.release()


_readers: WeakSet[_Reader] = WeakSet()


@atexit.register
def _stop_all() -> None:
    for reader in (readers := list(_readers)):
        reader.cancel()
    until = perf_counter() + CLOSE_SECONDS
    for reader in readers:
        reader.wait(max(0, until - perf_counter()))


def _cut(start: int, stop: int, pieces: Iterable[_Piece]) -> Any:
    """Copy some rows out of pieces that have been read."""
    parts = [
        piece.task.result()[max(start - piece.start, 0) : stop - piece.start]
        for piece in pieces
        if piece.start < stop and start < piece.stop
    ]
    return parts[0].copy("K") if len(parts) == 1 else np.concatenate(parts)


def _held_nbytes(array: Any) -> int:
    """Return the approximate memory of an array, including what its elements point to."""
    nbytes, kind = int(array.nbytes), array.dtype.kind
    if kind == "O":
        return nbytes + sum(map(getsizeof, array.flat))
    return nbytes + int(np.strings.str_len(array).sum()) if kind == "T" else nbytes


def _error_of(task: asyncio.Future[Any] | Future[Any]) -> BaseException | None:
    """Return the error of a task that has ended, or `None`."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()
