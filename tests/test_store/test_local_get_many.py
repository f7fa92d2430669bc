"""`get_many` of stores in memory and on a local disk.

What every store promises is tested in `test_get_many.py`. These tests cover odd keys and ranges, in
which `get_many` must agree with `get`, replaced `get` methods, and what threads leave behind.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, ManagedMemoryStore, MemoryStore, _local

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zarr.abc.store import Store

PROTOTYPE = default_buffer_prototype()
VALUES = {"a": bytes(range(200)), "b/c": b"x" * 70_000, "empty": b"", "é/ü": b"uni"}
KEYS = [*VALUES, "absent", "b", "", "a/", "a/.", "./a", "b//c", "b/../a", "/a", "a/b", "a\0b"]
RANGES: list[Any] = [
    None,
    *(RangeByteRequest(0, 10), RangeByteRequest(190, 300), RangeByteRequest(500, 600)),
    *(RangeByteRequest(5, 5), OffsetByteRequest(50), OffsetByteRequest(900)),
    *(SuffixByteRequest(5), SuffixByteRequest(900), "bad"),
]
NATIVE = ["local", "memory"]
STORE = MemoryStore()


async def create(kind: str, folder: Path, values: dict[str, bytes] = VALUES) -> Store:
    """A new store with `values`, not opened yet."""
    stores: dict[str, tuple[Any, Any]] = {
        "local": (LocalStore, folder / "local"),
        "memory": (MemoryStore, {}),
        "managed": (functools.partial(ManagedMemoryStore, path="below"), None),
    }
    cls, root = stores[kind]
    store: Store = cls(root)
    for key, value in values.items():
        await store.set(key, PROTOTYPE.buffer.from_bytes(value))
    store.close()
    return cls(root) if kind == "local" else store


async def read(store: Store, requests: Sequence[Any]) -> dict[int, bytes | None]:
    """What `get_many` reports, by index. No index may be reported twice."""
    found: dict[int, bytes | None] = {}
    async for group in store.get_many(requests, prototype=PROTOTYPE):
        for index, value in group:
            assert index not in found
            found[index] = None if value is None else value.to_bytes()
    return found


@pytest.mark.parametrize("kind", [*NATIVE, "managed"])
async def test_agrees_with_get(kind: str, tmp_path: Path) -> None:
    store = await create(kind, tmp_path)
    sound: list[Any] = []
    for request in [(key, byte_range) for key in KEYS for byte_range in RANGES]:
        try:
            value = await store.get(request[0], PROTOTYPE, request[1])
        except Exception as error:  # noqa: BLE001
            with pytest.raises(type(error)):
                await read(store, ["a", request, "b/c"])
        else:
            sound.append((request, None if value is None else value.to_bytes()))
    expected = dict(enumerate(value for _, value in sound))
    assert await read(store, [request for request, _ in sound]) == expected
    assert len(sound) > len(KEYS)


@pytest.mark.parametrize("kind", NATIVE)
async def test_opens_the_store(kind: str, tmp_path: Path) -> None:
    store = await create(kind, tmp_path)
    assert not store._is_open
    assert await read(store, ["a", "absent"]) == {0: VALUES["a"], 1: None}
    assert store._is_open


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads any file")
async def test_forbidden_file_is_an_error(tmp_path: Path) -> None:
    store = await create("local", tmp_path)
    (tmp_path / "local" / "a").chmod(0)
    with pytest.raises(PermissionError):
        await read(store, ["a", "b/c"])


async def test_link_to_itself_is_an_error(tmp_path: Path) -> None:
    store = await create("local", tmp_path)
    (tmp_path / "local" / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        await read(store, ["a", "loop"])


# --- replaced `get` ---------------------------------------------------------------------------


def counting(get: Any, calls: list[str]) -> Any:
    """Wrap `get` as a retry or tracing decorator does."""

    @functools.wraps(get)
    async def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("get")
        return await get(*args, **kwargs)

    return counted


@pytest.mark.parametrize("how", ["class", "instance", "subclass", "mixin"])
@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("shards", [None, (16, 16)])
async def test_replaced_get_is_read_through(
    kind: str,
    how: str,
    shards: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # so that shards are read on threads
    store: Any = await create(kind, tmp_path)
    cls, calls = type(store), list[str]()
    values = np.arange(32 * 32).reshape(32, 32)
    await asyncio.to_thread(
        zarr.create_array, store, name="array", data=values, chunks=(8, 8), shards=shards
    )
    if how == "class":
        monkeypatch.setattr(cls, "get", counting(cls.get, calls))
    elif how == "instance":
        monkeypatch.setattr(store, "get", counting(store.get, calls))
    else:
        replaced = {"get": counting(cls.get, calls)}
        bases = (cls,) if how == "subclass" else (type("Mixin", (), replaced), cls)
        state = vars(store)
        store = object.__new__(type("Replaced", bases, replaced if how == "subclass" else {}))
        vars(store).update(state)
    # For "r", the store would be copied.
    array = await asyncio.to_thread(zarr.open_array, store, path="array", mode="r+")
    calls.clear()
    np.testing.assert_array_equal(await asyncio.to_thread(array.__getitem__, ...), values)
    assert len(calls) == (16 if shards is None else 4)


# --- threads ----------------------------------------------------------------------------------


def quarter_share(seconds: float) -> Any:
    """Return a `get` whose values are a quarter of a share, and the keys that it was asked for."""
    asked: list[str] = []

    def get(key: str, byte_range: object) -> Any:
        asked.append(key)
        time.sleep(seconds)
        return PROTOTYPE.buffer.from_bytes(bytes(_local.SHARE_BYTES // 4))

    return get, asked


@pytest.mark.parametrize("threads", [1, 3])
async def test_slow_consumer_holds_threads_back(threads: int) -> None:
    get, asked = quarter_share(_local.SLOW_SECONDS * 2)
    shares = _local._get_in_threads(STORE, [str(number) for number in range(100)], get, threads)
    assert len(await anext(shares)) == len(await anext(shares)) == 4
    await asyncio.sleep(0.2)
    assert len(asked) <= 4 * (1 + threads)
    await shares.aclose()
    assert len(asyncio.all_tasks()) == 1
    assert len(asked) <= 4 * (1 + threads)


@pytest.mark.parametrize("kind", NATIVE)
async def test_many_values_come_in_few_groups(kind: str, tmp_path: Path) -> None:
    values = {str(number): b"x" for number in range(500)}
    store = await create(kind, tmp_path, values)
    groups = [group async for group in store.get_many(list(values), prototype=PROTOTYPE)]
    assert sum(map(len, groups)) == 500
    assert len(groups) < 50


@pytest.mark.parametrize(("seconds", "per_share"), [(0.0, 4), (_local.SHARE_SECONDS, 1)])
async def test_share_is_limited(seconds: float, per_share: int) -> None:
    get, _ = quarter_share(seconds)
    shares = [len(share) async for share in _local._get_in_threads(STORE, ["k"] * 8, get, 1)]
    assert shares == [per_share] * (8 // per_share)


async def test_fast_storage_is_read_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_local, "SLOW_SECONDS", 60)
    monkeypatch.setattr(_local, "SHARE_SECONDS", 60)
    get, asked = quarter_share(0.001)
    running = 0

    def get_alone(key: str, byte_range: object) -> Any:
        nonlocal running
        running += 1
        assert running == 1
        value = get(key, byte_range)
        running -= 1
        return value

    async for _ in _local._get_in_threads(STORE, ["k"] * 20, get_alone, 10):
        pass
    assert len(asked) == 20


async def test_threads_stop_after_a_failure() -> None:
    asked: list[str] = []
    other_reads, failed = threading.Event(), threading.Event()

    def get(key: str, byte_range: object) -> None:
        asked.append(key)
        if key == "k0":
            other_reads.wait(30)
            raise OSError(key)
        other_reads.set()
        failed.wait(30)

    with pytest.raises(OSError, match="k0") as caught:
        async for _ in _local._get_in_threads(STORE, [f"k{n}" for n in range(100)], get, 2):
            pass
    failed.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert asked == ["k0", "k1"]
    assert "While reading 'k0' from memory://" in caught.value.__notes__[0]


@pytest.mark.parametrize("threads", [1, 3])
async def test_no_more_threads_than_allowed(threads: int) -> None:
    running, most = set(), 0

    def get(key: str, byte_range: object) -> None:
        nonlocal most
        running.add(key)
        most = max(most, len(running))
        time.sleep(0.001)
        running.remove(key)

    keys = [f"k{n}" for n in range(100)]
    async for _ in _local._get_in_threads(STORE, keys, get, threads):
        pass
    assert most == threads


async def test_slow_storage_is_waited_for_by_all_threads() -> None:
    together = threading.Barrier(4)

    def get(key: str, byte_range: object) -> None:
        together.wait(timeout=30)  # each of four requests needs a thread of its own

    found = [
        pair async for share in _local._get_in_threads(STORE, ["k"] * 4, get, 4) for pair in share
    ]
    assert sorted(found) == [(number, None) for number in range(4)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
async def test_cancelled_while_a_thread_blocks(tmp_path: Path) -> None:
    store = await create("local", tmp_path)
    pipe = tmp_path / "local" / "pipe"
    os.mkfifo(pipe)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    task = asyncio.create_task(read(store, ["pipe", *VALUES]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert len(asyncio.all_tasks()) == 1
    pipe.open("wb").close()  # lets the thread go
    for _ in range(100):
        if opened is None or len(os.listdir("/proc/self/fd")) <= opened:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("a file is still open")


# --- shards -----------------------------------------------------------------------------------
