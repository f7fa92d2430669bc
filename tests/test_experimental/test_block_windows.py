"""What windows of a `BlockStream` fetch and decode: each chunk once, whatever the blocks are."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zarr
import zarr.api.asynchronous
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync
from zarr.experimental.block_stream import Block, BlockStream, BlockStreamStats
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class CountingStore(MemoryStore):
    """Remembers which chunks were read, how many bytes, and how many reads ran at once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reads: Counter[str] = Counter()
        self.nbytes = 0
        self.running = self.most = 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        if "/c/" in f"/{key}":
            self.running += 1
            self.most = max(self.most, self.running)
            self.reads[key] += 1
            self.nbytes += 0 if value is None else len(value)
            await asyncio.sleep(0.001)
            self.running -= 1
        return value


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all chunks that zstd has decoded."""
    sizes: list[int] = []
    decode = ZstdCodec._decode_sync

    def spy(self: ZstdCodec, chunk: Buffer, spec: Any) -> Buffer:
        sizes.append(len(chunk))
        return decode(self, chunk, spec)

    monkeypatch.setattr(ZstdCodec, "_decode_sync", spy)
    return sizes


def array_of(
    chunks: Any, shards: Any = None, shape: tuple[int, ...] = (21_500,), **options: Any
) -> tuple[CountingStore, zarr.Array[Any], np.ndarray[Any, Any]]:
    store, values = CountingStore(), np.arange(np.prod(shape)).reshape(shape)
    array = zarr.create_array(
        store, data=values, chunks=chunks, shards=shards, compressors=ZstdCodec(), **options
    )
    store.reads.clear()
    store.nbytes = 0
    return store, array, values


@pytest.mark.parametrize("block_length", [1, 300, 1000, 2500, 7000, 30_000])
@pytest.mark.parametrize("budget", [2_000_000, 1 << 28])
def test_chunks_of_arrays_in_step_are_read_once(
    block_length: int, budget: int, decoded: list[int]
) -> None:
    if block_length == 1 and budget < 1 << 28:
        pytest.skip("slow, and no other case")
    parts = {"a": array_of(1000), "b": array_of(10_000), "c": array_of(1000, shards=7000)}
    arrays = {name: array for name, (_, array, _) in parts.items()}
    stream = BlockStream(arrays, block_length=block_length, readahead_bytes=budget)
    blocks = list(stream)
    assert len(blocks) == len(stream) == -(-21_500 // block_length)
    for name, (store, _, values) in parts.items():
        np.testing.assert_array_equal(np.concatenate([b.arrays[name] for b in blocks]), values)
        if name != "c":
            assert set(store.reads.values()) == {1}
    assert [block.span for block in blocks] == [
        slice(start, min(start + block_length, 21_500)) for start in range(0, 21_500, block_length)
    ]
    assert len(decoded) == 22 + 3 + 22


def test_rows_of_a_shard_are_read_without_the_shard(decoded: list[int]) -> None:
    """The bytes that are read are those of the inner chunks, and of the index for each window."""
    store, array, values = array_of((64, 64), (1024, 1024), (2048, 1024))
    with BlockStream(array, block_length=64, blocks=range(3, 9)) as stream:
        for block in stream:
            np.testing.assert_array_equal(block.array, values[block.span])
            assert block.array.shape == (64, 1024)
    assert len(decoded) == 6 * 16
    windows, index_nbytes = 2, 16 * 16 * 16 + 4  # windows of 1 and 5 blocks
    assert store.nbytes == sum(decoded) + windows * index_nbytes
    decoded.clear()
    with BlockStream(array, block_length=64) as stream:
        np.testing.assert_array_equal(np.concatenate([b.array for b in stream]), values)
    assert len(decoded) == 2 * 16 * 16


def test_neighbours_in_a_list_of_blocks_are_read_together() -> None:
    calls: list[int] = []

    class Together(MemoryStore):
        async def get_many(
            self, requests: Any, *, prototype: BufferPrototype, max_concurrency: int | None = None
        ) -> Any:
            calls.append(len(requests))
            async for group in super().get_many(requests, prototype=prototype):
                yield group

    array = zarr.create_array(Together(), data=np.arange(40), chunks=(2,))
    wanted = [7, 3, 4, 15, 16, 17, 18, 0, 0, -1]
    with BlockStream(array, blocks=wanted) as stream:
        blocks = list(stream)
    assert [block.index for block in blocks] == [*wanted[:-1], 19]
    assert [block.array[0] for block in blocks] == [2 * block.index for block in blocks]
    # Windows of 1, 8 and 1 blocks; those of the second are in three places.
    assert calls == [1, 1, 2, 4, 1]
    assert blocks[7].array is not blocks[8].array
    assert not np.shares_memory(blocks[7].array, blocks[8].array)


def test_each_copy_of_a_repeated_block_counts() -> None:
    _, array, _ = array_of(10_000, shape=(20_000,))
    with BlockStream(array, blocks=[0] * 60, readahead_bytes=1_000_000) as stream:
        assert len(list(stream)) == 60
    assert 2 <= stream.stats.max_blocks_in_flight <= 12


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_blocks_of_arrays_in_step(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 40))
    arrays: dict[str, zarr.Array[Any]] = {}
    for name in data.draw(st.sampled_from(["a", "ab", "abc"])):
        chunk = data.draw(st.integers(1, 12))
        arrays[name] = zarr.create_array(
            {},
            data=np.arange(length * 3, dtype="int16").reshape(length, 3),
            chunks=(chunk, 2),
            shards=data.draw(st.sampled_from([None, (2 * chunk, 4)])),
        )
    block_length = data.draw(st.integers(1, 15))
    count = -(-length // block_length)
    blocks = data.draw(st.lists(st.integers(0, count - 1), max_size=30))
    with BlockStream(
        arrays,
        block_length=block_length,
        blocks=blocks,
        readahead_bytes=data.draw(st.sampled_from([1, 20_000, 1 << 28])),
    ) as stream:
        delivered = list(stream)
    assert [block.index for block in delivered] == blocks
    for block in delivered:
        for name, array in arrays.items():
            np.testing.assert_array_equal(block.arrays[name], array[block.span])


@pytest.mark.parametrize("shards", [None, (8, 8)])
def test_limits_of_several_streams_are_apart(shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps to its own number of requests, and of threads that decode."""
    decode = ZstdCodec._decode_sync
    lock = threading.Lock()
    running: Counter[int] = Counter()
    most: Counter[int] = Counter()

    def spy(self: ZstdCodec, chunk: Buffer, spec: Any) -> Buffer:
        assert threading.current_thread().name == "zarr_block_decode"
        with lock:
            running[self.level] += 1
            most[self.level] = max(most[self.level], running[self.level])
        time.sleep(0.001)
        with lock:
            running[self.level] -= 1
        return decode(self, chunk, spec)

    stores, arrays = [], []
    for level in (1, 2):
        stores.append(CountingStore())
        arrays.append(
            zarr.create_array(
                stores[-1],
                data=np.random.default_rng(0).integers(0, 9, (160, 8)),
                chunks=(2, 8),
                shards=shards,
                compressors=ZstdCodec(level=level),
            )
        )
    monkeypatch.setattr(ZstdCodec, "_decode_sync", spy)

    def read(array: zarr.Array[Any], io: int, threads: int) -> int:
        with BlockStream(array, io_concurrency=io, decode_threads=threads) as stream:
            return sum(len(block.array) for block in stream)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, arrays, (2, 5), (3, 1))) == [160, 160]
    assert [store.most for store in stores] == [2, 5]
    assert most[2] == 1
    assert most[1] in (2, 3)


@pytest.mark.parametrize("limit", [3, 16])
def test_stores_of_a_stream_share_its_limit(limit: int) -> None:
    """Those that serve many requests at once, those that do not, and single inner chunks."""
    running = most = 0

    class Counted(MemoryStore):
        async def get(self, key: str, *args: Any, **options: Any) -> Buffer | None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.002)
            running -= 1
            return await super().get(key, *args, **options)

    class Many(Counted):
        async def get_many(
            self, requests: Any, *, prototype: BufferPrototype, max_concurrency: int | None = None
        ) -> Any:
            async for group in Store.get_many(
                self, requests, prototype=prototype, max_concurrency=max_concurrency
            ):
                yield group

    values = np.arange(320).reshape(160, 2)
    arrays = {
        "each": zarr.create_array(Counted(), data=values, chunks=(2, 2)),
        "many": zarr.create_array(Many(), data=values, chunks=(2, 2)),
        "shards": zarr.create_array(Many(), data=values, chunks=(2, 1), shards=(8, 2)),
    }
    most = 0
    with BlockStream(arrays, block_length=2, io_concurrency=limit) as stream:
        for block in stream:
            for name in arrays:
                np.testing.assert_array_equal(block.arrays[name], values[block.span])
    assert limit // 2 < most <= limit


def test_asynchronous_arrays_belong_to_the_loop_that_runs() -> None:
    loops: set[Any] = set()

    class Watching(MemoryStore):
        async def get(self, *args: Any, **options: Any) -> Buffer | None:
            loops.add(asyncio.get_running_loop())
            return await super().get(*args, **options)

    async def read() -> list[int]:
        store = Watching()
        array = await zarr.api.asynchronous.create_array(
            store, shape=(6,), chunks=(2,), dtype="int8", fill_value=3
        )
        loops.clear()
        async with BlockStream(array) as stream:
            return [int(block.array.sum()) async for block in stream]

    async def read_here() -> tuple[list[int], set[Any]]:
        return await read(), {asyncio.get_running_loop()}

    found, here = asyncio.run(read_here())
    assert found == [6, 6, 6]
    assert loops == here
    array = sync(
        zarr.api.asynchronous.create_array(Watching(), shape=(4,), chunks=(2,), dtype="i1")
    )
    assert len(list(BlockStream(array))) == 2


def test_an_error_while_threads_share_a_stream_ends_all_of_them() -> None:
    _, array, _ = array_of(2, shape=(60,))

    def refuse(block: Block) -> int:
        if block.index == 9:
            raise OSError("refused")
        return block.index

    stream = BlockStream(array, transform=refuse)
    barrier = threading.Barrier(4)

    def take(_: int) -> str:
        barrier.wait(20)
        try:
            list(stream)
        except (OSError, RuntimeError) as error:
            return str(error)
        return "as if all were well"

    with ThreadPoolExecutor(4) as pool:
        outcomes = Counter(pool.map(take, range(4)))
    assert outcomes == {"refused": 1, "The stream has ended: block 9 failed.": 3}


def test_a_stream_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(BlockStream(array_of(2, shape=(4,))[1]))


def test_figures_print_as_a_table() -> None:
    lines = str(BlockStreamStats(blocks=1234, waited_seconds=1.5)).splitlines()
    assert lines[0].split() == ["blocks", "1,234"]
    assert lines[6].split() == ["waited_seconds", "1.500"]
    assert len(lines) == 8
    assert len({len(line) for line in lines}) == 1
