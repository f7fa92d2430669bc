"""Plan the read of parts of shards: which inner chunks, and which byte ranges of which shard.

Nothing here does I/O. A selection of a shard becomes a `ShardPlan`; with the index of the shard, it
becomes `MergedRange`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from zarr.abc.store import RangeByteRequest, Store
from zarr.core import _coalesce
from zarr.core.chunk_grids import ChunkGrid
from zarr.core.indexing import get_indexer
from zarr.storage._common import StorePath
from zarr.storage._wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zarr.abc.store import ByteRequest, SuffixByteRequest
    from zarr.codecs.sharding import ShardingCodec, _ShardIndex
    from zarr.core._chunk_reads import ChunkRead
    from zarr.core.array_spec import ArraySpec
    from zarr.core.indexing import ChunkProjection, SelectorTuple

SHARDS_PLANNED = 256
"""How many shards are read together."""

NBYTES_PLANNED = 64 << 20
"""The same in bytes of their indexes, and of the coordinates that their selections amount to."""

INDEX_ENTRY_NBYTES = 16
"""What an inner chunk takes in the index of its shard."""

COORDINATES_NBYTES = 32
"""What an element of a selection by arrays of coordinates takes, about."""


def reads_together(codec: object, batch: Sequence[ChunkRead]) -> bool:
    """Whether the shards of `batch` may be read together.

    They may if they are in one store, with one prototype, and if nobody has another idea of how
    to read them: a subclass of the codec, or a store that has a `get_ranges` of its own and no
    `get_many`.
    """
    from zarr.codecs.sharding import ShardingCodec

    if type(codec) is not ShardingCodec:
        return False
    getter, first, *_ = batch[0]
    if type(getter) is not StorePath or _has_own_ranges(getter.store):
        return False
    return all(
        type(each) is StorePath and each.store is getter.store and spec.prototype == first.prototype
        for each, spec, *_ in batch
    )


def _has_own_ranges(store: Store) -> bool:
    """Whether a store, or one that it forwards `get_ranges` to, has another idea of what it does."""
    while issubclass(type(store), Store) and "get_ranges" not in vars(store):
        definer = next(c for c in type(store).__mro__ if "get_ranges" in vars(c))
        if definer is not WrapperStore:
            foreign = vars(definer)["get_ranges"].__module__.partition(".")[0] != "zarr"
            return foreign and vars(definer).get("get_many", Store.get_many) is Store.get_many
        store = cast("WrapperStore[Store]", store)._store
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """Which inner chunks a selection of a shard touches. Shards that are alike share one."""

    chunk_spec: ArraySpec
    chunks_per_shard: tuple[int, ...]
    chunks: list[ChunkProjection]
    shape: tuple[int, ...]
    sel_shape: tuple[int, ...] | None
    whole: bool
    index: slice  # where the index is, of a shard that is in memory
    index_range: ByteRequest  # and of one that is in a store


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a read."""

    number: int
    path: str
    spec: ArraySpec
    out_selection: SelectorTuple
    plan: ShardPlan


class MergedRange(NamedTuple):
    """A byte range of a shard, and the inner chunks in it: their position in the plan, and where
    in the shard they begin and end."""

    shard: Shard
    byte_range: RangeByteRequest
    parts: list[tuple[int, int, int]]


def shard_windows(codec: ShardingCodec, batch: Sequence[ChunkRead]) -> Iterator[list[int]]:
    """Part a read into shards that are read together: what they need to be planned has to fit."""
    window: list[int] = []
    held = 0
    for number, (_, spec, selection, *_) in enumerate(batch):
        needed = INDEX_ENTRY_NBYTES * prod(codec._get_chunks_per_shard(spec))
        parts = selection if isinstance(selection, tuple) else (selection,)
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if arrays:
            # `get_indexer` makes arrays of coordinates of them, and the shard is read into another.
            needed += COORDINATES_NBYTES * prod(np.broadcast_shapes(*(a.shape for a in arrays)))
        if window and (held + needed > NBYTES_PLANNED or len(window) == SHARDS_PLANNED):
            yield window
            window, held = [], 0
        window.append(number)
        held += needed
    yield window


def plan_shards(
    codec: ShardingCodec, batch: Sequence[ChunkRead], numbers: Iterable[int]
) -> Iterator[Shard]:
    """Plan the read of shards of `batch`."""
    plans: dict[tuple[object, ...], ShardPlan] = {}
    indexes: dict[tuple[int, ...], RangeByteRequest | SuffixByteRequest] = {}
    for number in numbers:
        getter, spec, selection, out_selection, _ = batch[number]
        alike: tuple[object, ...] = (number,)
        if type(selection) is tuple and all(type(part) is slice for part in selection):
            slices = cast("tuple[slice, ...]", selection)
            alike = (id(spec), *((part.start, part.stop, part.step) for part in slices))
        if alike not in plans:
            per_shard = codec._get_chunks_per_shard(spec)
            if per_shard not in indexes:
                indexes[per_shard] = codec._shard_index_byte_range(per_shard)
            plans[alike] = _plan(codec, selection, spec, indexes[per_shard])
        path = cast("StorePath", getter).path
        yield Shard(number, path, spec, out_selection, plans[alike])


def _plan(
    codec: ShardingCodec,
    selection: SelectorTuple,
    spec: ArraySpec,
    index: RangeByteRequest | SuffixByteRequest,
) -> ShardPlan:
    grid = ChunkGrid.from_sizes(spec.shape, codec.chunk_shape)
    indexer = get_indexer(selection, shape=spec.shape, chunk_grid=grid)
    chunks = list(indexer)
    coords = {coords for coords, *_ in chunks}
    per_shard = codec._get_chunks_per_shard(spec)
    return ShardPlan(
        chunk_spec=codec._get_chunk_spec(spec),
        chunks_per_shard=per_shard,
        chunks=chunks,
        shape=indexer.shape,
        sel_shape=getattr(indexer, "sel_shape", None),
        whole=codec._is_total_shard(coords, per_shard),
        index=(
            slice(index.start, index.end)
            if isinstance(index, RangeByteRequest)
            else slice(-index.suffix, None)
        ),
        index_range=index,
    )


def located_chunks(index: _ShardIndex, plan: ShardPlan) -> Iterator[tuple[int, int] | None]:
    """Where in its shard each of many inner chunks lies, `None` for those that are missing."""
    coords = np.array([coords for coords, *_ in plan.chunks], dtype=np.int64)
    coords = coords.reshape(len(plan.chunks), len(plan.chunks_per_shard))
    starts, ends, present = index.get_chunk_slices_vectorized(coords)
    # An offset that says "missing" with a length that does not is a fault, not a missing chunk.
    there = present | (ends - starts != starts)
    for start, end, is_there in zip(starts.tolist(), ends.tolist(), there.tolist(), strict=True):
        yield (start, end) if is_there else None


def merged_ranges(shard: Shard, index: _ShardIndex) -> Iterator[MergedRange]:
    """The byte ranges to read of a shard, merged as the array's configuration says."""
    found = (index.get_chunk_slice(coords) for coords, *_ in shard.plan.chunks)
    located = {number: at for number, at in enumerate(found) if at is not None}
    positions = list(located)
    groups, _ = _coalesce.coalesce_ranges(
        [RangeByteRequest(*at) for at in located.values()],
        max_gap_bytes=shard.spec.config.sharding_coalesce_max_gap_bytes,
        max_coalesced_bytes=shard.spec.config.sharding_coalesce_max_bytes,
    )
    for group in groups:
        start, end = group[0][1].start, max(at.end for _, at in group)
        parts = [(positions[number], at.start, at.end) for number, at in group]
        yield MergedRange(shard, RangeByteRequest(start, end), parts)
