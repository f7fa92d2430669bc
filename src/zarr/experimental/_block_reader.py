"""Read the blocks of several arrays in step, ahead of whoever takes them, in order.

A `BlockReader` fetches in zarr's event loop, decodes on threads of its own, and hands over in the
threads of its consumers. It knows nothing of the stream that it reads for, so that one that is
forgotten can be collected, and then ends its reader.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from itertools import batched
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.core._bounded import FetchSlots, fetch_slots, flat_task_group, map_ahead
from zarr.core._chunk_reads import (
    COLLECTED_BYTES,
    COLLECTING_SECONDS,
    SHARE_BYTES,
    _shares,
    fetch_many,
)
from zarr.core.sync import _get_loop, iothread
from zarr.experimental._decode_threads import DecodeThreads
from zarr.experimental._handover import Handover, Outcome, failed
from zarr.experimental._readahead import MAX_ADMITTED, held_nbytes
from zarr.experimental.read_report import ReadReport, report_reads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.core.buffer import Buffer, BufferPrototype, NDArrayLike, NDBuffer
    from zarr.core.indexing import SelectorTuple
    from zarr.experimental._block_reads import ArrayBlocks
    from zarr.experimental._first_axis import FirstAxis
    from zarr.experimental._readahead import BlockStreamStats, Readahead

logger = logging.getLogger("zarr.experimental.block_stream")

FIRST_ADMITTED = 64
"""How many blocks start together at first where a store is not of this machine, and then twice as
many each time: the next ones are planned while the first are under way."""

QUIET_SECONDS = 0.005
"""How long nothing more has to come until what was collected is decoded."""

CLOSE_SECONDS = 1.0
"""How long to wait for what was cancelled."""


class Part(NamedTuple):
    """One array of a reader: how its blocks are read, and which chunks they are made of.

    `scatter` is a `chunk_decoder`, or `None` if the array has to read its blocks itself.
    """

    blocks: ArrayBlocks
    axis: FirstAxis
    scatter: Any


class _Filling(NamedTuple):
    """A block of one array that chunks are decoded to."""

    out: NDBuffer
    selections: Sequence[tuple[SelectorTuple, SelectorTuple]]


type _Request = tuple[_Block, str, int, tuple[int, ...]]
"""A chunk of a block: the name of the array, its number among that one's chunks, its coordinates."""


class _Block:
    """A block that is in flight."""

    __slots__ = ("fetched_at", "index", "nbytes", "parts", "position", "to_decode", "to_fetch")

    def __init__(self, position: int, index: int) -> None:
        self.position = position
        self.index = index
        self.parts: dict[str, Any] = {}
        self.to_fetch = 0  # changed by the event loop alone
        self.to_decode = 0  # changed under the lock of the reader
        self.nbytes = 0  # of what was fetched
        self.fetched_at = 0.0


class BlockReader:
    """Reads blocks of several arrays.

    Parameters
    ----------
    parts
        The arrays, by name.
    indices
        Which blocks, in the order in which they are wanted.
    readahead
        When they start.
    io_concurrency, decode_threads
        How many fetches are in flight, and how many threads decode.
    finish
        Called on a thread with the index and the arrays of a block: makes what is handed over.
    each
        Whether `finish` may take long, so that no thread should do several blocks at a time.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        indices: Sequence[int],
        *,
        readahead: Readahead,
        io_concurrency: int,
        decode_threads: int,
        finish: Callable[[int, dict[str, NDArrayLike]], Any],
        each: bool,
    ) -> None:
        self._report = ReadReport()
        self._parts = parts
        self._indices = indices
        self._io_concurrency = io_concurrency
        self._threads = DecodeThreads(decode_threads)
        self._finish = finish
        self._each = each
        self._lock = threading.Lock()
        self._room = asyncio.Event()
        self.loop = _get_loop()
        self._handover = Handover(readahead, self._wake)
        self.pid = os.getpid()
        self._task: asyncio.Task[None] | None = None
        self.ended: Future[None] = Future()
        # Held until then. A signal handler may close the stream while this thread waits for its end,
        # and must not find a lock taken that this thread holds: those of a future are such.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._has_ended = False
        self.loop.call_soon_threadsafe(self._start)

    # --- in the threads of the consumers -------------------------------------------------------

    def take(self, wake: Callable[[], object], since: float | None) -> Outcome | None:
        """Take the next block, see `Handover.take`."""
        if self.pid != os.getpid():
            raise RuntimeError("A stream of blocks that has begun cannot be used after a fork.")
        return self._handover.take(wake, since)

    def cancel(self) -> None:
        """Stop, without waiting for it. May be called by the garbage collector: takes no lock."""
        if self._handover.closed:
            return
        self._handover.closed = True
        if self.pid == os.getpid():
            self._threads.stop()
            with suppress(RuntimeError):  # the event loop was closed
                self.loop.call_soon_threadsafe(self._end)

    def close(self) -> None:
        """Stop, and wait a moment until nothing is left in the event loop."""
        self.cancel()
        ours = threading.current_thread() in (iothread[0], *self._threads.threads)
        if self.pid != os.getpid() or ours or self._has_ended:
            return
        if self._gate.acquire(timeout=CLOSE_SECONDS):
            self._gate.release()

    def stats(self) -> BlockStreamStats:
        """The figures as they are now."""
        return self._handover.stats(self._report.reads)

    # --- in the event loop -----------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the event loop was closed
            self.loop.call_soon_threadsafe(self._room.set)

    def _start(self) -> None:
        self._task = self.loop.create_task(self._run())
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._handover.fail(error)

    def _end(self) -> None:
        if self._task is not None:  # `_start` came first
            self._task.cancel()
            self._handover.clear()  # nobody waits for a store that is slow to be cancelled
            self._task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._handover.clear()
        stats = self.stats()
        logger.info("%d of %d blocks were taken: %s", stats.blocks, len(self._indices), stats)
        self._has_ended = True
        self._gate.release()
        self.ended.set_result(None)

    async def _run(self) -> None:
        fetch_slots.set(FetchSlots(self._io_concurrency))
        at_hand = all(part.blocks.is_at_hand for part in self._parts.values())
        most = MAX_ADMITTED if at_hand else FIRST_ADMITTED
        left = len(self._indices)
        with report_reads() as self._report:
            async with flat_task_group() as tasks:
                while self._handover.failed_at == math.inf and left:
                    self._room.clear()
                    admitted = self._handover.admit(most)
                    left -= len(admitted)
                    blocks = [_Block(position, self._indices[position]) for position in admitted]
                    if blocks:
                        tasks.create_task(self._read(blocks))
                        await asyncio.sleep(0)
                        most = min(2 * most, MAX_ADMITTED)
                    else:
                        await self._room.wait()

    async def _read(self, blocks: Sequence[_Block]) -> None:
        """Read blocks together. If that fails, find out at which of them."""
        try:
            await self._fetch(blocks)
        except BaseException as error:
            if self._handover.closed:
                raise
            left = [block for block in blocks if block.to_fetch]
            if not left:
                raise
            if len(blocks) == 1 or await self._read_again(left[:-1]):
                # Where none of the others fails now, the error comes with the last of them.
                self._handover.put([(block.position, failed(error)) for block in left[-1:]])

    async def _read_again(self, blocks: Sequence[_Block]) -> bool:
        """Read blocks one by one, and return whether all of them could be read."""
        again = [_Block(block.position, block.index) for block in blocks]

        async def read(block: _Block) -> bool:
            if block.position < self._handover.failed_at:
                await self._read([block])
            return block.position < self._handover.failed_at

        async with aclosing(map_ahead(read, again, limit=self._io_concurrency)) as reads:
            return all([there async for there in reads])

    async def _fetch(self, blocks: Sequence[_Block]) -> None:
        """Fetch what blocks are made of, with one `get_many` for each store."""
        by_store: dict[tuple[int, BufferPrototype], tuple[list[_Request], list[str]]] = {}
        by_array: list[tuple[_Block, str]] = []
        for block in blocks:
            for name, (source, axis, scatter) in self._parts.items():
                if scatter is None:
                    block.to_fetch += 1
                    by_array.append((block, name))
                    continue
                alike = (id(source.store), source.prototype)
                requests, keys = by_store.setdefault(alike, ([], []))
                for number, coords in enumerate(axis.coords(block.index)):
                    requests.append((block, name, number, coords))
                    keys.append(source.key(coords))
                    block.to_fetch += 1
            block.to_decode = max(1, block.to_fetch)
        if empty := [block for block in blocks if not block.to_fetch]:
            self._threads.submit(partial(self._decoded, empty))
        async with flat_task_group() as tasks:
            for requests, keys in by_store.values():
                if keys:
                    tasks.create_task(self._fetch_chunks(requests, keys))
            if by_array:
                tasks.create_task(self._read_by_array(by_array))

    async def _fetch_chunks(self, requests: Sequence[_Request], keys: Sequence[str]) -> None:
        source = self._parts[requests[0][1]].blocks
        collected: list[tuple[int, Buffer | None]] = []
        nbytes, until = 0, 0.0
        timer: asyncio.TimerHandle | None = None

        def decode() -> None:
            nonlocal nbytes, timer
            if timer is not None:
                timer.cancel()
            shares = batched(collected, 1) if self._each else _shares(collected)
            jobs = [partial(self._decode, requests, list(share)) for share in shares if share]
            collected.clear()
            nbytes, timer = 0, None
            try:
                for job in jobs:
                    self._threads.submit(job)
            except RuntimeError as error:  # this may be called by the timer
                self._handover.fail(error)

        try:
            async with fetch_many(source.store, keys, source.prototype) as groups:
                async for group in groups:
                    now = perf_counter()
                    for index, value in group:
                        block = requests[index][0]
                        size = 0 if value is None else len(value)
                        block.nbytes += size
                        block.to_fetch -= 1
                        block.fetched_at = now
                        nbytes += size
                    collected += group
                    if timer is None:
                        until = self.loop.time() + COLLECTING_SECONDS
                    else:
                        timer.cancel()
                    if nbytes >= SHARE_BYTES * len(collected) or nbytes >= COLLECTED_BYTES:
                        decode()
                    else:
                        timer = self.loop.call_at(
                            min(until, self.loop.time() + QUIET_SECONDS), decode
                        )
        finally:
            decode()

    async def _read_by_array(self, wanted: Sequence[tuple[_Block, str]]) -> None:
        """Have arrays read blocks themselves: those with codecs that are not plain."""

        async def read(one: tuple[_Block, str]) -> None:
            block, name = one
            source, axis, _ = self._parts[name]
            try:
                array = await source.array._get_selection(
                    axis.indexer(block.index), prototype=source.prototype
                )
            except Exception as error:  # noqa: BLE001 -- it is handed over
                self._handover.put([(block.position, failed(error))])
                return
            block.parts[name] = array
            block.nbytes += held_nbytes(array)
            block.to_fetch -= 1
            block.fetched_at = perf_counter()
            self._threads.submit(partial(self._decoded, [block]))

        async with aclosing(map_ahead(read, wanted, limit=self._io_concurrency)) as reads:
            async for _ in reads:
                pass

    # --- in the threads that decode --------------------------------------------------------------

    def _decode(self, requests: Sequence[_Request], share: list[tuple[int, Buffer | None]]) -> None:
        decoded: list[_Block] = []
        share.reverse()
        while share:
            index, value = share.pop()  # so that nothing is kept that has been decoded
            if self._handover.closed:
                return
            block, name, number, coords = requests[index]
            source, _, scatter = self._parts[name]
            try:
                out, selections = block.parts.get(name) or self._filling(block, name)
                scatter(value, out, source.spec(coords), *selections[number])
            except BaseException as error:  # noqa: BLE001 -- it is handed over
                self._handover.put([(block.position, failed(error))])
            else:
                decoded.append(block)
        self._decoded(decoded)

    def _filling(self, block: _Block, name: str) -> _Filling:
        source, axis, _ = self._parts[name]
        selections, shape = axis.chunks(block.index)
        filling = _Filling(source.empty(shape), selections)
        there: _Filling = block.parts.setdefault(name, filling)  # that of the thread that was first
        return there

    def _decoded(self, blocks: Sequence[_Block]) -> None:
        """Note that one chunk more of each of `blocks` is there; finish those that are complete."""
        complete: list[_Block] = []
        with self._lock:
            for block in blocks:
                block.to_decode -= 1
                if block.to_decode == 0:
                    complete.append(block)
        outcomes: list[tuple[int, Outcome]] = []
        for block in complete:
            try:
                arrays = {name: self._array(block, name) for name in self._parts}
                nbytes = sum(map(held_nbytes, arrays.values()))
                block.parts.clear()
                value = self._finish(block.index, arrays)
            except BaseException as error:  # noqa: BLE001 -- it is handed over
                outcome = failed(error)
            else:
                running = block.nbytes + nbytes
                outcome = Outcome(value, None, nbytes, running, block.fetched_at)
            outcomes.append((block.position, outcome))
        self._handover.put(outcomes)

    def _array(self, block: _Block, name: str) -> NDArrayLike:
        part = block.parts.get(name)
        if part is None:  # it is made of no chunk
            part = self._filling(block, name)
        return part.out.as_ndarray_like() if isinstance(part, _Filling) else part
