"""Reads that are cancelled, interrupted or abandoned leave nothing running or open.

Afterwards no task is pending, no thread runs outside the pools, no connection or file is open,
nothing was logged, and the next read is correct. The tests use only public interfaces.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from tests.event_loop import until
from tests.range_server import RangeServer
from tests.stored_arrays import (
    CONTENT,
    KINDS,
    LAYOUTS,
    PART,
    close_store,
    open_store,
    write_arrays,
)
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from zarr.abc.store import Store

PIPELINES = ("BatchedCodecPipeline", "FusedCodecPipeline")

type AsyncArray = zarr.AsyncArray[Any]


class Place:
    """Where the arrays are."""

    def __init__(self, folder: Path, server: RangeServer) -> None:
        self.folder = folder
        self.server = server

    def open(self, kind: str) -> Store:
        store: Store = open_store(kind, self.folder, self.server.url)
        return store

    @asynccontextmanager
    async def opened(self, kind: str, layout: str) -> AsyncIterator[AsyncArray]:
        store = self.open(kind)
        try:
            yield await zarr.api.asynchronous.open_array(store=store, path=layout, mode="r")
        finally:
            await close_store(store)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("arrays")
    write_arrays(folder)

    async def start_all_threads() -> None:
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.02) for _ in range(64)))

    sync(start_all_threads())  # the pool of zarr's event loop, so that no threads are added later
    gc.collect()
    gc.freeze()  # later collections look only at objects of these tests
    with RangeServer(folder) as server:
        yield Place(folder, server)
    gc.unfreeze()


@pytest.fixture
def place(arrays: Place, caplog: pytest.LogCaptureFixture) -> Iterator[Place]:
    """Where the arrays are; nothing may be left running or open after the test."""
    arrays.server.reset()
    files, threads = open_files(), set(threading.enumerate())
    yield arrays
    gc.collect()
    wait_until(lambda: all(request.ended for request in arrays.server.requests))
    wait_until(lambda: open_files() <= files)
    wait_until(lambda: all(map(in_a_pool, set(threading.enumerate()) - threads)))
    assert len(set(threading.enumerate()) - threads) <= (os.cpu_count() or 1)
    logged = [it for it in caplog.get_records("call") if it.name != "aiohttp.server"]
    assert logged == []


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Iterator[str]:
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield request.param


everywhere = pytest.mark.parametrize("kind", KINDS)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def open_files() -> int:
    """How many files and sockets the process has open."""
    return len(os.listdir("/dev/fd"))


def in_a_pool(thread: threading.Thread) -> bool:
    """Whether a thread belongs to a pool that lives as long as the process."""
    return thread.name.startswith("ThreadPoolExecutor")


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen on another thread."""
    give_up = time.monotonic() + 60
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.002)
    assert condition()


class LoopComplains(Exception):
    """An event loop has reported tasks that did not end properly, though none read wrong data."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, in an event loop that must not complain.

    Raises
    ------
    Exception
        The exception of a task that has failed for another reason than its cancellation.
    LoopComplains
        If the event loop complains about anything else.
    """
    logged: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, it: logged.append(it))
        await main

    asyncio.run(watched())
    gc.collect()
    for context in logged:
        error = context.get("exception")
        if error is not None and not isinstance(error.__cause__, asyncio.CancelledError):
            raise error
    if logged:
        raise LoopComplains(logged)


async def no_tasks() -> None:
    """Wait until the other tasks of the event loop have ended."""
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that calls a function whenever it has been resumed and waits again."""

    def __init__(self, coro: Coroutine[Any, Any, Any], on_step: Callable[[], None]) -> None:
        self._coro = coro
        self._on_step = on_step

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()

    def send(self, value: Any) -> Any:
        awaited = self._coro.send(value)
        self._on_step()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._coro.throw(*error)
        self._on_step()
        return awaited

    def close(self) -> None:
        self._coro.close()


@contextmanager
def after_steps(count: int, function: Callable[[], object]) -> Iterator[None]:
    """Call `function` when the tasks created in this block have awaited `count` times."""
    steps = 0

    def on_step() -> None:
        nonlocal steps
        steps += 1
        if steps == count:
            function()

    def make_task(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Stepped(coro, on_step), loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(make_task)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def is_right(array: AsyncArray) -> None:
    np.testing.assert_array_equal(await array.getitem(PART), CONTENT[PART])


@everywhere
@both_layouts
@pytest.mark.usefixtures("pipeline")
def test_cancelled_at_every_await(place: Place, kind: str, layout: str) -> None:
    async def main() -> None:
        async with place.opened(kind, layout) as array:
            count = 1
            while await cancelled_after(count, array):
                await no_tasks()
                await is_right(array)
                count += 1
            await no_tasks()
            assert count > 1

    run(main())


async def cancelled_after(count: int, array: AsyncArray) -> bool:
    """Whether a read was cancelled when it had awaited `count` times."""
    with after_steps(count, lambda: reading.cancel()):
        reading = asyncio.create_task(is_right(array))
        try:
            await reading
        except asyncio.CancelledError:
            return True
    return False


@everywhere
@both_layouts
def test_asyncio_run_ends_in_the_middle_of_a_read(
    place: Place, pipeline: str, kind: str, layout: str
) -> None:
    broken_off: list[int] = []

    async def main(count: int, tasks: list[asyncio.Task[None]]) -> None:
        ended = asyncio.Event()
        store = place.open(kind)
        array = await zarr.api.asynchronous.open_array(store=store, path=layout, mode="r")

        def end() -> None:
            broken_off.append(count)
            ended.set()

        async def close_at_the_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await close_store(store)

        tasks.append(asyncio.create_task(close_at_the_end()))
        await asyncio.sleep(0)
        with after_steps(count, end):
            tasks.append(asyncio.create_task(is_right(array)))
            tasks[-1].add_done_callback(lambda _: ended.set())
            await ended.wait()

    for count in itertools.count(1):
        tasks: list[asyncio.Task[None]] = []
        run(main(count, tasks))
        if count not in broken_off:
            break
    tasks[-1].result()
    assert broken_off


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("http", "references")])
@both_layouts
@pytest.mark.usefixtures("pipeline")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_event_loop_goes_away(place: Place, kind: str, layout: str) -> None:
    """Python complains about tasks pending in a closed loop. A read in the next loop is correct.

    Without HTTP stores: an aiohttp session does not outlive its event loop.
    """
    store = place.open(kind)
    logged: list[str] = []

    async def read(count: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, it: logged.append(it["message"]))
        array = await zarr.api.asynchronous.open_array(store=store, path=layout, mode="r")
        with after_steps(count, loop.stop):
            await asyncio.create_task(is_right(array))

    count = 1
    while abandoned(read(count)):
        run(read(0))
        count += 1
    assert count > 1
    assert set(logged) <= {"Task was destroyed but it is pending!"}  # asyncio says so itself
    store.close()


def abandoned(main: Coroutine[Any, Any, None]) -> bool:
    """Run a coroutine in an event loop; whether the loop was stopped and closed before its end."""
    loop, threads = asyncio.new_event_loop(), ThreadPoolExecutor()
    loop.set_default_executor(threads)
    task = loop.create_task(main)
    task.add_done_callback(lambda task: task.get_loop().stop())
    loop.run_forever()
    threads.shutdown()
    loop.close()
    if task.done():
        task.result()
    return not task.done()


@everywhere
@both_layouts
@pytest.mark.usefixtures("pipeline")
def test_the_store_is_closed_in_the_middle(place: Place, kind: str, layout: str) -> None:
    async def main() -> None:
        for count in itertools.count(1):
            closed = False

            def close() -> None:
                nonlocal closed
                closed = True
                array.store_path.store.close()

            async with place.opened(kind, layout) as array:
                with after_steps(count, close):
                    read = await asyncio.create_task(outcome(array.getitem(PART)))
                await no_tasks()
            if not isinstance(read, Exception):
                np.testing.assert_array_equal(read, CONTENT[PART])
            if not closed:
                break
        assert count > 1

    run(main())


async def outcome(read: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await read
    except Exception as error:  # noqa: BLE001
        return error


@everywhere
@both_layouts
@pytest.mark.parametrize("closing", [aclosing, nullcontext])
def test_a_consumer_stops_after_the_first_group(
    place: Place, kind: str, layout: str, closing: Callable[[Any], Any]
) -> None:
    blocks = range(4 if layout == "plain" else 2)
    keys = [f"{layout}/c/{row}/{column}" for row in blocks for column in blocks]
    ranges = [RangeByteRequest(start, start + 8) for start in (0, 12, 24)]
    requests: list[tuple[str, RangeByteRequest | None]]
    requests = list(itertools.product(keys, [None, *ranges]))
    prototype = default_buffer_prototype()

    async def main() -> None:
        async with place.opened(kind, layout) as array:
            store = array.store_path.store
            for _ in range(10):
                async with closing(store.get_many(requests, prototype=prototype)) as groups:
                    async for group in groups:
                        assert group
                        break
                del groups
                await no_tasks()
            values: dict[int, bytes] = {}
            async for group in store.get_many(requests, prototype=prototype):
                values |= {index: value.to_bytes() for index, value in group if value is not None}
            for index, (key, byte_range) in enumerate(requests):
                value = await store.get(key, prototype, byte_range)
                assert value is not None
                assert value.to_bytes() == values.pop(index)
            assert values == {}

    run(main())


@everywhere
def test_memory_is_flat_over_2000_reads(place: Place, kind: str) -> None:
    """Two chunks a read: each layout with each pipeline."""
    selection = (slice(0, 4), slice(2, 6))

    async def main(layout: str) -> None:
        async with place.opened(kind, layout) as array:
            for count in range(600):
                if count % 100 == 0:
                    place.server.reset()  # it remembers the requests
                    gc.collect()
                    blocks = sys.getallocatedblocks()
                if count == 100:
                    before = blocks
                read = await array.getitem(selection)
            assert blocks - before < 400  # at the 500th read since: less than an object for each
            np.testing.assert_array_equal(read, CONTENT[selection])

    for layout in LAYOUTS:
        for pipeline in PIPELINES:
            with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
                run(main(layout))


@everywhere
@both_layouts
@pytest.mark.usefixtures("pipeline")
def test_many_threads_read_at_once(place: Place, kind: str, layout: str) -> None:
    store = place.open(kind)
    array = zarr.open_array(store, path=layout, mode="r")
    barrier = threading.Barrier(16)

    def read(number: int) -> None:
        barrier.wait()
        for row in range(number, number + 5):
            selection = (slice(row % 12, row % 12 + 4), slice(1, 15))
            np.testing.assert_array_equal(array[selection], CONTENT[selection])

    with ThreadPoolExecutor(16, "many-threads") as threads:
        list(threads.map(read, range(16)))
    sync(close_store(store))


BEGINNING = """
import asyncio, multiprocessing, os, random, signal, sys, threading, time
from itertools import product
from pathlib import Path
import numpy as np
import zarr
from tests.stored_arrays import CONTENT, LAYOUTS, PART, close_store, open_store, read_part
from zarr.core.sync import sync

folder, url, *kinds = sys.argv[1:]
random.seed(0)

def opened(kind):
    return open_store(kind, Path(folder), url)

def is_right(array):
    np.testing.assert_array_equal(read_part(array), CONTENT[PART])
"""

INTERRUPTED = """
pipelines = ("BatchedCodecPipeline", "FusedCodecPipeline")
armed = False

def interrupt(_, frame):
    # `concurrent.futures.wait`, with which zarr waits for a read, keeps a lock for good if it is
    # interrupted while it takes the lock. So it does in zarr 3.4.2.
    file, name = frame.f_code.co_filename, frame.f_code.co_name
    if "concurrent" in file or (file.endswith("threading.py") and name != "wait"):
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
    elif armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for kind in kinds:
    store = opened(kind)
    for layout, pipeline in product(LAYOUTS, pipelines):
        zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"})
        array = zarr.open_array(store, path=layout, mode="r")
        is_right(array)
        interrupted, longest = 0, 1e-3
        while interrupted < 25:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, longest))
                array[PART]
                armed = False
                longest = max(longest * 0.9, 1e-4)
            except KeyboardInterrupt:
                armed = False
                interrupted += 1
                longest *= 1.1
        is_right(array)

    async def others():
        return asyncio.all_tasks() - {asyncio.current_task()}

    while sync(others()):
        pass
    sync(close_store(store))
"""

INTERRUPT_LATER = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
interrupted = threading.Event()

def interrupt():
    time.sleep(random.uniform(0.001, 0.05))
    while not interrupted.is_set():  # Python ignores an interrupt in a destructor.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        interrupted.wait(5)

def interrupt_later():
    threading.Thread(target=interrupt, daemon=True).start()

(kind,) = kinds
"""

WHILE_SYNC = (
    INTERRUPT_LATER
    + """
store = opened(kind)
array = zarr.open_array(store, path="sharded", mode="r")
is_right(array)
interrupt_later()
try:
    while True:
        array[PART]
finally:
    interrupted.set()
    sync(close_store(store))
"""
)

WHILE_ASYNC = (
    INTERRUPT_LATER
    + """
async def main():
    store = opened(kind)
    array = await zarr.api.asynchronous.open_array(store=store, path="sharded", mode="r")
    interrupt_later()
    try:
        while True:
            await asyncio.gather(*(array.getitem(PART) for _ in range(4)))
    finally:
        interrupted.set()
        await close_store(store)

asyncio.run(main())
"""
)

FORKED = """
def in_the_child(kind, array):
    signal.alarm(60)
    try:
        if kind in ("http", "references"):  # connections are the parent's
            array = zarr.open_array(opened(kind), path="sharded", mode="r")
        is_right(array)
    except BaseException as error:
        print(kind, repr(error), file=sys.stderr, flush=True)

if __name__ == "__main__":
    arrays = {kind: zarr.open_array(opened(kind), path="sharded", mode="r") for kind in kinds}
    for kind, array in arrays.items():
        is_right(array)
        if os.fork() == 0:
            in_the_child(kind, array)
            os._exit(0)
        assert os.wait()[1] == 0
        is_right(array)
    for array in arrays.values():
        sync(close_store(array.store))
"""

SPAWNED = """
if __name__ == "__main__":
    arrays = [zarr.open_array(opened(kind), path="sharded", mode="r") for kind in kinds]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for array, read in zip(arrays, pool.map(read_part, arrays), strict=True):
            np.testing.assert_array_equal(read, CONTENT[PART])
            is_right(array)
"""


def in_a_child(place: Place, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that begins with `BEGINNING`."""
    command = [sys.executable, "-c", BEGINNING + code, str(place.folder), place.server.url]
    root = Path(__file__).parents[1]
    return subprocess.run(
        [*command, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def complaints(stderr: str) -> list[str]:
    """What Python reports about generators and tasks that were not properly ended.

    An interrupted read continues in zarr's event loop, and may be pending when the program exits.
    """
    wrong = (
        "asynchronous generator",
        "never retrieved",
        "never awaited",
        "RuntimeError",
        "GeneratorExit",
    )
    return [line for line in stderr.splitlines() if any(text in line for text in wrong)]


def test_interrupted_a_hundred_times(place: Place) -> None:
    child = in_a_child(place, INTERRUPTED, *KINDS)
    assert child.returncode == 0, child.stderr
    assert complaints(child.stderr) == []


@pytest.mark.parametrize("kind", ["memory", "http"])
@pytest.mark.parametrize("code", [WHILE_SYNC, WHILE_ASYNC], ids=["sync", "async"])
def test_interrupted_for_good(place: Place, kind: str, code: str) -> None:
    child = in_a_child(place, code, kind)
    assert child.returncode == -signal.SIGINT, child.stderr
    assert complaints(child.stderr) == []


def test_forked_after_use(place: Place) -> None:
    child = in_a_child(place, FORKED, *KINDS)
    assert (child.returncode, child.stderr) == (0, "")


def test_spawned_after_use(place: Place) -> None:
    child = in_a_child(place, SPAWNED, "memory", "local", "zip", "get alone")
    assert (child.returncode, child.stderr) == (0, "")
