"""Shards in memory and on a local disk are read on threads, without the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core import codec_pipeline
from zarr.core.config import config
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


async def create(kind: str, folder: Path) -> LocalStore | MemoryStore:
    return LocalStore(folder / "local") if kind == "local" else MemoryStore()


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize(
    "selection", [np.s_[:], np.s_[3:29, 5:31], np.s_[::9, ::9], np.s_[4, :], np.s_[0:0]]
)
async def test_shards_are_read_synchronously(
    kind: str, selection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    store = await create(kind, tmp_path)
    values = np.arange(32 * 32).reshape(32, 32)
    values[:16, :16] = 0  # this shard is not stored
    array = await asyncio.to_thread(
        zarr.create_array, store, name="s", data=values, chunks=(8, 8), shards=(16, 16)
    )
    monkeypatch.setattr(type(store), "get_ranges", None)  # no request is made in the event loop
    found = await asyncio.to_thread(array.__getitem__, selection)
    np.testing.assert_array_equal(found, values[selection])
    monkeypatch.undo()  # the other road finds the same
    monkeypatch.setattr(codec_pipeline, "_read_synchronously", lambda batch: False)
    np.testing.assert_array_equal(await asyncio.to_thread(array.__getitem__, selection), found)


@pytest.mark.parametrize(("selection", "threads"), [(np.s_[:], 2), (np.s_[::9, ::9], 4)])
async def test_how_many_threads_read_shards(
    selection: Any, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    decode, together = ShardingCodec._decode_partial_sync, threading.Barrier(threads)
    reading: set[int] = set()
    most: list[int] = []

    def count(*args: Any) -> Any:
        reading.add(threading.get_ident())
        together.wait(10)
        time.sleep(0.05)  # time for more threads to come, if there are more
        most.append(len(reading))
        together.wait(10)
        reading.discard(threading.get_ident())
        return decode(*args)

    monkeypatch.setattr(ShardingCodec, "_decode_partial_sync", count)
    store = await create("local", tmp_path)
    values = np.arange(32 * 32).reshape(32, 32)
    array = await asyncio.to_thread(
        zarr.create_array, store, name="s", data=values, chunks=(8, 8), shards=(16, 16)
    )
    with config.set({"async.concurrency": 4, "codec_pipeline.max_workers": 2}):
        found = await asyncio.to_thread(array.__getitem__, selection)
    np.testing.assert_array_equal(found, values[selection])
    assert max(most) == threads


async def test_truncated_shard_is_an_error(tmp_path: Path) -> None:
    store = await create("local", tmp_path)
    values = np.arange(256).reshape(16, 16)
    array = await asyncio.to_thread(
        zarr.create_array, store, name="s", data=values, chunks=(8, 8), shards=(16, 16)
    )
    shard = tmp_path / "local" / "s" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:10])
    for selection in (np.s_[:], np.s_[0, 0]):
        with pytest.raises(ValueError, match="too short") as caught:
            await asyncio.to_thread(array.__getitem__, selection)
        assert "While reading 's/c/0/0' from file://" in caught.value.__notes__[0]


class ForeignCodec(Crc32cCodec):
    """A codec of another package."""


async def test_codecs_of_others_are_not_called_on_these_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(codec_pipeline, "_read_shards_on_threads", None)
    sharding = ShardingCodec(chunk_shape=(8, 8), codecs=[BytesCodec(), ForeignCodec()])
    array = await asyncio.to_thread(
        zarr.create_array,
        await create("memory", tmp_path),
        shape=(32, 32),
        chunks=(16, 16),
        dtype="int32",
        serializer=sharding,
        compressors=None,
    )
    await asyncio.to_thread(array.__setitem__, ..., 1)
    found = await asyncio.to_thread(array.__getitem__, ...)
    np.testing.assert_array_equal(found, np.ones((32, 32)))
