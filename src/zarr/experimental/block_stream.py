"""Blocks of arrays straight from the store."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, cast

from zarr.abc.store import _get_many_is_current
from zarr.core._bounded import read_scope
from zarr.core.array import Array
from zarr.core.indexing import BlockIndexer, ensure_tuple, pop_fields, replace_lists
from zarr.core.sync import _get_loop, sync
from zarr.experimental._block_reads import ArrayBlocks
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from zarr.core.buffer import NDArrayLike, NDArrayLikeOrScalar
    from zarr.core.indexing import BasicSelection, Fields
    from zarr.experimental._block_reads import AnyArray

__all__ = ["read_block", "read_block_async"]


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


async def read_block_async(
    array: AnyArray, coords: BasicSelection | Fields
) -> NDArrayLikeOrScalar:
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
    return fields, BlockIndexer(selection, blocks.array.shape, blocks.grid)


async def _read(
    blocks: ArrayBlocks, indexer: BlockIndexer, fields: Fields | None
) -> NDArrayLikeOrScalar:
    return await blocks.array._get_selection(indexer, prototype=blocks.prototype, fields=fields)


def _read_here(blocks: ArrayBlocks, indexer: BlockIndexer) -> NDArrayLike | None:
    """Read a block of one chunk on this thread, or return `None` if that is not for us to do.

    Reads that are reported are those that pass through `Store.get_many`.
    """
    store = blocks.array.store_path.store
    if (
        blocks.transform is None
        or type(store) not in (LocalStore, MemoryStore)
        or not _get_many_is_current(type(store))
        or "get" in vars(store)
        or read_scope.get() is not None
    ):
        return None
    chunks = [(coords, *selections) for coords, *selections, _ in islice(indexer, 2)]
    if len(chunks) != 1:
        return None
    read = blocks.read(blocks.transform, chunks, indexer.shape)
    value = cast("LocalStore", store).get_sync(read.keys[0], prototype=blocks.prototype)
    read.decode(0, value)
    return read.result()
