"""Tests for how chunks of plain numbers are decoded, and for where they go in the output.

Where the chunks are NumPy arrays as they are stored, a short road may be taken. It must lead to the
same place as the general one, `decode_and_scatter_chunk`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given

from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec
from zarr.core import _chunk_reads
from zarr.core._chunk_reads import chunk_decoder
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.core import BufferPrototype
from zarr.core.buffer.cpu import Buffer as NumpyBuffer
from zarr.core.buffer.cpu import NDBuffer as NumpyNDBuffer
from zarr.core.chunk_grids import ChunkGrid
from zarr.core.chunk_utils import ChunkTransform, decode_and_scatter_chunk
from zarr.core.dtype import get_data_type_from_native_dtype
from zarr.core.indexing import BasicIndexer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from zarr.abc.codec import GetResult

PROTOTYPE = default_buffer_prototype()


class OtherNDBuffer(NumpyNDBuffer):
    """Not the buffer that zarr takes for NumPy arrays by itself."""


class OtherBuffer(NumpyBuffer):
    """The same for bytes."""


OTHER_PROTOTYPE = BufferPrototype(buffer=OtherBuffer, nd_buffer=OtherNDBuffer)


def array_spec(
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    *,
    fill_value: Any = 0,
    prototype: BufferPrototype = PROTOTYPE,
) -> ArraySpec:
    return ArraySpec(
        shape=shape,
        dtype=get_data_type_from_native_dtype(np.dtype(dtype)),
        fill_value=fill_value,
        config=ArrayConfig(order="C", write_empty_chunks=True),
        prototype=prototype,
    )


def numbers(kind: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Elements that all differ, also where their bytes are swapped."""
    dtype: np.dtype[Any] = np.dtype(kind)
    size = int(np.prod(shape))
    if dtype.kind in "SUV" and dtype.fields is None:
        fill = bytes(range(1, 1 + size)) * dtype.itemsize
        if dtype.kind == "U":
            return np.array([f"{i}é" for i in range(size)], dtype=dtype).reshape(shape)
        return np.frombuffer(fill[: size * dtype.itemsize], dtype=dtype).reshape(shape)
    if dtype.fields is not None:
        values = np.zeros(shape, dtype=dtype)
        for name in dtype.fields:
            values[name] = numbers(dtype[name], shape)
        return values
    return (np.arange(size) % 251 + (dtype.kind != "b")).astype(dtype).reshape(shape)


PLAIN = ["bool", "int8", "uint8", "S3", "V3"]
ORDERED = [
    *("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "U4"),
    *("M8[ns]", "M8[10us]", "m8[s]", "m8[D]"),
]
STRUCTURED: list[Any] = [
    [("a", "{0}i4"), ("b", "{0}f8"), ("c", "S2")],
    [("a", "u1"), ("b", "{0}M8[s]"), ("c", "{0}U2"), ("d", "?")],
]


def with_order(dtype: Any, order: str) -> np.dtype[Any]:
    if isinstance(dtype, str):
        return np.dtype(order + dtype)
    return np.dtype([(name, kind.format(order)) for name, kind in dtype])


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("prototype", [PROTOTYPE, OTHER_PROTOTYPE], ids=["default", "other"])
@pytest.mark.parametrize("shape", [(3, 4), (), (5,), (2, 1, 3)], ids=repr)
@pytest.mark.parametrize("dtype", [*ORDERED, *STRUCTURED], ids=repr)
@pytest.mark.parametrize(("in_memory", "stored"), ["<<", "<>", "><", ">>"])
async def test_byte_orders(
    dtype: Any, in_memory: str, stored: str, shape: tuple[int, ...], prototype: BufferPrototype
) -> None:
    expected = numbers(with_order(dtype, in_memory), shape)
    encoded = expected.astype(with_order(dtype, stored))
    codec = BytesCodec(endian="little" if stored == "<" else "big")
    spec = array_spec(expected.dtype, shape, prototype=prototype)
    source = prototype.buffer.from_bytes(encoded.tobytes())
    for decoded in (codec._decode_sync(source, spec), await codec._decode_single(source, spec)):
        assert type(decoded) is prototype.nd_buffer
        assert decoded.dtype == expected.dtype
        np.testing.assert_array_equal(decoded.as_numpy_array(), expected)
    assert encoded.tobytes() == source.to_bytes()  # nothing was swapped in place


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("endian", [None, "little", "big"])
@pytest.mark.parametrize("dtype", [*PLAIN, [("a", "u1"), ("b", "S2")]], ids=repr)
def test_data_types_without_a_byte_order(dtype: Any, endian: Any) -> None:
    expected = numbers(dtype, (3, 4))
    source = PROTOTYPE.buffer.from_bytes(expected.tobytes())
    decoded = BytesCodec(endian=endian)._decode_sync(source, array_spec(expected.dtype, (3, 4)))
    assert decoded.dtype == expected.dtype
    np.testing.assert_array_equal(decoded.as_numpy_array(), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_without_an_endian_a_structure_is_taken_as_it_is(order: str) -> None:
    expected = numbers(with_order(STRUCTURED[0], order), (6,))
    source = PROTOTYPE.buffer.from_bytes(expected.tobytes())
    decoded = BytesCodec(endian=None)._decode_sync(source, array_spec(expected.dtype, (6,)))
    np.testing.assert_array_equal(decoded.as_numpy_array(), expected)


def test_decoding_does_not_copy_what_is_stored_as_it_is_in_memory() -> None:
    source = PROTOTYPE.buffer.from_bytes(bytes(24))
    for endian, shared in (("little", True), ("big", False)):
        decoded = BytesCodec(endian=endian)._decode_sync(source, array_spec("<i4", (2, 3)))  # type: ignore[arg-type]
        result = np.shares_memory(decoded.as_numpy_array(), source.as_numpy_array())
        assert result == shared


@pytest.mark.parametrize("nbytes", [0, 20, 23, 28])
def test_a_chunk_of_the_wrong_size(nbytes: int) -> None:
    source = PROTOTYPE.buffer.from_bytes(bytes(nbytes))
    with pytest.raises(ValueError):
        BytesCodec()._decode_sync(source, array_spec("i4", (2, 3)))


# ---------------------------------------------------------------------------
# chunk_decoder
# ---------------------------------------------------------------------------


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> list[ArraySpec]:
    """The chunks that `chunk_decoder` has left to the general road."""
    calls: list[ArraySpec] = []

    def spy(*args: Any, **kwargs: Any) -> GetResult:
        calls.append(kwargs["chunk_spec"])
        return decode_and_scatter_chunk(*args, **kwargs)

    monkeypatch.setattr(_chunk_reads, "decode_and_scatter_chunk", spy)
    return calls


SHAPE = (4, 6)
SELECTIONS: dict[str, tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] = {
    # name: chunk_selection, out_selection, shape of out, drop_axes
    "whole": ((slice(0, 4), slice(0, 6)), (slice(1, 5), slice(2, 8)), (7, 9), ()),
    "part": ((slice(1, 4, 2), slice(2, 5)), (slice(0, 2), slice(0, 3)), (2, 3), ()),
    "row": ((2, slice(0, 6)), (slice(0, 6),), (6,), ()),
    "column": ((slice(0, 4), 5), (slice(1, 5),), (6,), ()),
    "element": ((3, 2), (), (), ()),
    "nothing": ((slice(2, 2), slice(0, 6)), (slice(0, 0), slice(0, 6)), (3, 6), ()),
    "fancy": ((np.array([3, 0, 0]), np.array([1, 5, 1])), (np.array([4, 1, 0]),), (5,), ()),
    "orthogonal": (np.ix_([3, 1], [0, 5, 2]), np.ix_([0, 3], [1, 0, 2]), (4, 3), ()),
    "dropped": (np.ix_([3], [0, 5, 2]), (slice(0, 3),), (3,), (0,)),
    "fewer-selectors": ((slice(1, 3),), (slice(0, 2),), (2, 6), ()),
    "no-selectors": ((), (), SHAPE, ()),
    "not-a-tuple": (slice(1, 3), slice(0, 2), (2, 6), ()),
    "mask": ((np.arange(24).reshape(SHAPE) % 5 == 0,), (slice(0, 5),), (6,), ()),
}
LONG = ("dropped", "not-a-tuple")
CHAINS: dict[str, list[Any]] = {
    "plain": [BytesCodec(endian="little")],
    "swapped": [BytesCodec(endian="big")],
    "compressed": [BytesCodec(endian="little"), GzipCodec(), Crc32cCodec()],
    "transposed": [TransposeCodec(order=(1, 0)), BytesCodec(endian="little")],
}


def roads(
    codecs: list[Any], out: Any, drop_axes: tuple[int, ...] = ()
) -> tuple[Callable[..., GetResult], Callable[..., GetResult], npt.NDArray[Any]]:
    """`chunk_decoder`, the general road, and where the latter writes to."""
    transform, other = ChunkTransform(codecs=tuple(codecs)), out.as_numpy_array().copy(order="K")

    def decode(value: Any, spec: Any, chunk_selection: Any, out_selection: Any) -> GetResult:
        return decode_and_scatter_chunk(
            value,
            NumpyNDBuffer.from_numpy_array(other),
            chunk_spec=spec,
            chunk_selection=chunk_selection,
            out_selection=out_selection,
            drop_axes=drop_axes,
            decode=transform.decode_chunk,
        )

    scatter = chunk_decoder(transform, drop_axes)
    return lambda value, *where: scatter(value, out, *where), decode, other


@pytest.mark.parametrize("dtype", ["<i4", ">i4", "M8[s]", [("a", "<i2"), ("b", "<f8")]], ids=repr)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_both_roads_lead_to_the_same_place(
    selection: str, order: Any, chain: str, dtype: Any, general: list[ArraySpec]
) -> None:
    chunk_selection, out_selection, shape, drop_axes = SELECTIONS[selection]
    data = numbers(dtype, SHAPE)
    spec = array_spec(data.dtype, SHAPE, fill_value=data[0, 1])
    out = NumpyNDBuffer.from_numpy_array(np.zeros(shape, dtype=data.dtype, order=order))
    decode, reference, expected = roads(CHAINS[chain], out, drop_axes)
    encoded = ChunkTransform(codecs=tuple(CHAINS[chain])).encode_chunk(
        NumpyNDBuffer.from_numpy_array(data), spec
    )
    for value, status in ((encoded, "present"), (None, "missing"), (encoded, "present")):
        assert decode(value, spec, chunk_selection, out_selection) == {"status": status}
        assert reference(value, spec, chunk_selection, out_selection) == {"status": status}
        np.testing.assert_array_equal(out.as_numpy_array(), expected)
    # As it is stored NumPy can take it where no byte has to be moved.
    in_order = data.dtype.newbyteorder("big" if chain == "swapped" else "little") == data.dtype
    short = in_order and chain != "transposed" and selection not in LONG
    assert len(general) == (1 if short else 3)


@pytest.mark.parametrize("other_out", [False, True])
def test_a_prototype_that_is_not_the_default(general: list[ArraySpec], other_out: bool) -> None:
    """Somebody else's buffers are asked, whether they are those of chunks or those of the output."""
    data = numbers("<i4", SHAPE)
    prototype = PROTOTYPE if other_out else OTHER_PROTOTYPE
    nd_buffer = OtherNDBuffer if other_out else NumpyNDBuffer
    out = nd_buffer.from_numpy_array(np.zeros(SHAPE, dtype="<i4"))
    decode, *_ = roads(CHAINS["plain"], out)
    spec = array_spec("<i4", SHAPE, prototype=prototype)
    decode(prototype.buffer.from_bytes(data.tobytes()), spec, (slice(0, 4), slice(0, 6)), ...)
    np.testing.assert_array_equal(out.as_numpy_array(), data)
    assert general == [spec]


def test_an_output_that_is_an_array_of_another_class(general: list[ArraySpec]) -> None:
    class Other(np.ndarray[Any, Any]):
        pass

    data = numbers("<i4", SHAPE)
    values: Any = np.zeros(SHAPE, dtype="<i4").view(Other)
    decode, *_ = roads(CHAINS["plain"], NumpyNDBuffer(values))
    spec, whole = array_spec("<i4", SHAPE), (slice(0, 4), slice(0, 6))
    decode(PROTOTYPE.buffer.from_bytes(data.tobytes()), spec, whole, whole)
    np.testing.assert_array_equal(values, data)
    assert general == [spec]


def test_the_data_type_of_a_spec_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ArraySpec] = []
    plain_dtype = _chunk_reads._plain_dtype

    def spy(spec: ArraySpec, codec: BytesCodec) -> np.dtype[Any] | None:
        asked.append(spec)
        return plain_dtype(spec, codec)

    monkeypatch.setattr(_chunk_reads, "_plain_dtype", spy)
    decode, *_ = roads(CHAINS["plain"], NumpyNDBuffer(np.zeros(SHAPE, dtype="<i4")))
    spec, whole = array_spec("<i4", SHAPE), (slice(0, 4), slice(0, 6))
    for _ in range(3):
        decode(PROTOTYPE.buffer.from_bytes(bytes(96)), spec, whole, whole)
    assert asked == [spec]


def test_each_spec_is_decoded_as_it_says() -> None:
    """Chunks of one read may differ in shape, in byte order, and in what they hold."""
    out = NumpyNDBuffer.from_numpy_array(np.zeros((2, 12), dtype="<i4"))
    decode, *_ = roads(CHAINS["plain"], out)
    specs = [array_spec(dtype, shape) for dtype, shape in (("<i4", (12,)), (">i4", (3, 4)))]
    data = np.arange(12, dtype="<i4")
    for _ in range(2):
        for row, (spec, selection) in enumerate(zip(specs, [(slice(None),), (2,)], strict=True)):
            columns = slice(0, 12 if row == 0 else 4)
            value = PROTOTYPE.buffer.from_bytes(data.tobytes())
            decode(value, spec, selection, (row, columns))
        np.testing.assert_array_equal(out.as_numpy_array()[0], data)
        np.testing.assert_array_equal(out.as_numpy_array()[1, :4], data[8:])
        out.as_numpy_array()[...] = 0
        floats = data.astype("<f4")
        decode(
            PROTOTYPE.buffer.from_bytes(floats.tobytes()),
            array_spec("<f4", (12,)),
            (slice(None),),
            (0, slice(None)),
        )
        np.testing.assert_array_equal(out.as_numpy_array()[0], data)


@pytest.mark.parametrize("chain", ["plain", "swapped", "compressed"])
@pytest.mark.parametrize("nbytes", [0, 20, 95, 100, 192])
def test_a_chunk_of_the_wrong_size_is_the_same_error(chain: str, nbytes: int) -> None:
    out = NumpyNDBuffer.from_numpy_array(np.zeros(SHAPE, dtype="<i4"))
    decode, reference, _ = roads(CHAINS[chain], out)
    value = PROTOTYPE.buffer.from_bytes(bytes(nbytes))
    for codec in CHAINS[chain][1:]:
        value = codec._encode_sync(value, array_spec("u1", (nbytes,)))
    spec, selection = array_spec("<i4", SHAPE), (slice(0, 4), slice(0, 6))
    errors = []
    for road in (decode, reference):
        with pytest.raises(ValueError) as raised:
            road(value, spec, selection, selection)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
    assert not out.as_numpy_array().any()


# ---------------------------------------------------------------------------
# BasicIndexer
# ---------------------------------------------------------------------------


def selectors(size: int) -> st.SearchStrategy[Any]:
    edges = st.integers(-size - 1, size + 1) | st.none()
    return st.integers(-size, size - 1) | st.builds(slice, edges, edges, st.integers(1, 4))


@given(data=st.data(), shape=st.lists(st.integers(1, 9), max_size=3).map(tuple))
def test_projections_of_basic_selections(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Together the chunks give what NumPy gives, each element once; complete ones are complete."""
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    selection = tuple(data.draw(selectors(size)) for size in shape)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    indexer = BasicIndexer(selection, shape, ChunkGrid.from_sizes(shape, chunks))
    expected = array[selection]
    assert indexer.shape == expected.shape
    out = np.full(expected.shape, -1)
    for coords, chunk_selection, out_selection, complete in indexer:
        assert all(type(part) is tuple for part in (coords, chunk_selection, out_selection))
        region = tuple(slice(c * n, (c + 1) * n) for c, n in zip(coords, chunks, strict=True))
        chosen = array[region][chunk_selection]
        assert np.all(out[out_selection] == -1)
        out[out_selection] = chosen
        assert chosen.size == array[region].size or not complete
    np.testing.assert_array_equal(out, expected)


def test_the_only_projection_of_no_dimensions() -> None:
    (projection,) = BasicIndexer((), (), ChunkGrid.from_sizes((), ()))
    assert tuple(projection) == ((), (), (), True)
