"""`read_block` returns what `array.blocks` returns, to the byte."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zarr
import zarr.api.asynchronous
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.errors import BoundsCheckError, ChunkNotFoundError
from zarr.experimental.block_stream import read_block, read_block_async
from zarr.storage import LocalStore, MemoryStore, WrapperStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


def assert_same(block: Any, expected: Any) -> None:
    """Equal in type, data type, shape, memory layout, and every byte."""
    assert type(block) is type(expected)
    assert block.dtype == expected.dtype
    assert block.shape == expected.shape
    assert block.flags.c_contiguous == expected.flags.c_contiguous
    assert block.flags.f_contiguous == expected.flags.f_contiguous
    if block.dtype.kind in ("O", "T"):
        assert block.tolist() == expected.tolist()
    else:
        assert block.tobytes("A") == expected.tobytes("A")


def every_block(array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    return list(np.ndindex(array._chunk_grid.grid_shape))


def assert_blocks_are_same(array: zarr.Array[Any]) -> None:
    for coords in every_block(array):
        expected = array.blocks[coords]
        assert_same(read_block(array, coords), expected)
        assert_same(asyncio.run(read_block_async(array, coords)), expected)


VALUES: dict[str, np.ndarray[Any, Any]] = {
    "bool": np.array([True, False] * 5),
    "int8": np.arange(10, dtype="int8"),
    "uint16 big-endian": np.arange(10, dtype=">u2"),
    "int64": np.arange(10, dtype="int64"),
    "float16": np.linspace(-1, 1, 10, dtype="float16"),
    "float64": np.array([np.nan, -0.0, np.inf, *range(7)]),
    "complex64": np.arange(10, dtype="complex64") * 1j,
    "datetime": np.arange(10).astype("datetime64[s]"),
    "timedelta": np.array(["NaT", *range(9)], dtype="timedelta64[ms]"),
    "fixed text": np.array([f"t\u00ebxt {n}" for n in range(10)]),
    "fixed bytes": np.array([b"x" * n for n in range(10)], dtype="S12"),
    "raw": np.arange(10, dtype="uint16").view("V2"),
    "structured": np.array(
        [(n, n / 2, b"ab") for n in range(10)], dtype=[("a", "<i4"), ("b", "<f8"), ("c", "S3")]
    ),
    "text": np.array(["", "\u00e9" * 40, *map(str, range(8))], dtype=np.dtypes.StringDType()),
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_data_types(zarr_format: Any, kind: str, pipeline: str) -> None:
    values = VALUES[kind]
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        store = MemoryStore()
        array = zarr.create_array(
            store, shape=(10,), dtype=values.dtype, chunks=(4,), zarr_format=zarr_format
        )
        array[:] = values
        assert_blocks_are_same(array)
        asyncio.run(store.delete(array.metadata.encode_chunk_key((1,))))
        assert_blocks_are_same(array)


def test_variable_length_bytes() -> None:
    array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="variable_length_bytes")
    array[:] = np.array([b"", b"a" * 50, b"c", b"d", b"e"], dtype=object)
    assert_blocks_are_same(array)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("in_memory", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (4, 1, 5)])
def test_orders_and_shapes(
    zarr_format: Any, order: Any, in_memory: str, shape: tuple[int, ...]
) -> None:
    with zarr.config.set({"array.order": in_memory}):
        array = zarr.create_array(
            {},
            shape=shape,
            dtype="int16",
            chunks=(2, 3, 2)[: len(shape)],
            zarr_format=zarr_format,
            fill_value=-3,
            **({"order": order} if zarr_format == 2 else {"config": {"order": order}}),
        )
    array[...] = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    assert_blocks_are_same(array)


CODECS: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zstd": {"compressors": ZstdCodec(level=1, checksum=True)},
    "gzip": {"compressors": GzipCodec()},
    "blosc": {"compressors": BloscCodec(shuffle="bitshuffle")},
    "several": {"compressors": [Crc32cCodec(), ZstdCodec()]},
    "transposed": {"filters": TransposeCodec(order=(1, 0)), "compressors": GzipCodec()},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "shards": {"shards": (4, 6), "compressors": ZstdCodec()},
    "nested shards": {"serializer": ShardingCodec(chunk_shape=(1, 3)), "shards": (4, 6)},
}


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_codecs(codecs: str, pipeline: str) -> None:
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        array = zarr.create_array(
            {}, shape=(9, 11), dtype="int32", chunks=(2, 3), fill_value=5, **CODECS[codecs]
        )
        array[:5] = np.arange(55).reshape(5, 11)
        assert_blocks_are_same(array)


NUMCODECS = {
    "numcodecs.bz2": {},
    "numcodecs.crc32": {},
    "numcodecs.adler32": {},
    "numcodecs.fletcher32": {},
    "numcodecs.lz4": {},
    "numcodecs.lzma": {},
    "numcodecs.zlib": {},
    "numcodecs.shuffle": {"elementsize": 4},
    "numcodecs.delta": {"dtype": "<i4"},
    "numcodecs.bitround": {"keepbits": 8},
    "numcodecs.fixedscaleoffset": {"offset": 0, "scale": 10, "dtype": "<f4", "astype": "<i4"},
    "numcodecs.quantize": {"digits": 2, "dtype": "<f4"},
    "numcodecs.astype": {"encode_dtype": "<f8", "decode_dtype": "<f4"},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NUMCODECS)
def test_codecs_of_numcodecs(name: str) -> None:
    from zarr.core.metadata.v3 import parse_codecs  # as the metadata of a stored array are parsed
    from zarr.registry import get_codec_class

    (codec,) = parse_codecs([{"name": name, "configuration": NUMCODECS[name]}])
    kinds = {base.__name__ for base in get_codec_class(name).__mro__}
    where = "filters" if "ArrayArrayCodec" in kinds else "compressors"
    dtype = "int32" if name == "numcodecs.delta" else "float32"
    options: dict[str, Any] = {where: [codec]}
    array = zarr.create_array({}, shape=(9, 4), dtype=dtype, chunks=(2, 3), **options)
    array[:] = np.arange(36).reshape(9, 4)
    assert_blocks_are_same(array)


@pytest.mark.parametrize(
    "coords", [0, (1,), -1, (1, 2), (0, slice(None)), slice(1, 3), ..., (..., 1)]
)
def test_coordinates(coords: Any, tmp_path: Path) -> None:
    values = np.arange(9 * 11).reshape(9, 11)
    for store in (MemoryStore(), LocalStore(tmp_path / "array")):
        array = zarr.create_array(store, data=values, chunks=(4, 3))
        assert_same(read_block(array, coords), array.blocks[coords])
        assert_same(read_block(array.async_array, coords), array.blocks[coords])


@pytest.mark.parametrize("coords", [9, -9, (0, 0, 0), [1, 2], slice(0, 4, 2), "x", 1.5, None])
def test_bad_coordinates(coords: Any) -> None:
    array = zarr.create_array({}, data=np.arange(24).reshape(6, 4), chunks=(2, 2))
    with pytest.raises(Exception) as expected:
        array.blocks[coords]
    with pytest.raises(type(expected.value)) as raised:
        read_block(array, coords)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("coords", [("a", 1), ("a", "c", 2), ("x", 0)])
def test_fields(coords: Any) -> None:
    """What `array.blocks` says of them, that is: it can't read them either."""
    array = zarr.create_array({}, data=VALUES["structured"], chunks=(4,))
    with pytest.raises(Exception) as expected:
        array.blocks[coords]
    with pytest.raises(type(expected.value)) as raised:
        read_block(array, coords)
    assert str(raised.value) == str(expected.value)


def test_empty_arrays() -> None:
    array = zarr.create_array({}, shape=(0, 4), chunks=(2, 2), dtype="int8")
    with pytest.raises(BoundsCheckError):
        read_block(array, 0)


def test_rectilinear_grids() -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        array = zarr.create_array({}, shape=(9, 8), dtype="int16", chunks=[[2, 4, 3], [5, 3]])
        array[:] = np.arange(72).reshape(9, 8)
        assert_blocks_are_same(array)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_array(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunks = tuple(data.draw(st.integers(1, length + 1)) for length in shape)
    zarr_format = data.draw(st.sampled_from([2, 3]))
    factor = data.draw(st.sampled_from([None, 1, 2])) if zarr_format == 3 else None
    array = zarr.create_array(
        {},
        shape=shape,
        chunks=chunks,
        shards=None if factor is None else tuple(factor * edge for edge in chunks),
        dtype=data.draw(st.sampled_from(["uint8", "<f4", ">i8", "S3", "U2", "M8[D]"])),
        zarr_format=zarr_format,  # type: ignore[arg-type]
        order=data.draw(st.sampled_from(["C", "F"])) if zarr_format == 2 else None,
    )
    written = tuple(slice(0, data.draw(st.integers(0, length))) for length in shape)
    ones = np.arange(np.prod([part.stop for part in written], dtype=int)) % 9
    array[written] = ones.reshape([part.stop for part in written]).astype(array.dtype)
    grid = array._chunk_grid.grid_shape
    coords = tuple(data.draw(st.integers(-count, count - 1)) for count in grid)
    coords = coords[: data.draw(st.integers(1, len(coords)))]
    assert_same(read_block(array, coords), array.blocks[coords])


@pytest.mark.parametrize("shards", [None, (4,)])
def test_missing_chunks_may_be_an_error(shards: Any) -> None:
    with zarr.config.set({"array.read_missing_chunks": False}):
        array = zarr.create_array({}, shape=(8,), chunks=(2,), shards=shards, dtype="int8")
    array[:4] = 1
    assert_same(read_block(array, 0), array.blocks[0])
    with pytest.raises(ChunkNotFoundError) as expected:
        array.blocks[-1]
    for array_ in (array, array.async_array):
        with pytest.raises(ChunkNotFoundError) as raised:
            read_block(array_, -1)
        assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("kind", [MemoryStore, LocalStore])
def test_a_chunk_at_hand_is_read_by_the_calling_thread(
    kind: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = zarr.create_array(
        LocalStore(tmp_path) if kind is LocalStore else MemoryStore(),
        data=np.arange(8),
        chunks=(2,),
    )
    readers: list[int] = []
    get_sync = kind.get_sync

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        readers.append(threading.get_ident())
        return get_sync(self, *args, **options)

    monkeypatch.setattr(kind, "get_sync", watched)
    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(lambda block: read_block(array, block), range(4)))
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(8))
    assert len(readers) == 4
    assert threading.get_ident() not in readers


class ShiftingStore(MemoryStore):
    """Overrides `get` alone, as a store that decrypts does."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if value is None or key.endswith("zarr.json"):
            return value
        return type(value).from_bytes(bytes(byte + 1 for byte in value.to_bytes()))


@pytest.mark.parametrize("shadows", ["class", "instance", "wrapper"])
def test_whoever_overrides_get_is_asked(shadows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = MemoryStore()
    if shadows == "class":
        store = ShiftingStore()
    elif shadows == "wrapper":
        store = WrapperStore(ShiftingStore())
    array = zarr.create_array(store, shape=(4,), chunks=(2,), dtype="uint8", compressors=None)
    array[:] = [1, 2, 3, 4]
    if shadows == "instance":
        monkeypatch.setattr(store, "get", _shifted(store.get))
    np.testing.assert_array_equal(read_block(array, 1), [4, 5])
    np.testing.assert_array_equal(array.blocks[1], [4, 5])


def _shifted(get: Any) -> Any:
    async def shifted(*args: Any, **options: Any) -> Any:
        value = await get(*args, **options)
        return type(value).from_bytes(bytes(byte + 1 for byte in value.to_bytes()))

    return shifted


class FailingStore(MemoryStore):
    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key.startswith("c/"):
            raise PermissionError(key)
        return await super().get(key, prototype, byte_range)


def test_errors_come_as_they_are() -> None:
    array = zarr.create_array(FailingStore(), shape=(4,), chunks=(2,), dtype="int8")
    for coords in (1, slice(0, 2)):
        with pytest.raises(PermissionError):
            read_block(array, coords)
        with pytest.raises(PermissionError):
            asyncio.run(read_block_async(array, coords))


def test_corrupt_chunks() -> None:
    store: dict[str, Any] = {}
    array = zarr.create_array(store, data=np.arange(4), chunks=(2,))
    store["c/1"] = type(store["c/1"]).from_bytes(b"nonsense")
    with pytest.raises(Exception) as expected:
        array.blocks[1]
    with pytest.raises(type(expected.value), match=str(expected.value)):
        read_block(array, 1)


def test_what_is_no_array() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        read_block(np.arange(3), 0)  # type: ignore[arg-type]


async def test_an_asynchronous_array_is_read_in_the_loop_that_runs() -> None:
    loops: set[Any] = set()

    class Watching(MemoryStore):
        async def get(self, *args: Any, **options: Any) -> Buffer | None:
            loops.add(asyncio.get_running_loop())
            return await super().get(*args, **options)

    store = Watching()
    array = await zarr.api.asynchronous.create_array(store, shape=(4,), chunks=(2,), dtype="int8")
    loops.clear()
    await read_block_async(array, 0)
    assert loops == {asyncio.get_running_loop()}
    loops.clear()
    await read_block_async(zarr.Array(array), 0)
    assert loops.isdisjoint({asyncio.get_running_loop()})
    assert len(loops) == 1


def test_an_array_that_was_resized() -> None:
    array = zarr.create_array({}, data=np.arange(4), chunks=(2,))
    read_block(array, 1)
    array.resize(3)
    assert_same(read_block(array, 1), array.blocks[1])
    assert_same(read_block(pickle.loads(pickle.dumps(array)), 1), array.blocks[1])
