"""Reports count what the process reads from its stores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.core.config import config
from zarr.errors import ZarrUserWarning
from zarr.experimental.read_report import ReadReport, report_reads
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from zarr.core.buffer import Buffer

VALUES = np.arange(1, 101, dtype="int32")


class WithoutSync(MemoryStore):
    """Read with `get_many` by both pipelines."""

    _supports_sync_io = False


@pytest.fixture(params=["BatchedCodecPipeline", "FusedCodecPipeline"], autouse=True)
def _pipeline(request: pytest.FixtureRequest) -> Iterator[None]:
    with config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield


@pytest.fixture(params=["memory", "local", "without sync"])
def array(request: pytest.FixtureRequest, tmp_path: Path) -> zarr.Array[Any]:
    stores: dict[str, Any] = {
        "memory": MemoryStore,
        "local": lambda: LocalStore(tmp_path),
        "without sync": WithoutSync,
    }
    store = stores[request.param]()
    array = zarr.create_array(store, shape=(100,), chunks=(10,), dtype="int32", compressors=None)
    array[:90] = VALUES[:90]
    return zarr.open_array(store, mode="r")


def test_chunks(array: zarr.Array[Any]) -> None:
    with report_reads() as report:
        array[:]
    assert (report.requests, report.absent, report.nbytes) == (10, 1, 9 * 40)
    assert 1 <= report.reads <= 10
    assert report.seconds > 0
    before = report.requests
    array[:]
    assert report.requests == before


def test_a_single_chunk(array: zarr.Array[Any]) -> None:
    with report_reads() as report:
        array[5]
    assert (report.requests, report.reads, report.merged, report.nbytes) == (1, 1, 0, 40)


def test_metadata(array: zarr.Array[Any]) -> None:
    with report_reads() as report:
        zarr.open_array(array.store, mode="r", zarr_format=3)
    assert report.requests == 1
    assert report.nbytes > 100


class Together(WithoutSync):
    """Returns all values at once."""

    async def get_many(
        self, requests: Any, *, prototype: Any, max_concurrency: int | None = None
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        yield [(index, await self.get(key, prototype)) for index, key in enumerate(requests)]


def test_merged_reads() -> None:
    array = zarr.create_array(Together(), data=VALUES, chunks=(1,), compressors=None)
    with report_reads() as report:
        array[:]
    assert (report.requests, report.reads, report.merged) == (100, 1, 1)


@pytest.mark.parametrize("selection", [slice(None), slice(5, 25)])
def test_shards(selection: slice) -> None:
    store = WithoutSync()
    array = zarr.create_array(store, data=VALUES, chunks=(10,), shards=(50,), compressors=None)
    with report_reads() as report:
        array[selection]
    assert report.nbytes >= np.asarray(array[selection]).nbytes
    assert report.requests == (2 if selection == slice(None) else 4)


def test_other_threads(array: zarr.Array[Any]) -> None:
    with report_reads() as report, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: array.blocks[index], range(10)))
    assert report.requests == 10


def test_dask_threads(array: zarr.Array[Any]) -> None:
    dask_array = pytest.importorskip("dask.array")
    with report_reads() as report:
        dask_array.from_zarr(array).sum().compute(scheduler="threads")
    assert report.requests >= 10


def test_nested_and_concurrent_reports(array: zarr.Array[Any]) -> None:
    both = threading.Barrier(2, timeout=30)
    reports: list[ReadReport] = []

    def read() -> None:
        with report_reads() as report:
            both.wait()
            array[:]
            both.wait()
        reports.append(report)

    with report_reads() as outer:
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [outer.requests, *(report.requests for report in reports)] == [20, 20, 20]


def test_nothing_was_read() -> None:
    with pytest.warns(ZarrUserWarning, match="other processes"), report_reads():
        pass


def test_the_error_of_the_block_is_raised(array: zarr.Array[Any]) -> None:
    def read() -> None:
        with report_reads():
            array[5]
            raise KeyError("an error of the block")

    with pytest.raises(KeyError, match="of the block"):
        read()


def test_printed() -> None:
    report = ReadReport(requests=1024, absent=1, reads=6, merged=5, nbytes=123456, seconds=0.5)
    assert str(report).splitlines() == [
        "requests         1,024  1 absent",
        "reads                6  5 merged",
        "bytes          123,456",
        "seconds          0.500",
    ]
