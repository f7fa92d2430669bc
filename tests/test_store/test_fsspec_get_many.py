"""`FsspecStore.get_many` merges nearby byte ranges of one object, and agrees with `get`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.event_loop import turns, until
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config
from zarr.storage import FsspecStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

pytest.importorskip("fsspec.asyn")
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import ReferenceFileSystem

PROTOTYPE = default_buffer_prototype()
DATA = bytes(range(256)) * 512
"""128 KiB."""

type Request = str | tuple[str, ByteRequest | None]


def name_of(path: str) -> str:
    return path.rpartition("://")[2]


class Objects(AsyncFileSystem):  # type: ignore[misc]
    """A filesystem in memory that notes each request, and can be told how to answer."""

    protocol = "objects"
    cachable = False  # codespell:ignore cachable

    def __init__(self, **objects: bytes) -> None:
        super().__init__(asynchronous=True)
        self.objects = objects
        self.requests: list[tuple[str, int | None, int | None]] = []
        self.running = self.most = 0
        self.answer: Callable[[bytes, int | None, int | None], bytes] = lambda value, start, end: (
            value[start:end]
        )
        self.size_is_known = True
        self.held = 1 << 30  # requests of bytes from here on wait for ever

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        path = name_of(path)
        self.requests.append((path, start, end))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (asyncio.sleep(0) if (start or 0) < self.held else asyncio.Event().wait())
        finally:
            await turns(3)  # cleaning up takes a while
            self.running -= 1
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.answer(self.objects[path], start, end)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        size = len(self.objects[name_of(path)]) if self.size_is_known else None
        return {"name": path, "size": size, "type": "file"}


class Bulk(Objects):
    """A filesystem that reads many ranges in one request."""

    async def _cat_ranges(
        self, paths: Any, starts: Any, ends: Any, on_error: str = "return", **kwargs: Any
    ) -> list[bytes | Exception]:
        assert all(isinstance(each, list) for each in (paths, starts, ends))  # fsspec asks for it
        self.requests.append(("many", len(paths), None))
        return [
            self.objects[name][start:end] if name in self.objects else FileNotFoundError(name)
            for name, start, end in zip(map(name_of, paths), starts, ends, strict=True)
        ]


def references(fs: Objects, parts: dict[str, tuple[int, int]], **options: Any) -> FsspecStore:
    """Return a store whose keys are ranges `(start, end)` of the object `data`."""
    fo: dict[str, Any] = {"whole": ["objects://data"], "inline": "0123456789"}
    fo |= {key: ["objects://data", start, end - start] for key, (start, end) in parts.items()}
    reference = ReferenceFileSystem(fo, fs={"objects": fs}, asynchronous=True, **options)
    return FsspecStore(reference, path="", read_only=True)


async def read(
    store: FsspecStore, requests: Sequence[Request], limit: int | None = None
) -> list[bytes | None]:
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE, max_concurrency=limit):
        for index, value in group:
            assert index not in values
            values[index] = None if value is None else value.to_bytes()
    return [values[index] for index in range(len(requests))]


async def read_by_get(store: FsspecStore, requests: Sequence[Request]) -> list[bytes | None]:
    pairs = [(r, None) if isinstance(r, str) else r for r in requests]
    values = [await store.get(key, PROTOTYPE, byte_range) for key, byte_range in pairs]
    return [None if value is None else value.to_bytes() for value in values]


CHUNKS = {f"c/{i}": (1000 * i, 1000 * i + 1000) for i in range(100)}
WHOLE = [DATA[start:end] for start, end in CHUNKS.values()]


async def test_references_into_one_object_are_one_request() -> None:
    fs = Objects(data=DATA)
    store = references(fs, CHUNKS)
    assert await read(store, list(CHUNKS)) == WHOLE
    assert fs.requests == [("data", 0, 100_000)]
    assert store._is_open


@pytest.mark.parametrize(("max_gap", "expected"), [(None, 1), (1000, 1), (999, 50), (-1, 50)])
async def test_gaps(max_gap: int | None, expected: int) -> None:
    fs = Objects(data=DATA)
    store = references(fs, CHUNKS, **({} if max_gap is None else {"max_gap": max_gap}))
    assert await read(store, list(CHUNKS)[::2]) == WHOLE[::2]
    assert len(fs.requests) == expected


@pytest.mark.parametrize("cls", [Objects, Bulk])
async def test_ranges_that_overlap(cls: type[Objects]) -> None:
    fs = cls(data=DATA)
    store = references(fs, {"a": (100, 900), "b": (200, 300), "c": (700, 850), "d": (100, 900)})
    assert await read(store, ["a", "b", "c", "d"]) == [
        DATA[100:900], DATA[200:300], DATA[700:850], DATA[100:900],
    ]  # fmt: skip
    assert fs.requests == [("many", 1, None) if cls is Bulk else ("data", 100, 900)]


@pytest.mark.parametrize("limit", ["MAX_MERGED", "max_block"])
async def test_the_size_of_a_merged_read_is_limited(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_block": 10_000 if limit == "max_block" else 1 << 30}
    if limit == "MAX_MERGED":
        monkeypatch.setattr("zarr.storage._fsspec.MAX_MERGED", 10_000)
    fs = Objects(data=DATA)
    assert await read(references(fs, CHUNKS, **options), list(CHUNKS)) == WHOLE
    assert len(fs.requests) == 10


async def test_a_value_does_not_keep_a_merged_read_in_memory() -> None:
    store = references(Objects(data=DATA), CHUNKS)
    async for group in store.get_many(list(CHUNKS), prototype=PROTOTYPE):
        for _, value in group:
            assert value is not None
            base: Any = value.as_numpy_array().base
            base = memoryview(base).obj
            assert len(base) == 1000


async def test_requests_are_planned_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarr.storage._fsspec.REQUESTS_PER_PLAN", 10)
    fs = Objects(data=DATA)
    assert await read(references(fs, CHUNKS), list(CHUNKS)) == WHOLE
    assert len(fs.requests) == 10


@pytest.mark.parametrize(("max_merged", "expected"), [(2 << 20, [50]), (20_000, [20, 20, 10])])
async def test_a_filesystem_with_bulk_reads_gets_many_ranges_at_once(
    max_merged: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarr.storage._fsspec.MAX_MERGED", max_merged)
    fs = Bulk(data=DATA)
    store = references(fs, CHUNKS, max_gap=-1)
    assert await read(store, list(CHUNKS)[::2]) == WHOLE[::2]
    assert fs.requests == [("many", count, None) for count in expected]


async def test_ranges_of_several_objects() -> None:
    fs = Objects(**{"root/a": DATA, "root/b": DATA[::-1]})
    store = FsspecStore(fs, path="root", read_only=True)
    ranges = [RangeByteRequest(10 * i, 10 * i + 5) for i in range(20)]
    requests = [(key, byte_range) for byte_range in ranges for key in ("a", "b")]
    assert await read(store, requests) == await read_by_get(store, requests)
    assert fs.requests[:2] == [("root/a", 0, 195), ("root/b", 0, 195)]


async def test_references_to_several_filesystems() -> None:
    one, two = Bulk(data=DATA), Bulk(data=DATA[::-1])
    fo = {f"{i}": [f"{('one', 'two')[i % 2]}://data", 100 * i, 50] for i in range(20)}
    fs = ReferenceFileSystem(fo, fs={"one": one, "two": two}, asynchronous=True, max_gap=-1)
    store = FsspecStore(fs, path="", read_only=True)
    assert await read(store, list(fo)) == await read_by_get(store, list(fo))
    assert one.requests[0] == two.requests[0] == ("many", 10, None)


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"max_gap": -1}, 50)])
async def test_references_in_a_directory(options: dict[str, int], expected: int) -> None:
    fs = Objects(data=DATA)
    inside = references(fs, {f"x/y/{key}": part for key, part in CHUNKS.items()}, **options).fs
    directory = DirFileSystem("y", DirFileSystem("x", inside, asynchronous=True), asynchronous=True)
    store = FsspecStore(directory, path="c", read_only=True)
    assert await read(store, [key[2:] for key in CHUNKS][::2]) == WHOLE[::2]
    assert len(fs.requests) == expected


BYTE_RANGES = st.one_of(
    st.none(),
    st.builds(
        lambda start, n: RangeByteRequest(start, start + n), st.integers(0, 9), st.integers(1, 9)
    ),
    st.builds(OffsetByteRequest, st.integers(0, 9)),
    st.builds(SuffixByteRequest, st.integers(1, 9)),
)


@settings(max_examples=100)
@given(
    parts=st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.integers(0, 99), st.integers(1, 30)), min_size=1
    ),
    requests=st.lists(st.tuples(st.sampled_from([*"abcdefg", "whole", "inline"]), BYTE_RANGES)),
    bulk=st.booleans(),
    max_gap=st.integers(-1, 20),
)
async def test_any_requests_agree_with_get(
    parts: dict[str, tuple[int, int]], requests: list[Request], bulk: bool, max_gap: int
) -> None:
    fs = (Bulk if bulk else Objects)(data=DATA[:120])
    located = {key: (start, min(start + n, 120)) for key, (start, n) in parts.items()}
    store = references(fs, located, max_gap=max_gap)
    assert await read(store, requests) == await read_by_get(store, requests)


@pytest.mark.parametrize("cls", [Objects, Bulk])
async def test_a_missing_key_is_none_and_a_missing_object_is_what_get_makes_of_it(
    cls: type[Objects],
) -> None:
    store = references(cls(data=DATA), {"a": (0, 5)})
    assert await read(store, ["a", "b"]) == [DATA[:5], None]
    store = references(cls(), {"a": (0, 5), "b": (5, 9)})
    with pytest.raises(Exception) as by_get:
        await read_by_get(store, ["a"])
    with pytest.raises(type(by_get.value)):
        await read(store, ["a", "b"])


async def test_a_merged_read_that_fails_is_read_in_parts() -> None:
    """The error of one range does not affect the others, and is raised as `get` raises it."""
    fs = Objects(data=DATA)

    def answer(value: bytes, start: int | None, end: int | None) -> bytes:
        if start is not None and end is not None and start <= 5500 < end:
            raise PermissionError("not this range")
        return value[start:end]

    fs.answer = answer
    store = references(fs, CHUNKS)
    keys = [key for key in CHUNKS if key != "c/5"]
    assert await read(store, keys) == [WHOLE[int(key[2:])] for key in keys]
    with pytest.raises(Exception, match='"c/5"') as caught:  # as fsspec names the reference
        await read(store, list(CHUNKS))
    assert isinstance(caught.value.__cause__, PermissionError)


async def test_a_request_by_itself_that_fails_is_not_repeated() -> None:
    fs = Objects()
    with pytest.raises(Exception, match='"c/0"'):
        await read(references(fs, CHUNKS), ["c/0"])
    assert fs.requests == [("data", 0, 1000)]


async def test_only_what_failed_in_a_bulk_read_is_repeated() -> None:
    fs = Bulk(data=DATA)
    fo = {"a": ["objects://data", 0, 5], "b": ["objects://absent", 0, 5]}
    reference = ReferenceFileSystem(fo, fs={"objects": fs}, asynchronous=True)
    with pytest.raises(Exception, match='"b"'):
        await read(FsspecStore(reference, path="", read_only=True), ["a", "b"])
    assert fs.requests == [("many", 2, None), ("absent", 0, 5)]


async def test_a_short_merged_read_serves_what_has_arrived() -> None:
    fs = Objects(data=DATA)
    fs.answer = lambda value, start, end: value[start:end][:50_500]
    assert await read(references(fs, CHUNKS), list(CHUNKS)) == WHOLE
    assert fs.requests[0] == ("data", 0, 100_000)
    assert len(fs.requests) == 1 + 50
    assert fs.most == 10  # the others are read side by side


@pytest.mark.parametrize("count", [1, 100])
async def test_a_server_that_ignores_ranges_is_an_error(count: int) -> None:
    fs = Objects(data=DATA)
    fs.answer = lambda value, start, end: value
    with pytest.raises(OSError, match="ignored the byte range"):
        await read(references(fs, CHUNKS), list(CHUNKS)[-count:])


@pytest.mark.parametrize("count", [1, 100])
async def test_a_value_shorter_than_its_range_is_an_error(count: int) -> None:
    fs = Objects(data=DATA)
    fs.answer = lambda value, start, end: value[start:end][:-1]
    with pytest.raises(OSError, match="Short read") as caught:
        await read(references(fs, CHUNKS, max_gap=-1), list(CHUNKS)[::2][:count])
    (note,) = caught.value.__notes__
    assert note.startswith("While reading 'c/")


async def test_a_short_value_is_returned_if_the_size_of_its_object_is_not_known() -> None:
    fs = Objects(data=DATA)
    fs.answer = lambda value, start, end: value[start:end][:-1]
    fs.size_is_known = False
    assert await read(references(fs, CHUNKS), ["c/0"]) == [WHOLE[0][:-1]]


async def test_references_beyond_the_end_of_the_object_are_served() -> None:
    """`get` returns what there is, in a few more requests."""
    fs = Objects(data=DATA[:99_990])
    assert (await read(references(fs, CHUNKS), list(CHUNKS)))[-1] == DATA[99_000:99_990]
    assert len(fs.requests) == 2


@pytest.mark.parametrize("are_merged", [False, True])
@pytest.mark.parametrize("argument", [None, 4])
async def test_no_more_requests_at_once_than_allowed_and_none_left(
    argument: int | None, are_merged: bool
) -> None:
    fs = Objects(data=DATA)
    fs.held = 0
    options = {"max_block": 2000} if are_merged else {"max_gap": -1}
    keys = list(CHUNKS) if are_merged else list(CHUNKS)[::2]
    with config.set({"async.concurrency": 20 if argument else 4}):
        reading = asyncio.create_task(read(references(fs, CHUNKS, **options), keys, argument))
        await until(lambda: fs.running)
        await turns()
        assert fs.running == 4
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert fs.running == 0


async def test_a_consumer_that_stops_early() -> None:
    fs = Objects(data=DATA)
    fs.held = 5000
    groups = references(fs, CHUNKS, max_gap=-1).get_many(list(CHUNKS)[::2], prototype=PROTOTYPE)
    with config.set({"async.concurrency": 4}):
        async with aclosing(cast("AsyncGenerator[Any]", groups)):
            await anext(groups)
            await turns()
            assert 0 < fs.running <= 4
    assert fs.running == 0


async def test_a_get_that_was_replaced_is_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = Objects(data=DATA)
    seen: list[str] = []
    get = FsspecStore.get

    async def noting(self: FsspecStore, key: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(FsspecStore, "get", noting)
    assert await read(references(fs, CHUNKS), list(CHUNKS)) == WHOLE
    assert sorted(seen) == sorted(CHUNKS)
