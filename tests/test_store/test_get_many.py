"""`Store.get_many`: what it promises, kept by its default, by every store and by every wrapper.

Whatever serves a request, it gives what `get` gives, reports every request once, keeps to its
limits, and leaves nothing behind. A class that overrides `get` alone sees all reads in its `get`.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.event_loop import nothing_left_behind, turns
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
    noting,
    paired_with,
)
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
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
from zarr.testing.store import LatencyStore, StoreTests

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


async def read(
    store: Store, requests: Sequence[Request], max_concurrency: int | None = None
) -> dict[int, bytes | None]:
    """What `get_many` reports, by index. No index may be reported twice."""
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(
        requests, prototype=PROTOTYPE, max_concurrency=max_concurrency
    ):
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


# --- every store gives what `get` gives -------------------------------------------------------

VALUES = {"digits": b"0123456789", "group/c/0/0": bytes(range(256)) * 20, "group/c/0/1": b"\x00"}
REQUESTS: list[Request] = [
    *("digits", "absent", "group/c/0", "group/c/0/1", "digits", "group/c/0/0", ("digits", None)),
    *(("digits", RangeByteRequest(start, start + 3)) for start in (2, 5, 2, 3)),
    *((key, OffsetByteRequest(7)) for key in ("digits", "absent", "group/c/0/0")),
    *((key, SuffixByteRequest(3)) for key in ("digits", "absent", "group/c/0/0")),
    *(("group/c/0/0", RangeByteRequest(*at)) for at in ((100, 2000), (0, 5120))),
    ("absent", RangeByteRequest(0, 1)),
    *(f"absent/{index}" for index in range(100)),
]
UNUSUAL_RANGES: list[Any] = [
    *("0-3", (0, 3), 5),
    *(RangeByteRequest(*at) for at in ((0, 0), (4, 4), (8, 3), (5, 50), (10, 12), (20, 30))),
    *(RangeByteRequest(*at) for at in ((-3, 5), (-8, -3), (2, -3))),
    *(OffsetByteRequest(offset) for offset in (10, 50, -2)),
    *(SuffixByteRequest(length) for length in (0, 10, 99, -2)),
]

BASES = [MemoryStore, LocalStore, ZipStore, FsspecStore, ObjectStore, WrapperStore]
WRAPPERS = ["bare", "wrapper", "logging", "latency", "cache", "nested"]


def open_store(base: type[Store], path: Path, cls: Any = None) -> Store:
    """A store of the class `base`, or of its subclass `cls`."""
    cls = cls or base
    if base is LocalStore:
        return cls(path / "local")  # type: ignore[no-any-return]
    if base is ZipStore:
        return cls(path / "store.zip", mode="w")  # type: ignore[no-any-return]
    if base is FsspecStore:
        pytest.importorskip("fsspec.implementations.asyn_wrapper")
        return cls.from_url(f"memory://{path.as_posix()}")  # type: ignore[no-any-return]
    if base is ObjectStore:
        return cls(pytest.importorskip("obstore.store").MemoryStore())  # type: ignore[no-any-return]
    return cls(MemoryStore()) if base is WrapperStore else cls()  # type: ignore[no-any-return]


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
    return LoggingStore(wrap("cache", WrapperStore(LatencyStore(store))))


async def fill(store: Store, values: dict[str, bytes]) -> None:
    for key, value in values.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))


@pytest.fixture(params=[*BASES[:-1], *WRAPPERS[1:]], ids=lambda p: getattr(p, "__name__", p))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Store]:
    is_wrapper = isinstance(request.param, str)
    base = LocalStore if is_wrapper else request.param
    store = wrap(request.param if is_wrapper else "bare", open_store(base, tmp_path))
    await fill(store, VALUES)
    yield store
    store.close()


async def test_every_request_is_answered_as_get_answers_it(store: Store) -> None:
    expected = [await read_one(store, request) for request in REQUESTS]
    assert await read(store, REQUESTS) == dict(enumerate(expected))


async def test_unusual_ranges(store: Store) -> None:
    """For ranges that are wrong, reversed, or outside of the value, `get_many` does as `get`."""
    for byte_range in UNUSUAL_RANGES:
        request: Request = ("digits", byte_range)
        expected = await outcome(read_one(store, request))
        others = await outcome(read(store, ["group/c/0/1", request, "group/c/0/1"]))
        if isinstance(expected, tuple):
            assert others == expected, request
        else:
            assert others == {0: b"\x00", 1: expected, 2: b"\x00"}, request


async def test_a_prototype_is_honoured(store: Store) -> None:
    class OtherBuffer(PROTOTYPE.buffer):  # type: ignore[misc,name-defined]
        pass

    prototype = PROTOTYPE._replace(buffer=OtherBuffer)
    async for group in store.get_many(["digits", ("digits", None)], prototype=prototype):
        for _, value in group:
            assert isinstance(value, OtherBuffer)


async def test_a_closed_store(store: Store) -> None:
    """What `get` does on a closed store, `get_many` does."""
    store.close()
    values = await outcome(read(store, ["digits", "absent"]))
    store.close()
    digits = await outcome(read_one(store, "digits"))
    absent = await outcome(read_one(store, "absent"))
    assert values == {0: digits, 1: absent}


NO_REQUESTS: list[Any] = [
    *("digits", "", b"digits", [None], [3], ["digits", 3], [("digits",)]),
    *([("digits", None, None)], ["digits", "absent", None, "digits"], [RangeByteRequest(0, 1)]),
]


async def test_what_is_not_a_request(store: Store) -> None:
    for requests in NO_REQUESTS:
        with pytest.raises(TypeError, match="Expected a"):
            await read(store, requests)


# --- limits, failures, and coming to an end ---------------------------------------------------


class Watched(MemoryStore):
    """Every value is its key. The key "bad" raises an error, and "slow" waits for ever."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.running = self.most = 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if self.error is not None and key == "bad":
            raise self.error
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (asyncio.Event().wait() if key == "slow" else turns(3))
        finally:
            await turns(3)  # cleaning up takes a while
            self.running -= 1
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
    store = wrap(around, Watched(error))
    for requests in (["bad"], ["a", "bad", "b"], [("bad", RangeByteRequest(0, 1))] * 3):
        with pytest.raises(BaseException) as caught:
            await read(store, requests)
        # Python itself makes a RuntimeError of a StopAsyncIteration.
        assert error in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize("around", ["bare", "wrapper", "logging", "latency"])
@pytest.mark.parametrize(
    ("setting", "argument", "most"), [(1, None, 1), (10, None, 10), (None, None, 50), (10, 3, 3)]
)
async def test_no_more_requests_are_in_flight_than_allowed(
    around: str, setting: int | None, argument: int | None, most: int
) -> None:
    """`max_concurrency` counts, and without it `async.concurrency`."""
    store = Watched()
    with config.set({"async.concurrency": setting}):
        values = await read(wrap(around, store), ["a"] * 50, max_concurrency=argument)
    assert values == dict.fromkeys(range(50), b"a")
    assert store.most == most


@pytest.mark.parametrize("around", ["bare", "wrapper", "logging", "latency"])
async def test_what_is_in_flight_has_ended_when_the_iteration_is_closed(around: str) -> None:
    store = Watched()
    groups = wrap(around, store).get_many(["a", *["slow"] * 50], prototype=PROTOTYPE)
    async with aclosing(cast("AsyncGenerator[Any]", groups)):
        await anext(groups)
        assert store.running > 5
    assert store.running == 0


# --- a `get` that was overridden or replaced sees every read ----------------------------------


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


class Child(Native):
    pass


@pytest.mark.parametrize("cls", [Native, Child])
async def test_get_many_may_do_without_get(cls: type[Native]) -> None:
    """A wrapper forwards the whole request."""
    store = cls()
    await fill(store, {"a": b"1"})
    for each in (store, WrapperStore(WrapperStore(store))):
        assert await read(each, ["a", "b", ("a", None)]) == {0: b"1", 1: None, 2: b"1"}


def recording(get: Any, seen: list[str]) -> Any:
    """Note the keys that `get` is called with, as a retry or tracing decorator might."""

    @functools.wraps(get)
    async def wrapped(self: Store, key: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(key)
        return await get(self, key, *args, **kwargs)

    return wrapped


@pytest.mark.parametrize("how", ["subclass", "mixin", "class attribute", "instance"])
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
async def test_a_get_of_ones_own_sees_every_read(
    base: Any, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    get = recording(base.get, seen)
    cls = base
    if how == "subclass":
        cls = type("Child", (type("Parent", (base,), {"get": get}),), {})
    elif how == "mixin":
        cls = type("Child", (type("Mixin", (), {"get": get}), base), {})
    elif how == "class attribute":
        monkeypatch.setattr(base, "get", get)
    store = open_store(base, tmp_path, cls)
    if how == "instance":
        store.get = get.__get__(store)  # type: ignore[method-assign]
    await fill(store, VALUES)
    for reading in (store, WrapperStore(store)):
        seen.clear()
        expected = [await read_one(reading, request) for request in REQUESTS]
        each = Counter(seen)
        seen.clear()
        assert await read(reading, REQUESTS) == dict(enumerate(expected))
        assert Counter(seen) == each
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


# --- the tests that every store should pass notice what is wrong with one ---------------------


class Conformance(StoreTests[MemoryStore, cpu.Buffer]):
    __test__ = False
    store_cls, buffer_cls = MemoryStore, cpu.Buffer

    async def set(self, store: MemoryStore, key: str, value: Buffer) -> None:
        store._store_dict[key] = value


class Broken(MemoryStore):
    """A store whose `get_many` breaks a promise."""

    def __init__(self, promise: str) -> None:
        super().__init__()
        self.promise = promise
        self.left: list[asyncio.Task[Any]] = []

    async def get_many(self, requests: Any, **kwargs: Any) -> AsyncIterator[Group]:
        if self.promise == "open" and not self._is_open:
            return
        if self.promise == "tasks":
            self.left.append(asyncio.create_task(asyncio.sleep(30)))
        if self.promise == "ranges":
            requests = [pair(request)[0] for request in requests]
        try:
            async for group in super().get_many(requests, **kwargs):
                if self.promise == "once":
                    yield group
                if self.promise == "index":
                    group = [(index ^ 1, value) for index, value in group]
                if self.promise != "all" or group[0][0]:
                    yield group
        except (TypeError, ValueError):
            if self.promise != "errors":
                raise


@pytest.mark.parametrize(
    ("promise", "test"),
    [
        *((promise, "agrees_with_get") for promise in ("", "all", "once", "index", "ranges")),
        *((promise, "not_open") for promise in ("", "open")),
        *((promise, "raises") for promise in ("", "errors")),
        *((promise, "closed_early") for promise in ("", "tasks")),
    ],
)
async def test_a_broken_promise_fails_a_test_of_every_store(promise: str, test: str) -> None:
    tests, store = cast("Any", Conformance)(), Broken(promise)
    failure = pytest.raises((AssertionError, pytest.fail.Exception)) if promise else nullcontext()
    with failure:
        await getattr(tests, f"test_get_many_{test}")(store)
    for task in store.left:
        task.cancel()


class Unnamed(MemoryStore):
    def __str__(self) -> str:
        raise RuntimeError


def test_a_note_neither_hides_an_error_nor_is_repeated_nor_has_credentials() -> None:
    error = OSError("down")
    filesystem = pytest.importorskip("fsspec").filesystem("http", asynchronous=True)
    store = FsspecStore(filesystem, path="http://me:secret@host/a?sig=1")
    for each in (Unnamed(), store, store):
        with pytest.raises(OSError, match="down"), noting(each, "c/0"):
            raise error
    (note,) = error.__notes__
    assert note == "While reading 'c/0' from <FsspecStore(HTTPFileSystem, http://host/a)>."
