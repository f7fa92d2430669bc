"""Reads of whole chunks: codecs, subclasses, byte getters and selections of all kinds."""

# ruff: noqa: F811 -- fixtures of other modules

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")


import zarr
import zarr.api.asynchronous
from tests.event_loop import turns, until
from tests.test_codec_pipeline_get_many import (  # noqa: F401 -- fixtures
    CALLS,
    PIPELINES,
    AsyncCodec,
    ChunkStore,
    MakeReader,
    OwnPath,
    Reader,
    SyncCodec,
    Work,
    _nothing_left_behind,
    calls,
    road,
    threads,
    work,
    work_for_many,
)
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ScaleOffset,
    TransposeCodec,
    ZstdCodec,
)
from zarr.codecs import numcodecs as numcodecs_codecs
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline, _run_in_thread
from zarr.core.config import config
from zarr.errors import ChunkNotFoundError
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import (
        AsyncIterator,
        Generator,
        Iterable,
        Sequence,
    )

    import numpy.typing as npt

    from zarr.abc.store import ByteRequest
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype


class RecordingStore(MemoryStore):
    """Keeps what each `get_many` asked for. It has no synchronous I/O, as a remote store has none."""

    _supports_sync_io = False

    def __init__(self) -> None:
        super().__init__()
        self.many: list[list[str]] = []
        self.gets: list[str] = []

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.gets.append(key)
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        self.many.append([request for request in requests if isinstance(request, str)])
        assert len(self.many[-1]) == len(requests)
        # The last first, so that nobody can rely on the order.
        for index in reversed(range(len(requests))):
            yield [(index, await MemoryStore.get(self, self.many[-1][index], prototype))]

    def forget(self) -> None:
        self.many.clear()
        self.gets.clear()


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Generator[str]:
    """Which codec pipeline arrays get."""
    cls = PIPELINES[request.param]
    with config.set({"codec_pipeline.path": f"{cls.__module__}.{cls.__qualname__}"}):
        yield request.param


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


def assert_reads_back(
    store: RecordingStore, array: zarr.Array[Any], data: npt.NDArray[Any]
) -> None:
    """Write everything, read everything, and see that one request was made for it."""
    array[...] = data
    store.forget()
    result = array[...]
    np.testing.assert_array_equal(result, data)
    assert isinstance(result, np.ndarray)
    assert result.dtype == data.dtype or data.dtype == object
    assert len(store.many) == 1
    assert len(store.many[0]) == array.nchunks
    assert store.gets == []


DATA = np.arange(23 * 17, dtype="int32").reshape(23, 17)


CODECS_V3: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "default": {},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "zstd": {"compressors": ZstdCodec(checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "crc32c": {"compressors": Crc32cCodec()},
    "several": {"compressors": [ZstdCodec(), GzipCodec(), Crc32cCodec()]},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "transpose": {"filters": TransposeCodec(order=(1, 0)), "compressors": None},
    "numcodecs": {"compressors": numcodecs_codecs.LZ4()},
    "transpose-twice": {"filters": [TransposeCodec(order=(1, 0))] * 2},
    "scale-offset": {"filters": ScaleOffset(offset=7, scale=3)},
}


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("name", CODECS_V3)
def test_codecs(store: RecordingStore, name: str) -> None:
    array = zarr.create_array(
        store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype, **CODECS_V3[name]
    )
    assert_reads_back(store, array, DATA)


@pytest.fixture
def holey(store: RecordingStore, pipeline: str) -> tuple[zarr.Array[Any], npt.NDArray[Any]]:
    """An array some chunks of which are not there, and what it should look like."""
    array = zarr.create_array(
        store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype, fill_value=-1
    )
    expected = np.full_like(DATA, -1)
    for rows, columns in [
        (slice(0, 5), slice(0, 4)),
        (slice(5, 15), slice(4, 12)),
        (slice(20, 23), slice(12, 17)),
    ]:
        array[rows, columns] = expected[rows, columns] = DATA[rows, columns]
    store.forget()
    return array, expected


BASIC: list[Any] = [..., np.s_[3:19, 2:15], np.s_[::3, 1::5], 7, np.s_[:, 3], (6, 5), (-1, -1)]


@pytest.mark.parametrize("selection", BASIC, ids=repr)
def test_basic_selection(
    store: RecordingStore, holey: tuple[zarr.Array[Any], npt.NDArray[Any]], selection: Any
) -> None:
    array, expected = holey
    result = array[selection]
    np.testing.assert_array_equal(result, expected[selection])
    assert np.shape(result) == expected[selection].shape
    assert len(store.many) == 1
    assert len(set(store.many[0])) == len(store.many[0])


@pytest.mark.usefixtures("pipeline")
def test_missing_chunks_may_be_an_error(store: RecordingStore) -> None:
    array = zarr.create_array(
        store,
        shape=(6,),
        chunks=(2,),
        dtype="int32",
        config={"read_missing_chunks": False},
    )
    array[:2] = array[4:] = 1
    assert list(np.asarray(array[4:])) == [1, 1]
    with pytest.raises(ChunkNotFoundError, match="c/1"):
        array[...]


@pytest.mark.usefixtures("pipeline")
def test_a_get_that_was_replaced_sees_every_chunk() -> None:
    class Remote(MemoryStore):
        _supports_sync_io = False

    store = Remote()
    array = zarr.create_array(store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype)
    array[...] = DATA
    seen = []
    original = store.get

    async def get(key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        seen.append(key)
        return await original(key, *args, **kwargs)

    store.get = get  # type: ignore[method-assign]
    np.testing.assert_array_equal(array[...], DATA)
    assert len(seen) == array.nchunks


@dataclass(frozen=True)
class OverridesDecodeSingle(SyncCodec):  # type: ignore[misc, unused-ignore]
    """A synchronous codec whose subclass means something else by decoding."""

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS["_decode_single"] += 1
        return chunk_data


@dataclass(frozen=True)
class OverridesDecode(SyncCodec):  # type: ignore[misc, unused-ignore]
    """A synchronous codec whose subclass decodes batches."""

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        chunks = [chunk for chunk, _ in chunks_and_specs]
        CALLS["decode"] += len(chunks)
        self.work.batches.append(len(chunks))
        return chunks


@dataclass(frozen=True)
class OverridesBoth(SyncCodec):  # type: ignore[misc, unused-ignore]
    """A subclass that replaces both in step."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS["_decode_sync"] += 1
        return chunk_data

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS["_decode_single"] += 1
        return chunk_data


@pytest.mark.parametrize(
    ("codec", "method"),
    [
        (OverridesDecodeSingle, "_decode_single"),
        (OverridesDecode, "decode"),
        (OverridesBoth, "_decode_single"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value,
)
async def test_the_decoding_that_a_subclass_means_is_used(
    codec: type[SyncCodec], method: str, work: Work, calls: Counter[str]
) -> None:
    reader = Reader(ChunkStore(10), 10, codec(work), batch_size=3)
    await reader.read()
    assert calls == {method: 10}
    assert reader.values == list(range(10))
    assert all(size <= 3 for size in work.batches)


@pytest.mark.parametrize("count", [1, 10])
async def test_the_fused_pipeline_decodes_synchronously(
    count: int, work: Work, calls: Counter[str]
) -> None:
    """As it does for stores with synchronous I/O, however many chunks are read."""
    reader = Reader(ChunkStore(count), count, OverridesBoth(work), cls=FusedCodecPipeline)
    await reader.read()
    assert calls == {"_decode_sync": count}


@pytest.fixture(params=["batched", "fused"])
def batches(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    """The pipelines with a codec that is asynchronous."""
    cls = PIPELINES[request.param]
    return lambda store, count, **kwargs: Reader(store, count, AsyncCodec(work), cls=cls, **kwargs)


async def test_fetching_goes_on_while_a_chunk_is_decoded(road: MakeReader, work: Work) -> None:
    store = ChunkStore(10, closed=range(1, 10))
    work.held = {0}
    with config.set({"async.concurrency": 3}):
        reader = road(store, 10)
        task = reader.start()
        await until(lambda: work.decoded == [0])
        store.let(1, 2, 3)
        await until(lambda: len(store.started) >= 6)
        work.release.set()
        store.let(*range(10))
        await task
    assert reader.values == list(range(10))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
async def test_batches_are_no_larger_than_they_should_be(
    batches: MakeReader, work: Work, batch_size: int
) -> None:
    reader = batches(ChunkStore(10), 10, batch_size=batch_size)
    await reader.read()
    assert reader.values == list(range(10))
    assert sorted(work.decoded) == list(range(10))
    if isinstance(reader.pipeline, BatchedCodecPipeline):
        assert sum(work.batches) == 10
        assert max(work.batches) == min(10, batch_size)
        assert len(work.batches) == -(-10 // batch_size)


async def test_a_failing_codec_ends_the_decoding(threads: MakeReader, work: Work) -> None:
    """What waits in the queue is not decoded any more."""
    work.failures[0] = OSError("first")
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(50), 50).start()
        await until(lambda: work.decoded == [0])
        await turns(500)
        work.release.set()
        with pytest.raises(OSError, match="first"):
            await task
    assert work.decoded == [0]


async def test_a_group_that_the_store_raises_stays_a_group(road: MakeReader) -> None:
    error = ExceptionGroup("several", [OSError("one"), KeyError("two")])
    store = ChunkStore(5)
    store.fail(3, error)
    with pytest.raises(ExceptionGroup) as caught:
        await road(store, 5).read()
    assert caught.value is error


@pytest.mark.usefixtures("work_for_many")
async def test_a_codec_fails_while_the_read_waits_for_room(threads: MakeReader, work: Work) -> None:
    work.held = {0}
    work.failures[0] = OSError("not a valid stream")
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(100), 100).start()
        await until(lambda: work.decoded == [0])
        await turns(500)
        work.release.set()
        async with asyncio.timeout(10):
            with pytest.raises(OSError, match="not a valid stream"):
                await task


@pytest.mark.parametrize("count", [1, 5])
async def test_a_codec_that_is_cancelled_inside(road: MakeReader, work: Work, count: int) -> None:
    """What a codec awaits may be cancelled, and the read is not. Nothing is missing for that."""
    work.failures[0] = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await road(ChunkStore(count), count).read()


async def test_tasks_that_have_ended_are_let_go(road: MakeReader) -> None:
    class OneByOne(ChunkStore):  # type: ignore[misc]
        tasks = 0

        async def get_many(
            self, requests: Any, *, prototype: BufferPrototype, max_concurrency: int | None = None
        ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
            for index, key in enumerate(requests):
                yield ((index, await self.get(key, prototype)),)
                await asyncio.sleep(0.002)  # the chunk is decoded before the next arrives
            self.tasks = sum(isinstance(each, asyncio.Task) for each in gc.get_objects())

    store = OneByOne(100)
    await road(store, 100).read()
    assert 0 < store.tasks < 30


@pytest.mark.parametrize("limit", [3, None])
async def test_how_many_batches_are_decoded_at_once(work: Work, limit: int | None) -> None:
    work.held = set(range(10))
    with config.set({"async.concurrency": limit}):
        task = Reader(ChunkStore(10), 10, AsyncCodec(work)).start()
        await until(lambda: work.active == (limit or 10))
        await turns(100)
        work.release.set()
        await task
    assert work.most_active == (limit or 10)


async def test_a_thread_is_awaited_however_often_the_caller_is_cancelled() -> None:
    release = threading.Event()
    task = asyncio.create_task(_run_in_thread(None, release.wait, 30))
    await asyncio.sleep(0.02)
    for _ in range(3):
        task.cancel()
        await turns()
        assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_byte_getters_of_other_kinds_are_asked_concurrently() -> None:
    store = ChunkStore(10, closed=range(10))
    reader = Reader(store, 10)
    reader.batch = [(OwnPath(store, f"c/{n}"), *rest) for n, (_, *rest) in enumerate(reader.batch)]
    task = reader.start()
    await until(lambda: len(store.started) == 10)
    store.let(*range(10))
    assert await task == ["present"] * 10


class IteratorOnly:
    """An asynchronous iterator that cannot be closed."""

    def __init__(self, groups: AsyncIterator[Any]) -> None:
        self.groups = groups

    def __aiter__(self) -> IteratorOnly:
        return self

    async def __anext__(self) -> Any:
        return await anext(self.groups)


async def test_get_many_may_return_any_asynchronous_iterator() -> None:
    class Iterating(ChunkStore):  # type: ignore[misc]
        def get_many(self, *args: Any, **kwargs: Any) -> Any:
            return IteratorOnly(super().get_many(*args, **kwargs))

    assert await Reader(Iterating(10), 10).read() == ["present"] * 10
