"""The cells: each fault with each client and each kind of read, and which outcomes are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

TIME_LIMIT = 45.0
"""Seconds after which a read counts as hanging."""

CLIENTS = {
    "http": "fsspec's HTTP file system",
    "s3": "s3fs",
    "obstore": "obstore's HTTPStore; for references its fsspec adapter",
}

READS = {
    "chunk": "one chunk",
    "chunks": "16 chunks, each in its own object",
    "merged": "16 references to adjacent ranges of one object",
    "apart": "16 references to ranges of one object, 64 KiB apart",
    "index": "three inner chunks from each of 4 shards; the fault affects requests for an index",
    "inner": "the same; the fault affects the other requests",
}
RANGES = ("merged", "apart", "index", "inner")
"""The reads that request byte ranges."""

FAULTS = {
    "404": "a response with this status, as for the other numbers",
    "403": "",
    "416": "",
    "429": "",
    "500": "",
    "503": "",
    "reset-early": "the connection is reset before the headers",
    "reset-late": "the connection is reset after the headers",
    "cut": "half of the body, then the connection is closed",
    "short": "half of the body, with a matching `Content-Length`",
    "long": "the body and eight more bytes, with a matching `Content-Length`",
    "empty": "no body, with a matching `Content-Length`",
    "length-small": "`Content-Length` is four bytes too small",
    "length-large": "`Content-Length` is four bytes too large; the rest never arrives",
    "whole": "`200` and the whole object, whatever range was requested",
    "stall": "no response",
    "refused": "the server no longer listens",
}
"""What happens to the first request for data (`once`), or to each (`always`)."""
WRONG_LENGTH = ("short", "long", "empty", "length-small", "whole")
"""Faults after which a client returns a body of the wrong length."""

LIMITED_READS = {
    "100-chunks": "100 chunks, each in its own object",
    "100-apart": "100 references to ranges of one object, 64 KiB apart",
    "100-inner": "two inner chunks from each of 100 shards",
    "256-chunks": "256 chunks, each in its own object",
}

LIMITED = {
    "503-beyond-16": "503 for requests beyond 16 at a time",
    "429-beyond-16": "429 for requests beyond 16 at a time",
    "one-by-one": "one request at a time, 30 ms each; the client's timeout is 3 s per request",
    "http.server-1.0": "`python3 -m http.server`, which queues at most five connections",
    "http.server-1.1": "the same with `--protocol HTTP/1.1`",
}


class Cell(NamedTuple):
    """One read, with one client, under one fault."""

    client: str
    read: str
    fault: str
    times: str = "always"

    def __str__(self) -> str:
        return f"{self.client}-{self.read}-{self.fault}-{self.times}"

    @property
    def limited(self) -> bool:
        """Whether the fault is a limit on the number of requests at once."""
        return self.fault in LIMITED

    @property
    def patience(self) -> float:
        """The client's timeout for a request, in seconds."""
        return 3.0 if self.fault in ("stall", "length-large", "one-by-one") else 20.0


def all_cells() -> list[Cell]:
    """Every cell, in the order of the table."""
    limited = [
        Cell(client, read, fault)
        for client, read, fault in product(CLIENTS, LIMITED_READS, LIMITED)
        if (read == "256-chunks") == fault.startswith("http.server")
        if (client, read == "256-chunks") != ("s3", True)
    ]
    return [
        Cell(client, read, fault, times)
        for client, read, fault, times in product(CLIENTS, READS, FAULTS, ("once", "always"))
        if (fault, times) != ("refused", "once")
    ] + limited


def quick(cell: Cell) -> bool:
    """Tell whether a cell belongs to the quick selection."""
    if cell.limited:
        return cell.client == "http" and cell.read in ("100-chunks", "256-chunks")
    often = {"404", "503", "short", "cut", "whole"}
    return cell.times == "once" and (cell.client == "http" or cell.fault in often)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a read."""

    kind: Literal["data", "fill", "wrong", "error", "hang"]
    """The correct data, fill values for data that exists, other data, an exception, or no end."""
    error: str = ""
    """The name of the exception's class."""
    detail: str = ""
    """The message of the exception."""

    def __str__(self) -> str:
        return self.error or self.kind


def fault_in(cell: Cell, stock: Outcome, fork: Outcome) -> str | None:
    """Describe what is wrong with the fork's outcome of a cell; `None` if nothing is."""
    match fork.kind, stock.kind:
        case "data", _ if (cell.fault, cell.times) == ("whole", "always") and cell.read in RANGES:
            return "the whole object is taken for the requested range"
        case "data", _:
            return None
        case "fill", "fill" if cell.fault == "404":
            return None  # an absent key, and so a missing chunk
        case "fill", _:
            return "fill values for data that exists"
        case "wrong", _:
            return "wrong data"
        case "hang", _:
            return "the read does not end"
        case "error", "data" | "fill" if stock.kind == "data" or cell.fault == "404":
            return f"{fork.error} where the release succeeds: {fork.detail}"
        case "error", "error" if cell.fault in WRONG_LENGTH and stock.error == "ValueError":
            # A codec noticed the wrong length. In the fork the store may notice it first.
            return None if fork.error in ("ValueError", "OSError") else fork.error
        case "error", "error" if fork.error != stock.error:
            return f"{fork.error} where the release raises {stock.error}: {fork.detail}"
    return None
