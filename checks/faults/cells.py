"""What is tried: each fault with each client and each kind of read, and what may come of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

TIME_LIMIT = 45.0
"""The seconds after which a read counts as one that does not end."""

CLIENTS = {
    "http": "fsspec's HTTP file system",
    "s3": "s3fs",
    "obstore": "obstore's HTTPStore; for references its fsspec adapter",
}

READS = {
    "chunk": "one chunk",
    "chunks": "16 chunks, each in an object of its own",
    "merged": "16 references that lie close together in one object",
    "apart": "16 references that lie 64 KiB apart in one object",
    "index": "three inner chunks of each of 4 shards; the fault meets what reads an index",
    "inner": "the same; the fault meets what does not reach the index",
}
RANGES = ("merged", "apart", "index", "inner")
"""Those that ask for parts of objects."""

FAULTS = {
    "404": "the status, as for every number here",
    "403": "",
    "416": "",
    "429": "",
    "500": "",
    "503": "",
    "reset-early": "the connection is reset before there are headers",
    "reset-late": "it is reset after the headers",
    "cut": "half of the body, then the connection is closed",
    "short": "half of the body, and the headers say so",
    "long": "the body and some more, and the headers say so",
    "empty": "no body, and the headers say so",
    "length-small": "`Content-Length` is four bytes less than the body has",
    "length-large": "`Content-Length` is four bytes more than the body has; the rest never comes",
    "whole": "`200` and the whole object, whatever part was asked for",
    "stall": "no answer",
    "refused": "nothing listens any more",
}
"""What happens to the first request for data (`once`), or to each (`always`)."""
WRONG_LENGTH = ("short", "long", "empty", "length-small", "whole")
"""After these a client hands over a body of another length than was asked for."""

LIMITED_READS = {
    "100-chunks": "100 chunks, each in an object of its own",
    "100-apart": "100 references that lie 64 KiB apart in one object",
    "100-inner": "two inner chunks of each of 100 shards",
    "256-chunks": "256 chunks, each in an object of its own",
}

LIMITED = {
    "503-beyond-16": "503 to what is more than 16 requests at once",
    "429-beyond-16": "429 to what is more than 16 requests at once",
    "one-by-one": "one request at a time, 30 ms each; the client gives each 3 s in all",
    "http.server-1.0": "`python3 -m http.server`: connections are accepted five in a row",
    "http.server-1.1": "the same with `--protocol HTTP/1.1`",
}


class Cell(NamedTuple):
    """One read, from one client, that meets one fault."""

    client: str
    read: str
    fault: str
    times: str = "always"

    def __str__(self) -> str:
        return f"{self.client}-{self.read}-{self.fault}-{self.times}"

    @property
    def limited(self) -> bool:
        """Whether the server is a limited one, so that the cell needs a fresh process."""
        return self.fault in LIMITED

    @property
    def patience(self) -> float:
        """The seconds that the client gives a request."""
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
    """Tell whether a cell is one of the few that stand for all where time is short."""
    if cell.limited:
        return cell.client == "http" and cell.read in ("100-chunks", "256-chunks")
    often = {"404", "503", "short", "cut", "whole"}
    return cell.times == "once" and (cell.client == "http" or cell.fault in often)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a read."""

    kind: Literal["data", "fill", "wrong", "error", "hang"]
    """The right data, fill values where there is data, other data, an exception, or nothing."""
    error: str = ""
    """The name of the exception's class."""
    detail: str = ""
    """What the exception says."""

    def __str__(self) -> str:
        return self.error or self.kind


def fault_in(cell: Cell, stock: Outcome, fork: Outcome) -> str | None:
    """Say what is wrong with what the fork made of a cell; `None` if nothing is."""
    match fork.kind, stock.kind:
        case "data", _ if (cell.fault, cell.times) == ("whole", "always") and cell.read in RANGES:
            return "the whole object is taken for a part of it"
        case "data", _:
            return None
        case "fill", "fill" if cell.fault == "404":
            return None  # a store takes it for an absent key, and an absent key is a missing chunk
        case "fill", _:
            return "fill values for data that exists"
        case "wrong", _:
            return "wrong data"
        case "hang", _:
            return "it does not end"
        case "error", "data" | "fill" if stock.kind == "data" or cell.fault == "404":
            return f"{fork.error} where the release succeeds: {fork.detail}"
        case "error", "error" if cell.fault in WRONG_LENGTH and stock.error == "ValueError":
            # A codec notices there. Here the store may do so before, and raise what stores raise.
            return None if fork.error.endswith(("ValueError", "OSError")) else fork.error
        case "error", "error" if fork.error != stock.error:
            return f"{fork.error} where the release raises {stock.error}: {fork.detail}"
    return None
