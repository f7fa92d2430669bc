"""Which blocks there are along the first axis of an array, and which chunks each is made of.

No I/O. A block covers one chunk of the first axis, and what is selected of the other axes, which is
worked out once for all blocks.
"""

from __future__ import annotations

import itertools
from math import prod
from types import EllipsisType
from typing import TYPE_CHECKING, NamedTuple

from zarr.core.indexing import BasicIndexer, OrthogonalIndexer, ensure_tuple, is_integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from zarr.core.chunk_grids import ChunkGrid
    from zarr.core.indexing import ChunkDimProjection, Indexer, SelectorTuple


type _Others = tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]
"""The coordinates of a chunk, what to take of it, and where to put that, without the first axis."""


class BlockChunks(NamedTuple):
    """What becomes of the chunks of one block, and the shape that they make up.

    Of each chunk, in the order of `FirstAxis.coords`: what to take of it, and where in the block to
    put that.
    """

    selections: Sequence[tuple[SelectorTuple, SelectorTuple]]
    shape: tuple[int, ...]


class FirstAxis:
    """The blocks along the first axis of an array.

    Parameters
    ----------
    shape
        The shape of the array.
    grid
        Its chunks.
    selection
        What to take of the other axes: integers, slices and an ellipsis, or what `array.oindex`
        takes.

    Raises
    ------
    IndexError
        If the array has no axis, or `selection` does not fit the others.

    Attributes
    ----------
    row_size
        How many elements of a block there are for each index of the first axis.
    drop_axes
        Axes of the chunks that the blocks lack.
    """

    def __init__(self, shape: tuple[int, ...], grid: ChunkGrid, selection: Any = ()) -> None:
        if not shape:
            raise IndexError("it has no axis")
        self.dimension = grid._dimensions[0]
        self._shape = shape
        self._grid = grid
        self._selection = ensure_tuple(selection)
        self._others: list[_Others] | None = None
        self._latest: BlockChunks | None = None
        whole = self._indexer(slice(None))
        self.drop_axes = () if isinstance(whole, BasicIndexer) else whole.drop_axes
        self.row_size = prod(whole.shape[1:])
        if isinstance(whole, BasicIndexer):
            self._others = [_crossed(axes) for axes in itertools.product(*whole.dim_indexers[1:])]
            self._other_shape = whole.shape[1:]

    def __len__(self) -> int:
        return self.dimension.nchunks

    def rows(self, block: int) -> slice:
        """What a block covers of the first axis."""
        start = self.dimension.chunk_offset(block)
        return slice(start, start + self.dimension.data_size(block))

    def indexer(self, block: int) -> Indexer:
        """An indexer for a block."""
        return self._indexer(self.rows(block))

    def _indexer(self, rows: slice) -> Indexer:
        basic = all(isinstance(p, slice | EllipsisType) or is_integer(p) for p in self._selection)
        kind = BasicIndexer if basic else OrthogonalIndexer
        return kind((rows, *self._selection), self._shape, self._grid)

    def coords(self, block: int) -> list[tuple[int, ...]]:
        """The coordinates of the chunks of a block."""
        if self._others is not None:
            return [(block, *coords) for coords, *_ in self._others]
        return [coords for coords, *_ in self.indexer(block)]

    def chunks(self, block: int) -> BlockChunks:
        """What becomes of the chunks of a block."""
        if self._others is None:
            indexer = self.indexer(block)
            return BlockChunks([(chunk, out) for _, chunk, out, _ in indexer], indexer.shape)
        length, latest = self.dimension.data_size(block), self._latest
        if latest is None or latest.shape[0] != length:  # mostly they are all of one length
            rows = slice(0, length)
            selections = [((rows, *chunk), (rows, *out)) for _, chunk, out in self._others]
            latest = self._latest = BlockChunks(selections, (length, *self._other_shape))
        return latest


def _crossed(axes: Iterable[ChunkDimProjection]) -> _Others:
    """The projection of a chunk from those of its axes."""
    axes = list(axes)
    return (
        tuple(axis.dim_chunk_ix for axis in axes),
        tuple(axis.dim_chunk_sel for axis in axes),
        tuple(axis.dim_out_sel for axis in axes if axis.dim_out_sel is not None),
    )


def chosen_blocks(
    count: int, start: int | None, stop: int | None, blocks: Iterable[int] | None
) -> Sequence[int]:
    """Which blocks to read of so many.

    Parameters
    ----------
    count
        How many blocks there are.
    start, stop
        The first block, and the one after the last.
    blocks
        The blocks themselves, instead. Here as there, negative numbers count from the end.

    Raises
    ------
    ValueError
        If both are given.
    IndexError
        If there is no such block.
    """
    if blocks is None:
        first = 0 if start is None else _counted(start, count + 1, count)
        return range(first, max(first, count if stop is None else _counted(stop, count + 1, count)))
    if start is not None or stop is not None:
        raise ValueError("Give either start and stop, or blocks.")
    return [_counted(block, count, count) for block in blocks]


def _counted(block: int, end: int, count: int) -> int:
    if not is_integer(block):
        raise TypeError(f"A block index must be an integer, got {block!r}.")
    if not -count <= block < end:
        raise IndexError(f"block {block} is out of range, there are {count}")
    return int(block) + (count if block < 0 else 0)
