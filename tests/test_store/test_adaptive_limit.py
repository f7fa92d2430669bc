"""The adaptive limit: its arithmetic, and reads from servers that do not like many requests."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zarr
from tests.event_loop import nothing_left_behind, turns
from zarr.core import _adaptive_limit
from zarr.core._adaptive_limit import (
    FIRST_BYTES,
    AdaptiveLimit,
    _Read,
    fetch_as_completed,
    limit_of,
    max_concurrency,
)
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, MemoryStore, ObjectStore

aiohttp = pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
obstore_store = pytest.importorskip("obstore.store")

from tests.range_server import Fault, RangeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp import web

    from tests.range_server import Request

EDGE = 8
PROTOTYPE = default_buffer_prototype()
KINDS = ("fsspec", "obstore")


def objects(shape: tuple[int, int] = (32, 32), **options: Any) -> tuple[dict[str, bytes], Any]:
    """Make an array of EDGE x EDGE chunks; return its objects by name, and its values."""
    values = np.arange(shape[0] * shape[1], dtype="i4").reshape(shape) + 1
    store = MemoryStore()
    chunks = {"chunks": (EDGE, EDGE), "compressors": None} | options
    zarr.create_array(store, data=values, name="a", **chunks)
    return {name: value.to_bytes() for name, value in store._store_dict.items()}, values


sessions: list[Any] = []
"""The HTTP filesystems that a test has opened."""


@pytest.fixture(autouse=True)
def closed_sessions() -> Iterator[None]:
    yield
    while sessions:
        fs = sessions.pop()
        if fs._session is not None:
            sync(fs._session.close())


def open_array(url: str, kind: str = "fsspec", **options: Any) -> Any:
    store: FsspecStore | ObjectStore[Any]
    if kind == "fsspec":
        options = {"skip_instance_cache": True} | options
        store = FsspecStore.from_url(url, options, read_only=True)
        sessions.append(store.fs)
    else:
        client = {"allow_http": True, **options}
        retry = {"max_retries": 0}
        http = obstore_store.HTTPStore.from_url(url, client_options=client, retry_config=retry)
        store = ObjectStore(http, read_only=True)
    return zarr.open_array(store, path="a", mode="r", zarr_format=3)


def chunk_requests(server: RangeServer) -> list[Request]:
    return [request for request in server.requests if "/c/" in request.path]


class RefusingServer(RangeServer):  # type: ignore[misc, unused-ignore]
    """Refuses requests while it is serving too many."""

    most, status = 16, 503

    async def _answer(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        if record.in_flight > self.most:
            self.inject(Fault(status=self.status), path=record.path, times=1)
        return await super()._answer(request, record)  # type: ignore[no-any-return, unused-ignore]


class SerialServer(RangeServer):  # type: ignore[misc, unused-ignore]
    """Works on one request at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turn = asyncio.Lock()

    async def _answer(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        async with self._turn:
            return await super()._answer(request, record)  # type: ignore[no-any-return, unused-ignore]


class ThinLinkServer(SerialServer):
    """Answers share a link of two megabytes per second."""

    async def _answer(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        asked = request.http_range
        for _ in range(asked.start or 0, asked.stop or 0, 16_000):
            async with self._turn:
                await asyncio.sleep(0.008)
        return await RangeServer._answer(self, request, record)  # type: ignore[no-any-return, unused-ignore]


# The arithmetic


@pytest.fixture
def many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other backends and the machine's limit of open files do not count."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)


def full_round(limit: AdaptiveLimit, read: _Read, duration: float, concurrency: int = 10) -> None:
    """Have as many fetches as the limit in flight, each of `duration` seconds."""
    for _ in range(max(limit.limit, concurrency)):
        limit.start(read, concurrency)
    for number in sorted(read.in_flight):
        limit.end(read, number, concurrency, duration)


@pytest.mark.parametrize(
    ("durations", "limits"),
    [
        ([1, 1, 1, 1, 1], [20, 40, 80, 128, 128]),
        ([1, 2.9, 2.9], [20, 40, 80]),  # not much slower than the fastest
        ([1, 3.1, 3.1], [20, 20, 20]),  # slower: no growth
        ([1, 1, 7, 1], [20, 40, 20, 40]),  # much slower: half
        ([7, 1], [20, 40]),
    ],
)
@pytest.mark.usefixtures("many_files")
def test_limit_follows_durations(durations: list[float], limits: list[int]) -> None:
    limit, read = AdaptiveLimit(), _Read()
    limit.reads.append(read)
    seen = []
    for duration in durations:
        full_round(limit, read, duration)
        limit.has_room(10, 0, FIRST_BYTES)
        seen.append(limit.limit)
    assert seen == limits


def test_limit_that_is_not_reached_does_not_grow() -> None:
    limit, read = AdaptiveLimit(), _Read()
    limit.reads.append(read)
    for _ in range(1000):
        limit.end(read, limit.start(read, 10), 10, 0.01)
    assert limit.limit == 10


def test_limit_falls_back_on_failure_and_then_grows_one_by_one() -> None:
    limit, read = AdaptiveLimit(), _Read()
    limit.reads.append(read)
    for _ in range(4):
        full_round(limit, read, 1)
    limit.failed()
    seen = []
    for _ in range(3):
        full_round(limit, read, 1)
        seen.append(limit.limit)
    assert seen == [11, 12, 13]


@settings(deadline=None)
@given(
    concurrency=st.integers(1, 200),
    steps=st.lists(st.one_of(st.just("fail"), st.floats(0.001, 10)), max_size=30),
    nbytes=st.sampled_from([1, FIRST_BYTES]),
)
def test_limit_stays_between_concurrency_and_its_maximum(
    concurrency: int, steps: list[float | str], nbytes: int
) -> None:
    limit, read = AdaptiveLimit(), _Read()
    limit.reads.append(read)
    for step in steps:
        if isinstance(step, str):
            limit.failed()
        else:
            full_round(limit, read, step, concurrency)
        while limit.has_room(concurrency, 0, nbytes) or len(read.in_flight) < concurrency:
            limit.start(read, concurrency)
        assert concurrency <= limit.in_flight() <= max_concurrency(concurrency)
        assert limit.extra(concurrency) == limit.in_flight() - concurrency
        for number in list(read.in_flight):
            limit.end(read, number, concurrency)


def test_no_extra_fetch_starts_while_a_failed_one_is_to_be_repeated() -> None:
    limit, read, other = AdaptiveLimit(limit=50), _Read(), _Read()
    limit.reads += [read, other]
    assert limit.has_room(10, 0, 1)
    other.to_repeat = 1
    assert not limit.has_room(10, 0, 1)


@pytest.mark.parametrize(
    ("reads", "in_flight", "share"),
    [(0, 0, 10), (1, 1, 10), (1, 10, 10), (1, 20, 5), (1, 64, 1), (1, 128, 1), (8, 80, 10)],
)
def test_fetches_share_the_requests_of_the_first_ones(
    reads: int, in_flight: int, share: int
) -> None:
    limit = AdaptiveLimit(reads=[_Read() for _ in range(reads)])
    if reads:
        limit.reads[0].in_flight.update(range(in_flight))
    assert limit.share(10) == share


@pytest.mark.parametrize(("in_flight", "share"), [(1, 128), (10, 128), (20, 64), (128, 10)])
def test_many_shards_at_once_read_as_many_ranges_each_as_by_default(
    in_flight: int, share: int
) -> None:
    limit = AdaptiveLimit(reads=[_Read(in_flight=set(range(in_flight)))])
    assert limit.share(128) == share


@pytest.mark.parametrize(
    ("concurrency", "most", "expected"),
    [
        (10, None, 128),
        (10, 10, 10),
        (10, 40, 40),
        (9, None, 9),
        (1, 128, 1),
        (11, None, 128),
        (11, 10, 11),
        (200, None, 200),
    ],
)
@pytest.mark.usefixtures("many_files")
def test_max_concurrency(concurrency: int, most: int | None, expected: int) -> None:
    with zarr.config.set({} if most is None else {"async.max_concurrency": most}):
        assert max_concurrency(concurrency) == expected


def test_limits_share_a_quarter_of_the_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    limits = [AdaptiveLimit() for _ in range(4)]
    monkeypatch.setattr(_adaptive_limit, "_all_limits", limits)
    assert max_concurrency(10) == 16
    del limits[1:]
    assert max_concurrency(10) == 64
    assert max_concurrency(100) == 100


# One limit for each backend and event loop


def test_limit_is_shared_by_the_stores_of_a_backend_and_ends_with_it() -> None:
    class Backend:
        pass

    async def limits(*backends: object) -> list[AdaptiveLimit]:
        return [limit_of(backend) for backend in backends]

    one, two = Backend(), Backend()
    first, again, second = sync(limits(one, one, two))
    assert first is again is not second
    assert sync(limits(one)) == [first]
    assert asyncio.run(limits(one)) != [first]  # another event loop
    of_one, of_two = weakref.ref(first), weakref.ref(second)
    del one, two, first, again, second
    gc.collect()
    assert of_one() is of_two() is None


def test_directories_and_references_share_the_limit_of_their_filesystem() -> None:
    from fsspec.implementations.dirfs import DirFileSystem

    http = fsspec.filesystem("http", asynchronous=True, skip_instance_cache=True)
    directory = DirFileSystem("x", http, asynchronous=True)
    references = fsspec.filesystem("reference", fo={}, fs=http, asynchronous=True)
    for fs in (http, directory, references):
        assert FsspecStore(fs, read_only=True, path="")._read_backend() is http


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_reads_after_a_fork() -> None:
    files, values = objects()
    with RangeServer(files) as server:
        array = open_array(server.url)
        assert np.array_equal(array[:], values)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                again = open_array(server.url)
                status = 0 if np.array_equal(again[:], values) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# What grows


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_has_more_in_flight_than_async_concurrency(kind: str) -> None:
    files, values = objects((128, 128))
    with RangeServer(files, latency=0.05) as server:
        assert np.array_equal(open_array(server.url, kind)[:], values)
        assert server.max_in_flight > 20
        assert len(chunk_requests(server)) == 256


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_remembered(kind: str) -> None:
    files, values = objects((128, 128))
    with RangeServer(files, latency=0.05) as server:
        array = open_array(server.url, kind)
        array[:]
        server.reset()
        assert np.array_equal(array[:32, :64], values[:32, :64])
        # The first ten, and the rest once the size of the first value is known.
        assert server.max_in_flight > 20


@pytest.mark.parametrize("how", ["set", "environment", "file"])
@pytest.mark.parametrize("concurrency", [9, 10, 11])
def test_settings_hold(concurrency: int, how: str, tmp_path: Path) -> None:
    settings = {"async": {"concurrency": concurrency, "max_concurrency": 10}}
    (tmp_path / "zarr.json").write_text(json.dumps(settings))
    environment = {
        "ZARR_ASYNC__CONCURRENCY": str(concurrency),
        "ZARR_ASYNC__MAX_CONCURRENCY": "10",
    }
    files, values = objects((64, 64))
    with RangeServer(files, latency=0.02) as server:
        try:
            if how == "set":
                zarr.config.set(settings)
            elif how == "environment":
                zarr.config.refresh(env=environment)
            else:
                zarr.config.refresh(paths=[str(tmp_path)], env={})
            array = open_array(server.url)
            for _ in range(2):
                assert np.array_equal(array[:], values)
        finally:
            zarr.config.reset()
        assert server.max_in_flight == concurrency


# Servers that do not like many requests


def read_from_server_that_refuses(kind: str, status: int, shards: tuple[int, int] | None) -> None:
    files, values = objects((128, 128), shards=shards)
    with RefusingServer(files, latency=0.02) as server:
        server.status = status
        array = open_array(server.url, kind)
        for _ in range(2):
            assert np.array_equal(array.oindex[::EDGE, ::EDGE], values[::EDGE, ::EDGE])
        refused = [request for request in server.requests if request.status == status]
        assert refused  # or the test shows nothing
        assert server.max_in_flight > 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [503, 429])
def test_server_that_refuses_beyond_sixteen(kind: str, status: int) -> None:
    read_from_server_that_refuses(kind, status, shards=None)


def test_reads_of_several_threads_from_a_server_that_refuses() -> None:
    files, values = objects((128, 128))
    with RefusingServer(files, latency=0.02) as server:
        server.most = 50
        array = open_array(server.url)
        for _ in range(20):  # until the limit, which is remembered, is more than the server allows
            with ThreadPoolExecutor(4) as pool:
                for values_read in pool.map(lambda _: array[:], range(4)):
                    assert np.array_equal(values_read, values)
            if refused := [request for request in server.requests if request.status == 503]:
                break
        assert refused


@pytest.mark.parametrize("kind", KINDS)
def test_error_that_stays_is_raised_after_one_repetition(kind: str) -> None:
    files, _ = objects((128, 128))
    with RangeServer(files, latency=0.02) as server:
        array = open_array(server.url, kind)
        array[:]
        server.reset()
        server.inject(Fault(status=500), path="/a/c/15/15")
        error = aiohttp.ClientResponseError if kind == "fsspec" else Exception
        with pytest.raises(error, match="500"):
            array[:]
        failed = [request for request in server.requests if request.path == "/a/c/15/15"]
        assert [request.status for request in failed] == [500, 500]
        server.reset()
        server.inject(Fault(status=500), path="/a/c/0/0")
        with pytest.raises(error, match="500"):
            array[:EDGE, : 5 * EDGE]
        failed = [request for request in server.requests if request.path == "/a/c/0/0"]
        assert [request.status for request in failed] == [500]  # as on stock: nothing extra


@pytest.mark.parametrize("kind", KINDS)
def test_server_that_answers_one_by_one(kind: str) -> None:
    files, values = objects((80, 80))
    timeout: dict[str, Any] = {"timeout": "1s"}
    if kind == "fsspec":
        timeout = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=1)}}
    with SerialServer(files, latency=0.01) as server:
        array = open_array(server.url, kind, **timeout)
        for _ in range(2):
            assert np.array_equal(array[:], values)
        assert server.max_in_flight < 100


def test_references_over_a_thin_link() -> None:
    size, count = 16 << 10, 256
    values = np.arange(count * size // 4, dtype="i4")
    metadata = zarr.create_array({}, shape=values.shape, chunks=(size // 4,), dtype="i4").metadata
    metadata = json.loads(metadata.to_buffer_dict(PROTOTYPE)["zarr.json"].to_bytes())
    metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    with ThinLinkServer({"packed.bin": values.astype("<i4").tobytes()}) as server:
        references = {"zarr.json": json.dumps(metadata)} | {
            f"c/{n}": [f"{server.url}/packed.bin", n * size, size] for n in range(count)
        }
        fs = fsspec.filesystem(
            "reference",
            fo=references,
            max_block=128 << 10,
            remote_protocol="http",
            remote_options={
                "asynchronous": True,
                "skip_instance_cache": True,
                # Ten reads of 128 KiB take 0.65 s, all 32 of them 2.1 s.
                "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=1.5)},
            },
            asynchronous=True,
            skip_instance_cache=True,
        )
        sessions.append(fs.fss["http"])
        store = FsspecStore(fs, read_only=True, path="")
        array = zarr.open_array(store, mode="r")

        async def limit_of_store() -> AdaptiveLimit:
            return limit_of(store._read_backend())

        sync(limit_of_store()).limit = 128  # as if the link had been fast before
        assert np.array_equal(array[:], values)
        assert server.max_in_flight > 10
        assert sync(limit_of_store()).careful
        assert np.array_equal(array[:], values)


@contextmanager
def http_server(directory: Path, protocol: str) -> Iterator[str]:
    """Serve a directory with Python's own server, which queues five connections."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    command += ["--protocol", protocol]
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            yield line.split("(")[1].split(")")[0].rstrip("/")
        finally:
            server.kill()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_server_with_a_short_listen_queue(kind: str, protocol: str, tmp_path: Path) -> None:
    files, values = objects((128, 128))
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(value)
    with http_server(tmp_path, protocol) as url, zarr.config.set({"async.timeout": 20}):
        array = open_array(url, kind)
        for _ in range(2):
            assert np.array_equal(array[:], values)


# Memory


@pytest.mark.parametrize("mebibytes", [1, 4, 16])
async def test_extra_values_hold_at_most_64_mib(mebibytes: int) -> None:
    limit = AdaptiveLimit(limit=128)
    running, most = 0, 0

    async def fetch(_: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await turns(3)
        running -= 1
        return mebibytes << 20

    items = [(number,) for number in range(300)]
    async with nothing_left_behind():
        results = limit.as_completed(items, fetch, int, 10, lambda *_: 0)
        assert [size async for size in results] == [mebibytes << 20] * 300
    assert most == 10 + 64 // mebibytes
    assert limit.reads == []


async def test_results_that_are_not_taken_count() -> None:
    limit = AdaptiveLimit(limit=128)
    started = 0

    async def fetch(_: int) -> int:
        nonlocal started
        started += 1
        return 16 << 20

    async with nothing_left_behind():
        results = limit.as_completed([(n,) for n in range(300)], fetch, int, 10, lambda *_: 0)
        for taken in range(1, 30):
            await anext(results)
            await turns(5)
            assert started <= taken + 10 + 4
        await results.aclose()
    assert limit.reads == []


async def test_cancelled_fetches_are_not_counted_any_more() -> None:
    limit = AdaptiveLimit(limit=128)

    async def fetch(_: int) -> int:
        await asyncio.sleep(30)
        return 1

    async with nothing_left_behind():
        results = limit.as_completed([(n,) for n in range(300)], fetch, int, 10, lambda *_: 1)
        first = asyncio.ensure_future(anext(results))
        await turns(2)
        assert limit.in_flight() == 128
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await results.aclose()
    assert limit.in_flight() == 0


async def test_a_fetch_that_is_cancelled_before_it_begins_does_not_stop_the_growth() -> None:
    limit, read = AdaptiveLimit(), _Read()
    limit.reads.append(read)
    numbers = [limit.start(read, 10) for _ in range(9)]

    def items() -> Iterator[tuple[int]]:
        yield (1,)
        raise ValueError("no more")

    async def fetch(_: int) -> int:
        return 1

    with pytest.raises(ValueError, match="no more"):
        await anext(limit.as_completed(items(), fetch, int, 10, lambda *_: 1))
    for number in numbers:
        limit.end(read, number, 10, 1)
    assert limit.limit == 20


async def test_a_failed_fetch_is_repeated_once_the_extra_ones_of_all_reads_have_ended() -> None:
    limit, gate = AdaptiveLimit(limit=128), asyncio.Event()
    attempts: list[int] = []

    async def wait(_: int) -> int:
        await gate.wait()
        return 1

    async def fail_once(number: int) -> int:
        attempts.append(number)
        if attempts.count(0) == 1 and number == 0:
            raise OSError("too many")
        await turns(3)
        return 1

    async def count(func: Any, fetches: int) -> int:
        items = [(number,) for number in range(fetches)]
        return len([_ async for _ in limit.as_completed(items, func, int, 10, lambda *_: 1)])

    async with nothing_left_behind():
        others = asyncio.create_task(count(wait, 20))
        await turns()
        assert limit.extra(10) == 10
        reading = asyncio.create_task(count(fail_once, 300))
        await turns(500)
        assert sorted(attempts) == list(range(300))
        gate.set()
        assert (await others, await reading) == (20, 300)
        assert attempts.count(0) == 2


class Gate:
    """Fetches that end once the gate is opened."""

    def __init__(self) -> None:
        self.opened, self.running = asyncio.Event(), 0

    async def fetch(self, _: int) -> int:
        self.running += 1
        await self.opened.wait()
        return 1

    async def read(self, limit: AdaptiveLimit, count: int, nbytes: int = 1) -> None:
        items = [(number,) for number in range(count)]
        async for _ in limit.as_completed(items, self.fetch, int, 10, lambda *_: nbytes):
            pass


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(
    ("nbytes", "state", "most"),
    [
        (1000, {}, 20),
        (FIRST_BYTES // 20, {}, 20),
        (FIRST_BYTES // 20 + 1, {}, 10),  # too large
        (0, {}, 10),  # of unknown size
        (1000, {"careful": True}, 10),  # extra fetches have failed
        (1000, {"_fastest": 1.0}, 10),  # a round has ended, and did not make the limit grow
    ],
)
async def test_twice_as_many_small_fetches_start_at_once(
    nbytes: int, state: dict[str, Any], most: int
) -> None:
    """A read of a few merged ranges then takes one round trip instead of two."""
    limit, gate = AdaptiveLimit(**state), Gate()
    async with nothing_left_behind():
        reading = asyncio.create_task(gate.read(limit, 50, nbytes))
        await turns(5)
        assert gate.running == most
        gate.opened.set()
        await reading


@pytest.mark.usefixtures("many_files")
async def test_small_fetches_of_two_reads_stay_within_the_maximum() -> None:
    limit, gate = AdaptiveLimit(), Gate()
    async with nothing_left_behind():
        with zarr.config.set({"async.max_concurrency": 12}):
            reads = [asyncio.create_task(gate.read(limit, count)) for count in (7, 200)]
            await turns(5)
            assert gate.running == 17  # the first ten of each read may always start
            gate.opened.set()
            await asyncio.gather(*reads)


async def test_an_explicit_limit_does_not_grow() -> None:
    running = most = 0

    async def fetch(_: int) -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await turns(3)
        running -= 1
        return 1

    backend = AdaptiveLimit()  # any object
    for expected in (50, 20):
        limit_of(backend).limit, most = 128, 0
        items = [(number,) for number in range(50)]
        explicit = 20 if expected == 20 else None
        results = fetch_as_completed(backend, items, fetch, int, explicit, size=lambda *_: 1)
        assert len([_ async for _ in results]) == 50
        assert most == expected


# File descriptors


FILES_PROGRAM = """
    import resource, sys, threading
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import zarr
    from zarr.storage import FsspecStore, ObjectStore

    kind, files, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    def open_store():
        if kind == "http":
            return FsspecStore.from_url(url, {"skip_instance_cache": True}, read_only=True)
        client_options = {"allow_http": True}
        if kind == "adapter":
            from obstore.fsspec import FsspecStore as Adapter
            fs = Adapter("http", client_options=client_options, asynchronous=True)
            return FsspecStore(fs, read_only=True, path=url)
        from obstore.store import HTTPStore
        return ObjectStore(HTTPStore.from_url(url, client_options=client_options), read_only=True)

    many = 4 if kind == "http" else 1
    arrays = [zarr.open_array(open_store(), path="a", mode="r") for _ in range(many)]
    arrays *= 8 // many
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    done, opened = threading.Event(), 0

    def open_files():
        global opened
        while not done.is_set():
            open(__file__).close()
            opened += 1

    with ThreadPoolExecutor(9) as pool:
        other = pool.submit(open_files)
        sums = list(pool.map(lambda array: int(array[:].sum()), arrays))
        done.set()
        other.result()
    assert opened
    print(sums)
"""


@pytest.mark.parametrize(("kind", "files"), [("http", 256), ("object", 256), ("adapter", 1024)])
def test_file_descriptors_suffice(kind: str, files: int, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(FILES_PROGRAM))
    stored, values = objects((128, 128))
    with RangeServer(stored, latency=0.02) as server:
        command = [sys.executable, str(program), kind, str(files), server.url]
        child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.stdout.strip() == str([int(values.sum())] * 8), child.stderr[-2000:]
