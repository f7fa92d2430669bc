"""Which blocks there are, and which chunks they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarr.core.chunk_grids import ChunkGrid
from zarr.experimental._first_axis import BlockChunks, FirstAxis, chosen_blocks


@st.composite
def edges(draw: st.DrawFn, length: int) -> int | tuple[int, ...]:
    """Chunks of an axis: of one size, or of many."""
    if length and draw(st.booleans()):
        inner = draw(st.sets(st.integers(1, length), max_size=4)) | {length}
        return tuple(int(edge) for edge in np.diff([0, *sorted(inner)]))
    return draw(st.integers(1, max(1, length) + 2))


@st.composite
def selections(draw: st.DrawFn, length: int) -> Any:
    """What to take of an axis."""
    kinds: list[st.SearchStrategy[Any]] = [
        st.slices(length).filter(lambda part: (part.step or 1) > 0)
    ]
    if length:
        kinds.append(st.integers(-length, length - 1))
    return draw(st.one_of(kinds))


def assembled(axis: FirstAxis, values: np.ndarray[Any, Any], block: int) -> Any:
    """A block, put together from chunks as a store has them."""
    chunks, coords = axis.chunks(block), axis.coords(block)
    out = np.full(chunks.shape, -1)
    for at, (chunk_selection, out_selection) in zip(coords, chunks.selections, strict=True):
        spec = axis._grid[at]
        assert spec is not None
        chunk = np.full(spec.codec_shape, -2)
        inner = values[spec.slices]
        chunk[tuple(map(slice, inner.shape))] = inner
        part = chunk[chunk_selection]
        out[out_selection] = part.squeeze(axis=axis.drop_axes) if axis.drop_axes else part
    return out


@given(st.data())
def test_the_chunks_make_up_the_block(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    sizes = tuple(data.draw(edges(length)) for length in shape)
    grid = ChunkGrid.from_sizes(shape, sizes)
    kept = data.draw(st.integers(1, len(shape)))
    selection = tuple(data.draw(selections(length)) for length in shape[1:kept])
    values = np.arange(np.prod(shape)).reshape(shape)
    axis = FirstAxis(shape, grid, selection)
    rows = [axis.rows(block) for block in range(len(axis))]
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(shape[0]))
    for block, part in enumerate(rows):
        wanted = values[(part, *selection)]
        np.testing.assert_array_equal(assembled(axis, values, block), wanted)
        assert axis.chunks(block).shape == wanted.shape
        assert axis.row_size * (part.stop - part.start) == wanted.size


@pytest.mark.parametrize(
    "selection",
    [([0, 4, 2],), (np.array([True] + [False] * 5), [1, 0]), (slice(1, 5), [3, 3]), ([2, 1], 2)],
)
def test_arrays_of_indices(selection: tuple[Any, ...]) -> None:
    values = np.arange(5 * 6 * 4).reshape(5, 6, 4)
    axis = FirstAxis(values.shape, ChunkGrid.from_sizes(values.shape, (2, 4, 3)), selection)
    for block in range(3):
        wanted = values[axis.rows(block)]
        for number, part in enumerate(selection, start=1):
            wanted = (
                np.take(wanted, np.arange(values.shape[number])[part], number)
                if (not isinstance(part, int))
                else wanted
            )
        if isinstance(selection[-1], int):
            wanted = wanted[..., selection[-1]]
        np.testing.assert_array_equal(assembled(axis, values, block), wanted)


def test_blocks_of_one_length_share_their_selections() -> None:
    axis = FirstAxis((7, 4), ChunkGrid.from_sizes((7, 4), (2, 3)))
    assert axis.chunks(1) is axis.chunks(0)
    assert axis.chunks(3).shape == (1, 4)
    assert axis.chunks(2).shape == (2, 4)


def test_threads_ask_for_blocks_of_different_lengths() -> None:
    """Another thread is always there first with the selections of another block."""

    class Raced(FirstAxis):
        @property
        def _latest(self) -> BlockChunks:
            return BlockChunks([], (1, 4))

        @_latest.setter
        def _latest(self, chunks: BlockChunks | None) -> None:
            pass

    axis = Raced((7, 4), ChunkGrid.from_sizes((7, 4), (2, 3)))
    assert axis.chunks(0).shape == (2, 4)


def test_an_array_without_axes_has_no_blocks() -> None:
    with pytest.raises(IndexError, match="no axis"):
        FirstAxis((), ChunkGrid.from_sizes((), ()))


@pytest.mark.parametrize("selection", [(0, 0), (9,), (slice(None, None, -1),), ([9],)])
def test_selections_that_do_not_fit(selection: Any) -> None:
    with pytest.raises(IndexError):
        FirstAxis((4, 4), ChunkGrid.from_sizes((4, 4), (2, 2)), selection)


@given(st.integers(0, 6), st.none() | st.integers(-8, 8), st.none() | st.integers(-8, 8))
def test_a_range_of_blocks(count: int, start: int | None, stop: int | None) -> None:
    if all(end is None or -count <= end <= count for end in (start, stop)):
        assert list(chosen_blocks(count, start, stop, None)) == list(range(count))[start:stop]
    else:
        with pytest.raises(IndexError, match="out of range"):
            chosen_blocks(count, start, stop, None)


@given(st.integers(0, 6), st.lists(st.integers(-8, 8), max_size=5))
def test_a_list_of_blocks(count: int, blocks: list[int]) -> None:
    if all(-count <= block < count for block in blocks):
        expected = [list(range(count))[block] for block in blocks]
        assert list(chosen_blocks(count, None, None, iter(blocks))) == expected
    else:
        with pytest.raises(IndexError, match="out of range"):
            chosen_blocks(count, None, None, blocks)


def test_blocks_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="either start and stop, or blocks"):
        chosen_blocks(3, 1, None, [1])
    with pytest.raises(TypeError, match=r"1\.5"):
        chosen_blocks(3, None, None, [1.5])  # type: ignore[list-item]
    assert list(chosen_blocks(3, np.int64(1), None, None)) == [1, 2]  # type: ignore[arg-type]
