"""How parts of shards are read: side by side, in order, and failing as they should.

The shards have 32 inner chunks, of which every second one is read, without merging.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from tests.event_loop import nothing_left_behind, turns
from zarr.abc.store import ByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline
from zarr.core.config import config
from zarr.core.dtype import Int32
from zarr.errors import ChunkNotFoundError
from zarr.storage import MemoryStore, StorePath

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator

    import numpy.typing as npt

    from zarr.core.buffer import Buffer, BufferPrototype


PROTOTYPE = default_buffer_prototype()
INNER = 32  # inner chunks of a shard
CHUNK = 4  # values of an inner chunk
SHARD = INNER * CHUNK
APART = slice(None, None, 2 * CHUNK)  # touches every second inner chunk
CODEC = ShardingCodec(chunk_shape=(CHUNK,), codecs=[BytesCodec()])
PIPELINES: list[type[BatchedCodecPipeline | FusedCodecPipeline]] = [
    BatchedCodecPipeline,
    FusedCodecPipeline,
]


def path_of(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.fixture(params=PIPELINES, ids=["batched", "fused"])
def pipeline(request: pytest.FixtureRequest) -> Generator[type[Any]]:
    """Which codec pipeline arrays get."""
    with config.set({"codec_pipeline.path": path_of(request.param)}):
        yield request.param


class Remote(MemoryStore):
    """A store without synchronous I/O. A test may meddle with its reads of shards."""

    _supports_sync_io = False

    def __init__(self) -> None:
        super().__init__()
        self.gets: list[tuple[str, ByteRequest | None]] = []
        self.meddle: Callable[[str, ByteRequest | None], Awaitable[None]] | None = None
        self.running = 0
        self.most_running = 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key.endswith(".json"):
            return await super().get(key, prototype, byte_range)
        self.gets.append((key, byte_range))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            if self.meddle is not None:
                await self.meddle(key, byte_range)
            return await super().get(key, prototype, byte_range)
        finally:
            self.running -= 1

    def replace(self, key: str, value: bytes) -> None:
        self._store_dict[key] = PROTOTYPE.buffer.from_bytes(value)


def is_index(byte_range: ByteRequest | None) -> bool:
    return isinstance(byte_range, SuffixByteRequest)


def sharded(
    store: Any, count: int = 3, *, gap: int = 0, codec: ShardingCodec = CODEC, **kwargs: Any
) -> tuple[zarr.Array[Any], npt.NDArray[Any]]:
    """An array of `count` shards, and what is in it."""
    coalescing = {"sharding_coalesce_max_gap_bytes": gap, **kwargs}
    data = np.arange(count * SHARD, dtype="int32")
    array = zarr.create_array(
        store,
        shape=data.shape,
        dtype=data.dtype,
        chunks=SHARD,
        fill_value=-1,
        serializer=codec,
        compressors=None,
        config=coalescing,  # type: ignore[arg-type]
    )
    array[...] = data
    store.gets = []
    return array, data


async def read(array: zarr.Array[Any], selection: Any = APART, **kwargs: Any) -> npt.NDArray[Any]:
    """Read on the event loop of the test."""
    return np.asarray(await array.async_array.get_orthogonal_selection(selection, **kwargs))


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


@dataclass(frozen=True)
class Getter:
    """A byte getter that is none of this package's."""

    path: StorePath

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self.path.get(prototype, byte_range)


async def read_array(array: zarr.Array[Any], store: Remote) -> npt.NDArray[Any]:
    return await read(array)


async def read_path(array: zarr.Array[Any], store: Remote, getter: Any = None) -> npt.NDArray[Any]:
    spec = ArraySpec((SHARD,), Int32(), np.int32(-1), array.config, PROTOTYPE)
    getter = getter or StorePath(store, "c/0")
    values = await CODEC._decode_partial_single(getter, (APART,), spec)
    assert values is not None
    return values.as_numpy_array()


async def read_getter(array: zarr.Array[Any], store: Remote) -> npt.NDArray[Any]:
    return await read_path(array, store, Getter(StorePath(store, "c/0")))


type Road = Callable[[zarr.Array[Any], Remote], Coroutine[Any, Any, npt.NDArray[Any]]]

ROADS: list[Road] = [read_array, read_path, read_getter]


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), ("default", 10), (None, 16)])
async def test_inner_chunks_are_fetched_side_by_side(
    road: Road, limit: int | str | None, expected: int
) -> None:
    store, gate = Remote(), asyncio.Event()
    array, data = sharded(store, 1)

    async def wait(key: str, byte_range: ByteRequest | None) -> None:
        if not is_index(byte_range):
            await gate.wait()

    store.meddle = wait
    with config.set({} if limit == "default" else {"async.concurrency": limit}):
        reading = asyncio.create_task(road(array, store))
        await turns()
        assert store.running == expected
        gate.set()
        np.testing.assert_array_equal(await reading, data[APART])
    assert store.most_running == expected
    assert Counter(is_index(at) for _, at in store.gets) == {True: 1, False: INNER // 2}


@pytest.mark.parametrize("road", [read_path, read_getter])
async def test_a_failing_fetch_ends_the_others(road: Road) -> None:
    store = Remote()
    array, _ = sharded(store, 1)

    async def fail(key: str, byte_range: ByteRequest | None) -> None:
        first = len(store.gets) == 2
        if not is_index(byte_range):
            await turns(10)
            if first:
                raise OSError("no more")
            await asyncio.Event().wait()

    store.meddle = fail
    with pytest.RaisesGroup(OSError, allow_unwrapped=True):
        await road(array, store)
    assert store.running == 0


@pytest.mark.parametrize("road", ROADS)
async def test_more_bytes_than_requested_are_an_error(road: Road) -> None:
    class IgnoresRanges(Remote):
        async def get(self, key: Any, prototype: Any = None, byte_range: Any = None) -> Any:
            return await super().get(key, prototype, byte_range if is_index(byte_range) else None)

    store = IgnoresRanges()
    array, _ = sharded(store, 1)
    with pytest.raises(OSError, match=r"Requested RangeByteRequest.*, but got \d+ bytes"):
        await road(array, store)


@pytest.mark.usefixtures("pipeline")
async def test_shards_are_read_side_by_side_and_reported_in_order() -> None:
    store, gate = Remote(), asyncio.Event()
    array, data = sharded(store)
    del store._store_dict["c/2"]
    data[2 * SHARD :] = -1

    async def wait(key: str, byte_range: ByteRequest | None) -> None:
        if key != "c/2":
            await gate.wait()

    store.meddle = wait
    for strict in (False, True):
        gate.clear()
        reading = asyncio.create_task(
            read(array.with_config({"read_missing_chunks": False}) if strict else array)
        )
        await turns()
        assert store.running == 2
        gate.set()
        if strict:
            with pytest.raises(ChunkNotFoundError, match="c/2"):
                await reading
        else:
            np.testing.assert_array_equal(await reading, data[APART])


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("error", [None, FileNotFoundError("gone"), OSError("down")])
async def test_a_shard_that_is_deleted_while_it_is_read_is_missing(error: Exception | None) -> None:
    """All of it, whatever has been read by then. Any other failure is a failure."""
    store = Remote()
    array, data = sharded(store)

    async def vanish(key: str, byte_range: ByteRequest | None) -> None:
        if key == "c/1" and len([at for at in store.gets if at[0] == key]) > 5:
            store._store_dict.pop(key, None)
            if error is not None:
                raise error

    store.meddle = vanish
    if isinstance(error, FileNotFoundError | None):
        data[SHARD : 2 * SHARD] = -1
        np.testing.assert_array_equal(await read(array), data[APART])
    else:
        with pytest.raises(ExceptionGroup) as caught:
            await read(array)
        assert caught.value.subgroup(FileNotFoundError) is None
        if "Batched" in config.get("codec_pipeline.path"):
            assert "While reading 'c/1' from memory://" in caught.value.__notes__[0]
    assert store.running == 0
