"""A failure never looks like a missing chunk: faults that are easily taken for something else."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import zipfile
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.abc.store import _read_many
from zarr.codecs import ZstdCodec
from zarr.core._bounded import flat_task_group
from zarr.core.buffer import BufferPrototype, cpu, default_buffer_prototype
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore, MemoryStore, ZipStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

PIPELINES = ["BatchedCodecPipeline", "FusedCodecPipeline"]


@pytest.fixture(params=PIPELINES, autouse=True)
def pipeline(request: pytest.FixtureRequest) -> Any:
    path = f"zarr.core.codec_pipeline.{request.param}"
    with zarr.config.set({"codec_pipeline.path": path}):
        yield request.param


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


async def test_a_task_group_notices_a_task_that_cancels_itself() -> None:
    async def cancels_itself() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def waits() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        async with flat_task_group() as tasks:
            tasks.create_task(cancels_itself())
            tasks.create_task(waits())

    with pytest.raises(asyncio.CancelledError):
        await run()
    assert asyncio.all_tasks() == {asyncio.current_task()}


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
    with pytest.raises((ValueError, OverflowError, RuntimeError)):
        array[selection]


class CopyingNDBuffer(cpu.NDBuffer):
    """Hands out copies where the default one hands out views, as memory elsewhere may do."""

    def __getitem__(self, key: Any) -> Any:
        return type(self)(np.array(super().__getitem__(key)._data))


def test_an_output_of_another_kind_is_not_written_to_by_halves() -> None:
    array = make_array(CancellingStore(), (4,))
    prototype = BufferPrototype(buffer=cpu.Buffer, nd_buffer=CopyingNDBuffer)
    with pytest.raises((AssertionError, ValueError), match="not supported within shards"):
        array.get_basic_selection(slice(1, 15), prototype=prototype)


@pytest.mark.parametrize("lacking", ["shape", "codecs", "data_type"])
def test_one_bad_member_does_not_hide_the_others(lacking: str) -> None:
    store = MemoryStore()
    group = zarr.create_group(store)
    for name in ("bad", "good"):
        group.create_array(name, shape=(4,), dtype="int32")
    document = json.loads(store._store_dict["bad/zarr.json"].to_bytes())
    del document[lacking]
    encoded = json.dumps(document).encode()
    store._store_dict["bad/zarr.json"] = default_buffer_prototype().buffer.from_bytes(encoded)
    with pytest.warns(ZarrUserWarning, match=f"Object at {lacking} is not recognized"):
        members = group.members()
    assert [name for name, _ in members] == ["good"]


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (b"{", json.JSONDecodeError),
        (b'{"zarr_format": 3, "node_type": "tree"}', ValueError),
    ],
)
def test_a_member_that_cannot_be_understood_is_not_missing(
    document: bytes, error: type[Exception]
) -> None:
    store = MemoryStore()
    group = zarr.create_group(store)
    group.create_group("good")
    store._store_dict["bad/zarr.json"] = default_buffer_prototype().buffer.from_bytes(document)
    with pytest.raises(error):
        group.members()


@pytest.mark.parametrize("kind", ["local", "zip"])
def test_a_short_read_of_a_file_is_not_taken_for_the_value(
    kind: str, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalStore(tmp_path / "files")
    array = zarr.create_array(
        files, shape=(16,), chunks=(2,), shards=(8,), dtype="int32", compressors=None
    )
    array[:] = np.arange(16)
    store: LocalStore | ZipStore = files
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
            for path in (tmp_path / "files").rglob("*"):
                archive.write(path, path.relative_to(tmp_path / "files"))
        store = ZipStore(tmp_path / "files.zip", mode="r")
    array = zarr.open_array(store, mode="r")
    pread, calls = os.pread, 0

    def short(file: int, size: int, start: int) -> bytes:
        nonlocal calls
        calls += 1
        return pread(file, size, start)[:-1]

    monkeypatch.setattr(os, "pread", short)
    np.testing.assert_array_equal(array[:], np.arange(16))
    np.testing.assert_array_equal(array[3:13], np.arange(3, 13))
    # `FusedCodecPipeline` reads from a `LocalStore` through `get_sync`, which calls no `pread`.
    assert (calls > 0) is not ((kind, pipeline) == ("local", "FusedCodecPipeline"))
    store.close()


def test_shards_are_read_with_the_step_of_the_selection() -> None:
    array = make_array(CancellingStore(), (4,))
    for step in (1, 2, 3, 5):
        np.testing.assert_array_equal(array[1:15:step], np.arange(1, 15, step))


def test_no_chunk_is_decoded_once_another_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    array = zarr.create_array(CancellingStore(), shape=(512, 4096), chunks=(1, 4096), dtype="uint8")
    array[:] = np.random.default_rng(0).integers(256, size=array.shape)  # enough for many threads
    lock, decoded, really_decode = threading.Lock(), 0, ZstdCodec._decode_sync

    def decode(*args: Any) -> Any:
        nonlocal decoded
        with lock:
            decoded += 1
            first = decoded == 1
        if first:
            raise ZeroDivisionError
        time.sleep(0.02)  # for the failure to be noticed
        return really_decode(*args)

    monkeypatch.setattr(ZstdCodec, "_decode_sync", decode)
    workers = {"threading.max_workers": 4, "codec_pipeline.max_workers": 4}
    with zarr.config.set(workers), pytest.raises(ZeroDivisionError):
        array[:]
    assert decoded <= 64


def test_shards_are_read_in_windows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarr.core._shard_plan.SHARDS_PLANNED", 2)
    asked: list[int] = []

    def read_many(store: Any, requests: Any, **options: Any) -> Any:
        asked.append(len(requests))
        return _read_many(store, requests, **options)

    monkeypatch.setattr("zarr.core._chunk_reads._read_many", read_many)
    array = make_array(CancellingStore(), (4,))
    asked.clear()
    np.testing.assert_array_equal(array[:], np.arange(16))
    assert asked == [2, 2]  # whole shards
    monkeypatch.setattr("zarr.core._shard_plan.NBYTES_PLANNED", 1)
    asked.clear()
    picked = np.array([1, 5, 9, 14])
    np.testing.assert_array_equal(array.oindex[picked], picked)
    assert asked == [1, 1] * 4  # an index, and a range
