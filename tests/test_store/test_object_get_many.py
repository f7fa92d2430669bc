"""Tests for `ObjectStore.get_many`: which requests a server gets, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

stores = pytest.importorskip("obstore.store")

from tests.event_loop import nothing_left_behind, until
from tests.range_server import Fault, RangeServer
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core._bounded import expected_nbytes
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config
from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence

    from zarr.abc.store import ByteRequest, Store

type Request = str | tuple[str, ByteRequest | None]

PROTOTYPE = default_buffer_prototype()
VALUES = {"a": bytes(range(200)), "empty": b"", "c.0": b"dot", "é/ü": b"uni"}


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


async def read(store: Store, requests: Sequence[Request]) -> dict[int, bytes | None]:
    """What `get_many` reports, by index. No index may be reported twice."""
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE):
        for index, value in group:
            assert index not in values
            values[index] = None if value is None else value.to_bytes()
    return values


async def read_one(store: Store, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    value = await store.get(key, prototype=PROTOTYPE, byte_range=byte_range)
    return None if value is None else value.to_bytes()


async def outcome[T](reading: Coroutine[Any, Any, T]) -> T | type[BaseException]:
    """What a read returns, or the type of what it raises."""
    try:
        return await reading
    except Exception as error:  # noqa: BLE001
        return type(error)


async def fill(store: Store, values: dict[str, bytes]) -> None:
    for key, value in values.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))


@pytest.fixture(scope="module")
def _server() -> Generator[RangeServer]:
    with RangeServer(dict(VALUES)) as server:
        yield server


@pytest.fixture
def server(_server: RangeServer) -> RangeServer:
    """One for all tests: where a read failed, connections may still be on their way to it."""
    _server.reset()
    return _server


def http_store(server: RangeServer) -> Any:
    # Without a pool no connection is opened in advance, so that none is when the server stops.
    client = {"allow_http": True, "pool_max_idle_per_host": "0"}
    return ObjectStore(
        stores.HTTPStore(server.url, client_options=client, retry_config={"max_retries": 0})
    )


RANGES: list[Any] = [
    None,
    *(RangeByteRequest(0, 10), RangeByteRequest(0, 200), RangeByteRequest(5, 5)),
    *(RangeByteRequest(9, 3), RangeByteRequest(190, 300), RangeByteRequest(200, 210)),
    *(RangeByteRequest(500, 600), RangeByteRequest(-3, 5), RangeByteRequest(0, -1)),
    *(OffsetByteRequest(0), OffsetByteRequest(200), OffsetByteRequest(900)),
    *(SuffixByteRequest(0), SuffixByteRequest(5), SuffixByteRequest(900), "bad", (0, 3)),
]


@pytest.mark.parametrize("key", [*VALUES, "absent", "", "a/", "/a", "é"])
async def test_odd_ranges(server: RangeServer, key: str) -> None:
    """What `get` gives, `get_many` gives, also for ranges that are merged with others."""
    store = http_store(server)
    usual = RangeByteRequest(1, 3)
    neighbour = await outcome(read_one(store, key, usual))
    for byte_range in RANGES:
        expected = await outcome(read_one(store, key, byte_range))
        result = await outcome(read(store, [(key, usual), (key, byte_range), (key, usual)]))
        values = [neighbour, expected, neighbour]
        errors: list[Any] = [value for value in values if isinstance(value, type)]
        assert result in (errors or [dict(enumerate(values))]), byte_range


@pytest.mark.parametrize(
    ("ranges", "spans"),
    [
        ([(20, 30), (0, 10), (5, 15), (0, 10)], [(0, 30)]),
        ([(0, 10), (100_000, 100_010), (100_020, 100_030)], [(0, 10), (100_000, 100_030)]),
        (
            [(0, 10), (199_990, 200_000), (90_000, 90_010)],
            [(0, 10), (90_000, 90_010), (199_990, 200_000)],
        ),
    ],
    ids=["close", "one-apart", "apart"],
)
async def test_close_ranges_are_one_request(
    ranges: list[tuple[int, int]], spans: list[tuple[int, int]]
) -> None:
    content = os.urandom(200_000)
    requests: list[Request] = [("large", RangeByteRequest(*at)) for at in ranges]
    with RangeServer({"large": content, "other": b"other"}) as server:
        values = await read(http_store(server), [*requests, "other"])
        assert sorted(r.span for r in server.requests if r.path == "/large" and r.span) == spans
        assert len(server.requests) == len(spans) + 1
    assert values == {i: content[slice(*at)] for i, at in enumerate(ranges)} | {
        len(ranges): b"other"
    }


@pytest.mark.parametrize(
    ("concurrency", "files", "expected"),
    [(10, 1024, 256), (10, 256, 64), (10, 2, 10), (10, -1, 256), (3, 1024, 3), (300, 1024, 300)],
)
@pytest.mark.parametrize("whole", [False, True])
async def test_as_many_objects_are_in_flight_as_the_process_may_open(
    concurrency: int, files: int, expected: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `async.concurrency` at its default, which is 10; otherwise as many as it says."""
    resource = pytest.importorskip("resource")
    limits = {resource.RLIMIT_NOFILE: (files, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    objects = {f"{i}": bytes([i % 256]) for i in range(310)}
    requests: list[Request] = [key if whole else (key, RangeByteRequest(0, 1)) for key in objects]
    token = expected_nbytes.set(1)
    with RangeServer(objects) as server, config.set({"async.concurrency": concurrency}):
        server.inject(Fault(hang=True))
        reading = asyncio.create_task(read(http_store(server), requests))
        await until(lambda: len(server.requests) >= expected)
        server.release()
        assert await reading == {i: bytes([i % 256]) for i in range(310)}
        assert server.max_in_flight == expected
    expected_nbytes.reset(token)


async def test_where_files_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "resource", None)
    with RangeServer({f"{i}": b"." for i in range(300)}) as server:
        server.inject(Fault(hang=True))
        token = expected_nbytes.set(1)
        reading = asyncio.create_task(read(http_store(server), [f"{i}" for i in range(300)]))
        await until(lambda: len(server.requests) >= 256)
        server.release()
        assert await reading == dict.fromkeys(range(300), b".")
        assert server.max_in_flight == 256
        expected_nbytes.reset(token)


async def test_objects_that_are_not_there(server: RangeServer) -> None:
    requests: list[Request] = ["absent", *[("gone", RangeByteRequest(i, i + 2)) for i in (0, 9)]]
    assert await read(http_store(server), [*requests, "c.0"]) == {
        0: None,
        1: None,
        2: None,
        3: b"dot",
    }


@pytest.mark.parametrize(
    "requests", [["c.0", "a"], [("a", RangeByteRequest(i, 9)) for i in (0, 3)]]
)
async def test_an_error_of_the_server_is_raised(
    server: RangeServer, requests: list[Request]
) -> None:
    server.inject(Fault(status=500), path="/a")
    expected = await outcome(read_one(http_store(server), "a"))
    assert isinstance(expected, type)
    with pytest.raises(expected):
        await read(http_store(server), requests)


async def test_one_range_of_several_lies_outside(server: RangeServer) -> None:
    outside = RangeByteRequest(300, 310)
    expected = await outcome(read_one(http_store(server), "a", outside))
    assert isinstance(expected, type)
    with pytest.raises(expected):
        await read(http_store(server), [("a", RangeByteRequest(0, 9)), ("a", outside)])


async def test_an_object_that_is_cut_short_is_an_error(server: RangeServer) -> None:
    server.inject(Fault(cut=5), path="/a")
    with pytest.raises(Exception, match="error"):
        await read(http_store(server), [("a", RangeByteRequest(i, i + 20)) for i in (0, 9)])


async def test_a_cancelled_read_gives_up_its_requests() -> None:
    with RangeServer(VALUES) as server:
        server.inject(Fault(hang=True))
        reading = asyncio.create_task(read(http_store(server), list(VALUES)))
        await until(lambda: len(server.requests) == len(VALUES))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: all(request.ended for request in server.requests))
        assert {request.status for request in server.requests} == {None}
