"""Tests for `zarr.storage._blocking`, with which stores that block serve `get_many`.

Time is what a clock of the tests says it is, and threads go on when they are told to.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.event_loop import nothing_left_behind, turns, until
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config
from zarr.storage import _blocking
from zarr.storage._blocking import get_in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator

    from zarr.core.buffer import Buffer
    from zarr.storage._blocking import Request

BUFFER = default_buffer_prototype().buffer


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


class Storage:
    """Something to read from. Each read takes as long as it says, by the clock of the tests.

    A share stops before the requests in `gates`, until the gate is opened, and fails at those in
    `failures`.
    """

    def __init__(self, seconds: Callable[[int], float] = lambda _: 0.0, nbytes: int = 1) -> None:
        self.seconds = seconds
        self.nbytes = nbytes
        self.now = threading.local()
        self.lock = threading.Lock()
        self.ended = threading.Condition(self.lock)
        self.shares: list[list[int]] = []
        self.running = self.most_running = 0
        self.closed = 0
        self.gates: dict[int, threading.Event] = {}
        self.failures: dict[int, BaseException] = {}

    def monotonic(self) -> float:
        return getattr(self.now, "value", 0.0)

    def read(self, requests: Iterable[Request]) -> Generator[tuple[int, Buffer | None]]:
        share: list[int] = []
        with self.lock:
            self.shares.append(share)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            for number, _, _ in requests:
                share.append(number)
                if number in self.gates:
                    assert self.gates[number].wait(30)
                if number in self.failures:
                    raise self.failures[number]
                self.now.value = self.monotonic() + self.seconds(number)
                yield number, BUFFER.from_bytes(bytes(self.nbytes))
        finally:
            with self.lock:
                self.running -= 1
                self.closed += 1
                self.ended.notify_all()

    def wait_for_threads(self) -> None:
        """Those that nobody waits for any more, because the read has failed, end soon."""
        with self.ended:
            assert self.ended.wait_for(lambda: self.running == 0, timeout=30)

    async def until_shares(self, count: int) -> None:
        await until(lambda: len(self.shares) == count)

    def gate(self, *numbers: int) -> None:
        self.gates |= {number: threading.Event() for number in numbers}

    def open(self, *numbers: int) -> None:
        for number in numbers or self.gates:
            self.gates[number].set()

    @property
    def begun(self) -> list[int]:
        return sorted(number for share in self.shares for number in share)


def keys(count: int) -> list[str]:
    return [f"{i}" for i in range(count)]


async def consume(
    storage: Storage, count: int, taken: list[int] | None = None, **options: Any
) -> list[int]:
    """Take everything; return how large the groups were."""
    sizes: list[int] = []
    async with aclosing(get_in_threads(keys(count), storage.read, **options)) as groups:
        async for group in groups:
            sizes.append(len(group))
            if taken is not None:
                taken.extend(index for index, _ in group)
    return sizes


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Storage]]:
    made: list[Storage] = []
    monkeypatch.setattr(_blocking, "SHARE", 64)
    monkeypatch.setattr(_blocking, "SHARE_BYTES", 1 << 20)
    monkeypatch.setattr(_blocking, "SHARE_SECONDS", 4.0)
    monkeypatch.setattr(_blocking, "SLOW_SECONDS", 0.5)

    def make(seconds: float | Callable[[int], float] = 0.0, nbytes: int = 1) -> Storage:
        storage = Storage(seconds if callable(seconds) else lambda _: seconds, nbytes)
        monkeypatch.setattr(_blocking, "time", SimpleNamespace(monotonic=storage.monotonic))
        made.append(storage)
        return storage

    yield make
    for storage in made:
        storage.open()
        storage.wait_for_threads()
        assert storage.closed == len(storage.shares)


@pytest.mark.parametrize(
    ("seconds", "nbytes", "sizes"),
    [
        (0.0, 1, [64, 64, 64, 8]),
        (0.0, 300 << 10, [4] * 50),
        (0.0, 1 << 20, [1] * 200),
        (0.25, 1, [17] * 11 + [13]),  # more than four seconds have gone after the seventeenth
        (1.0, 1, [5] * 40),
        (9.0, 1, [1] * 200),
    ],
)
async def test_the_size_of_a_share(
    make: Callable[..., Storage], seconds: float, nbytes: int, sizes: list[int]
) -> None:
    """It is limited in number, in bytes and in time."""
    storage = make(seconds, nbytes)
    taken: list[int] = []
    assert await consume(storage, 200, taken, threads=1) == sizes
    assert taken == list(range(200))
    assert storage.most_running == 1


async def test_requests_of_one_key_come_one_after_another(make: Callable[..., Storage]) -> None:
    storage = make()
    seen: list[Request] = []

    def read(requests: Iterable[Request]) -> Generator[tuple[int, Buffer | None]]:
        for request in requests:
            seen.append(request)
            yield request.number, None

    ranges = [RangeByteRequest(i, i + 1) for i in range(3)]
    requests = [(key, at) for at in ranges for key in "abc"]
    async for group in get_in_threads(requests, read):
        assert [value for _, value in group] == [None] * 9
    assert [request.number for request in seen] == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert [(key, at) for _, key, at in seen] == [(key, at) for key in "abc" for at in ranges]
    assert storage.shares == []


async def test_one_thread_reads_from_fast_storage(make: Callable[..., Storage]) -> None:
    storage = make()
    storage.gate(0, 64, 128)
    reading = asyncio.create_task(consume(storage, 150))
    for count, gate in enumerate((0, 64, 128), 1):
        await storage.until_shares(count)
        await turns()
        assert (len(storage.shares), storage.running) == (count, 1)
        storage.open(gate)
    assert await reading == [64, 64, 22]


@pytest.mark.parametrize(
    ("seconds", "threads", "first", "expected"),
    [
        (1.0, None, 5, 3),
        (1.0, 2, 5, 2),
        (1.0, 9, 5, 3),
        (1.0, 1, 5, 1),
        (0.5, None, 9, 1),  # not slow enough
        (lambda number: 0.0 if number == 3 else 1.0, None, 6, 1),  # one of the share was fast
    ],
)
async def test_more_threads_read_from_slow_storage(
    make: Callable[..., Storage], seconds: Any, threads: int | None, first: int, expected: int
) -> None:
    """As many as `async.concurrency` allows, once the first share has shown that it is slow."""
    storage = make(seconds)
    storage.gate(*range(first, 60))
    with config.set({"async.concurrency": 3}):
        reading = asyncio.create_task(consume(storage, 60, threads=threads))
        await until(lambda: len(storage.begun) >= first + expected)
        await turns()
        assert [len(share) for share in storage.shares] == [first, *[1] * expected]
        storage.open()
        assert sum(await reading) == 60
    assert storage.begun == list(range(60))
    assert storage.most_running == expected


@pytest.mark.parametrize("how", ["cancel", "close", "fail"])
async def test_nobody_waits_for_storage_in_the_end_and_the_rest_is_never_read(
    make: Callable[..., Storage], how: str
) -> None:
    """Several threads have begun with a share when the end comes. They may be blocked for good."""
    storage = make(1.0)
    taken: list[int] = []
    storage.gate(*range(5, 100))
    leave = asyncio.Event()

    async def read() -> None:
        async with aclosing(get_in_threads(keys(100), storage.read)) as groups:
            async for group in groups:
                taken.extend(index for index, _ in group)
                if how == "close":
                    await leave.wait()
                    break

    with config.set({"async.concurrency": 3}):
        reading = asyncio.create_task(read())
        # Nothing starts while the consumer does not ask for more.
        running = 2 if how == "close" else 3
        await until(lambda: storage.running == running and len(storage.begun) == 5 + running)
    begun = storage.begun
    if how == "fail":
        storage.failures[begun[-3]] = OSError("it broke")
        storage.open(begun[-3])
        running -= 1
        await until(lambda: storage.running == running)
    elif how == "cancel":
        reading.cancel()
    leave.set()
    if how == "close":
        await reading
    else:
        with pytest.raises(OSError if how == "fail" else asyncio.CancelledError):
            await reading
    assert storage.running == running
    storage.open()
    await until(lambda: storage.running == 0)
    assert storage.begun == begun
    assert taken == list(range(5))


async def test_a_failure_is_raised_as_itself(make: Callable[..., Storage]) -> None:
    storage = make()
    storage.failures[70] = error = PermissionError("no")
    taken: list[int] = []
    with pytest.raises(PermissionError) as raised:
        await consume(storage, 200, taken)
    assert raised.value is error
    assert error.__cause__ is None
    assert taken == list(range(64))
    assert storage.begun == list(range(71))  # another share may have begun by then


async def test_two_threads_fail_at_the_same_time(make: Callable[..., Storage]) -> None:
    storage = make(1.0)
    storage.gate(5, 6)
    storage.failures |= {5: OSError("five"), 6: OSError("six")}
    with config.set({"async.concurrency": 2}):
        reading = asyncio.create_task(consume(storage, 100))
        await until(lambda: storage.running == 2)
        storage.open()
        with pytest.raises(OSError, match=r"five|six"):
            await reading


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_what_waits_for_a_thread_does_not_run(make: Callable[..., Storage], how: str) -> None:
    """All threads of the event loop are busy with something else: nobody waits for them."""
    storage = make()
    busy = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        other = asyncio.get_running_loop().run_in_executor(None, busy.wait, 30)
        groups = get_in_threads(keys(100), storage.read)
        first = asyncio.create_task(anext(groups))
        await turns()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        if how == "close":
            await groups.aclose()
        assert not other.done()
        busy.set()
        assert await other
    assert storage.shares == []


async def test_a_slow_consumer_holds_the_threads_back(make: Callable[..., Storage]) -> None:
    storage = make(1.0)
    with config.set({"async.concurrency": 2}):
        async with aclosing(get_in_threads(keys(1000), storage.read)) as groups:
            await anext(groups)
            await until(lambda: storage.closed == 2)
            await turns()
            assert len(storage.shares) == 2
