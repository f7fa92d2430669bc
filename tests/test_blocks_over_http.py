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

    yield zarr.open_array(store, mode="r")
    sync(close())


def test_over_http() -> None:
    objects: dict[str, Any] = {}
    make_array(objects, blocks=40)
    files = {f"a/{key}": value.to_bytes() for key, value in objects.items()}
    with RangeServer(files, latency=0.005) as server:
        options = {"skip_instance_cache": True}
        store = FsspecStore.from_url(f"{server.url}/a", options, read_only=True)
        with served(store, store.fs) as array:
            with BlockStream(array, io_concurrency=8) as stream:
                assert values(stream) == list(range(1, 41))
            chunks = [request for request in server.requests if "/c/" in request.path]
            assert len(chunks) == stream.stats.requests == 40
            assert max(request.in_flight for request in chunks) == 8
            server.inject(Fault(status=503), path="/a/c/7", times=None)
            taken: list[int] = []
            with BlockStream(array) as stream, pytest.raises(Exception, match="503"):
                collect(stream, taken)
            assert taken == [1, 2, 3, 4, 5, 6, 7]


def test_references_into_one_file_are_merged() -> None:
    objects: dict[str, Any] = {}
    make_array(objects, blocks=100)
    chunks = [objects[f"c/{n}"].to_bytes() for n in range(100)]
    with RangeServer({"packed": b"".join(chunks)}) as server:
        references = {f"c/{n}": [f"{server.url}/packed", 8 * n, 8] for n in range(100)}
        references["zarr.json"] = objects["zarr.json"].to_bytes().decode()
        http = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
        fs = ReferenceFileSystem(
            references, fs={"http": http}, asynchronous=True, skip_instance_cache=True
        )
        with served(FsspecStore(fs, read_only=True, path=""), http) as array:
            with BlockStream(array) as stream:
                assert values(stream) == list(range(1, 101))
            # The window of each size is one range of the file.
            assert len(server.requests) == stream.stats.requests == 4


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
    chunks = [objects[f"c/{n}"].to_bytes() for n in range(4)]
    with RangeServer({"packed": b"".join(chunks)}) as server:
        starts = [sum(map(len, chunks[:n])) for n in range(4)]
        references = {
            f"c/{n}": [f"{server.url}/packed", starts[n], len(chunks[n])] for n in range(4)
        }
        references["zarr.json"] = objects["zarr.json"].to_bytes().decode()
        http = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
        fs = ReferenceFileSystem(
            references, fs={"http": http}, asynchronous=True, skip_instance_cache=True
        )
        with served(FsspecStore(fs, read_only=True, path=""), http) as array:
            assert (array[:] == words).all()
            server.inject(Fault(ignore_range=True))
            with pytest.raises(OSError, match="ignored the byte range"):
                READS[read](array)
