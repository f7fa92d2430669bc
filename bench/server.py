"""An HTTP server that costs little: it serves a folder on the loopback interface as a distant store would.

python3 bench/server.py FOLDER --latency-ms 20 --bandwidth 100

It prints its address as a line of JSON. Each response waits for the latency, and all of them share the
bandwidth. `GET /__requests__` returns the requests that were recorded; `DELETE` forgets them as well.

What is measured runs on the same processors, so this is a protocol on bare asyncio that sends from mapped files.
`tests/range_server.py` has what tests need: faults, and more of HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import json
import mmap
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote

REQUESTS_PATH = "/__requests__"
PIECE = 64 << 10  # bytes that one response sends before another may, if the bandwidth is limited
RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)", re.IGNORECASE)


@dataclass(slots=True)
class Request:
    """A recorded request. Times are `time.monotonic()`, which all processes share."""

    path: str
    in_flight: int  # requests that were being served when this one arrived, with itself
    started: float
    ended: float | None = None  # None while it is being served
    sent: int = 0  # bytes of the body


class Folder:
    """The files that are served, and what is known about their requests."""

    def __init__(self, path: Path, *, latency: float, bandwidth: float, listings: bool) -> None:
        self.path, self.listings = path.resolve(), listings
        self.latency = latency  # seconds
        self.bandwidth = bandwidth  # bytes a second; infinite if it is not limited
        self.requests: list[Request] = []
        self.in_flight = 0
        self.free_at = 0.0  # when the link has sent what it was given
        self._files: dict[str, memoryview | None] = {}

    def body(self, path: str) -> memoryview | None:
        """What is at a path: a file, a page of links where listings are served, or `None`."""
        if path not in self._files:
            self._files[path] = self._read(path)
        return self._files[path]

    def _read(self, path: str) -> memoryview | None:
        file = (self.path / path.strip("/")).resolve()
        if not file.is_relative_to(self.path) or not file.exists():
            return None
        if file.is_dir():
            names = sorted(
                f"{each.name}/" if each.is_dir() else each.name for each in file.iterdir()
            )
            links = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
            return memoryview(links.encode()) if self.listings else None
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


class Connection(asyncio.Protocol):
    """A connection, whose requests are answered one after the other."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._received = b""
        self._request: Request | None = None  # that is being served
        self._rest = memoryview(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send each response at once, and learn when all of it was sent."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)

    def connection_lost(self, error: Exception | None) -> None:
        """Count a request that was not answered as ended."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Answer the requests that have arrived."""
        self._received += data
        self._next()

    def _next(self) -> None:
        if self._request is None and b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        folder, loop = self._folder, asyncio.get_running_loop()
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        path = unquote(target.decode().split("?", 1)[0])
        if path == REQUESTS_PATH:
            recorded = json.dumps([asdict(request) for request in folder.requests]).encode()
            if method == b"DELETE":
                folder.requests = []
            self._send(b"200 OK", recorded, "")
            return
        folder.in_flight += 1
        self._request = Request(path, folder.in_flight, time.monotonic())
        folder.requests.append(self._request)
        body, status, extra = folder.body(path), b"200 OK", ""
        if body is None:
            body, status = memoryview(b""), b"404 Not Found"
        elif found := RANGE.search(head):
            status, extra, body = _part(body, *found.groups())
        if method == b"HEAD":
            loop.call_later(folder.latency, self._send, status, b"", extra, len(body))
        else:
            loop.call_later(folder.latency, self._send, status, body, extra)

    def _send(
        self, status: bytes, body: bytes | memoryview, extra: str, length: int | None = None
    ) -> None:
        length = len(body) if length is None else length
        head = f"Content-Length: {length}\r\nAccept-Ranges: bytes\r\n{extra}\r\n"
        self._rest = memoryview(body)
        self._transport.write(b"HTTP/1.1 %s\r\n%s" % (status, head.encode()))
        self._send_rest()

    def _send_rest(self) -> None:
        folder = self._folder
        if folder.bandwidth == float("inf"):
            self._send_piece(len(self._rest))
            return
        size = min(PIECE, len(self._rest))
        now = time.monotonic()
        folder.free_at = max(now, folder.free_at) + size / folder.bandwidth
        asyncio.get_running_loop().call_later(folder.free_at - now, self._send_piece, size)

    def _send_piece(self, size: int) -> None:
        if self._transport.is_closing():
            return
        piece, self._rest = self._rest[:size], self._rest[size:]
        if self._request is not None:
            self._request.sent += len(piece)
        if piece:
            self._transport.write(piece)
        if self._rest:
            self._send_rest()
        elif not self._transport.get_write_buffer_size():
            self._end()

    def resume_writing(self) -> None:
        """End a response whose last byte was sent."""
        if not self._rest:
            self._end()

    def _end(self) -> None:
        if self._request is not None:
            self._request.ended = time.monotonic()
            self._request = None
            self._folder.in_flight -= 1
        self._next()


def _part(body: memoryview, first: bytes, last: bytes) -> tuple[bytes, str, memoryview]:
    """The status, the header and the bytes of a range."""
    size = len(body)
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size:
        return b"416 Range Not Satisfiable", f"Content-Range: bytes */{size}\r\n", body[:0]
    where = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
    return b"206 Partial Content", where, body[start:stop]


async def serve(folder: Folder, port: int = 0) -> asyncio.Server:
    """Begin to serve a folder."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(folder), "127.0.0.1", port, backlog=1024)


async def main(options: argparse.Namespace) -> None:
    """Serve until the process is stopped."""
    folder = Folder(
        options.folder,
        latency=options.latency_ms / 1e3,
        bandwidth=options.bandwidth * 1e6,
        listings=options.listings,
    )
    server = await serve(folder, options.port)
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Serve a folder over HTTP on the loopback interface."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each response")
    parser.add_argument(
        "--bandwidth", type=float, default=float("inf"), help="of all responses together, in MB/s"
    )
    parser.add_argument("--listings", action="store_true", help="answer folders with their names")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args()))
