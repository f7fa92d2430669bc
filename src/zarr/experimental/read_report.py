"""What a program reads from its stores."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

from zarr.errors import ZarrUserWarning
from zarr.storage._common import read_observers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zarr.core.buffer import Buffer

__all__ = ["ReadReport", "report_reads"]


@dataclass(kw_only=True)
class ReadReport:
    """What a program has read. Printed, it is a small table.

    Attributes
    ----------
    requests
        Keys, and byte ranges of keys, that were requested.
    absent
        Requests for keys that do not exist.
    reads
        Operations of stores that served the requests: an HTTP request, a call of `get`, or a
        switch to a worker thread. Fewer than `requests` if the store merged some.
    merged
        Reads that served more than one request.
    nbytes
        Bytes returned for the requests.
    seconds
        Duration of the `with` block.
    """

    requests: int = 0
    absent: int = 0
    reads: int = 0
    merged: int = 0
    nbytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"requests  {self.requests:>12,}  {self.absent:,} absent\n"
            f"reads     {self.reads:>12,}  {self.merged:,} merged\n"
            f"bytes     {self.nbytes:>12,}\n"
            f"seconds   {self.seconds:>12.3f}"
        )


@contextmanager
def report_reads() -> Iterator[ReadReport]:
    """Report what the process reads through zarr while a `with` block runs.

    The reads of all threads count, also those of a dask scheduler; those of other processes do not.
    Chunks count, and the metadata of arrays and groups that are opened. The metadata of the members
    of a group, and single inner chunks of shards in memory or on a local disk, do not.

    Yields
    ------
    ReadReport
        The report, which is updated while the block runs.

    Warns
    -----
    ZarrUserWarning
        If nothing was read.
    """
    report = ReadReport()
    lock = Lock()

    def observe(values: Sequence[Buffer | None]) -> None:
        with lock:
            report.requests += len(values)
            report.absent += sum(value is None for value in values)
            report.reads += 1
            report.merged += len(values) > 1
            report.nbytes += sum(len(value) for value in values if value is not None)

    read_observers.append(observe)
    began = perf_counter()
    try:
        yield report
    finally:
        read_observers.remove(observe)
        report.seconds = perf_counter() - began
        if not report.reads:
            warnings.warn(
                "Nothing was read while the report ran: reads of other processes are not seen.",
                ZarrUserWarning,
                stacklevel=3,
            )
