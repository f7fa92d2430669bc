"""Read windows of blocks, in an event loop of a stream's own whose default executor decodes.

Nothing here refers to the stream, so that a forgotten stream is collected, which ends its loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from queue import SimpleQueue
from sys import getsizeof
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr.core.sync import iothread
from zarr.experimental._block_source import OVERHEAD, run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    import numpy.typing as npt

    from zarr.core.chunk_grids import DimensionGrid
    from zarr.experimental._block_source import BlockSource, FetchLimit, Piece, Span

logger = logging.getLogger("zarr.experimental.block_stream")

CLOSE_SECONDS = 1.0  # how long to wait until what was cancelled has ended


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
        """The values, where there is one array.

        Raises
        ------
        ValueError
            If there are several.
        """
        if len(self.arrays) > 1:
            raise ValueError(
                f"There are several arrays, use `arrays` of the block: {[*self.arrays]}"
            )
        return next(iter(self.arrays.values()))


@dataclass(slots=True, kw_only=True)
class BlockStreamStats:
    """Figures of a stream of blocks. They print as a table.

    Attributes
    ----------
    blocks, nbytes
        Blocks that were delivered, and how many bytes they hold.
    nbytes_in_flight
        Bytes that are being read or wait to be taken, as they count against the budget.
    max_nbytes_in_flight, max_blocks_in_flight
        The most of these bytes, and of these blocks, that there were.
    requests
        How many operations the stores ran.
    io_seconds, decode_seconds
        How long the consumer waited for a block that was being fetched, or decoded.
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
        figures = {field.name: getattr(self, field.name) for field in fields(self)}
        return "\n".join(
            f"{name:<20}{figure:>16,.3f}" if "seconds" in name else f"{name:<20}{figure:>16,}"
            for name, figure in figures.items()
        )


class DecodeThreads(ThreadPoolExecutor):
    """An executor whose threads do not keep a program from ending."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._limit = limit
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = 0
        self._stopped = False

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
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end, each after its current job, without waiting for them."""
        self._stopped = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopped:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 -- it is for whoever has the future
                    future.set_exception(error)
            del job, future, work
        self._jobs.put(None)  # for the next thread


class Outcome(NamedTuple):
    """What became of a block: what is delivered, or the error."""

    value: Any = None
    error: BaseException | None = None
    nbytes: int = 0


class Window:
    """Blocks that are read together."""

    def __init__(self, reading: Future[list[Outcome]], nbytes: int) -> None:
        self.reading, self.nbytes = reading, nbytes  # in memory, as expected until it is read
        self.outcomes: list[Outcome] | None = None  # in reverse

    def is_read(self) -> bool:
        """Whether the blocks are there."""
        if self.outcomes is None and self.reading.done():
            error = _error(self.reading)
            self.outcomes = self.reading.result() if error is None else [Outcome(error=error)]
            self.outcomes.reverse()
            self.nbytes = sum(outcome.nbytes + OVERHEAD for outcome in self.outcomes)
        return self.outcomes is not None


class StreamLoop:
    """An event loop on a thread of its own, which reads blocks of `sources`."""

    def __init__(
        self,
        sources: Mapping[str, BlockSource],
        axis: DimensionGrid,
        limit: FetchLimit,
        decode_threads: int,
        transform: Callable[[Block], Any] | None,
        blocks: int,
    ) -> None:
        self._sources = {
            name: source.within(limit, whole_shards=source.axis == axis)
            for name, source in sources.items()
        }
        self.limit, self._transform, self._blocks = limit, transform, blocks
        self.stats, self.pid, self.closed = BlockStreamStats(), os.getpid(), False
        self.growth = 1.0  # how much larger arrays are in memory than their shapes say
        self.read_at = 0.0  # when a window was read last
        self._threads, self._over = DecodeThreads(decode_threads), asyncio.Event()
        self._ended = threading.Lock()  # held until then; a future would need other locks
        self._ended.acquire()
        self._begun: set[Coroutine[Any, Any, list[Outcome]]] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run, name="zarr_block_stream", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def read(
        self, indices: Sequence[int], spans: Sequence[Span], pieces: Mapping[str, Sequence[Piece]]
    ) -> Future[list[Outcome]]:
        """Begin to read a window: what becomes of its blocks, up to the first that fails."""
        reading = self._read(indices, spans, pieces)
        self._begun.add(reading)
        with suppress(RuntimeError):  # the event loop has ended
            if not self.closed:
                future = asyncio.run_coroutine_threadsafe(reading, self._loop)
                future.add_done_callback(lambda _: self._begun.discard(reading))
                return future
        reading.close()
        raise ValueError("The stream of blocks is closed.")

    def cancel(self) -> None:
        """Stop, without waiting for it. May be called by the garbage collector: takes no lock."""
        if not self.closed:
            self.closed = True
            if self.pid == os.getpid():
                self._threads.shutdown()
                with suppress(RuntimeError):  # the event loop has ended
                    self._loop.call_soon_threadsafe(self._over.set)

    def wait(self, timeout: float = CLOSE_SECONDS) -> None:
        """Wait until nothing is in flight, unless that needs this very thread."""
        needed = threading.current_thread() in (iothread[0], self._thread)
        if self.pid == os.getpid() and not needed and self._ended.acquire(timeout=timeout):
            self._ended.release()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()  # and so the threads end
            for reading in list(self._begun):  # the loop may have ended before it took them
                reading.close()
            self._ended.release()

    async def _main(self) -> None:
        await self._over.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(RuntimeError):  # the program ends
            await run_in(self.limit.home, self.limit.settle())
        stats = replace(self.stats, requests=self.limit.requests)
        logger.info("%d of %d blocks were taken:\n%s", stats.blocks, self._blocks, stats)

    async def _read(
        self, indices: Sequence[int], spans: Sequence[Span], pieces: Mapping[str, Sequence[Piece]]
    ) -> list[Outcome]:
        for name, source in self._sources.items():
            for piece in pieces[name]:
                if piece.reading is None:
                    piece.reading = asyncio.create_task(source.read((piece.start, piece.stop)))
                    piece.reading.add_done_callback(_error)  # or asyncio would report it
        readings = [piece.reading for of_array in pieces.values() for piece in of_array]
        await asyncio.wait(readings)
        error: BaseException | None = None
        if all(_error(reading) is None for reading in readings):
            held = sum(held_nbytes(reading.result()) for reading in readings)
            expected = sum(piece.nbytes for of_array in pieces.values() for piece in of_array)
            self.growth = max(self.growth, held / expected)
            found = [
                {name: source.cut(span, pieces[name]) for name, source in self._sources.items()}
                for span in spans
            ]
        else:
            found, error = await self._read_alone(indices, spans)
        outcomes = [
            Outcome(
                Block(index, slice(*span), arrays), nbytes=sum(map(held_nbytes, arrays.values()))
            )
            for index, span, arrays in zip(indices, spans, found, strict=False)
        ]
        if (transform := self._transform) is not None:
            jobs = [self._loop.run_in_executor(None, transformed, transform, o) for o in outcomes]
            outcomes = await asyncio.gather(*jobs)
        self.read_at = perf_counter()
        return outcomes if error is None else [*outcomes, Outcome(error=error)]

    async def _read_alone(
        self, indices: Sequence[int], spans: Sequence[Span]
    ) -> tuple[list[dict[str, Any]], BaseException | None]:
        """Read blocks one by one. If one fails, return those before it, and the error."""

        async def read(index: int, span: Span) -> dict[str, Any]:
            arrays = {}
            for name, source in self._sources.items():
                try:
                    arrays[name] = await source.read(span)
                except Exception as error:
                    chunk = await source.failing_chunk(span)
                    error.add_note(
                        f"Array {name!r} ({source.array.store_path}), block {index} (rows "
                        f"{span[0]} to {span[1] - 1}), chunk {chunk}"
                    )
                    raise
            return arrays

        alone = [asyncio.create_task(read(*each)) for each in zip(indices, spans, strict=True)]
        found: list[dict[str, Any]] = []
        try:
            for task in alone:
                await asyncio.wait([task])
                if (error := _error(task)) is not None:
                    return found, error
                found.append(task.result())
            return found, None
        finally:
            for task in alone:
                task.cancel()
                task.add_done_callback(_error)


def transformed(transform: Callable[[Block], Any], outcome: Outcome) -> Outcome:
    """What `transform` makes of a block."""
    try:
        return outcome._replace(value=transform(outcome.value))
    except BaseException as error:  # noqa: BLE001 -- it is delivered
        if isinstance(error, StopIteration | StopAsyncIteration):  # it would look like the end
            return Outcome(error=RuntimeError(f"The transform raised {error!r}."))
        return Outcome(error=error)


def _error(task: asyncio.Future[Any] | Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def held_nbytes(array: Any) -> int:
    """How many bytes an array holds, about, including those that its elements point to."""
    nbytes, kind = int(array.nbytes), array.dtype.kind
    if kind == "O":
        nbytes += sum(map(getsizeof, array.flat))
    elif kind == "T":
        nbytes += int(np.strings.str_len(array).sum())
    return nbytes
