"""`report_reads` says what stores were really asked for: a server and stores that count agree."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from contextvars import copy_context
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
import zarr.api.asynchronous
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, _read_many
from zarr.core._bounded import read_watcher
from zarr.core.buffer import default_buffer_prototype
from zarr.experimental.cache_store import CacheStore
from zarr.experimental.read_report import ReadReport, report_reads
from zarr.storage import FsspecStore, MemoryStore, WrapperStore
from zarr.storage._fsspec_reads import in_gaps

pytest.importorskip("fsspec", minversion="2024.12.0")
pytest.importorskip("aiohttp")

from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.reference import ReferenceFileSystem

from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Sequence

    from zarr.abc.store import Store as AnyStore
    from zarr.core.buffer import Buffer, BufferPrototype

PROTOTYPE = default_buffer_prototype()

ROWS, COLUMNS = 6, 8
"""How many chunks the array of these tests has along each axis."""

CHUNK = 100
"""Bytes of a chunk."""

GAP = 7
"""Bytes between one chunk and the next in the file that references lead to."""

ROW_STEP = 80_000
"""Bytes from one row of chunks to the next there: too far to be merged."""

VALUES = np.random.default_rng(0).integers(1, 256, size=(ROWS, COLUMNS * CHUNK), dtype=np.uint8)


def make_array(store: Any) -> zarr.Array[Any]:
    """The array of these tests, in a store."""
    return zarr.create_array(store, data=VALUES, chunks=(1, CHUNK), compressors=None)


class Plain(Store):
    """A store of somebody else's, with nothing but `get`. It counts."""

    supports_writes = supports_deletes = supports_listing = True

    def __init__(self, values: dict[str, Buffer] | None = None, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.values = {} if values is None else values
        self.gets = self.in_flight = self.max_in_flight = 0

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.gets += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        return self.values.get(key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        return key in self.values

    async def set(self, key: str, value: Buffer) -> None:
        self.values[key] = value

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def list(self) -> AsyncIterator[str]:
        for key in list(self.values):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in list(self.values):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in {key.removeprefix(prefix).partition("/")[0] for key in self.values}:
            yield name


class Batched(Plain):
    """A store whose backend returns several values at once."""

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        keys = [request if isinstance(request, str) else request[0] for request in requests]
        for start in range(0, len(keys), 5):
            await asyncio.sleep(0)
            yield [
                (start + number, self.values.get(key))
                for number, key in enumerate(keys[start : start + 5])
            ]


class Watching(WrapperStore[Store]):
    """A wrapper that overrides `get` alone."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await super().get(key, prototype, byte_range)


class Relaying(WrapperStore[Store]):
    """A wrapper that serves each `get` with a read of many."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return (await read_all(self._store, [key, key]))[0]


def _read(store: AnyStore, requests: Sequence[str | tuple[str, ByteRequest | None]]) -> Any:
    return _read_many(store, requests, prototype=PROTOTYPE)


async def read_all(store: AnyStore, requests: Sequence[Any]) -> dict[int, Buffer | None]:
    """Read as zarr does."""
    async with aclosing(_read(store, requests)) as groups:
        return {index: value async for group in groups for index, value in group}


def figures(report: ReadReport) -> dict[str, Any]:
    """The figures that do not depend on how fast the machine is."""
    return {k: v for k, v in asdict(report).items() if k not in ("seconds", "max_in_flight")}


def expected(**changed: int) -> dict[str, int]:
    """The figures of a read of the whole array, chunk by chunk."""
    chunks = ROWS * COLUMNS
    return {
        "requests": chunks,
        "absent": 0,
        "reads": chunks,
        "merged": 0,
        "nbytes": VALUES.nbytes,
        "nbytes_read": VALUES.nbytes,
        "nbytes_wasted": 0,
        "in_flight": 0,
        **changed,
    }


# ---------------------------------------------------------------------------
# References to a file on a server
# ---------------------------------------------------------------------------


def packed() -> bytes:
    """All chunks in one file, apart from one another."""
    content = bytearray(ROWS * ROW_STEP)
    for row in range(ROWS):
        for column in range(COLUMNS):
            start = chunk_start(row, column)
            chunk = VALUES[row, column * CHUNK : (column + 1) * CHUNK]
            content[start : start + CHUNK] = chunk.tobytes()
    return bytes(content)


def chunk_start(row: int, column: int) -> int:
    return row * ROW_STEP + column * (CHUNK + GAP)


@pytest.fixture(scope="module")
def server() -> Generator[RangeServer]:
    with RangeServer({"packed": packed()}, latency=0.02) as server:
        yield server


@pytest.fixture
def refs(server: RangeServer) -> dict[str, Any]:
    """A reference set for the array."""
    values: dict[str, Buffer] = {}
    make_array(MemoryStore(values))
    server.reset()
    chunks = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    return {
        "zarr.json": values["zarr.json"].to_bytes().decode(),
        **{f"c/{i}/{j}": [f"{server.url}/packed", chunk_start(i, j), CHUNK] for i, j in chunks},
    }


@asynccontextmanager
async def reference_store(refs: dict[str, Any]) -> AsyncIterator[FsspecStore]:
    http = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    try:
        yield FsspecStore(ReferenceFileSystem(fo=refs, fs=http, asynchronous=True), path="")
    finally:
        session = await http.set_session()
        await session.close()


async def read_references(
    refs: dict[str, Any], selection: Any = ..., *, wrappers: int = 0
) -> tuple[Any, ReadReport]:
    async with reference_store(refs) as fsspec_store:
        store: AnyStore = fsspec_store
        for _ in range(wrappers):
            store = WrapperStore(store)
        array = await zarr.api.asynchronous.open_array(store=store, mode="r")
        with report_reads() as report:
            values = await array.getitem(selection)
    return values, report


def agrees(report: ReadReport, server: RangeServer) -> None:
    """Check the figures that the server has as well."""
    assert report.reads == len(server.requests)
    assert report.nbytes_read == sum(request.sent for request in server.requests)
    assert report.max_in_flight == server.max_in_flight


@pytest.mark.parametrize("wrappers", [0, 3])
async def test_merged_reads(server: RangeServer, refs: dict[str, Any], wrappers: int) -> None:
    values, report = await read_references(refs, wrappers=wrappers)
    assert np.array_equal(values, VALUES)
    wasted = ROWS * (COLUMNS - 1) * GAP
    assert figures(report) == expected(
        reads=ROWS, merged=ROWS, nbytes_read=VALUES.nbytes + wasted, nbytes_wasted=wasted
    )
    assert report.max_in_flight == ROWS
    agrees(report, server)


async def test_one_merged_read(server: RangeServer, refs: dict[str, Any]) -> None:
    """There is nothing to schedule then."""
    _, report = await read_references(refs, (0, slice(CHUNK * 2)))
    assert figures(report) == expected(
        requests=2, reads=1, merged=1, nbytes=200, nbytes_read=200 + GAP, nbytes_wasted=GAP
    )
    agrees(report, server)


async def test_one_read(server: RangeServer, refs: dict[str, Any]) -> None:
    _, report = await read_references(refs, (0, slice(CHUNK)))
    assert figures(report) == expected(requests=1, reads=1, nbytes=CHUNK, nbytes_read=CHUNK)
    agrees(report, server)


async def test_what_is_at_hand_is_not_read(server: RangeServer, refs: dict[str, Any]) -> None:
    refs["c/1/0"] = "x" * CHUNK
    del refs["c/1/7"]
    values, report = await read_references(refs)
    assert (values[1, :CHUNK] == ord("x")).all()
    assert not values[1, -CHUNK:].any()
    wasted = (ROWS * (COLUMNS - 1) - 2) * GAP
    assert figures(report) == expected(
        absent=1,
        reads=ROWS,
        merged=ROWS,
        nbytes=VALUES.nbytes - CHUNK,
        nbytes_read=VALUES.nbytes - 2 * CHUNK + wasted,
        nbytes_wasted=wasted,
    )
    agrees(report, server)


async def test_nothing_is_read(server: RangeServer, refs: dict[str, Any]) -> None:
    for column in range(COLUMNS):
        del refs[f"c/0/{column}"]
    _, report = await read_references(refs, 0)
    assert figures(report) == expected(requests=8, absent=8, reads=0, nbytes=0, nbytes_read=0)
    assert report.max_in_flight == 0
    agrees(report, server)


async def test_overlaps_are_no_waste(server: RangeServer, refs: dict[str, Any]) -> None:
    ranges = [RangeByteRequest(*ends) for ends in [(0, 60), (40, 100), (50, 55), (0, 60)]]
    async with reference_store(refs) as store:
        with report_reads() as report:
            await read_all(store, [("c/0/0", byte_range) for byte_range in ranges])
    assert figures(report) == expected(
        requests=4, reads=1, merged=1, nbytes=185, nbytes_read=100, nbytes_wasted=0
    )
    agrees(report, server)


async def test_requests_for_the_same_bytes(server: RangeServer, refs: dict[str, Any]) -> None:
    async with reference_store(refs) as store:
        with report_reads() as report:
            await read_all(store, ["c/0/0", "c/5/0", "c/0/0"])
    assert figures(report) == expected(requests=3, reads=2, merged=1, nbytes=300, nbytes_read=200)
    agrees(report, server)


async def test_a_failed_read(server: RangeServer, refs: dict[str, Any]) -> None:
    server.inject(Fault(status=500), times=1, skip=2)
    reports: list[ReadReport] = []

    async def read() -> None:
        async with reference_store(refs) as store:
            with report_reads() as report:
                reports.append(report)
                await read_all(store, [key for key in refs if key != "zarr.json"])

    with pytest.raises(Exception, match=r"packed"):
        await read()
    (report,) = reports
    assert (report.requests, report.absent) == (ROWS * COLUMNS, 0)
    assert report.reads == len(server.requests)
    assert report.nbytes < VALUES.nbytes
    assert report.in_flight == 0
    assert report.seconds > 0


@pytest.mark.parametrize(
    ("parts", "gaps"),
    [
        ([(0, 0, 10)], 0),
        ([(0, 0, 10), (1, 10, 20)], 0),
        ([(0, 0, 10), (1, 15, 20), (2, 21, 30)], 6),
        ([(0, 0, 10), (1, 5, 8), (2, 9, 30), (3, 40, 41)], 10),
    ],
)
def test_in_gaps(parts: list[tuple[int, int, int]], gaps: int) -> None:
    assert in_gaps(parts) == gaps


# ---------------------------------------------------------------------------
# Any store, and stores in stores
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("wrappers", [0, 1, 3])
def test_a_store_with_only_get(wrappers: int) -> None:
    plain = Plain()
    make_array(plain)
    plain.gets = plain.max_in_flight = 0
    store: AnyStore = plain
    for _ in range(wrappers):
        store = WrapperStore(store)
    array = zarr.open_array(store)
    plain.gets = 0
    with report_reads() as report:
        assert np.array_equal(array[...], VALUES)
    assert figures(report) == expected(reads=plain.gets)
    assert report.max_in_flight == plain.max_in_flight > 1


@pytest.mark.parametrize("wrap", [Watching, lambda store: WrapperStore(Watching(store)), Relaying])
def test_a_wrapper_with_only_get(wrap: Any) -> None:
    plain = Plain()
    make_array(plain)
    array = zarr.open_array(wrap(plain))
    plain.gets = plain.max_in_flight = 0
    with report_reads() as report:
        assert np.array_equal(array[...], VALUES)
    twice = wrap is Relaying
    assert figures(report) == expected(
        reads=plain.gets, nbytes_read=VALUES.nbytes * (1 + twice), merged=0
    )
    assert report.max_in_flight == plain.max_in_flight > 1


def test_groups_count_where_the_store_schedules_by_itself() -> None:
    array = make_array(Batched())
    with report_reads() as report:
        assert np.array_equal(array[...], VALUES)
    # The last of the groups of five holds three.
    assert figures(report) == expected(reads=10, merged=10)
    assert report.max_in_flight == 1


def test_memory() -> None:
    array = make_array(MemoryStore())
    with report_reads() as report:
        assert np.array_equal(array[...], VALUES)
    assert figures(report) == expected(reads=report.reads, merged=report.merged)
    assert 1 <= report.reads <= ROWS * COLUMNS


def test_local(tmp_path: Any) -> None:
    array = make_array(tmp_path / "array.zarr")
    with report_reads() as report:
        assert np.array_equal(array[...], VALUES)
    assert figures(report) == expected(reads=report.reads, merged=report.merged)
    assert 1 <= report.max_in_flight <= report.reads


def test_looking_into_a_cache_is_a_read() -> None:
    plain = Plain()
    make_array(plain)
    array = zarr.open_array(CacheStore(plain, cache_store=Plain()))
    plain.gets = 0
    with report_reads() as first:
        array[0]
    assert figures(first) == expected(requests=8, reads=8 + 8, nbytes=800, nbytes_read=800)
    with report_reads() as second:
        array[:2]
    assert figures(second) == expected(requests=16, reads=16 + 8, nbytes=1600, nbytes_read=1600)
    assert plain.gets == 16


def test_absent_chunks() -> None:
    array = zarr.create_array(Plain(), shape=(4,), chunks=(1,), dtype="uint8", compressors=None)
    array[1] = 7
    with report_reads() as report:
        array[...]
    assert figures(report) == expected(requests=4, absent=3, reads=4, nbytes=1, nbytes_read=1)


def test_reading_of_nothing() -> None:
    array = make_array(Plain())
    with report_reads() as report:
        array[:0]
    assert figures(report) == figures(ReadReport())


async def test_a_read_that_ends_early() -> None:
    plain = Plain()
    with report_reads() as report:
        async with aclosing(_read(plain, [f"{number}" for number in range(500)])) as groups:
            await anext(groups)
    assert (report.requests, report.absent, report.in_flight) == (500, 1, 0)
    assert 1 <= report.reads <= plain.gets < 500


async def test_a_store_that_fails() -> None:
    class Failing(Plain):
        async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
            raise OSError("no such luck")

    for count in (1, 3):
        with report_reads() as report, pytest.raises(OSError, match="no such luck"):
            await read_all(Failing(), ["key"] * count)
        assert figures(report) == expected(requests=count, reads=count, nbytes=0, nbytes_read=0)


async def test_a_store_that_reports_on_reads_of_its_own() -> None:
    """For the report around it, what it reads is its own business."""
    inner = Plain()
    reports: list[ReadReport] = []

    class Reporting(Plain):
        async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
            with report_reads() as report:
                await read_all(inner, ["a", "b"])
            reports.append(report)
            return None

    with report_reads() as report:
        await read_all(Reporting(), ["c", "d", "e"])
    assert figures(report) == expected(requests=3, absent=3, reads=3, nbytes=0, nbytes_read=0)
    assert [(inside.requests, inside.reads) for inside in reports] == [(2, 2)] * 3


# ---------------------------------------------------------------------------
# What belongs to a report
# ---------------------------------------------------------------------------


def test_outside_of_a_block_nothing_is_counted() -> None:
    array = make_array(Plain())
    assert read_watcher.get() is None
    with report_reads() as report:
        array[...]
    seconds = report.seconds
    array[...]
    assert read_watcher.get() is None
    assert figures(report) == expected()
    assert 0 < report.seconds == seconds


async def test_what_other_code_asks_of_a_store_is_not_counted() -> None:
    store = make_array(Plain()).store
    with report_reads() as report:
        async with aclosing(store.get_many(["c/0/0", "c/0/1"], prototype=PROTOTYPE)) as groups:  # type: ignore[type-var]
            assert len([group async for group in groups]) == 2
    assert figures(report) == figures(ReadReport())


def test_an_error_ends_the_block() -> None:
    with pytest.raises(RuntimeError, match="over"), report_reads() as report:
        raise RuntimeError("over")
    assert read_watcher.get() is None
    assert report.seconds > 0


def test_nested_blocks() -> None:
    array = make_array(Plain())
    with report_reads() as outer:
        array[0]
        with report_reads() as inner:
            array[1:3]
            with report_reads() as innermost:
                array[3]
        array[4]
    assert [r.requests // COLUMNS for r in (outer, inner, innermost)] == [5, 3, 1]
    assert [r.reads // COLUMNS for r in (outer, inner, innermost)] == [5, 3, 1]
    assert outer.max_in_flight >= inner.max_in_flight >= 1


async def test_the_asynchronous_interface() -> None:
    array = await zarr.api.asynchronous.open_array(store=make_array(Plain()).store)
    with report_reads() as report:
        await array.getitem(...)
    assert figures(report) == expected()


async def test_tasks_with_reports_of_their_own() -> None:
    array = await zarr.api.asynchronous.open_array(store=make_array(Plain()).store)

    async def read(rows: int) -> ReadReport:
        with report_reads() as report:
            await array.getitem(slice(rows))
        return report

    with report_reads() as together:
        reports = await asyncio.gather(*(read(rows) for rows in range(1, ROWS + 1)))
    assert [report.reads // COLUMNS for report in reports] == list(range(1, ROWS + 1))
    assert together.reads == sum(report.reads for report in reports)
    assert together.max_in_flight > max(report.max_in_flight for report in reports)


def test_threads() -> None:
    array = make_array(Plain())

    def read() -> None:
        array[...]

    def run(target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        thread.join()

    with report_reads() as with_context:
        run(copy_context().run, read)
    assert figures(with_context) == expected()

    async def read_in_thread() -> None:
        await asyncio.to_thread(read)

    with report_reads() as to_thread:
        asyncio.run(read_in_thread())
    assert figures(to_thread) == expected()

    reports: list[ReadReport] = []

    def read_and_report() -> None:
        with report_reads() as report:
            read()
        reports.append(report)

    run(read_and_report)
    assert figures(reports[0]) == expected()


def test_several_event_loops_share_a_report() -> None:
    stores = [Plain(values=make_array(Plain()).store.values) for _ in range(4)]  # type: ignore[attr-defined]

    async def read(store: Plain) -> None:
        array = await zarr.api.asynchronous.open_array(store=store)
        for _ in range(3):
            await array.getitem(...)

    with ThreadPoolExecutor(len(stores)) as pool, report_reads() as report:
        futures = [
            pool.submit(copy_context().run, lambda store=store: asyncio.run(read(store)))
            for store in stores
        ]
        for future in futures:
            future.result()
    times = 3 * len(stores)
    nbytes = times * VALUES.nbytes
    chunks = times * ROWS * COLUMNS
    assert figures(report) == expected(
        requests=chunks, reads=chunks, nbytes=nbytes, nbytes_read=nbytes
    )


# ---------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------


def test_a_report_is_a_plain_record() -> None:
    report = ReadReport(requests=3, seconds=0.5)
    assert pickle.loads(pickle.dumps(report)) == report
    assert ReadReport(**asdict(report)) == report


def test_a_report_as_text() -> None:
    report = ReadReport(
        requests=1024,
        absent=3,
        reads=7,
        merged=6,
        nbytes=999_499,
        nbytes_read=1_012_345,
        nbytes_wasted=12_345,
        max_in_flight=6,
        seconds=0.1416,
    )
    assert str(report).splitlines() == [
        "requests             1,024  3 absent",
        "reads                    7  6 merged, 6 in flight at most",
        "bytes handed over   999 kB",
        "bytes read         1.01 MB  12.3 kB in gaps",
        "seconds              0.142",
    ]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (1_482_399_744, "1.48 GB"),
        (25 * 10**14, "2500000 GB"),
    ],
)
def test_volumes(nbytes: int, text: str) -> None:
    assert f" {text} in gaps" in str(ReadReport(nbytes_wasted=nbytes))
