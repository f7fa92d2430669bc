"""Tests for `Store.get_many`: what it promises, kept by every store and by every wrapper.

`Store.get_many` has a default that is built on `get`; stores and wrappers may have a faster one.
Whatever serves a request, it gives what `get` gives, reports every request once, keeps to its
limits, and leaves nothing behind. A class that overrides `get` alone sees all reads in its `get`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from tests.event_loop import nothing_left_behind, turns
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
    paired_with,
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
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
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
WRAPPERS = ["bare", "wrapper", "logging", "latency", "cache", "nested"]
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


async def test_a_prototype_is_honoured(store: Store) -> None:
    class OtherBuffer(PROTOTYPE.buffer):  # type: ignore[misc,name-defined]
        pass

    prototype = PROTOTYPE._replace(buffer=OtherBuffer)
    async for group in store.get_many(["digits", ("digits", None)], prototype=prototype):
        for _, value in group:
            assert isinstance(value, OtherBuffer)


async def test_many_requests(store: Store) -> None:
    """A few keys are there, most are not, and none is confused with another."""
    present = {f"many/{index}": str(index).encode() for index in range(0, 150, 25)}
    await fill(store, present)
    requests = [f"many/{index}" for index in range(150)]
    values = await read(store, requests)
    assert values == {index: present.get(key) for index, key in enumerate(requests)}


async def test_a_closed_store(store: Store) -> None:
    """What `get` does on a closed store, `get_many` does."""
    store.close()
    values = await outcome(read(store, ["digits", "absent"]))
    store.close()
    digits = await outcome(read_one(store, "digits"))
    absent = await outcome(read_one(store, "absent"))
    assert values == {0: digits, 1: absent}


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
    ["digits", "absent", None, "digits"],
    [RangeByteRequest(0, 1)],
]


async def test_what_is_not_a_request(store: Store) -> None:
    for requests in NO_REQUESTS:
        with pytest.raises(TypeError, match="Expected a"):
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
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
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
# A failure is raised as itself, and is never an absent key
# ---------------------------------------------------------------------------


class FailingStore(MemoryStore):
    """Fails for one key; every other value is its key."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key == "bad":
            raise self.error
        await turns(1)
        return PROTOTYPE.buffer.from_bytes(key.encode())


class Unusual(BaseException):
    """No `Exception`."""


@pytest.mark.parametrize("around", WRAPPERS)
@pytest.mark.parametrize(
    "error",
    [
        OSError("reset"),
        KeyError("bad"),
        FileNotFoundError("bad"),
        TimeoutError(),
        ExceptionGroup("several", [OSError("reset")]),
        StopAsyncIteration(),
        Unusual("bad"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure_is_never_an_absent_key_nor_the_end(
    error: BaseException, around: str
) -> None:
    store = wrap(around, FailingStore(error))
    for requests in (["bad"], ["a", "bad", "b"], [("bad", RangeByteRequest(0, 1))] * 3):
        with pytest.raises(BaseException) as caught:
            await read(store, requests)
        # Python itself makes a RuntimeError of a StopAsyncIteration.
        assert error in (caught.value, caught.value.__cause__)


async def test_the_default_keeps_to_the_concurrency() -> None:
    running = most = 0

    class Counting(MemoryStore):
        async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
            nonlocal running, most
            running, most = running + 1, max(most, running + 1)
            await turns(3)
            running -= 1
            return None

    for limit in (1, 3, 10):
        most = 0
        with config.set({"async.concurrency": limit}):
            assert await read(Counting(), ["a"] * 50) == dict.fromkeys(range(50))
        assert most == limit


# ---------------------------------------------------------------------------
# A `get` that was overridden or replaced sees every read
# ---------------------------------------------------------------------------


class Native(MemoryStore):
    """A store whose `get_many` does not call its `get`."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        raise AssertionError("get_many does not need it")

    @paired_with(get)
    async def get_many(
        self,
        requests: Sequence[Request],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Group]:
        for index, request in enumerate(requests):
            key, byte_range = pair(request)
            yield [(index, await MemoryStore.get(self, key, prototype, byte_range))]


def seeing(seen: list[str]) -> Any:
    """A decorator that notes the keys that a `get` is called with."""

    def decorate(get: Any) -> Any:
        @functools.wraps(get)
        async def wrapped(self: Store, key: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(key)
            return await get(self, key, *args, **kwargs)

        return wrapped

    return decorate


async def test_get_many_may_do_without_get() -> None:
    class Child(Native):
        pass

    for store in (Native(), Child()):
        await fill(store, {"a": b"1"})
        assert await read(store, ["a", "b"]) == {0: b"1", 1: None}


STORES_OF_ZARR = [MemoryStore, LocalStore, ZipStore, FsspecStore, ObjectStore, WrapperStore]


def open_as(cls: type[Store], base: type[Store], path: Path) -> Store:
    """A store of class `cls`, which is `base` or a subclass."""
    made: Any = cls
    if base is LocalStore:
        return made(path / "local")  # type: ignore[no-any-return]
    if base is ZipStore:
        return made(path / "store.zip", mode="w")  # type: ignore[no-any-return]
    if base is FsspecStore:
        pytest.importorskip("fsspec.implementations.asyn_wrapper")
        return made.from_url(f"memory://{path.as_posix()}")  # type: ignore[no-any-return]
    if base is ObjectStore:
        return made(pytest.importorskip("obstore.store").MemoryStore())  # type: ignore[no-any-return]
    return made(MemoryStore()) if base is WrapperStore else made()  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["subclass", "mixin", "class attribute", "instance"])
@pytest.mark.parametrize("base", STORES_OF_ZARR, ids=lambda base: base.__name__)
async def test_a_get_of_ones_own_sees_every_read(
    base: Any, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    get = seeing(seen)(base.get)
    cls = base
    if how == "subclass":
        cls = type("Child", (type("Parent", (base,), {"get": get}),), {})
    elif how == "mixin":
        cls = type("Child", (type("Mixin", (), {"get": get}), base), {})
    elif how == "class attribute":
        monkeypatch.setattr(base, "get", get)
    store = open_as(cls, base, tmp_path)
    if how == "instance":
        store.get = get.__get__(store)  # type: ignore[method-assign]
    await fill(store, VALUES)
    for reading in (store, WrapperStore(store)):
        seen.clear()
        expected = [await read_one(store, request) for request in REQUESTS]
        each = Counter(seen)
        seen.clear()
        assert await read(reading, REQUESTS) == dict(enumerate(expected))
        # A wrapper's own `get` is replaced too where that of its class is.
        times = (
            2 if reading is not store and base is WrapperStore and how == "class attribute" else 1
        )
        assert Counter(seen) == Counter({key: count * times for key, count in each.items()})
    store.close()


class Upper(WrapperStore[Store]):
    """Changes every value on the way out."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        return None if value is None else prototype.buffer.from_bytes(value.to_bytes().upper())


@pytest.mark.parametrize("outside", WRAPPERS)
@pytest.mark.parametrize("inside", WRAPPERS)
async def test_a_wrapper_between_wrappers_sees_every_read(outside: str, inside: str) -> None:
    source = MemoryStore()
    await fill(source, {"a": b"lower", "b": b"case"})
    store = wrap(outside, Upper(wrap(inside, source)))
    requests: list[Request] = ["a", "b", ("a", RangeByteRequest(1, 3)), "absent"]
    assert await read(store, requests) == {0: b"LOWER", 1: b"CASE", 2: b"OW", 3: None}


async def test_a_wrapper_forwards_the_whole_request() -> None:
    store = Native()
    await fill(store, VALUES)
    values = await read(WrapperStore(WrapperStore(store)), REQUESTS)
    assert values == await read(store, REQUESTS)
