"""Tests for the tests of `Store.get_many` in `StoreTests`, which every store inherits.

Every good store passes all of them, however it works inside. For each promise of `get_many` there
are stores here that break it and keep the others, and each fails the test that is named for it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from contextlib import suppress
from itertools import count, product
from typing import TYPE_CHECKING, Any

import pytest

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.experimental.cache_store import CacheStore
from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)
from zarr.testing import store as conformance
from zarr.testing.store import LatencyStore, StoreTests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

type Request = str | tuple[str, ByteRequest | None]
type Report = tuple[int, Buffer | None]
type Group = Sequence[Report]

TESTS = [
    name
    for name, test in vars(StoreTests).items()
    if name.startswith("test_get_many_") and inspect.iscoroutinefunction(test)
]
"""The tests of `get_many` (`test_get_many` itself is one of `_get_many`)."""


class Suite(StoreTests["Store", cpu.Buffer]):
    """The tests, to be called one by one. They are not collected from here."""

    buffer_cls = cpu.Buffer

    async def set(self, store: Store, key: str, value: Buffer) -> None:
        if isinstance(store, MemoryStore):
            store._store_dict[key] = value  # does not open the store
        else:
            await store.set(key, value)

    async def get(self, store: Store, key: str) -> Buffer:
        raise NotImplementedError

    def store_kwargs(self) -> dict[str, Any]:
        raise NotImplementedError

    def test_store_repr(self, store: Store) -> None: ...
    def test_store_supports_writes(self, store: Store) -> None: ...
    def test_store_supports_listing(self, store: Store) -> None: ...


def parameters(test: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The arguments of each run of a parametrized test."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for values in product(*(mark.args[1] for mark in marks)):
        yield {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}


async def run(name: str, make_store: Callable[[], Store]) -> None:
    """Run one test of the suite, on a new store for each of its parameters."""
    test = getattr(Suite(), name)
    for arguments in parameters(test):
        store = make_store()
        if "store_not_open" in inspect.signature(test).parameters:
            await test(store_not_open=store, **arguments)
        else:
            if not store._is_open:
                await store._open()
            await test(store=store, **arguments)
        store.close()


# ---------------------------------------------------------------------------
# Stores that keep every promise
# ---------------------------------------------------------------------------


def pair(request: Request) -> tuple[str, ByteRequest | None]:
    """The key and the byte range of a request."""
    match request:
        case str():
            return request, None
        case (str(), _):
            return request
    raise TypeError(f"{request!r} is not a request")


class Fair(MemoryStore):
    """A store with a `get_many` of its own, which does not call `get`. It keeps every promise.

    Some of its reads take longer than others. Those that follow break one thing in it.
    """

    most = 10
    """Reads in flight at a time."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        pending = deque(enumerate(self.begin(requests)))
        count = len(pending)
        running: set[asyncio.Task[Report]] = set()
        try:
            while pending or running:
                while pending and len(running) < self.most:
                    index, request = pending.popleft()
                    running.add(asyncio.create_task(self.serve(index, request, prototype)))
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    result = task.result()
                    running.remove(task)
                    yield self.reports(result, count)
        finally:
            await self.clear_up(running)

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        """What is served of `requests`."""
        if isinstance(requests, str):
            raise TypeError("a key is not a sequence of requests")
        return requests

    def reports(self, report: Report, count: int) -> list[Report]:
        """What is reported when one of `count` requests has been served."""
        return [report]

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        """Serve one request."""
        key, byte_range = pair(request)
        for _ in range(index % 3):
            await asyncio.sleep(0)
        return index, await self.fetch(key, byte_range, prototype)

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        """Read one value, into memory of its own."""
        value = await MemoryStore.get(self, key, prototype, byte_range)
        return None if value is None else prototype.buffer.from_bytes(value.to_bytes())

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        """End what is in flight."""
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Backwards(Fair):
    """Reports the last requests first, many in a group."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        group = []
        for index, request in reversed([*enumerate(self.begin(requests))]):
            key, byte_range = pair(request)
            group.append((index, await self.fetch(key, byte_range, prototype)))
            if len(group) == 30 or index == 0:
                yield group
                group = []


class NoGenerator(Fair):
    """Its `get_many` is a plain function. What it returns cannot be closed, and need not be."""

    def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        return OneByOne(self, requests, prototype)


class OneByOne:
    """An iterator that reads when it is asked to."""

    def __init__(
        self, store: Fair, requests: Sequence[Request], prototype: BufferPrototype
    ) -> None:
        self.store = store
        self.requests = deque([requests] if isinstance(requests, str) else requests)
        self.number = -1 if isinstance(requests, str) else len(requests)
        self.prototype = prototype

    def __aiter__(self) -> OneByOne:
        return self

    async def __anext__(self) -> Group:
        if not self.requests:
            raise StopAsyncIteration
        if self.number < 0:
            raise TypeError("a key is not a sequence of requests")
        index = self.number - len(self.requests)
        try:
            key, byte_range = pair(self.requests.popleft())
            return [(index, await self.store.fetch(key, byte_range, self.prototype))]
        except Exception:
            self.requests.clear()
            raise


def open_good(kind: str, path: Path) -> Store:
    """A store that is new and not open."""
    match kind:
        case "memory":
            return MemoryStore()
        case "local":
            return LocalStore(path)
        case "zip":
            return ZipStore(path / "store.zip", mode="w")
        case "fsspec-memory":
            pytest.importorskip("fsspec.implementations.asyn_wrapper")
            return FsspecStore.from_url(f"memory://{path.as_posix()}")
        case "fsspec-local":
            pytest.importorskip("fsspec.implementations.asyn_wrapper")
            options = {"auto_mkdir": True}
            return FsspecStore.from_url(f"file://{path.as_posix()}", storage_options=options)
        case "object":
            return ObjectStore(pytest.importorskip("obstore.store").MemoryStore())
        case "object-local":
            return ObjectStore(pytest.importorskip("obstore.store").LocalStore(path))
        case "wrapper":
            return WrapperStore(MemoryStore())
        case "logging":
            return LoggingStore(MemoryStore(), log_level="ERROR")
        case "latency":
            return LatencyStore(MemoryStore(), get_latency=0.0001)
        case "cache":
            return CacheStore(MemoryStore(), cache_store=MemoryStore())
        case "nested":
            return LoggingStore(WrapperStore(LatencyStore(LocalStore(path))), log_level="ERROR")
        case "fair":
            return Fair()
        case "backwards":
            return Backwards()
        case "no-generator":
            return NoGenerator()
    raise AssertionError(kind)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize(
    "kind",
    [
        "memory",
        "local",
        "zip",
        "fsspec-memory",
        "fsspec-local",
        "object",
        "object-local",
        "wrapper",
        "logging",
        "latency",
        "cache",
        "nested",
        "fair",
        "backwards",
        "no-generator",
    ],
)
async def test_a_good_store_passes(kind: str, name: str, tmp_path: Path) -> None:
    paths = (tmp_path / f"{number}" for number in range(100))

    def make_store() -> Store:
        path = next(paths)
        path.mkdir()
        return open_good(kind, path)

    await run(name, make_store)


# ---------------------------------------------------------------------------
# Stores that break a promise
# ---------------------------------------------------------------------------

BROKEN: dict[type[Fair], str] = {}
"""Stores that break a promise, and the name of the test that each has to fail."""


def breaks[S: Fair](name: str) -> Callable[[type[S]], type[S]]:
    """Put a store into `BROKEN`."""

    def enter(cls: type[S]) -> type[S]:
        BROKEN[cls] = f"test_get_many_{name}"
        return cls

    return enter


@pytest.fixture
async def _clean_event_loop() -> AsyncIterator[None]:
    """End what a broken store has left behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@breaks("reports_each_request_once")
class ForgetsOne(Fair):
    """Does not report the last request."""

    def reports(self, report: Report, count: int) -> list[Report]:
        return [report][: count - 1 - report[0]]


@breaks("reports_each_request_once")
class ReportsTwice(Fair):
    """Reports every request twice."""

    def reports(self, report: Report, count: int) -> list[Report]:
        return [report, report]


@breaks("reports_each_request_once")
class CountsFromOne(Fair):
    """Reports on a request that was not made, and not on the first."""

    def reports(self, report: Report, count: int) -> list[Report]:
        return [(report[0] + 1, report[1])]


@breaks("reports_each_request_once")
class LeavesAbsentOut(Fair):
    """Reports what is there, and nothing else."""

    def reports(self, report: Report, count: int) -> list[Report]:
        return [] if report[1] is None else [report]


@breaks("gives_each_request_its_own_value")
class CountsArrivals(Fair):
    """Takes the order in which values arrive for the order of the requests."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        self.arrived = count()
        return super().begin(requests)

    def reports(self, report: Report, count: int) -> list[Report]:
        return [(next(self.arrived), report[1])]


class Fetching(Fair):
    """Reads something else than it should."""

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        value = await super().fetch(key, byte_range, prototype)
        if value is None:
            return None
        return prototype.buffer.from_bytes(self.altered(value.to_bytes(), byte_range))

    def altered(self, value: bytes, byte_range: ByteRequest | None) -> bytes:
        """What is read instead of `value`."""
        raise NotImplementedError


@breaks("agrees_with_get")
class Pads(Fetching):
    """Fills up a range that goes beyond the end of the value."""

    def altered(self, value: bytes, byte_range: ByteRequest | None) -> bytes:
        match byte_range:
            case RangeByteRequest(start, end):
                return value.ljust(end - start, b"\0")
        return value


@breaks("agrees_with_get")
class RefusesLongSuffixes(Fair):
    """Raises where `get` returns the whole value."""

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        whole = await super().fetch(key, None, prototype)
        match byte_range:
            case SuffixByteRequest(suffix) if whole is not None and suffix > len(whole):
                raise ValueError("The value has not that many bytes.")
        return await super().fetch(key, byte_range, prototype)


@breaks("agrees_with_get_for_any_mixture")
class ReadsKeysOnce(Fair):
    """Takes what it has read of a key for what it is asked for next."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        self.values: dict[str, Buffer | None] = {}
        return super().begin(requests)

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        if key not in self.values:
            self.values[key] = await super().fetch(key, byte_range, prototype)
        return self.values[key]


@breaks("takes_keys_and_pairs")
class PairsAlone(Fair):
    """Takes pairs, and no keys."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        if isinstance(request, str):
            raise TypeError("a request is a pair")
        return await super().serve(index, request, prototype)


@breaks("takes_keys_and_pairs")
class RangesAlone(Fair):
    """Takes no `None` for a byte range."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        if request[1] is None:
            raise ValueError("a byte range is missing")
        return await super().serve(index, request, prototype)


@breaks("takes_keys_and_pairs")
class ListsAlone(Fair):
    """Takes a list, and no other sequence."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        if not isinstance(requests, list):
            raise TypeError("requests must be a list")
        return super().begin(requests)


@breaks("rejects_what_is_no_request")
class TakesAnything(Fair):
    """Takes what is no request for the request of an absent key."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        with suppress(TypeError):
            pair(request)
            return await super().serve(index, request, prototype)
        return index, None


@breaks("rejects_what_is_no_request")
class TakesOneKey(Fair):
    """Takes a key for a sequence of keys of one letter."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        return super().begin([*requests])


@breaks("duplicate_requests")
class ForgetsDuplicates(Fair):
    """Keeps requests in a dictionary, in which each occurs once."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        return [*dict.fromkeys(super().begin(requests))]


@breaks("byte_ranges")
class TakesSuffixesForOffsets(Fair):
    """Reads from the wrong end."""

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        match byte_range:
            case SuffixByteRequest(suffix):
                byte_range = OffsetByteRequest(suffix)
        return await super().fetch(key, byte_range, prototype)


@breaks("byte_ranges")
class MergesWrongly(Fair):
    """Reads all ranges of a read as one, and cuts it at the wrong place: a gap too late."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        match request:
            case (key, RangeByteRequest(start, end)) if start > 5:
                request = key, RangeByteRequest(start + 1, end + 1)
        return await super().serve(index, request, prototype)


@breaks("is_never_short")
class CutsShort(Fetching):
    """Takes what one packet brings for the whole."""

    def altered(self, value: bytes, byte_range: ByteRequest | None) -> bytes:
        return value[: 1 << 16]


@breaks("absent_is_none")
class RaisesForAbsent(Fair):
    """An absent key is an error to it."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        number, value = await super().serve(index, request, prototype)
        if value is None:
            raise FileNotFoundError(request)
        return number, value


@breaks("absent_is_none")
class EmptyIsAbsent(Fair):
    """A value without bytes is absent to it."""

    def reports(self, report: Report, count: int) -> list[Report]:
        index, value = report
        return [(index, value if value is not None and len(value) else None)]


@breaks("absent_is_none")
class AbsentIsEmpty(Fair):
    """An absent key is a value without bytes to it."""

    def reports(self, report: Report, count: int) -> list[Report]:
        index, value = report
        empty = default_buffer_prototype().buffer.from_bytes(b"")
        return [(index, empty if value is None else value)]


@breaks("of_nothing")
class NeedsRequests(Fair):
    """Cannot be asked for nothing."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        assert requests[0]
        return super().begin(requests)


@breaks("thousands_of_keys")
class Recurses(Fair):
    """Calls itself for the rest of the requests."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        async for group in super().get_many(requests[:1], prototype=prototype):
            yield group
        if len(requests) > 1:
            async for group in self.get_many(requests[1:], prototype=prototype):
                yield [(index + 1, value) for index, value in group]


@breaks("honours_the_prototype")
class OwnBuffers(Fair):
    """Returns the buffers that it likes best."""

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        return await super().fetch(key, byte_range, default_buffer_prototype())


@breaks("opens_the_store")
class NeedsOpening(Fair):
    """Wants to be opened first."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        if not self._is_open:
            raise ValueError("the store is not open")
        return super().begin(requests)


@breaks("side_by_side")
class OneAtATime(Fair):
    """Remembers in the store what it was asked for."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        self.requests = super().begin(requests)
        return self.requests

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        return await super().serve(index, self.requests[index], prototype)


@breaks("raises_what_get_raises")
class FailuresAreAbsent(Fair):
    """Reports what it fails to read as absent."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        with suppress(Exception):
            return await super().serve(index, request, prototype)
        return index, None


@breaks("raises_what_get_raises")
class RaisesGroups(Fair):
    """Raises an exception group, as a task group does."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(super().serve(index, request, prototype))
        return task.result()


@breaks("raises_what_get_raises")
class RaisesItsOwn(Fair):
    """Raises an error of its own."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        try:
            return await super().serve(index, request, prototype)
        except Exception as error:
            raise RuntimeError(f"could not read {request}") from error


@breaks("raises_what_get_raises_for_a_key")
class RefusedIsAbsent(Fair):
    """Reports a key as absent that `get` refuses."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if len(key) > 255:
            raise OSError("File name too long")
        return await super().get(key, prototype, byte_range)

    get_many = Fair.get_many  # which does not know of this `get`


class Hanging(Fair):
    """Its reads in flight wait for a while, those at the beginning apart."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        if isinstance(request, str) and index > 5:
            await asyncio.sleep(0.05)
        return await super().serve(index, request, prototype)


@breaks("ends_by_an_error_in_the_middle")
class GoesOnAfterAnError(Fair):
    """Leaves to themselves what it was reading when a read failed."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        if not any(task.done() and task.exception() for task in running):
            await super().clear_up(running)


@breaks("ends_by_an_error_in_the_middle")
class DoesNotWaitAfterAnError(Fair):
    """Cancels what it was reading when a read failed, and does not wait for the end of it."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        if not any(task.done() and task.exception() for task in running):
            await super().clear_up(running)
        for task in running:
            task.cancel()


@breaks("leaves_no_error_unseen")
class DropsErrors(Fair):
    """Never looks at the second failure."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        for task in running:
            if not task.done():
                task.cancel()
        if running:
            await asyncio.wait(running)


@breaks("leaves_no_task_behind")
class KeepsWatch(Fair):
    """Starts a task for each read and never ends it."""

    def begin(self, requests: Sequence[Request]) -> Sequence[Request]:
        self.watch = asyncio.create_task(asyncio.sleep(3600))
        return super().begin(requests)


@breaks("stops_early")
class GoesOnWhenClosed(Hanging):
    """Leaves to themselves what it was reading when the consumer had enough."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        if not running:
            await super().clear_up(running)


@breaks("stops_early")
class DoesNotWaitWhenClosed(Hanging):
    """Cancels what it was reading, and does not wait for the end of it."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        for task in running:
            task.cancel()


@breaks("stops_early")
class GoesOnReporting(NoGenerator):
    """Its iterator does not care that it has been closed."""

    def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        class Careless(OneByOne):
            async def aclose(self) -> None:
                pass

        return Careless(self, requests, prototype)


@breaks("is_broken_off")
class WaitsForever(Fair):
    """Leaves to themselves reads that never end."""

    async def serve(self, index: int, request: Request, prototype: BufferPrototype) -> Report:
        if index > 5:
            await asyncio.sleep(3600)
        return await super().serve(index, request, prototype)

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        pass


@breaks("is_cancelled")
class GoesOnWhenCancelled(Hanging):
    """Leaves to themselves what it was reading when it was cancelled."""

    async def clear_up(self, running: set[asyncio.Task[Report]]) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


@breaks("is_cancelled")
class IgnoresCancellation(Fair):
    """Takes a cancellation for the failure of a read, and reads on."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        for index, request in enumerate(self.begin(requests)):
            try:
                await asyncio.sleep(0)
            except BaseException:  # noqa: BLE001
                yield [(index, None)]
            else:
                yield [await self.serve(index, request, prototype)]


@breaks("is_lazy")
class StartsAtOnce(Fair):
    """Reads before anybody asks for a result."""

    def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        reading = [
            asyncio.ensure_future(self.serve(index, request, prototype))
            for index, request in enumerate(self.begin(requests))
        ]

        async def report() -> AsyncIterator[Group]:
            for task in reading:
                yield [await task]

        return report()


@breaks("is_lazy")
class NoIterator(Fair):
    """What it returns can be iterated over, and is no iterator."""

    def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        many = super().get_many

        class Iterable:
            def __aiter__(self) -> AsyncIterator[Group]:
                return many(requests, prototype=prototype)

        return Iterable()  # type: ignore[return-value]


@breaks("holds_back_for_a_slow_consumer")
class StartsEverything(Fair):
    """Makes a task of every request."""

    most = 1_000_000


@breaks("holds_back_for_a_slow_consumer")
class ReadsAhead(Fair):
    """Reads on when nobody takes what it has read."""

    most = 1000

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        queue: asyncio.Queue[Group | None] = asyncio.Queue()

        many = super().get_many(requests, prototype=prototype)

        async def read() -> None:
            try:
                async for group in many:
                    queue.put_nowait(group)
            finally:
                queue.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (group := await queue.get()) is not None:
                yield group
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@breaks("holds_back_for_a_slow_consumer")
class ReportsAtTheEnd(Fair):
    """Reads everything before it reports anything."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        many = super().get_many(requests, prototype=prototype)
        yield [report async for group in many for report in group]


@breaks("holds_bytes_back_for_a_slow_consumer")
class CountsReadsAlone(Fair):
    """Limits the number of reads in flight, not their size."""

    most = 500


class KeepsItsSubclasses(Fair):
    """Overrides `__init_subclass__`, and forgets that of `Store`."""

    def __init_subclass__(cls) -> None:
        pass


@breaks("goes_through_the_get_of_a_subclass")
class ReadsAroundGet(KeepsItsSubclasses):
    """A subclass that overrides `get` gets a `get_many` that does not know of it."""


@breaks("of_a_subclass_keeps_to_the_concurrency")
class ManyGets(KeepsItsSubclasses):
    """A subclass that overrides `get` gets a `get_many` that calls it without a limit."""

    most = 20

    async def fetch(
        self, key: str, byte_range: ByteRequest | None, prototype: BufferPrototype
    ) -> Buffer | None:
        return await self.get(key, prototype, byte_range)


@pytest.mark.usefixtures("_clean_event_loop")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
async def test_a_broken_store_fails(broken: type[Fair], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test that it fails is the one that is named for the promise that it breaks."""
    monkeypatch.setattr(conformance, "_PATIENCE", 1.0)
    with pytest.raises((Exception, pytest.fail.Exception)):
        await run(BROKEN[broken], broken)


def test_there_is_a_broken_store_for_every_test() -> None:
    assert sorted(set(BROKEN.values())) == sorted(TESTS)


# ---------------------------------------------------------------------------
# The rule of the state machine
# ---------------------------------------------------------------------------


def run_state_machine(store: Store) -> None:
    """Run a few steps of the state machine on a store."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis.stateful import run_state_machine_as_test

    from zarr.testing.stateful import ZarrStoreStateMachine

    settings = hypothesis.settings(
        max_examples=10,
        stateful_step_count=15,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    run_state_machine_as_test(lambda: ZarrStoreStateMachine(store), settings=settings)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("good", [MemoryStore, Fair, Backwards])
def test_a_good_store_passes_the_state_machine(good: type[MemoryStore]) -> None:
    run_state_machine(good())


@pytest.mark.parametrize("broken", [CountsFromOne, ForgetsOne, ReportsTwice, AbsentIsEmpty])
def test_a_broken_store_fails_the_state_machine(broken: type[Fair]) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine(broken())
