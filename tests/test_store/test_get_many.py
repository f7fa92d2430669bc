"""Tests for `Store.get_many`: what it promises, kept by every store and by every wrapper.

`Store.get_many` has a default that is built on `get`; stores and wrappers may have a faster one.
Whatever serves a request, it gives what `get` gives, reports every request once, keeps to its
limits, and leaves nothing behind. A class that overrides `get` alone sees all reads in its `get`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, overload

import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from tests.event_loop import nothing_left_behind, turns, until
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.config import config
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
from zarr.testing.store import LatencyStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from zarr.core.buffer import BufferPrototype

type Request = str | tuple[str, ByteRequest | None]
type Group = Sequence[tuple[int, Buffer | None]]

PROTOTYPE = default_buffer_prototype()


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


async def read(store: Store, requests: Sequence[Request]) -> dict[int, bytes | None]:
    """What `get_many` reports, by index. No index may be reported twice."""
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE):
        for index, value in group:
            assert index not in values
            assert value is None or isinstance(value, Buffer)
            values[index] = None if value is None else value.to_bytes()
    return values


def pair(request: Request) -> tuple[str, ByteRequest | None]:
    return (request, None) if isinstance(request, str) else request


async def read_one(store: Store, request: Request) -> bytes | None:
    """What `get` gives for a request."""
    key, byte_range = pair(request)
    value = await store.get(key, prototype=PROTOTYPE, byte_range=byte_range)
    return None if value is None else value.to_bytes()


async def outcome[T](reading: Coroutine[Any, Any, T]) -> T | tuple[type[BaseException], str]:
    """What a read returns, or what it raises."""
    try:
        return await reading
    except Exception as error:  # noqa: BLE001
        return type(error), str(error)


# ---------------------------------------------------------------------------
# Every store gives what `get` gives
# ---------------------------------------------------------------------------

VALUES = {
    "digits": b"0123456789",
    "group/c/0/0": bytes(range(256)) * 20,
    "group/c/0/1": b"\x00",
    "group/zarr.json": b"{}",
}

REQUESTS: list[Request] = [
    "digits",
    ("group/c/0/0", RangeByteRequest(100, 2000)),
    ("digits", None),
    ("digits", RangeByteRequest(2, 5)),
    "absent",
    ("digits", RangeByteRequest(5, 8)),
    ("digits", OffsetByteRequest(7)),
    ("digits", SuffixByteRequest(3)),
    ("absent", RangeByteRequest(0, 1)),
    ("absent", OffsetByteRequest(1)),
    ("absent", SuffixByteRequest(1)),
    "group/c/0/1",
    "digits",
    ("digits", RangeByteRequest(2, 5)),
    ("group/c/0/0", SuffixByteRequest(5000)),
    ("group/c/0/0", RangeByteRequest(0, 5120)),
    "group/c/0/0",
    "group/c/0",
    ("digits", RangeByteRequest(3, 6)),
    ("group/c/0/0", OffsetByteRequest(0)),
]

LEAVES = ["memory", "local", "zip", "fsspec", "object"]
STORES = [*LEAVES, "wrapper", "logging", "latency", "cache", "nested-local"]


def open_leaf(kind: str, path: Path) -> Store:
    match kind:
        case "memory":
            return MemoryStore()
        case "local":
            return LocalStore(path / "local")
        case "zip":
            return ZipStore(path / "store.zip", mode="w")
        case "fsspec":
            pytest.importorskip("fsspec.implementations.asyn_wrapper")
            return FsspecStore.from_url(f"memory://{path.as_posix()}")
        case "object":
            obstore = pytest.importorskip("obstore.store")
            return ObjectStore(obstore.MemoryStore())
    raise AssertionError(kind)


def wrap(kind: str, store: Store) -> Store:
    match kind:
        case "bare":
            return store
        case "wrapper":
            return WrapperStore(store)
        case "logging":
            return LoggingStore(store)
        case "latency":
            return LatencyStore(store)
        case "cache":
            return CacheStore(store, cache_store=MemoryStore(), cache_set_data=False)
        case "nested":
            return LoggingStore(wrap("cache", WrapperStore(LatencyStore(store))))
    raise AssertionError(kind)


def open_store(kind: str, path: Path) -> Store:
    if kind in LEAVES:
        return open_leaf(kind, path)
    if kind == "nested-local":
        return wrap("nested", open_leaf("local", path))
    return wrap(kind, MemoryStore())


async def fill(store: Store, values: dict[str, bytes]) -> None:
    for key, value in values.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Store]:
    store = open_store(request.param, tmp_path)
    await fill(store, VALUES)
    yield store
    store.close()


async def test_every_request_is_answered_as_get_answers_it(store: Store) -> None:
    values = await read(store, REQUESTS)
    assert sorted(values) == list(range(len(REQUESTS)))
    for index, request in enumerate(REQUESTS):
        assert values[index] == await read_one(store, request), request


async def test_reading_twice_gives_the_same(store: Store) -> None:
    assert await read(store, REQUESTS) == await read(store, REQUESTS)


async def test_a_prototype_is_honoured(store: Store) -> None:
    class OtherBuffer(PROTOTYPE.buffer):  # type: ignore[misc,name-defined]
        pass

    prototype = PROTOTYPE._replace(buffer=OtherBuffer)
    async for group in store.get_many(["digits", ("digits", None)], prototype=prototype):
        for _, value in group:
            assert isinstance(value, OtherBuffer)


async def test_no_requests(store: Store) -> None:
    assert [group async for group in store.get_many([], prototype=PROTOTYPE)] == []


@pytest.mark.parametrize("request_", ["digits", "absent", ("digits", RangeByteRequest(1, 3))])
async def test_one_request(store: Store, request_: Request) -> None:
    assert await read(store, [request_]) == {0: await read_one(store, request_)}


async def test_a_tuple_of_requests(store: Store) -> None:
    values = await read(store, REQUESTS)
    assert await read(store, tuple(REQUESTS)) == values


async def test_one_key_many_times(store: Store) -> None:
    assert await read(store, ["digits"] * 100) == dict.fromkeys(range(100), VALUES["digits"])


async def test_thousands_of_requests(store: Store) -> None:
    """A few keys are there, most are not, and none is confused with another."""
    present = {f"many/{index}": str(index).encode() for index in range(0, 3000, 100)}
    await fill(store, present)
    requests = [f"many/{index}" for index in range(3000)]
    values = await read(store, requests)
    assert values == {index: present.get(key) for index, key in enumerate(requests)}


async def test_reads_side_by_side(store: Store) -> None:
    """Several `get_many` of one store do not get in each other's way."""
    expected = await read(store, REQUESTS)
    for values in await asyncio.gather(*(read(store, REQUESTS) for _ in range(5))):
        assert values == expected


async def test_closing_after_the_first_group(store: Store) -> None:
    groups = store.get_many(["digits"] * 50, prototype=PROTOTYPE)
    assert await anext(groups)
    await groups.aclose()  # type: ignore[attr-defined]
    with pytest.raises(StopAsyncIteration):
        await anext(groups)


async def test_breaking_off_after_the_first_group(store: Store) -> None:
    async for group in store.get_many(["digits"] * 50, prototype=PROTOTYPE):
        assert group
        break
    await settled()


async def test_a_closed_store(store: Store) -> None:
    """What `get` does on a closed store, `get_many` does."""
    store.close()
    values = await outcome(read(store, ["digits", "absent"]))
    store.close()
    digits = await outcome(read_one(store, "digits"))
    absent = await outcome(read_one(store, "absent"))
    assert values == {0: digits, 1: absent}


@pytest.mark.parametrize("kind", ["memory", "local", "fsspec", "object", "nested-local"])
async def test_a_read_only_store(kind: str, tmp_path: Path) -> None:
    writable = open_store(kind, tmp_path)
    await fill(writable, VALUES)
    values = await read(writable, REQUESTS)
    assert await read(writable.with_read_only(True), REQUESTS) == values


async def test_a_read_only_zip_store(tmp_path: Path) -> None:
    writable = open_store("zip", tmp_path)
    await fill(writable, VALUES)
    values = await read(writable, REQUESTS)
    writable.close()
    with await ZipStore.open(tmp_path / "store.zip", mode="r") as store:
        assert await read(store, REQUESTS) == values


UNUSUAL_RANGES: list[Any] = [
    "0-3",
    (0, 3),
    5,
    RangeByteRequest(0, 0),
    RangeByteRequest(4, 4),
    RangeByteRequest(8, 3),
    RangeByteRequest(5, 50),
    RangeByteRequest(10, 12),
    RangeByteRequest(20, 30),
    RangeByteRequest(-3, 5),
    RangeByteRequest(-8, -3),
    RangeByteRequest(2, -3),
    OffsetByteRequest(10),
    OffsetByteRequest(50),
    OffsetByteRequest(-2),
    SuffixByteRequest(0),
    SuffixByteRequest(10),
    SuffixByteRequest(99),
    SuffixByteRequest(-2),
]


async def test_unusual_ranges(store: Store) -> None:
    """For ranges that are wrong, reversed, or outside of the value, `get_many` does as `get`."""
    different = []
    for byte_range in UNUSUAL_RANGES:
        request: Request = ("digits", byte_range)
        expected = await outcome(read_one(store, request))
        alone = await outcome(read(store, [request]))
        others = await outcome(read(store, ["group/c/0/1", request, "group/c/0/1"]))
        if isinstance(expected, tuple):
            same = alone == others == expected
        else:
            same = alone == {0: expected} and others == {0: b"\x00", 1: expected, 2: b"\x00"}
        if not same:
            different.append((byte_range, expected, alone, others))
    assert different == []


NO_REQUESTS: list[Any] = [
    "digits",
    "",
    b"digits",
    [None],
    [3],
    ["digits", 3],
    [("digits",)],
    [("digits", None, None)],
    [["digits", None]],
    ["digits", "absent", None, "digits"],
    [RangeByteRequest(0, 1)],
]


async def test_what_is_not_a_request(store: Store) -> None:
    for requests in NO_REQUESTS:
        with pytest.raises(TypeError, match=r"(requests must be|A request must be)"):
            await read(store, requests)


byte_ranges = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
        lambda bounds: RangeByteRequest(min(bounds), max(bounds) + 1)
    ),
    st.integers(0, 40).map(OffsetByteRequest),
    st.integers(1, 40).map(SuffixByteRequest),
)
requests_for_any_store = st.lists(
    st.sampled_from(["a", "b", "c/0", "absent"]).flatmap(
        lambda key: st.one_of(st.just(key), st.tuples(st.just(key), byte_ranges))
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", STORES)
@given(requests=requests_for_any_store, concurrency=st.sampled_from([1, 2, 10, 11, None]))
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
async def test_get_many_agrees_with_get(
    kind: str,
    tmp_path: Path,
    requests: list[Request],
    concurrency: int | None,
) -> None:
    store = open_store(kind, tmp_path)
    await fill(store, {"a": bytes(range(31)), "b": b"b", "c/0": bytes(range(100, 120))})
    expected = [await outcome(read_one(store, request)) for request in requests]
    failures = [result for result in expected if isinstance(result, tuple)]
    with config.set({"async.concurrency": concurrency}):
        result = await outcome(read(store, requests))
    store.close()
    if failures:
        assert result in failures
    else:
        assert result == dict(enumerate(expected))


# ---------------------------------------------------------------------------
# Order, limits, failures, and coming to an end
# ---------------------------------------------------------------------------


class GatedStore(MemoryStore):
    """A store in which each read waits until it is let through or made to fail.

    The value of a key is the key itself. A read that is cancelled waits for `cleaned_up`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.running: Counter[str] = Counter()
        self.most_running = 0
        self.cancelled: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.failure_of_cancelled: type[Exception] | None = None
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.cleaned_up = asyncio.Event()
        self.cleaned_up.set()

    def let(self, *keys: str) -> None:
        for key in keys:
            self.gates[key].set()

    def fail(self, key: str, error: BaseException) -> None:
        self.failures[key] = error
        self.gates[key].set()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.started.append(key)
        self.running[key] += 1
        self.most_running = max(self.most_running, self.running.total())
        try:
            await self.gates[key].wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            await self.cleaned_up.wait()
            if self.failure_of_cancelled is not None:
                raise self.failure_of_cancelled(key) from None
            raise
        finally:
            self.running[key] -= 1
        if key in self.failures:
            raise self.failures[key]
        return PROTOTYPE.buffer.from_bytes(key.encode())


AROUND = ["bare", "logging", "latency", "cache", "nested"]


@pytest.fixture(params=AROUND)
def around(request: pytest.FixtureRequest) -> Callable[[Store], Store]:
    """Puts a wrapper, or several, around a store."""
    return lambda store: wrap(request.param, store)


@pytest.fixture
def gated() -> GatedStore:
    return GatedStore()


KEYS = ["a", "b", "c", "d", "e", "f", "g", "h"]


class Reading:
    """A task that takes what `get_many` yields."""

    def __init__(self, store: Store, requests: Sequence[Request] = KEYS) -> None:
        self.taken: list[int] = []
        self.task = asyncio.create_task(self._take(store, requests))

    async def _take(self, store: Store, requests: Sequence[Request]) -> None:
        async for group in store.get_many(requests, prototype=PROTOTYPE):
            self.taken.extend(index for index, _ in group)


async def settled() -> None:
    """Wait until no task but the current one is left."""
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def causes(error: BaseException) -> list[BaseException]:
    """The chain of `__cause__` that starts at `error`."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


async def test_results_come_in_completion_order(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    reading = Reading(around(gated))
    for key in "fbahcedg":
        await turns()
        gated.let(key)
    await reading.task
    assert [KEYS[index] for index in reading.taken] == list("fbahcedg")


async def test_results_are_handed_over_at_once(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    """What has arrived does not wait for what has not."""
    reading = Reading(around(gated))
    gated.let("d")
    await turns()
    assert reading.taken == [3]
    gated.let(*KEYS)
    await reading.task
    assert sorted(reading.taken) == list(range(8))


@pytest.mark.parametrize("concurrency", [1, 3, 25, None])
async def test_concurrency_is_limited(
    gated: GatedStore, around: Callable[[Store], Store], concurrency: int | None
) -> None:
    """A user's `async.concurrency` holds for every store, up and down."""
    requests = [f"{index:02}" for index in range(40)]
    with config.set({"async.concurrency": concurrency}):
        reading = Reading(around(gated), requests)
        for done, key in enumerate(requests):
            expected = min(40, (concurrency or 40) + done)
            await until(lambda: len(gated.started) >= expected)  # noqa: B023
            await turns()
            assert len(gated.started) == expected
            gated.let(key)
        await reading.task
    assert gated.most_running == min(40, concurrency or 40)
    assert sorted(reading.taken) == list(range(40))


async def test_default_concurrency(gated: GatedStore) -> None:
    reading = Reading(gated, [f"{index}" for index in range(40)])
    await turns()
    assert len(gated.started) == 10
    reading.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading.task


async def test_a_latency_store_serves_as_many_as_a_remote_backend(gated: GatedStore) -> None:
    requests = [f"{index}" for index in range(400)]
    reading = Reading(LatencyStore(gated), requests)
    gated.let("0")
    await turns()
    assert gated.most_running == 100
    gated.let(*requests)
    await reading.task
    assert gated.most_running == 100


async def test_a_slow_consumer_holds_the_store_back(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    requests = [f"{index}" for index in range(100)]
    gated.let(*requests)
    with config.set({"async.concurrency": 4}):
        groups = around(gated).get_many(requests, prototype=PROTOTYPE)
        taken = 0
        async for group in groups:
            taken += len(group)
            await turns(20)
            # Four are in flight, and a wrapper that has work to do holds as many again.
            assert taken <= len(gated.started) <= taken + 2 * 4
    assert taken == 100


async def test_a_slow_consumer_holds_bytes_back(
    gated: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten may start whatever they weigh; after that the bytes that wait count."""
    monkeypatch.setattr("zarr.core._bounded.MAX_BYTES_IN_FLIGHT", 500)
    requests = ["k" * 20 + f"{index:05}" for index in range(200)]
    gated.let(*requests)
    taken = 0
    async for group in LatencyStore(gated).get_many(requests, prototype=PROTOTYPE):
        taken += len(group)
        await turns(20)
        # 500 bytes are twenty values, one of which the consumer has in hand.
        assert len(gated.started) <= taken + 20
    assert taken == 200


class Counted(Sequence[str]):
    """A sequence of keys that nobody has in memory, and that counts how often it is asked."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked = 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        assert isinstance(index, int)
        self.asked += 1
        if not 0 <= index < self.length:
            raise IndexError(index)
        return f"{index}"


@pytest.mark.parametrize("kind", ["bare", "wrapper", "latency"])
async def test_a_million_requests_are_taken_as_they_are_needed(
    gated: GatedStore, kind: str
) -> None:
    requests = Counted(1_000_000)
    gated.let(*(f"{index}" for index in range(10)))
    groups = wrap(kind, gated).get_many(requests, prototype=PROTOTYPE)
    async with aclosing(groups):  # type: ignore[type-var]
        for _ in range(10):
            await anext(groups)
            await turns(20)
            assert len(asyncio.all_tasks()) <= 102
    assert requests.asked <= 150
    assert not gated.running.total()


async def test_many_requests_do_not_make_many_tasks(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    with config.set({"async.concurrency": 5}):
        reading = Reading(around(gated), Counted(20_000))
        await until(lambda: gated.started)  # a wrapper may look at all requests first
        await turns()
        assert len(gated.started) == 5
        assert len(asyncio.all_tasks()) <= 3 + 2 * 5
        reading.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading.task


async def test_a_failure_is_raised_as_itself(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    """The failure of one read ends the others, and is not wrapped in anything."""
    error = OSError("the cable is out")
    with config.set({"async.concurrency": 4}):
        reading = Reading(around(gated))
        await turns()
        gated.let("b")
        await turns()
        gated.fail("c", error)
        with pytest.raises(OSError) as caught:
            await reading.task
    assert caught.value is error
    assert error.__cause__ is None
    assert reading.taken == [1]
    assert not gated.running.total()
    assert sorted(gated.cancelled) == ["a", "d", "e"]


async def test_other_failures_are_attached(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    errors = {"b": OSError("first"), "a": KeyError("second"), "c": ValueError("third")}
    reading = Reading(around(gated))
    await turns()
    for key, error in errors.items():
        gated.fail(key, error)
    with pytest.raises((OSError, KeyError, ValueError)) as caught:
        await reading.task
    assert caught.value in errors.values()
    *chain, group = causes(caught.value)
    assert chain == [caught.value]
    assert isinstance(group, ExceptionGroup)
    assert {caught.value, *group.exceptions} == set(errors.values())


async def test_the_cause_of_a_failure_is_kept(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    error, cause, other = OSError("top"), KeyError("bottom"), ValueError("other")
    error.__cause__ = cause
    reading = Reading(around(gated))
    await turns()
    gated.fail("a", error)
    gated.fail("b", other)
    with pytest.raises((OSError, ValueError)) as caught:
        await reading.task
    assert caught.value is error
    *chain, group = causes(error)
    assert chain == [error, cause]
    assert isinstance(group, ExceptionGroup)
    assert group.exceptions == (other,)


class Unusual(BaseException):
    """Not even an `Exception`."""


FAILURES = [
    OSError("input/output"),
    FileNotFoundError("gone"),
    PermissionError("forbidden"),
    IsADirectoryError("a directory"),
    NotADirectoryError("not a directory"),
    ConnectionResetError("reset"),
    TimeoutError("too late"),
    KeyError("key"),
    IndexError("index"),
    ValueError("value"),
    TypeError("type"),
    AttributeError("attribute"),
    RuntimeError("runtime"),
    NotImplementedError("later"),
    MemoryError("full"),
    EOFError("end"),
    AssertionError("never"),
    ExceptionGroup("several", [OSError("one"), KeyError("two")]),
    BaseExceptionGroup("serious", [Unusual()]),
    asyncio.CancelledError("by the backend"),
    Unusual("unusual"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_a_failure_is_never_an_absent_key(error: BaseException) -> None:
    """Whatever `get` raises comes out of `get_many`: a missing chunk would be filled silently."""
    for kind in AROUND:
        for keys in (["a"], ["b", "c", "a"]):
            gated = GatedStore()
            gated.let("b", "c")
            gated.fail("a", error)
            with pytest.raises(type(error)) as caught:
                await read(wrap(kind, gated), keys)
            assert caught.value is error
            assert error.__cause__ is None


async def test_a_failure_is_never_the_end(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    """A generator can't raise `StopAsyncIteration`; it must not end by it either."""
    error = StopAsyncIteration("no more")
    gated.let(*KEYS)
    gated.fail("a", error)
    for keys in (["a"], ["b", "c", "a"]):
        with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
            await read(around(gated), keys)
        assert causes(caught.value)[-1] is error


async def test_a_bad_request_ends_what_has_begun(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    requests: list[Any] = [*KEYS, 7]
    with config.set({"async.concurrency": 20}), pytest.raises(TypeError):
        await read(around(gated), requests)
    assert not gated.running.total()


async def test_closing_early_cancels_what_is_in_flight(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    gated.let("b")
    groups = around(gated).get_many(KEYS, prototype=PROTOTYPE)
    assert [index for index, _ in await anext(groups)] == [1]
    gated.cleaned_up.clear()
    closing = asyncio.ensure_future(groups.aclose())  # type: ignore[attr-defined]
    await turns()
    assert not closing.done()
    assert gated.running.total() == 7
    gated.cleaned_up.set()
    await closing
    assert not gated.running.total()
    assert sorted(gated.cancelled) == list("acdefgh")


async def test_breaking_off_cancels_what_is_in_flight(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    gated.let("b")
    async for group in around(gated).get_many(KEYS, prototype=PROTOTYPE):
        assert [index for index, _ in group] == [1]
        break
    await settled()
    assert not gated.running.total()
    assert sorted(gated.cancelled) == list("acdefgh")


async def test_an_error_of_the_consumer_cancels_what_is_in_flight(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    gated.let("b")

    async def consume() -> None:
        async for _ in around(gated).get_many(KEYS, prototype=PROTOTYPE):
            raise LookupError("consumer")

    with pytest.raises(LookupError, match="consumer"):
        await consume()
    await settled()
    assert not gated.running.total()


async def test_failures_after_closing_are_forgotten(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    gated.let("a")
    gated.failure_of_cancelled = OSError
    groups = around(gated).get_many(KEYS, prototype=PROTOTYPE)
    await anext(groups)
    gated.fail("b", OSError("unseen"))
    await turns()
    await groups.aclose()  # type: ignore[attr-defined]
    assert not gated.running.total()


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("failure", [None, OSError])
async def test_cancelling_waits_for_what_is_in_flight(
    gated: GatedStore,
    around: Callable[[Store], Store],
    times: int,
    failure: type[Exception] | None,
) -> None:
    """No read outlives `get_many`, even if it is cancelled again while it clears up."""
    gated.cleaned_up.clear()
    gated.failure_of_cancelled = failure
    gated.let("a", "f")
    reading = Reading(around(gated))
    await turns()
    for _ in range(times):
        reading.task.cancel()
        await turns()
        assert not reading.task.done()
        assert gated.running.total() == 6
    gated.cleaned_up.set()
    with pytest.raises(asyncio.CancelledError):
        await reading.task
    assert not gated.running.total()
    assert sorted(gated.cancelled) == list("bcdegh")
    assert sorted(reading.taken) == [0, 5]


async def test_cancelling_before_the_first_turn(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    reading = Reading(around(gated))
    reading.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading.task
    assert gated.started == []


async def test_nothing_is_read_until_it_is_asked_for(
    gated: GatedStore, around: Callable[[Store], Store]
) -> None:
    groups = around(gated).get_many(KEYS, prototype=PROTOTYPE)
    await turns()
    assert gated.started == []
    await groups.aclose()  # type: ignore[attr-defined]


@given(data=st.data())
@settings(max_examples=100)
async def test_whatever_happens_and_in_whatever_order(data: st.DataObject) -> None:
    """Reads end in any order, some fail, and the consumer may leave at any time."""
    gated = GatedStore()
    kind = data.draw(st.sampled_from(AROUND))
    concurrency = data.draw(st.integers(1, 6))
    keys = KEYS[: data.draw(st.integers(0, len(KEYS)))]
    order = data.draw(st.permutations(keys))
    pauses = [data.draw(st.sampled_from([0, 0, 1, 3, 20])) for _ in order]
    failing = data.draw(st.sets(st.sampled_from(KEYS), max_size=2))
    leave_after = data.draw(st.none() | st.integers(0, len(keys)))
    cancel = data.draw(st.booleans())
    taken: list[int] = []

    async def consume() -> None:
        groups = wrap(kind, gated).get_many(keys, prototype=PROTOTYPE)
        async with aclosing(groups):  # type: ignore[type-var]
            async for group in groups:
                for index, value in group:
                    assert value is not None
                    assert value.to_bytes().decode() == keys[index]
                    taken.append(index)
                if leave_after is not None and len(taken) >= leave_after:
                    if cancel:
                        task.cancel()
                        await asyncio.sleep(0)
                    return

    with config.set({"async.concurrency": concurrency}):
        task = asyncio.create_task(consume())
        for key, pause in zip(order, pauses, strict=True):
            await turns(pause)
            if key in failing:
                gated.fail(key, OSError(key))
            else:
                gated.let(key)
        result = await asyncio.wait_for(outcome(_ended(task)), timeout=60)
    assert gated.most_running <= concurrency
    assert not gated.running.total()
    assert len(set(taken)) == len(taken)
    assert not {keys[index] for index in taken} & failing
    if result == "ended" and not (failing & set(keys)) and leave_after is None:
        assert sorted(taken) == list(range(len(keys)))
    if isinstance(result, tuple):
        assert result[0] is OSError
        assert result[1] in failing
    if leave_after is None and failing & set(keys):
        assert isinstance(result, tuple)


async def _ended(task: asyncio.Task[None]) -> str:
    await asyncio.wait([task])
    if task.cancelled():
        return "cancelled"
    if (error := task.exception()) is not None:
        raise error
    return "ended"


# ---------------------------------------------------------------------------
# A class that overrides `get` alone sees every read in its `get`
# ---------------------------------------------------------------------------


class NativeStore(MemoryStore):
    """A store whose `get_many` does not go through its `get`."""

    def __init__(self) -> None:
        super().__init__()
        self.many = 0
        self.seen: list[str] = []

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.many += 1
        for index, request in enumerate(requests):
            key, byte_range = pair(request)
            yield [(index, await MemoryStore.get(self, key, prototype, byte_range))]


class Seeing:
    """A mixin whose `get` notes the key."""

    seen: list[str]

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        self.__dict__.setdefault("seen", []).append(key)
        return await super().get(key, *args, **kwargs)  # type: ignore[misc,no-any-return]


class Sending:
    """A mixin whose `get_many` notes that it was called."""

    sent: list[str]

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.__dict__.setdefault("sent", []).append(type(self).__name__)
        async for group in super().get_many(requests, prototype=prototype):  # type: ignore[misc]
            yield group


class SeesGet(NativeStore):
    """Overrides `get` alone."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.seen.append(key)
        return await super().get(key, prototype, byte_range)


class SeesGetMany(NativeStore):
    """Overrides `get_many` alone."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.seen.append("get_many")
        async for group in super().get_many(requests, prototype=prototype):
            yield group


class SeesBoth(NativeStore):
    """Overrides both, and means it."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        raise AssertionError("get_many does not need it")

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.seen.append("get_many")
        async for group in super().get_many(requests, prototype=prototype):
            yield group


class Plain(NativeStore):
    """Overrides nothing."""


class ChildOfSeesGet(SeesGet):
    """Inherits a `get` that must see everything."""


class GrandchildOfSeesGet(Seeing, ChildOfSeesGet):
    """Adds another `get` on top of it."""


class ManyOnTopOfGet(SeesGet):
    """Overrides `get_many` where the parent overrides `get` alone."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.seen.append("get_many")
        async for group in super().get_many(requests, prototype=prototype):
            yield group


class GetOnTopOfMany(SeesGetMany):
    """Overrides `get` where the parent overrides `get_many` alone."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.seen.append(key)
        return await super().get(key, prototype, byte_range)


class MixinBefore(Seeing, NativeStore):
    """A mixin with a `get` comes before the store."""


class MixinAfter(NativeStore, Seeing):
    """A mixin with a `get` comes after the store, which hides it."""


class ChildOfMixinBefore(MixinBefore):
    """Inherits from a class that has its `get` from a mixin."""


class PlainThenGet(Plain, SeesGet):
    """A diamond: `get` is overridden on the way that comes second."""


class GetThenMany(SeesGet, SeesGetMany):
    """A diamond: `get` overridden lower than `get_many`."""


class ManyThenGet(SeesGetMany, SeesGet):
    """A diamond: `get_many` overridden lower than `get`, and built on what is above it."""


@pytest.mark.parametrize(
    ("cls", "seen", "many"),
    [
        (NativeStore, [], 1),
        (Plain, [], 1),
        (SeesGet, ["a", "b", "c"], 0),
        (ChildOfSeesGet, ["a", "b", "c"], 0),
        (GrandchildOfSeesGet, ["a", "a", "b", "b", "c", "c"], 0),
        (SeesGetMany, ["get_many"], 1),
        (SeesBoth, ["get_many"], 1),
        (ManyOnTopOfGet, ["get_many", "a", "b", "c"], 0),
        (GetOnTopOfMany, ["a", "b", "c"], 0),
        (MixinBefore, ["a", "b", "c"], 0),
        (ChildOfMixinBefore, ["a", "b", "c"], 0),
        (MixinAfter, [], 1),
        (PlainThenGet, ["a", "b", "c"], 0),
        (GetThenMany, ["a", "b", "c"], 0),
        (ManyThenGet, ["get_many", "a", "b", "c"], 0),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_who_sees_the_reads(cls: type[NativeStore], seen: list[str], many: int) -> None:
    store = cls()
    for key in "abc":
        await store.set(key, PROTOTYPE.buffer.from_bytes(key.encode()))
    with config.set({"async.concurrency": 1}):
        assert await read(store, ["a", "b", "c"]) == {0: b"a", 1: b"b", 2: b"c"}
    assert sorted(store.seen) == sorted(seen)
    assert store.many == many


async def test_a_class_made_at_run_time() -> None:
    made: Any = type("Made", (NativeStore,), {"get": vars(SeesGet)["get"]})
    assert made.get_many is Store.get_many
    made = type("Made", (NativeStore,), {})
    assert made.get_many is NativeStore.get_many


async def test_class_arguments_are_passed_on() -> None:
    class Tagged(MemoryStore):
        tag: str

        def __init_subclass__(cls, *, tag: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.tag = tag

    class Child(Tagged, tag="child"):
        pass

    assert Child.tag == "child"
    with pytest.raises(TypeError):
        type("Wrong", (MemoryStore,), {}, tag="nobody asked")


async def seen_through(store: Store, source: NativeStore) -> list[str]:
    """Which keys the `get` of `source` sees when `store` is read."""
    for key in "abc":
        await source.set(key, PROTOTYPE.buffer.from_bytes(key.encode()))
    assert await read(store, ["a", "b", "c"]) == {0: b"a", 1: b"b", 2: b"c"}
    return sorted(source.seen)


@pytest.mark.parametrize("kind", ["wrapper", "logging", "latency", "cache", "nested"])
async def test_a_get_that_was_replaced_in_an_instance(kind: str) -> None:
    """A wrapper reads through what somebody has put in the place of `get`."""
    source = NativeStore()
    original = source.get

    async def get(key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        source.seen.append(key)
        return await original(key, *args, **kwargs)

    source.get = get  # type: ignore[method-assign]
    assert await seen_through(wrap(kind, source), source) == ["a", "b", "c"]


async def test_a_get_that_was_replaced_in_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec.implementations.asyn_wrapper")
    seen: list[str] = []
    original = FsspecStore.get

    async def get(self: FsspecStore, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        seen.append(key)
        return await original(self, key, *args, **kwargs)

    monkeypatch.setattr(FsspecStore, "get", get)
    store = FsspecStore.from_url("memory://replaced")
    await fill(store, {"a": b"1", "b": b"2"})
    assert await read(WrapperStore(store), ["a", "b"]) == {0: b"1", 1: b"2"}
    assert sorted(seen) == ["a", "b"]


class SeeingMemory(Seeing, MemoryStore):
    pass


class SeeingLocal(Seeing, LocalStore):
    pass


class SeeingZip(Seeing, ZipStore):
    pass


class SeeingFsspec(Seeing, FsspecStore):
    pass


class SeeingObject(Seeing, ObjectStore[Any]):
    pass


class SeeingWrapper(Seeing, WrapperStore[MemoryStore]):
    pass


class SeeingLogging(Seeing, LoggingStore[MemoryStore]):
    pass


class SeeingLatency(Seeing, LatencyStore):
    pass


class SeeingCache(Seeing, CacheStore):
    pass


def open_seeing(kind: str, path: Path) -> Any:
    match kind:
        case "memory":
            return SeeingMemory()
        case "local":
            return SeeingLocal(path)
        case "zip":
            return SeeingZip(path / "store.zip", mode="w")
        case "fsspec":
            pytest.importorskip("fsspec.implementations.asyn_wrapper")
            return SeeingFsspec.from_url(f"memory://{path.as_posix()}")
        case "object":
            return SeeingObject(pytest.importorskip("obstore.store").MemoryStore())
        case "wrapper":
            return SeeingWrapper(MemoryStore())
        case "logging":
            return SeeingLogging(MemoryStore())
        case "latency":
            return SeeingLatency(MemoryStore())
        case "cache":
            return SeeingCache(MemoryStore(), cache_store=MemoryStore())
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind", [*LEAVES, "wrapper", "logging", "latency", "cache"], ids=lambda kind: kind
)
async def test_subclasses_of_this_packages_stores_see_every_read(kind: str, tmp_path: Path) -> None:
    """Counting, decrypting, delaying: what a `get` does is done to every value."""
    store = open_seeing(kind, tmp_path)
    await fill(store, VALUES)
    expected = [await read_one(store, request) for request in REQUESTS]
    seen = Counter(store.seen)
    store.seen.clear()
    assert await read(store, REQUESTS) == dict(enumerate(expected))
    assert Counter(store.seen) == seen
    store.close()


class Upper(WrapperStore[Store]):
    """Changes every value on the way out."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        return None if value is None else prototype.buffer.from_bytes(value.to_bytes().upper())


@pytest.mark.parametrize("outside", AROUND)
async def test_a_wrapper_between_wrappers_sees_every_read(outside: str) -> None:
    source = NativeStore()
    await fill(source, {"a": b"lower", "b": b"case"})
    requests: list[Request] = ["a", "b", ("a", RangeByteRequest(1, 3)), "absent"]
    for inside in AROUND:
        store = wrap(outside, Upper(wrap(inside, source)))
        assert await read(store, requests) == {0: b"LOWER", 1: b"CASE", 2: b"OW", 3: None}


# ---------------------------------------------------------------------------
# Wrappers
# ---------------------------------------------------------------------------


class AskedStore(MemoryStore):
    """Keeps what it was asked for, and answers each `get_many` in one group, last things first."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[tuple[str, ByteRequest | None]]] = []
        self.gets: list[str] = []

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.gets.append(key)
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        self.asked.append([pair(request) for request in requests])
        group = []
        for index, (key, byte_range) in enumerate(self.asked[-1]):
            group.append((index, await super().get(key, prototype, byte_range)))
        if group:
            yield group[::-1]


@pytest.fixture
async def asked() -> AskedStore:
    store = AskedStore()
    await fill(store, VALUES)
    return store


@pytest.mark.parametrize("kind", ["wrapper", "logging"])
async def test_a_wrapper_passes_on_the_whole_request(asked: AskedStore, kind: str) -> None:
    store = wrap("wrapper", wrap(kind, asked))
    groups = [list(group) async for group in store.get_many(REQUESTS, prototype=PROTOTYPE)]
    assert asked.asked == [[pair(request) for request in REQUESTS]]
    assert asked.gets == []
    assert [[index for index, _ in group] for group in groups] == [list(range(len(REQUESTS)))[::-1]]


async def test_a_wrapper_takes_any_iterator(asked: AskedStore) -> None:
    """What a store's `get_many` returns need not be a generator."""

    class Iterator:
        def __init__(self, requests: Sequence[Request]) -> None:
            self.requests = list(enumerate(requests))

        def __aiter__(self) -> Iterator:
            return self

        async def __anext__(self) -> Group:
            if not self.requests:
                raise StopAsyncIteration
            index, request = self.requests.pop()
            return [(index, await asked.get(pair(request)[0], PROTOTYPE))]

    class IteratorStore(AskedStore):
        def get_many(
            self, requests: Sequence[Request], *, prototype: BufferPrototype
        ) -> AsyncIterator[Group]:
            return Iterator(requests)

    expected = {0: VALUES["digits"], 1: None}
    for kind in ("wrapper", "logging", "cache"):
        assert await read(wrap(kind, IteratorStore()), ["digits", "absent"]) == expected


class TaskGroupStore(MemoryStore):
    """A store whose `get_many` is written with a task group, which belongs to one task."""

    async def get_many(
        self, requests: Sequence[Request], *, prototype: BufferPrototype
    ) -> AsyncIterator[Group]:
        queue: asyncio.Queue[Group] = asyncio.Queue()

        async def fetch(index: int, key: str, byte_range: ByteRequest | None) -> None:
            await turns(index)
            if key == "broken":
                raise OSError("the cable is out")
            await queue.put([(index, await self.get(key, prototype, byte_range))])

        async with asyncio.TaskGroup() as tasks:
            for index, request in enumerate(requests):
                tasks.create_task(fetch(index, *pair(request)))
            for _ in requests:
                yield await queue.get()


@pytest.mark.parametrize("kind", ["wrapper", "logging", "cache"])
async def test_a_store_may_use_a_task_group(kind: str) -> None:
    store = wrap(kind, TaskGroupStore())
    assert await read(store, ["a", "b", "c"]) == {0: None, 1: None, 2: None}
    async with asyncio.timeout(60):
        with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="the cable is out")):
            await read(store, ["a", "b", "broken", "d"])


async def test_logging_is_of_one_call(asked: AskedStore, caplog: pytest.LogCaptureFixture) -> None:
    store = LoggingStore(asked, log_level="INFO")
    with caplog.at_level("INFO"):
        await read(store, ["digits", ("absent", RangeByteRequest(0, 1))])
    assert store.counter == {"get_many": 1}
    first, last = (record.getMessage() for record in caplog.records)
    assert "Calling AskedStore.get_many(digits,absent)" in first
    assert "Finished AskedStore.get_many(digits,absent)" in last


async def test_latency_is_paid_by_each_fetch(asked: AskedStore) -> None:
    store = LatencyStore(asked, get_latency=0.05)
    loop = asyncio.get_running_loop()
    with config.set({"async.concurrency": 4}):
        start = loop.time()
        await read(store, ["digits"] * 16)
        assert loop.time() - start > 0.15
    start = loop.time()
    await read(store, ["digits"] * 100)
    # One after the other they would need five seconds.
    assert loop.time() - start < 2.5
    assert len(asked.gets) == 116


class TestCacheStore:
    """`CacheStore.get_many` asks the source for what is not cached, at once."""

    async def test_misses_are_asked_for_in_one_call(self, asked: AskedStore) -> None:
        store = CacheStore(asked, cache_store=MemoryStore())
        expected = [await read_one(asked, request) for request in REQUESTS]
        assert await read(store, REQUESTS) == dict(enumerate(expected))
        assert asked.asked == [[pair(request) for request in REQUESTS]]
        assert store.cache_stats()["misses"] == len(REQUESTS)

    async def test_hits_are_not_asked_for(self, asked: AskedStore) -> None:
        store = CacheStore(asked, cache_store=MemoryStore())
        first = await read(store, REQUESTS)
        asked.asked.clear()
        assert await read(store, REQUESTS) == first
        absent = [pair(r) for index, r in enumerate(REQUESTS) if first[index] is None]
        assert asked.asked == [absent]
        assert store.cache_stats()["hits"] == len(REQUESTS) - len(absent)

    async def test_get_and_get_many_share_the_cache(self, asked: AskedStore) -> None:
        requests: list[Request] = ["digits", ("digits", RangeByteRequest(2, 4)), "group/c/0/1"]
        store = CacheStore(asked, cache_store=MemoryStore())
        for request in requests[:2]:
            await read_one(store, request)
        asked.gets.clear()
        values = await read(store, requests)
        assert asked.asked == [[("group/c/0/1", None)]]
        assert [await read_one(store, request) for request in requests] == list(
            dict(sorted(values.items())).values()
        )
        assert asked.gets == []

    async def test_statistics_are_those_of_get(self, asked: AskedStore) -> None:
        stores = [CacheStore(asked, cache_store=MemoryStore()) for _ in range(2)]
        requests: list[Request] = ["digits", "absent", ("digits", SuffixByteRequest(2))]
        for _ in range(3):
            await read(stores[0], requests)
            for request in requests:
                await read_one(stores[1], request)
        many, single = (store.cache_stats() for store in stores)
        assert many == single
        assert stores[0].cache_info() == stores[1].cache_info()

    async def test_what_is_too_old_is_asked_for_again(self, asked: AskedStore) -> None:
        store = CacheStore(asked, cache_store=MemoryStore(), max_age_seconds=0)
        await read(store, REQUESTS)
        await fill(asked, {"digits": b"9876543210"})
        values = await read(store, REQUESTS)
        assert values[0] == b"9876543210"
        assert asked.asked == [[pair(request) for request in REQUESTS]] * 2

    async def test_what_has_gone_is_dropped(self, asked: AskedStore) -> None:
        cache = MemoryStore()
        store = CacheStore(asked, cache_store=cache, max_age_seconds=0)
        await read(store, ["digits", ("digits", RangeByteRequest(0, 1))])
        assert await cache.exists("digits")
        await asked.delete("digits")
        values = await read(store, ["digits", ("digits", RangeByteRequest(0, 1))])
        assert values == {0: None, 1: None}
        assert not await cache.exists("digits")
        assert store.cache_info()["tracked_keys"] == 0

    async def test_what_the_cache_has_lost_is_asked_for_again(self, asked: AskedStore) -> None:
        cache = MemoryStore()
        store = CacheStore(asked, cache_store=cache)
        await read(store, ["digits", "group/c/0/1"])
        await cache.delete("digits")
        assert await read(store, ["digits", "group/c/0/1"]) == {0: VALUES["digits"], 1: b"\x00"}
        assert asked.asked[1:] == [[("digits", None)]]

    async def test_a_small_cache(self, asked: AskedStore) -> None:
        """Evicting while reading loses nothing."""
        store = CacheStore(asked, cache_store=MemoryStore(), max_size=30)
        await fill(asked, {f"{index}": bytes([index]) * 9 for index in range(20)})
        requests = [f"{index}" for index in range(20)]
        for _ in range(2):
            values = await read(store, requests)
            assert values == {index: bytes([index]) * 9 for index in range(20)}
            assert store.cache_info()["current_size"] <= 30

    async def test_hits_do_not_wait_for_the_source(self, gated: GatedStore) -> None:
        store = CacheStore(gated, cache_store=MemoryStore())
        gated.let("b", "e")
        await read(store, ["b", "e"])
        reading = Reading(store)
        await turns()
        assert sorted(reading.taken) == [1, 4]
        gated.let(*KEYS)
        await reading.task
        assert sorted(reading.taken) == list(range(8))

    async def test_a_failure_of_the_source_is_not_cached(self, gated: GatedStore) -> None:
        store = CacheStore(gated, cache_store=MemoryStore())
        gated.let("a")
        gated.fail("b", OSError("once"))
        with pytest.raises(OSError, match="once"):
            await read(store, ["a", "b"])
        gated.failures.clear()
        assert await read(store, ["a", "b"]) == {0: b"a", 1: b"b"}

    @pytest.mark.parametrize("reported", [[0, 0, 1], [0], [0, 1, 2], [0, -1]], ids=repr)
    @pytest.mark.parametrize("in_cache", [False, True])
    async def test_a_wrong_report_is_not_passed_on(
        self, reported: list[int], in_cache: bool
    ) -> None:
        """What the source or the cache says about the wrong request would make wrong data."""

        class Misreporting(MemoryStore):
            async def get(
                self,
                key: str,
                prototype: BufferPrototype | None = None,
                byte_range: ByteRequest | None = None,
            ) -> Buffer | None:
                return await super().get(key, prototype, byte_range)

            async def get_many(
                self, requests: Sequence[Request], *, prototype: BufferPrototype
            ) -> AsyncIterator[Group]:
                for index in reported:
                    yield [(index, None)]

        source, cache = MemoryStore(), MemoryStore()
        if in_cache:
            store = CacheStore(source, cache_store=Misreporting())
        else:
            store = CacheStore(Misreporting(), cache_store=cache)
        with pytest.raises(RuntimeError, match="get_many"):
            await read(store, ["a", "b"])
