"""Tests for how the codec pipelines read whole chunks: one `get_many`, decoding as bytes arrive.

The first part reads arrays and compares what comes out with numpy: every codec, data type and way
of indexing. The second part runs a pipeline on chunks that a store hands out one by one, and on
codecs that tell when, where and in what company they are called.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given, settings

import zarr
import zarr.api.asynchronous
from tests.event_loop import nothing_left_behind, turns, until
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import Store
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    CastValue,
    Crc32cCodec,
    GzipCodec,
    ScaleOffset,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.codecs import numcodecs as numcodecs_codecs
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline
from zarr.core.config import config
from zarr.core.dtype import Int32
from zarr.errors import ChunkNotFoundError
from zarr.storage import LocalStore, MemoryStore, StorePath
from zarr.testing.store import LatencyStore
from zarr.testing.strategies import basic_indices

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Generator,
        Iterable,
        Sequence,
    )
    from pathlib import Path

    import numpy.typing as npt

    from zarr.abc.codec import Codec, GetResult
    from zarr.abc.store import ByteGetter, ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer

PROTOTYPE = default_buffer_prototype()

PIPELINES: dict[str, type[BatchedCodecPipeline | FusedCodecPipeline]] = {
    "batched": BatchedCodecPipeline,
    "fused": FusedCodecPipeline,
}


# ---------------------------------------------------------------------------
# What is read is what was written
# ---------------------------------------------------------------------------


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
    "transpose-twice": {"filters": [TransposeCodec(order=(1, 0))] * 2},
    "scale-offset": {"filters": ScaleOffset(offset=7, scale=3)},
}
NUMCODECS: dict[str, dict[str, Any]] = {
    "Delta": {"filters": numcodecs_codecs.Delta(dtype="int32")},
    "FixedScaleOffset": {
        "filters": numcodecs_codecs.FixedScaleOffset(
            offset=0, scale=1, dtype="int32", astype="int64"
        )
    },
    "AsType": {"filters": numcodecs_codecs.AsType(encode_dtype="int64", decode_dtype="int32")},
    "Quantize": {
        "filters": numcodecs_codecs.Quantize(digits=3, dtype="float64"),
        "data": DATA.astype("float64"),
    },
    "BitRound": {
        "filters": numcodecs_codecs.BitRound(keepbits=23),
        "data": DATA.astype("float32"),
    },
    "PackBits": {"filters": numcodecs_codecs.PackBits(), "data": DATA % 3 == 0},
    **{
        name: {"compressors": getattr(numcodecs_codecs, name)()}
        for name in [
            "BZ2",
            "LZ4",
            "LZMA",
            "Zlib",
            "GZip",
            "Zstd",
            "Blosc",
            "Shuffle",
            "CRC32",
            "CRC32C",
            "Adler32",
            "Fletcher32",
            "JenkinsLookup3",
        ]
    },
}


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("name", [*CODECS_V3, *NUMCODECS])
def test_codecs(store: RecordingStore, name: str) -> None:
    arguments = dict((CODECS_V3 | NUMCODECS)[name])
    data = arguments.pop("data", DATA)
    array = zarr.create_array(
        store, shape=data.shape, chunks=(5, 4), dtype=data.dtype, fill_value=0, **arguments
    )
    assert_reads_back(store, array, data)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("name", ["PCodec", "ZFPY"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_optional_serializers(store: RecordingStore, name: str) -> None:
    pytest.importorskip("pcodec" if name == "PCodec" else "zfpy")
    data = DATA.astype("float64")
    array = zarr.create_array(
        store,
        shape=data.shape,
        chunks=(5, 4),
        dtype=data.dtype,
        serializer=getattr(numcodecs_codecs, name)(),
    )
    assert_reads_back(store, array, data)


@pytest.mark.usefixtures("pipeline")
def test_cast_value(store: RecordingStore) -> None:
    pytest.importorskip("cast_value_rs")
    array = zarr.create_array(
        store,
        shape=DATA.shape,
        chunks=(5, 4),
        dtype=DATA.dtype,
        filters=[CastValue(data_type="float64"), TransposeCodec(order=(1, 0))],
    )
    assert_reads_back(store, array, DATA)


@pytest.mark.usefixtures("pipeline")
def test_a_compressed_shard_is_read_whole(store: RecordingStore) -> None:
    """With a compressor outside of the shard, shards are chunks like any others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            store,
            shape=DATA.shape,
            chunks=(10, 8),
            dtype=DATA.dtype,
            serializer=ShardingCodec(chunk_shape=(5, 4)),
            compressors=ZstdCodec(),
        )
        assert_reads_back(store, array, DATA)


CODECS_V2: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "default": {},
    "zstd": {"compressors": {"id": "zstd"}},
    "blosc": {"compressors": {"id": "blosc"}},
    "gzip": {"compressors": {"id": "gzip"}},
    "filters": {
        "filters": [{"id": "delta", "dtype": "<i4"}, {"id": "shuffle", "elementsize": 4}],
        "compressors": {"id": "lz4"},
    },
    "order-f": {"order": "F"},
}


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("name", CODECS_V2)
def test_codecs_v2(store: RecordingStore, name: str) -> None:
    import numcodecs

    arguments = dict(CODECS_V2[name])
    if arguments.get("compressors"):
        arguments["compressors"] = numcodecs.get_codec(arguments["compressors"])
    if "filters" in arguments:
        arguments["filters"] = [numcodecs.get_codec(each) for each in arguments["filters"]]
    array = zarr.create_array(
        store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype, zarr_format=2, **arguments
    )
    assert_reads_back(store, array, DATA)


SIMPLE_STRUCT = np.array(
    [(index, index / 2) for index in range(20)], dtype=[("number", "<i4"), ("half", "<f8")]
)

DTYPES: dict[str, npt.NDArray[Any]] = {
    **{
        dtype: np.arange(20).astype(dtype)
        for dtype in [
            *("bool", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
            *(">i4", ">f8", "datetime64[ns]", "timedelta64[s]"),
        ]
    },
    **{dtype: np.array([f"{i}" for i in range(20)], dtype=dtype) for dtype in ["U3", ">U2", "S4"]},
    "V3": np.array([bytes([1, index, 2]) for index in range(20)], dtype="V3"),
    "struct": SIMPLE_STRUCT,
}


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(store: RecordingStore, dtype: str, zarr_format: Any) -> None:
    data = DTYPES[dtype]
    array = zarr.create_array(
        store, shape=data.shape, chunks=3, dtype=data.dtype, zarr_format=zarr_format
    )
    assert_reads_back(store, array, data)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_variable_length_strings(store: RecordingStore, zarr_format: Any, compressed: bool) -> None:
    data = np.array([f"{'é' * index}{index}" for index in range(20)], dtype=object)
    array = zarr.create_array(
        store,
        shape=20,
        chunks=3,
        dtype=str,
        zarr_format=zarr_format,
        compressors="auto" if compressed else None,
    )
    array[...] = data
    store.forget()
    assert list(np.asarray(array[...])) == list(data)
    assert len(store.many) == 1


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_variable_length_bytes(store: RecordingStore, zarr_format: Any) -> None:
    data = np.array([bytes([index]) * index for index in range(20)], dtype=object)
    dtype = zarr.dtype.VariableLengthBytes()
    array = zarr.create_array(store, shape=20, chunks=3, dtype=dtype, zarr_format=zarr_format)
    assert_reads_back(store, array, data)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_order_of_the_result(store: RecordingStore, order: Any, zarr_format: Any) -> None:
    kwargs: dict[str, Any] = {"order": order} if zarr_format == 2 else {"config": {"order": order}}
    array = zarr.create_array(
        store,
        shape=DATA.shape,
        chunks=(5, 4),
        dtype=DATA.dtype,
        zarr_format=zarr_format,
        **kwargs,
    )
    array[...] = DATA
    result = array[...]
    assert isinstance(result, np.ndarray)
    assert result.flags.f_contiguous == (order == "F")
    np.testing.assert_array_equal(result, DATA)


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


BASIC: list[Any] = [
    ...,
    slice(None),
    (slice(3, 19), slice(2, 15)),
    (slice(0, 5), slice(0, 4)),
    (slice(None, None, 3), slice(1, None, 5)),
    (slice(-9, -2), slice(-4, None)),
    7,
    -1,
    (slice(None), 3),
    (6, slice(2, 11)),
    (6, 5),
    (-1, -1),
    (0, 16),
    (slice(11, 12), slice(5, 6)),
    (..., 0),
]


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


EMPTY: list[Any] = [slice(3, 3), (slice(None), slice(9, 2)), (slice(30, 40), 0)]


@pytest.mark.parametrize("selection", EMPTY, ids=repr)
def test_empty_selection(
    store: RecordingStore, holey: tuple[zarr.Array[Any], npt.NDArray[Any]], selection: Any
) -> None:
    array, expected = holey
    result = array[selection]
    assert isinstance(result, np.ndarray)
    assert result.shape == expected[selection].shape
    assert store.many == []


ORTHOGONAL: list[Any] = [
    ([1, 8, 20], [0, 5, 16]),
    ([20, 3, 3], slice(2, 9)),
    (slice(2, 20, 3), [16, 1]),
    ([0, 22], 4),
    ([1, 2, 3, 8], 4),
    (7, [0, 1, 2, 16]),
    (-1, slice(2, 11)),
    (np.arange(23) % 4 == 0, np.arange(17) % 5 == 1),
    ([-1, -23], [-17, -2]),
]


@pytest.mark.parametrize("selection", ORTHOGONAL, ids=range(len(ORTHOGONAL)))
def test_orthogonal_selection(
    store: RecordingStore, holey: tuple[zarr.Array[Any], npt.NDArray[Any]], selection: Any
) -> None:
    array, expected = holey
    axes = [np.arange(size)[part] for size, part in zip(DATA.shape, selection, strict=True)]
    wanted = expected[np.ix_(*(np.atleast_1d(axis) for axis in axes))]
    wanted = wanted.reshape([axis.size for axis in axes if axis.ndim])
    np.testing.assert_array_equal(array.oindex[selection], wanted)
    assert len(store.many) == 1


COORDINATES: list[Any] = [
    ([1, 8, 20, 8, 0], [0, 5, 16, 5, 16]),
    ([[3, 4], [22, 0]], [[1, 1], [2, 9]]),
    ([6], [6]),
    (5, [1, 9, 2]),
    ([-1, 0], [0, -1]),
]


@pytest.mark.parametrize("selection", COORDINATES, ids=range(len(COORDINATES)))
def test_coordinate_selection(
    store: RecordingStore, holey: tuple[zarr.Array[Any], npt.NDArray[Any]], selection: Any
) -> None:
    array, expected = holey
    np.testing.assert_array_equal(
        array.get_coordinate_selection(selection),
        expected[tuple(np.asarray(part) for part in selection)],
    )
    assert len(store.many) == 1


@pytest.mark.parametrize("modulus", [1, 2, 7, 100])
def test_mask_selection(
    store: RecordingStore, holey: tuple[zarr.Array[Any], npt.NDArray[Any]], modulus: int
) -> None:
    array, expected = holey
    mask = DATA % modulus == 0
    np.testing.assert_array_equal(array.get_mask_selection(mask), expected[mask])
    assert len(store.many) == 1


@pytest.mark.parametrize(
    ("selection", "region"),
    [
        ((1, 2), (slice(5, 10), slice(8, 12))),
        ((slice(1, 3), 0), (slice(5, 15), slice(0, 4))),
        ((-1, -1), (slice(20, 23), slice(16, 17))),
        ((slice(None), slice(3, 5)), (slice(None), slice(12, 17))),
    ],
    ids=range(4),
)
def test_block_selection(
    store: RecordingStore,
    holey: tuple[zarr.Array[Any], npt.NDArray[Any]],
    selection: Any,
    region: Any,
) -> None:
    array, expected = holey
    np.testing.assert_array_equal(array.blocks[selection], expected[region])
    assert len(store.many) == 1


@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_fields(store: RecordingStore, zarr_format: Any) -> None:
    array = zarr.create_array(
        store, shape=20, chunks=3, dtype=SIMPLE_STRUCT.dtype, zarr_format=zarr_format
    )
    array[...] = SIMPLE_STRUCT
    store.forget()
    fields = ["number", "half"]
    np.testing.assert_array_equal(array.get_basic_selection(fields=fields), SIMPLE_STRUCT)
    result = array.get_basic_selection(slice(4, 13), fields=fields)
    np.testing.assert_array_equal(result, SIMPLE_STRUCT[4:13])
    assert len(store.many) == 2


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_no_dimensions(store: RecordingStore, zarr_format: Any) -> None:
    array = zarr.create_array(
        store, shape=(), chunks=(), dtype="int32", fill_value=3, zarr_format=zarr_format
    )
    assert array[()] == 3
    array[...] = 42
    store.forget()
    assert array[()] == array[...] == 42
    assert len(store.many) == 2


@pytest.mark.usefixtures("pipeline")
def test_no_elements(store: RecordingStore) -> None:
    array = zarr.create_array(store, shape=(0, 5), chunks=(1, 2), dtype="int32")
    store.forget()
    assert np.shape(array[...]) == (0, 5)
    assert store.many == []


@pytest.mark.usefixtures("pipeline")
def test_rectilinear_chunks(store: RecordingStore) -> None:
    """Chunks of different shapes are decoded by different specs."""
    with config.set({"array.rectilinear_chunks": True}):
        array = zarr.create_array(
            store,
            shape=DATA.shape,
            chunks=[[3, 9, 1, 10], [4, 12, 1]],
            dtype=DATA.dtype,
            filters=TransposeCodec(order=(1, 0)),
        )
        assert_reads_back(store, array, DATA)
        np.testing.assert_array_equal(array[2:14, 3:17:2], DATA[2:14, 3:17:2])


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("fill_value", [0, 7])
def test_all_chunks_missing(store: RecordingStore, fill_value: int) -> None:
    array = zarr.create_array(
        store, shape=DATA.shape, chunks=(5, 4), dtype="int32", fill_value=fill_value
    )
    store.forget()
    np.testing.assert_array_equal(array[...], np.full(DATA.shape, fill_value))
    assert len(store.many) == 1


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


@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_out(holey: tuple[zarr.Array[Any], npt.NDArray[Any]], layout: str) -> None:
    array, expected = holey
    memory = np.full((46, 34), 99, dtype="int32", order="F" if layout == "F" else "C")
    target = {
        "C": memory[:23, :17],
        "F": memory[:23, :17],
        "strided": memory[::2, ::2],
        "reversed": memory[22::-1, 16::-1],
    }[layout]
    out = PROTOTYPE.nd_buffer.from_ndarray_like(target)
    array.get_basic_selection(..., out=out)
    np.testing.assert_array_equal(target, expected)
    target[...] = 99
    assert (memory == 99).all()


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_one_request_whatever_the_batch_size(
    store: RecordingStore, pipeline: str, batch_size: int
) -> None:
    """`codec_pipeline.batch_size` governs decoding alone."""
    with config.set({"codec_pipeline.batch_size": batch_size, "async.concurrency": 2}):
        array = zarr.create_array(store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype)
        assert_reads_back(store, array, DATA)


def test_partial_writes(holey: tuple[zarr.Array[Any], npt.NDArray[Any]]) -> None:
    """Writing parts of chunks merges with what is there, and with the fill value."""
    array, expected = holey
    selections: list[Any] = [np.s_[2:9, 1:14], np.s_[7, :], np.s_[:, 16], np.s_[22, 0]]
    for selection in selections:
        array[selection] = expected[selection] = expected[selection] * 2 + 1000
        np.testing.assert_array_equal(array[...], expected)
    array.set_coordinate_selection(([0, 9, 22], [16, 3, 1]), [1, 2, 3])
    expected[[0, 9, 22], [16, 3, 1]] = [1, 2, 3]
    np.testing.assert_array_equal(array[...], expected)


@pytest.mark.usefixtures("pipeline")
def test_many_readers() -> None:
    """Threads that read the same array do not disturb one another."""
    array = zarr.create_array(RecordingStore(), shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype)
    array[...] = DATA
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: array[...], range(32)):
            np.testing.assert_array_equal(result, DATA)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("max_workers", [None, 1])
async def test_one_thread_is_enough(tmp_path: Path, max_workers: int | None) -> None:
    """Reading a file needs a thread, decoding does, and here is one for all of it."""
    executor = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    with config.set({"threading.max_workers": max_workers}):
        array = await zarr.api.asynchronous.create_array(
            LocalStore(tmp_path), shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype
        )
        await array.setitem(..., DATA)
        async with asyncio.timeout(60):
            for result in await asyncio.gather(*(array.getitem(...) for _ in range(5))):
                np.testing.assert_array_equal(result, DATA)


@pytest.mark.usefixtures("pipeline")
def test_a_store_that_overrides_get_sees_every_chunk() -> None:
    class Doubling(MemoryStore):
        _supports_sync_io = False

        async def get(
            self,
            key: str,
            prototype: BufferPrototype | None = None,
            byte_range: ByteRequest | None = None,
        ) -> Buffer | None:
            value = await super().get(key, prototype, byte_range)
            if value is None or key.endswith("zarr.json"):
                return value
            doubled = np.frombuffer(value.to_bytes(), "<i4") * 2
            return PROTOTYPE.buffer.from_bytes(doubled.astype("<i4").tobytes())

    array = zarr.create_array(
        Doubling(), shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype, compressors=None
    )
    array[...] = DATA
    np.testing.assert_array_equal(array[...], DATA * 2)


@pytest.mark.usefixtures("pipeline")
def test_a_get_that_was_replaced_sees_every_chunk(store: RecordingStore) -> None:
    array = zarr.create_array(store, shape=DATA.shape, chunks=(5, 4), dtype=DATA.dtype)
    array[...] = DATA
    store.forget()
    seen = []
    original = store.get

    async def get(key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        seen.append(key)
        return await original(key, *args, **kwargs)

    store.get = get  # type: ignore[method-assign]
    np.testing.assert_array_equal(array[...], DATA)
    assert len(seen) == array.nchunks
    assert store.many == []


@given(data=st.data())
@settings(max_examples=40)
def test_reads_agree_with_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    cls = PIPELINES[data.draw(st.sampled_from(sorted(PIPELINES)))]
    compressors: Any = data.draw(st.sampled_from([None, "auto"]))
    order: Any = data.draw(st.sampled_from(["C", "F"]))
    expected = np.arange(np.prod(shape), dtype="int16").reshape(shape) % 5
    store = RecordingStore()
    with config.set({"codec_pipeline.path": f"{cls.__module__}.{cls.__qualname__}"}):
        array = zarr.create_array(
            store,
            shape=shape,
            chunks=chunks,
            dtype="int16",
            fill_value=3,
            compressors=compressors,
            config={"order": order},
        )
        array[...] = expected
        selection = data.draw(basic_indices(shape=shape))
        store.forget()
        np.testing.assert_array_equal(array[selection], expected[selection])
        assert len(store.many) == (1 if expected[selection].size else 0)


# ---------------------------------------------------------------------------
# When, where and in what company chunks are decoded
# ---------------------------------------------------------------------------


class ChunkStore(MemoryStore):
    """A store of numbered chunks that hands each out when it is told to.

    Chunk `n` is four times the number `n`. `get_many` reports in the order of arrival.
    """

    _supports_sync_io = False

    def __init__(self, count: int, *, closed: Iterable[int] = ()) -> None:
        super().__init__()
        for number in range(count):
            values = np.full(4, number, dtype="<i4")
            self._store_dict[f"c/{number}"] = PROTOTYPE.buffer.from_bytes(values.tobytes())
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        for number in set(range(count)) - set(closed):
            self.let(number)
        self.failures: dict[str, Exception] = {}
        self.requested: list[list[str]] = []
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.running = 0

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self.gates[f"c/{number}"].set()

    def fail(self, number: int, error: Exception) -> None:
        self.failures[f"c/{number}"] = error
        self.let(number)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.started.append(key)
        self.running += 1
        try:
            await self.gates[key].wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.running -= 1
        if key in self.failures:
            raise self.failures[key]
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        self.requested.append([request for request in requests if isinstance(request, str)])
        async for group in Store.get_many(self, requests, prototype=prototype):
            yield group


caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@dataclass
class Work:
    """What the codecs of a test do, and what they have done."""

    decoded: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    callers: set[str] = field(default_factory=set)
    batches: list[int] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    held: set[int] = field(default_factory=set)
    release: threading.Event = field(default_factory=threading.Event)
    failures: dict[int, BaseException] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, value: Buffer) -> int:
        number = int(np.frombuffer(value.to_bytes(), dtype="<i4")[0])
        with self.lock:
            self.decoded.append(number)
            self.threads.add(threading.get_ident())
            self.callers.add(caller.get())
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        return number

    def end(self, number: int) -> None:
        with self.lock:
            self.active -= 1
        if number in self.failures:
            raise self.failures[number]

    def is_held(self, number: int) -> bool:
        return number in self.held and not self.release.is_set()


OURS = "zarr.testing"
"""The module of a codec that is one of this package's, for all that anybody can tell."""


@dataclass(frozen=True)
class SyncCodec(BytesBytesCodec):
    """Leaves bytes as they are. Decoding is synchronous."""

    __module__ = OURS

    work: Work = field(default_factory=Work, compare=False)

    is_fixed_size = True

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        number = self.work.begin(chunk_data)
        if self.work.is_held(number):
            assert self.work.release.wait(30)
        self.work.end(number)
        return chunk_data

    def _encode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return chunk_data

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


@dataclass(frozen=True)
class ForeignCodec(SyncCodec):
    """The same in another package."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return super()._decode_sync(chunk_data, chunk_spec)


@dataclass(frozen=True)
class AsyncCodec(BytesBytesCodec):
    """Leaves bytes as they are. Decoding is asynchronous, and nothing else."""

    work: Work = field(default_factory=Work, compare=False)

    is_fixed_size = True

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        number = self.work.begin(chunk_data)
        try:
            while self.work.is_held(number):
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.work.end(-1)
            raise
        self.work.end(number)
        return chunk_data

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        chunks_and_specs = list(chunks_and_specs)
        self.work.batches.append(len(chunks_and_specs))
        return await super().decode(chunks_and_specs)


SPEC = ArraySpec(
    shape=(4,),
    dtype=Int32(),
    fill_value=np.int32(-1),
    config=ArrayConfig(order="C", write_empty_chunks=True),
    prototype=PROTOTYPE,
)


class Reader:
    """Reads all chunks of a store, one after the other, into one array."""

    def __init__(
        self,
        store: ChunkStore,
        count: int,
        codec: Codec | None = None,
        *,
        cls: type[BatchedCodecPipeline | FusedCodecPipeline] = BatchedCodecPipeline,
        batch_size: int = 1,
    ) -> None:
        codecs: list[Codec] = [BytesCodec()] if codec is None else [BytesCodec(), codec]
        self.pipeline = cls.from_codecs(codecs, batch_size=batch_size).evolve_from_array_spec(SPEC)
        self.batch: list[Any] = [
            (StorePath(store, f"c/{number}"), SPEC, (slice(None),), self.place(number), True)
            for number in range(count)
        ]
        self.array = np.full(4 * count, 99, dtype="int32")
        self.out: NDBuffer = PROTOTYPE.nd_buffer.from_ndarray_like(self.array)

    @staticmethod
    def place(number: int) -> tuple[slice]:
        return (slice(4 * number, 4 * number + 4),)

    async def read(self) -> list[str]:
        results: tuple[GetResult, ...] = await self.pipeline.read(self.batch, self.out)
        return [result["status"] for result in results]

    def start(self) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self.read())

    @property
    def values(self) -> list[int]:
        """What stands at the place of each chunk."""
        chunks = self.array.reshape(-1, 4)
        assert (chunks == chunks[:, :1]).all()
        return [int(value) for value in chunks[:, 0]]


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


@pytest.fixture
def work() -> Generator[Work]:
    work = Work()
    yield work
    work.release.set()


ROADS = {
    "batched-sync": (BatchedCodecPipeline, SyncCodec),
    "fused-sync": (FusedCodecPipeline, SyncCodec),
    "batched-foreign": (BatchedCodecPipeline, ForeignCodec),
    "batched-async": (BatchedCodecPipeline, AsyncCodec),
    "fused-async": (FusedCodecPipeline, AsyncCodec),
}
"""The pipelines, each with a codec that worker threads can run and with one that they can't."""

type MakeReader = Callable[..., Reader]


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    cls, codec = ROADS[request.param]
    return lambda store, count, **kwargs: Reader(store, count, codec(work), cls=cls, **kwargs)


@pytest.fixture(params=["batched", "fused"])
def threads(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    """The pipelines with a codec that worker threads run."""
    cls = PIPELINES[request.param]
    return lambda store, count, **kwargs: Reader(store, count, SyncCodec(work), cls=cls, **kwargs)


@pytest.fixture(params=["batched", "fused"])
def batches(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    """The pipelines with a codec that is asynchronous."""
    cls = PIPELINES[request.param]
    return lambda store, count, **kwargs: Reader(store, count, AsyncCodec(work), cls=cls, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
async def test_one_get_many_for_a_read(road: MakeReader, batch_size: int) -> None:
    store = ChunkStore(20)
    reader = road(store, 20, batch_size=batch_size)
    assert await reader.read() == ["present"] * 20
    assert reader.values == list(range(20))
    assert store.requested == [[f"c/{number}" for number in range(20)]]


async def test_reading_no_chunks(road: MakeReader) -> None:
    store = ChunkStore(0)
    assert await road(store, 0).read() == []
    assert store.requested == []


async def test_results_are_in_the_order_of_the_batch(road: MakeReader) -> None:
    """Whatever arrives first, and whatever is missing."""
    store = ChunkStore(6, closed=range(8))
    del store._store_dict["c/2"]
    reader = road(store, 8)
    task = reader.start()
    for number in (7, 3, 2, 0, 5, 6, 1, 4):
        store.let(number)
        await turns(10)
    statuses = await task
    expected = [-1 if number in (2, 6, 7) else number for number in range(8)]
    assert reader.values == expected
    assert statuses == ["missing" if value == -1 else "present" for value in expected]


async def test_axes_are_dropped(road: MakeReader) -> None:
    """Chunks of one column each, read into an array that has no columns."""
    reader = road(ChunkStore(5), 5)
    spec = ArraySpec((4, 1), SPEC.dtype, SPEC.fill_value, SPEC.config, PROTOTYPE)
    reader.batch = [
        (getter, spec, (slice(None), slice(None)), place, complete)
        for getter, _, _, place, complete in reader.batch
    ]
    await reader.pipeline.read(reader.batch, reader.out, drop_axes=(1,))
    assert reader.values == list(range(5))


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_decoding_starts_before_the_last_byte_is_there(
    road: MakeReader, work: Work, batch_size: int
) -> None:
    store = ChunkStore(10, closed=[9])
    reader = road(store, 10, batch_size=batch_size)
    task = reader.start()
    await until(lambda: reader.values[:9] == list(range(9)))
    assert sorted(work.decoded) == list(range(9))
    assert reader.values[9] == 99
    assert not task.done()
    store.let(9)
    await task
    assert reader.values == list(range(10))


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


async def test_many_small_chunks_are_in_flight_from_the_start(road: MakeReader) -> None:
    """The store need not wait for the first chunk to know that a hundred of them are little."""
    source = ChunkStore(200, closed=range(200))
    reader = road(source, 200)
    store = LatencyStore(source)
    replace_getters(reader, [StorePath(store, f"c/{number}") for number in range(200)])
    task = reader.start()
    await until(lambda: source.running == 100)
    source.let(*range(200))
    await task
    assert reader.values == list(range(200))


async def test_decoding_is_done_on_worker_threads(threads: MakeReader, work: Work) -> None:
    await threads(ChunkStore(20), 20).read()
    assert threading.get_ident() not in work.threads


@pytest.fixture
def work_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as they are, each of these chunks is enough work for a thread."""
    monkeypatch.setattr("zarr.core._chunk_reads.SHARE_BYTES", 1)


@pytest.mark.usefixtures("work_for_many")
@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_the_number_of_threads_is_limited(
    threads: MakeReader, work: Work, workers: int
) -> None:
    """`threading.max_workers` for one pipeline, `codec_pipeline.max_workers` for the other."""
    work.held = set(range(30))
    setting = {"threading.max_workers": workers, "codec_pipeline.max_workers": workers}
    with config.set({**setting, "async.concurrency": 30}):
        reader = threads(ChunkStore(30), 30)
        task = reader.start()
        await until(lambda: work.active == workers)
        await asyncio.sleep(0.02)
        assert len(work.decoded) == workers
        work.release.set()
        await task
    assert work.most_active == workers
    assert reader.values == list(range(30))


@pytest.mark.usefixtures("work_for_many")
async def test_there_is_a_thread_for_each_processor(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    work.held = set(range(30))
    reader = threads(ChunkStore(30), 30)
    task = reader.start()
    await until(lambda: work.active == 3)
    await asyncio.sleep(0.02)
    assert work.most_active == 3
    work.release.set()
    await task


async def test_a_thread_decodes_many_chunks(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change of thread for each chunk: what is there is worked through in one go."""
    hops = 0
    loop = asyncio.get_running_loop()
    original = loop.run_in_executor

    def run_in_executor(*args: Any) -> Any:
        nonlocal hops
        hops += 1
        return original(*args)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(200), 200).start()
        await until(lambda: work.decoded == [0])
        await turns(2000)
        work.release.set()
        await task
    assert len(work.decoded) == 200
    assert hops < 20


async def test_a_thread_that_ran_out_of_work_decodes_again(threads: MakeReader, work: Work) -> None:
    store = ChunkStore(2, closed=[1])
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        reader = threads(store, 2)
        task = reader.start()
        # Left are this task, the read, and its fetch of the second chunk.
        await until(lambda: work.decoded == [0] and len(asyncio.all_tasks()) == 3)
        store.let(1)
        await task
    assert reader.values == [0, 1]


async def test_one_small_chunk_is_decoded_in_the_event_loop(
    threads: MakeReader, work: Work
) -> None:
    """A thread would take longer to get going."""
    reader = threads(ChunkStore(1), 1)
    assert await reader.read() == ["present"]
    assert reader.values == [0]
    assert work.threads == {threading.get_ident()}


async def test_one_large_chunk_is_decoded_on_a_thread(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And on one thread it stays, however many there are."""
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_INLINE", 15)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    hops = 0
    loop = asyncio.get_running_loop()
    original = loop.run_in_executor

    def run_in_executor(*args: Any) -> Any:
        nonlocal hops
        hops += 1
        return original(*args)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    reader = threads(ChunkStore(1), 1)
    assert await reader.read() == ["present"]
    assert reader.values == [0]
    assert threading.get_ident() not in work.threads
    assert hops == 1


@pytest.mark.parametrize("inline", [True, False])
async def test_one_chunk_that_is_not_there(
    road: MakeReader, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_INLINE", 16 if inline else 15)
    store = ChunkStore(1)
    del store._store_dict["c/0"]
    reader = road(store, 1)
    assert await reader.read() == ["missing"]
    assert reader.values == [-1]


@pytest.mark.parametrize("inline", [True, False])
async def test_one_chunk_that_fails(
    road: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_INLINE", 16 if inline else 15)
    store = ChunkStore(1)
    work.failures[0] = OSError("not a valid stream")
    with pytest.raises(OSError) as caught:
        await road(store, 1).read()
    assert caught.value is work.failures[0]
    work.failures.clear()
    store.fail(0, KeyError("the store"))
    with pytest.raises(KeyError) as caught_too:
        await road(store, 1).read()
    assert caught_too.value is store.failures["c/0"]


@pytest.mark.parametrize("times", [1, 3])
async def test_one_chunk_whose_read_is_cancelled(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_INLINE", 15)
    work.held = {0}
    task = threads(ChunkStore(1), 1).start()
    await until(lambda: work.active == 1)
    for _ in range(times):
        task.cancel()
        await turns()
        assert not task.done()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.active == 0


async def test_context_variables_of_the_caller_are_seen(road: MakeReader, work: Work) -> None:
    token = caller.set("somebody")
    try:
        await road(ChunkStore(20), 20).read()
    finally:
        caller.reset(token)
    assert work.callers == {"somebody"}


async def test_a_read_does_not_change_the_context(road: MakeReader) -> None:
    before = list(contextvars.copy_context().items())
    await road(ChunkStore(5), 5).read()
    assert list(contextvars.copy_context().items()) == before


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


async def test_the_number_of_batches_is_limited(batches: MakeReader, work: Work) -> None:
    """`async.concurrency` batches at a time are in the hands of the codecs."""
    work.held = set(range(30))
    with config.set({"async.concurrency": 3}):
        task = batches(ChunkStore(30), 30).start()
        await until(lambda: work.active == 3)
        await turns()
        assert work.active == 3
        work.release.set()
        await task
    assert work.most_active == 3


@pytest.mark.parametrize("batch_size", [0, -1])
async def test_a_batch_size_that_makes_no_sense(batches: MakeReader, batch_size: int) -> None:
    """It is an error, or it is ignored. It is no reason to go on for ever."""
    reader = batches(ChunkStore(5), 5, batch_size=1)
    object.__setattr__(reader.pipeline, "batch_size", batch_size)
    async with asyncio.timeout(60):
        try:
            await reader.read()
        except ValueError:
            return
    assert reader.values == list(range(5))


async def test_what_waits_to_be_decoded_is_limited(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow codec holds the store back: chunks of 16 bytes, of which 64 may wait."""
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_UNDECODED", 64)
    work.held = set(range(1))
    setting = {"threading.max_workers": 1, "codec_pipeline.max_workers": 1}
    with config.set({**setting, "async.concurrency": 4}):
        store = ChunkStore(100)
        reader = threads(store, 100)
        task = reader.start()
        await until(lambda: len(store.started) >= 6)
        await turns(500)
        # One is decoded, four wait, one was too many, and four are in flight.
        assert len(store.started) <= 10
        work.release.set()
        await task
    assert reader.values == list(range(100))


# ---------------------------------------------------------------------------
# Codecs and pipelines of others
# ---------------------------------------------------------------------------


class Counting:
    """Counts the calls of each kind."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, int] = defaultdict(int)


CALLS = Counting()


@pytest.fixture
def calls() -> defaultdict[str, int]:
    CALLS.calls.clear()
    return CALLS.calls


@dataclass(frozen=True)
class OverridesDecodeSingle(SyncCodec):
    """A synchronous codec whose subclass means something else by decoding."""

    __module__ = OURS

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS.calls["_decode_single"] += 1
        return chunk_data


@dataclass(frozen=True)
class OverridesDecode(SyncCodec):
    """A synchronous codec whose subclass decodes batches."""

    __module__ = OURS

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        chunks = [chunk for chunk, _ in chunks_and_specs]
        CALLS.calls["decode"] += len(chunks)
        self.work.batches.append(len(chunks))
        return chunks


@dataclass(frozen=True)
class OverridesDecodeSync(SyncCodec):
    """A subclass that replaces the synchronous decoding itself."""

    __module__ = OURS

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS.calls["_decode_sync"] += 1
        return chunk_data


@dataclass(frozen=True)
class OverridesBoth(SyncCodec):
    """A subclass that replaces both in step."""

    __module__ = OURS

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS.calls["_decode_sync"] += 1
        return chunk_data

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS.calls["_decode_single"] += 1
        return chunk_data


@dataclass(frozen=True)
class ForeignBoth(OverridesBoth):
    """Another package's codec may count on being called in the event loop."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        raise AssertionError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        self.work.end(self.work.begin(chunk_data))
        return await super()._decode_single(chunk_data, chunk_spec)


@dataclass(frozen=True)
class ChildOfOverridesDecodeSingle(OverridesDecodeSingle):
    """Inherits what its parent means by decoding."""


@dataclass(frozen=True)
class SyncOnTopOfSingle(OverridesDecodeSingle):
    """Replaces the synchronous decoding again, lower than `_decode_single`."""

    __module__ = OURS

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        CALLS.calls["_decode_sync"] += 1
        return chunk_data


@pytest.mark.parametrize(
    ("codec", "method"),
    [
        (OverridesDecodeSingle, "_decode_single"),
        (ChildOfOverridesDecodeSingle, "_decode_single"),
        (OverridesDecode, "decode"),
        (OverridesDecodeSync, "_decode_sync"),
        (OverridesBoth, "_decode_sync"),
        (SyncOnTopOfSingle, "_decode_sync"),
        (ForeignBoth, "_decode_single"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value,
)
async def test_the_decoding_that_a_subclass_means_is_used(
    codec: type[SyncCodec], method: str, work: Work, calls: defaultdict[str, int]
) -> None:
    reader = Reader(ChunkStore(10), 10, codec(work), batch_size=3)
    await reader.read()
    assert calls == {method: 10}
    assert reader.values == list(range(10))
    assert all(size <= 3 for size in work.batches)
    assert work.threads <= {threading.get_ident()}


class PipelineWithReadBatch(BatchedCodecPipeline):
    async def read_batch(
        self,
        batch_info: Iterable[tuple[ByteGetter, ArraySpec, Any, Any, bool]],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = list(batch_info)
        CALLS.calls["chunks"] += len(batch)
        CALLS.calls["batches"] += 1
        return await super().read_batch(batch, out, drop_axes)


class PipelineWithDecode(BatchedCodecPipeline):
    async def decode(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        batch = list(chunk_bytes_and_specs)
        CALLS.calls["chunks"] += len(batch)
        CALLS.calls["batches"] += 1
        return await super().decode(batch)


class PipelineWithDecodeBatch(BatchedCodecPipeline):
    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        batch = list(chunk_bytes_and_specs)
        CALLS.calls["chunks"] += len(batch)
        CALLS.calls["batches"] += 1
        return await super().decode_batch(batch)


class ChildPipeline(PipelineWithDecodeBatch):
    pass


class PlainPipeline(BatchedCodecPipeline):
    pass


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("codec", [SyncCodec, AsyncCodec])
@pytest.mark.parametrize(
    "cls", [PipelineWithReadBatch, PipelineWithDecode, PipelineWithDecodeBatch, ChildPipeline]
)
async def test_what_a_pipeline_overrides_is_called(
    cls: type[BatchedCodecPipeline],
    codec: type[SyncCodec | AsyncCodec],
    batch_size: int,
    work: Work,
    calls: defaultdict[str, int],
) -> None:
    reader = Reader(ChunkStore(10), 10, codec(work), cls=cls, batch_size=batch_size)
    assert await reader.read() == ["present"] * 10
    assert reader.values == list(range(10))
    assert sorted(work.decoded) == list(range(10))
    assert calls == {"chunks": 10, "batches": -(-10 // batch_size)}


async def test_a_pipeline_that_overrides_nothing(work: Work) -> None:
    store = ChunkStore(10)
    reader = Reader(store, 10, SyncCodec(work), cls=PlainPipeline)
    await reader.read()
    assert reader.values == list(range(10))
    assert len(store.requested) == 1
    assert threading.get_ident() not in work.threads


# ---------------------------------------------------------------------------
# Byte getters of other kinds
# ---------------------------------------------------------------------------


class CountedPath(StorePath):
    """Somebody's `StorePath` with a `get` of its own."""

    def __init__(self, store: Any, path: str) -> None:
        super().__init__(store, path)
        self.calls = 0

    async def get(
        self,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.calls += 1
        return await super().get(prototype, byte_range)


class Getter:
    """A byte getter that has nothing to do with a store."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.prototypes: list[BufferPrototype] = []

    async def get(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.prototypes.append(prototype)
        await asyncio.sleep(0)
        return prototype.buffer.from_bytes(np.full(4, self.number, dtype="<i4").tobytes())


class SyncGetter(Getter):
    """A byte getter that has its bytes at hand."""

    def get_sync(
        self, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return PROTOTYPE.buffer.from_bytes(np.full(4, self.number, dtype="<i4").tobytes())


def replace_getters(reader: Reader, getters: Sequence[Any]) -> None:
    reader.batch = [
        (getter, *rest) for getter, (_, *rest) in zip(getters, reader.batch, strict=True)
    ]


async def test_a_store_path_with_its_own_get(road: MakeReader) -> None:
    store = ChunkStore(10)
    reader = road(store, 10)
    paths = [CountedPath(store, f"c/{number}") for number in range(10)]
    replace_getters(reader, paths)
    await reader.read()
    assert reader.values == list(range(10))
    assert [path.calls for path in paths] == [1] * 10
    assert store.requested == []


@pytest.mark.parametrize("position", [0, 5, 9])
async def test_one_getter_of_another_kind(road: MakeReader, position: int) -> None:
    store = ChunkStore(10)
    reader = road(store, 10)
    getters: list[Any] = [getter for getter, *_ in reader.batch]
    getters[position] = CountedPath(store, f"c/{position}")
    replace_getters(reader, getters)
    await reader.read()
    assert reader.values == list(range(10))
    assert getters[position].calls == 1
    assert store.requested == []


async def test_several_stores(road: MakeReader) -> None:
    stores = [ChunkStore(10), ChunkStore(10)]
    reader = road(stores[0], 10)
    replace_getters(reader, [StorePath(stores[n % 2], f"c/{n}") for n in range(10)])
    await reader.read()
    assert reader.values == list(range(10))
    assert [sorted(store.started) for store in stores] == [
        [f"c/{n}" for n in range(0, 10, 2)],
        [f"c/{n}" for n in range(1, 10, 2)],
    ]


async def test_several_prototypes(road: MakeReader) -> None:
    class OtherBuffer(PROTOTYPE.buffer):  # type: ignore[misc,name-defined]
        pass

    other = PROTOTYPE._replace(buffer=OtherBuffer)
    reader = road(ChunkStore(10), 10)
    getters = [Getter(number) for number in range(10)]
    replace_getters(reader, getters)
    specs = [
        ArraySpec(SPEC.shape, SPEC.dtype, SPEC.fill_value, SPEC.config, prototype)
        for prototype in [PROTOTYPE, other] * 5
    ]
    reader.batch = [
        (getter, spec, *rest) for (getter, _, *rest), spec in zip(reader.batch, specs, strict=True)
    ]
    await reader.read()
    assert reader.values == list(range(10))
    assert [getter.prototypes for getter in getters] == [[PROTOTYPE], [other]] * 5


async def test_several_prototypes_of_one_store(road: MakeReader) -> None:
    other = PROTOTYPE._replace(buffer=type("OtherBuffer", (PROTOTYPE.buffer,), {}))
    store = ChunkStore(4)
    reader = road(store, 4)
    spec = ArraySpec(SPEC.shape, SPEC.dtype, SPEC.fill_value, SPEC.config, other)
    getter, _, *rest = reader.batch[2]
    reader.batch[2] = (getter, spec, *rest)
    await reader.read()
    assert reader.values == list(range(4))
    assert store.requested == []


@pytest.mark.parametrize("kind", [Getter, SyncGetter])
async def test_getters_without_a_store(road: MakeReader, kind: type[Getter]) -> None:
    reader = road(ChunkStore(0), 10)
    replace_getters(reader, [kind(number) for number in range(10)])
    await reader.read()
    assert reader.values == list(range(10))


async def test_a_store_that_is_no_store(road: MakeReader) -> None:
    """Somebody's object with a `get` that passes for a store has no `get_many`."""

    class Passing:
        async def get(
            self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
        ) -> Buffer | None:
            number = int(key.removeprefix("c/"))
            return await Getter(number).get(prototype, byte_range)

    reader = road(ChunkStore(0), 10)
    passing: Any = Passing()
    replace_getters(reader, [StorePath(passing, f"c/{n}") for n in range(10)])
    await reader.read()
    assert reader.values == list(range(10))


async def test_getters_are_asked_within_limits(road: MakeReader) -> None:
    store = ChunkStore(10, closed=range(10))
    reader = road(store, 10)
    replace_getters(reader, [CountedPath(store, f"c/{n}") for n in range(10)])
    with config.set({"async.concurrency": 4}):
        task = reader.start()
        await turns()
        assert len(store.started) == 4
        store.let(*range(10))
        await task
    assert reader.values == list(range(10))


# ---------------------------------------------------------------------------
# Failures, and coming to an end
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2])
async def test_a_failing_codec_ends_the_read(road: MakeReader, work: Work, batch_size: int) -> None:
    """Its error comes out as itself, at once, though other chunks will never arrive."""
    error = OSError("not a valid stream")
    work.failures[2] = error
    store = ChunkStore(10, closed=range(4, 10))
    task = road(store, 10, batch_size=batch_size).start()
    async with asyncio.timeout(60):
        with pytest.raises(OSError) as caught:
            await task
    assert caught.value is error
    assert store.running == 0
    assert sorted(store.cancelled) == [f"c/{number}" for number in range(4, 10)]
    assert work.active == 0


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


@pytest.mark.usefixtures("work_for_many")
async def test_several_failing_codecs(road: MakeReader, work: Work) -> None:
    """The first failure is raised, with the others at the end of its chain of causes."""
    errors: dict[int, BaseException] = {0: OSError("zero"), 1: KeyError("one")}
    work.failures = errors
    work.held = {0, 1}
    setting = {"threading.max_workers": 2, "codec_pipeline.max_workers": 2}
    with config.set(setting):
        task = road(ChunkStore(2), 2).start()
        await until(lambda: work.active == 2)
        work.release.set()
        with pytest.raises((OSError, KeyError)) as caught:
            await task
    assert caught.value in errors.values()
    if (group := caught.value.__cause__) is not None:
        assert isinstance(group, ExceptionGroup)
        assert {caught.value, *group.exceptions} == set(errors.values())


async def test_a_failing_store_ends_the_read(road: MakeReader, work: Work) -> None:
    error = OSError("the cable is out")
    store = ChunkStore(10, closed=range(3, 10))
    task = road(store, 10).start()
    await until(lambda: len(work.decoded) == 3)
    store.fail(5, error)
    async with asyncio.timeout(60):
        with pytest.raises(OSError) as caught:
            await task
    assert caught.value is error
    assert error.__cause__ is None
    assert store.running == 0
    assert work.active == 0


async def test_a_group_that_the_store_raises_stays_a_group(road: MakeReader) -> None:
    error = ExceptionGroup("several", [OSError("one"), KeyError("two")])
    store = ChunkStore(5)
    store.fail(3, error)
    with pytest.raises(ExceptionGroup) as caught:
        await road(store, 5).read()
    assert caught.value is error


async def test_a_failing_fill(road: MakeReader) -> None:
    """Scattering may fail as well: here the place of a chunk has the wrong shape."""
    reader = road(ChunkStore(5), 5)
    getter, spec, selection, _, complete = reader.batch[3]
    reader.batch[3] = (getter, spec, selection, (slice(0, 3),), complete)
    with pytest.raises(ValueError, match="broadcast"):
        await reader.read()


@pytest.mark.parametrize("times", [1, 3])
async def test_no_thread_outlives_a_cancelled_read(
    threads: MakeReader, work: Work, times: int
) -> None:
    """A thread can't be cancelled: the read waits for the chunk that it is at, and for no other."""
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        store = ChunkStore(10, closed=[9])
        reader = threads(store, 10)
        task = reader.start()
        await until(lambda: work.decoded == [0])
        await turns(200)
        for _ in range(times):
            task.cancel()
            await turns()
            assert not task.done()
        work.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    at_the_end = reader.array.copy()
    assert work.active == 0
    assert work.decoded == [0]
    assert store.running == 0
    assert store.cancelled == ["c/9"]
    await asyncio.sleep(0.02)
    np.testing.assert_array_equal(reader.array, at_the_end)


async def test_a_cancelled_read_drops_what_its_threads_raise(
    threads: MakeReader, work: Work
) -> None:
    work.held = {0}
    work.failures[0] = OSError("too late")
    task = threads(ChunkStore(3, closed=[2]), 3).start()
    await until(lambda: 0 in work.decoded)
    task.cancel()
    await turns()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_read_ends_its_batches(batches: MakeReader, work: Work) -> None:
    work.held = {0, 1}
    store = ChunkStore(10, closed=[9])
    reader = batches(store, 10)
    task = reader.start()
    await until(lambda: len(work.decoded) == 9)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.active == 0
    assert store.running == 0


async def test_a_read_is_cancelled_before_its_first_turn(road: MakeReader) -> None:
    store = ChunkStore(5)
    task = road(store, 5).start()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.started == []


async def test_a_read_is_cancelled_while_nothing_has_arrived(road: MakeReader) -> None:
    store = ChunkStore(5, closed=range(5))
    task = road(store, 5).start()
    await until(lambda: store.running == 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.running == 0


async def test_a_read_is_cancelled_while_it_waits_for_room(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_UNDECODED", 32)
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(100), 100).start()
        await until(lambda: work.decoded == [0])
        await turns(500)
        task.cancel()
        await turns()
        work.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_codec_fails_while_the_read_waits_for_room(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarr.core._chunk_reads.MAX_BYTES_UNDECODED", 32)
    work.held = {0}
    work.failures[0] = OSError("not a valid stream")
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(100), 100).start()
        await until(lambda: work.decoded == [0])
        await turns(500)
        work.release.set()
        async with asyncio.timeout(60):
            with pytest.raises(OSError, match="not a valid stream"):
                await task


class Misreporting(ChunkStore):
    """A store whose `get_many` is not what it should be."""

    def __init__(self, count: int, report: Callable[[int], list[int]]) -> None:
        super().__init__(count)
        self.report = report

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        for number, request in enumerate(requests):
            assert isinstance(request, str)
            value = await self.get(request, prototype)
            for index in self.report(number):
                yield [(index, value)]


@pytest.mark.parametrize("forgotten", [0, 4, 9])
async def test_a_chunk_that_the_store_forgot_is_not_missing(
    road: MakeReader, forgotten: int
) -> None:
    """A store that reports less than it was asked for is in error; nothing is filled in silence."""
    store = Misreporting(10, lambda number: [] if number == forgotten else [number])
    with pytest.raises(RuntimeError, match=f"1 of 10 requests.*number {forgotten}"):
        await road(store, 10).read()


async def test_a_store_that_reports_nothing(road: MakeReader) -> None:
    store = Misreporting(3, lambda number: [])
    with pytest.raises(RuntimeError, match="3 of 3 requests"):
        await road(store, 3).read()


async def test_a_store_that_reports_what_nobody_asked_for(road: MakeReader) -> None:
    store = Misreporting(3, lambda number: [number, number + 3])
    with pytest.raises(RuntimeError, match="request 3 of 3"):
        await road(store, 3).read()


async def test_a_store_that_counts_from_the_end(road: MakeReader) -> None:
    store = Misreporting(3, lambda number: [number - 3])
    with pytest.raises(RuntimeError, match="request -3 of 3"):
        await road(store, 3).read()


async def test_a_store_that_reports_chunks_twice(road: MakeReader) -> None:
    store = Misreporting(3, lambda number: [number, number])
    with pytest.raises(RuntimeError, match="request 0 of 3 twice"):
        await road(store, 3).read()


async def test_a_store_that_reports_one_chunk_as_another(road: MakeReader) -> None:
    """One chunk is reported twice, another never."""
    store = Misreporting(3, lambda number: [0 if number == 2 else number])
    with pytest.raises(RuntimeError, match="request 0 of 3 twice"):
        await road(store, 3).read()


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("road", sorted(ROADS.keys() - {"batched-foreign"}), indirect=True)
async def test_a_codec_that_raises_what_means_something_else(
    road: MakeReader, work: Work, error: BaseException, count: int
) -> None:
    """To a coroutine, or to a task. It must not pass for the end of anything."""
    work.failures[0] = error
    expected = type(error) if isinstance(error, asyncio.CancelledError) else RuntimeError
    with pytest.raises(expected):
        await road(ChunkStore(count), count).read()


async def test_a_warning_that_is_an_error(threads: MakeReader, work: Work) -> None:
    """Warnings of a codec obey the filters though they come from a worker thread."""

    class Warning_(UserWarning):
        pass

    @dataclass(frozen=True)
    class WarningCodec(SyncCodec):
        __module__ = OURS

        def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
            warnings.warn("careful", Warning_, stacklevel=1)
            return chunk_data

    with pytest.raises(Warning_, match="careful"):
        await Reader(ChunkStore(3), 3, WarningCodec(work)).read()


async def test_floating_point_errors_obey_the_caller(work: Work) -> None:
    """numpy keeps its error state in the context, and the context goes along."""

    @dataclass(frozen=True)
    class DividingCodec(SyncCodec):
        __module__ = OURS

        def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
            np.float64(1) / np.float64(0)
            return chunk_data

    reader = Reader(ChunkStore(3), 3, DividingCodec(work))
    with np.errstate(divide="ignore"):
        await reader.read()
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        await reader.read()


async def test_reads_side_by_side(road: MakeReader, work: Work) -> None:
    readers = [road(ChunkStore(20), 20) for _ in range(8)]
    await asyncio.gather(*(reader.read() for reader in readers))
    for reader in readers:
        assert reader.values == list(range(20))
