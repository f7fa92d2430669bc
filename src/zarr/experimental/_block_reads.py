"""What has to be fetched for blocks of an array, and how that becomes blocks.

An `ArrayBlocks` works out once, for one array, what is the same for all its blocks. Who fetches
chunks, and on which thread they are decoded, is up to the caller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zarr.abc.store import _store_supports_sync_io
from zarr.core._chunk_reads import chunk_decoder
from zarr.core.array import Array, AsyncArray, _get_chunk_spec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline, _bulk_decoding
from zarr.core.dtype.common import HasItemSize
from zarr.storage._common import StorePath
from zarr.storage._zip import ZipStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from zarr.abc.store import Store
    from zarr.core.buffer import NDBuffer
    from zarr.core.chunk_utils import ChunkTransform

type AnyArray = Array[Any] | AsyncArray[Any]

ELEMENT_NBYTES = 16
"""What an element of a data type without a fixed size is taken for: a pointer, and some text."""


class ArrayBlocks:
    """How blocks of an array are read.

    Parameters
    ----------
    array
        The array, whose metadata and configuration count as they are now.

    Attributes
    ----------
    transform
        What decodes a chunk, or `None` if the blocks are not plain: then it is for the array to
        read them. Plain are those of arrays whose codecs are zarr's, can run on any thread, and
        take a chunk as a whole, and where missing chunks are filled.

    Raises
    ------
    TypeError
        If `array` is not an array.
    """

    def __init__(self, array: AnyArray) -> None:
        if not isinstance(array, Array | AsyncArray):
            raise TypeError(f"Expected a zarr array, got an object of type {type(array).__name__}.")
        self.array = array.async_array if isinstance(array, Array) else array
        metadata = self.array.metadata
        order = metadata.order if metadata.zarr_format == 2 else self.array.config.order
        self.prototype = default_buffer_prototype()
        self.grid = self.array._chunk_grid
        self.dtype = metadata.dtype.to_native_dtype()
        self.order = order
        self.is_sized = isinstance(metadata.dtype, HasItemSize)
        self.item_nbytes = getattr(metadata.dtype, "item_size", ELEMENT_NBYTES)
        self.transform = _transform(self.array)
        config = self.array.config
        self._config = config if config.order == order else replace(config, order=order)
        self._regular = self._spec(self.grid.chunk_shape) if self.grid.is_regular else None

    def decoder(self, drop_axes: tuple[int, ...] = ()) -> Callable[..., object] | None:
        """A `chunk_decoder` for the chunks of plain blocks; `None` where the blocks are not."""
        return None if self.transform is None else chunk_decoder(self.transform, drop_axes)

    def empty(self, shape: tuple[int, ...]) -> NDBuffer:
        """Where chunks are decoded to that make up a block of this shape."""
        empty = self.prototype.nd_buffer.empty
        return empty(shape=shape, dtype=self.dtype, order=self.order)

    @property
    def store(self) -> Store:
        return self.array.store_path.store

    @property
    def is_at_hand(self) -> bool:
        """Whether the store is on this machine, so that reads need not wait for a network."""
        return _store_supports_sync_io(self.store) or isinstance(self.store, ZipStore)

    def _spec(self, shape: tuple[int, ...]) -> ArraySpec:
        metadata = self.array.metadata
        return ArraySpec(shape, metadata.dtype, metadata.fill_value, self._config, self.prototype)

    def spec(self, coords: tuple[int, ...]) -> ArraySpec:
        """The `ArraySpec` of a chunk."""
        if self._regular is not None:
            return self._regular
        metadata = self.array.metadata
        return _get_chunk_spec(metadata, self.grid, coords, self._config, self.prototype)

    def key(self, coords: tuple[int, ...]) -> str:
        """The key of a chunk in the store."""
        key: str = (self.array.store_path / self.array.metadata.encode_chunk_key(coords)).path
        return key


def _transform(array: AsyncArray[Any]) -> ChunkTransform | None:
    pipeline = array.codec_pipeline
    if (
        type(array) is not AsyncArray
        or type(array.store_path) is not StorePath
        or type(pipeline) not in (BatchedCodecPipeline, FusedCodecPipeline)
        or pipeline.supports_partial_decode
        or array.config.read_missing_chunks is False
    ):
        return None
    return _bulk_decoding(pipeline)[0]
