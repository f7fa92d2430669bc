"""Count what reads ask of stores: requests, merged reads, bytes, bytes wasted, reads in flight.

A `ReadReport` holds the figures, and `report_reads` fills one. The counting is done in scopes,
which nest as reads do: a report's block, a `get_many` in it, an operation of that `get_many`. The
scope of the code that runs is in `zarr.core._bounded.read_watcher`, a context variable. Without a
report there is none, and nothing is counted.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING

from zarr.core._bounded import Fetch, closing_groups, read_watcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

    from zarr.core._bounded import ReadGroup

__all__ = ["ReadReport", "report_reads"]

_lock = Lock()
"""Held while reports change: reads of several event loops may share one."""


@dataclass(slots=True, kw_only=True)
class ReadReport:
    """What reads have asked of stores.

    A plain record: it can be compared, pickled, and passed to `dataclasses.asdict`. `print` shows
    it as a small table.

    Attributes
    ----------
    requests
        Keys, and byte ranges of keys, that were asked for.
    absent
        How many of these the store said not to have.
    reads
        Operations of the store that ran to serve the requests, failed ones included: HTTP
        requests of an `FsspecStore`, calls of `get` where a store has only that, trips to a
        worker thread of a store on a local disk. To look into a cache is a read too, whether or
        not it has the key; what a reference set holds itself is not read.
    merged
        How many of the reads served more than one request.
    nbytes
        Bytes that were handed over for the requests.
    nbytes_read
        Bytes that the reads returned. More than `nbytes` where gaps were read along or a wrapper
        decompresses, less where requests overlap or are served without reading.
    nbytes_wasted
        How many of the bytes read lie in gaps between the byte ranges that one read served.
    in_flight
        Reads that are under way now.
    max_in_flight
        The most reads that were under way at the same time, as far as zarr can tell: the client
        of a remote backend may have let some of them wait for a connection.
    seconds
        How long the block of `report_reads` took; zero until it ends.
    """

    requests: int = 0
    absent: int = 0
    reads: int = 0
    merged: int = 0
    nbytes: int = 0
    nbytes_read: int = 0
    nbytes_wasted: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rows = [
            ("requests", f"{self.requests:,}", f"{self.absent:,} absent"),
            (
                "reads",
                f"{self.reads:,}",
                f"{self.merged:,} merged, {self.max_in_flight:,} in flight at most",
            ),
            ("bytes handed over", _volume(self.nbytes), ""),
            ("bytes read", _volume(self.nbytes_read), f"{_volume(self.nbytes_wasted)} in gaps"),
            ("seconds", f"{self.seconds:.3f}", ""),
        ]
        width = max(len(figure) for _, figure, _ in rows)
        return "\n".join(
            f"{name:<17}  {figure:>{width}}  {more}".rstrip() for name, figure, more in rows
        )


def _volume(nbytes: int) -> str:
    """A number of bytes with three digits, in decimal units."""
    if nbytes < 1000:
        return f"{nbytes} B"
    power = 1 if nbytes < 999.5e3 else 2 if nbytes < 999.5e6 else 3
    scaled = nbytes / 1000**power
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{digits}f} {' kMG'[power]}B"


@contextmanager
def report_reads() -> Iterator[ReadReport]:
    """Report what the reads of a `with` block ask of stores.

    Whatever zarr asks of a store through `Store.get_many` is counted: the whole chunks of arrays,
    from any store. A read that passes through several stores, as through wrappers and caches, is
    counted once: its requests where zarr made them, its operations where they truly ran.

    Blocks may be nested, and each reports what was read in it.

    Yields
    ------
    ReadReport
        The figures. They grow while the block runs.

    Notes
    -----
    Not counted is what zarr reads in other ways, and what other code asks of a store itself:
    `Store.get`, which single metadata documents are read with, `Store.get_ranges`, and reads of
    `FusedCodecPipeline` from stores that it calls synchronously.

    A report follows the context of the caller: it sees the reads of this thread, those of tasks
    that are created in the block, and those of `asyncio.to_thread`. Other threads do not inherit
    the context: run their function with `contextvars.copy_context().run`, or open a report there.

    Examples
    --------
    >>> import zarr
    >>> from zarr.experimental.read_report import report_reads
    >>> array = zarr.create_array({}, shape=(4,), chunks=(1,), dtype="uint8", compressors=None)
    >>> array[:3] = 7
    >>> with report_reads() as report:
    ...     values = array[...]
    >>> report.requests, report.absent, report.nbytes
    (4, 1, 3)
    """
    report = ReadReport()
    enclosing = read_watcher.get()
    reports = [report]
    # A store that reports on reads of its own, in the middle of one of zarr's, begins anew.
    if isinstance(enclosing, ReadScope) and enclosing.parent is None:
        reports.extend(enclosing.reports)
    token = read_watcher.set(ReadScope(reports))
    began = perf_counter()
    try:
        yield report
    finally:
        report.seconds = perf_counter() - began
        with suppress(ValueError):  # a task that was abandoned is closed in another context
            read_watcher.reset(token)


class ReadScope:
    """A report's block, a `get_many` in it, or an operation of that `get_many`.

    What runs without a scope of its own within a `get_many` or an operation is counted as that
    one's. As soon as there is a scope further in, that counts instead: what a wrapper hands on is
    no read, only what the store at the bottom does is.

    Parameters
    ----------
    reports
        Where to count.
    parent
        The scope around this one. The block of a report has none.
    """

    def __init__(self, reports: list[ReadReport], parent: ReadScope | None = None) -> None:
        self.reports = reports
        self.parent = parent
        self._counts = False  # whether this scope is the innermost, and has begun
        self._reads = 0
        self._merged = 0
        self._nbytes = 0
        self._wasted = 0
        self._has_merged = False

    async def watch(
        self, groups: AsyncIterator[ReadGroup], requests: int
    ) -> AsyncGenerator[ReadGroup]:
        """Pass on what a `get_many` of so many requests reports, and count it."""
        outermost = self.parent is None
        if outermost:
            self._asked(requests)
        async with closing_groups(groups):
            following = partial(anext, aiter(groups), None)
            scope = self._begin()
            try:
                while (group := await scope._run(following)) is not None:
                    scope._served(group)
                    if outermost:
                        self._handed_over(group)
                    yield group
            finally:
                scope._end()

    def fetch(self, fetch: Fetch) -> Fetch:
        """A fetch that does what `fetch` does, and is counted if that is a read."""
        if self.parent is None:  # not within a `get_many`
            return fetch
        self._leave_to_inner()
        if not fetch.is_read:
            return fetch
        return Fetch(partial(self._run_operation, fetch.run), fetch.nbytes)

    def has_merged(self, nbytes: int, wasted: int) -> None:
        """Note that the operation has read `nbytes`, of which so many lie in gaps."""
        self._nbytes, self._wasted, self._has_merged = nbytes, wasted, True

    async def _run_operation(self, run: Callable[[], Awaitable[ReadGroup]]) -> ReadGroup:
        operation = self._begin()
        try:
            group = await operation._run(run)
            operation._served(group)
        finally:
            operation._end()
        return group

    async def _run[T](self, function: Callable[[], Awaitable[T]]) -> T:
        """Run one step in this scope. If it fails, it was a read nonetheless."""
        token = read_watcher.set(self)
        try:
            return await function()
        except BaseException:
            self._reads += 1
            raise
        finally:
            # A read that was abandoned with its event loop is closed in another context.
            with suppress(ValueError):
                read_watcher.reset(token)

    def _begin(self) -> ReadScope:
        """Begin a scope within this one."""
        self._leave_to_inner()
        inner = ReadScope(self.reports, self)
        inner._counts = True
        with _lock:
            for report in self.reports:
                report.in_flight += 1
        return inner

    def _leave_to_inner(self) -> None:
        if not self._counts:
            return
        with _lock:
            for report in self.reports:
                report.in_flight -= self._counts
            self._counts = False

    def _end(self) -> None:
        if not self._counts:
            return
        self._counts = False
        with _lock:
            for report in self.reports:
                # What has found nothing to do was not in flight.
                if self._reads and report.in_flight > report.max_in_flight:
                    report.max_in_flight = report.in_flight
                report.in_flight -= 1
                report.reads += self._reads
                report.merged += self._merged
                report.nbytes_read += self._nbytes
                report.nbytes_wasted += self._wasted

    def _served(self, group: ReadGroup) -> None:
        if not group or not self._counts:
            return
        self._reads += 1
        self._merged += len(group) > 1
        if not self._has_merged:
            # Requests for the very same bytes share one value.
            values = {id(value): value for _, value in group if value is not None}
            self._nbytes += sum(map(len, values.values()))

    def _asked(self, requests: int) -> None:
        with _lock:
            for report in self.reports:
                report.requests += requests

    def _handed_over(self, group: ReadGroup) -> None:
        values = [value for _, value in group if value is not None]
        nbytes = sum([len(value) for value in values])
        with _lock:
            for report in self.reports:
                report.absent += len(group) - len(values)
                report.nbytes += nbytes
