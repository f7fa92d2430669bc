"""Tests for `zarr.experimental._block_reader`: blocks are read ahead, in order, and come to an end."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.experimental._block_reader import BlockReader, Part, _Block
from zarr.experimental._block_reads import ArrayBlocks
from zarr.experimental._first_axis import FirstAxis
from zarr.experimental._readahead import Readahead
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.experimental._handover import Outcome

COUNT = 12
VALUES = np.arange(COUNT * 3 * 4).reshape(COUNT * 3, 4)


class FailsAt(MemoryStore):
    """Cannot read the chunks of one block."""

    key = "none"

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if key.startswith(self.key):
            raise OSError(key)
        return await super().get(key, prototype, byte_range)


@pytest.fixture
def begin() -> Generator[Callable[..., BlockReader]]:
    readers: list[BlockReader] = []

    def begin(
        store: MemoryStore, indices: Sequence[int] = range(COUNT), finish: Any = None
    ) -> BlockReader:
        array = zarr.create_array(store, data=VALUES, chunks=(3, 2), overwrite=True)
        blocks = ArrayBlocks(array)
        part = Part(blocks, FirstAxis(array.shape, blocks.grid), blocks.decoder())
        reader = BlockReader(
            {"values": part},
            indices,
            readahead=Readahead(len(indices), lambda _: VALUES[:3].nbytes, 1 << 12),
            io_concurrency=4,
            decode_threads=2,
            finish=finish or (lambda index, arrays: (index, arrays["values"])),
            each=finish is not None,
        )
        readers.append(reader)
        return reader

    yield begin
    for reader in readers:
        reader.close()
        assert reader.ended.done()
        for thread in reader._threads.threads:
            thread.join(30)
            assert not thread.is_alive()


def take(reader: BlockReader) -> Outcome:
    while True:
        there = Event()
        outcome = reader.take(there.set, None)
        if outcome is not None:
            return outcome
        assert there.wait(30)


@pytest.mark.parametrize("indices", [range(COUNT), [5, 0, 5, 11], []])
def test_blocks_come_in_the_order_that_they_are_wanted_in(
    begin: Callable[..., BlockReader], indices: Sequence[int]
) -> None:
    reader = begin(MemoryStore(), indices)
    for expected in indices:
        index, values = take(reader).value
        assert index == expected
        np.testing.assert_array_equal(values, VALUES[3 * index : 3 * index + 3])
    for _ in range(2):
        assert isinstance(take(reader).error, StopIteration)
    assert reader.stats().blocks == len(indices)


def test_an_error_comes_at_its_block(begin: Callable[..., BlockReader]) -> None:
    store = FailsAt()
    store.key = "c/7/"
    reader = begin(store)
    assert [take(reader).value[0] for _ in range(7)] == list(range(7))
    error = take(reader).error
    assert isinstance(error, OSError)
    assert str(error).startswith("c/7/")


def test_what_finishes_a_block_runs_apart(begin: Callable[..., BlockReader]) -> None:
    def finish(index: int, arrays: dict[str, Any]) -> int:
        if index == 3:
            raise ZeroDivisionError
        return int(arrays["values"].sum())

    reader = begin(MemoryStore(), finish=finish)
    assert [take(reader).value for _ in range(3)] == VALUES[:9].reshape(3, 12).sum(1).tolist()
    assert isinstance(take(reader).error, ZeroDivisionError)


def test_threads_decode_to_the_same_block(begin: Callable[..., BlockReader]) -> None:
    """Each may be the first to decode one of its chunks."""
    reader = begin(MemoryStore())
    block = _Block(0, 0)
    filling = reader._filling(block, "values")
    assert reader._filling(block, "values") is filling
    assert block.parts == {"values": filling}


def test_what_was_fetched_counts_while_a_block_is_read(
    begin: Callable[..., BlockReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    weighed: dict[int, tuple[int, int]] = {}
    finish = Readahead.finish

    def spy(self: Readahead, position: int, running: int, finished: int) -> None:
        weighed[position] = running, finished
        finish(self, position, running, finished)

    monkeypatch.setattr(Readahead, "finish", spy)
    reader = begin(store)
    while not isinstance(take(reader).error, StopIteration):
        pass
    for block in range(COUNT):
        fetched = sum(len(store._store_dict[f"c/{block}/{column}"]) for column in range(2))
        decoded = VALUES[:3].nbytes
        assert weighed[block] == (fetched + decoded, decoded)


def test_a_reader_that_is_closed_has_no_more(begin: Callable[..., BlockReader]) -> None:
    reader = begin(MemoryStore())
    assert take(reader).value[0] == 0
    reader.close()
    assert isinstance(take(reader).error, StopIteration)
    assert reader.ended.done()
