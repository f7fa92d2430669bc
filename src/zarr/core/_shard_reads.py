"""Read parts of many shards together: two round trips for all of them.

The indexes of the shards of a read are one request, all byte ranges of their inner chunks another,
and whole shards a third, at the same time as the first. The inner chunks are in memory then: worker
threads decode them and write them to their place in the output, as those of `zarr.core._chunk_reads`
do.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np

from zarr.abc.codec import GetResult
from zarr.core._bounded import fetch_limit, flat_task_group
from zarr.core._chunk_reads import Decoders, chunk_decoder, complete, fetch_chunks, fetch_many
from zarr.core._shard_plan import (
    INDEX_ENTRY_NBYTES,
    located_chunks,
    merged_ranges,
    plan_shards,
    shard_windows,
)
from zarr.core.buffer import default_buffer_prototype, numpy_buffer_prototype
from zarr.core.buffer.cpu import NDBuffer as NumpyNDBuffer
from zarr.core.chunk_utils import scatter_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from zarr.codecs.sharding import ShardingCodec, _ShardIndex
    from zarr.core._chunk_reads import ChunkRead
    from zarr.core._shard_plan import MergedRange, Shard
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.chunk_utils import ChunkTransform
    from zarr.core.indexing import ChunkProjection, SelectorTuple
    from zarr.storage._common import StorePath


async def read_shards(
    codec: ShardingCodec,
    batch: Sequence[ChunkRead],
    out: NDBuffer,
    drop_axes: tuple[int, ...],
    *,
    transform_of: Callable[[ArraySpec], ChunkTransform | None],
    executor: Executor | None,
    workers: int,
) -> tuple[GetResult, ...]:
    """Read the selected parts of the shards of `batch` into `out`.

    Parameters
    ----------
    codec
        The codec of the shards.
    batch, out, drop_axes
        As for `CodecPipeline.read`. `reads_together` must have agreed to `batch`.
    transform_of
        What decodes the inner chunks of a shard on several threads; `None` if they have to go
        through the inner codec pipeline.
    executor
        Where the threads come from; `None` for the default executor of the event loop.
    workers
        How many threads decode at once.

    Returns
    -------
    tuple[GetResult, ...]
        Whether each shard was there, in the order of `batch`.
    """
    reading = _Reading(codec, batch, out, drop_axes, transform_of, (executor, workers))
    await reading.run()
    return complete(reading.results)


type _Scatter = Callable[
    [Buffer | None, NDBuffer, ArraySpec, SelectorTuple, SelectorTuple], GetResult
]


@dataclass(slots=True)
class _Partly:
    """What has come of the inner chunks of a shard, and how many byte ranges are to come."""

    values: list[Buffer | None]
    to_come: int
    gone: bool = False


class _Target:
    """Where the inner chunks of a shard are written: the output itself, or an array of their own.

    The last of them has that copied to the output.
    """

    def __init__(
        self,
        shard: Shard,
        out: NDBuffer,
        drop_axes: tuple[int, ...],
        results: list[GetResult | None],
    ) -> None:
        self.shard = shard
        self._results = results
        self._out = out
        self._drop_axes = drop_axes
        self._to_come = len(shard.plan.chunks)
        self._lock = Lock()
        place = None if drop_axes else _view(out, shard)
        self._is_copied = place is None
        if place is None:
            place = shard.spec.prototype.nd_buffer.empty(
                shape=shard.plan.shape,
                dtype=shard.spec.dtype.to_native_dtype(),
                order=shard.spec.order,
            )
        self.buffer = place

    def chunk_written(self) -> None:
        """Note that one more of the chunks has been written."""
        with self._lock:
            self._to_come -= 1
            last = self._to_come == 0
        if last:
            self.finish()

    def finish(self) -> None:
        """Copy what was written to the output, and report the shard as present."""
        if self._is_copied:
            sel_shape = self.shard.plan.sel_shape
            scatter_chunk(
                self.buffer if sel_shape is None else self.buffer.reshape(sel_shape),
                self._out,
                chunk_spec=self.shard.spec,
                out_selection=self.shard.out_selection,
                drop_axes=self._drop_axes,
            )
        self._results[self.shard.number] = GetResult(status="present")


def _view(out: NDBuffer, shard: Shard) -> NDBuffer | None:
    """The part of the output that a shard fills, if it can be written to chunk by chunk."""
    selection, plan = shard.out_selection, shard.plan
    if type(selection) is not tuple or not all(type(part) is slice for part in selection):
        return None
    array: object = out.as_ndarray_like()
    plain = type(out) is NumpyNDBuffer and type(array) is np.ndarray
    if plan.sel_shape is not None or not plain:
        return None
    view = out[(*selection, ...)]  # of no dimension too: without the ellipsis NumPy copies that
    fits = view.shape == plan.shape and view.dtype == shard.spec.dtype.to_native_dtype()
    return view if fits else None


type _Job = tuple[_Scatter, _Target, ChunkProjection]
"""An inner chunk to decode: how, where to, and which."""


class _Reading:
    """A read of several shards."""

    def __init__(
        self,
        codec: ShardingCodec,
        batch: Sequence[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...],
        transform_of: Callable[[ArraySpec], ChunkTransform | None],
        decoding: tuple[Executor | None, int],
    ) -> None:
        self._codec = codec
        self._batch = batch
        self._store = cast("StorePath", batch[0][0]).store
        self._out = out
        self._drop_axes = drop_axes
        self._transform_of = transform_of
        self.results: list[GetResult | None] = [None] * len(batch)
        self._jobs: dict[int, _Job] = {}
        self._job_count = 0
        # Not a method of this object: that would make a circle, and keep the store until the next
        # collection of garbage. A ZipStore that nobody closes is complete when it is let go.
        self._decoders = Decoders(partial(_decode, self._jobs), *decoding)
        self._slots = asyncio.Semaphore(fetch_limit())  # of what is not decoded by threads alone

    async def run(self) -> None:
        async with flat_task_group() as self._tasks:
            with self._decoders.started_in(self._tasks):
                for numbers in shard_windows(self._codec, self._batch):
                    await self._fetch(list(plan_shards(self._codec, self._batch, numbers)))

    async def _fetch(self, shards: Sequence[Shard]) -> None:
        whole = [shard for shard in shards if shard.plan.whole]
        partly = [shard for shard in shards if not shard.plan.whole]
        async with flat_task_group() as fetching:
            if whole:
                fetching.create_task(self._read_whole(whole))
            if partly:
                fetching.create_task(self._read_partial(partly))

    async def _read_whole(self, shards: Sequence[Shard]) -> None:
        async with fetch_chunks([self._batch[shard.number] for shard in shards]) as groups:
            async for group in groups:
                for number, value in group:
                    shard = shards[number]
                    if value is None:
                        self._is_missing(shard)
                        continue
                    index_bytes = value[shard.plan.index]
                    index = await self._decode_index(index_bytes, shard)
                    values = [
                        at and value[at[0] : at[1]] for at in located_chunks(index, shard.plan)
                    ]
                    await self._deliver(shard, values)

    async def _read_partial(self, shards: Sequence[Shard]) -> None:
        indexes = await self._read_indexes(shards)
        ranges: list[MergedRange] = []
        partly: dict[int, _Partly] = {}
        for shard, index in indexes:
            merged = list(merged_ranges(shard, index))
            ranges += merged
            partly[shard.number] = _Partly([None] * len(shard.plan.chunks), len(merged))
            if not merged:
                await self._deliver(shard, partly[shard.number].values)
        try:
            await self._read_ranges(ranges, partly)
        except FileNotFoundError:
            # A store may raise it for a shard that has gone meanwhile: ask for each by itself.
            for shard, _ in indexes:
                if partly[shard.number].to_come:
                    await self._read_alone(shard)
        except Exception as error:  # noqa: BLE001 -- raised again, in a group
            # So does `Store.get_ranges`, which reads of inner chunks went through before.
            raise ExceptionGroup("Inner chunks of shards could not be read.", [error]) from None

    async def _read_indexes(self, shards: Sequence[Shard]) -> list[tuple[Shard, _ShardIndex]]:
        """Read the indexes of shards with one request. A shard that is not there has none."""
        indexes: list[tuple[Shard, _ShardIndex]] = []
        requests = [(shard.path, shard.plan.index_range) for shard in shards]
        largest = INDEX_ENTRY_NBYTES * max(prod(shard.plan.chunks_per_shard) for shard in shards)
        prototype = numpy_buffer_prototype()
        async with fetch_many(self._store, requests, prototype, expected=largest) as groups:
            async for group in groups:
                for number, value in group:
                    shard = shards[number]
                    if value is None:
                        self._is_missing(shard)
                    else:
                        indexes.append((shard, await self._decode_index(value, shard)))
        return indexes

    async def _decode_index(self, value: Buffer, shard: Shard) -> _ShardIndex:
        return await self._codec._decode_shard_index(value, shard.plan.chunks_per_shard)

    async def _read_ranges(self, ranges: Sequence[MergedRange], partly: dict[int, _Partly]) -> None:
        """Read byte ranges of shards with one request, and deliver each shard that is complete."""
        requests = [(merged.shard.path, merged.byte_range) for merged in ranges]
        prototype = self._batch[0][1].prototype
        async with fetch_many(self._store, requests, prototype, merged=True) as groups:
            async for group in groups:
                for number, value in group:
                    shard, byte_range, parts = ranges[number]
                    of_shard = partly[shard.number]
                    if value is None:
                        of_shard.gone = True
                    else:
                        for position, first, last in parts:
                            of_shard.values[position] = value[
                                first - byte_range.start : last - byte_range.start
                            ]
                    of_shard.to_come -= 1
                    if of_shard.to_come:
                        continue
                    if of_shard.gone:
                        self._is_missing(shard)
                    else:
                        await self._deliver(shard, of_shard.values)
                    of_shard.values = []

    def _is_missing(self, shard: Shard) -> None:
        self.results[shard.number] = self._scatter(None, shard)

    def _scatter(self, values: NDBuffer | None, shard: Shard) -> GetResult:
        return scatter_chunk(
            values,
            self._out,
            chunk_spec=shard.spec,
            out_selection=shard.out_selection,
            drop_axes=self._drop_axes,
        )

    async def _read_alone(self, shard: Shard) -> None:
        getter, spec, selection, *_ = self._batch[shard.number]
        values = await self._codec._decode_partial_single(getter, selection, spec)
        self.results[shard.number] = self._scatter(values, shard)

    async def _deliver(self, shard: Shard, values: Sequence[Buffer | None]) -> None:
        """Have the inner chunks of a shard decoded, and written to the output."""
        chunks = shard.plan.chunks
        transform = self._transform_of(shard.spec)
        # Buffers of another kind are refused by the pipeline.
        refused = shard.plan.chunk_spec.prototype != default_buffer_prototype()
        if transform is None or refused or not chunks:
            await self._slots.acquire()
            task = self._tasks.create_task(self._decode_by_pipeline(shard, values))
            task.add_done_callback(lambda _: self._slots.release())
            return
        target = _Target(shard, self._out, self._drop_axes, self.results)
        scatter = chunk_decoder(transform)
        first = self._job_count
        self._job_count += len(chunks)
        self._jobs.update(enumerate(((scatter, target, chunk) for chunk in chunks), first))
        self._decoders.put(list(enumerate(values, first)))
        await self._decoders.room()

    async def _decode_by_pipeline(self, shard: Shard, values: Sequence[Buffer | None]) -> None:
        """Decode the inner chunks of a shard as a codec asks for that has its own idea of it."""
        from zarr.codecs.sharding import _ShardingByteGetter

        plan = shard.plan
        target = _Target(shard, self._out, self._drop_axes, self.results)
        coords = [coords for coords, *_ in plan.chunks]
        stored = dict(zip(coords, values, strict=True))
        reads = [
            (_ShardingByteGetter(stored, coords), plan.chunk_spec, *selections)
            for coords, *selections in plan.chunks
        ]
        pipeline = self._codec._get_inner_pipeline(shard.spec)
        await pipeline.read(cast("list[ChunkRead]", reads), target.buffer)
        target.finish()


def _decode(jobs: dict[int, _Job], number: int, value: Buffer | None) -> None:
    """Decode an inner chunk. Runs on a worker thread."""
    scatter, target, (_, chunk_selection, out_selection, _) = jobs[number]
    selections = cast("tuple[SelectorTuple, SelectorTuple]", (chunk_selection, out_selection))
    scatter(value, target.buffer, target.shard.plan.chunk_spec, *selections)
    del jobs[number]
    target.chunk_written()
