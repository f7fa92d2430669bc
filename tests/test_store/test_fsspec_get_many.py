"""`FsspecStore.get_many`: what `get` gives, on each kind of filesystem, with fewer requests."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zarr
from tests.event_loop import nothing_left_behind, until
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, MemoryStore

fsspec = pytest.importorskip("fsspec", minversion="2024.12.0")
aiohttp = pytest.importorskip("aiohttp")

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.reference import (
    LazyReferenceMapper,
    ReferenceFileSystem,
    ReferenceNotReachable,
)

from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from zarr.core.buffer import BufferPrototype

type Request = str | tuple[str, ByteRequest | None]

PROTOTYPE = default_buffer_prototype()
KIB = 1 << 10


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


CONTENT = {
    "a": noise(1000, seed=1),
    "b/c": noise(300, seed=2),
    "b/d/e": noise(50, seed=3),
    "one": b"1",
    "empty": b"",
}
OBJECTS = {f"root/{key}": value for key, value in CONTENT.items()}

REQUESTS: list[tuple[str, ByteRequest | None]] = [
    # whole values, and keys that are none: absent ones, directories, what lies below a file
    ("a", None),
    ("b/c", None),
    ("b/d/e", None),
    ("one", None),
    ("empty", None),
    ("absent", None),
    ("b/absent", None),
    ("b", None),
    ("b/d", None),
    ("", None),
    ("b/c", None),
    # ranges: adjacent, overlapping, one in another, the same again, far apart
    ("a", RangeByteRequest(0, 10)),
    ("a", RangeByteRequest(10, 20)),
    ("a", RangeByteRequest(15, 120)),
    ("a", RangeByteRequest(16, 18)),
    ("a", RangeByteRequest(10, 20)),
    ("a", RangeByteRequest(800, 801)),
    ("a", RangeByteRequest(0, 1000)),
    ("b/c", RangeByteRequest(5, 250)),
    ("b/d/e", RangeByteRequest(1, 50)),
    # across the end and beyond it
    ("a", RangeByteRequest(990, 1001)),
    ("a", RangeByteRequest(990, 5000)),
    ("a", RangeByteRequest(999, 1500)),
    ("a", RangeByteRequest(1000, 1010)),
    ("a", RangeByteRequest(1200, 1210)),
    ("one", RangeByteRequest(0, 2)),
    ("empty", RangeByteRequest(0, 5)),
    # nothing, and less than nothing
    ("a", RangeByteRequest(0, 0)),
    ("a", RangeByteRequest(7, 7)),
    ("a", RangeByteRequest(1000, 1000)),
    ("a", RangeByteRequest(20, 10)),
    # open ends
    ("a", OffsetByteRequest(0)),
    ("a", OffsetByteRequest(100)),
    ("a", OffsetByteRequest(999)),
    ("a", OffsetByteRequest(1000)),
    ("a", OffsetByteRequest(4000)),
    ("empty", OffsetByteRequest(0)),
    ("a", SuffixByteRequest(1)),
    ("a", SuffixByteRequest(100)),
    ("a", SuffixByteRequest(1000)),
    ("a", SuffixByteRequest(4000)),
    ("a", SuffixByteRequest(0)),
    ("empty", SuffixByteRequest(3)),
    # parts of what is not there
    ("absent", RangeByteRequest(0, 5)),
    ("absent", RangeByteRequest(5, 9)),
    ("absent", OffsetByteRequest(3)),
    ("absent", SuffixByteRequest(3)),
    ("b", RangeByteRequest(0, 5)),
]


def pair(request: Request) -> tuple[str, ByteRequest | None]:
    return (request, None) if isinstance(request, str) else request


async def read(store: Store, requests: Sequence[Request]) -> list[bytes | None]:
    """What `get_many` gives for each request."""
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE):
        assert group
        for index, value in group:
            assert index not in values
            assert value is None or isinstance(value, Buffer)
            values[index] = None if value is None else value.to_bytes()
    assert sorted(values) == list(range(len(requests)))
    return [values[index] for index in range(len(requests))]


async def read_by_get(store: Store, request: Request) -> bytes | None:
    """What `get` gives for a request."""
    key, byte_range = pair(request)
    value = await store.get(key, prototype=PROTOTYPE, byte_range=byte_range)
    return None if value is None else value.to_bytes()


async def outcome(store: Store, request: Request) -> bytes | type[Exception] | None:
    """What `get` gives for a request, or the type of what it raises."""
    try:
        return await read_by_get(store, request)
    except Exception as error:  # noqa: BLE001
        return type(error)


async def agree(store: Store, requests: Sequence[Request]) -> None:
    """Check that `get_many` gives what `get` gives for each of these requests, or raises it."""
    outcomes = [await outcome(store, request) for request in requests]
    given = [
        (request, result)
        for request, result in zip(requests, outcomes, strict=True)
        if not isinstance(result, type)
    ]
    answerable = [request for request, _ in given]
    assert await read(store, answerable) == [result for _, result in given]
    for request, result in zip(requests, outcomes, strict=True):
        if isinstance(result, type):
            for others in ([], answerable):
                with pytest.raises(result) as failure:
                    await read(store, [*others, request])
                assert failure.type is result


def in_flight(server: RangeServer) -> int:
    return sum(request.ended is None for request in server.requests)


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


# ---------------------------------------------------------------------------
# Filesystems
# ---------------------------------------------------------------------------


class Recording(AsyncFileSystem):  # type: ignore[misc]
    """Objects in memory, sliced the way that Python slices. It remembers what was read."""

    protocol = "recording"
    cachable = False  # codespell:ignore cachable

    def __init__(self, objects: dict[str, bytes | Exception], **options: Any) -> None:
        super().__init__(asynchronous=True, **options)
        self.objects = objects
        self.reads: list[tuple[str, int | None, int | None]] = []

    async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
        start, end = kwargs.get("start"), kwargs.get("end")
        self.reads.append((path, start, end))
        await asyncio.sleep(0)
        return self._object(path)[start:end]

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": len(self._object(path))}

    def _object(self, path: str) -> bytes:
        found = self.objects.get(self._strip_protocol(path), FileNotFoundError(path))
        if isinstance(found, Exception):
            raise type(found)(*found.args)
        return found


@asynccontextmanager
async def http_filesystem(batch_size: int | None = None) -> AsyncIterator[HTTPFileSystem]:
    fs = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    fs.batch_size = batch_size  # as an argument, it would go into each request
    try:
        yield fs
    finally:
        session = await fs.set_session()
        await session.close()


def reference_store(
    refs: dict[str, Any], target: AsyncFileSystem, *, path: str = "", **options: Any
) -> FsspecStore:
    fs = ReferenceFileSystem(fo=refs, fs=target, asynchronous=True, **options)
    return FsspecStore(fs, path=path)


def wrapped(fs: Any) -> AsyncFileSystem:
    return AsyncFileSystemWrapper(fs, asynchronous=True)


PACKED = b"before" + b"between".join(CONTENT.values()) + b"after"
"""All values in one file, as an archival format would have them."""


def packed_references(url: str) -> dict[str, Any]:
    """References to the values, each a range of the file with all of them."""
    refs: dict[str, Any] = {}
    offset = len(b"before")
    for key, value in CONTENT.items():
        refs[f"root/{key}"] = [url, offset, len(value)]
        offset += len(value) + len(b"between")
    return refs


def whole_references(url: str) -> dict[str, Any]:
    """References to the values, each a file of its own."""
    return {name: [f"{url}/{name}"] for name in OBJECTS}


@dataclass(frozen=True)
class Sources:
    """Where the same objects are to be had in several ways."""

    server: RangeServer
    folder: Path
    s3: Callable[[], str]
    """Starts the server, or skips the test."""


@pytest.fixture(scope="module")
def server() -> Generator[RangeServer]:
    with RangeServer({**OBJECTS, "packed": PACKED}) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    for name, value in {**OBJECTS, "packed": PACKED}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(value)
    # Compressed, since Python before 3.12.2 can't seek in several stored members at a time.
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in OBJECTS.items():
            archive.writestr(name, value)
    return folder


BUCKET = "get-many"
CREDENTIALS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="module")
def s3_endpoint() -> Generator[str]:
    """An S3 server of its own, with the objects in a bucket."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    botocore_session = pytest.importorskip("botocore.session")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = botocore_session.get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["key"],
        aws_secret_access_key=CREDENTIALS["secret"],
    )
    client.create_bucket(Bucket=BUCKET)
    for name, value in {**OBJECTS, "packed": PACKED}.items():
        client.put_object(Bucket=BUCKET, Key=name, Body=value)
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture
def sources(request: pytest.FixtureRequest, server: RangeServer, folder: Path) -> Sources:
    return Sources(server, folder, lambda: str(request.getfixturevalue("s3_endpoint")))


type Opening = Callable[[Sources], AbstractAsyncContextManager[FsspecStore]]

FILESYSTEMS: dict[str, Opening] = {}


def filesystem(
    name: str,
) -> Callable[[Callable[[Sources], AsyncIterator[FsspecStore]]], Opening]:
    def register(opening: Callable[[Sources], AsyncIterator[FsspecStore]]) -> Opening:
        FILESYSTEMS[name] = asynccontextmanager(opening)
        return FILESYSTEMS[name]

    return register


@filesystem("http")
async def open_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as fs:
        yield FsspecStore(fs, path=f"{sources.server.url}/root")


@asynccontextmanager
async def s3_filesystem(endpoint: str) -> AsyncIterator[AsyncFileSystem]:
    s3fs = pytest.importorskip("s3fs")
    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint, asynchronous=True, skip_instance_cache=True, **CREDENTIALS
    )
    session = await fs.set_session()
    try:
        yield fs
    finally:
        await session.close()


@filesystem("s3")
async def open_s3(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with s3_filesystem(sources.s3()) as fs:
        yield FsspecStore(fs, path=f"{BUCKET}/root")


@filesystem("local")
async def open_local(sources: Sources) -> AsyncIterator[FsspecStore]:
    yield FsspecStore.from_url(f"file://{sources.folder / 'root'}")


@asynccontextmanager
async def memory_filesystem() -> AsyncIterator[AsyncFileSystem]:
    fs = fsspec.filesystem("memory")
    for name, value in {**OBJECTS, "packed": PACKED}.items():
        fs.pipe_file(f"/get-many/{name}", value)
    try:
        yield wrapped(fs)
    finally:
        fs.rm("/get-many", recursive=True)


@filesystem("memory")
async def open_memory(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with memory_filesystem():
        yield FsspecStore.from_url("memory://get-many/root")


@filesystem("zip")
async def open_zip(sources: Sources) -> AsyncIterator[FsspecStore]:
    url = f"zip://root::file://{sources.folder / 'archive.zip'}"
    store = FsspecStore.from_url(url, storage_options={"zip": {"skip_instance_cache": True}})
    yield store
    store.fs.sync_fs.close()


@filesystem("dir over http")
async def open_dir_over_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        fs = DirFileSystem(path=f"{sources.server.url}/root", fs=http, asynchronous=True)
        yield FsspecStore(fs, path="")


@filesystem("dir over local")
async def open_dir_over_local(sources: Sources) -> AsyncIterator[FsspecStore]:
    fs = DirFileSystem(
        path=str(sources.folder), fs=wrapped(fsspec.filesystem("file")), asynchronous=True
    )
    yield FsspecStore(fs, path="root")


@filesystem("dir over memory")
async def open_dir_over_memory(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with memory_filesystem() as memory:
        fs = DirFileSystem(path="/get-many/root", fs=memory, asynchronous=True)
        yield FsspecStore(fs, path="/")


@filesystem("dir over s3")
async def open_dir_over_s3(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with s3_filesystem(sources.s3()) as s3:
        fs = DirFileSystem(path=f"{BUCKET}/root", fs=s3, asynchronous=True)
        yield FsspecStore(fs, path="")


@filesystem("references over http")
async def open_references_over_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        refs = packed_references(f"{sources.server.url}/packed")
        yield reference_store(refs, http, path="root")


@filesystem("references to whole files over http")
async def open_whole_references_over_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        yield reference_store(whole_references(sources.server.url), http, path="root/")


@filesystem("references over memory")
async def open_references_over_memory(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with memory_filesystem() as memory:
        refs = packed_references("memory://get-many/packed")
        yield reference_store({"version": 1, "refs": refs}, memory, path="root")


@filesystem("references to whole files over local")
async def open_whole_references_over_local(sources: Sources) -> AsyncIterator[FsspecStore]:
    local = fsspec.filesystem("file")
    refs = whole_references(f"file://{sources.folder}")
    yield reference_store(refs, local, path="root")


@filesystem("references over s3")
async def open_references_over_s3(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with s3_filesystem(sources.s3()) as s3:
        yield reference_store(packed_references(f"s3://{BUCKET}/packed"), s3, path="root")


@filesystem("references in a JSON file")
async def open_json_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    """The way that a URL opens them, with templates."""
    refs = {
        "version": 1,
        "templates": {"u": sources.server.url},
        "refs": {
            **packed_references("{{u}}/packed"),
            "root/one": "1",
            "root/b/d/e": ["{{u}}/root/b/d/e"],
        },
    }
    file = sources.folder / "references.json"
    file.write_text(json.dumps(refs))
    store = FsspecStore.from_url(
        "reference://root",
        storage_options={
            "fo": str(file),
            "remote_protocol": "http",
            "remote_options": {"asynchronous": True, "skip_instance_cache": True},
        },
    )
    yield store
    session = await store.fs.fss["http"].set_session()
    await session.close()


@filesystem("generated references")
async def open_generated_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    pytest.importorskip("jinja2")
    keys = list(CONTENT)
    sizes = {key: len(value) for key, value in CONTENT.items()}
    offsets = {key: packed_references("")[f"root/{key}"][1] for key in keys}
    refs = {
        "version": 1,
        "templates": {"u": f"{sources.server.url}/packed"},
        "gen": [
            {
                "key": "root/{{key}}",
                "url": "{{u}}",
                "offset": f"{{{{ {offsets}[key] }}}}",
                "length": f"{{{{ {sizes}[key] }}}}",
                "dimensions": {"key": keys},
            }
        ],
        "refs": {},
    }
    async with http_filesystem() as http:
        yield reference_store(refs, http, path="root", simple_templates=False)


@filesystem("references of several kinds")
async def open_mixed_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    """Some in the table itself, some in files of several protocols."""
    async with http_filesystem() as http, memory_filesystem() as memory:
        refs = packed_references(f"{sources.server.url}/packed")
        refs["root/b/c"] = packed_references("memory://get-many/packed")["root/b/c"]
        refs["root/b/d/e"] = "base64:" + base64.b64encode(CONTENT["b/d/e"]).decode()
        refs["root/one"] = "1"
        refs["root/empty"] = b""
        fs = ReferenceFileSystem(fo=refs, fs={"http": http, "memory": memory}, asynchronous=True)
        yield FsspecStore(fs, path="root")


@asynccontextmanager
async def lazy_references(
    sources: Sources, table: LazyReferenceMapper | str
) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        fs = ReferenceFileSystem(fo=table, fs=http, remote_protocol="http", asynchronous=True)
        yield FsspecStore(fs, path="")


def lazy_table(folder: Path, url: str) -> LazyReferenceMapper:
    """A table for Parquet, whose keys are chunks of arrays: there it has no other ones."""
    table = LazyReferenceMapper.create(
        str(folder), fs=fsspec.filesystem("file"), record_size=100, categorical_threshold=1000
    )
    table[".zgroup"] = b'{"zarr_format": 2}'
    table["v/.zarray"] = json.dumps({"shape": [20], "chunks": [1], "zarr_format": 2}).encode()
    for i in range(10):
        table[f"v/{i}"] = [url, 20 * i, 20]
    table["v/10"] = [url]
    table["v/11"] = b"inline"
    return table


@filesystem("dir over references")
async def open_dir_over_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        refs = packed_references(f"{sources.server.url}/packed")
        refs["root/b/d/e"] = CONTENT["b/d/e"]
        inner = ReferenceFileSystem(fo=refs, fs=http, asynchronous=True)
        yield FsspecStore(DirFileSystem(path="root", fs=inner, asynchronous=True), path="")


@filesystem("references into a dir")
async def open_references_into_a_dir(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        directory = DirFileSystem(path=sources.server.url, fs=http, asynchronous=True)
        yield reference_store(packed_references("packed"), directory, path="root")


@filesystem("references to references")
async def open_references_to_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        inner = ReferenceFileSystem(
            fo={"file": [f"{sources.server.url}/packed", 0, len(PACKED)]},
            fs=http,
            asynchronous=True,
        )
        yield reference_store(packed_references("reference://file"), inner, path="root")


@filesystem("obstore over http")
async def open_obstore_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    obstore = pytest.importorskip("obstore.fsspec")
    fs = obstore.FsspecStore("http", asynchronous=True, client_options={"allow_http": True})
    yield FsspecStore(fs, path=f"{sources.server.url}/root")


@filesystem("obstore over local")
async def open_obstore_local(sources: Sources) -> AsyncIterator[FsspecStore]:
    obstore = pytest.importorskip("obstore.fsspec")
    yield FsspecStore(
        obstore.FsspecStore("file", asynchronous=True), path=str(sources.folder / "root")
    )


@filesystem("obstore over memory")
async def open_obstore_memory(sources: Sources) -> AsyncIterator[FsspecStore]:
    obstore = pytest.importorskip("obstore.fsspec")
    store = FsspecStore(
        obstore.FsspecStore("memory", asynchronous=True, skip_instance_cache=True), path="root"
    )
    for key, value in CONTENT.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))
    yield store


@filesystem("obstore over s3")
async def open_obstore_s3(sources: Sources) -> AsyncIterator[FsspecStore]:
    obstore = pytest.importorskip("obstore.fsspec")
    fs = obstore.FsspecStore(
        "s3",
        asynchronous=True,
        endpoint=sources.s3(),
        region="us-east-1",
        access_key_id=CREDENTIALS["key"],
        secret_access_key=CREDENTIALS["secret"],
        client_options={"allow_http": True},
    )
    yield FsspecStore(fs, path=f"{BUCKET}/root")


def cached_over_http(protocol: str) -> None:
    @filesystem(f"{protocol} over http")
    async def open_cached(sources: Sources) -> AsyncIterator[FsspecStore]:
        options = {"asynchronous": True, "skip_instance_cache": True}
        store = FsspecStore.from_url(
            f"{protocol}::{sources.server.url}/root",
            storage_options={"http": options, protocol: {"skip_instance_cache": True}},
        )
        yield store
        session = await store.fs.fs.set_session()
        await session.close()


def cached_over_local(protocol: str) -> None:
    @filesystem(f"{protocol} over local")
    async def open_cached(sources: Sources) -> AsyncIterator[FsspecStore]:
        # Its table of what is cached is not made for several threads.
        with zarr.config.set({"async.concurrency": 1}):
            yield FsspecStore.from_url(
                f"{protocol}::file://{sources.folder / 'root'}",
                storage_options={protocol: {"skip_instance_cache": True}},
            )


for _protocol in ("simplecache", "filecache", "blockcache"):
    cached_over_http(_protocol)
for _protocol in ("simplecache", "filecache"):
    cached_over_local(_protocol)


def opening(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.s3] if "s3" in name else [], id=name)


@pytest.fixture(params=[opening(name) for name in FILESYSTEMS])
async def store(request: pytest.FixtureRequest, sources: Sources) -> AsyncGenerator[FsspecStore]:
    """The same content, on each filesystem."""
    async with FILESYSTEMS[request.param](sources) as store:
        yield store


# ---------------------------------------------------------------------------
# What `get` gives
# ---------------------------------------------------------------------------


async def test_gives_what_get_gives(store: FsspecStore) -> None:
    await agree(store, REQUESTS)


async def test_in_any_order_and_number(store: FsspecStore) -> None:
    answers = {request: await outcome(store, request) for request in REQUESTS}
    requests = [request for request in REQUESTS if not isinstance(answers[request], type)] * 3
    random.Random(5).shuffle(requests)
    assert await read(store, requests) == [answers[request] for request in requests]


async def test_ranges_are_slices_of_the_values(store: FsspecStore) -> None:
    requests = [
        (key, RangeByteRequest(start, end))
        for key, value in CONTENT.items()
        for start in range(0, len(value), 37)
        for end in (start + 1, start + 29, start + 90)
        if end <= len(value)
    ]
    expected = [CONTENT[key][at.start : at.end] for key, at in requests]
    assert await read(store, requests) == expected
    values = {key: value for key, value in CONTENT.items() if value}
    assert await read(store, list(values)) == list(values.values())


async def test_the_requests_may_be_none(store: FsspecStore) -> None:
    assert await read(store, []) == []
    assert await read(store, ()) == []


NOT_SATISFIABLE = "ClientResponseError"
UNREACHABLE = "ReferenceNotReachable"
UNSUPPORTED = "NotImplementedError"

BEYOND = ("a", RangeByteRequest(1200, 1210))
BEYOND_OPEN = ("a", OffsetByteRequest(1200))
OF_NOTHING = ("empty", SuffixByteRequest(3))
NO_BYTES = ("a", RangeByteRequest(7, 7))
BACKWARDS = ("a", RangeByteRequest(20, 10))
OFFSET = ("a", OffsetByteRequest(997))
SUFFIX = ("a", SuffixByteRequest(3))
LAST = CONTENT["a"][-3:]

DIFFERENCES: dict[str, dict[Request, bytes | str | None]] = {
    "http": {
        BEYOND: NOT_SATISFIABLE,
        BEYOND_OPEN: NOT_SATISFIABLE,
        OF_NOTHING: NOT_SATISFIABLE,
        NO_BYTES: b"",
        BACKWARDS: CONTENT["a"],
        OFFSET: LAST,
        SUFFIX: LAST,
    },
    "s3": {BEYOND: b"", BEYOND_OPEN: b"", OF_NOTHING: b"", OFFSET: LAST, SUFFIX: LAST},
    "local": {
        BEYOND: b"",
        BEYOND_OPEN: b"",
        OF_NOTHING: b"",
        NO_BYTES: b"",
        BACKWARDS: "ValueError",
        OFFSET: LAST,
        SUFFIX: LAST,
    },
    "memory": {BEYOND: b"", BEYOND_OPEN: b"", OF_NOTHING: b"", NO_BYTES: b"", BACKWARDS: b""},
    "zip": {BEYOND: b"", NO_BYTES: b"", BACKWARDS: CONTENT["a"][20:], SUFFIX: LAST},
    "dir over http": {BEYOND: NOT_SATISFIABLE, OF_NOTHING: NOT_SATISFIABLE, SUFFIX: LAST},
    "references over http": {
        BEYOND: b"",
        BEYOND_OPEN: b"",
        OF_NOTHING: b"",
        NO_BYTES: b"",
        BACKWARDS: PACKED,
        OFFSET: LAST,
        SUFFIX: LAST,
    },
    "references to whole files over http": {
        BEYOND: UNREACHABLE,
        BEYOND_OPEN: UNREACHABLE,
        OF_NOTHING: UNREACHABLE,
        NO_BYTES: b"",
    },
    "references of several kinds": {
        ("one", RangeByteRequest(1, 9)): b"",
        ("one", SuffixByteRequest(9)): b"1",
        OF_NOTHING: b"",
        ("absent", None): None,
    },
    "obstore over http": {
        BEYOND: "GenericError",
        BEYOND_OPEN: UNSUPPORTED,
        NO_BYTES: "ValueError",
        BACKWARDS: "ValueError",
        OFFSET: UNSUPPORTED,
        SUFFIX: UNSUPPORTED,
        ("a", RangeByteRequest(997, 2000)): LAST,
        ("absent", RangeByteRequest(0, 5)): None,
    },
    "references over s3": {OF_NOTHING: PACKED, BEYOND: PACKED, SUFFIX: LAST},
    "simplecache over http": {BEYOND: b"", BEYOND_OPEN: b"", SUFFIX: "OSError"},
    "simplecache over local": {BEYOND: b"", SUFFIX: "AttributeError"},
    "blockcache over http": {BEYOND: NOT_SATISFIABLE, SUFFIX: LAST},
}


@pytest.mark.parametrize("name", [opening(name) for name in DIFFERENCES])
async def test_what_filesystems_do_differently(name: str, sources: Sources) -> None:
    """They disagree on what lies beyond an end. `get_many` takes no side."""
    async with FILESYSTEMS[name](sources) as store:
        for request, expected in DIFFERENCES[name].items():
            neighbours: list[Request] = [
                ("a", RangeByteRequest(0, 7)),
                ("a", RangeByteRequest(990, 1000)),
            ]
            for requests in ([request], [*neighbours, request], [request, *neighbours]):
                if isinstance(expected, str):
                    with pytest.raises(Exception) as failure:
                        await read(store, requests)
                    assert failure.type.__name__ == expected
                else:
                    values = await read(store, requests)
                    assert values[requests.index(request)] == expected


SLICE_ENDS = st.integers(0, 60)
BYTE_RANGES = st.one_of(
    st.none(),
    st.builds(RangeByteRequest, SLICE_ENDS, SLICE_ENDS),
    st.builds(OffsetByteRequest, SLICE_ENDS),
    st.builds(SuffixByteRequest, st.integers(1, 60)),
)


@given(
    requests=st.lists(st.tuples(st.sampled_from(["a", "b", "empty", "absent"]), BYTE_RANGES)),
    data=st.data(),
)
async def test_any_requests(requests: list[Request], data: st.DataObject) -> None:
    fs = Recording({"root/a": noise(50), "root/b": noise(30), "root/empty": b""})
    store = FsspecStore(fs, path="root")
    expected = [await read_by_get(store, request) for request in requests]
    assert await read(store, requests) == expected
    order = data.draw(st.permutations(range(len(requests))))
    shuffled = await read(store, [requests[index] for index in order])
    assert shuffled == [expected[index] for index in order]


@st.composite
def reference_tables(draw: st.DrawFn) -> dict[str, Any]:
    """References to parts of two files, to one of them whole, and values."""

    def part(offset: int, size: int) -> list[Any]:
        return [draw(st.sampled_from(["recording://f", "recording://g"])), offset, size]

    value = st.binary(max_size=20)
    return {
        **{f"part{i}": part(draw(SLICE_ENDS), draw(SLICE_ENDS)) for i in range(4)},
        "same": draw(st.just(["recording://f", 10, 20])),
        "whole": ["recording://f"],
        "text": draw(st.text("abc", max_size=20)),
        "bytes": draw(value.filter(lambda data: not data.startswith(b"base64:"))),
        "base64": "base64:" + base64.b64encode(draw(value)).decode(),
    }


@given(
    refs=reference_tables(),
    requests=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *(f"part{i}" for i in range(4)),
                    "same",
                    "whole",
                    "text",
                    "bytes",
                    "base64",
                    "absent",
                ]
            ),
            BYTE_RANGES,
        )
    ),
    max_gap=st.sampled_from([-1, 0, 5, 64_000]),
    max_block=st.sampled_from([0, 20, 256_000_000]),
    version=st.sampled_from([0, 1]),
)
async def test_any_references(
    refs: dict[str, Any],
    requests: list[Request],
    max_gap: int,
    max_block: int,
    version: int,
) -> None:
    files = {"f": noise(120, seed=1), "g": noise(120, seed=2)}
    target = Recording({**files})
    store = reference_store(
        {"version": 1, "refs": refs} if version else refs,
        target,
        max_gap=max_gap,
        max_block=max_block,
    )
    expected = [await read_by_get(store, request) for request in requests]
    by_get = set(target.reads)
    target.reads.clear()
    assert await read(store, requests) == expected

    # Nothing is read that no reference names, but for gaps between two that are read.
    assert {path for path, _, _ in target.reads} <= {path for path, _, _ in by_get}
    for path, start, end in set(target.reads) - by_get:
        assert max_gap >= 0
        parts = [at for at in by_get if at[0] == path]
        assert start in {at[1] for at in parts}
        assert end in {at[2] for at in parts}


# ---------------------------------------------------------------------------
# References
# ---------------------------------------------------------------------------


async def test_references_for_parquet(sources: Sources, tmp_path: Path) -> None:
    """The table that is loaded lazily, before it is written."""
    table = lazy_table(tmp_path / "refs", f"{sources.server.url}/packed")
    requests: list[Request] = [
        *(f"v/{i}" for i in range(13)),
        ("v/3", RangeByteRequest(5, 40)),
        ("v/11", SuffixByteRequest(3)),
        ".zgroup",
        "v/.zarray",
        "v/99",
        "nothing",
    ]
    async with lazy_references(sources, table) as store:
        await agree(store, requests)
        sources.server.reset()
        values = await read(store, [f"v/{i}" for i in range(10)])
        assert values == [PACKED[20 * i : 20 * i + 20] for i in range(10)]
        assert [request.asked for request in sources.server.requests] == ["bytes=0-199"]


@pytest.mark.filterwarnings("ignore:The 'fastparquet' engine is deprecated")
async def test_references_in_parquet(sources: Sources, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("fastparquet")
    lazy_table(tmp_path / "refs", f"{sources.server.url}/packed").flush()
    async with lazy_references(sources, f"{tmp_path / 'refs'}/") as store:
        await agree(store, [*(f"v/{i}" for i in range(13)), ("v/3", RangeByteRequest(5, 40))])
        sources.server.reset()
        values = await read(store, [f"v/{i}" for i in range(10)])
        assert values == [PACKED[20 * i : 20 * i + 20] for i in range(10)]
        assert [request.asked for request in sources.server.requests] == ["bytes=0-199"]


MISSING_TARGET: dict[str, list[Any]] = {
    "one": ["recording://missing", 0, 10],
    "two": ["recording://missing", 10, 10],
    "whole": ["recording://missing"],
    "elsewhere": ["unheard-of://file", 0, 10],
    "good": ["recording://there", 0, 10],
}


@pytest.mark.parametrize(
    "requests",
    [
        ["one"],
        ["one", "two"],
        ["two", "good", "one"],
        ["whole"],
        ["whole", "whole"],
        ["elsewhere", "good"],
        [("one", RangeByteRequest(2, 5)), ("one", RangeByteRequest(5, 6))],
        [("one", SuffixByteRequest(2))],
    ],
)
async def test_a_missing_target_is_no_missing_key(requests: list[Request]) -> None:
    """A key that is not in the table is absent. A file that the table names has to be there."""
    store = reference_store(MISSING_TARGET, Recording({"there": noise(10)}))
    with pytest.raises(ReferenceNotReachable) as raised:
        await read(store, requests)
    assert raised.value.reference in {pair(request)[0] for request in requests}
    assert raised.value.target in {refs[0] for refs in MISSING_TARGET.values()}
    with pytest.raises(ReferenceNotReachable):
        await read_by_get(store, requests[0])
    assert await read(store, ["absent", "good", "absent too"]) == [None, noise(10), None]


async def test_a_target_that_ends_too_early() -> None:
    """References may reach beyond the end of a file. What there is of them is their value."""
    store = reference_store(
        {
            "a": ["recording://f", 80, 10],
            "b": ["recording://f", 90, 20],
            "c": ["recording://f", 110, 5],
        },
        Recording({"f": noise(100)}),
    )
    await agree(
        store,
        [
            "a",
            "b",
            "c",
            ("b", OffsetByteRequest(5)),
            ("b", SuffixByteRequest(15)),
            "b",
            ("a", None),
        ],
    )


async def test_a_range_of_a_reference_whose_target_ends_too_early() -> None:
    store = reference_store(
        {"a": ["recording://f", 80, 10], "b": ["recording://f", 90, 20]},
        Recording({"f": noise(100)}),
    )
    await agree(store, ["a", ("b", RangeByteRequest(5, 15)), ("b", RangeByteRequest(0, 20))])


async def test_keys_that_lead_to_the_same_bytes() -> None:
    target = Recording({"f": noise(100)})
    refs = {key: ["recording://f", 10, 20] for key in "abc"}
    store = reference_store(refs, target)
    requests: list[Request] = [
        *("a", "b"),
        ("c", RangeByteRequest(0, 500)),
        ("a", OffsetByteRequest(0)),
    ]
    assert await read(store, requests) == [noise(100)[10:30]] * 4
    assert target.reads == [("recording://f", 10, 30)]


async def test_values_in_the_table_need_no_read() -> None:
    target = Recording({})
    refs = {"a": "text", "b": b"bytes", "c": "base64:AAE=", "d": "[1]"}
    store = reference_store({"version": 1, "refs": refs}, target)
    values = await read(store, ["a", "b", "c", "d", ("a", SuffixByteRequest(2)), "absent"])
    assert values == [b"text", b"bytes", b"\0\1", b"[1]", b"xt", None]
    assert target.reads == []


async def test_a_filesystem_that_resolves_references_otherwise() -> None:
    """Its own `_cat_file` has to see the reads: what it changes in them is its business."""

    class Upper(ReferenceFileSystem):  # type: ignore[misc]
        async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
            return bytes((await super()._cat_file(path, **kwargs)).upper())

    refs = {"a": ["recording://f", 0, 3], "b": ["recording://f", 3, 3]}
    fs = Upper(fo=refs, fs=Recording({"f": b"abcdef"}), asynchronous=True)
    store = FsspecStore(fs, path="")
    assert await read(store, ["a", "b", ("a", RangeByteRequest(0, 1))]) == [b"ABC", b"DEF", b"A"]


# ---------------------------------------------------------------------------
# How many requests, for which bytes
# ---------------------------------------------------------------------------

SIDE = 32
CHUNK = 16 * KIB
BLOB = noise(SIDE * SIDE * CHUNK)


@pytest.fixture(scope="module")
def _blob_server() -> Generator[RangeServer]:
    with RangeServer({"blob": BLOB, "other": BLOB[: 8 * CHUNK]}) as server:
        yield server


@pytest.fixture
def blob_server(_blob_server: RangeServer) -> RangeServer:
    """A server with one large file, the chunks of a grid in order."""
    _blob_server.reset()
    return _blob_server


@asynccontextmanager
async def grid(server: RangeServer, **options: Any) -> AsyncIterator[FsspecStore]:
    """A store in which `i/j` is a chunk of the file."""
    url = f"{server.url}/blob"
    refs = {
        f"{i}/{j}": [url, (i * SIDE + j) * CHUNK, CHUNK] for i in range(SIDE) for j in range(SIDE)
    }
    async with http_filesystem() as http:
        yield reference_store(refs, http, **options)


def chunk(key: str) -> bytes:
    i, j = map(int, key.split("/"))
    start = (i * SIDE + j) * CHUNK
    return BLOB[start : start + CHUNK]


async def check_chunks(store: FsspecStore, keys: Sequence[str]) -> None:
    assert await read(store, keys) == [chunk(key) for key in keys]


async def test_a_thousand_chunks_of_one_file_are_a_few_requests(blob_server: RangeServer) -> None:
    async with grid(blob_server) as store:
        keys = [f"{i}/{j}" for i in range(SIDE) for j in range(SIDE)]
        random.Random(0).shuffle(keys)
        await check_chunks(store, keys)
    assert 4 <= len(blob_server.requests) <= 8
    assert sum(request.sent for request in blob_server.requests) == len(BLOB)


async def test_a_tile_is_a_request_for_each_row(blob_server: RangeServer) -> None:
    async with grid(blob_server) as store:
        keys = [f"{i}/{j}" for i in range(7, 17) for j in range(3, 14)]
        await check_chunks(store, keys)
    assert len(blob_server.requests) == 10
    assert sum(request.sent for request in blob_server.requests) == 110 * CHUNK


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
async def test_scattered_chunks_waste_little(blob_server: RangeServer, share: float) -> None:
    rng = random.Random(0)
    keys = [f"{i}/{j}" for i in range(SIDE) for j in range(SIDE) if rng.random() < share]
    async with grid(blob_server) as store:
        await check_chunks(store, keys)
    assert len(blob_server.requests) < len(keys)
    assert sum(request.sent for request in blob_server.requests) <= 1.25 * len(keys) * CHUNK


@pytest.mark.parametrize(
    ("max_gap", "expected"),
    [(-1, 16), (0, 16), (CHUNK - 1, 16), (CHUNK, 1), (1 << 20, 1)],
)
async def test_the_gap_of_the_filesystem_holds(
    blob_server: RangeServer, max_gap: int, expected: int
) -> None:
    """Every second chunk: half of what lies between them was not asked for."""
    async with grid(blob_server, max_gap=max_gap) as store:
        await check_chunks(store, [f"5/{j}" for j in range(0, SIDE, 2)])
    assert len(blob_server.requests) == expected


@pytest.mark.parametrize(("max_gap", "expected"), [(-1, SIDE), (0, 1)])
async def test_chunks_that_touch_have_no_gap(
    blob_server: RangeServer, max_gap: int, expected: int
) -> None:
    async with grid(blob_server, max_gap=max_gap) as store:
        await check_chunks(store, [f"5/{j}" for j in range(SIDE)])
    assert len(blob_server.requests) == expected


@pytest.mark.parametrize("chunks", [1, 3, 8, 32])
async def test_the_block_of_the_filesystem_holds(blob_server: RangeServer, chunks: int) -> None:
    async with grid(blob_server, max_block=chunks * CHUNK) as store:
        await check_chunks(store, [f"5/{j}" for j in range(SIDE)])
    assert len(blob_server.requests) == -(-SIDE // chunks)
    assert max(request.sent for request in blob_server.requests) == chunks * CHUNK


async def test_ranges_of_one_key(blob_server: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=blob_server.url)
        requests: list[Request] = [
            ("blob", RangeByteRequest(start, start + 1000)) for start in range(0, 100_000, 2000)
        ]
        values = await read(store, [*requests, *requests])
    assert values == [BLOB[start : start + 1000] for start in range(0, 100_000, 2000)] * 2
    assert [request.asked for request in blob_server.requests] == ["bytes=0-98999"]


async def test_files_are_not_mixed(blob_server: RangeServer) -> None:
    async with http_filesystem() as http:
        refs: dict[str, Any] = {
            f"{name}/{i}": [f"{blob_server.url}/{name}", i * CHUNK, CHUNK]
            for i in range(8)
            for name in ("blob", "other")
        }
        store = reference_store(refs, http)
        values = await read(store, list(refs))
    assert values == [BLOB[offset : offset + size] for _, offset, size in refs.values()]
    asked = {(request.path, request.span) for request in blob_server.requests}
    assert asked == {("/blob", (0, 8 * CHUNK)), ("/other", (0, 8 * CHUNK))}


async def test_identical_requests_are_read_once(blob_server: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=blob_server.url)
        whole = await read(store, ["other", "other", ("other", None), "absent", "absent"])
        suffix = await read(store, [("blob", SuffixByteRequest(5))] * 3)
        part = await read(store, [("other", RangeByteRequest(10, 20))] * 3)
    assert whole == [BLOB[: 8 * CHUNK]] * 3 + [None, None]
    assert suffix == [BLOB[-5:]] * 3
    assert part == [BLOB[10:20]] * 3
    assert sorted((request.path, request.asked or "") for request in blob_server.requests) == [
        ("/absent", ""),
        ("/blob", "bytes=-5"),
        ("/other", ""),
        ("/other", "bytes=10-19"),
    ]


async def test_identical_requests_for_much_are_read_once(blob_server: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=blob_server.url)
        values = await read(store, [("blob", RangeByteRequest(0, 1 << 20))] * 3)
    assert values == [BLOB[: 1 << 20]] * 3
    assert len(blob_server.requests) == 1


async def test_parts_of_a_reference_end_where_it_ends(blob_server: RangeServer) -> None:
    """Even a range that reaches far beyond it."""
    async with http_filesystem() as http:
        refs = {f"{i}": [f"{blob_server.url}/blob", 100 + 20 * i, 10] for i in range(3)}
        store = reference_store(refs, http)
        requests: list[Request] = [
            *((key, RangeByteRequest(4, 9999)) for key in refs),
            *((key, OffsetByteRequest(6)) for key in refs),
        ]
        values = await read(store, requests)
    assert values[:3] == [BLOB[start : start + 6] for start in (104, 124, 144)]
    assert values[3:] == [BLOB[start : start + 4] for start in (106, 126, 146)]
    assert [request.span for request in blob_server.requests] == [(104, 150)]


async def test_a_dir_over_references_merges_too(blob_server: RangeServer) -> None:
    async with grid(blob_server) as store:
        directory = DirFileSystem(path="5", fs=store.fs, asynchronous=True)
        values = await read(FsspecStore(directory, path=""), [f"{j}" for j in range(SIDE)])
    assert values == [chunk(f"5/{j}") for j in range(SIDE)]
    assert len(blob_server.requests) == 1


async def test_more_requests_than_are_planned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarr.storage._fsspec.REQUESTS_PLANNED_AT_ONCE", 10)
    fs = Recording({"a": noise(1000), "b": noise(5)})
    requests: list[Request] = [("a", RangeByteRequest(i, i + 7)) for i in range(95)]
    requests[30:30] = ["b", "absent", "b"]
    store = FsspecStore(fs, path="")
    expected = [await read_by_get(store, request) for request in requests]
    fs.reads.clear()
    assert await read(store, requests) == expected
    assert len([read for read in fs.reads if read[0] == "a"]) == 10


# ---------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------

HTTP_KINDS = ["http", "dir over http", "references over http", "dir over references"]

REQUESTS_OF_A: dict[str, list[Request]] = {
    "whole": ["a"],
    "range": [("a", RangeByteRequest(100, 200))],
    "ranges": [("a", RangeByteRequest(100, 200)), ("a", RangeByteRequest(200, 250))],
    "the same range": [("a", RangeByteRequest(100, 200))] * 2,
    "far ranges": [("a", RangeByteRequest(990, 995)), ("a", RangeByteRequest(3, 8))],
    "offset": [("a", OffsetByteRequest(100))],
    "suffix": [("a", SuffixByteRequest(100))],
    "all of it": ["a", ("a", RangeByteRequest(0, 1000)), ("a", SuffixByteRequest(10))],
}


@pytest.fixture
def faulty(server: RangeServer) -> Generator[RangeServer]:
    server.reset()
    yield server
    server.reset()


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=503), Fault(status=403), Fault(cut=0), Fault(cut=3)],
    ids=["500", "503", "403", "cut off at once", "cut off"],
)
async def test_a_failure_of_the_server(
    kind: str, fault: Fault, sources: Sources, faulty: RangeServer
) -> None:
    """It raises, as `get` does. It is never an absent key, and never a short value."""
    async with FILESYSTEMS[kind](sources) as store:
        for path in ("/root/a", "/packed"):
            faulty.inject(fault, path=path)
        for requests in REQUESTS_OF_A.values():
            await check_failure(store, requests)


async def check_failure(store: FsspecStore, requests: Sequence[Request]) -> None:
    failure = await outcome(store, requests[0])
    assert isinstance(failure, type)
    for others in ([], ["absent"]):
        with pytest.raises(failure) as raised:
            await read(store, [*others, *requests, *others])
        assert raised.type is failure


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_passing_failure(kind: str, sources: Sources, faulty: RangeServer) -> None:
    """After it, everything can be read: nothing of it was kept."""
    async with FILESYSTEMS[kind](sources) as store:
        faulty.inject(Fault(status=500), times=1)
        with pytest.raises(Exception):  # noqa: B017
            await read(store, ["a"])
        assert await read(store, ["a", "b/c"]) == [CONTENT["a"], CONTENT["b/c"]]


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("name", ["ranges", "far ranges"])
async def test_a_server_that_ignores_ranges(
    kind: str, name: str, sources: Sources, faulty: RangeServer
) -> None:
    """Its answer starts somewhere else: there is nothing to cut from it."""
    async with FILESYSTEMS[kind](sources) as store:
        for path in ("/root/a", "/packed"):
            faulty.inject(Fault(ignore_range=True), path=path)
        with pytest.raises(OSError, match="does not honour"):
            await read(store, REQUESTS_OF_A[name])


@pytest.mark.parametrize("kind", ["references over http", "dir over references"])
@pytest.mark.parametrize(
    "requests",
    [["a"], ["a", "b/c"], [("a", RangeByteRequest(3, 8))], [("a", SuffixByteRequest(8))]],
    ids=["key", "keys", "range", "suffix"],
)
async def test_a_server_that_ignores_the_range_of_a_reference(
    kind: str, requests: list[Request], sources: Sources, faulty: RangeServer
) -> None:
    async with FILESYSTEMS[kind](sources) as store:
        faulty.inject(Fault(ignore_range=True), path="/packed")
        with pytest.raises(OSError, match="does not honour"):
            await read(store, requests)


async def test_a_lone_range_is_what_the_server_makes_of_it(
    sources: Sources, faulty: RangeServer
) -> None:
    """`get` hands over what comes, and so it does here, where nothing needs cutting apart."""
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(ignore_range=True))
        assert await read(store, REQUESTS_OF_A["range"]) == [CONTENT["a"]]
        for name in ("whole", "range", "the same range", "offset", "suffix"):
            await agree(store, REQUESTS_OF_A[name])


async def test_what_came_of_a_range_beyond_the_end_is_not_cut(
    sources: Sources, faulty: RangeServer
) -> None:
    """The whole object is no longer than what was asked for, and yet it is something else."""
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(ignore_range=True))
        await agree(store, [("b/c", RangeByteRequest(i, i + 200)) for i in (50, 100, 250)])


async def test_a_server_that_sends_all_where_all_was_asked_for(
    sources: Sources, faulty: RangeServer
) -> None:
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(ignore_range=True))
        requests: list[Request] = [
            ("a", RangeByteRequest(0, 400)),
            ("a", RangeByteRequest(400, 1000)),
        ]
        assert await read(store, requests) == [CONTENT["a"][:400], CONTENT["a"][400:]]


@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_server_that_is_gone(kind: str, folder: Path) -> None:
    with RangeServer({}) as gone:
        pass
    async with FILESYSTEMS[kind](Sources(gone, folder, str)) as store:
        for requests in REQUESTS_OF_A.values():
            await check_failure(store, [requests[0]])
            await check_failure(store, requests)


async def test_an_object_that_vanishes_is_absent(sources: Sources, faulty: RangeServer) -> None:
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(status=404), path="/root/a")
        requests = [request for name in REQUESTS_OF_A for request in REQUESTS_OF_A[name]]
        assert await read(store, requests) == [None] * len(requests)


@pytest.mark.parametrize(
    "requests",
    [
        [("a", RangeByteRequest(0, 400))],
        [("a", RangeByteRequest(0, 400))] * 2,
        [("a", RangeByteRequest(0, 400)), ("a", RangeByteRequest(400, 500))],
        [("a", RangeByteRequest(0, 400)), ("a", RangeByteRequest(10, 20))],
        [("a", SuffixByteRequest(400))],
    ],
    ids=["range", "the same range", "ranges", "a range in a range", "suffix"],
)
@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_short_answer_is_an_error(
    kind: str, requests: list[Request], sources: Sources, faulty: RangeServer
) -> None:
    """The object has more bytes of what was asked for than came."""
    async with FILESYSTEMS[kind](sources) as store:
        # The merged read and the first range alone are short; the size is asked for after that.
        faulty.inject(Fault(keep=100), times=1 if len(set(requests)) == 1 else 2)
        with pytest.raises(OSError, match=r"[Ss]hort read"):
            await read(store, requests)


@pytest.mark.parametrize("keys", [["a"], ["a", "b/c"]], ids=["one", "merged"])
async def test_a_short_answer_for_a_reference_is_an_error(
    keys: list[str], sources: Sources, faulty: RangeServer
) -> None:
    """The value of such a key is a range of a file, and the file has all of it."""
    async with FILESYSTEMS["references over http"](sources) as store:
        faulty.inject(Fault(keep=100), times=len(keys))
        with pytest.raises(OSError, match=r"[Ss]hort read"):
            await read(store, keys)


async def test_a_short_answer_to_a_merged_read_is_no_error_if_each_alone_is_good(
    sources: Sources, faulty: RangeServer
) -> None:
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(keep=250), times=1)
        requests: list[Request] = [("a", RangeByteRequest(i, i + 100)) for i in range(0, 500, 100)]
        assert await read(store, requests) == [
            CONTENT["a"][i : i + 100] for i in range(0, 500, 100)
        ]


async def test_where_the_size_is_unknown_a_short_answer_is_what_it_is() -> None:
    class Sizeless(Recording):
        async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
            if path == "b":
                raise OSError("no such information")
            return {"name": path, "type": "file", "size": None}

    store = FsspecStore(Sizeless({"a": b"0123", "b": b"0123"}), path="")
    requests: list[Request] = [(key, RangeByteRequest(2, 9)) for key in "ab"]
    assert await read(store, requests) == [b"23", b"23"]


@pytest.mark.parametrize(
    "byte_range",
    [
        RangeByteRequest(-5, 10),
        RangeByteRequest(-5, -1),
        RangeByteRequest(0, -5),
        RangeByteRequest(-99, 3),
    ]
    + [OffsetByteRequest(-3), SuffixByteRequest(-3)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["http", "local", "memory", "zip", "obstore over http"])
async def test_negative_numbers_mean_what_they_mean_to_get(
    kind: str, byte_range: ByteRequest, sources: Sources
) -> None:
    async with FILESYSTEMS[kind](sources) as store:
        await agree(store, [("b/c", byte_range)])
        await agree(store, [("b/c", RangeByteRequest(0, 9)), ("b/c", byte_range), "b/d/e"])


# ---------------------------------------------------------------------------
# What counts as absent
# ---------------------------------------------------------------------------


class Refused(Exception):
    pass


PROBES: dict[str, list[Request]] = {
    "whole": ["bad"],
    "range": [("bad", RangeByteRequest(0, 10))],
    "ranges": [("bad", RangeByteRequest(0, 10)), ("bad", RangeByteRequest(10, 20))],
    "range and open end": [("bad", RangeByteRequest(0, 10)), ("bad", OffsetByteRequest(5))],
    "missing": ["absent", ("absent", RangeByteRequest(0, 5)), ("absent", RangeByteRequest(3, 9))],
}


@pytest.mark.parametrize(
    "allowed",
    [
        (),
        (KeyError,),
        (FileNotFoundError,),
        (Refused,),
        (FileNotFoundError, PermissionError),
        (OSError,),
        (ReferenceNotReachable,),
        (Exception,),
    ],
    ids=lambda allowed: "+".join(each.__name__ for each in allowed) or "nothing",
)
@pytest.mark.parametrize(
    "error",
    [KeyError("bad"), Refused("bad"), PermissionError("bad"), OSError("range not satisfiable")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("through", ["directly", "a dir", "references"])
async def test_the_allowed_exceptions(
    through: str, error: Exception, allowed: tuple[type[Exception], ...]
) -> None:
    """Which errors mean that a key is absent is up to the user, as for `get`."""
    objects: dict[str, bytes | Exception] = {"good": b"good", "bad": error}
    fs: AsyncFileSystem = Recording(objects)
    if through == "a dir":
        below = Recording({f"base/{name}": value for name, value in objects.items()})
        fs = DirFileSystem(path="base", fs=below, asynchronous=True)
    elif through == "references":
        refs = {"good": ["recording://good"], "bad": ["recording://bad", 0, 100]}
        fs = ReferenceFileSystem(fo=refs, fs=fs, asynchronous=True)
    store = FsspecStore(fs, path="", allowed_exceptions=allowed)
    for requests in PROBES.values():
        await agree(store, ["good", *requests])


@pytest.mark.parametrize("name", ["whole", "range", "ranges"])
async def test_an_error_comes_with_its_history(name: str) -> None:
    class Fails(Recording):
        async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
            try:
                return await super()._cat_file(path, **kwargs)
            except FileNotFoundError:
                raise PermissionError(path)  # noqa: B904

    with pytest.raises(PermissionError) as raised:
        await read(FsspecStore(Fails({}), path=""), PROBES[name])
    assert raised.value.__cause__ is None
    assert isinstance(raised.value.__context__, FileNotFoundError)
    assert not raised.value.__suppress_context__


@pytest.mark.parametrize("name", ["whole", "range", "ranges"])
async def test_the_cause_of_a_failed_reference_is_kept(name: str) -> None:
    target = Recording({"f": PermissionError("denied")})
    store = reference_store({"bad": ["recording://f", 0, 100]}, target)
    with pytest.raises(ReferenceNotReachable) as raised:
        await read(store, PROBES[name])
    assert (raised.value.reference, raised.value.target) == ("bad", "recording://f")
    assert isinstance(raised.value.__cause__, PermissionError)


@pytest.mark.parametrize("error", [OSError, PermissionError, RuntimeError, TimeoutError])
async def test_a_failed_read_is_not_tried_again(error: type[Exception]) -> None:
    """That it might work the next time, or for less at a time, is no reason."""

    class FailsOnce(Recording):
        async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
            first = not self.reads
            data = await super()._cat_file(path, **kwargs)
            if first:
                raise error
            return data

    for requests in PROBES.values():
        fs = FailsOnce({"bad": noise(100), "absent": b""})
        with pytest.raises(error):
            await read(FsspecStore(fs, path=""), requests[:2])


async def test_a_range_that_can_not_be_satisfied_is_empty() -> None:
    """What S3 says of a range that starts beyond the end."""

    class Strict(Recording):
        async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
            data = await super()._cat_file(path, **kwargs)
            start = kwargs.get("start")
            if start is not None and start >= len(self._object(path)):
                raise OSError("The requested range is not satisfiable")
            return data

    store = FsspecStore(Strict({"a": noise(100), "empty": b""}), path="")
    requests: list[Request] = [
        ("a", RangeByteRequest(100, 110)),
        ("a", RangeByteRequest(110, 120)),
        ("empty", RangeByteRequest(0, 5)),
        ("empty", OffsetByteRequest(0)),
    ]
    assert await read(store, requests) == [b""] * 4
    across: list[Request] = [("a", RangeByteRequest(i, i + 30)) for i in (0, 80, 90, 100, 200)]
    assert await read(store, across) == [noise(100)[i : i + 30] for i in (0, 80, 90, 100, 200)]
    await agree(store, [*requests, *across])


# ---------------------------------------------------------------------------
# How many at once
# ---------------------------------------------------------------------------


@pytest.fixture
def hanging() -> Generator[RangeServer]:
    """A server that answers nothing before it is told to."""
    with RangeServer({f"{i}": noise(40_000, seed=i) for i in range(60)}) as server:
        server.inject(Fault(hang=True))
        yield server


async def check_in_flight(
    server: RangeServer, store: FsspecStore, requests: Sequence[Request], expected: int
) -> None:
    """Check that so many requests are under way while none is answered, and never more."""
    reading = asyncio.create_task(read(store, requests))
    try:
        await until(lambda: in_flight(server) >= expected or reading.done())
        await asyncio.sleep(0.05)
        assert in_flight(server) == expected
    finally:
        server.release()
        values = await reading
    assert server.max_in_flight == expected
    assert values == [await read_by_get(store, request) for request in requests]


SMALL: list[Request] = [(f"{i}", RangeByteRequest(0, 100)) for i in range(60)]
WHOLE: list[Request] = [f"{i}" for i in range(60)]


@pytest.mark.parametrize("batch_size", [1, 3, 25])
async def test_as_many_as_the_filesystem_takes(hanging: RangeServer, batch_size: int) -> None:
    async with http_filesystem(batch_size=batch_size) as http:
        await check_in_flight(hanging, FsspecStore(http, path=hanging.url), SMALL, batch_size)


async def test_as_many_as_the_target_of_references_takes(hanging: RangeServer) -> None:
    async with http_filesystem(batch_size=7) as http:
        refs = {f"{i}": [f"{hanging.url}/{i}", 0, 100] for i in range(60)}
        store = reference_store(refs, http)
        await check_in_flight(hanging, store, list(refs), 7)


@pytest.mark.parametrize(("concurrency", "batch_size"), [(2, 30), (2, None), (30, 3), (30, None)])
@pytest.mark.parametrize("requests", [SMALL, WHOLE], ids=["ranges", "whole"])
async def test_as_many_as_the_user_has_set(
    hanging: RangeServer, requests: list[Request], concurrency: int, batch_size: int | None
) -> None:
    """A setting holds against what the filesystem would take, up and down."""
    async with http_filesystem(batch_size=batch_size) as http:
        with zarr.config.set({"async.concurrency": concurrency}):
            store = FsspecStore(http, path=hanging.url)
            await check_in_flight(hanging, store, requests, concurrency)


@pytest.mark.parametrize(("size", "expected"), [(1_000, 60), (10_000, 20), (40_000, 10)])
async def test_fewer_large_ones(
    hanging: RangeServer, monkeypatch: pytest.MonkeyPatch, size: int, expected: int
) -> None:
    """Within as many bytes as may be in flight, but as many as zarr always had."""
    monkeypatch.setattr("zarr.core._bounded.MAX_BYTES_IN_FLIGHT", 200_000)
    async with http_filesystem() as http:
        requests: list[Request] = [(f"{i}", RangeByteRequest(0, size)) for i in range(60)]
        await check_in_flight(hanging, FsspecStore(http, path=hanging.url), requests, expected)


async def test_values_of_unknown_size_are_counted_as_they_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zarr.core._bounded.MAX_BYTES_IN_FLIGHT", 200_000)
    large = {f"large{i}": noise(40_000, seed=i) for i in range(40)}
    small = {f"small{i}": noise(100, seed=i) for i in range(80)}
    with RangeServer({**large, **small}, latency=0.05) as server:
        async with http_filesystem() as http:
            store = FsspecStore(http, path=server.url)
            assert await read(store, list(large)) == list(large.values())
            assert server.max_in_flight <= 10
            server.reset()
            assert await read(store, list(small)) == list(small.values())
            assert server.max_in_flight > 10


# ---------------------------------------------------------------------------
# When values come, and what is left behind
# ---------------------------------------------------------------------------


@pytest.fixture
def slow() -> Generator[RangeServer]:
    """A server that answers everything but `slow…`, which waits for `release`."""
    names = [f"{kind}{i}" for kind in ("slow", "fast") for i in range(20)]
    with RangeServer({name: name.encode() * 100 for name in names}) as server:
        server.inject(Fault(hang=True), path="/slow*")
        yield server


async def test_values_come_as_they_arrive(slow: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=slow.url)
        requests: list[Request] = ["slow0", "fast0", ("slow1", SuffixByteRequest(5)), "fast1"]
        arrived: list[int] = []

        def waiting() -> set[str]:
            return {request.path for request in slow.requests if request.ended is None}

        async for group in store.get_many(requests, prototype=PROTOTYPE):
            arrived += [index for index, _ in group]
            if len(arrived) == 2:
                await until(lambda: waiting() == {"/slow0", "/slow1"})
                slow.release()
    assert sorted(arrived[:2]) == [1, 3]
    assert sorted(arrived[2:]) == [0, 2]


async def test_merged_ranges_come_as_they_arrive(slow: RangeServer) -> None:
    refs = {
        f"{name}/{i}": [f"{slow.url}/{name}", 10 * i, 10]
        for name in ("slow0", "fast0")
        for i in range(5)
    }
    async with http_filesystem() as http:
        groups = reference_store(refs, http).get_many(list(refs), prototype=PROTOTYPE)
        first = await anext(groups)
        assert sorted(index for index, _ in first) == [5, 6, 7, 8, 9]
        slow.release()
        second = await anext(groups)
        assert sorted(index for index, _ in second) == [0, 1, 2, 3, 4]
        assert [group async for group in groups] == []


async def test_values_at_hand_do_not_wait_for_others(slow: RangeServer) -> None:
    refs = {"slow": [f"{slow.url}/slow0"], "inline": "value"}
    async with http_filesystem() as http:
        store = reference_store(refs, http)
        groups = store.get_many(["slow", "inline", "absent"], prototype=PROTOTYPE)
        assert {index for index, _ in await anext(groups)} == {1, 2}
        slow.release()
        assert [index for index, _ in await anext(groups)] == [0]
        assert [group async for group in groups] == []


async def test_a_slow_consumer_holds_back() -> None:
    fs = Recording({f"{i}": noise(10, seed=i) for i in range(200)})
    with zarr.config.set({"async.concurrency": 4}):
        groups = FsspecStore(fs, path="").get_many(
            [f"{i}" for i in range(200)], prototype=PROTOTYPE
        )
        taken = 0
        async for group in groups:
            taken += len(group)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(fs.reads) <= taken + 4
    assert taken == len(fs.reads) == 200


async def start_and_hang(slow: RangeServer, store: FsspecStore) -> AsyncGenerator[Any]:
    """Take the first group of a read whose others don't come."""
    requests = ["fast0", *(f"slow{i}" for i in range(5))]
    groups = store.get_many(requests, prototype=PROTOTYPE)
    assert isinstance(groups, AsyncGenerator)
    assert [index for index, _ in await anext(groups)] == [0]
    await until(lambda: in_flight(slow) == 5)
    return groups


async def check_given_up(slow: RangeServer) -> None:
    """Check that the server saw the clients of what hangs go away."""
    await until(lambda: in_flight(slow) == 0)
    given_up = [request for request in slow.requests if request.path.startswith("/slow")]
    assert [request.status for request in given_up] == [None] * 5


async def test_closing_early_cancels_what_is_in_flight(slow: RangeServer) -> None:
    async with http_filesystem() as http:
        tasks = asyncio.all_tasks()
        async with aclosing(await start_and_hang(slow, FsspecStore(http, path=slow.url))):
            assert asyncio.all_tasks() > tasks
        assert asyncio.all_tasks() == tasks
        await check_given_up(slow)


async def test_cancelling_cancels_what_is_in_flight(slow: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=slow.url)
        tasks = asyncio.all_tasks()
        reading = asyncio.create_task(read(store, [f"slow{i}" for i in range(5)]))
        await until(lambda: in_flight(slow) == 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert asyncio.all_tasks() == tasks
        await check_given_up(slow)


async def test_cancelling_a_merged_read(slow: RangeServer) -> None:
    refs = {f"{i}/{j}": [f"{slow.url}/slow{i}", 10 * j, 10] for i in range(5) for j in range(9)}
    async with http_filesystem() as http:
        tasks = asyncio.all_tasks()
        reading = asyncio.create_task(read(reference_store(refs, http), list(refs)))
        await until(lambda: in_flight(slow) == 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert asyncio.all_tasks() == tasks
        await check_given_up(slow)


async def test_a_failure_cancels_what_is_in_flight(slow: RangeServer) -> None:
    slow.inject(Fault(status=500), path="/fast*")
    async with http_filesystem() as http:
        store = FsspecStore(http, path=slow.url)
        tasks = asyncio.all_tasks()
        with pytest.raises(aiohttp.ClientResponseError):
            await read(store, [*(f"slow{i}" for i in range(5)), "fast0"])
        assert asyncio.all_tasks() == tasks
        await until(lambda: in_flight(slow) == 0)
    assert {request.status for request in slow.requests} == {500, None}


async def test_several_failures(slow: RangeServer, caplog: pytest.LogCaptureFixture) -> None:
    slow.reset()
    slow.inject(Fault(status=500))
    async with http_filesystem() as http:
        with pytest.raises(aiohttp.ClientResponseError):
            await read(FsspecStore(http, path=slow.url), [f"fast{i}" for i in range(20)])
    gc.collect()
    assert [record for record in caplog.records if "never retrieved" in record.message] == []


# ---------------------------------------------------------------------------
# The store around it
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "sub", "sub/", "sub/deep"])
@pytest.mark.parametrize("through", ["directly", "a dir", "references"])
async def test_roots(path: str, through: str) -> None:
    prefix = f"{path.strip('/')}/".lstrip("/")
    objects = {f"{prefix}a": noise(50), f"{prefix}group/b": noise(20)}
    fs: AsyncFileSystem = Recording({**objects})
    if through == "a dir":
        below = Recording({f"base/{name}": value for name, value in objects.items()})
        fs = DirFileSystem(path="base", fs=below, asynchronous=True)
    elif through == "references":
        refs = {name: [f"recording://{name}", 0, len(objects[name])] for name in objects}
        fs = ReferenceFileSystem(fo=refs, fs=fs, asynchronous=True)
    store = FsspecStore(fs, path=path)
    requests: list[Request] = [
        "a",
        "group/b",
        "group",
        ("a", RangeByteRequest(1, 5)),
        ("a", RangeByteRequest(5, 9)),
        "group/b/",
    ]
    values = await read(store, requests)
    assert values[:5] == [noise(50), noise(20), None, noise(50)[1:5], noise(50)[5:9]]
    await agree(store, requests)


async def test_a_closed_store_opens_again() -> None:
    store = FsspecStore(Recording({"a": b"value"}), path="")
    opened: list[list[Request]] = [["a"], [("a", RangeByteRequest(i, i + 1)) for i in range(5)], []]
    for requests in opened:
        store.close()
        expected = [b"value"[i : i + 1] for i in range(5)] if len(requests) > 1 else [b"value"]
        assert await read(store, requests) == expected[: len(requests)]
        assert store._is_open


async def test_the_prototype_decides_on_the_buffer() -> None:
    class Other(PROTOTYPE.buffer):  # type: ignore[misc, name-defined]
        pass

    prototype = PROTOTYPE._replace(buffer=Other)
    refs = {"a": ["recording://f", 0, 5], "b": ["recording://f", 5, 5], "c": "inline"}
    store = reference_store(refs, Recording({"f": noise(20)}))
    async for group in store.get_many([*refs, ("a", SuffixByteRequest(2))], prototype=prototype):
        assert all(type(value) is Other for _, value in group)


@pytest.mark.parametrize(
    "requests",
    ["a", b"a", [5], [None], [["a", None]], [("a", None, None)], [("a",)], ["a", {"b"}], [b"a"]],
    ids=repr,
)
async def test_requests_that_are_none(requests: Any) -> None:
    store = FsspecStore(Recording({"a": b"value"}), path="")
    with pytest.raises(TypeError):
        await read(store, requests)


@pytest.mark.parametrize("path", ["", "root"])
@pytest.mark.parametrize(
    "request_",
    [(5, None), (None, None), (("a",), None), ("a", (0, 5)), ("a", 5), ("a", "0-5"), ("absent", 5)],
    ids=repr,
)
@pytest.mark.parametrize("through", ["directly", "references"])
async def test_wrong_keys_and_ranges(through: str, request_: Any, path: str) -> None:
    """What `get` says of them holds."""
    fs: AsyncFileSystem = Recording({"a": b"value", "root/a": b"value"})
    if through == "references":
        fs = ReferenceFileSystem(fo={"a": ["recording://a"]}, fs=fs, asynchronous=True)
    await agree(FsspecStore(fs, path=path), ["a", request_])


class Watched(FsspecStore):
    """As somebody else may write it, who knows of no `get_many`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[str, ByteRequest | None]] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.seen.append((key, byte_range))
        value = await super().get(key, prototype, byte_range)
        return None if value is None else prototype.buffer.from_bytes(value.to_bytes().upper())


class WatchedBelow(Watched):
    """It inherits a `get` that others do not know of."""


class Own(Watched):
    """It has both, and means it."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        for index in range(len(requests)):
            yield [(index, prototype.buffer.from_bytes(b"own"))]


class OnlyMany(FsspecStore):
    """It changes what `get_many` does, and leaves `get` alone."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        async for group in super().get_many(requests, prototype=prototype):
            yield [(index, None) for index, _ in group]


NEIGHBOURS: list[Request] = ["a", "a", *(("a", RangeByteRequest(i, i + 1)) for i in range(4)), "b"]


@pytest.mark.parametrize("cls", [Watched, WatchedBelow])
async def test_a_get_of_ones_own_sees_every_read(cls: type[Watched]) -> None:
    fs = Recording({"a": b"text"})
    store = cls(fs, path="")
    values = await read(store, NEIGHBOURS)
    assert values == [b"TEXT", b"TEXT", b"T", b"E", b"X", b"T", None]
    assert sorted(map(str, store.seen)) == sorted(str(pair(request)) for request in NEIGHBOURS)


async def test_a_get_many_of_ones_own_is_kept() -> None:
    fs = Recording({"a": b"text"})
    store = Own(fs, path="")
    assert await read(store, NEIGHBOURS) == [b"own"] * len(NEIGHBOURS)
    assert store.seen == []
    assert fs.reads == []


async def test_a_get_many_of_ones_own_may_build_on_this_one() -> None:
    fs = Recording({"a": b"text"})
    assert await read(OnlyMany(fs, path=""), NEIGHBOURS) == [None] * len(NEIGHBOURS)
    assert len(fs.reads) == 3


# ---------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------

SHAPE, CHUNKS = (60, 52), (7, 9)

SELECTIONS: dict[str, Callable[[Any], Any]] = {
    "all": lambda array: array[...],
    "a tile": lambda array: array[10:31, 20:44],
    "a row": lambda array: array[17],
    "an element": lambda array: array[59, 51],
    "strides": lambda array: array[::3, 5::11],
    "orthogonal": lambda array: array.oindex[[1, 8, 50], [0, 51]],
    "points": lambda array: array.vindex[[1, 8, 50, 1], [0, 51, 9, 0]],
    "a block": lambda array: array.blocks[1, 1],
    "nothing": lambda array: array[5:5],
}


def as_references(
    source: MemoryStore, url: str, missing: Iterable[str]
) -> tuple[bytes, dict[str, Any]]:
    """The chunks one after the other in a file, in any order, and where each is."""
    stored = {key: value.to_bytes() for key, value in source._store_dict.items()}
    names = {".zarray", ".zattrs", ".zgroup", "zarr.json"}
    refs: dict[str, Any] = {
        key: value.decode() for key, value in stored.items() if key.rpartition("/")[2] in names
    }
    chunks = [key for key in stored if key not in refs]
    random.Random(0).shuffle(chunks)
    blob = b"header"
    for key in chunks:
        if key not in missing:
            refs[key] = [url, len(blob), len(stored[key])]
        blob += stored[key] + b"\0" * random.Random(key).randrange(3)
    return blob, refs


@dataclass(frozen=True)
class Pair:
    """An array in memory, and the same through references over HTTP."""

    plain: zarr.Array[Any]
    remote: zarr.Array[Any]


FORMATS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v3": {"zarr_format": 3},
    "sharded": {"zarr_format": 3, "shards": (14, 27)},
    "uncompressed": {"zarr_format": 3, "compressors": None},
}


@pytest.fixture(params=FORMATS, scope="module")
def arrays(request: pytest.FixtureRequest) -> Generator[Pair]:
    memory = MemoryStore()
    options = FORMATS[request.param]
    plain = zarr.create_array(
        memory, shape=SHAPE, chunks=CHUNKS, dtype="int32", fill_value=-7, **options
    )
    plain[...] = np.random.default_rng(0).integers(0, 1000, SHAPE)
    missing = ("2.3", "c/2/3")
    for key in missing:
        sync(memory.delete(key))

    objects: dict[str, bytes] = {}
    with RangeServer(objects) as server:
        objects["blob"], refs = as_references(memory, f"{server.url}/blob", missing)

        async def open_filesystem() -> HTTPFileSystem:
            return HTTPFileSystem(asynchronous=True, skip_instance_cache=True)

        async def close_filesystem() -> None:
            await (await http.set_session()).close()

        http = sync(open_filesystem())
        yield Pair(plain, zarr.open_array(reference_store(refs, http, path="/"), mode="r"))
        sync(close_filesystem())


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_an_array_on_references(arrays: Pair, select: Callable[[Any], Any]) -> None:
    expected = select(arrays.plain)
    np.testing.assert_array_equal(select(arrays.remote), expected)
    assert arrays.remote.dtype == arrays.plain.dtype
