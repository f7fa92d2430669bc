"""A local server that misbehaves on purpose.

It serves objects by path with byte ranges, to HTTP clients and, with S3's error documents, to S3
clients. It writes every byte itself: server libraries refuse to send wrong headers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from checks.faults.cells import Cell

ARM_PATH = "__arm__"
"""A request for this starts the misbehaviour, so that an array can be opened first."""

_LATENCY = 0.01
_LIMIT = 16
_S3_CODES = {403: "AccessDenied", 404: "NoSuchKey", 416: "InvalidRange", 503: "SlowDown"}

type Span = tuple[int, int]


class FaultyServer:
    """Serve `objects`, and misbehave as `cell` says.

    Parameters
    ----------
    objects : mapping of str to bytes
        The objects by path.
    cell : Cell
        The fault, how often it occurs, and which requests it affects.
    """

    def __init__(self, objects: Mapping[str, bytes], cell: Cell) -> None:
        self._objects = objects
        self._cell = cell
        self._left = 0
        self._serving = 0
        self._turn = asyncio.Lock()
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the context is open."""
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", backlog=1024)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        try:
            yield
        finally:
            tasks = [task for task in self._connections.values() if task]
            self._close()
            await asyncio.gather(*tasks)

    def _close(self) -> None:
        self._server.close()
        for writer in self._connections:
            _reset(writer)

    def _arm(self) -> None:
        if self._cell.fault == "refused":
            self._close()
        elif not self._cell.limited:
            self._left = 1 if self._cell.times == "once" else 1_000_000

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests that come over one connection."""
        self._connections[writer] = asyncio.current_task()
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.rstrip().split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in lines)}
                self._serving += 1
                try:
                    await self._answer(line, headers, reader, writer)
                    await writer.drain()
                finally:
                    self._serving -= 1
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has disconnected
        finally:
            del self._connections[writer]
            writer.close()

    async def _answer(
        self,
        line: str,
        headers: Mapping[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        method, target, _ = line.split(" ")
        path = target.partition("?")[0].strip("/")
        if path == ARM_PATH:
            writer.write(_head(200, 0))
            await writer.drain()
            self._arm()
            return
        if method == "HEAD":
            size = len(self._objects.get(path, b""))
            writer.write(_head(200 if path in self._objects else 404, size))
            return
        if self._serving > _LIMIT and self._cell.fault.endswith(f"beyond-{_LIMIT}"):
            writer.write(_refusal(int(self._cell.fault[:3])))
            return
        if self._cell.fault == "one-by-one":
            async with self._turn:
                if reader.at_eof():  # the client has given up
                    return
                await asyncio.sleep(0.03)
        if path not in self._objects:
            writer.write(_refusal(404))
            return
        span = _span(headers.get("range"), len(self._objects[path]))
        fault = self._next_fault(path, span)
        await asyncio.sleep(_LATENCY)
        await self._misbehave(fault, self._objects[path], span, writer)
        if fault in ("length-large", "stall"):
            await reader.read()  # until the client gives up

    def _next_fault(self, path: str, span: Span | None) -> str | None:
        reaches_index = span is None or span[1] == len(self._objects[path])
        spared = (self._cell.read, reaches_index) in (("index", False), ("inner", True))
        if spared or not self._left:
            return None
        self._left -= 1
        return self._cell.fault

    async def _misbehave(
        self, fault: str | None, content: bytes, span: Span | None, writer: asyncio.StreamWriter
    ) -> None:
        """Answer a request for `span` of `content`."""
        if fault is not None and fault.isdecimal():
            writer.write(_refusal(int(fault)))
            return
        if fault == "whole":
            span = None
        body = content if span is None else content[slice(*span)]
        half = len(body) // 2

        def head(length: int) -> bytes:
            return _head(200 if span is None else 206, length, span, len(content))

        match fault:
            case "reset-early":
                _reset(writer)
            case "reset-late":
                writer.write(head(len(body)))
                await writer.drain()
                await asyncio.sleep(_LATENCY)  # otherwise the reset discards the headers
                _reset(writer)
            case "cut":
                writer.write(head(len(body)) + body[:half])
                writer.close()
            case "short":
                writer.write(head(half) + body[:half])
            case "long":
                writer.write(head(len(body) + 8) + body + bytes(8))
            case "empty":
                writer.write(head(0))
            case "length-small":
                writer.write(head(len(body) - 4) + body)
            case "length-large":
                writer.write(head(len(body) + 4) + body)
            case "stall":
                pass
            case _:
                writer.write(head(len(body)) + body)


def _span(asked: str | None, size: int) -> Span | None:
    """The bytes that a Range header requests; `None` for all of them."""
    if asked is None:
        return None
    start, _, last = asked.removeprefix("bytes=").partition("-")
    if not start:
        return max(size - int(last), 0), size
    return int(start), min(int(last) + 1, size) if last else size


def _head(status: int, length: int, span: Span | None = None, size: int = 0) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Length: {length}",
        "Content-Type: application/octet-stream",
        "Accept-Ranges: bytes",
        'ETag: "0"',
        "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT",
    ]
    if span is not None:
        lines.append(f"Content-Range: bytes {span[0]}-{span[1] - 1}/{size}")
    return "\r\n".join([*lines, "", ""]).encode()


def _refusal(status: int) -> bytes:
    """An error response with S3's error document; plain HTTP clients look only at the status."""
    code = _S3_CODES.get(status, HTTPStatus(status).phrase.replace(" ", ""))
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    return _head(status, len(body)) + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset (RST)."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
