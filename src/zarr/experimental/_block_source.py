"""Arrays that blocks are read from, through stores whose requests are limited."""

from __future__ import annotations

import asyncio
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr.abc.store import Store
from zarr.codecs import ShardingCodec
from zarr.core.chunk_grids import FixedDimension
from zarr.core.config import config
from zarr.core.dtype.common import HasItemSize
from zarr.core.indexing import BasicIndexer, OrthogonalIndexer, ensure_tuple, is_integer
from zarr.storage import ObjectStore, StorePath, WrapperStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence

    from zarr.core.array import AsyncArray
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.core.indexing import Indexer

    type Span = tuple[int, int]  # the first row, and the one after the last

OVERHEAD = 1 << 10  # what a chunk or a block takes in memory besides its data, about
ITEM_NBYTES = 16  # what an element of variable length is taken for before some are read


class FetchLimit:
    """How many requests of a stream are in flight in `home`, the event loop of its stores.

    A `get_many` counts as `async.concurrency` requests, since it has so many in flight at most.
    """

    def __init__(self, home: asyncio.AbstractEventLoop, limit: int) -> None:
        self.home, self.requests, self.fetched_at = home, 0, 0.0
        self.single = asyncio.Semaphore(limit)
        self.many = asyncio.Semaphore(max(1, limit // (config.get("async.concurrency") or limit)))
        self.tasks: set[asyncio.Task[Any]] = set()

    async def settle(self) -> None:
        """Wait until everything that was cancelled has ended."""
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine that runs in another event loop."""
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # that event loop was closed
        work.close()
        raise
    return await asyncio.wrap_future(future)


class LimitedStore(WrapperStore[Store]):
    """A store that is read from the event loop of a stream, within its `FetchLimit`."""

    def __init__(self, store: Store, limit: FetchLimit) -> None:
        super().__init__(store)
        self._limit = limit

    def __str__(self) -> str:
        return str(self._store)

    _supports_sync_io = False  # every request passes through here
    get_ranges = Store.get_ranges  # type: ignore[assignment]  # which merges, and calls `get`

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Any:
        # docstring inherited
        return (await self._fetch([(key, byte_range)], prototype))[0][1]

    async def get_many(
        self,
        requests: Sequence[Any],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        pairs = [(each, None) if isinstance(each, str) else each for each in requests]
        yield await self._fetch(pairs, prototype)

    async def _fetch(self, requests: Any, prototype: BufferPrototype) -> Any:
        return await run_in(self._limit.home, self._fetch_at_home(requests, prototype))

    async def _fetch_at_home(
        self, requests: Sequence[tuple[str, Any]], prototype: BufferPrototype
    ) -> Sequence[tuple[int, Buffer | None]]:
        limit = self._limit
        results: list[tuple[int, Buffer | None]] = []

        async def get_many() -> None:
            async with limit.many:
                async for group in self._store.get_many(requests, prototype=prototype):
                    limit.requests += 1
                    results.extend(group)

        async def get(index: int, key: str, byte_range: Any) -> None:
            async with limit.single:
                results.append((index, await self._store.get(key, prototype, byte_range)))
                limit.requests += 1

        together = len(requests) > 1 and _serves_many(self._store)
        fetches = [get_many()] if together else [get(n, *each) for n, each in enumerate(requests)]
        tasks = [asyncio.create_task(fetch) for fetch in fetches]
        limit.tasks.update(tasks)
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(limit.tasks.discard)
            limit.fetched_at = perf_counter()
        return results


def _serves_many(store: Store) -> bool:
    """Whether a store has a `get_many` of its own, one operation of which serves many requests."""
    nearest = next(c for c in type(store).__mro__ if {"get", "get_many"} & vars(c).keys())
    is_own = vars(nearest).get("get_many", Store.get_many) is not Store.get_many
    # Object stores, and file systems but for that of references, have an operation for each key.
    protocol = getattr(getattr(store, "fs", None), "protocol", "reference")
    return is_own and protocol == "reference" and not isinstance(store, ObjectStore)


@dataclass(slots=True, eq=False)
class Piece:
    """Consecutive chunks along the first axis of an array, which are read together."""

    start: int
    stop: int
    nbytes: int = 0  # in memory, by its shape
    reading: Any = None  # the task that reads it


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
        self.is_sized = isinstance(dtype, HasItemSize)
        item_nbytes = dtype.item_size if isinstance(dtype, HasItemSize) else ITEM_NBYTES
        self._row_nbytes = prod(self._indexer((0, array.shape[0])).shape[1:]) * item_nbytes

    def _indexer(self, span: Span) -> Indexer:
        kind = BasicIndexer if self._is_basic else OrthogonalIndexer
        selection = (slice(*span), *self.selection)
        return kind(selection, self.array.shape, self.array._chunk_grid)

    def within(self, limit: FetchLimit, *, whole_shards: bool) -> BlockSource:
        """The same source, whose requests are limited."""
        source, array = copy(self), copy(self.array)
        if not whole_shards:  # what lies between inner chunks of a window is read for another one
            array = array.with_config(replace(array.config, sharding_coalesce_max_gap_bytes=0))
        path = StorePath(LimitedStore(array.store_path.store, limit), array.store_path.path)
        object.__setattr__(array, "store_path", path)
        source.array = array
        return source

    async def read(self, span: Span) -> Any:
        """Read some rows."""
        read = self.array.getitem if self._is_basic else self.array.get_orthogonal_selection
        return await read((slice(*span), *self.selection))

    async def failing_chunk(self, span: Span) -> str | None:
        """The key of the first chunk of some rows that cannot be read by itself."""
        for coords, *_ in self._indexer(span):
            try:
                await self.array.getitem(self.array._chunk_grid[coords].slices)  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001 -- the error of the block is what counts
                return str(self.array.metadata.encode_chunk_key(coords))
        return None

    def pieces(self, spans: Iterable[Span], last: Piece | None) -> list[Piece]:
        """The pieces that hold some rows: `last`, which was read before, and one for each run."""
        pieces: list[Piece] = []
        chunk_at = self.chunks.index_to_chunk
        numbers = {n for a, b in spans for n in range(chunk_at(a), chunk_at(b - 1) + 1)}
        for number in sorted(numbers):
            start, length = self.chunks.chunk_offset(number), self.chunks.data_size(number)
            if last is not None and last.start <= start < last.stop:
                if last not in pieces:
                    pieces.append(last)
                continue
            if not pieces or pieces[-1] is last or pieces[-1].stop != start:
                pieces.append(Piece(start, start))
            pieces[-1].stop += length
            pieces[-1].nbytes += length * self._row_nbytes + OVERHEAD
        return pieces

    def cut(self, span: Span, pieces: Sequence[Piece]) -> Any:
        """Copy some rows out of pieces that were read."""
        start, stop = span
        parts = [
            piece.reading.result()[max(start - piece.start, 0) : stop - piece.start]
            for piece in pieces
            if piece.start < stop and start < piece.stop
        ]
        return parts[0].copy("K") if len(parts) == 1 else np.concatenate(parts)
