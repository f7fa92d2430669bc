from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

import pytest

aiohttp = pytest.importorskip("aiohttp")

from tests import range_server
from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

DIGITS = b"0123456789"


@pytest.fixture
def server() -> Generator[RangeServer]:
    with RangeServer({"digits": DIGITS, "group/a": b"a", "group/b/c": b"c"}) as server:
        yield server


async def fetch(url: str, *, asked: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    headers = {} if asked is None else {"Range": asked}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers) as response,
    ):
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("asked", "status", "body", "span"),
    [
        (None, 200, DIGITS, (0, 10)),
        ("bytes=2-4", 206, b"234", (2, 5)),
        ("bytes=7-", 206, b"789", (7, 10)),
        ("bytes=8-99", 206, b"89", (8, 10)),
        ("bytes=-3", 206, b"789", (7, 10)),
        ("bytes=-99", 206, DIGITS, (0, 10)),
        ("bytes=10-", 416, b"", None),
        ("bytes=0-1,4-5", 200, DIGITS, (0, 10)),
    ],
)
async def test_ranges(
    server: RangeServer,
    asked: str | None,
    status: int,
    body: bytes,
    span: tuple[int, int] | None,
) -> None:
    assert await fetch(f"{server.url}/digits", asked=asked) == (status, body)
    (request,) = server.requests
    assert (request.path, request.asked, request.status) == ("/digits", asked, status)
    assert (request.span, request.sent) == (span, len(body))


async def test_directory_serves_the_same_as_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "served" / "group").mkdir(parents=True)
    (tmp_path / "served" / "group" / "digits").write_bytes(DIGITS)
    (tmp_path / "secret").write_bytes(b"outside")
    with RangeServer(tmp_path / "served") as server:
        assert await fetch(f"{server.url}/group/digits", asked="bytes=2-4") == (206, b"234")
        assert await fetch(f"{server.url}/group") == (404, b"")
        assert await fetch(f"{server.url}/%2e%2e/secret") == (404, b"")


async def test_absent_object_and_method(server: RangeServer) -> None:
    assert await fetch(f"{server.url}/nothing") == (404, b"")
    assert await fetch(f"{server.url}/digits", method="PUT") == (405, b"")


async def test_head_announces_the_length_and_sends_nothing(server: RangeServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.head(f"{server.url}/digits") as response,
    ):
        assert response.headers["Content-Length"] == "10"
    assert server.requests[0].sent == 0


async def test_latency_and_concurrency_are_recorded() -> None:
    with RangeServer({"digits": DIGITS}, latency=0.05) as server:
        await asyncio.gather(*(fetch(f"{server.url}/digits") for _ in range(4)))
        assert server.max_in_flight == 4
        await fetch(f"{server.url}/digits")
        server.latency = 0
        before = time.monotonic()
        await fetch(f"{server.url}/digits")
        requests = server.requests
    assert requests[4].in_flight == 1
    assert all(r.ended is not None and r.ended - r.started >= 0.05 for r in requests[:5])
    assert before <= requests[5].started <= time.monotonic()


async def test_fault_hits_the_requests_it_names(server: RangeServer) -> None:
    server.inject(Fault(status=503), path="/dig*", skip=1, times=2)
    statuses = [(await fetch(f"{server.url}/digits"))[0] for _ in range(4)]
    assert (await fetch(f"{server.url}/group/a"))[0] == 200
    assert statuses == [200, 503, 503, 200]


async def test_reset_forgets_requests_and_faults(server: RangeServer) -> None:
    server.inject(Fault(status=500))
    await fetch(f"{server.url}/digits")
    server.reset()
    assert server.requests == []
    assert server.max_in_flight == 0
    assert await fetch(f"{server.url}/digits") == (200, DIGITS)


async def test_ignored_range(server: RangeServer) -> None:
    server.inject(Fault(ignore_range=True))
    assert await fetch(f"{server.url}/digits", asked="bytes=2-4") == (200, DIGITS)


@pytest.mark.parametrize("keep", [0, 2])
async def test_short_answer_is_well_formed(server: RangeServer, keep: int) -> None:
    server.inject(Fault(keep=keep))
    assert await fetch(f"{server.url}/digits", asked="bytes=2-6") == (206, b"23456"[:keep])


@pytest.mark.parametrize("cut", [0, 2])
async def test_cut_answer_breaks_off(server: RangeServer, cut: int) -> None:
    server.inject(Fault(cut=cut), times=1)
    with pytest.raises(aiohttp.ClientPayloadError):
        await fetch(f"{server.url}/digits")
    assert server.requests[0].sent == cut
    assert await fetch(f"{server.url}/digits") == (200, DIGITS)


async def test_hanging_request_waits_for_release(server: RangeServer) -> None:
    server.inject(Fault(hang=True), path="/digits")
    pending = asyncio.create_task(fetch(f"{server.url}/digits"))
    assert await fetch(f"{server.url}/group/a") == (200, b"a")
    assert not pending.done()
    server.release()
    assert await pending == (200, DIGITS)


async def test_request_that_the_client_gives_up_has_no_status(server: RangeServer) -> None:
    server.inject(Fault(hang=True))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(fetch(f"{server.url}/digits"), timeout=0.1)
    while (record := server.requests[0]).ended is None:
        await asyncio.sleep(0.01)
    assert record.status is None


async def test_server_stops_while_a_request_hangs() -> None:
    with RangeServer({"digits": DIGITS}) as server:
        server.inject(Fault(hang=True))
        pending = asyncio.create_task(fetch(f"{server.url}/digits"))
        while not server.requests:
            await asyncio.sleep(0.01)
    await asyncio.wait([pending], timeout=5)
    assert pending.done()
    pending.exception()


@pytest.mark.parametrize("kind", ["mapping", "directory"])
def test_listings_are_what_fsspec_reads(kind: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    objects = {"digits": DIGITS, "group/a": b"a", "group/b c/d": b"d"}
    for name, value in objects.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(value)
    with RangeServer(objects if kind == "mapping" else tmp_path, listings=True) as server:
        fs = fsspec.filesystem("http", skip_instance_cache=True)
        found = fs.find(f"{server.url}/")
    assert sorted(found) == [
        f"{server.url}/digits",
        f"{server.url}/group/a",
        f"{server.url}/group/b%20c/d",
    ]


def test_process_prints_its_address_and_reports_over_http(tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(DIGITS)
    command = [sys.executable, range_server.__file__, str(tmp_path), "--latency-ms", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with urlopen(HTTPRequest(f"{url}/digits", headers={"Range": "bytes=2-4"})) as response:
                assert response.read() == b"234"
            reports = []
            for method in ["GET", "DELETE", "GET"]:
                ask = HTTPRequest(f"{url}{range_server.REQUESTS_PATH}", method=method)
                with urlopen(ask) as response:
                    reports.append(json.load(response))
            assert reports == [reports[0], reports[0], []]
            (request,) = reports[0]
            assert (request["span"], request["sent"], request["in_flight"]) == ([2, 5], 3, 1)
            assert request["ended"] - request["started"] >= 0.001
        finally:
            process.terminate()
