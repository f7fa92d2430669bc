"""A loopback HTTP server for tests and benchmarks of remote reads.

It serves a directory, or a mapping of names to bytes, the way that an object store does: whole
objects, single byte ranges, suffixes, `416` for what lies outside. On top of that it waits before
each answer as a distant server would, misbehaves on demand, and remembers every request, so that
a test can say how many there were, for which bytes, and how many at the same time.

In the test process, on a thread of its own:

    with RangeServer({"a": b"0123456789"}, latency=0.02) as server:
        server.inject(Fault(status=503), path="/a", times=1)
        ...  # read server.url + "/a"
        assert [request.status for request in server.requests] == [503, 206]

As a process of its own, which leaves the reader's interpreter to the reader. It prints its address
as one line of JSON; `GET /__requests__` returns what it has recorded, `DELETE` forgets it too:

    python -m tests.range_server DIRECTORY --latency-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import json
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

REQUESTS_PATH = "/__requests__"


@dataclass(slots=True)
class Request:
    """What the server remembers of one request. Times are `time.monotonic()` seconds, a clock
    that the processes of one machine share."""

    method: str
    path: str
    asked: str | None  # the Range header, as it came
    in_flight: int  # requests being served when this one arrived, itself included
    started: float
    ended: float | None = None  # None while it is being served
    status: int | None = None  # None when the client went away before an answer
    span: tuple[int, int] | None = None  # the bytes of the object that answer it, half-open
    sent: int = 0  # bytes of the body that went to the network


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a request in place of a good answer."""

    status: int | None = None  # answer with this status and no data
    ignore_range: bool = False  # answer 200 with the whole object
    keep: int | None = None  # a well-formed answer that holds only so many bytes
    cut: int | None = None  # announce everything, send so many bytes, drop the connection
    hang: bool = False  # do not answer before `RangeServer.release()`


@dataclass(slots=True)
class _Rule:
    fault: Fault
    path: str
    skip: int
    times: int | None


class RangeServer:
    """Serve `source` on the loopback interface while the context is open.

    Parameters
    ----------
    source : path-like or mapping of str to bytes
        A directory, or objects by their name. Objects that a test adds later are served too.
    latency : float
        Seconds that each answer waits.
    listings : bool
        Answer a directory's address with a page of links to what it holds, which is how fsspec
        lists over HTTP. Without it a directory is a 404, as in an object store.
    port : int
        The port to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Mapping[str, bytes],
        *,
        latency: float = 0.0,
        listings: bool = False,
        port: int = 0,
    ) -> None:
        self._objects = source if isinstance(source, Mapping) else None
        self._root = "" if isinstance(source, Mapping) else os.path.realpath(source, strict=True)
        self.latency = latency
        self.listings = listings
        self.url = ""
        self._port = port
        self._requests: list[Request] = []
        self._serving = 0
        self._rules: list[_Rule] = []
        self._released = asyncio.Event()

    @property
    def requests(self) -> list[Request]:
        """Every request since the start or the last `reset()`, in order of arrival."""
        return list(self._requests)

    @property
    def max_in_flight(self) -> int:
        """The most requests that were being served at one time."""
        return max((request.in_flight for request in self._requests), default=0)

    def reset(self) -> None:
        """Forget the requests and the faults."""
        self._requests = []
        self._rules = []

    def inject(
        self, fault: Fault, *, path: str = "*", skip: int = 0, times: int | None = None
    ) -> None:
        """Let requests whose path matches the pattern `path` meet `fault`: not the first `skip`
        of them, then `times` (`None`: all). The first rule that applies to a request decides."""
        self._rules.append(_Rule(fault, path, skip, times))

    def release(self) -> None:
        """Answer the requests that hang, and let none hang from here on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def __enter__(self) -> Self:
        ready = threading.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with self.running():
                ready.set()
                await self._stop.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except OSError as error:
                failure.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="range-server", daemon=True)
        self._thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve on the running event loop."""
        # A client that hangs up cancels the handler, so that a test sees which requests it gave up.
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
            report = [asdict(record) for record in self._requests]
            if request.method == "DELETE":
                self.reset()
            return web.json_response(report)
        self._serving += 1
        asked, arrived = request.headers.get("Range"), time.monotonic()
        record = Request(request.method, request.path, asked, self._serving, arrived)
        self._requests.append(record)
        try:
            return await self._answer(request, record)
        except ConnectionError as error:  # the client has gone away
            raise asyncio.CancelledError from error
        finally:
            record.ended = time.monotonic()
            self._serving -= 1

    async def _answer(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        fault = self._next_fault(request.path)
        await asyncio.sleep(self.latency)
        if fault.hang:
            await self._released.wait()

        record.status, body, headers = self._look_up(request, record, fault)
        announced = body if request.method == "HEAD" else body[: fault.keep]
        sent = b"" if request.method == "HEAD" else announced[: fault.cut]
        record.sent = len(sent)
        headers["Content-Length"] = str(len(announced))
        response = web.StreamResponse(status=record.status, headers=headers)
        await response.prepare(request)
        if fault.cut is None:
            await response.write_eof(sent)
        else:
            await response.write(sent)
            if request.transport is not None:
                request.transport.close()
        return response

    def _next_fault(self, path: str) -> Fault:
        for rule in self._rules:
            if rule.times == 0 or not fnmatchcase(path, rule.path):
                continue
            if rule.skip:
                rule.skip -= 1
                continue
            if rule.times is not None:
                rule.times -= 1
            return rule.fault
        return Fault()

    def _look_up(
        self, request: web.BaseRequest, record: Request, fault: Fault
    ) -> tuple[int, bytes, dict[str, str]]:
        """The status, body and headers that answer a request; its span goes into `record`."""
        path = request.path.lstrip("/")
        if fault.status is not None:
            return fault.status, b"", {}
        if request.method not in ("GET", "HEAD"):
            return 405, b"", {"Allow": "GET, HEAD"}
        size = self._size(path)
        if size is None:
            names = sorted(self._children(path)) if self.listings else []
            links = (f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
            return 200 if names else 404, "".join(links).encode(), {"Content-Type": "text/html"}

        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        try:
            asked = request.http_range
        except ValueError:  # several ranges, or another unit: a server may ignore those
            asked = slice(None)
        if fault.ignore_range or (asked.start is None and asked.stop is None):
            record.span = (0, size)
            return 200, self._read(path, 0, size), headers
        start, stop, _ = asked.indices(size)
        if start >= stop:
            return 416, b"", {"Content-Range": f"bytes */{size}"}
        record.span = (start, stop)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, self._read(path, start, stop), headers

    def _size(self, path: str) -> int | None:
        if self._objects is not None:
            return len(self._objects[path]) if path in self._objects else None
        try:
            status = os.stat(self._file(path))
        except (OSError, ValueError):  # no such file, or no name of one
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _read(self, path: str, start: int, stop: int) -> bytes:
        if self._objects is not None:
            return self._objects[path][start:stop]
        with open(self._file(path), "rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)

    def _children(self, path: str) -> Iterable[str]:
        if self._objects is not None:
            prefix = f"{path.rstrip('/')}/" if path else ""
            below = [name[len(prefix) :] for name in self._objects if name.startswith(prefix)]
            return {name.partition("/")[0] + "/" * ("/" in name) for name in below}
        folder = Path(self._file(path))
        children = folder.iterdir() if folder.is_dir() else ()
        return [child.name + "/" * child.is_dir() for child in children]

    def _file(self, path: str) -> str:
        # A string, not a path: the server shares the processors with the client that is measured.
        return self._root if ".." in path.split("/") else f"{self._root}/{path}"


def main() -> None:
    """Serve a directory until the process is interrupted."""
    parser = argparse.ArgumentParser(description="Serve a directory with byte ranges and latency.")
    parser.add_argument("root", type=Path, metavar="DIRECTORY")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--listings", action="store_true", help="list directories as HTML links")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    if not options.root.is_dir():
        parser.error(f"not a directory: {options.root}")
    if options.latency_ms < 0:
        parser.error(f"--latency-ms is negative: {options.latency_ms}")
    server = RangeServer(
        options.root,
        latency=options.latency_ms / 1000,
        listings=options.listings,
        port=options.port,
    )

    async def serve() -> None:
        async with server.running():
            print(json.dumps({"url": server.url}), flush=True)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
