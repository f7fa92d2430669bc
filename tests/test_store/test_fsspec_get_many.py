"""`FsspecStore.get_many` merges nearby byte ranges of one object, and agrees with `get`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config
from zarr.storage import FsspecStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

fsspec_asyn = pytest.importorskip("fsspec.asyn")
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import ReferenceFileSystem

PROTOTYPE = default_buffer_prototype()
DATA = bytes(range(256)) * 512
"""128 KiB."""

type Request = str | tuple[str, ByteRequest | None]


class Objects(fsspec_asyn.AsyncFileSystem):
    """A filesystem in memory that notes each request, and can be told how to answer."""

    protocol = "objects"
    cachable = False

    def __init__(self, **objects: bytes) -> None:
        super().__init__(asynchronous=True)
        self.objects = objects
        self.requests: list[tuple[str, int | None, int | None]] = []
        self.running = 0
        self.answer: Callable[[bytes, int | None, int | None], bytes] = lambda value, start, end: (
            value[start:end]
        )
        self.gate = asyncio.Event()
        self.gate.set()

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        self.requests.append((path, start, end))
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.answer(self.objects[path], start, end)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.objects[self._strip_protocol(path)]), "type": "file"}


class Bulk(Objects):
    """A filesystem that reads many ranges in one request."""

    async def _cat_ranges(
        self, paths: Any, starts: Any, ends: Any, on_error: str = "return", **kwargs: Any
    ) -> list[bytes]:
        self.requests.append(("many", len(paths), None))
        names = map(self._strip_protocol, paths)
        return [self.objects[n][s:e] for n, s, e in zip(names, starts, ends, strict=True)]


def references(fs: Objects, parts: dict[str, tuple[int, int]], **options: Any) -> FsspecStore:
    """Return a store whose keys are ranges `(start, end)` of the object `data`."""
    fo = {key: ["objects://data", start, end - start] for key, (start, end) in parts.items()}
    reference = ReferenceFileSystem(fo, fs={"objects": fs}, asynchronous=True, **options)
    return FsspecStore(reference, path="", read_only=True)


async def read(store: FsspecStore, requests: Sequence[Request]) -> list[bytes | None]:
    values: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE):
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
    assert await read(references(fs, CHUNKS), list(CHUNKS)) == WHOLE
    assert fs.requests == [("data", 0, 100_000)]


@pytest.mark.parametrize(("max_gap", "expected"), [(None, 1), (1000, 1), (999, 50), (-1, 50)])
async def test_gaps(max_gap: int | None, expected: int) -> None:
    fs = Objects(data=DATA)
    store = references(fs, CHUNKS, **({} if max_gap is None else {"max_gap": max_gap}))
    assert await read(store, list(CHUNKS)[::2]) == WHOLE[::2]
    assert len(fs.requests) == expected


async def test_the_size_of_a_merged_read_is_limited() -> None:
    fs = Objects(data=DATA)
    assert await read(references(fs, CHUNKS, max_block=10_000), list(CHUNKS)) == WHOLE
    assert len(fs.requests) == 10


async def test_a_filesystem_with_bulk_reads_gets_many_ranges_at_once() -> None:
    fs = Bulk(data=DATA)
    store = references(fs, CHUNKS, max_gap=-1)
    assert await read(store, list(CHUNKS)[::2]) == WHOLE[::2]
    assert fs.requests == [("many", 50, None)]


async def test_ranges_of_keys_in_a_directory() -> None:
    fs = Objects(**{"folder/data": DATA})
    store = FsspecStore(DirFileSystem("folder", fs, asynchronous=True), path="", read_only=True)
    ranges = [RangeByteRequest(10 * i, 10 * i + 5) for i in range(20)]
    requests = [("data", byte_range) for byte_range in ranges]
    assert await read(store, requests) == [DATA[r.start : r.end] for r in ranges]
    assert fs.requests == [("folder/data", 0, 195)]


async def test_references_in_a_directory() -> None:
    fs = Objects(data=DATA)
    inside = {f"folder/{key}": part for key, part in CHUNKS.items()}
    directory = DirFileSystem("folder", references(fs, inside).fs, asynchronous=True)
    store = FsspecStore(directory, path="", read_only=True)
    assert await read(store, list(CHUNKS)) == WHOLE
    assert fs.requests == [("data", 0, 100_000)]


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
    requests=st.lists(st.tuples(st.sampled_from("abcdefg"), BYTE_RANGES)),
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


async def test_a_missing_key_is_none_and_a_missing_object_is_what_get_makes_of_it() -> None:
    store = references(Objects(data=DATA), {"a": (0, 5)})
    assert await read(store, ["a", "b"]) == [DATA[:5], None]
    store = references(Objects(), {"a": (0, 5), "b": (5, 9)})
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


async def test_a_short_merged_read_serves_what_has_arrived() -> None:
    fs = Objects(data=DATA)
    fs.answer = lambda value, start, end: value[start:end][:50_500]
    assert await read(references(fs, CHUNKS), list(CHUNKS)) == WHOLE
    assert fs.requests[0] == ("data", 0, 100_000)
    assert len(fs.requests) == 1 + 50


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
    with pytest.raises(OSError, match="Short read"):
        await read(references(fs, CHUNKS, max_gap=-1), list(CHUNKS)[::2][:count])


async def test_references_beyond_the_end_of_the_object_are_served() -> None:
    """`get` returns what there is, in a few more requests."""
    fs = Objects(data=DATA[:99_990])
    assert (await read(references(fs, CHUNKS), list(CHUNKS)))[-1] == DATA[99_000:99_990]
    assert len(fs.requests) == 2


async def test_no_more_requests_at_once_than_allowed_and_none_left_after_a_failure() -> None:
    fs = Objects(data=DATA)
    fs.gate.clear()
    with config.set({"async.concurrency": 4}):
        store = references(fs, {**CHUNKS, "bad": (0, 10)}, max_gap=-1)
        reading = asyncio.create_task(read(store, [*list(CHUNKS)[::2]]))
        while fs.running < 4:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert fs.running == 4
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert fs.running == 0


async def test_a_consumer_that_stops_early() -> None:
    fs = Objects(data=DATA)
    store = references(fs, CHUNKS, max_gap=-1)
    groups = store.get_many(list(CHUNKS)[::2], prototype=PROTOTYPE)
    async with aclosing(cast("AsyncGenerator[Any]", groups)):
        await anext(groups)
    assert len(fs.requests) < 50
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
