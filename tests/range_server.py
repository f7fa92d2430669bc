"""A loopback HTTP server for tests and benchmarks of remote reads.

It serves a directory, or a mapping of names to bytes, as an object store does: whole objects and
byte ranges. It waits before each answer, misbehaves on demand, and records every request.

In the process of a test, on a thread of its own:

    with RangeServer({"a": b"0123456789"}, latency=0.02) as server:
        server.inject(Fault(status=503), path="/a", times=1)
        ...  # read server.url + "/a"
        assert [request.status for request in server.requests] == [503, 206]

As a process of its own, which prints its address as a line of JSON. `GET /__requests__` returns the
recorded requests, and `DELETE` forgets them as well:

    python tests/range_server.py DIRECTORY --latency-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import io
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import quote

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS_PATH = "/__requests__"


@dataclass(slots=True)
class Request:
    """A recorded request. Times are `time.monotonic()`, which all processes share."""

    path: str
    asked: str | None  # the Range header
    in_flight: int  # how many requests were being served when this one arrived, with itself
    started: float
    ended: float | None = None  # None while it is being served
    status: int | None = None  # None if the client did not wait for the answer
    sent: int = 0  # bytes of the body


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a request instead of a good answer."""

    status: int | None = None  # answer with this status and no data
    ignore_range: bool = False  # answer with the whole object
    keep: int | None = None  # a well-formed answer with only so many bytes
    cut: int | None = None  # announce all bytes, send so many, and drop the connection
    hang: bool = False  # do not answer before `RangeServer.release()`


@dataclass(slots=True)
class _Rule:
    fault: Fault
    path: str
    times: int


class RangeServer:
    """Serve `source` on the loopback interface while the context is open.

    Parameters
    ----------
    source : path-like or mapping of str to bytes
        A directory, or objects by name.
    latency : float
        How many seconds each answer waits.
    listings : bool
        Answer requests of a directory with a page of links, which fsspec takes for a listing.
    port : int
        The port to listen on; 0 stands for any free one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Mapping[str, bytes],
        *,
        latency: float = 0.0,
        listings: bool = False,
        port: int = 0,
    ) -> None:
        self._source = source if isinstance(source, Mapping) else os.path.realpath(source)
        self.latency = latency
        self.listings = listings
        self.url = ""
        self._port = port
        self._serving = 0
        self._released = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """Forget the requests and the faults."""
        self.requests: list[Request] = []
        self._rules: list[_Rule] = []

    @property
    def max_in_flight(self) -> int:
        """The most requests that were being served at one time."""
        return max((request.in_flight for request in self.requests), default=0)

    def inject(self, fault: Fault, *, path: str = "*", times: int | None = None) -> None:
        """Let requests whose path matches the pattern `path` meet `fault`: all, or so many."""
        self._rules.append(_Rule(fault, path, -1 if times is None else times))

    def release(self) -> None:
        """Answer the requests that hang, and let no others hang."""
        self._loop.call_soon_threadsafe(self._released.set)

    def __enter__(self) -> Self:
        ready = threading.Event()

        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with self.running():
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve on the running event loop."""
        # The handler of a request is cancelled when the client hangs up.
        server = web.Server(self._serve, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port, backlog=1024).start()
            self.url = "http://{}:{}".format(*runner.addresses[0])
            yield
        finally:
            self._released.set()
            await runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == REQUESTS_PATH:
            report = [asdict(record) for record in self.requests]
            if request.method == "DELETE":
                self.reset()
            return web.json_response(report)
        self._serving += 1
        asked = request.headers.get("Range")
        record = Request(request.path, asked, self._serving, time.monotonic())
        self.requests.append(record)
        try:
            return await self._answer(request, record)
        except ConnectionError as error:  # the client has hung up
            raise asyncio.CancelledError from error
        finally:
            record.ended = time.monotonic()
            self._serving -= 1

    async def _answer(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        fault = Fault()
        for rule in self._rules:
            if rule.times and fnmatchcase(request.path, rule.path):
                rule.times -= 1
                fault = rule.fault
                break
        await asyncio.sleep(self.latency)
        if fault.hang:
            await self._released.wait()
        if fault.status is not None:
            record.status, body, headers = fault.status, b"", dict[str, str]()
        else:
            record.status, body, headers = self._look_up(request, fault.ignore_range)
        body = body if request.method == "HEAD" else body[: fault.keep]
        headers["Content-Length"] = str(len(body))
        response = web.StreamResponse(status=record.status, headers=headers)
        await response.prepare(request)
        sent = b"" if request.method == "HEAD" else body[: fault.cut]
        record.sent = len(sent)
        if fault.cut is None:
            await response.write_eof(sent)
        else:
            await response.write(sent)
            if request.transport is not None:
                request.transport.close()
        return response

    def _look_up(
        self, request: web.BaseRequest, ignore_range: bool
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return the status, the body and the headers of an answer."""
        file = self._open(request.path.lstrip("/"))
        if file is None:
            links = self._links(request.path.lstrip("/")) if self.listings else ""
            return 200 if links else 404, links.encode(), {"Content-Type": "text/html"}
        with file:
            size = file.seek(0, os.SEEK_END)
            headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            part = slice(None) if ignore_range else request.http_range
            start, stop, _ = part.indices(size)
            is_whole = part.start is part.stop is None
            if start >= stop and not is_whole:
                return 416, b"", {"Content-Range": f"bytes */{size}"}
            if not is_whole:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            file.seek(start)
            return 200 if is_whole else 206, file.read(stop - start), headers

    def _open(self, name: str) -> BinaryIO | None:
        if isinstance(self._source, Mapping):
            return io.BytesIO(self._source[name]) if name in self._source else None
        try:
            # No `Path`: the server shares the processors with the client that is measured.
            return None if ".." in name else open(f"{self._source}/{name}", "rb", buffering=0)
        except (OSError, ValueError):  # a directory, no file, or not even a name
            return None

    def _links(self, name: str) -> str:
        folder = Path(f"{self._source}/{name}")
        children = sorted(folder.iterdir()) if folder.is_dir() and ".." not in name else []
        names = [child.name + "/" * child.is_dir() for child in children]
        return "".join(f'<a href="{quote(each)}">{html.escape(each)}</a>\n' for each in names)


async def main() -> None:
    """Serve a directory until the process is interrupted."""
    parser = argparse.ArgumentParser(description="Serve a directory with byte ranges and latency.")
    parser.add_argument("root", type=Path, metavar="DIRECTORY")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--listings", action="store_true", help="list directories as HTML links")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    latency = options.latency_ms / 1000
    server = RangeServer(
        options.root, latency=latency, listings=options.listings, port=options.port
    )
    async with server.running():
        print(json.dumps({"url": server.url}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
