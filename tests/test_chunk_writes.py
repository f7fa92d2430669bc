"""Tests for how chunks are written: what has to be merged with what is stored is read at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given, settings

import zarr
from tests.event_loop import nothing_left_behind, turns, until
from zarr.abc.store import RangeByteRequest
from zarr.codecs import TransposeCodec
from zarr.core._chunk_writes import FetchedSetter
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline
from zarr.core.config import config
from zarr.registry import register_pipeline
from zarr.storage import MemoryStore, StorePath
from zarr.testing.strategies import basic_indices, orthogonal_indices

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

PROTOTYPE = default_buffer_prototype()
PIPELINES = {"batched": BatchedCodecPipeline, "fused": FusedCodecPipeline}
DATA = np.arange(1, 1 + 20 * 20, dtype="int32").reshape(20, 20)
INSIDE = (slice(1, 19), slice(1, 19))
COMPLETE = {f"c/{row}/{column}" for row in (1, 2) for column in (1, 2)}
PARTIAL = {f"c/{row}/{column}" for row in range(4) for column in range(4)} - COMPLETE


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


class RemoteStore(MemoryStore):
    """A store without synchronous I/O, which keeps a record, and waits or fails when told to."""

    _supports_sync_io = False

    def __init__(self) -> None:
        super().__init__()
        self.many: list[set[str]] = []
        self.gets: list[str] = []
        self.sets: list[str] = []
        self.deleted: list[str] = []
        self.setting = self.most_setting = 0
        self.failures: dict[tuple[str, str], Exception] = {}
        self.let_set = asyncio.Event()
        self.let_set.set()
        self.between: Callable[[int], Any] | None = None

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.gets.append(key)
        self.raise_if_told("get", key)
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        keys = [request for request in requests if isinstance(request, str)]
        self.many.append(set(keys))
        assert len(self.many[-1]) == len(requests)
        # The last first, so that nobody can rely on the order.
        for count, index in enumerate(reversed(range(len(keys)))):
            if self.between is not None:
                await self.between(count)
            self.raise_if_told("get", keys[index])
            yield [(index, await MemoryStore.get(self, keys[index], prototype))]

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        self.sets.append(key)
        self.setting += 1
        self.most_setting = max(self.most_setting, self.setting)
        try:
            await self.let_set.wait()
            await asyncio.sleep(0)
            self.raise_if_told("set", key)
            await super().set(key, value, byte_range)
        finally:
            self.setting -= 1

    async def delete(self, key: str) -> None:
        self.deleted.append(key)
        await super().delete(key)

    def raise_if_told(self, what: str, key: str) -> None:
        if (what, key) in self.failures:
            raise self.failures[what, key]

    def forget(self) -> None:
        for record in (self.many, self.gets, self.sets, self.deleted):
            record.clear()
        self.most_setting = 0


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Generator[str]:
    """Which codec pipeline arrays get."""
    cls = PIPELINES[request.param]
    with config.set({"codec_pipeline.path": f"{cls.__module__}.{cls.__qualname__}"}):
        yield request.param


def create(store: RemoteStore, *, empty: bool = False, **options: Any) -> zarr.Array[Any]:
    """An array of 4 by 4 chunks that holds `DATA`, unless it is to be `empty`."""
    array = zarr.create_array(
        store, shape=DATA.shape, chunks=(5, 5), dtype=DATA.dtype, fill_value=0, **options
    )
    if not empty:
        array[...] = DATA
    store.forget()
    return array


def stored(store: RemoteStore) -> set[str]:
    return {key for key in store._store_dict if key.startswith("c/")}


async def write(array: zarr.Array[Any], selection: Any, value: Any) -> None:
    """Write in the event loop of the test."""
    await array.async_array.setitem(selection, value)


# ---------------------------------------------------------------------------
# What is asked for, and what is written
# ---------------------------------------------------------------------------


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_what_is_merged_is_read_with_one_get_many(empty: bool, batch_size: int) -> None:
    store = RemoteStore()
    with config.set({"codec_pipeline.batch_size": batch_size}):
        array = create(store, empty=empty)
        array[INSIDE] = -DATA[INSIDE]
    assert store.many == [PARTIAL]
    assert store.gets == []
    assert sorted(store.sets) == sorted(PARTIAL | COMPLETE)
    expected = np.zeros_like(DATA) if empty else DATA.copy()
    expected[INSIDE] = -DATA[INSIDE]
    np.testing.assert_array_equal(array[...], expected)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("selection", [..., slice(5, 15), (slice(None), slice(0, 10))], ids=repr)
def test_nothing_is_read_where_whole_chunks_are_overwritten(selection: Any) -> None:
    store = RemoteStore()
    array = create(store)
    array[selection] = -DATA[selection]
    assert (store.many, store.gets) == ([], [])
    expected = DATA.copy()
    expected[selection] = -DATA[selection]
    np.testing.assert_array_equal(array[...], expected)


@pytest.mark.usefixtures("pipeline")
def test_a_single_chunk_is_read_by_itself() -> None:
    store = RemoteStore()
    array = create(store)
    array[0:11, 0:5] = 7  # two chunks are overwritten, and a row of a third
    assert store.gets == [*store.many, "c/2/0"] == ["c/2/0"]
    assert sorted(store.sets) == ["c/0/0", "c/1/0", "c/2/0"]


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("write_empty_chunks", [False, True])
def test_chunks_that_become_empty(write_empty_chunks: bool) -> None:
    store = RemoteStore()
    array = create(store, config={"write_empty_chunks": write_empty_chunks})
    array[:, 1:5] = 0
    array[1:5, :] = 0
    store.forget()
    array[0:20, 0:7] = 0  # the first column of chunks, and a part of the second
    gone = set() if write_empty_chunks else {f"c/{row}/0" for row in range(4)}
    assert store.many == [{f"c/{row}/1" for row in range(4)}]
    assert (PARTIAL | COMPLETE) - stored(store) == gone == set(store.deleted)
    store.forget()
    array[1, 0:20] = array[0, 0:20] = 0
    assert np.all(array[0:5] == 0)
    assert ("c/0/0" in stored(store)) == write_empty_chunks


@pytest.mark.parametrize("pipeline_name", PIPELINES)
@pytest.mark.parametrize("zarr_format", [2, 3])
@settings(max_examples=40)
@given(data=st.data())
def test_writes_agree_with_numpy(pipeline_name: str, zarr_format: Any, data: st.DataObject) -> None:
    """Whatever is selected, whichever chunks are missing."""
    cls = PIPELINES[pipeline_name]
    store = RemoteStore()
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)), label="shape")
    expected = np.zeros(shape, dtype="int16")
    options: dict[str, Any] = {"config": {"write_empty_chunks": data.draw(st.booleans())}}
    if zarr_format == 3 and data.draw(st.booleans(), label="transposed"):
        options["filters"] = TransposeCodec(order=(1, 0))
    path = {"codec_pipeline.path": f"{cls.__module__}.{cls.__qualname__}"}
    with config.set({**path, "codec_pipeline.batch_size": data.draw(st.integers(1, 4))}):
        array = zarr.create_array(
            store,
            shape=shape,
            chunks=data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)), label="chunks"),
            dtype="int16",
            fill_value=0,
            zarr_format=zarr_format,
            **options,
        )
        for number in range(data.draw(st.integers(1, 4))):
            if data.draw(st.booleans(), label="basic"):
                index = in_numpy = data.draw(basic_indices(shape=shape, allow_ellipsis=False))
                value = values(expected[in_numpy], number)
                array[index] = value
            else:
                index, in_numpy = data.draw(orthogonal_indices(shape=shape))
                value = number  # an index may occur twice
                array.oindex[index] = value
            expected[in_numpy] = value
            assert all(len(keys) > 1 for keys in store.many)
        np.testing.assert_array_equal(array[...], expected)


def values(like: Any, number: int) -> Any:
    """What to write: a scalar, which may be the fill value, or something for each element."""
    if number in (1, 2):
        return number - 1
    return np.arange(1, 1 + np.size(like), dtype="int16").reshape(np.shape(like))


async def test_chunks_are_written_as_they_arrive() -> None:
    """The second of the chunks that are merged comes when the first has been written."""
    store = RemoteStore()

    async def between(count: int) -> None:
        await until(lambda: len(store.sets) >= count)

    with config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        array = create(store)
        store.between = between
        await write(array, (slice(1, 4), slice(None)), 7)
    assert store.many == [{f"c/0/{column}" for column in range(4)}]
    assert store.sets == [f"c/0/{column}" for column in (3, 2, 1, 0)]


async def test_a_pipeline_that_overrides_write_batch_sees_the_store_paths() -> None:
    """It reads what it has to merge in its own way."""
    seen: list[Any] = []

    class Asked(BatchedCodecPipeline):
        async def write_batch(self, batch_info: Any, value: Any, drop_axes: Any = ()) -> None:
            batch = list(batch_info)
            seen.append([setter for setter, *_ in batch])
            await super().write_batch(batch, value, drop_axes)

    register_pipeline(Asked)
    path = f"{Asked.__module__}.{Asked.__qualname__}"
    store = RemoteStore()
    with config.set({"codec_pipeline.path": path, "codec_pipeline.batch_size": 6}):
        array = create(store)
        seen.clear()
        await write(array, INSIDE, -DATA[INSIDE])
    assert sorted(map(len, seen)) == [4, 6, 6]
    assert {type(setter) for setters in seen for setter in setters} == {StorePath}
    assert store.many == []
    assert set(store.gets) == PARTIAL
    assert np.array_equal(array[INSIDE], -DATA[INSIDE])


# ---------------------------------------------------------------------------
# Limits, failures, cancellation
# ---------------------------------------------------------------------------


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("concurrency", [1, 3, 10])
@pytest.mark.parametrize("selection", [INSIDE, ...], ids=["merged", "complete"])
async def test_writes_at_once_are_limited(concurrency: int, selection: Any) -> None:
    store = RemoteStore()
    array = create(store)
    store.let_set.clear()
    with config.set({"async.concurrency": concurrency}):
        writing = asyncio.create_task(write(array, selection, -DATA[selection]))
        await until(lambda: store.setting == concurrency)
        await turns()
        assert len(store.sets) == concurrency
        store.let_set.set()
        await writing
    assert store.most_setting == concurrency
    assert np.array_equal(array[selection], -DATA[selection])


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("what", "key"), [("get", "c/0/2"), ("set", "c/0/2"), ("set", "c/1/1")], ids=repr
)
async def test_errors_are_raised_as_themselves(what: str, key: str, batch_size: int) -> None:
    store = RemoteStore()
    with config.set({"codec_pipeline.batch_size": batch_size}):
        array = create(store)
        store.failures[what, key] = error = OSError("no")
        with pytest.raises(OSError) as raised:
            await write(array, INSIDE, 7)
    assert raised.value is error


@pytest.mark.usefixtures("pipeline")
async def test_a_broken_chunk_is_an_error_and_stays() -> None:
    """It is not taken for a chunk that is missing."""
    store = RemoteStore()
    array = create(store)
    broken = store._store_dict["c/0/2"] = PROTOTYPE.buffer.from_bytes(b"broken")
    with pytest.raises(Exception, match=r"(?i)zstd|decompress|frame"):
        await write(array, INSIDE, 7)
    assert store._store_dict["c/0/2"] is broken


@pytest.mark.usefixtures("pipeline")
async def test_a_cancelled_write_leaves_nothing_behind() -> None:
    store = RemoteStore()
    array = create(store)
    store.let_set.clear()
    writing = asyncio.create_task(write(array, INSIDE, 7))
    await until(lambda: store.setting)
    await turns()
    begun = list(store.sets)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (store.sets, store.setting) == (begun, 0)


@pytest.mark.usefixtures("pipeline")
async def test_a_write_is_cancelled_while_it_reads() -> None:
    store = RemoteStore()
    array = create(store)
    waiting = asyncio.Event()

    async def between(count: int) -> None:
        if count == 5:
            waiting.set()
            await asyncio.Event().wait()

    store.between = between
    writing = asyncio.create_task(write(array, (slice(1, 19), slice(1, 4)), 7))
    writing_more = asyncio.create_task(write(array, INSIDE, 7))
    await waiting.wait()
    await writing  # four chunks are not so many that it would wait
    writing_more.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing_more
    assert PARTIAL.isdisjoint(store.deleted)


# ---------------------------------------------------------------------------
# FetchedSetter
# ---------------------------------------------------------------------------


async def test_a_value_that_was_read_is_not_read_again() -> None:
    store = RemoteStore()
    one, two = (PROTOTYPE.buffer.from_bytes(value) for value in (b"one", b"two"))
    path = StorePath(store, "key")
    setter = FetchedSetter(path, one)
    assert await setter.get(PROTOTYPE) is one
    await setter.set(two)
    assert store.gets == []
    part = await setter.get(PROTOTYPE, RangeByteRequest(1, 3))
    assert part is not None
    assert part.to_bytes() == b"wo"
    await setter.set_if_not_exists(one)
    assert store._store_dict["key"].to_bytes() == b"two"
    await setter.delete()
    assert store._store_dict == {}
    await setter.set_if_not_exists(one)
    assert store._store_dict["key"].to_bytes() == b"one"
