"""The server answers as an object store does, waits, and records every request."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Path(__file__).parents[1] / "server.py"
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(CONTENT)
    (tmp_path / "empty").touch()
    return tmp_path


@pytest.fixture
def url(folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    options = getattr(request, "param", ())
    command = [sys.executable, str(SERVER), str(folder), "--listings", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def get(url: str, wanted: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    headers = {} if wanted is None else {"Range": f"bytes={wanted}"}
    with urlopen(Request(url, headers=headers, method=method), timeout=30) as response:
        return response.status, response.read()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, slice(None)),
        ("0-9", slice(10)),
        ("1048570-", slice(-6, None)),
        ("1048570-2000000", slice(-6, None)),
        ("-3", slice(-3, None)),
    ],
)
def test_ranges(url: str, wanted: str | None, expected: slice) -> None:
    status, found = get(f"{url}/inner/file", wanted)
    assert (status, found == CONTENT[expected]) == (200 if wanted is None else 206, True)


@pytest.mark.parametrize(
    ("path", "wanted", "status"),
    [("/nothing", None, 404), ("/../etc/passwd", None, 404), ("/inner/file", "2000000-", 416)],
)
def test_errors(url: str, path: str, wanted: str | None, status: int) -> None:
    with pytest.raises(HTTPError) as raised:
        get(url + path, wanted)
    assert raised.value.code == status
    raised.value.close()


def test_other_requests(url: str) -> None:
    assert get(f"{url}/inner/file", method="HEAD") == (200, b"")
    assert get(f"{url}/empty") == (200, b"")
    assert b'href="inner/"' in get(f"{url}/")[1]


def test_requests_are_recorded(url: str) -> None:
    get(f"{url}/inner/file", "0-9")
    (request,) = json.loads(get(f"{url}/__requests__", method="DELETE")[1])
    assert (request["path"], request["sent"], request["in_flight"]) == ("/inner/file", 10, 1)
    assert request["started"] <= request["ended"]
    assert json.loads(get(f"{url}/__requests__")[1]) == []


@pytest.mark.parametrize("url", [("--latency-ms", "300")], indirect=True)
def test_latency(url: str) -> None:
    began = time.monotonic()
    get(f"{url}/empty")
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("url", [("--bandwidth", "4")], indirect=True)
def test_bandwidth(url: str) -> None:
    began = time.monotonic()
    assert len(get(f"{url}/inner/file")[1]) == len(CONTENT)
    assert time.monotonic() - began >= 0.25  # 1 MiB at 4 MB/s


@pytest.mark.parametrize("url", [("--bandwidth", "0.1")], indirect=True)
def test_small_responses_share_the_bandwidth(url: str) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda _: get(f"{url}/inner/file", "0-1999")[1], range(24)))
    assert sum(map(len, bodies)) == 48_000
    assert time.monotonic() - began >= 0.48  # at 0.1 MB/s
