"""Blocks of arrays straight from the store."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Lock, RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, cast, overload
from weakref import WeakSet, finalize

from zarr.abc.store import _get_many_is_current
from zarr.core._bounded import fetch_limit, read_watcher
from zarr.core.array import Array
from zarr.core.indexing import BlockIndexer, ensure_tuple, is_integer, pop_fields, replace_lists
from zarr.core.sync import SyncError, _get_loop, sync
from zarr.experimental._block_reader import CLOSE_SECONDS, BlockReader, Part
from zarr.experimental._block_reads import ArrayBlocks
from zarr.experimental._first_axis import FirstAxis, chosen_blocks
from zarr.experimental._readahead import BlockStreamStats, Readahead, parse_nbytes
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from zarr.core.buffer import NDArrayLike, NDArrayLikeOrScalar
    from zarr.core.indexing import BasicSelection, Fields
    from zarr.experimental._block_reads import AnyArray
    from zarr.experimental._handover import Outcome

__all__ = ["Block", "BlockStream", "BlockStreamStats", "read_block", "read_block_async"]

IO_CONCURRENCY = 32
"""How many fetches a stream has in flight where `async.concurrency` is at its default."""


def read_block(array: AnyArray, coords: BasicSelection | Fields) -> NDArrayLikeOrScalar:
    """Read a block of an array: what `array.blocks[coords]` returns, without its overhead.

    A chunk of a `LocalStore` or a `MemoryStore` is read and decoded by the calling thread itself,
    so that a pool of threads does not queue for zarr's event loop. Several chunks, as where
    `coords` has a slice, are fetched together.

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
    blocks = ArrayBlocks(array)
    fields, indexer = _block(blocks, coords)
    block = None if fields else _read_here(blocks, indexer)
    return sync(_read(blocks, indexer, fields)) if block is None else block


async def read_block_async(array: AnyArray, coords: BasicSelection | Fields) -> NDArrayLikeOrScalar:
    """Read a block of an array, as `read_block` does, without blocking the event loop.

    Parameters
    ----------
    array
        The array. An `AsyncArray` is read in the event loop that runs, an `Array` in that of zarr,
        where its store is at home.
    coords
        Which block, as for `read_block`.

    Returns
    -------
    NDArrayLike
        The block.

    Raises
    ------
    IndexError
        If there is no such block.
    """
    blocks = ArrayBlocks(array)
    fields, indexer = _block(blocks, coords)
    reading = _read(blocks, indexer, fields)
    if isinstance(array, Array) and asyncio.get_running_loop() is not (loop := _get_loop()):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(reading, loop))
    return await reading


def _block(
    blocks: ArrayBlocks, coords: BasicSelection | Fields
) -> tuple[Fields | None, BlockIndexer]:
    """What `array.blocks` makes of `coords`."""
    fields, selection = pop_fields(coords)
    selection = replace_lists(ensure_tuple(selection))
    return fields, BlockIndexer(cast("BasicSelection", selection), blocks.array.shape, blocks.grid)


async def _read(
    blocks: ArrayBlocks, indexer: BlockIndexer, fields: Fields | None
) -> NDArrayLikeOrScalar:
    return await blocks.array._get_selection(indexer, prototype=blocks.prototype, fields=fields)


def _read_here(blocks: ArrayBlocks, indexer: BlockIndexer) -> NDArrayLike | None:
    """Read a block of one chunk on this thread, or return `None` if that is not for us to do.

    Reads that are reported are those that pass through `Store.get_many`.
    """
    store, scatter = blocks.store, blocks.decoder()
    if (
        scatter is None
        or type(store) not in (LocalStore, MemoryStore)
        or not _get_many_is_current(type(store))
        or "get" in vars(store)
        or read_watcher.get() is not None
    ):
        return None
    chunks = list(islice(indexer, 2))
    if len(chunks) != 1:
        return None
    coords, *selections, _ = chunks[0]
    key, out = blocks.key(coords), blocks.empty(indexer.shape)
    value = cast("LocalStore", store).get_sync(key, prototype=blocks.prototype)
    scatter(value, out, blocks.spec(coords), *selections)
    return out.as_ndarray_like()


@dataclass(slots=True)
class Block:
    """A block of one or several arrays.

    Attributes
    ----------
    index
        Which block along the first axis.
    span
        What it covers of the first axis.
    arrays
        Its values, by the name of the array.
    """

    index: int
    span: slice
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def array(self) -> npt.NDArray[Any]:
        """The values, where there is one array.

        Raises
        ------
        ValueError
            If there are several.
        """
        (array,) = self.arrays.values()
        return array


class BlockStream[T]:
    """Blocks of arrays, in order along the first axis, read ahead of whoever iterates.

    A block is a chunk of the first axis, or a shard where an array is sharded, with all that is
    selected of the other axes. The first block shows what a block weighs: it is read alone, or with
    others that by their shape take an eighth of `readahead_bytes`. From then on as many are in
    flight as that holds, at least one: a slow consumer holds them back. They are fetched in zarr's
    event loop, many with one `Store.get_many`, and decoded on threads of the stream.

    It is an iterator, for `for` and for `async for`, and begins when it is first asked for a block.
    Several threads may share it: each block goes to one of them. As a context manager it is closed
    at the end.

    Parameters
    ----------
    arrays
        An array, or arrays by name. They must have the length and the chunks of the first axis in
        common.
    start, stop
        The first block, and the one after the last. Negative numbers count from the end.
    blocks
        The indices of the blocks, in the order that they are wanted in, instead.
    selection
        What to take of the other axes: integers, slices, or what `array.oindex` takes. Of several
        arrays, by name; of those that are left out, everything.
    readahead_bytes
        How many bytes blocks may hold from when they are asked for until they are taken: a number
        or a text such as `"64MiB"`.
    io_concurrency
        How many fetches are in flight at once. By default 32, or `async.concurrency` if that was
        set.
    decode_threads
        How many threads decode at once. By default the number of CPUs.
    transform
        Called with each block on the thread that has decoded it. What it returns is delivered in
        place of the block.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument makes no sense; the message names the array. What reading a block raises
        comes when that block is due, and closes the stream.

    Notes
    -----
    The threads of the stream decode what is encoded with zarr's own codecs. Arrays that are
    sharded, or have codecs from elsewhere, are read as `array.blocks` reads them, ahead of time.

    Examples
    --------
    >>> import zarr
    >>> from zarr.experimental.block_stream import BlockStream
    >>> array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="uint8", fill_value=7)
    >>> with BlockStream(array) as stream:
    ...     [(block.index, block.span, block.array.sum()) for block in stream]
    [(0, slice(0, 2, None), np.uint64(14)), (1, slice(2, 4, None), np.uint64(14)), (2, slice(4, 5, None), np.uint64(7))]
    """

    @overload
    def __init__(
        self: BlockStream[Block],
        arrays: Array[Any] | Mapping[str, Array[Any]],
        *,
        start: int | None = ...,
        stop: int | None = ...,
        blocks: Iterable[int] | None = ...,
        selection: Any = ...,
        readahead_bytes: int | str = ...,
        io_concurrency: int | None = ...,
        decode_threads: int | None = ...,
        transform: None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        arrays: Array[Any] | Mapping[str, Array[Any]],
        *,
        start: int | None = ...,
        stop: int | None = ...,
        blocks: Iterable[int] | None = ...,
        selection: Any = ...,
        readahead_bytes: int | str = ...,
        io_concurrency: int | None = ...,
        decode_threads: int | None = ...,
        transform: Callable[[Block], T],
    ) -> None: ...
    def __init__(
        self,
        arrays: Array[Any] | Mapping[str, Array[Any]],
        *,
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
        parts = _parts(arrays, selection)
        self._parts = parts
        (name, first), *_ = parts.items()
        try:
            self._indices = chosen_blocks(len(first.axis), start, stop, blocks)
        except IndexError as error:
            raise IndexError(f"{_label(name, first.blocks)}: {error}") from None
        threads, fetches = os.cpu_count() or 1, fetch_limit(IO_CONCURRENCY)
        self._options: dict[str, Any] = {
            "budget": parse_nbytes(readahead_bytes),
            "io_concurrency": _positive("io_concurrency", io_concurrency, fetches),
            "decode_threads": _positive("decode_threads", decode_threads, threads),
            "transform": transform,
        }
        self._reader: BlockReader | None = None
        self._closed = False
        self._lock = RLock()  # a signal handler may close the stream while it begins

    def __len__(self) -> int:
        """How many blocks there are in all."""
        return len(self._indices)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        outcome = _wait(self._begin())
        if outcome.error is None:
            return cast("T", outcome.value)
        self.close()
        try:
            raise outcome.error
        finally:
            del outcome  # the traceback holds this frame

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        outcome = await _wait_async(self._begin())
        if outcome.error is None:
            return cast("T", outcome.value)
        if (reader := self._close()) is not None:
            reader.cancel()  # nothing is awaited: the error would be lost if that were cancelled
        try:
            raise StopAsyncIteration if isinstance(outcome.error, StopIteration) else outcome.error
        finally:
            del outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Cancel what is in flight. Whoever asks for a block now is told that there is none."""
        if (reader := self._close()) is not None:
            reader.close()

    async def aclose(self) -> None:
        """Do what `close` does, without blocking the event loop."""
        if (reader := self._close()) is not None:
            reader.cancel()
            if reader.pid != os.getpid():
                return
            await asyncio.wait([asyncio.wrap_future(reader.ended)], timeout=CLOSE_SECONDS)

    @property
    def stats(self) -> BlockStreamStats:
        """What the stream has done so far."""
        return BlockStreamStats() if self._reader is None else self._reader.stats()

    def _close(self) -> BlockReader | None:
        with self._lock:
            self._closed = True
            return self._reader

    def _begin(self) -> BlockReader:
        with self._lock:
            if self._reader is None:
                indices = [] if self._closed else self._indices
                self._reader = _reader(self._parts, indices, **self._options)
                _begun.add(self._reader)
                # A program that ends has its readers ended otherwise, all together.
                finalize(self, self._reader.cancel).atexit = False
                if self._closed:
                    self._reader.cancel()
            return self._reader


ALONE = "array"
"""The name of an array that was given without one."""


def _parts(arrays: Array[Any] | Mapping[str, Array[Any]], selection: Any) -> dict[str, Part]:
    """Check that arrays can be read in step, and work out how.

    Raises
    ------
    TypeError, ValueError, IndexError
        If they can't.
    """
    if not isinstance(arrays, Mapping):
        arrays, selection = {ALONE: arrays}, {ALONE: () if selection is None else selection}
    selections = {} if selection is None else selection
    if not isinstance(selections, Mapping):
        raise TypeError(f"Of several arrays, give selections by name, got {selection!r}.")
    if not arrays:
        raise ValueError("There is no array to read.")
    if unknown := selections.keys() - arrays.keys():
        raise ValueError(
            f"There is a selection for {sorted(map(str, unknown))}, and no such array."
        )
    parts: dict[str, Part] = {}
    for name, array in arrays.items():
        if not isinstance(array, Array):
            raise TypeError(f"{name!r} is not a zarr.Array, but a {type(array).__name__}.")
        blocks = ArrayBlocks(array)
        chosen = () if (given := selections.get(name)) is None else given
        try:
            axis = FirstAxis(array.shape, blocks.grid, chosen)
        except (IndexError, ValueError, TypeError) as error:
            raise IndexError(f"{_label(name, blocks)}: {error}") from error
        parts[name] = Part(blocks, axis, blocks.decoder(axis.drop_axes))
        first, *_ = parts.values()
        if axis.dimension != first.axis.dimension:
            raise ValueError(
                f"{_label(name, blocks)} has another length or other chunks along its first axis, "
                f"{_length(axis)}, than {_label(next(iter(parts)), first.blocks)}, "
                f"{_length(first.axis)}."
            )
    return parts


def _label(name: str, blocks: ArrayBlocks) -> str:
    return f"array {name!r} ({blocks.array.store_path})"


def _length(axis: FirstAxis) -> str:
    return f"{axis.dimension.extent} in {len(axis)} chunks"


def _positive(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _reader(
    parts: Mapping[str, Part],
    indices: Sequence[int],
    *,
    budget: int,
    io_concurrency: int,
    decode_threads: int,
    transform: Callable[[Block], Any] | None,
) -> BlockReader:
    """Begin to read. Nothing here may know the stream, or it would never be collected."""
    first, *_ = parts.values()

    def finish(index: int, arrays: dict[str, Any]) -> Any:
        block = Block(index, first.axis.rows(index), arrays)
        return block if transform is None else transform(block)

    row_nbytes = sum(part.axis.row_size * part.blocks.item_nbytes for part in parts.values())

    def expected(position: int) -> int:
        return first.axis.dimension.data_size(indices[position]) * row_nbytes

    sized = all(part.blocks.is_sized for part in parts.values())
    return BlockReader(
        parts,
        indices,
        readahead=Readahead(len(indices), expected, budget, sized=sized),
        io_concurrency=io_concurrency,
        decode_threads=decode_threads,
        finish=finish,
        each=transform is not None,
    )


def _wait(reader: BlockReader) -> Outcome:
    """Take the next block, and block the thread until it is there."""
    since = None
    while True:
        gate = Lock()
        gate.acquire()
        outcome = reader.take(gate.release, since)
        if outcome is not None:
            return outcome
        if asyncio._get_running_loop() is reader.loop:
            raise SyncError("Waiting for a block from within zarr's own event loop")
        since = since or perf_counter()
        gate.acquire()


async def _wait_async(reader: BlockReader) -> Outcome:
    """Take the next block, and let the event loop go on until it is there."""
    loop = asyncio.get_running_loop()
    since = None
    while True:
        there = asyncio.Event()

        def wake(there: asyncio.Event = there) -> None:
            with suppress(RuntimeError):  # its event loop was closed meanwhile
                loop.call_soon_threadsafe(there.set)

        outcome = reader.take(wake, since)
        if outcome is not None:
            return outcome
        since = since or perf_counter()
        await there.wait()


_begun: WeakSet[BlockReader] = WeakSet()
"""Readers whose event loop would otherwise be closed under them when the program ends."""


@atexit.register
def _end_all() -> None:
    readers = [reader for reader in list(_begun) if reader.pid == os.getpid()]
    for reader in readers:
        reader.cancel()
    wait([reader.ended for reader in readers], timeout=CLOSE_SECONDS)


_inherited: list[BlockReader] = []
"""Readers of the process that this one was forked from. Their event loop does not run here, and
would complain if their tasks were destroyed."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_begun))
