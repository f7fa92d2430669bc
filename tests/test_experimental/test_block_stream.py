"""`BlockStream`: blocks in order, read ahead within a budget, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ZstdCodec
from zarr.core.sync import SyncError, sync
from zarr.errors import ChunkNotFoundError
from zarr.experimental.block_stream import Block, BlockStream, BlockStreamStats
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

SECONDS = 20
"""How long anything may take before a test fails. What works takes a fraction of a second."""


class GatedStore(MemoryStore):
    """Lets a read of a chunk pass when its gate is open, and remembers what was asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.opened: set[str] | None = None  # None: all
        self.failing: dict[str, BaseException] = {}
        self.in_flight = self.max_in_flight = 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zattrs"):
            return await super().get(key, prototype, byte_range)
        self.asked.append(key)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            while self.opened is not None and key not in self.opened:
                await asyncio.sleep(0.001)
            if (error := self.failing.get(key)) is not None:
                raise error
            return await super().get(key, prototype, byte_range)
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.in_flight -= 1


def make_array(
    store: Any = None, blocks: int = 10, nbytes: int = 8, **options: Any
) -> zarr.Array[Any]:
    """An array of blocks that are each filled with their index plus one."""
    array = zarr.create_array(
        {} if store is None else store,
        shape=(blocks * nbytes,),
        chunks=(nbytes,),
        dtype="uint8",
        **{"compressors": None, **options},
    )
    array[:] = np.repeat(np.arange(1, blocks + 1, dtype="uint8"), nbytes)
    return array


def values(stream: BlockStream[Block]) -> list[int]:
    """What the blocks of `make_array` are filled with."""
    return [int(block.array[0]) for block in stream]


def collect(stream: BlockStream[Block], taken: list[int]) -> None:
    """As `values`, into a list that shows how far an error let it come."""
    for block in stream:
        taken.append(int(block.array[0]))  # noqa: PERF401


async def collect_async(stream: BlockStream[Block], taken: list[int]) -> None:
    async for block in stream:
        taken.append(int(block.array[0]))  # noqa: PERF401


def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


OVERHEAD = 4096
SHARE = 64
SHARE_BYTES = 1 << 16
UNSEEN = 8


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "zarr_block_decode"]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No thread and no task outlives a test."""
    yield
    gc.collect()
    until(lambda: not decode_threads())

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    until(lambda: sync(tasks()) == 0)


# --- what is delivered -----------------------------------------------------------------------------


def assert_same(block: Any, expected: Any) -> None:
    assert type(block) is type(expected)
    assert block.dtype == expected.dtype
    assert block.shape == expected.shape
    assert block.flags.c_contiguous == expected.flags.c_contiguous
    assert block.flags.f_contiguous == expected.flags.f_contiguous
    if block.dtype.kind in ("O", "T"):
        assert block.tolist() == expected.tolist()
    else:
        assert block.tobytes("A") == expected.tobytes("A")


def assert_streams(array: zarr.Array[Any], **options: Any) -> None:
    """The blocks of a stream are those of `array.blocks`."""
    with BlockStream(array, **options) as stream:
        blocks = list(stream)
    edge = array._chunk_grid._dimensions[0]
    assert (
        [block.index for block in blocks] == list(range(edge.nchunks)) == list(range(len(stream)))
    )
    for block in blocks:
        start = edge.chunk_offset(block.index)
        assert block.span == slice(start, start + edge.data_size(block.index))
        assert_same(block.array, array.blocks[block.index])


DTYPES = ["bool", "int8", ">u2", "<f8", "<c16", "M8[s]", "m8[D]", "<U3", "S4", "V3", "T"]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_data_types(zarr_format: Any, dtype: str, pipeline: str) -> None:
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        native = np.dtypes.StringDType() if dtype == "T" else np.dtype(dtype)
        array = zarr.create_array(
            {}, shape=(7, 5), chunks=(2, 3), dtype=native, zarr_format=zarr_format
        )
    numbers = np.arange(20).reshape(4, 5) % 9
    array[:4] = (
        numbers.astype("S3").view("V3")
        if dtype == "V3"
        else numbers.astype("U3").astype(native)
        if dtype in ("T", "S4", "<U3")
        else numbers.astype(native)
    )
    assert_streams(array)


def test_structured_data_and_variable_length_bytes() -> None:
    fields = np.zeros(7, dtype=[("a", "<i4"), ("b", "S3")])
    fields["a"] = np.arange(7)
    assert_streams(zarr.create_array({}, data=fields, chunks=(2,)))
    array = zarr.create_array({}, shape=(5,), chunks=(2,), dtype="variable_length_bytes")
    array[:] = np.array([b"", b"a" * 50, b"c", b"d", b"e"], dtype=object)
    assert_streams(array)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_array(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    rectilinear = data.draw(st.booleans())
    zarr_format = 3 if rectilinear else data.draw(st.sampled_from([2, 3]))
    options: dict[str, Any] = {}
    if rectilinear:
        cuts = [sorted(data.draw(st.sets(st.integers(1, n), max_size=3)) | {n}) for n in shape]
        chunks: Any = [[int(edge) for edge in np.diff([0, *cut])] for cut in cuts]
    else:
        chunks = tuple(data.draw(st.integers(1, length + 1)) for length in shape)
        if zarr_format == 3 and data.draw(st.booleans()):
            options["shards"] = tuple(2 * edge for edge in chunks)
    if zarr_format == 2:
        options["order"] = data.draw(st.sampled_from(["C", "F"]))
    with zarr.config.set(
        {"array.rectilinear_chunks": True, "array.order": data.draw(st.sampled_from(["C", "F"]))}
    ):
        array = zarr.create_array(
            {},
            shape=shape,
            chunks=chunks,
            dtype=data.draw(st.sampled_from(["uint8", ">f4", "U2"])),
            zarr_format=zarr_format,  # type: ignore[arg-type]
            **options,
        )
        written = tuple(slice(0, data.draw(st.integers(0, length))) for length in shape)
        ones = np.arange(np.prod([part.stop for part in written], dtype=int)) % 9
        array[written] = ones.reshape([part.stop for part in written]).astype(array.dtype)
        assert_streams(array, readahead_bytes=data.draw(st.sampled_from([1, 20_000, 1 << 30])))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    array = zarr.create_array({}, shape=shape, chunks=(2,) * len(shape), dtype="int8")
    with BlockStream(array) as stream:
        blocks = list(stream)
    assert len(blocks) == len(stream) == -(-shape[0] // 2)
    for block in blocks:
        assert block.array.shape == (len(range(*block.span.indices(shape[0]))), *shape[1:])


class AsyncOnlyCodec(BytesBytesCodec):
    """A codec of a third party, which can only be awaited."""

    is_fixed_size = True

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: Any) -> Buffer:
        await asyncio.sleep(0)
        return type(chunk_bytes).from_bytes(bytes(255 - b for b in chunk_bytes.to_bytes()))

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: Any) -> Buffer:
        return await self._decode_single(chunk_bytes, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        return input_byte_length


def test_codecs_of_third_parties() -> None:
    array = make_array(compressors=[AsyncOnlyCodec()])
    assert_streams(array)
    plain = make_array()
    with BlockStream({"plain": plain, "odd": array}) as stream:
        for block in stream:
            assert list(block.arrays) == ["plain", "odd"]
            np.testing.assert_array_equal(block.arrays["plain"], block.arrays["odd"])


def test_missing_chunks_may_be_an_error() -> None:
    with zarr.config.set({"array.read_missing_chunks": False}):
        array = zarr.create_array({}, shape=(6,), chunks=(2,), dtype="int8")
    array[:4] = 1
    with BlockStream(array) as stream:
        assert [int(next(stream).array[0]) for _ in range(2)] == [1, 1]
        with pytest.raises(ChunkNotFoundError, match="c/2"):
            next(stream)


def test_arrays_in_step(tmp_path: Path) -> None:
    """Arrays of several stores and shapes, of which one is sharded."""
    calls = np.arange(20 * 6 * 2, dtype="int8").reshape(20, 6, 2)
    positions = np.arange(20) * 100
    names = np.array([f"rs{n}" for n in range(20)], dtype=np.dtypes.StringDType())
    group = zarr.create_group(tmp_path / "group")
    arrays = {
        "calls": group.create_array("calls", data=calls, chunks=(6, 4, 2)),
        "positions": zarr.create_array({}, data=positions, chunks=(3,), shards=(6,)),
        "names": group.create_array("names", data=names, chunks=(6,)),
    }
    selection = {"calls": (slice(1, 5), 1)}
    with BlockStream(arrays, selection=selection) as stream:
        blocks = list(stream)
    assert [block.span for block in blocks] == [slice(n, min(n + 6, 20)) for n in (0, 6, 12, 18)]
    for block in blocks:
        assert list(block.arrays) == list(arrays)
        np.testing.assert_array_equal(block.arrays["calls"], calls[block.span, 1:5, 1])
        np.testing.assert_array_equal(block.arrays["positions"], positions[block.span])
        np.testing.assert_array_equal(block.arrays["names"], names[block.span])
    with pytest.raises(ValueError, match="'calls', 'positions', 'names'"):
        blocks[0].array  # noqa: B018


@pytest.mark.parametrize(
    "selection",
    [
        2,
        -1,
        slice(1, 4),
        (slice(None, None, 2), 3),
        (..., 0),
        [0, 3],
        ([4, 1], [2, 0]),
        ([2, 1], 2),
    ],
)
def test_selections(selection: Any) -> None:
    numbers = np.arange(7 * 5 * 4).reshape(7, 5, 4)
    array = zarr.create_array({}, data=numbers, chunks=(2, 3, 3))
    parts = selection if isinstance(selection, tuple) else (selection,)
    with BlockStream(array, selection=selection) as stream:
        for block in stream:
            expected = array.oindex[(block.span, *parts)]
            np.testing.assert_array_equal(block.array, expected)


def test_which_blocks() -> None:
    array = make_array()
    for chosen, expected in (
        ({"start": 7}, [8, 9, 10]),
        ({"start": -2}, [9, 10]),
        ({"stop": 2}, [1, 2]),
        ({"start": 3, "stop": 3}, []),
        ({"blocks": [5, 0, -1, 5]}, [6, 1, 10, 6]),
        ({"blocks": iter([])}, []),
    ):
        with BlockStream(array, **chosen) as stream:
            assert len(stream) == len(expected)
            assert values(stream) == expected


@pytest.mark.parametrize("io_concurrency", [1, 3])
def test_fetches_in_flight(io_concurrency: int) -> None:
    store = GatedStore()
    array = make_array(store, blocks=30)
    with BlockStream(array, io_concurrency=io_concurrency) as stream:
        assert values(stream) == list(range(1, 31))
    assert store.max_in_flight == io_concurrency
    assert stream.stats.requests == 30


def test_fetches_in_flight_of_blocks_that_arrays_read_themselves() -> None:
    store = GatedStore()
    array = make_array(store, blocks=30, nbytes=4, compressors=[AsyncOnlyCodec()])
    with BlockStream(array, io_concurrency=3) as stream:
        assert values(stream) == list(range(1, 31))
    assert store.max_in_flight == 3


@pytest.mark.parametrize(("configured", "expected"), [(None, 32), (4, 4), (100, 100)])
def test_fetches_in_flight_by_default(configured: int | None, expected: int) -> None:
    store = GatedStore()
    array = make_array(store, blocks=200)
    store.opened = {"c/0"}
    with zarr.config.set({"async.concurrency": configured} if configured else {}):
        stream = BlockStream(array)
    with stream, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(values, stream)
        until(lambda: store.in_flight == expected)
        store.opened = None
        assert len(taken.result(SECONDS)) == 200
    assert store.max_in_flight == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_decode(threads: int) -> None:
    running: set[int] = set()
    most = []
    barrier = threading.Barrier(threads)
    lock = threading.Lock()

    def transform(block: Block) -> int:
        with lock:
            running.add(threading.get_ident())
            most.append(len(running))
        if block.index:
            barrier.wait(SECONDS)  # all threads at once
        with lock:
            running.remove(threading.get_ident())
        return int(block.array[0])

    array = make_array(blocks=1 + 4 * threads)
    with BlockStream(array, decode_threads=threads, transform=transform) as stream:
        assert list(stream) == list(range(1, 2 + 4 * threads))
    assert max(most) == threads


def test_a_closed_stream_decodes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    array = make_array(blocks=2 * SHARE, compressors=[ZstdCodec()])
    decode = ZstdCodec._decode_sync
    decoding: list[Buffer] = []
    begun, closed = threading.Event(), threading.Event()

    def spy(self: ZstdCodec, chunk: Buffer, spec: ArraySpec) -> Buffer:
        decoding.append(chunk)
        begun.set()
        closed.wait(SECONDS)
        return decode(self, chunk, spec)

    monkeypatch.setattr(ZstdCodec, "_decode_sync", spy)
    stream = BlockStream(array, decode_threads=1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(values, stream)
        assert begun.wait(SECONDS)
        stream.close()
        closed.set()
        with pytest.raises(ValueError, match="closed"):
            taken.result(SECONDS)
    until(lambda: not decode_threads())
    assert len(decoding) == 1


def test_a_machine_that_has_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread does the work alone."""
    array = make_array(blocks=30)
    array.blocks[0]
    start = threading.Thread.start
    started: list[str] = []

    def start_one(thread: threading.Thread) -> None:
        if thread.name == "zarr_block_decode":
            started.append(thread.name)
            if len(started) > 1:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with BlockStream(array, decode_threads=4, transform=lambda block: block.index) as stream:
        assert list(stream) == list(range(30))
    assert len(started) > 1


def test_a_transform_runs_on_the_threads_of_the_stream() -> None:
    for array in (make_array(), make_array(compressors=[AsyncOnlyCodec()])):
        with BlockStream(array, transform=lambda block: threading.current_thread().name) as stream:
            assert set(stream) == {"zarr_block_decode"}


# --- readahead -------------------------------------------------------------------------------------


def test_nothing_is_read_before_a_block_is_asked_for() -> None:
    store = GatedStore()
    stream = BlockStream(make_array(store))
    assert len(stream) == 10
    assert stream.stats == BlockStreamStats()
    time.sleep(0.02)
    assert store.asked == []


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_a_slow_consumer_holds_reading_back(fits: int) -> None:
    nbytes = 100_000
    weight = 2 * nbytes + OVERHEAD  # encoded and decoded
    store = GatedStore()
    array = make_array(store, blocks=24, nbytes=nbytes)
    budget = fits * weight
    with BlockStream(array, readahead_bytes=budget) as stream:
        for taken, block in enumerate(stream, start=1):
            time.sleep(0.01)
            held = [key for key in store.asked if int(key[2:]) >= taken]
            assert len(held) * nbytes <= budget
            assert int(block.array[0]) == taken
    assert stream.stats.max_nbytes_in_flight <= budget
    assert stream.stats.max_blocks_in_flight >= fits
    assert stream.stats.consumer_seconds > 0


def test_arrays_of_different_weight_fit_into_the_budget() -> None:
    light = make_array(blocks=100, nbytes=1)
    heavy = zarr.create_array(
        {}, shape=(100, 100_000), chunks=(1, 100_000), dtype="int8", compressors=None
    )
    heavy[:] = 1
    with BlockStream({"light": light, "heavy": heavy}, readahead_bytes=1_600_000) as stream:
        assert len(list(stream)) == 100
    assert stream.stats.max_blocks_in_flight > 2
    assert stream.stats.max_nbytes_in_flight <= 1_600_000


def test_blocks_of_different_length_fit_into_the_budget() -> None:
    lengths = [1_000] * 4 + [100_000] * 30
    with zarr.config.set({"array.rectilinear_chunks": True}):
        array = zarr.create_array(
            {}, shape=(sum(lengths),), chunks=[lengths], dtype="int8", compressors=None
        )
        array[:] = 1
        with BlockStream(array, readahead_bytes=1_000_000) as stream:
            assert [len(block.array) for block in stream] == lengths
    assert stream.stats.max_blocks_in_flight > 2
    assert stream.stats.max_nbytes_in_flight <= 1_000_000


def test_a_budget_that_no_block_fits_into() -> None:
    store = GatedStore()
    with BlockStream(make_array(store), readahead_bytes=1) as stream:
        assert values(stream) == list(range(1, 11))
    assert stream.stats.max_blocks_in_flight == 1
    assert store.max_in_flight == 1


def test_text_is_weighed_with_what_it_points_to() -> None:
    words = np.array(["x" * 100_000] * 40, dtype=np.dtypes.StringDType())
    array = zarr.create_array({}, data=words, chunks=(1,), compressors=ZstdCodec())
    with BlockStream(array, readahead_bytes=1_000_000) as stream:
        for _ in stream:
            time.sleep(0.002)
    assert 2 <= stream.stats.max_blocks_in_flight <= 10
    assert stream.stats.nbytes >= 40 * 100_000


def test_memory_holds_the_budget_and_two_blocks(tmp_path: Path) -> None:
    """Four arrays in step, as a VCF in Zarr has them, for a program that is slower than they come."""
    random = np.random.default_rng(0)
    length, step = 16_000, 800
    group = zarr.create_group(tmp_path / "group")
    arrays = {
        "call_genotype": group.create_array(
            "call_genotype",
            data=random.integers(-1, 3, (length, 500, 2), dtype="int8"),
            chunks=(step, 250, 2),
        ),
        "position": group.create_array("position", data=np.arange(length), chunks=(step,)),
        "id": group.create_array(
            "id",
            data=np.array([f"rs{n}" for n in range(length)], dtype=np.dtypes.StringDType()),
            chunks=(step,),
        ),
        "quality": group.create_array("quality", data=random.random(length), chunks=(step,)),
    }
    block = step * (500 * 2 + 8 + 24 + 8)
    budget = 5 * block
    with BlockStream(arrays, blocks=[0]) as stream:
        list(stream)  # what is imported and kept once is not what this is about
    gc.collect()
    tracemalloc.start()
    try:
        with BlockStream(arrays, readahead_bytes=budget, decode_threads=2) as stream:
            for number, each in enumerate(stream):
                assert each.index == number
                time.sleep(0.005)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stream.stats.max_nbytes_in_flight <= budget
    assert stream.stats.max_blocks_in_flight >= 2
    assert peak <= budget + 2 * block


def test_blocks_come_in_order_whatever_order_they_are_fetched_in() -> None:
    store = GatedStore()
    array = make_array(store)
    with BlockStream(array) as stream:
        assert next(stream).index == 0
        store.opened = set()
        pending = BlockStream(array, start=0)
        with ThreadPoolExecutor(1) as pool:
            store.opened = {"c/0"}
            taken = pool.submit(values, pending)
            for key in range(9, 0, -1):
                until(lambda key=key: f"c/{key}" in store.asked)  # type: ignore[misc]
                store.opened.add(f"c/{key}")
                time.sleep(0.002)
            assert taken.result(SECONDS) == list(range(1, 11))
        store.opened = None


def test_blocks_of_one_file_are_read_together(tmp_path: Path) -> None:
    """Keys of several blocks go to the store in one call, which can merge them."""
    calls: list[int] = []

    class Counting(MemoryStore):
        async def get_many(
            self,
            requests: Sequence[Any],
            *,
            prototype: BufferPrototype,
            max_concurrency: int | None = None,
        ) -> AsyncIterator[Any]:
            calls.append(len(requests))
            for index, key in enumerate(requests):
                yield [(index, await self.get(key, prototype))]

    array = make_array(Counting(), blocks=100)
    with BlockStream(array) as stream:
        list(stream)
    assert calls == [1, 8, 72, 19]


# --- iteration -------------------------------------------------------------------------------------


def test_len_and_the_end() -> None:
    stream = BlockStream(make_array())
    assert len(stream) == 10
    assert values(stream) == list(range(1, 11))
    assert len(stream) == 10
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)


async def test_async_for() -> None:
    array = make_array()
    async with BlockStream(array) as stream:
        assert [int(block.array[0]) async for block in stream] == list(range(1, 11))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_for_inside_a_running_loop() -> None:
    with BlockStream(make_array()) as stream:
        assert values(stream) == list(range(1, 11))


async def test_the_loop_goes_on_while_a_block_is_awaited() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = set()
    async with BlockStream(array) as stream:
        first = asyncio.create_task(anext(stream))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not first.done()
        store.opened = None
        assert (await first).index == 0


async def test_a_task_that_waits_for_a_block_may_be_cancelled() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = set()
    async with BlockStream(array) as stream:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        store.opened = None
        assert [int(block.array[0]) async for block in stream] == list(range(1, 11))


def test_in_the_loop_of_zarr() -> None:
    array = make_array()

    async def count() -> int:
        async with BlockStream(array) as stream:
            return len([block async for block in stream])

    async def block() -> None:
        with BlockStream(array) as stream:
            list(stream)

    assert sync(count()) == 10
    with pytest.raises(SyncError):
        sync(block())


def test_several_threads_share_a_stream() -> None:
    array = make_array(blocks=200)
    barrier = threading.Barrier(4)
    with BlockStream(array) as stream, ThreadPoolExecutor(4) as pool:

        def take(_: int) -> list[int]:
            barrier.wait(SECONDS)
            return values(stream)

        shares = list(pool.map(take, range(4)))
    for share in shares:
        assert share == sorted(share)
    assert sorted(chain.from_iterable(shares)) == list(range(1, 201))


async def test_several_tasks_share_a_stream() -> None:
    async with BlockStream(make_array(blocks=50)) as stream:

        async def take() -> list[int]:
            return [int(block.array[0]) async for block in stream]

        shares = await asyncio.gather(*(take() for _ in range(3)))
    assert sorted(chain.from_iterable(shares)) == list(range(1, 51))


def test_progress_bars() -> None:
    tqdm = pytest.importorskip("tqdm")
    with BlockStream(make_array()) as stream, open(os.devnull, "w") as nowhere:
        bar = tqdm.tqdm(stream, file=nowhere)
        assert bar.total == 10
        assert values(bar) == list(range(1, 11))
        assert bar.n == 10


def test_progress_of_rich() -> None:
    progress = pytest.importorskip("rich.progress")
    console = pytest.importorskip("rich.console").Console(file=open(os.devnull, "w"))  # noqa: SIM115
    with BlockStream(make_array()) as stream, progress.Progress(console=console) as shown:
        assert values(shown.track(stream)) == list(range(1, 11))
        assert shown.tasks[0].total == shown.tasks[0].completed == 10
    console.file.close()


def test_figures(caplog: pytest.LogCaptureFixture) -> None:
    array = make_array()
    with caplog.at_level(logging.INFO, "zarr.experimental.block_stream"):
        with BlockStream(array) as stream:
            list(stream)
        stream.close()
    stats = stream.stats
    assert (stats.blocks, stats.nbytes) == (10, 80)
    assert 1 <= stats.max_blocks_in_flight <= 10
    assert stats.nbytes_in_flight == 0
    assert stats.max_nbytes_in_flight >= 8 + OVERHEAD
    assert min(stats.waited_seconds, stats.consumer_seconds) >= 0
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "10 of 10 blocks" in record.getMessage()


def test_how_long_the_consumer_waited_and_was_busy() -> None:
    store = GatedStore()
    array = make_array(store, blocks=3)
    store.opened = set()
    with ThreadPoolExecutor(1) as pool, BlockStream(array) as stream:
        first = pool.submit(next, stream)
        time.sleep(0.2)
        store.opened = None
        first.result(SECONDS)
        assert stream.stats.waited_seconds > 0.1 > stream.stats.consumer_seconds
        time.sleep(0.2)
        list(stream)
        assert stream.stats.consumer_seconds > 0.1


# --- errors ----------------------------------------------------------------------------------------


class Unreadable(Exception):
    pass


@pytest.mark.parametrize("failing", [0, 1, 6, 9])
@pytest.mark.parametrize("odd", [False, True])
def test_an_error_comes_at_its_block(failing: int, odd: bool) -> None:
    store = GatedStore()
    options: dict[str, Any] = {"compressors": [AsyncOnlyCodec()]} if odd else {}
    array = make_array(store, **options)
    error = store.failing[f"c/{failing}"] = Unreadable("no")
    taken: list[int] = []
    with BlockStream(array) as stream:
        with pytest.raises(Unreadable) as raised:
            collect(stream, taken)
        assert raised.value is error
        assert taken == list(range(1, failing + 1))
        with pytest.raises(RuntimeError, match=f"block {failing}"):
            next(stream)
    assert stream.stats.blocks == failing


async def test_an_error_of_an_async_for() -> None:
    store = GatedStore()
    array = make_array(store)
    store.failing["c/4"] = Unreadable("no")
    taken: list[int] = []
    async with BlockStream(array) as stream:
        with pytest.raises(Unreadable):
            await collect_async(stream, taken)
        with pytest.raises(RuntimeError, match="block 4"):
            await anext(stream)
    assert taken == [1, 2, 3, 4]


@pytest.mark.parametrize("failing", [0, 5, 20])
def test_an_error_that_passes_does_not_end_a_stream(failing: int) -> None:
    """The blocks that were read with it are read again one by one."""
    store = GatedStore()
    make_array(store, blocks=43)

    class Passing(GatedStore):
        failed = False

        async def get(self, key: str, *args: Any, **options: Any) -> Buffer | None:
            if key == f"c/{failing}" and not self.failed:
                self.failed = True
                raise Unreadable("once")
            return await super().get(key, *args, **options)

    passing = Passing(store._store_dict)
    with BlockStream(zarr.open_array(passing)) as stream:
        assert values(stream) == list(range(1, 44))
    assert passing.failed


@pytest.mark.parametrize("shards", [None, (6, 8)])
def test_an_error_names_the_array_the_block_and_the_chunk(shards: Any) -> None:
    store = MemoryStore()
    values = np.arange(18 * 8).reshape(18, 8)
    array = zarr.create_array(
        store, name="calls", data=values, chunks=(3, 4), shards=shards, compressors=ZstdCodec()
    )
    key = "c/2/0" if shards else "c/4/1"
    path = f"calls/{key}"
    store._store_dict[path] = store._store_dict[path].from_bytes(b"nonsense")
    stream = BlockStream({"call": array})
    with pytest.raises(Exception) as raised:
        list(stream)
    *chunk, note = raised.value.__notes__
    block = (2, "12 to 17") if shards else (4, "12 to 14")
    assert "'call' (memory://" in note
    assert "/calls)" in note
    assert f"block {block[0]} (rows {block[1]})" in note
    assert f"While reading {path!r} from memory://" in chunk[0]


def test_corrupt_chunks() -> None:
    store = MemoryStore()
    array = make_array(store, compressors=ZstdCodec())
    store._store_dict["c/6"] = store._store_dict["c/6"].from_bytes(b"nonsense")
    with pytest.raises(Exception) as expected:
        array.blocks[6]
    taken: list[int] = []
    with (
        BlockStream(array) as stream,
        pytest.raises(type(expected.value), match=str(expected.value)),
    ):
        collect(stream, taken)
    assert taken == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "error", [Unreadable("no"), KeyboardInterrupt(), StopIteration(), StopAsyncIteration()]
)
def test_errors_of_a_transform(error: BaseException) -> None:
    def transform(block: Block) -> int:
        if block.index == 3:
            raise error
        return block.index

    taken: list[int] = []
    expected = RuntimeError if "Stop" in type(error).__name__ else type(error)
    with BlockStream(make_array(), transform=transform) as stream, pytest.raises(expected):
        taken.extend(stream)
    assert taken == [0, 1, 2]


def test_a_fetch_that_was_cancelled_inside() -> None:
    store = GatedStore()
    array = make_array(store)
    store.failing["c/3"] = asyncio.CancelledError()
    taken: list[int] = []
    with (
        BlockStream(array) as stream,
        pytest.raises((asyncio.CancelledError, CancelledError)),
    ):
        collect(stream, taken)
    assert taken == [1, 2, 3]


def test_stores_that_break_their_contract() -> None:
    class Forgetful(MemoryStore):
        async def get_many(
            self,
            requests: Sequence[Any],
            *,
            prototype: BufferPrototype,
            max_concurrency: int | None = None,
        ) -> AsyncIterator[Any]:
            for index, key in enumerate(requests[:1]):
                yield [(index, await self.get(key, prototype))]

    array = zarr.create_array(Forgetful(), data=np.arange(16).reshape(8, 2), chunks=(2, 1))
    with (
        BlockStream(array) as stream,
        pytest.raises(RuntimeError, match="No result for 1 of 2 chunks"),
    ):
        list(stream)


def test_bad_arguments() -> None:
    array = make_array()
    other = zarr.create_array({}, shape=(80,), chunks=(16,), dtype="int8", name="coarse")
    longer = zarr.create_array({}, shape=(88,), chunks=(8,), dtype="int8", name="longer")
    scalar = zarr.create_array({}, shape=(), dtype="int8", name="scalar")
    for arrays, options, error, message in (
        (
            {"a": array, "b": other},
            {},
            ValueError,
            r"'a'.*80 in 10 chunks of 8.*'b'.*coarse.*80 in 5 chunks of 16",
        ),
        ({"a": array, "b": longer}, {}, ValueError, r"'b'.*longer.*88"),
        ({"a": array, "b": longer}, {"block_length": 4}, ValueError, r"'b'.*longer.*88"),
        ({"a": array, "b": scalar}, {}, IndexError, r"'b'.*scalar.*no axis"),
        (scalar, {}, IndexError, r"scalar.*no axis"),
        ({}, {}, ValueError, "no array"),
        ({"x": np.zeros(3)}, {}, TypeError, "'x' is not a zarr.Array"),
        ([array], {}, TypeError, r"mapping of names to arrays, such as \{'a': a, 'b': b\}"),
        (array, {"selection": (0, 0)}, IndexError, "2 axes, and there are 0 after the first"),
        (array, {"blocks": 3}, TypeError, r"such as \[3\], got 3"),
        (array, {"block_length": 0}, ValueError, "block_length"),
        (array, {"readahead_bytes": 1e6}, ValueError, "positive integer.*1000000.0"),
        (array, {"readahead_bytes": "64M"}, ValueError, "positive integer.*'64M'"),
        ({"a": longer}, {"blocks": [3, 11]}, IndexError, "'a'.*longer.*block 11 is out of range"),
        ({"a": array}, {"start": 12}, IndexError, "'a'.*12"),
        ({"a": array}, {"selection": {"b": 1}}, ValueError, "'b'"),
        ({"a": array}, {"selection": {"a": 1}}, IndexError, "'a'"),
        ({"a": array}, {"selection": 1}, TypeError, "by name"),
        (array, {"transform": 1}, TypeError, "transform"),
        (array, {"readahead_bytes": 0}, ValueError, "0"),
        (array, {"io_concurrency": 0}, ValueError, "io_concurrency"),
        (array, {"decode_threads": -1}, ValueError, "decode_threads"),
        (array, {"start": 1, "blocks": [1]}, ValueError, "either"),
    ):
        with pytest.raises(error, match=message):
            BlockStream(arrays, **options)  # type: ignore[arg-type]


# --- the end ---------------------------------------------------------------------------------------


def test_close_cancels_what_is_in_flight() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = {"c/0"}
    stream = BlockStream(array)
    next(stream)
    until(lambda: store.in_flight == 9)
    stream.close()
    assert store.in_flight == stream.stats.nbytes_in_flight == 0
    assert sorted(store.cancelled) == [f"c/{n}" for n in range(1, 10)]
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    stream.close()


async def test_aclose_cancels_what_is_in_flight() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = {"c/0"}
    async with BlockStream(array) as stream:
        await anext(stream)
        while store.in_flight < 9:
            await asyncio.sleep(0.001)
    assert store.in_flight == 0
    await stream.aclose()


def test_a_stream_that_was_closed_before_it_began() -> None:
    store = GatedStore()
    stream = BlockStream(make_array(store))
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    assert store.asked == []


def test_close_wakes_whoever_waits() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = set()
    stream = BlockStream(array)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(list, stream) for _ in range(2)]
        until(lambda: store.in_flight >= 1)
        time.sleep(0.01)
        stream.close()
        for each in waiting:
            with pytest.raises(ValueError, match="closed"):
                each.result(SECONDS)


def test_close_does_not_wait_for_a_transform() -> None:
    leave = threading.Event()
    entered = threading.Event()

    def transform(block: Block) -> None:
        entered.set()
        leave.wait(SECONDS)

    stream = BlockStream(make_array(), transform=transform)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, stream)
        assert entered.wait(SECONDS)
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            waiting.result(SECONDS)
        leave.set()


def test_a_transform_may_close_its_stream() -> None:
    streams: list[BlockStream[None]] = []
    stream = BlockStream(make_array(), transform=lambda block: streams[0].close())
    streams.append(stream)
    with pytest.raises(ValueError, match="closed"):
        list(stream)


def test_a_break_leaves_nothing_behind() -> None:
    store = GatedStore()
    array = make_array(store)
    store.opened = {"c/0"}
    for _ in BlockStream(array):
        until(lambda: store.in_flight == 9)
        break
    gc.collect()
    until(lambda: store.in_flight == 0)
    assert len(store.cancelled) == 9


def test_a_stream_is_collected_with_its_arrays() -> None:
    store = GatedStore()
    array = make_array(store)
    stream = BlockStream(array)
    next(stream)
    alive = weakref.ref(stream), weakref.ref(store)
    del stream, array, store
    until(lambda: gc.collect() >= 0 and not decode_threads() and not any(ref() for ref in alive))


def test_delivered_blocks_are_not_kept() -> None:
    array = make_array(blocks=20)
    refs = []
    with BlockStream(array) as stream:
        for block in stream:
            refs.append(weakref.ref(block.array))
            del block
            if len(refs) > 2:
                gc.collect()
                assert sum(ref() is not None for ref in refs[:-1]) == 0


def test_delivered_blocks_are_not_kept_by_those_that_are_fetched_with_them() -> None:
    store = GatedStore()
    array = make_array(store, blocks=10)
    store.opened = {f"c/{number}" for number in range(9)}
    refs = []
    with BlockStream(array) as stream:
        for block in stream:
            refs.append(weakref.ref(block.array))
            del block
            if len(refs) == 9:
                gc.collect()
                assert sum(ref() is not None for ref in refs[:-1]) == 0
                store.opened = None
    assert len(refs) == 10


PROGRAMS = {
    "forgotten": "for block in stream: break",
    "global": "next(stream)",
    "waiting": """
def take():
    with suppress(RuntimeError, ValueError):  # no more threads, or closed
        list(stream)

threading.Thread(target=take, daemon=True).start()
time.sleep(0.05)
""",
    "async": "asyncio.run(anext_of(stream))",
    "transform": (
        "stream = BlockStream(array, transform=lambda b: b.index and time.sleep(60)); next(stream)"
    ),
    "unfinished": "with suppress(ZeroDivisionError):\n    for block in stream: 1 / 0",
    "uncaught cycle": "stream.me = stream if hasattr(stream, '__dict__') else None; next(stream)",
    "forked": """
next(stream)
if (child := os.fork()) == 0:
    try:
        next(stream)
    except RuntimeError as error:
        assert "fork" in str(error)
    stream.close()
    fresh = BlockStream(array)
    assert len(list(fresh)) == 200
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("slow", [False, True])
def test_a_program_that_forgets_a_stream_exits_at_once(
    program: str, slow: bool, tmp_path: Path
) -> None:
    if program == "forked" and (slow or not hasattr(os, "fork")):
        pytest.skip("needs fork")
    make_array(tmp_path / "array.zarr", blocks=200)
    text = f"""
import asyncio, os, sys, threading, time
from contextlib import suppress
import zarr
from zarr.experimental.block_stream import BlockStream
from zarr.storage import LocalStore

class Slow(LocalStore):
    async def get(self, key, *args, **options):
        if key.startswith("c/") and key != "c/0":
            await asyncio.sleep(60)
        return await super().get(key, *args, **options)

async def anext_of(stream):
    await anext(stream)

array = zarr.open_array({"Slow" if slow else "LocalStore"}({str(tmp_path / "array.zarr")!r}))
stream = BlockStream(array, readahead_bytes=20_000)
{PROGRAMS[program]}
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "always", "-W", "ignore::DeprecationWarning", "-c", text],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert time.monotonic() - began < SECONDS / 2


def count(path: str) -> int:
    """What a worker does."""
    with BlockStream(zarr.open_array(path)) as stream:
        return sum(values(stream))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_workers(method: str, tmp_path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    path = str(tmp_path / "array.zarr")
    make_array(path)
    assert count(path) == 55  # so that a forked worker finds threads of its parent's
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(count, (path,)).get(SECONDS) == 55


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_workers(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    path = str(tmp_path / "array.zarr")
    make_array(path)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert client.gather(client.map(count, [path] * 4, pure=False)) == [55] * 4


def test_many_streams_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "array.zarr")
    make_array(path, blocks=20)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, [path] * 24)) == [210] * 24


# --- stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "zip", "memory"])
def test_stores_of_this_machine(kind: str, tmp_path: Path) -> None:
    numbers = np.arange(300 * 40).reshape(300, 40)
    store: Store = MemoryStore()
    if kind == "local":
        store = LocalStore(tmp_path / "array.zarr")
    elif kind == "zip":
        store = zarr.storage.ZipStore(tmp_path / "array.zip", mode="w")
    array = zarr.create_array(store, data=numbers, chunks=(3, 20))
    with BlockStream(array) as stream:
        np.testing.assert_array_equal(np.concatenate([b.array for b in stream]), numbers)
    store.close()
