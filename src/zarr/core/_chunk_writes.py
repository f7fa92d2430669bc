"""Write chunks, some of which have to be merged with what is stored: read all of those at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING

from zarr.core._bounded import fetch_limit, flat_task_group
from zarr.core._chunk_reads import fetch_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
    from zarr.core.codec_pipeline import BatchedCodecPipeline
    from zarr.core.indexing import SelectorTuple

type ChunkWrite = tuple[ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
"""One element of the `batch_info` of `CodecPipeline.write`."""


@dataclass(frozen=True, slots=True)
class FetchedSetter:
    """A `ByteSetter` whose value has been read already."""

    setter: ByteSetter
    value: Buffer | None

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value that was read, or, of a byte range, what is stored now."""
        if byte_range is not None:
            return await self.setter.get(prototype, byte_range)
        return self.value

    async def set(self, value: Buffer) -> None:
        """Store a value."""
        await self.setter.set(value)

    async def set_if_not_exists(self, default: Buffer) -> None:
        """Store a value unless there is one."""
        await self.setter.set_if_not_exists(default)

    async def delete(self) -> None:
        """Delete what is stored."""
        await self.setter.delete()


async def write_batches(
    pipeline: BatchedCodecPipeline,
    batch: Sequence[ChunkWrite],
    value: NDBuffer,
    drop_axes: tuple[int, ...],
    *,
    batch_size: int,
) -> None:
    """Write the chunks of `batch`, with `pipeline.write_batch` for `batch_size` of them at a time.

    Chunks that are overwritten in part, of which there has to be one, are read with one `get_many`
    and written as they arrive. `async.concurrency` limits how many batches are written at once.

    Parameters
    ----------
    pipeline
        Merges, encodes and writes.
    batch, value, drop_axes
        As for `CodecPipeline.write`.
    batch_size
        How many chunks `pipeline.write_batch` gets at once.
    """
    slots = asyncio.Semaphore(fetch_limit())
    merged = [chunk for chunk in batch if not chunk[4]]

    async with flat_task_group() as tasks:

        async def start(part: Sequence[ChunkWrite]) -> None:
            await slots.acquire()
            task = tasks.create_task(pipeline.write_batch(part, value, drop_axes))
            task.add_done_callback(lambda _: slots.release())

        async def write_merged() -> None:
            waiting: list[ChunkWrite] = []
            async with fetch_chunks(merged) as groups:
                async for group in groups:
                    for index, existing in group:
                        waiting.append(_with_existing(merged[index], existing))
                        if len(waiting) == batch_size:
                            await start(waiting)
                            waiting = []
            if waiting:
                await start(waiting)

        tasks.create_task(write_merged())
        for part in batched((chunk for chunk in batch if chunk[4]), batch_size):
            await start(part)


async def fetch_existing(batch: Sequence[ChunkWrite]) -> list[ChunkWrite]:
    """`batch`, with what is stored of all chunks that are overwritten in part read at once.

    A single one is left to be read by itself.

    Parameters
    ----------
    batch
        As for `CodecPipeline.write`.
    """
    fetched = list(batch)
    merged = [index for index, chunk in enumerate(batch) if not chunk[4]]
    if len(merged) > 1:
        async with fetch_chunks([batch[index] for index in merged]) as groups:
            async for group in groups:
                for position, existing in group:
                    index = merged[position]
                    fetched[index] = _with_existing(batch[index], existing)
    return fetched


def _with_existing(chunk: ChunkWrite, existing: Buffer | None) -> ChunkWrite:
    return (FetchedSetter(chunk[0], existing), *chunk[1:])
