"""What must not go wrong with a stream of blocks when other things do."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.experimental.block_stream import (
    CLOSE_SECONDS,
    BlockStream,
    _cut,
    _DecodePool,
    _stop_all,
)
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.experimental.block_stream import Block


class SlowStore(MemoryStore):
    """From a block on, reads take long, and longer still to be cancelled."""

    slow_from = 1_000_000
    stubborn = threading.Event()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key.startswith("c/") and int(key.split("/")[1]) >= self.slow_from:
            try:
                await asyncio.sleep(600)
            finally:
                while not self.stubborn.is_set():
                    await asyncio.sleep(0.01)
        return await super().get(key, prototype, byte_range)


def numbers(store: Any = None, count: int = 20) -> zarr.Array[Any]:
    return zarr.create_array(
        MemoryStore() if store is None else store, data=np.arange(2 * count), chunks=(2,)
    )


async def test_an_error_is_not_lost_when_its_task_is_cancelled() -> None:
    """Not even if the store takes its time when the stream closes itself."""
    store = SlowStore()
    array = numbers(store)
    store.slow_from, store.stubborn = 9, threading.Event()

    def refuse(block: Block) -> int:
        if block.index == 2:
            raise OSError("refused")
        return block.index

    stream = BlockStream(array, transform=refuse)
    taken: list[int] = []

    async def consume() -> None:
        for _ in range(1000):
            with suppress(TimeoutError):
                taken.append(await asyncio.wait_for(anext(stream), 0.05))

    with pytest.raises(OSError, match="refused"):
        await consume()
    assert taken == [0, 1]
    store.stubborn.set()
    await stream.aclose()


def test_who_waits_is_told_at_once_that_the_stream_is_closed() -> None:
    """However slow the store is to be cancelled."""
    store = SlowStore()
    array = numbers(store)
    store.slow_from, store.stubborn = 1, threading.Event()
    stream = BlockStream(array)
    assert next(stream).index == 0
    ended = threading.Event()

    def consume() -> None:
        with suppress(ValueError):
            next(stream)
        ended.set()

    thread = threading.Thread(target=consume)
    thread.start()
    time.sleep(0.1)
    stream.close()
    assert not store.stubborn.is_set()
    assert ended.wait(30)
    store.stubborn.set()
    thread.join()


def test_an_exit_waits_for_all_streams_together() -> None:
    store = SlowStore()
    array = numbers(store)
    store.slow_from, store.stubborn = 1, threading.Event()
    streams = [BlockStream(array) for _ in range(6)]
    assert [next(stream).index for stream in streams] == [0] * 6
    began = time.monotonic()
    _stop_all()
    assert CLOSE_SECONDS <= time.monotonic() - began < 3 * CLOSE_SECONDS
    store.stubborn.set()


def test_a_thread_that_cannot_start_leaves_no_chunk_undecoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("zarr_block_decode"):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    values = np.arange(120).reshape(20, 6)
    array = zarr.create_array(MemoryStore(), data=values, chunks=(2, 2))
    with BlockStream(array, decode_threads=4, transform=lambda block: block.array) as stream:
        np.testing.assert_array_equal(np.concatenate(list(stream)), values)
    assert len(started) == 1


def test_what_is_submitted_to_threads_that_have_stopped_is_cancelled() -> None:
    """Or whoever waits for it would wait for ever."""
    pool = _DecodePool(1)
    pool.submit(int).result(30)
    pool.shutdown()
    assert pool.submit(int).cancelled()


def test_a_store_that_stops_an_iteration_does_not_end_the_stream() -> None:
    """As if all blocks had been delivered."""

    class Stopping(MemoryStore):
        async def get(self, key: str, *args: Any, **options: Any) -> Buffer | None:
            if key == "c/3":
                raise StopAsyncIteration
            return await super().get(key, *args, **options)

    array = zarr.create_array(
        Stopping(), shape=(40,), chunks=(2,), shards=(4,), dtype="int8", fill_value=1
    )
    pipeline = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        array = zarr.open_array(array.store)
    array[:] = 3
    stream = BlockStream(array)
    with pytest.raises(RuntimeError, match="Block 3 raised StopAsyncIteration") as caught:
        list(stream)
    assert "block 3 (rows 12 to 15)" in caught.value.__cause__.__notes__[-1]  # type: ignore[union-attr]
    assert stream.stats.blocks == 3


def test_no_thread_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: _DecodePool, *work: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_DecodePool, "submit", refuse)
    stream = BlockStream(numbers(), transform=lambda block: block.index)
    with stream, pytest.raises(RuntimeError, match="can't start"):
        next(stream)


def test_what_is_destroyed_when_a_stream_ends_may_look_at_it() -> None:
    seen: list[int] = []

    class Value:
        def __init__(self, block: Block) -> None:
            self.index = block.index

        def __del__(self) -> None:
            seen.append(reference().stats.blocks)  # type: ignore[union-attr]

    stream = BlockStream(numbers(), transform=Value)
    reference = weakref.ref(stream)
    next(stream)
    while stream.stats.max_blocks_in_flight < 19:
        time.sleep(0.01)
    stream.close()
    np.testing.assert_array_equal(numbers()[:3], [0, 1, 2])  # zarr's event loop goes on
    assert seen


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_signal_handler_may_close_a_stream_and_look_at_it() -> None:
    streams: list[BlockStream[Any]] = []

    def handle(*_: object) -> None:
        for stream in streams:
            assert stream.stats.blocks >= 0
            stream.close()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for number in range(60):
            streams[:] = [BlockStream(numbers())]
            signal.setitimer(signal.ITIMER_REAL, 0.0001 * (number + 1))
            with suppress(ValueError):  # closed before its end
                assert len(list(streams[0])) == 20
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_error_comes_to_one_of_several_threads() -> None:
    def refuse(block: Block) -> int:
        if block.index == 3:
            raise OSError("refused")
        return block.index

    stream = BlockStream(numbers(), transform=refuse)
    outcomes: list[object] = []

    def consume() -> None:
        while True:
            try:
                outcomes.append(next(stream))
            except RuntimeError:  # another thread was told of the error
                return
            except OSError as error:
                outcomes.append(error)

    threads = [threading.Thread(target=consume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(o for o in outcomes if isinstance(o, int)) == [0, 1, 2]
    assert len([o for o in outcomes if isinstance(o, OSError)]) == 1


def test_numpy_integers_and_none_are_taken() -> None:
    arrays = {"a": numbers(), "b": numbers()}
    options: dict[str, Any] = {
        "readahead_bytes": np.int64(1 << 20),
        "io_concurrency": np.int32(3),
        "blocks": np.array([3, -1]),
    }
    stream = BlockStream(arrays, selection={"a": None}, **options)
    assert [(block.index, type(block.index)) for block in stream] == [(3, int), (19, int)]


def test_an_error_that_is_false_is_an_error() -> None:
    class Nothing(Exception):
        def __bool__(self) -> bool:
            return False

    def refuse(block: Block) -> int:
        if block.index == 2:
            raise Nothing
        return block.index

    stream = BlockStream(numbers(), transform=refuse)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(Nothing):
        next(stream)
    assert stream.stats.blocks == 2


def test_a_block_that_does_not_fit_into_memory_fails_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(start: int, stop: int, pieces: Any) -> Any:
        if start == 14:
            raise MemoryError
        return _cut(start, stop, pieces)

    monkeypatch.setattr("zarr.experimental.block_stream._cut", cut)
    stream = BlockStream(numbers())
    assert [next(stream).index for _ in range(7)] == list(range(7))
    with pytest.raises(MemoryError):
        next(stream)


async def test_nothing_is_logged_of_a_window_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: _DecodePool, *work: object) -> None:
        time.sleep(0.05)  # the block is awaited by then
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_DecodePool, "submit", refuse)
    array = zarr.create_array({}, data=np.arange(4), chunks=(2,), compressors=None)
    stream = BlockStream(array, blocks=[0])
    with pytest.raises(RuntimeError, match="can't start"):
        await anext(stream)
    await stream.aclose()
    del stream
    await asyncio.sleep(0)
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
