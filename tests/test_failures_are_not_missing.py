"""A call that is cancelled inside a read or a write fails it, and never looks like a missing chunk."""

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
    cancels = ("", "")

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        if self.cancels == ("get", key):
            raise asyncio.CancelledError
        return await super().get(key, *args, **kwargs)

    async def set(self, key: str, *args: Any, **kwargs: Any) -> None:
        if self.cancels == ("set", key):
            raise asyncio.CancelledError
        await super().set(key, *args, **kwargs)


@pytest.mark.parametrize("shards", [None, (4,)])
@pytest.mark.parametrize(
    ("cancels", "selection"),
    [
        *((("get", "c/1"), part) for part in (slice(None), slice(1, 15), slice(None, None, 3))),
        *(((method, "c/0"), "write") for method in ("get", "set")),
    ],
)
def test_a_call_that_is_cancelled_inside(
    shards: tuple[int, ...] | None, cancels: tuple[str, str], selection: Any
) -> None:
    store = CancellingStore()
    array = zarr.create_array(store, data=np.arange(16), chunks=(2,), shards=shards)
    store.cancels = cancels

    def access() -> None:
        if selection == "write":
            array[1:15] = 7  # the first chunk is written in part, so read first
        else:
            array[selection]

    with pytest.raises(CancelledError):
        access()
