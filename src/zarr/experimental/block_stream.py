"""Blocks of arrays straight from the store."""

from __future__ import annotations

import asyncio
import atexit
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from copy import copy
from dataclasses import replace
from itertools import islice
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, cast
from weakref import WeakSet, finalize

from typing_extensions import TypeVar

from zarr.core.array import Array, AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.chunk_grids import FixedDimension
from zarr.core.chunk_utils import ChunkTransform
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline
from zarr.core.config import config
from zarr.core.indexing import BlockIndexer, ensure_tuple, is_integer, pop_fields, replace_lists
from zarr.core.sync import SyncError, _get_loop, sync
from zarr.experimental._block_reader import (
    CLOSE_SECONDS,
    Block,
    BlockSource,
    BlockStreamStats,
    Outcome,
    Reader,
    error_of,
)
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.core.buffer import NDArrayLikeOrScalar
    from zarr.core.chunk_grids import DimensionGrid
    from zarr.core.indexing import BasicSelection, Fields

    type AnyArray = Array[Any] | AsyncArray[Any]

__all__ = ["Block", "BlockStream", "BlockStreamStats", "read_block", "read_block_async"]

IO_CONCURRENCY = 32  # requests in flight where `async.concurrency` is at its default


def read_block(array: AnyArray, coords: BasicSelection | Fields) -> NDArrayLikeOrScalar:
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

    Returns
    -------
    NDArrayLike
        The block, cut off where the array ends, with the fill value where chunks are missing.

    Raises
    ------
    IndexError
        If there is no such block.

    Examples
    --------
    >>> import zarr
    >>> from zarr.experimental.block_stream import read_block
    >>> array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="uint8", fill_value=7)
    >>> read_block(array, 2)
    array([7], dtype=uint8)
    """
    source = _async_array(array)
    indexer, fields = _block(source, coords)
    here = _on_this_thread(source) if len(list(islice(indexer, 2))) == 1 else None
    prototype = default_buffer_prototype()
    reading = (here or source)._get_selection(indexer, prototype=prototype, fields=fields)
    if here is None:
        return sync(reading)
    try:
        reading.send(None)  # it waits for nothing
    except StopIteration as done:
        return cast("NDArrayLikeOrScalar", done.value)
    raise RuntimeError("The codecs of this array wait for something.")


async def read_block_async(array: AnyArray, coords: BasicSelection | Fields) -> NDArrayLikeOrScalar:
    """Read a block of an array, as `read_block` does, without blocking the event loop.

    An `AsyncArray` is read in the event loop that runs, an `Array` in zarr's.
    """
    source = _async_array(array)
    indexer, fields = _block(source, coords)
    reading = source._get_selection(indexer, prototype=default_buffer_prototype(), fields=fields)
    if isinstance(array, Array) and asyncio.get_running_loop() is not (loop := _get_loop()):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(reading, loop))
    return await reading


def _async_array(array: Any) -> AsyncArray[Any]:
    if not isinstance(array, Array | AsyncArray):
        raise TypeError(f"Expected a zarr array, got an object of type {type(array).__name__}.")
    return array.async_array if isinstance(array, Array) else array


def _block(
    array: AsyncArray[Any], coords: BasicSelection | Fields
) -> tuple[BlockIndexer, Fields | None]:
    """Return the indexer that `array.blocks` would use, and the fields."""
    fields, selection = pop_fields(coords)
    selection = cast("BasicSelection", replace_lists(ensure_tuple(selection)))
    return BlockIndexer(selection, array.shape, array._chunk_grid), fields


class _CallingThread(FusedCodecPipeline):
    """Reads on the thread that calls it."""

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        return self.read_sync(batch_info, out, drop_axes)


def _on_this_thread(array: AsyncArray[Any]) -> AsyncArray[Any] | None:
    """Return the array with a pipeline that reads on the calling thread, or `None` if it cannot.

    Stores of other kinds, and codecs of other packages, may count on the event loop.
    """
    store, pipeline = array.store_path.store, cast("BatchedCodecPipeline", array.codec_pipeline)
    if (
        type(store) not in (LocalStore, MemoryStore)
        or "get" in vars(store)
        or type(pipeline) not in (BatchedCodecPipeline, FusedCodecPipeline)
        or pipeline.supports_partial_decode
        or not all(type(codec).__module__.startswith("zarr.") for codec in pipeline)
    ):
        return None
    try:
        transform = ChunkTransform(codecs=tuple(pipeline))
    except TypeError:  # some codec can only be awaited
        return None
    here = copy(array)
    parts = pipeline.array_array_codecs, pipeline.array_bytes_codec, pipeline.bytes_bytes_codecs
    calling_thread = _CallingThread(tuple(pipeline), *parts, transform, 1)
    object.__setattr__(here, "codec_pipeline", calling_thread)
    return here


T = TypeVar("T", default=Block)


class BlockStream(Generic[T]):
    """Blocks of arrays along the first axis, read ahead of the program that takes them.

    Consecutive blocks are read together: the first alone, then more and more of them, several such
    windows at a time, within a budget of bytes. A slow program holds reading back.

    A stream is an iterator, for `for` and for `async for`. It begins when it is first asked for a
    block. Several threads may share it: each block goes to one of them. As a context manager it is
    closed at the end.

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
        How many bytes may be in flight: a number, or text such as `"64MiB"`.
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
    ...     [(block.index, block.span, block.array.sum()) for block in stream]
    [(0, slice(0, 2, None), np.uint64(14)), (1, slice(2, 4, None), np.uint64(14)), (2, slice(4, 5, None), np.uint64(7))]
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
        readahead_bytes: int | str = 256 << 20,
        io_concurrency: int | None = None,
        decode_threads: int | None = None,
        transform: Callable[[Block], T] | None = None,
    ) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function, got {transform!r}.")
        sources = _sources(arrays, selection)
        axis = _axis(sources, block_length)
        try:
            self._indices = _chosen(axis.nchunks, start, stop, blocks)
        except IndexError as error:
            name, source = next(iter(sources.items()))
            raise IndexError(f"Array {name!r} ({source.array.store_path}): {error}") from None
        default = config.get("async.concurrency")
        if default is None or default == config.defaults[0]["async"]["concurrency"]:
            default = IO_CONCURRENCY
        self._sources, self._axis = sources, axis
        self._options = (
            _parse_nbytes(readahead_bytes),
            _positive("io_concurrency", io_concurrency, default),
            _positive("decode_threads", decode_threads, os.cpu_count() or 1),
            transform,
        )
        given = arrays.values() if isinstance(arrays, Mapping) else [arrays]
        self._is_async = any(isinstance(array, AsyncArray) for array in given)
        self._lock = RLock()  # a signal handler may look at the stream, or close it
        self._reader: Reader | None = None
        self._window: Future[list[Outcome]] | None = None  # whose blocks are being delivered
        self._taken = 0  # blocks
        self._failed_at: int | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return len(self._indices)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            window, home = self._next_window(_get_loop)
            if not window.done():
                if asyncio._get_running_loop() is home:
                    raise SyncError("A block is awaited by blocking the loop that fetches it.")
                wait([window])
            if (outcome := self._take(window)) is not None:
                return self._value(outcome)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        home = asyncio.get_running_loop if self._is_async else _get_loop
        while True:
            try:
                window, _ = self._next_window(home)
            except StopIteration:
                raise StopAsyncIteration from None
            if not window.done():
                await asyncio.wait([asyncio.wrap_future(window)])
            if (outcome := self._take(window)) is not None:
                return self._value(outcome)

    def _value(self, outcome: Outcome) -> T:
        if outcome.error is None:
            return cast("T", outcome.value)
        try:
            raise outcome.error
        finally:
            del outcome  # the traceback holds this frame

    def _next_window(
        self, home: Callable[[], asyncio.AbstractEventLoop]
    ) -> tuple[Future[list[Outcome]], asyncio.AbstractEventLoop]:
        """Return the window of the next block, which may still be in flight, and its event loop."""
        with self._lock:
            reader = self._reader
            if reader is not None and reader.pid != os.getpid():
                raise RuntimeError("A stream cannot be used after a fork. Make another one.")
            if self._taken == len(self._indices):
                raise StopIteration
            if self._failed_at is not None:
                raise RuntimeError(f"The stream has ended: block {self._failed_at} failed.")
            if self._closed or (reader is not None and reader.closed):
                raise ValueError("The stream of blocks is closed.")
            if reader is None:
                reader = Reader(self._sources, self._axis, self._indices, home(), *self._options)
                _readers.add(reader)
                # When a program ends, its readers are stopped together.
                finalize(self, reader.cancel).atexit = False
                self._reader = reader
            if self._window is None:
                self._window = reader.begin_next_window()
            return self._window, reader.home

    def _take(self, window: Future[list[Outcome]]) -> Outcome | None:
        """Take the next block of a window, or return `None` if another thread took the last one."""
        with self._lock:
            reader = self._reader
            if self._window is not window or reader is None or reader.closed:
                return None
            error = error_of(window)
            outcomes = window.result() if error is None else [Outcome(error=error)]
            outcome = outcomes.pop()
            if not outcomes:
                self._window = None
            if outcome.error is not None:
                self._failed_at = self._indices[self._taken]
                reader.cancel()
                return outcome
            self._taken += 1
            reader.stats.blocks += 1
            reader.stats.nbytes += outcome.nbytes
            if self._taken == len(self._indices):
                reader.cancel()
            return outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A BlockStream cannot be pickled. Make one in the process that uses it.")

    def close(self) -> None:
        """Cancel what is in flight. Taking another block is an error from now on."""
        self._closed = True
        if (reader := self._reader) is not None:
            reader.cancel()
            if self._window is not None:
                self._window.cancel()
            reader.wait()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    @property
    def stats(self) -> BlockStreamStats:
        """What the stream has done so far."""
        if (reader := self._reader) is None:
            return BlockStreamStats()
        nbytes = 0 if reader.closed else reader.nbytes_in_flight()
        return replace(reader.stats, nbytes_in_flight=nbytes)


def _sources(arrays: AnyArray | Mapping[str, AnyArray], selection: Any) -> dict[str, BlockSource]:
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
    sources: dict[str, BlockSource] = {}
    for name, array in arrays.items():
        if not isinstance(array, Array | AsyncArray):
            raise TypeError(f"{name!r} is not a zarr.Array, but a {type(array).__name__}.")
        try:
            sources[name] = BlockSource(_async_array(array), selections.get(name))
        except (IndexError, ValueError, TypeError) as error:
            raise IndexError(f"Array {name!r} ({array.store_path}): {error}") from error
    return sources


def _axis(sources: Mapping[str, BlockSource], block_length: int | None) -> DimensionGrid:
    """Return how the first axis of the arrays is divided into blocks."""
    axes = [source.axis for source in sources.values()]
    same_chunks = all(axis == axes[0] for axis in axes)
    same_length = all(axis.extent == axes[0].extent for axis in axes)
    if not same_length or not (same_chunks or block_length):
        each = [
            f"{name!r} ({source.array.store_path}) has {axis.extent} in {axis.nchunks} chunks"
            + (f" of {axis.chunk_size(0)}" if axis.nchunks else "")
            for (name, source), axis in zip(sources.items(), axes, strict=True)
        ]
        raise ValueError(
            "The arrays must have the same length, and without a `block_length` the same chunks, "
            f"along the first axis: {', '.join(each)}."
        )
    if block_length is None:
        return axes[0]
    return FixedDimension(_positive("block_length", block_length, 1), axes[0].extent)


def _chosen(
    count: int, start: int | None, stop: int | None, blocks: Iterable[int] | None
) -> Sequence[int]:
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


def _positive(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _parse_nbytes(size: int | str) -> int:
    """Parse a number of bytes, such as `4096`, `"64MiB"` or `"1.5 GB"`."""
    nbytes: Any = size
    if isinstance(size, str) and (
        match := re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt]?)(i?)b)?\s*", size.lower())
    ):
        nbytes = int(
            float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")
        )
    if not is_integer(nbytes) or nbytes < 1:
        raise ValueError(
            "readahead_bytes must be a positive whole number of bytes, or text with a unit such as "
            f"'64MB' or '64MiB', got {size!r}."
        )
    return int(nbytes)


_readers: WeakSet[Reader] = WeakSet()


@atexit.register
def _stop_all() -> None:
    readers = [reader for reader in list(_readers) if reader.pid == os.getpid()]
    for reader in readers:
        reader.cancel()
    until = monotonic() + CLOSE_SECONDS
    for reader in readers:
        reader.wait(max(0.0, until - monotonic()))
