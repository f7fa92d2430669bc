"""Tests for `zarr.core._shard_plan`: which bytes of which shards a read needs. No I/O."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.codecs.sharding import _ShardIndex
from zarr.core import _shard_plan
from zarr.core._shard_plan import (
    INDEX_ENTRY_NBYTES,
    located_chunks,
    merged_ranges,
    plan_shards,
    reads_together,
    shard_windows,
)
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.dtype import Int32
from zarr.storage import LocalStore, LoggingStore, MemoryStore, StorePath, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zarr.abc.store import Store
    from zarr.core._chunk_reads import ChunkRead
    from zarr.core._shard_plan import Shard

CHUNK = (2, 3)
PER_SHARD = (4, 5)
SHAPE = (8, 15)


def codec_of(location: str = "end") -> ShardingCodec:
    return ShardingCodec(
        chunk_shape=CHUNK,
        codecs=[BytesCodec()],
        index_codecs=[BytesCodec()],
        index_location=location,  # type: ignore[arg-type]
    )


def spec_of(gap: int = 0, largest: int = 1 << 20) -> ArraySpec:
    config = ArrayConfig.from_dict(
        {"sharding_coalesce_max_gap_bytes": gap, "sharding_coalesce_max_bytes": largest}
    )
    dtype = Int32()
    return ArraySpec(
        SHAPE, dtype, dtype.default_scalar(), config=config, prototype=default_buffer_prototype()
    )


def batch_of(
    selections: Sequence[Any], spec: ArraySpec | None = None, store: Store | None = None
) -> list[ChunkRead]:
    store = store or MemoryStore()
    spec = spec or spec_of()
    out: Any = slice(None)
    return [
        (StorePath(store, f"c/{number}"), spec, selection, out, False)
        for number, selection in enumerate(selections)
    ]


def planned(batch: list[ChunkRead], location: str = "end") -> list[Shard]:
    return list(plan_shards(codec_of(location), batch, range(len(batch))))


def slices(sizes: tuple[int, ...]) -> st.SearchStrategy[tuple[slice, ...]]:
    """Selections that are not empty, some with steps."""

    def part(size: int) -> st.SearchStrategy[slice]:
        return st.builds(
            lambda start, length, step: slice(start, min(size, start + length), step),
            st.integers(0, size - 1),
            st.integers(1, size),
            st.integers(1, 3),
        )

    return st.tuples(*map(part, sizes))


@st.composite
def indexes(draw: st.DrawFn) -> tuple[_ShardIndex, dict[tuple[int, ...], tuple[int, int]]]:
    """An index in which some of the inner chunks are missing, and where the others are."""
    index = _ShardIndex.create_empty(PER_SHARD)
    located: dict[tuple[int, ...], tuple[int, int]] = {}
    random = draw(st.randoms(use_true_random=False))
    everywhere = list(product(*map(range, PER_SHARD)))
    at = 0
    for coords in random.sample(everywhere, draw(st.integers(0, len(everywhere)))):
        at += random.randint(0, 40)
        located[coords] = (at, at + random.randint(1, 30))
        at = located[coords][1]
        index.set_chunk_slice(coords, slice(*located[coords]))
    return index, located


@given(slices(SHAPE))
def test_a_plan_has_the_inner_chunks_that_the_selection_touches(
    selection: tuple[slice, ...],
) -> None:
    (shard,) = planned(batch_of([selection]))
    touched = {
        (row // CHUNK[0], column // CHUNK[1])
        for row in range(*selection[0].indices(SHAPE[0]))
        for column in range(*selection[1].indices(SHAPE[1]))
    }
    assert {coords for coords, *_ in shard.plan.chunks} == touched
    assert shard.plan.chunks_per_shard == PER_SHARD
    assert shard.plan.shape == np.empty(SHAPE)[selection].shape
    assert shard.plan.whole == (len(touched) == prod(PER_SHARD))


@pytest.mark.parametrize(
    ("location", "expected", "place"),
    [
        ("end", SuffixByteRequest(320), slice(-320, None)),
        ("start", RangeByteRequest(0, 320), slice(0, 320)),
    ],
)
def test_where_the_index_is(location: str, expected: object, place: slice) -> None:
    (shard,) = planned(batch_of([(slice(0, 1), slice(0, 1))]), location)
    assert prod(PER_SHARD) * INDEX_ENTRY_NBYTES == 320
    assert (shard.plan.index_range, shard.plan.index) == (expected, place)


def test_shards_that_are_selected_alike_share_a_plan() -> None:
    part, other = (slice(0, 2), slice(None)), (slice(0, 3), slice(None))
    array = (np.array([1, 2]), slice(None))
    first, second, third, fourth, fifth = planned(batch_of([part, other, part, array, array]))
    assert first.plan is third.plan
    assert len({id(each.plan) for each in (first, second, fourth, fifth)}) == 4
    assert [shard.path for shard in (first, fifth)] == ["c/0", "c/4"]


@given(slices(SHAPE), indexes())
def test_inner_chunks_are_found_where_the_index_says(
    selection: tuple[slice, ...], made: tuple[_ShardIndex, dict[tuple[int, ...], tuple[int, int]]]
) -> None:
    index, located = made
    (shard,) = planned(batch_of([selection]))
    expected = [located.get(coords) for coords, *_ in shard.plan.chunks]
    assert list(located_chunks(index, shard.plan)) == expected


@given(slices(SHAPE), indexes(), st.integers(0, 60), st.integers(1, 300))
def test_ranges_are_merged_within_the_limits(
    selection: tuple[slice, ...],
    made: tuple[_ShardIndex, dict[tuple[int, ...], tuple[int, int]]],
    gap: int,
    largest: int,
) -> None:
    index, located = made
    (shard,) = planned(batch_of([selection], spec_of(gap, largest)))
    wanted = {
        position: located[coords]
        for position, (coords, *_) in enumerate(shard.plan.chunks)
        if coords in located
    }
    found: dict[int, tuple[int, int]] = {}
    for merged in merged_ranges(shard, index):
        start, end = merged.byte_range.start, merged.byte_range.end
        places = sorted((first, last) for _, first, last in merged.parts)
        assert (places[0][0], max(last for _, last in places)) == (start, end)
        gaps = [after - before for (_, before), (after, _) in pairwise(places)]
        assert all(each <= gap for each in gaps)
        assert len(places) == 1 or end - start <= largest
        for position, first, last in merged.parts:
            assert position not in found
            found[position] = first, last
    assert found == wanted


def test_windows_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shard_plan, "SHARDS_PLANNED", 3)
    batch = batch_of([(slice(0, 1), slice(0, 1))] * 7)
    assert list(shard_windows(codec_of(), batch)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("selection", "most", "sizes"),
    [
        ((slice(0, 1), slice(0, 1)), 640, [2, 2, 1]),  # an index takes 320 bytes
        ((slice(0, 1), slice(0, 1)), 1, [1, 1, 1, 1, 1]),
        # Ten coordinates take as much as an index, 320 bytes.
        ((np.arange(2)[:, None], np.arange(5)), 1300, [2, 2, 1]),
        (np.arange(10), 1300, [2, 2, 1]),
    ],
)
def test_windows_are_limited_in_bytes(
    selection: Any, most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shard_plan, "NBYTES_PLANNED", most)
    windows = list(shard_windows(codec_of(), batch_of([selection] * 5)))
    assert [number for window in windows for number in window] == list(range(5))
    assert [len(window) for window in windows] == sizes


class OwnRanges(MemoryStore):
    """Has its own idea of `get_ranges`, and none of `get_many`."""

    def get_ranges(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class OwnCodec(ShardingCodec):
    """May read in its own way."""


def test_who_is_read_together(tmp_path: Path) -> None:
    part = (slice(0, 1), slice(0, 1))
    ours: list[Store] = [MemoryStore(), LocalStore(tmp_path)]
    for store in (*ours, WrapperStore(LoggingStore(MemoryStore()))):
        assert reads_together(codec_of(), batch_of([part] * 2, store=store))
    theirs: list[Store] = [OwnRanges(), WrapperStore(OwnRanges())]
    for store in theirs:
        assert not reads_together(codec_of(), batch_of([part] * 2, store=store))
    assert not reads_together(OwnCodec(chunk_shape=CHUNK), batch_of([part]))
    assert not reads_together(BytesCodec(), batch_of([part]))
    assert not reads_together(codec_of(), [*batch_of([part]), *batch_of([part])])
