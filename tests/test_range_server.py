"""The server of the tests answers ranges, misbehaves and records as its users rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

aiohttp = pytest.importorskip("aiohttp")

from tests import range_server
from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from pathlib import Path

DIGITS = b"0123456789"


async def fetch(url: str, asked: str | None = None) -> tuple[int, bytes]:
    headers = {} if asked is None else {"Range": asked}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("kind", ["mapping", "directory"])
async def test_ranges(kind: str, tmp_path: Path) -> None:
    (tmp_path / "digits").write_bytes(DIGITS)
    with RangeServer({"digits": DIGITS} if kind == "mapping" else tmp_path) as server:
        url = f"{server.url}/digits"
        assert await fetch(url) == (200, DIGITS)
        assert await fetch(url, "bytes=2-4") == (206, b"234")
        assert await fetch(url, "bytes=8-99") == (206, b"89")
        assert await fetch(url, "bytes=-3") == (206, b"789")
        assert await fetch(url, "bytes=10-") == (416, b"")
        assert await fetch(f"{server.url}/absent") == (404, b"")
    assert [request.sent for request in server.requests] == [10, 3, 2, 3, 0, 0]


async def test_faults() -> None:
    with RangeServer({"digits": DIGITS}) as server:
        url = f"{server.url}/digits"
        server.inject(Fault(status=503), path="/dig*", times=1)
        server.inject(Fault(ignore_range=True), times=1)
        server.inject(Fault(keep=2), times=1)
        server.inject(Fault(cut=2), times=1)
        answers = [await fetch(url, "bytes=2-6") for _ in range(3)]
        assert answers == [(503, b""), (200, DIGITS), (206, b"23")]
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(url)
        assert await fetch(url) == (200, DIGITS)


def test_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "digits").write_bytes(DIGITS)
    options = ["--latency-ms", "1", "--listings", "--port", "0"]
    command = [sys.executable, range_server.__file__, str(tmp_path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert urlopen(f"{url}/digits").read() == DIGITS
            links = b'<a href="a%20b/">a b/</a>\n<a href="digits">digits</a>\n'
            assert urlopen(url).read() == links
            forget = Request(f"{url}{range_server.REQUESTS_PATH}", method="DELETE")
            requests = json.load(urlopen(forget))
            assert [(each["path"], each["in_flight"]) for each in requests] == [
                ("/digits", 1),
                ("/", 1),
            ]
            assert requests[0]["ended"] - requests[0]["started"] >= 0.001
            assert json.load(urlopen(forget)) == []
        finally:
            process.terminate()
