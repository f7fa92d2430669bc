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
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core import codec_pipeline
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.config import config
from zarr.errors import ChunkNotFoundError
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


@pytest.mark.parametrize(
    ("selection", "concurrency", "threads"),
    [(np.s_[:], 4, 2), (np.s_[:], 1, 1), (np.s_[::9, ::9], 4, 4)],
)
async def test_how_many_threads_read_shards(
    selection: Any,
    concurrency: int,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    with config.set({"async.concurrency": concurrency, "codec_pipeline.max_workers": 2}):
        found = await asyncio.to_thread(array.__getitem__, selection)
    np.testing.assert_array_equal(found, values[selection])
    assert max(most) == threads


@pytest.mark.parametrize("selection", [np.s_[:], np.s_[0, 0]])
async def test_truncated_shard_is_an_error(
    selection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    store = await create("local", tmp_path)
    values = np.arange(32 * 32).reshape(32, 32)
    array = await asyncio.to_thread(
        zarr.create_array, store, name="s", data=values, chunks=(8, 8), shards=(16, 16)
    )
    shard = tmp_path / "local" / "s" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:10])
    with pytest.raises(ValueError, match="too short") as caught:
        await asyncio.to_thread(array.__getitem__, selection)
    assert "While reading 's/c/0/0' from file://" in caught.value.__notes__[0]


async def test_absent_shard_is_an_error_if_it_has_to_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with config.set({"array.read_missing_chunks": False}):
        array = await asyncio.to_thread(
            zarr.create_array,
            await create("memory", tmp_path),
            shape=(32, 32),
            chunks=(8, 8),
            shards=(16, 16),
            dtype="int32",
        )
        with pytest.raises(ChunkNotFoundError):
            await asyncio.to_thread(array.__getitem__, ...)


class ForeignCodec(Crc32cCodec):
    """A codec of another package."""


class ForeignShardingCodec(ShardingCodec):
    """One that reads shards in its own way."""


class ForeignPipeline(BatchedCodecPipeline):
    """One that reads batches in its own way."""


CODECS: dict[str, dict[str, Any]] = {
    "foreign codec": {
        "serializer": ShardingCodec(chunk_shape=(8, 8), codecs=[BytesCodec(), ForeignCodec()])
    },
    "foreign shards": {"serializer": ForeignShardingCodec(chunk_shape=(8, 8))},
    "foreign pipeline": {"serializer": ShardingCodec(chunk_shape=(8, 8))},
    "compressed shards": {
        "serializer": ShardingCodec(chunk_shape=(8, 8)),
        "compressors": ZstdCodec(),
    },
    "nested shards": {
        "serializer": ShardingCodec(chunk_shape=(8, 8), codecs=[ShardingCodec(chunk_shape=(4, 4))])
    },
    "few shards": {"serializer": ShardingCodec(chunk_shape=(8, 8)), "shape": (16, 16)},
}


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@pytest.mark.parametrize("kind", CODECS)
async def test_what_is_read_as_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(codec_pipeline, "_read_shards_on_threads", None)
    options = {"shape": (32, 32), "compressors": None} | CODECS[kind]
    array = await asyncio.to_thread(
        zarr.create_array,
        await create("memory", tmp_path),
        chunks=(16, 16),
        dtype="int32",
        **options,
    )
    if kind == "foreign pipeline":
        codecs: Any = array.async_array.codec_pipeline
        pipeline = ForeignPipeline.from_codecs(codecs)
        object.__setattr__(array.async_array, "codec_pipeline", pipeline)
    await asyncio.to_thread(array.__setitem__, ..., 1)
    found = await asyncio.to_thread(array.__getitem__, ...)
    np.testing.assert_array_equal(found, np.ones(array.shape))
