"""A failure never looks like a missing chunk: faults that are easily taken for something else."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.core.buffer import BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

PIPELINES = ["BatchedCodecPipeline", "FusedCodecPipeline"]


@pytest.fixture(params=PIPELINES, autouse=True)
def pipeline(request: pytest.FixtureRequest) -> Any:
    path = f"zarr.core.codec_pipeline.{request.param}"
    with zarr.config.set({"codec_pipeline.path": path}):
        yield


class CancellingStore(MemoryStore):
    """Raises `CancelledError` though nobody cancelled it: something that it awaits was."""

    _supports_sync_io = False
    cancels: Callable[[str, str], bool] = staticmethod(lambda method, key: False)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if self.cancels("get", key):
            raise asyncio.CancelledError
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        if self.cancels("set", key):
            raise asyncio.CancelledError
        await super().set(key, value, byte_range)


def make_array(store: MemoryStore, shards: tuple[int, ...] | None) -> zarr.Array[Any]:
    array = zarr.create_array(
        store, shape=(16,), chunks=(2,), shards=shards, dtype="int32", fill_value=-1
    )
    array[:] = np.arange(16)
    return array


@pytest.mark.parametrize("shards", [None, (4,)])
@pytest.mark.parametrize("selection", [slice(None), slice(1, 15), slice(None, None, 3)])
def test_a_read_that_was_cancelled_inside(shards: tuple[int, ...] | None, selection: slice) -> None:
    store = CancellingStore()
    array = make_array(store, shards)
    store.cancels = lambda method, key: method == "get" and key == "c/1"
    with pytest.raises(CancelledError):
        array[selection]


@pytest.mark.parametrize("shards", [None, (4,)])
@pytest.mark.parametrize("method", ["get", "set"])
def test_a_write_that_was_cancelled_inside(shards: tuple[int, ...] | None, method: str) -> None:
    store = CancellingStore()
    array = make_array(store, shards)
    key = "c/0"  # written in part, so read first
    store.cancels = lambda called, at: called == method and at == key
    with pytest.raises(CancelledError):
        array[1:15] = 7


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("selection", [slice(None), slice(0, 2), slice(0, 3)])
@pytest.mark.parametrize("entry", [(2**64 - 1, 4), (3, 2**64 - 1)])
def test_half_an_entry_of_a_shard_index_is_no_missing_chunk(
    selection: slice, entry: tuple[int, int]
) -> None:
    store = CancellingStore()
    array = zarr.create_array(
        store, shape=(4,), chunks=(2,), shards={"shape": (4,), "index_location": "end"},
        dtype="int32", fill_value=-1, compressors=None,
    )  # fmt: skip
    codec: Any = array.metadata.codecs[0]  # type: ignore[union-attr]
    object.__setattr__(codec, "index_codecs", codec.index_codecs[:1])
    array[:] = np.arange(4)
    stored = bytearray(store._store_dict["c/0"].to_bytes())
    stored[16:32] = np.array(entry, dtype="<u8").tobytes()
    store._store_dict["c/0"] = default_buffer_prototype().buffer.from_bytes(bytes(stored))
    with pytest.raises((ValueError, OverflowError, RuntimeError, ExceptionGroup)):
        array[selection]
