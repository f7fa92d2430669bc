"""Streams of blocks over HTTP, by keys and by references."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from tests.test_experimental.test_block_stream import collect, make_array, values
from zarr.core.sync import sync
from zarr.experimental.block_stream import BlockStream
from zarr.storage import FsspecStore

pytest.importorskip("fsspec", minversion="2024.12.0")
pytest.importorskip("aiohttp")

from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.reference import ReferenceFileSystem

from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def served(store: FsspecStore, http: Any) -> Iterator[zarr.Array[Any]]:
    """An array in a store, whose connections are closed at the end."""

    async def close() -> None:
        await (await http.set_session()).close()

    try:
        yield zarr.open_array(store, mode="r")
    finally:
        sync(close())


def test_over_http() -> None:
    objects: dict[str, Any] = {}
    make_array(objects, blocks=40)
    files = {f"a/{key}": value.to_bytes() for key, value in objects.items()}
    with RangeServer(files, latency=0.02) as server:
        options = {"skip_instance_cache": True}
        store = FsspecStore.from_url(f"{server.url}/a", options, read_only=True)
        with served(store, store.fs) as array:
            with BlockStream(array, io_concurrency=8) as stream:
                assert values(stream) == list(range(1, 41))
            chunks = [request for request in server.requests if "/c/" in request.path]
            assert len(chunks) == stream.stats.requests == 40
            # The server sees a request later than the store, and its end earlier.
            assert 4 <= max(request.in_flight for request in chunks) <= 8
            server.inject(Fault(status=503), path="/a/c/7", times=None)
            taken: list[int] = []
            with BlockStream(array) as stream, pytest.raises(Exception, match="503"):
                collect(stream, taken)
            assert taken == [1, 2, 3, 4, 5, 6, 7]


@contextmanager
def by_references(
    server: RangeServer, objects: dict[str, Any], **options: Any
) -> Iterator[zarr.Array[Any]]:
    """An array whose chunks are byte ranges of the file that the server has."""
    references: dict[str, Any] = {"zarr.json": objects["zarr.json"].to_bytes().decode()}
    for key, (start, nbytes) in pack(objects)[1].items():
        references[key] = [f"{server.url}/packed", start, nbytes]
    http = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    fs = ReferenceFileSystem(
        references, fs={"http": http}, asynchronous=True, skip_instance_cache=True, **options
    )
    with served(FsspecStore(fs, read_only=True, path=""), http) as array:
        yield array


def pack(objects: dict[str, Any]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """All chunks in one file, and where each of them is."""
    packed, places = b"", {}
    for key in (key for key in objects if key.startswith("c/")):
        chunk = objects[key].to_bytes()
        places[key] = (len(packed), len(chunk))
        packed += chunk
    return packed, places


def test_references_into_one_file_are_merged() -> None:
    objects: dict[str, Any] = {}
    make_array(objects, blocks=100)
    with (
        RangeServer({"packed": pack(objects)[0]}) as server,
        by_references(server, objects) as array,
    ):
        with BlockStream(array) as stream:
            assert values(stream) == list(range(1, 101))
        # The window of each size is one range of the file.
        assert len(server.requests) == stream.stats.requests == 4


@pytest.mark.parametrize("io_concurrency", [3, 25])
def test_requests_in_flight_by_references(io_concurrency: int) -> None:
    """Ranges that are too far apart to be merged are requests, too."""
    objects: dict[str, Any] = {}
    make_array(objects, blocks=100)
    with (
        RangeServer({"packed": pack(objects)[0]}, latency=0.01) as server,
        by_references(server, objects, max_gap=-1) as array,
    ):
        for _ in range(2):  # the limit of a file system adapts
            with BlockStream(array, io_concurrency=io_concurrency) as stream:
                assert values(stream) == list(range(1, 101))
        assert server.max_in_flight <= io_concurrency


READS: dict[str, Callable[[zarr.Array[Any]], object]] = {
    "a chunk": lambda array: array[20:30],
    "chunks": lambda array: array[10:],
    "a block": lambda array: list(BlockStream(array, blocks=[2])),
    "blocks": lambda array: list(BlockStream(array)),
}


@pytest.mark.parametrize("read", READS)
def test_text_of_a_server_that_ignores_ranges_is_an_error(read: str) -> None:
    """The start of the file is text as well, so decoding it does not fail."""
    objects: dict[str, Any] = {}
    words = np.array([f"w{number}" for number in range(40)], dtype=np.dtypes.StringDType())
    zarr.create_array(objects, data=words, chunks=(10,), compressors=None)
    with (
        RangeServer({"packed": pack(objects)[0]}) as server,
        by_references(server, objects) as array,
    ):
        np.testing.assert_array_equal(array[:], words)
        server.inject(Fault(ignore_range=True))
        with pytest.raises(OSError, match="ignored the byte range"):
            READS[read](array)
