"""Tests for the `get_many` of the stores that zarr reads by itself, without fsspec.

What every store promises is tested in `test_get_many.py`. Here each one is asked for odd keys and
odd ranges, in which its own way must agree with `get`, and must be what it was written for: few
opened files, few hops to threads, few requests, few bytes.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import threading
import zipfile
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.event_loop import nothing_left_behind, until
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import (
    GpuMemoryStore,
    LocalStore,
    ManagedMemoryStore,
    MemoryStore,
    ObjectStore,
    ZipStore,
    _blocking,
    _local,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

type Request = str | tuple[str, ByteRequest | None]

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
            values[index] = None if value is None else value.to_bytes()
    return values


async def read_one(store: Store, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    value = await store.get(key, prototype=PROTOTYPE, byte_range=byte_range)
    return None if value is None else value.to_bytes()


async def outcome[T](reading: Coroutine[Any, Any, T]) -> T | type[BaseException]:
    """What a read returns, or the type of what it raises."""
    try:
        return await reading
    except Exception as error:  # noqa: BLE001
        return type(error)


async def fill(store: Store, values: dict[str, bytes]) -> None:
    for key, value in values.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))


# ---------------------------------------------------------------------------
# Agreement with `get`
# ---------------------------------------------------------------------------

VALUES = {
    "a": bytes(range(200)),
    "b/c": b"x" * 70000,
    "b/.hidden": b"hid",
    "empty": b"",
    "c.0": b"dot",
    "é/ü": b"uni",
}
KEYS = [
    *VALUES,
    *("absent", "b", "dir", "", "..", "a/", "a//", "./a", "b//c", "b/../a", "/a", "a/b", "loop"),
    *("\udcff", "a\0b", "b\\c", "zip/../..//"),
]
RANGES: list[Any] = [
    None,
    *(RangeByteRequest(0, 10), RangeByteRequest(3, 200), RangeByteRequest(0, 200)),
    *(RangeByteRequest(5, 5), RangeByteRequest(9, 3), RangeByteRequest(190, 300)),
    *(RangeByteRequest(200, 210), RangeByteRequest(500, 600), RangeByteRequest(-3, 5)),
    *(RangeByteRequest(0, -1), RangeByteRequest(3, -1)),
    *(OffsetByteRequest(0), OffsetByteRequest(50), OffsetByteRequest(200)),
    *(OffsetByteRequest(900), OffsetByteRequest(-5)),
    *(SuffixByteRequest(0), SuffixByteRequest(5), SuffixByteRequest(900), SuffixByteRequest(-4)),
    *("bad", (0, 3), 5),
]


def archive(*, compression: int = zipfile.ZIP_STORED, streamed: bool = False) -> bytes:
    """An archive with `VALUES` and a directory. One that is `streamed` has data descriptors."""
    buffer = io.BytesIO()
    target = type("Stream", (), {"write": buffer.write, "flush": buffer.flush})()
    with zipfile.ZipFile(target if streamed else buffer, "w", compression) as members:
        for key, value in VALUES.items():
            members.writestr(key, value)
        members.mkdir("dir")
    return buffer.getvalue()


def archive_with_extra_fields() -> bytes:
    """Some stand in the directory, of others more stand before the data."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        for key, value in VALUES.items():
            member = zipfile.ZipInfo(key)
            member.extra = struct.pack("<2H3s", 0xCAFE, 3, b"any")
            with members.open(member, "w", force_zip64=key == "a") as file:
                file.write(value)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "stored": archive,
    "deflated": lambda: archive(compression=zipfile.ZIP_DEFLATED),
    "streamed": lambda: archive(streamed=True),
    "streamed-deflated": lambda: archive(compression=zipfile.ZIP_DEFLATED, streamed=True),
    "after-junk": lambda: b"PK\3\4 junk" + archive(),
    "extra-fields": archive_with_extra_fields,
    # The sizes of the names in all headers stay as they were; so do those of the values.
    "cp437": lambda: archive().replace(b"c.0", b"c\x820").replace(b"empty", b"\x80mpt\xff"),
    "another-name-before-the-data": lambda: archive().replace(b"c.0", b"c.1", 1),
    "wrong-checksums": lambda: archive().replace(b"xxxx", b"xxyx", 1).replace(b"dot", b"dog", 1),
    "wrong-signature": lambda: archive().replace(b"PK\3\4", b"PK\4\3", 2),
}


async def open_store(kind: str, path: Path) -> Store:
    """A store of a kind, with `VALUES` in it."""
    store: Any
    kind, _, variant = kind.partition(":")
    if kind == "zip" and variant in ARCHIVES:
        (path / "store.zip").write_bytes(ARCHIVES[variant]())
        return await ZipStore.open(path / "store.zip", mode="r")
    match kind, variant:
        case "memory", _:
            store = MemoryStore()
        case "managed", _:
            store = ManagedMemoryStore(name="native", path="pre/fix")
        case "gpu", _:
            pytest.importorskip("cupy")
            store = GpuMemoryStore()
        case "local", _:
            store = LocalStore(path / "local")
            (path / "local" / "dir").mkdir(parents=True)
            (path / "local" / "loop").symlink_to("loop")
        case "zip", "being-written":
            store = ZipStore(path / "store.zip", mode="w")
        case "zip", "being-written-deflated":
            store = ZipStore(path / "store.zip", mode="w", compression=zipfile.ZIP_DEFLATED)
        case "zip", "file":
            return await ZipStore.open(io.BytesIO(archive()), mode="r")
        case "object", "memory":
            store = ObjectStore(pytest.importorskip("obstore.store").MemoryStore())
        case "object", "local":
            stores = pytest.importorskip("obstore.store")
            store = ObjectStore(stores.LocalStore(path / "object", mkdir=True))
        case _:
            raise AssertionError(kind)
    await fill(store, VALUES)
    return store  # type: ignore[no-any-return]


async def disagreements(store: Store, keys: Sequence[str]) -> list[Request]:
    """The keys and ranges for which `get_many` gives something else than `get` does."""
    different: list[Request] = []
    usual = RangeByteRequest(1, 3)
    other = await outcome(read_one(store, "b/c", usual))
    for key in keys:
        neighbour = await outcome(read_one(store, key, usual))
        for byte_range in RANGES:
            expected = await outcome(read_one(store, key, byte_range))
            requests = [(key, usual), (key, byte_range), ("b/c", usual), (key, byte_range)]
            values = [neighbour, expected, other, expected]
            for count in (slice(1, 2), slice(None)):
                result = await outcome(read(store, requests[count]))
                errors: list[Any] = [value for value in values[count] if isinstance(value, type)]
                if result not in (errors or [dict(enumerate(values[count]))]):
                    different.append((key, byte_range))
    return different


@pytest.mark.parametrize(
    "kind",
    [
        *("memory", "managed", "gpu", "local", "object:memory", "object:local"),
        *("zip:being-written", "zip:being-written-deflated", "zip:file"),
        # What `zipfile` checks of a range depends on the version of Python.
        *(f"zip:{variant}" for variant in ARCHIVES if variant != "wrong-checksums"),
    ],
)
async def test_odd_keys_and_ranges(kind: str, tmp_path: Path) -> None:
    store = await open_store(kind, tmp_path)
    assert await disagreements(store, [*KEYS, "cé0", "Çmpt\xa0"]) == []
    store.close()


async def test_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    store = await open_store("zip:wrong-checksums", tmp_path)
    for key in ("b/c", "c.0"):
        with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
            await read(store, ["a", key])
    assert await read(store, ["a", ("c.0", RangeByteRequest(0, 2))]) == {0: VALUES["a"], 1: b"do"}
    store.close()


# ---------------------------------------------------------------------------
# LocalStore, MemoryStore
# ---------------------------------------------------------------------------


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage looks as if it took no time at all."""
    monkeypatch.setattr(_blocking, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture
async def hops(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """What has been handed to worker threads."""
    calls: list[Callable[..., Any]] = []
    loop = asyncio.get_running_loop()
    run_in_executor = loop.run_in_executor

    def spy(executor: Any, function: Callable[..., Any], *args: Any) -> Any:
        calls.append(function)
        return run_in_executor(executor, function, *args)

    monkeypatch.setattr(loop, "run_in_executor", spy)
    return calls


async def test_a_file_is_opened_once_for_all_its_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store("local", tmp_path)
    opened: list[int] = []
    closed: list[int] = []
    os_open, os_close = os.open, os.close

    def spy_open(path: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = os_open(path, *args, **kwargs)
        opened.extend([descriptor] * str(path).startswith(str(tmp_path)))
        return descriptor

    def spy_close(descriptor: int) -> None:
        closed.append(descriptor)
        os_close(descriptor)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "close", spy_close)
    monkeypatch.setattr(_local, "_get", None)  # a `Path` and a file object are not needed
    monkeypatch.setattr(_blocking, "SHARE_SECONDS", 60)
    requests = [(key, RangeByteRequest(i, i + 1)) for i in range(20) for key in ("a", "b/c")]
    values = await read(store, requests)
    assert values == {i: VALUES[key][at.start : at.end] for i, (key, at) in enumerate(requests)}
    assert (len(opened), Counter(closed)) == (2, Counter(opened))
    with pytest.raises(TypeError):
        await read(store, ["a", ("b/c", RangeByteRequest(3, 2))])  # left to `_get`
    async for _ in store.get_many(["a", "b/c"], prototype=PROTOTYPE):
        break
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert Counter(closed) == Counter(opened)


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize(("nbytes", "expected"), [(1, 8), (300 << 10, 2)])
async def test_few_hops_to_threads(
    tmp_path: Path, hops: list[Callable[..., Any]], nbytes: int, expected: int
) -> None:
    """A thousand small files take 8 shares of 128; of large ones a share has two mebibytes."""
    store = await LocalStore.open(tmp_path)
    await store.set("large", PROTOTYPE.buffer.from_bytes(bytes(nbytes)))
    hops.clear()
    if nbytes == 1:
        assert len(await read(store, [f"{i}" for i in range(999)] + ["large"])) == 1000
    else:
        assert len(await read(store, ["large"] * 12)) == 12
    assert len(hops) == expected


async def test_the_store_is_opened_for_the_first_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "absent")
    assert await read(store, ["a", "b"]) == {0: None, 1: None}
    assert (tmp_path / "absent").is_dir()
    with pytest.raises(FileNotFoundError):
        await read(LocalStore(tmp_path / "nowhere", read_only=True), ["a", "b"])


async def test_memory_is_read_without_a_task_for_each_key() -> None:
    store = MemoryStore()
    await fill(store, {f"{i}": bytes([i % 256]) for i in range(1000)})
    tasks: list[asyncio.Task[Any]] = []
    loop = asyncio.get_running_loop()

    def make(loop: Any, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(coroutine, loop=loop, **kwargs))
        return tasks[-1]

    loop.set_task_factory(make)
    groups = store.get_many([f"{i}" for i in range(1000)], prototype=PROTOTYPE)
    sizes: list[int] = []
    async for group in groups:
        loop.call_soon(sizes.append, 0)  # something else has its turn between two groups
        sizes.append(len(group))
        for index, value in group:
            assert value is not None
            assert value.to_bytes() == bytes([index % 256])
            assert value is not store._store_dict[f"{index}"]
    assert sizes == [64, 0] * 15 + [40, 0]
    assert tasks == []


async def test_what_is_stored_in_memory_is_not_handed_out_itself() -> None:
    class Same(PROTOTYPE.buffer):  # type: ignore[misc,name-defined]
        @classmethod
        def from_buffer(cls, buffer: Buffer) -> Buffer:
            return buffer

    store = MemoryStore()
    await fill(store, {"a": b"a", "b": b"b"})
    prototype = PROTOTYPE._replace(buffer=Same)
    async for group in store.get_many(["a", "b"], prototype=prototype):
        for (_, value), stored in zip(group, store._store_dict.values(), strict=True):
            assert value is not stored
            assert value == stored


# ---------------------------------------------------------------------------
# ZipStore
# ---------------------------------------------------------------------------


class CountedLock:
    """Counts how often it is taken, not how often again by its holder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = self.taken = 0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.taken += not self.depth
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1
        self.lock.release()


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("kind", ["zip:stored", "zip:deflated", "zip:being-written"])
async def test_the_lock_is_taken_once_a_share(kind: str, tmp_path: Path) -> None:
    store: Any = await open_store(kind, tmp_path)
    store._lock = lock = CountedLock()
    assert await read(store, ["a"] * 200) == dict.fromkeys(range(200), VALUES["a"])
    assert lock.taken == 2
    store.close()


@pytest.mark.parametrize(
    ("kind", "key", "byte_range", "reads"),
    [
        ("zip:stored", "b/c", None, [30 + 3 + 70000]),
        ("zip:after-junk", "b/c", RangeByteRequest(0, 9), [30 + 3 + 9]),
        ("zip:stored", "b/c", RangeByteRequest(500, 600), [30 + 3, 100]),
        ("zip:streamed", "b/c", SuffixByteRequest(8), [30 + 3, 8]),
        ("zip:extra-fields", "b/c", OffsetByteRequest(69900), [30 + 3 + 7, 100]),
        ("zip:extra-fields", "a", None, [30 + 1 + 7 + 200, 200]),
        ("zip:cp437", "cé0", RangeByteRequest(1, 3), [30 + 3, 2]),
        ("zip:deflated", "b/c", RangeByteRequest(500, 600), []),
        ("zip:being-written", "b/c", RangeByteRequest(500, 600), []),
        ("zip:file", "b/c", RangeByteRequest(500, 600), []),
    ],
)
async def test_only_the_range_is_read_of_a_stored_member(
    kind: str,
    key: str,
    byte_range: ByteRequest | None,
    reads: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await open_store(kind, tmp_path)
    expected = await read_one(store, key, byte_range)
    sizes: list[int] = []
    pread = os.pread

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", spy)
    assert await read(store, ["absent", (key, byte_range)]) == {0: None, 1: expected}
    assert sizes == reads
    store.close()
