"""Read blocks in windows: consecutive blocks are one read of the array, which is then cut up.

Nothing here refers to the stream. So a stream that is no longer referenced is collected, which
cancels its reads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from concurrent.futures import Executor, Future
from contextlib import aclosing, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from math import prod
from queue import Empty, SimpleQueue
from sys import getsizeof
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr.abc.store import Store
from zarr.codecs import ShardingCodec
from zarr.core.chunk_grids import FixedDimension
from zarr.core.codec_pipeline import decode_pool
from zarr.core.config import config
from zarr.core.dtype.common import HasItemSize
from zarr.core.indexing import BasicIndexer, OrthogonalIndexer, ensure_tuple, is_integer
from zarr.storage import ObjectStore, StorePath, WrapperStore

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Coroutine,
        Mapping,
        Sequence,
    )

    import numpy.typing as npt

    from zarr.core.array import AsyncArray
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.core.chunk_grids import DimensionGrid
    from zarr.core.indexing import Indexer

    type Span = tuple[int, int]  # the first row, and the one after the last

logger = logging.getLogger("zarr.experimental.block_stream")

WINDOWS = 4  # that fit into the budget when they have their full size
MAX_BLOCKS = 256  # in a window. The first has one, the others eight times as many as all before
OVERHEAD = 1 << 10  # approximate memory of a chunk or a block besides its data, in bytes
ITEM_NBYTES = 16  # expected size of an element of variable length, until some have been read
CLOSE_SECONDS = 1.0  # how long `close` waits for cancelled reads to end


@dataclass(slots=True)
class Block:
    """A block of one or several arrays.

    Attributes
    ----------
    index
        Which block along the first axis.
    span
        The rows of the first axis that it covers.
    arrays
        Its values, by the name of the array.
    """

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

    Attributes
    ----------
    blocks, nbytes
        Blocks that were delivered, and how many bytes they hold.
    nbytes_in_flight, max_nbytes_in_flight, max_blocks_in_flight
        Bytes that are being read or wait to be taken, and the most of them and of such blocks.
    requests
        How many operations the stores ran.
    io_seconds, decode_seconds
        How long the consumer waited for blocks that were being fetched, or decoded.
    consumer_seconds
        How long reading stood still because the consumer took no block.
    """

    blocks: int = 0
    nbytes: int = 0
    nbytes_in_flight: int = 0
    max_nbytes_in_flight: int = 0
    max_blocks_in_flight: int = 0
    requests: int = 0
    io_seconds: float = 0.0
    decode_seconds: float = 0.0
    consumer_seconds: float = 0.0

    def __str__(self) -> str:
        figures = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(
            f"{name:<20}{figure:>16,{'.3f' if 'seconds' in name else ''}}"
            for name, figure in figures
        )


class Outcome(NamedTuple):
    """What became of a block: what is delivered, or the error."""

    value: Any = None
    error: BaseException | None = None
    nbytes: int = 0


@dataclass(slots=True, eq=False)
class Piece:
    """Consecutive chunks along the first axis of an array, which are read together."""

    start: int
    stop: int
    nbytes: int = 0  # in memory, by its shape
    reading: Any = None  # the task that reads it


@dataclass(slots=True, eq=False)
class Window:
    """Blocks that are read together."""

    blocks: list[tuple[int, Span]]
    pieces: Mapping[str, Sequence[Piece]]
    nbytes: int  # in memory, as expected until it is read
    reading: Any = None  # the task that reads it


class DecodePool(Executor):
    """Daemon threads, which do not delay the exit of the program."""

    def __init__(self, limit: int) -> None:
        self._limit, self._started, self._stopped = limit, 0, False
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        # docstring inherited
        if self._started < self._limit:
            try:
                threading.Thread(target=self._run, name="zarr_block_decode", daemon=True).start()
                self._started += 1
            except RuntimeError:  # the system has no more threads
                if not self._started:
                    raise
        future: Future[Any] = Future()
        if self._stopped:
            future.cancel()
        else:
            self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        # docstring inherited
        self._stopped = True
        with suppress(Empty):
            while cancel_futures and (job := self._jobs.get_nowait()) is not None:
                job[0].cancel()
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 -- it is for whoever has the future
                    future.set_exception(error)
            del job, future, work
        self._jobs.put(None)  # for the next thread


class LimitedStore(WrapperStore[Store]):
    """Limits how many requests a stream has in flight, for all its stores together."""

    _supports_sync_io = False  # every request passes through here
    get_ranges = Store.get_ranges  # type: ignore[assignment]  # which merges, and calls `get`

    def __init__(self, store: Store, reader: Reader) -> None:
        super().__init__(store)
        self._reader = reader
        # The nearest class that has either decides how several requests are served.
        nearest = next(c for c in type(store).__mro__ if {"get", "get_many"} & vars(c).keys())
        is_own = vars(nearest).get("get_many", Store.get_many) is not Store.get_many
        # Object stores, and file systems but for that of references, have a request for each key.
        protocol = getattr(getattr(store, "fs", None), "protocol", "reference")
        self._merges = is_own and protocol == "reference" and not isinstance(store, ObjectStore)

    def __str__(self) -> str:
        return str(self._store)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Any:
        # docstring inherited
        async with self._reader.requests:
            value = await self._store.get(key, prototype, byte_range)
        self._reader.count_request()
        return value

    async def get_many(
        self, requests: Any, *, prototype: BufferPrototype, max_concurrency: int | None = None
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        reader = self._reader
        gate: Any = nullcontext()
        get_many: Any = partial(Store.get_many, self)
        limit = reader.io_concurrency
        if self._merges:
            gate = reader.requests if len(requests) == 1 else reader.merged_requests
            limit, get_many = reader.merged_concurrency, self._store.get_many
        groups = get_many(requests, prototype=prototype, max_concurrency=limit)
        async with gate, aclosing(groups):
            async for group in groups:
                if self._merges:
                    reader.count_request()
                yield group


class BlockSource:
    """An array that blocks are read from, and what is selected of its axes after the first."""

    def __init__(self, array: AsyncArray[Any], selection: Any) -> None:
        self.array = array
        self.selection = () if selection is None else ensure_tuple(selection)
        if not array.shape:
            raise IndexError("it has no axis")
        if (count := sum(part is not ... for part in self.selection)) >= array.ndim:
            raise IndexError(
                f"the selection is for {count} axes, and there are {array.ndim - 1} after the first"
            )
        self._is_basic = all(
            isinstance(part, slice) or part is ... or is_integer(part) for part in self.selection
        )
        # The blocks of `array.blocks`, and what can be read by itself: a part of a shard, too.
        self.axis = self.chunks = array._chunk_grid._dimensions[0]
        codec = getattr(array.codec_pipeline, "array_bytes_codec", None)
        if isinstance(codec, ShardingCodec) and array.codec_pipeline.supports_partial_decode:
            self.chunks = FixedDimension(codec.chunk_shape[0], array.shape[0])
        dtype = array.metadata.dtype
        item_nbytes = dtype.item_size if isinstance(dtype, HasItemSize) else ITEM_NBYTES
        self._row_nbytes = prod(self.indexer((0, array.shape[0])).shape[1:]) * item_nbytes

    def indexer(self, span: Span) -> Indexer:
        """Return the indexer of a range of rows."""
        kind = BasicIndexer if self._is_basic else OrthogonalIndexer
        return kind((slice(*span), *self.selection), self.array.shape, self.array._chunk_grid)

    def within(self, reader: Reader, *, whole_shards: bool) -> BlockSource:
        """Return this source with limited requests."""
        source, array = copy(self), copy(self.array)
        if not whole_shards:  # what lies between inner chunks of a window is read for another one
            array = array.with_config(replace(array.config, sharding_coalesce_max_gap_bytes=0))
        path = StorePath(LimitedStore(array.store_path.store, reader), array.store_path.path)
        object.__setattr__(array, "store_path", path)
        source.array = array
        return source

    async def read(self, span: Span) -> Any:
        """Read a range of rows."""
        read = self.array.getitem if self._is_basic else self.array.get_orthogonal_selection
        return await read((slice(*span), *self.selection))

    def pieces(self, spans: Sequence[Span], last: Piece | None) -> list[Piece]:
        """Return the pieces that contain the rows: `last`, and one for each run of other chunks."""
        pieces: list[Piece] = []
        chunk_at = self.chunks.index_to_chunk
        for number in sorted(
            {n for a, b in spans for n in range(chunk_at(a), chunk_at(b - 1) + 1)}
        ):
            start, length = self.chunks.chunk_offset(number), self.chunks.data_size(number)
            if last is not None and last.start <= start < last.stop:
                pieces += [last] if last not in pieces else []
                continue
            if not pieces or pieces[-1] is last or pieces[-1].stop != start:
                pieces.append(Piece(start, start))
            pieces[-1].stop += length
            pieces[-1].nbytes += length * self._row_nbytes + OVERHEAD
        return pieces


class Reader:
    """Reads blocks in windows, as tasks in `home`, the event loop of their stores."""

    def __init__(
        self,
        sources: Mapping[str, BlockSource],
        axis: DimensionGrid,
        indices: Sequence[int],
        home: asyncio.AbstractEventLoop,
        budget: int,
        io_concurrency: int,
        decode_threads: int,
        transform: Callable[[Block], Any] | None,
    ) -> None:
        self.home, self.pid, self.closed, self.stats = home, os.getpid(), False, BlockStreamStats()
        self.io_concurrency, self.requests = io_concurrency, asyncio.Semaphore(io_concurrency)
        # How many requests a `get_many` that merges some may make, and how many of these there are.
        self.merged_concurrency = min(config.get("async.concurrency") or 10, io_concurrency)
        self.merged_requests = asyncio.Semaphore(io_concurrency // self.merged_concurrency)
        self._sources = {
            name: source.within(self, whole_shards=source.axis == axis)
            for name, source in sources.items()
        }
        self._axis, self._indices, self._budget = axis, indices, budget
        self._transform = transform
        self._pool = DecodePool(decode_threads)
        self._windows: deque[Window] = deque()  # the first has been asked for
        self._planned: Window | None = None
        self._last: dict[str, Piece | None] = dict.fromkeys(sources)
        self._begun = 0  # blocks
        self._growth = 1.0  # how much larger arrays are in memory than their shapes say
        self._fetched_at = self._read_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = threading.Lock()  # held until then; a future would need other locks
        self._ended.acquire()

    def begin_next_window(self) -> Future[list[Outcome]]:
        """Ask for the next blocks, from any thread."""
        waiting = self._next_window()
        try:
            return asyncio.run_coroutine_threadsafe(waiting, self.home)
        except RuntimeError:  # the event loop was closed
            waiting.close()
            raise

    def count_request(self) -> None:
        """Count a request that a store has served."""
        self.stats.requests += 1
        self._fetched_at = perf_counter()

    async def _next_window(self) -> list[Outcome]:
        """Return the outcomes of the next blocks in reverse order, up to the first failure."""
        since, stats = perf_counter(), self.stats
        if self._windows:
            self._windows.popleft()
            if all(window.reading.done() for window in self._windows):
                stats.consumer_seconds += since - self._read_at
        self._begin_windows()
        window = self._windows[0]
        await asyncio.wait([window.reading])
        outcomes: list[Outcome] = window.reading.result()
        window.nbytes = sum(outcome.nbytes + OVERHEAD for outcome in outcomes)
        self._begin_windows()
        now = perf_counter()
        fetching = min(now - since, max(0.0, self._fetched_at - since))
        stats.io_seconds += fetching
        stats.decode_seconds += now - since - fetching
        outcomes.reverse()
        return outcomes

    def nbytes_in_flight(self) -> int:
        """Return how many bytes count against the budget: being read, or waiting to be taken."""
        return sum(window.nbytes for window in tuple(self._windows))

    def _begin_windows(self) -> None:
        """Start reading windows while the budget allows it, and at least one."""
        while self._begun < len(self._indices):
            # The memory that blocks take is known once some have been read.
            if self._windows and not self._read_at:
                return
            window = self._planned = self._planned or self._plan()
            in_flight = self.nbytes_in_flight() + window.nbytes
            if self._windows and in_flight > self._budget:
                return
            self._planned, stop = None, window.blocks[-1][1][1]
            self._begun += len(window.blocks)
            for name, pieces in window.pieces.items():
                # The next window goes on in the piece that this one ends in.
                self._last[name] = next((p for p in pieces if p.start < stop < p.stop), None)
                for piece in pieces:
                    if piece.reading is None:
                        read = self._sources[name].read((piece.start, piece.stop))
                        piece.reading = self._start(read)
            window.reading = self._start(self._read(window))
            self._windows.append(window)
            stats, blocks = self.stats, sum(len(each.blocks) for each in self._windows)
            stats.max_nbytes_in_flight = max(stats.max_nbytes_in_flight, in_flight)
            stats.max_blocks_in_flight = max(stats.max_blocks_in_flight, blocks)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        decode_pool.set(self._pool)  # of this task, that of `next_window`, and those it starts
        task = self.home.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(error_of)  # or asyncio would report it
        return task

    def _plan(self) -> Window:
        """Plan the next window."""
        count = min(8 * self._begun or 1, MAX_BLOCKS, len(self._indices) - self._begun)
        while True:
            indices = self._indices[self._begun : self._begun + count]
            starts = [(index, self._axis.chunk_offset(index)) for index in indices]
            blocks = [(i, (start, start + self._axis.data_size(i))) for i, start in starts]
            spans = [span for _, span in blocks]
            pieces = {n: s.pieces(spans, self._last[n]) for n, s in self._sources.items()}
            # Encoded and decoded, or in pieces and as blocks: about twice the size of the rows.
            expected = sum(piece.nbytes for of_array in pieces.values() for piece in of_array)
            nbytes = int(2 * self._growth * expected)
            if count == 1 or nbytes <= self._budget / WINDOWS:
                return Window(blocks, pieces, nbytes)
            count //= 2

    async def _read(self, window: Window) -> list[Outcome]:
        run = self.home.run_in_executor
        readings = [piece.reading for pieces in window.pieces.values() for piece in pieces]
        await asyncio.wait(readings)
        if any(error_of(reading) is not None for reading in readings):
            outcomes = await self._read_alone(window)
        else:
            outcomes = await run(self._pool, self._cut, window)
        window.pieces = {}  # the memory of what was cut into blocks
        if (transform := self._transform) is not None:
            jobs = [run(self._pool, transformed, transform, outcome) for outcome in outcomes]
            outcomes = await asyncio.gather(*jobs)
        self._read_at = perf_counter()
        return outcomes

    def _cut(self, window: Window) -> list[Outcome]:
        """Copy the blocks of a window from the pieces that have been read."""
        pieces = [piece for of_array in window.pieces.values() for piece in of_array]
        held = sum(held_nbytes(piece.reading.result()) for piece in pieces)
        self._growth = max(self._growth, held / max(1, sum(piece.nbytes for piece in pieces)))

        def rows(name: str, start: int, stop: int) -> Any:
            parts = [
                piece.reading.result()[max(start - piece.start, 0) : stop - piece.start]
                for piece in window.pieces[name]
                if piece.start < stop and start < piece.stop
            ]
            return parts[0].copy("K") if len(parts) == 1 else np.concatenate(parts)

        return [
            outcome_of(index, span, {name: rows(name, *span) for name in window.pieces})
            for index, span in window.blocks
        ]

    async def _read_alone(self, window: Window) -> list[Outcome]:
        """Read each block separately to find out which one fails."""

        async def read(index: int, span: Span) -> Outcome:
            arrays = {}
            for name, source in self._sources.items():
                try:
                    arrays[name] = await source.read(span)
                except Exception as error:
                    error.add_note(
                        f"Array {name!r} ({source.array.store_path}), block {index} (rows "
                        f"{span[0]} to {span[1] - 1}), chunk {await self._failing(source, span)}"
                    )
                    raise
            return outcome_of(index, span, arrays)

        found = await asyncio.gather(*(read(*b) for b in window.blocks), return_exceptions=True)
        outcomes = [each if isinstance(each, Outcome) else Outcome(error=each) for each in found]
        failed = (number for number, each in enumerate(outcomes, 1) if each.error is not None)
        return outcomes[: next(failed, None)]

    async def _failing(self, source: BlockSource, span: Span) -> str | None:
        """Return the key of the first chunk in a range of rows that cannot be read."""
        array = source.array
        for coords, *_ in source.indexer(span):
            try:
                await array.getitem(array._chunk_grid[coords].slices)  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001 -- the error of the block is what counts
                return str(array.metadata.encode_chunk_key(coords))
        return None

    def cancel(self) -> None:
        """Cancel all reads without waiting. It takes no lock: the garbage collector may call it."""
        if not self.closed:
            self.closed = True
            if self.pid == os.getpid():
                try:
                    self.home.call_soon_threadsafe(lambda: self.home.create_task(self._end()))
                except RuntimeError:  # the event loop was closed
                    self._pool.shutdown()
                    self._ended.release()

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._pool.shutdown(cancel_futures=True)
        await asyncio.gather(*tasks, return_exceptions=True)
        stats, count = self.stats, len(self._indices)
        logger.info("%d of %d blocks were taken:\n%s", stats.blocks, count, stats)
        self._windows.clear()
        self._ended.release()

    def wait(self, timeout: float = CLOSE_SECONDS) -> None:
        """Wait until nothing is in flight, unless called in the event loop that has to do that."""
        here = asyncio._get_running_loop() is self.home
        if self.pid == os.getpid() and not here and self._ended.acquire(timeout=timeout):
            self._ended.release()


def outcome_of(index: int, span: Span, arrays: dict[str, Any]) -> Outcome:
    """Return the outcome of a block that has been read."""
    nbytes = sum(map(held_nbytes, arrays.values()))
    return Outcome(Block(index, slice(*span), arrays), nbytes=nbytes)


def transformed(transform: Callable[[Block], Any], outcome: Outcome) -> Outcome:
    """Return the outcome of `transform` for a block."""
    if outcome.error is not None:
        return outcome
    try:
        return outcome._replace(value=transform(outcome.value))
    except (StopIteration, StopAsyncIteration) as error:  # it would look like the end
        return Outcome(error=RuntimeError(f"The transform raised {error!r}."))
    except BaseException as error:  # noqa: BLE001 -- it is delivered
        return Outcome(error=error)


def error_of(task: asyncio.Future[Any] | Future[Any]) -> BaseException | None:
    """Return the error of a task that has ended, or `None`."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def held_nbytes(array: Any) -> int:
    """Return the approximate memory of an array, including what its elements point to."""
    nbytes, kind = int(array.nbytes), array.dtype.kind
    if kind == "O":
        nbytes += sum(map(getsizeof, array.flat))
    elif kind == "T":
        nbytes += int(np.strings.str_len(array).sum())
    return nbytes
