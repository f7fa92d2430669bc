"""A store that returns more than the requested range does not pass wrong bytes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer


class IgnoresRanges(MemoryStore):
    """As a server that answers with the whole object."""

    _supports_sync_io = False

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
        byte_range = None if isinstance(byte_range, RangeByteRequest) else byte_range
        return await super().get(key, prototype, byte_range)


async def test_ranges() -> None:
    prototype = default_buffer_prototype()
    store = IgnoresRanges()
    await store.set("key", prototype.buffer.from_bytes(bytes(100)))
    ranges = [RangeByteRequest(10 * i, 10 * i + 5) for i in range(3)]
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="returned 100 bytes")):
        async for _ in store.get_ranges("key", ranges, prototype=prototype):
            pass


async def test_ranges_that_overlap() -> None:
    prototype = default_buffer_prototype()
    store = MemoryStore()
    await store.set("key", prototype.buffer.from_bytes(bytes(range(100))))
    ranges = [RangeByteRequest(0, 60), RangeByteRequest(10, 20), RangeByteRequest(15, 50)]
    values = {}
    async for group in store.get_ranges("key", ranges, prototype=prototype):
        values.update({index: value and value.to_bytes() for index, value in group})
    assert values == {i: bytes(range(at.start, at.end)) for i, at in enumerate(ranges)}


@pytest.mark.parametrize("selection", [slice(10, 12), slice(10, 40)])
def test_partial_read_of_a_shard(selection: slice) -> None:
    array = zarr.create_array(
        IgnoresRanges(), data=np.arange(100), chunks=(10,), shards=(100,), compressors=None
    )
    with pytest.raises(Exception) as caught:
        array[selection]
    assert "Requested RangeByteRequest" in str(
        getattr(caught.value, "exceptions", [caught.value])[0]
    )
