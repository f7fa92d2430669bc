"""A call that is cancelled inside a read fails it, and never looks like a missing chunk."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Generator

    from zarr.core.buffer import Buffer


@pytest.fixture(params=["BatchedCodecPipeline", "FusedCodecPipeline"], autouse=True)
def pipeline(request: pytest.FixtureRequest) -> Generator[None]:
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield


class CancellingStore(MemoryStore):
    """Raises `CancelledError` though nobody cancelled it: something that it awaits was."""

    _supports_sync_io = False
    cancels = ""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        if key == self.cancels:
            raise asyncio.CancelledError
        return await super().get(key, *args, **kwargs)


@pytest.mark.parametrize("shards", [None, (4,)])
@pytest.mark.parametrize("selection", [slice(None), slice(1, 15), slice(None, None, 3)])
def test_a_call_that_is_cancelled_inside(shards: tuple[int, ...] | None, selection: Any) -> None:
    store = CancellingStore()
    array = zarr.create_array(store, data=np.arange(16), chunks=(2,), shards=shards)
    store.cancels = "c/1"
    with pytest.raises(CancelledError):
        array[selection]
