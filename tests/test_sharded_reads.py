"""Reads of shards: any codecs and selections, failures, cancellation, and codecs of others."""

# ruff: noqa: F811 -- fixtures of other modules

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

import zarr
from tests.event_loop import turns, until
from tests.test_codec_pipeline_get_many import (
    AsyncCodec,
    ForeignCodec,
    SyncCodec,
    Work,
)
from tests.test_codecs.test_sharding_get_many import (  # noqa: F401 -- a fixture
    APART,
    CHUNK,
    CODEC,
    INNER,
    PIPELINES,
    PROTOTYPE,
    SHARD,
    Remote,
    _nothing_left_behind,
    is_index,
    path_of,
    pipeline,
    read,
    sharded,
)
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    VLenUTF8Codec,
    ZstdCodec,
)
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.config import config
from zarr.core.dtype import Int32
from zarr.errors import ChunkNotFoundError
from zarr.storage import StorePath
from zarr.testing.strategies import basic_indices, block_indices, orthogonal_indices

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Generator,
        Sequence,
    )

    import numpy.typing as npt

    from zarr.abc.codec import Codec, GetResult
    from zarr.core.buffer import NDBuffer


def a_group_of(error: type[Exception]) -> Any:
    """Expect a group of one error or more of this type, as `get_ranges` raises it."""
    return pytest.raises(ExceptionGroup, check=lambda group: group.split(error)[1] is None)


DTYPES = ["int32", ">i2", "uint64", "float32", ">f8", "complex64", "datetime64[s]", "bool"]


STRINGS = ["S3", "U2", "str"]


STRUCT = "i2,f4"


def values_of(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    numbers = np.arange(int(np.prod(shape))).reshape(shape) % 7
    if name == "str":
        return numbers.astype("U1").astype(object)
    if name == STRUCT:
        data = np.zeros(shape, dtype=STRUCT)
        data["f0"], data["f1"] = numbers, numbers / 2
        return data
    return numbers.astype("U1" if name in STRINGS else "int64").astype(name)


@st.composite
def inner_codecs(draw: st.DrawFn, name: str, chunk: tuple[int, ...]) -> list[Codec]:
    bytes_codecs: list[list[Codec]] = [
        [],
        [ZstdCodec()],
        [BloscCodec(typesize=1)],
        [GzipCodec(), Crc32cCodec()],
    ]
    compressors = draw(st.sampled_from(bytes_codecs))
    if name == "str":
        return [VLenUTF8Codec(), *compressors]
    inside: list[Codec] = [BytesCodec(), *compressors]
    if draw(st.booleans()):
        inside = [TransposeCodec(order=tuple(reversed(range(len(chunk))))), *inside]
    if draw(st.integers(0, 4)) == 0:
        smaller = tuple(draw(st.sampled_from([n for n in (1, 2, 3) if s % n == 0])) for s in chunk)
        inside = [ShardingCodec(chunk_shape=smaller, codecs=inside)]
    return inside


@st.composite
def index_codecs(draw: st.DrawFn, ndim: int) -> list[Codec]:
    chains: list[list[Codec]] = [
        [BytesCodec(), Crc32cCodec()],
        [BytesCodec()],
        [BytesCodec(endian="big"), Crc32cCodec(), Crc32cCodec()],
        [TransposeCodec(order=tuple(reversed(range(ndim + 1)))), BytesCodec()],
    ]
    return draw(st.sampled_from(chains))


@st.composite
def stored(draw: st.DrawFn, store: Remote) -> tuple[zarr.Array[Any], npt.NDArray[Any]]:
    """An array with shards, some of them missing, and what it should look like."""
    name = draw(st.sampled_from([*DTYPES, *STRINGS, STRUCT]))
    shape = tuple(draw(st.lists(st.integers(1, 13), min_size=1, max_size=3)))
    chunk = tuple(draw(st.integers(1, 4)) for _ in shape)
    shards = tuple(size * draw(st.integers(1, 3)) for size in chunk)
    data = values_of(name, shape)
    fill = data.flat[draw(st.integers(0, 2)) % data.size]
    array = zarr.create_array(
        store,
        shape=shape,
        dtype=str if name == "str" else data.dtype,
        chunks=shards,
        fill_value=fill,
        serializer=ShardingCodec(
            chunk_shape=chunk,
            codecs=draw(inner_codecs(name, chunk)),
            index_codecs=draw(index_codecs(len(shape))),
            index_location=draw(st.sampled_from(["start", "end"])),
        ),
        compressors=None,
        config={
            "order": draw(st.sampled_from(["C", "F"])),
            "write_empty_chunks": draw(st.booleans()),
            "sharding_coalesce_max_gap_bytes": draw(st.sampled_from([0, 1 << 20])),
        },
    )
    expected = np.full(shape, fill, dtype=data.dtype)
    for region in draw(st.lists(basic_indices(shape=shape), max_size=2) | st.just([...])):
        array[region] = expected[region] = data[region]
    keys = sorted(store._store_dict.keys() - {"zarr.json"})
    for key in draw(st.sets(st.sampled_from(keys), max_size=2)) if keys else ():
        del store._store_dict[key]
        places = zip(map(int, key.split("/")[1:]), shards, strict=True)
        expected[tuple(slice(n * size, (n + 1) * size) for n, size in places)] = fill
    return array, expected


@st.composite
def selections(draw: st.DrawFn, array: zarr.Array[Any]) -> tuple[str, Any, Any]:
    """A way of indexing, the selection, and the same one as numpy takes it."""
    shape = array.shape
    way = draw(st.sampled_from(["basic", "oindex", "coordinates", "mask", "blocks"]))
    if way == "oindex":
        return way, *draw(orthogonal_indices(shape=shape))
    if way == "blocks":
        return way, *draw(block_indices(chunk_sizes=array.write_chunk_sizes))
    if way == "coordinates":
        like = draw(st.sampled_from([(1,), (9,), (2, 3)]))
        where = tuple(
            draw(npst.arrays("int64", like, elements=st.integers(-n, n - 1))) for n in shape
        )
        return "vindex", where, where
    if way == "mask":
        mask = draw(npst.arrays("bool", shape))
        return "vindex", mask, mask
    selection = draw(basic_indices(shape=shape))
    return "basic", selection, selection


@given(data=st.data(), pipeline=st.sampled_from(PIPELINES))
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_reads_agree_with_numpy(data: st.DataObject, pipeline: type[Any]) -> None:
    store = Remote()
    with config.set({"codec_pipeline.path": path_of(pipeline)}):
        array, expected = data.draw(stored(store))
        way, selection, same = data.draw(selections(array))
        result = np.asarray((array if way == "basic" else getattr(array, way))[selection])
    np.testing.assert_array_equal(result.astype(expected.dtype), expected[same])
    if result.ndim and expected.dtype != object:  # NumPy's scalars are in native byte order
        assert result.dtype == expected.dtype


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("selection", [(1, [0, 1, 7]), ([0, 1, 2, 7], 3), (slice(1, 9), 3)])
def test_axes_are_dropped(selection: Any) -> None:
    data = np.arange(10 * 12).reshape(10, 12)
    array = zarr.create_array(Remote(), data=data, chunks=(2, 2), shards=(4, 4))
    np.testing.assert_array_equal(np.asarray(array.oindex[selection]), data[selection])


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("selection", [..., np.s_[3:17, 1:], np.s_[::3, 2:9:2], np.s_[5, :]])
def test_out(layout: str, selection: Any) -> None:
    data = np.arange(20 * 12, dtype="int32").reshape(20, 12)
    array = zarr.create_array(Remote(), data=data, chunks=(3, 2), shards=(6, 4))
    shape = data[selection].shape
    if layout == "strided":
        place = np.zeros([2 * size for size in shape], "int32")[(np.s_[::2],) * len(shape)]
    else:
        place = np.zeros(shape, dtype="int32", order=layout)  # type: ignore[call-overload]
    array.get_basic_selection(selection, out=PROTOTYPE.nd_buffer.from_ndarray_like(place))
    np.testing.assert_array_equal(place, data[selection])


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("error", [None, FileNotFoundError("gone")])
@pytest.mark.parametrize("gap", [0, 1 << 20])
@pytest.mark.parametrize("gone", [{"c/1"}, {"c/0", "c/3"}])
async def test_a_shard_deleted_while_it_is_read_is_missing(
    gone: set[str], gap: int, error: Exception | None
) -> None:
    """All of it, whatever has been read by then."""
    store = Remote()
    array, data = sharded(store, 4, gap=gap)
    strict = array.with_config({"read_missing_chunks": False})

    async def vanish(key: str, byte_range: ByteRequest | None) -> None:
        if key in gone and isinstance(byte_range, RangeByteRequest) and byte_range.end > SHARD:
            store._store_dict.pop(key, None)
            if error is not None:
                raise error

    present = dict(store._store_dict)
    for key in gone:
        number = int(key[2:])
        data[number * SHARD : (number + 1) * SHARD] = -1
    store.meddle = vanish
    np.testing.assert_array_equal(await read(array), data[APART])
    assert store.running == 0
    store._store_dict.update(present)
    with pytest.raises(ChunkNotFoundError):
        await read(strict)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("of_index", [True, False], ids=["index", "ranges"])
@pytest.mark.parametrize("error", [OSError("down"), PermissionError("no"), ValueError("what")])
async def test_what_cannot_be_read_is_an_error(error: Exception, of_index: bool) -> None:
    """That of an index comes as it is, that of inner chunks in a group. Neither is a fill value."""
    store = Remote()
    array, _ = sharded(store)

    async def fail(key: str, byte_range: ByteRequest | None) -> None:
        if key == "c/1" and is_index(byte_range) == of_index:
            raise error

    store.meddle = fail
    with pytest.raises(type(error)) if of_index else a_group_of(type(error)):
        await read(array)
    assert store.running == 0


@pytest.mark.usefixtures("pipeline")
async def test_a_failure_next_to_a_deleted_shard_is_a_failure() -> None:
    store = Remote()
    array, _ = sharded(store)

    async def fail(key: str, byte_range: ByteRequest | None) -> None:
        if not is_index(byte_range) and key != "c/2":
            raise OSError("down") if key == "c/1" else FileNotFoundError(key)

    store.meddle = fail
    with pytest.raises(ExceptionGroup) as caught:
        await read(array)
    assert caught.value.subgroup(FileNotFoundError) is None
    assert store.running == 0


def flip(value: bytes, at: int) -> bytes:
    changed = bytearray(value)
    changed[at] ^= 0xFF
    return bytes(changed)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("selection", [slice(None), APART], ids=["whole", "parts"])
@pytest.mark.parametrize(
    "spoil",
    [lambda v: b"", lambda v: v[:100], lambda v: v[:-1], lambda v: flip(v, -5)],
    ids=["empty", "short", "shorter", "flipped"],
)
async def test_a_truncated_shard_is_an_error(
    spoil: Callable[[bytes], bytes], selection: slice
) -> None:
    store = Remote()
    array, _ = sharded(store)
    store.replace("c/1", spoil(store._store_dict["c/1"].to_bytes()))
    with pytest.raises(ValueError, match=r"too short|[Cc]hecksum"):
        await read(array, selection)


def with_codec(*codecs: Codec, index_codecs: Sequence[Codec] = ()) -> ShardingCodec:
    return ShardingCodec(
        chunk_shape=(CHUNK,),
        codecs=[BytesCodec(), *codecs],
        index_codecs=[BytesCodec(), *index_codecs, Crc32cCodec()],
    )


EXPECTED = np.arange(3 * SHARD, dtype="int32")[APART]


class Direct:
    """A read, by a pipeline, of every second inner chunk of three shards."""

    def __init__(
        self, store: Any, pipeline: type[Any], codec: Codec = CODEC, *, batch_size: int = 1
    ) -> None:
        spec = ArraySpec(
            (SHARD,),
            Int32(),
            np.int32(-1),
            ArrayConfig("C", False, sharding_coalesce_max_gap_bytes=0),
            PROTOTYPE,
        )
        self.pipeline = pipeline.from_codecs([codec], batch_size=batch_size)
        self.pipeline = self.pipeline.evolve_from_array_spec(spec)
        places = [slice(n * INNER // 2, (n + 1) * INNER // 2) for n in range(3)]
        self.batch: list[Any] = [
            (StorePath(store, f"c/{n}"), spec, (APART,), (place,), False)
            for n, place in enumerate(places)
        ]
        self.array = np.full(3 * INNER // 2, 99, dtype="int32")

    async def read(self) -> list[str]:
        out: NDBuffer = PROTOTYPE.nd_buffer.from_ndarray_like(self.array)
        results: tuple[GetResult, ...] = await self.pipeline.read(self.batch, out)
        return [result["status"] for result in results]


async def assert_reads(read: Direct) -> None:
    assert await read.read() == ["present"] * 3
    np.testing.assert_array_equal(read.array, EXPECTED)


@pytest.fixture
def work() -> Generator[Work]:
    work = Work()
    yield work
    work.release.set()


@pytest.mark.parametrize("held", ["index", "ranges"])
@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_is_in_flight_after_a_read(pipeline: Any, held: str, fails: bool) -> None:
    store = Remote()
    sharded(store)

    async def hold(key: str, byte_range: ByteRequest | None) -> None:
        if is_index(byte_range) == (held == "index"):
            if fails and key == "c/0":
                await turns(30)
                raise OSError("down")
            await asyncio.Event().wait()

    store.meddle = hold
    read = Direct(store, pipeline)
    reading = asyncio.create_task(read.read())
    await turns(20)
    assert store.running > 1
    if not fails:
        reading.cancel()
    with (
        pytest.raises(OSError)
        if fails and held == "index"
        else a_group_of(OSError)
        if fails
        else pytest.raises(asyncio.CancelledError)
    ):
        await reading
    assert store.running == 0
    assert (read.array == 99).all()


@pytest.mark.parametrize("fails", [False, True])
async def test_no_thread_writes_after_a_read(work: Work, fails: bool) -> None:
    """A thread can't be cancelled: the read waits for those that decode."""
    store, gate = Remote(), asyncio.Event()
    sharded(store)

    async def hold(key: str, byte_range: ByteRequest | None) -> None:
        if key == "c/2" and not is_index(byte_range):
            await gate.wait()
            raise OSError("down")

    store.meddle = hold
    work.held = set(range(3 * SHARD))
    read = Direct(store, BatchedCodecPipeline, with_codec(SyncCodec(work)))
    reading = asyncio.create_task(read.read())
    await until(lambda: work.decoded)
    gate.set() if fails else reading.cancel()
    await turns()
    assert not reading.done()
    assert threading.get_ident() not in work.threads
    work.release.set()
    with a_group_of(OSError) if fails else pytest.raises(asyncio.CancelledError):
        await reading
    at_the_end = read.array.copy()
    await asyncio.sleep(0.02)
    np.testing.assert_array_equal(read.array, at_the_end)


@pytest.mark.parametrize("codec", [SyncCodec, ForeignCodec, AsyncCodec])
async def test_a_failing_codec_ends_the_read(pipeline: Any, work: Work, codec: Any) -> None:
    store = Remote()
    sharded(store)
    work.failures[SHARD] = ArithmeticError("no sense")
    with pytest.raises(ArithmeticError, match="no sense"):
        await Direct(store, pipeline, with_codec(codec(work))).read()
    assert work.active == 0
    assert store.running == 0


async def test_a_store_that_is_no_store(pipeline: Any) -> None:
    store = Remote()
    sharded(store)
    del store._store_dict["c/1"]
    mock = AsyncMock(wraps=store, spec=Remote)
    mock._supports_sync_io = False
    read = Direct(mock, pipeline)
    assert await read.read() == ["present", "missing", "present"]
    assert [call.args[0] for call in mock.get.call_args_list] == ["c/0", "c/1", "c/2"]
    assert {call.args[0] for call in mock.get_ranges.call_args_list} == {"c/0", "c/2"}
    assert read.array[-1] == EXPECTED[-1]


async def test_a_store_with_its_own_get_sees_every_read(pipeline: Any) -> None:
    store = Remote()
    sharded(store)
    await assert_reads(Direct(store, pipeline))
    assert Counter(key for key, _ in store.gets) == dict.fromkeys(
        ["c/0", "c/1", "c/2"], 1 + INNER // 2
    )


async def test_a_get_ranges_that_was_replaced_is_called(pipeline: Any) -> None:
    store = Remote()
    sharded(store)
    ranges = Mock(wraps=store.get_ranges)
    store.get_ranges = ranges  # type: ignore[method-assign, unused-ignore]
    await assert_reads(Direct(store, pipeline))
    assert ranges.call_count == 3


class OtherSharding(ShardingCodec):
    """Reads parts of shards through a method of its own."""

    calls: ClassVar[list[str]] = []

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, shard_spec: ArraySpec
    ) -> NDBuffer | None:
        self.calls.append(byte_getter.path)
        return await super()._decode_partial_single(byte_getter, selection, shard_spec)


async def test_a_subclass_of_the_codec_reads_in_its_own_way(pipeline: Any) -> None:
    store = Remote()
    sharded(store)
    OtherSharding.calls.clear()
    codec = OtherSharding(chunk_shape=(CHUNK,), codecs=[BytesCodec()])
    await assert_reads(Direct(store, pipeline, codec))
    assert sorted(OtherSharding.calls) == ["c/0", "c/1", "c/2"]


@pytest.mark.parametrize("codec", [ForeignCodec, AsyncCodec])
@pytest.mark.parametrize("of_index", [False, True])
async def test_codecs_of_others_are_used(
    pipeline: Any, work: Work, codec: Any, of_index: bool
) -> None:
    store = Remote()
    sharded(store, codec=with_codec())
    mine = with_codec(index_codecs=[codec(work)]) if of_index else with_codec(codec(work))
    await assert_reads(Direct(store, pipeline, mine))
    assert len(work.decoded) == (3 if of_index else len(EXPECTED))


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("selection", [slice(None), slice(0, 2), slice(0, 3)])
@pytest.mark.parametrize("entry", [(2**64 - 1, 4), (3, 2**64 - 1)])
def test_half_an_entry_of_a_shard_index_is_no_missing_chunk(
    selection: slice, entry: tuple[int, int]
) -> None:
    store = Remote()
    array = zarr.create_array(
        store, shape=(4,), chunks=(2,), shards={"shape": (4,), "index_location": "end"},
        dtype="int32", fill_value=-1, compressors=None,
    )  # fmt: skip
    codec: Any = array.metadata.codecs[0]  # type: ignore[union-attr]
    object.__setattr__(codec, "index_codecs", codec.index_codecs[:1])
    array[:] = np.arange(4)
    stored = bytearray(store._store_dict["c/0"].to_bytes())
    stored[16:32] = np.array(entry, dtype="<u8").tobytes()
    store.replace("c/0", bytes(stored))
    with pytest.raises((ValueError, OverflowError, RuntimeError, ExceptionGroup)):
        array[selection]


@pytest.mark.parametrize("is_nested", [False, True])
async def test_inner_chunks_in_memory_take_no_task_each(is_nested: bool) -> None:
    inner = ShardingCodec(chunk_shape=(8, 8))
    codec = ShardingCodec(chunk_shape=(64, 64), codecs=[inner]) if is_nested else inner
    array = await asyncio.to_thread(
        zarr.create_array,
        {},
        shape=(128, 128),
        chunks=(128, 128),
        dtype="int32",
        serializer=codec,
        compressors=None,
    )
    await asyncio.to_thread(array.__setitem__, ..., 1)
    loop, tasks = asyncio.get_running_loop(), list[str]()

    def make(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        tasks.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(make)
    try:
        found = await array.async_array.getitem((slice(1, 127), slice(1, 127)))
        tasks_of_a_part = len(tasks)
        whole = await array.async_array.getitem(...)
    finally:
        loop.set_task_factory(None)
    assert np.all(found == 1)
    assert np.all(whole == 1)
    assert len(tasks) - tasks_of_a_part < 64, Counter(tasks)
    if is_nested:
        assert tasks_of_a_part < 64, Counter(tasks)
