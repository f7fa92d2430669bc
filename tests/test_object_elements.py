"""A single element of an object array is the object, not nested arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.codecs import ShardingCodec, VLenBytesCodec
from zarr.core.buffer import default_buffer_prototype

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (2,)},
    "shards": {"chunks": (2,), "shards": (8,)},
    "shards of shards": {
        "chunks": (8,),
        "serializer": ShardingCodec(
            chunk_shape=(4,), codecs=[ShardingCodec(chunk_shape=(2,), codecs=[VLenBytesCodec()])]
        ),
        "compressors": None,
    },
}


@pytest.fixture(params=["BatchedCodecPipeline", "FusedCodecPipeline"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    path = f"zarr.core.codec_pipeline.{request.param}"
    with zarr.config.set({"codec_pipeline.path": path}):
        yield


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "select",
    [lambda array: array[3], lambda array: array.oindex[3], lambda array: array[-13]],
    ids=["basic", "orthogonal", "from the end"],
)
def test_a_single_element(layout: str, select: Callable[[Any], Any]) -> None:
    values = np.array([b"value %d" % number for number in range(16)], dtype=object)
    array = zarr.create_array({}, shape=16, dtype="variable_length_bytes", **LAYOUTS[layout])
    array[:] = values
    element = select(array)
    assert element.shape == ()
    assert element.dtype == object
    assert type(element[()]) is bytes
    assert element[()] == b"value 3"
    np.testing.assert_array_equal(array[...], values)


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_element_that_is_written(layout: str) -> None:
    array = zarr.create_array({}, shape=16, dtype="variable_length_bytes", **LAYOUTS[layout])
    array[3] = b"written"
    array[4] = np.array(b"too", dtype=object)
    assert np.asarray(array[2:6]).tolist() == [b"", b"written", b"too", b""]


@pytest.mark.parametrize("key", [(), (1,), (slice(0, 2),), ...])
def test_an_array_without_dimensions_is_its_value(key: Any) -> None:
    shape = () if key == () else (3,)
    buffer = default_buffer_prototype().nd_buffer.create(shape=shape, dtype=object, fill_value=0)
    value = np.array(b"value", dtype=object)
    buffer[key] = default_buffer_prototype().nd_buffer.from_ndarray_like(value)
    expected = np.full(shape, 0, dtype=object)
    expected[key] = b"value"
    assert buffer.as_numpy_array().tolist() == expected.tolist()
    assert {type(each) for each in buffer.as_numpy_array().flat} <= {bytes, int}


@pytest.mark.parametrize("value", [np.str_("text"), "text", 7], ids=["numpy", "str", "int"])
def test_a_scalar_is_assigned_as_it_is(value: Any) -> None:
    buffer = default_buffer_prototype().nd_buffer.create(shape=(2,), dtype=object, fill_value=0)
    buffer[:] = value
    assert buffer.as_numpy_array().tolist() == [value, value]


def test_an_object_that_is_a_sequence_is_not_taken_apart() -> None:
    value = np.empty((), dtype=object)
    value[()] = [1, 2]
    buffer = default_buffer_prototype().nd_buffer.create(shape=(2,), dtype=object, fill_value=0)
    buffer[:] = value
    assert buffer.as_numpy_array().tolist() == [[1, 2], [1, 2]]
