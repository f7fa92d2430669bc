"""`FsspecStore.get_many`: what `get` gives, on each kind of filesystem, with fewer requests."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
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
from zarr.storage import FsspecStore

fsspec = pytest.importorskip("fsspec", minversion="2024.12.0")
aiohttp = pytest.importorskip("aiohttp")

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.reference import (
    ReferenceFileSystem,
    ReferenceNotReachable,
)

from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


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

KEYS = ["a", "b/c", "b/d/e", "one", "empty", "absent", "b/absent", "b", "b/d", "", "b/c"]
"""Some are absent, directories, or below a file."""

RANGES: dict[str, list[tuple[int, int]]] = {
    # adjacent, overlapping, one in another, the same again, far apart; across the end, beyond it;
    # nothing, and less than nothing
    "a": [(0, 10), (10, 20), (15, 120), (16, 18), (10, 20), (800, 801), (0, 1000)]
    + [
        (990, 1001),
        (990, 5000),
        (1000, 1010),
        (1200, 1210),
        (0, 0),
        (7, 7),
        (1000, 1000),
        (20, 10),
    ],
    "b/c": [(5, 250)],
    "one": [(0, 2)],
    "empty": [(0, 5)],
    "absent": [(0, 5), (5, 9)],
    "b": [(0, 5)],
}
OPEN_ENDS: list[ByteRequest] = [
    *map(OffsetByteRequest, (0, 100, 999, 1000, 4000)),
    *map(SuffixByteRequest, (1, 100, 1000, 4000, 0)),
]
REQUESTS: list[tuple[str, ByteRequest | None]] = [
    *((key, None) for key in KEYS),
    *((key, RangeByteRequest(*at)) for key, ranges in RANGES.items() for at in ranges),
    *(("a", at) for at in OPEN_ENDS),
    *(
        (key, at)
        for key in ("empty", "absent")
        for at in (OffsetByteRequest(0), SuffixByteRequest(3))
    ),
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
    cachable = False

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


@dataclass(frozen=True)
class Sources:
    """Where the same objects are to be had in several ways."""

    server: RangeServer
    folder: Path


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
    return folder


@pytest.fixture
def sources(server: RangeServer, folder: Path) -> Sources:
    return Sources(server, folder)


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


@filesystem("dir over http")
async def open_dir_over_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        fs = DirFileSystem(path=f"{sources.server.url}/root", fs=http, asynchronous=True)
        yield FsspecStore(fs, path="")


@filesystem("references over http")
async def open_references_over_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        refs = packed_references(f"{sources.server.url}/packed")
        yield reference_store(refs, http, path="root")


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


@filesystem("dir over references")
async def open_dir_over_references(sources: Sources) -> AsyncIterator[FsspecStore]:
    async with http_filesystem() as http:
        refs = packed_references(f"{sources.server.url}/packed")
        refs["root/b/d/e"] = CONTENT["b/d/e"]
        inner = ReferenceFileSystem(fo=refs, fs=http, asynchronous=True)
        yield FsspecStore(DirFileSystem(path="root", fs=inner, asynchronous=True), path="")


@filesystem("obstore over http")
async def open_obstore_http(sources: Sources) -> AsyncIterator[FsspecStore]:
    obstore = pytest.importorskip("obstore.fsspec")
    fs = obstore.FsspecStore("http", asynchronous=True, client_options={"allow_http": True})
    yield FsspecStore(fs, path=f"{sources.server.url}/root")


@pytest.fixture(params=FILESYSTEMS)
async def store(request: pytest.FixtureRequest, sources: Sources) -> AsyncGenerator[FsspecStore]:
    """The same content, on each filesystem."""
    async with FILESYSTEMS[request.param](sources) as store:
        yield store


# ---------------------------------------------------------------------------
# What `get` gives
# ---------------------------------------------------------------------------


async def test_gives_what_get_gives(store: FsspecStore) -> None:
    await agree(store, REQUESTS)


SLICE_ENDS = st.integers(0, 60)
BYTE_RANGES = st.one_of(
    st.none(),
    st.builds(RangeByteRequest, SLICE_ENDS, SLICE_ENDS),
    st.builds(OffsetByteRequest, SLICE_ENDS),
    st.builds(SuffixByteRequest, st.integers(1, 60)),
)


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


@settings(deadline=None)
@given(
    refs=reference_tables(),
    requests=st.lists(
        st.tuples(
            st.sampled_from(
                ["part0", "part1", "part2", "part3", "same", "whole", "text", "base64", "absent"]
            ),
            BYTE_RANGES,
        )
    ),
    max_gap=st.sampled_from([0, 5, 64_000]),
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
        parts = [at for at in by_get if at[0] == path]
        assert start in {at[1] for at in parts}
        assert end in {at[2] for at in parts}


# ---------------------------------------------------------------------------
# References
# ---------------------------------------------------------------------------


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


async def test_ranges_of_one_key(blob_server: RangeServer) -> None:
    async with http_filesystem() as http:
        store = FsspecStore(http, path=blob_server.url)
        requests: list[Request] = [
            ("blob", RangeByteRequest(start, start + 1000)) for start in range(0, 100_000, 2000)
        ]
        values = await read(store, [*requests, *requests])
    assert values == [BLOB[start : start + 1000] for start in range(0, 100_000, 2000)] * 2
    assert [request.asked for request in blob_server.requests] == ["bytes=0-98999"]


async def test_more_requests_than_are_planned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarr.storage._fsspec.REQUESTS_PER_PLAN", 10)
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
@pytest.mark.parametrize("name", ["range", "ranges", "far ranges"])
async def test_a_server_that_ignores_ranges(
    kind: str, name: str, sources: Sources, faulty: RangeServer
) -> None:
    """Its answer starts somewhere else: there is nothing to cut from it."""
    async with FILESYSTEMS[kind](sources) as store:
        for path in ("/root/a", "/packed"):
            faulty.inject(Fault(ignore_range=True), path=path)
        with pytest.raises(OSError, match="ignored the byte range"):
            await read(store, REQUESTS_OF_A[name])


@pytest.mark.parametrize(
    "requests",
    [
        [("a", RangeByteRequest(0, 400))],
        [("a", RangeByteRequest(0, 400))] * 2,
        [("a", RangeByteRequest(0, 400)), ("a", RangeByteRequest(400, 600))],
        [("a", RangeByteRequest(0, 400)), ("a", RangeByteRequest(10, 20))],
    ],
    ids=["range", "the same range", "ranges", "a range in a range"],
)
@pytest.mark.parametrize("kind", HTTP_KINDS)
async def test_a_short_answer_is_an_error(
    kind: str, requests: list[Request], sources: Sources, faulty: RangeServer
) -> None:
    """The object has more bytes of what was asked for than came."""
    async with FILESYSTEMS[kind](sources) as store:
        faulty.inject(Fault(keep=100))
        with pytest.raises(OSError, match=r"[Ss]hort read"):
            await read(store, requests)


async def test_a_short_answer_to_a_merged_read_is_no_error_if_each_alone_is_good(
    sources: Sources, faulty: RangeServer
) -> None:
    async with FILESYSTEMS["http"](sources) as store:
        faulty.inject(Fault(keep=250), times=1)
        requests: list[Request] = [("a", RangeByteRequest(i, i + 100)) for i in range(0, 500, 100)]
        assert await read(store, requests) == [
            CONTENT["a"][i : i + 100] for i in range(0, 500, 100)
        ]


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
    [(), (KeyError,), (Refused,), (FileNotFoundError, PermissionError), (Exception,)],
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
