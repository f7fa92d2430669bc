"""How the codec pipelines read whole chunks: one `get_many`, decoding as bytes arrive.

A store hands out chunks when it is told to, and codecs note when and where they are called.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter, defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from numcodecs import Delta

from tests.event_loop import nothing_left_behind, turns, until
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.codecs import numcodecs as numcodecs_codecs
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import (
    BatchedCodecPipeline,
    FusedCodecPipeline,
    _run_on_threads,
)
from zarr.core.config import config
from zarr.core.dtype import Int32
from zarr.storage import MemoryStore, StorePath

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Generator,
        Iterable,
        Sequence,
    )

    from zarr.abc.codec import Codec, GetResult
    from zarr.abc.store import ByteGetter, ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer


PROTOTYPE = default_buffer_prototype()


type Pipeline = BatchedCodecPipeline | FusedCodecPipeline

PIPELINES: dict[str, type[Pipeline]] = {
    "batched": BatchedCodecPipeline,
    "fused": FusedCodecPipeline,
}


def chunk(number: int) -> Buffer:
    return PROTOTYPE.buffer.from_bytes(np.array([number] * 4 + [-7], dtype="<i4").tobytes())


class ChunkStore(MemoryStore):
    """A store of numbered chunks that hands each out when it is told to.

    Chunk `n` is four times the number `n`, and -7, which is not read. `get_many` reports in the
    order of arrival.
    """

    _supports_sync_io = False

    def __init__(self, count: int, *, closed: Iterable[int] = (), forgotten: int = -1) -> None:
        super().__init__()
        for number in range(count):
            self._store_dict[f"c/{number}"] = chunk(number)
        self.forgotten = forgotten
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        for number in set(range(count)) - set(closed):
            self.let(number)
        self.failures: dict[str, Exception] = {}
        self.requested: list[list[str]] = []
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.running = 0

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self.gates[f"c/{number}"].set()

    def fail(self, number: int, error: Exception) -> None:
        self.failures[f"c/{number}"] = error
        self.let(number)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.started.append(key)
        self.running += 1
        try:
            await self.gates[key].wait()
        except asyncio.CancelledError:
            await turns(3)  # cleaning up takes a while
            self.cancelled.append(key)
            raise
        finally:
            self.running -= 1
        if key in self.failures:
            raise self.failures[key]
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        self.requested.append([request for request in requests if isinstance(request, str)])
        many = Store.get_many(self, requests, prototype=prototype)
        async with aclosing(cast("AsyncGenerator[Any]", many)) as groups:
            async for group in groups:
                if group[0][0] != self.forgotten:
                    yield group


caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@dataclass
class Work:
    """What the codecs of a test do, and what they have done."""

    decoded: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    callers: set[str] = field(default_factory=set)
    batches: list[int] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    held: set[int] = field(default_factory=set)
    release: threading.Event = field(default_factory=threading.Event)
    failures: dict[int, BaseException] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, value: Buffer) -> int:
        number = int(np.frombuffer(value.to_bytes(), dtype="<i4")[0])
        with self.lock:
            self.decoded.append(number)
            self.threads.add(threading.get_ident())
            self.callers.add(caller.get())
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        return number

    def end(self, number: int) -> None:
        with self.lock:
            self.active -= 1
        if number in self.failures:
            raise self.failures[number]

    def is_held(self, number: int) -> bool:
        return number in self.held and not self.release.is_set()


@dataclass(frozen=True)
class SyncCodec(BytesBytesCodec):
    """Leaves bytes as they are. Decoding is synchronous."""

    __module__ = "zarr.codecs.bytes"  # so it counts as one of zarr's

    work: Work = field(default_factory=Work, compare=False)

    is_fixed_size = True

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        number = self.work.begin(chunk_data)
        if self.work.is_held(number):
            assert self.work.release.wait(30)
        self.work.end(number)
        return chunk_data

    def _encode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return chunk_data

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


@dataclass(frozen=True)
class ForeignCodec(SyncCodec):
    """The same in another package."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return super()._decode_sync(chunk_data, chunk_spec)


@dataclass(frozen=True)
class AsyncCodec(BytesBytesCodec):
    """Leaves bytes as they are. Decoding is asynchronous, and nothing else."""

    work: Work = field(default_factory=Work, compare=False)

    is_fixed_size = True

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        number = self.work.begin(chunk_data)
        try:
            while self.work.is_held(number):
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.work.end(-1)
            raise
        self.work.end(number)
        return chunk_data

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        chunks_and_specs = list(chunks_and_specs)
        self.work.batches.append(len(chunks_and_specs))
        return await super().decode(chunks_and_specs)


SPEC = ArraySpec(
    shape=(5,),
    dtype=Int32(),
    fill_value=np.int32(-1),
    config=ArrayConfig(order="C", write_empty_chunks=True),
    prototype=PROTOTYPE,
)


class Reader:
    """Reads all chunks of a store, one after the other, into one array."""

    def __init__(
        self,
        store: ChunkStore,
        count: int,
        codec: Codec | None = None,
        *,
        cls: type[Pipeline] = BatchedCodecPipeline,
        batch_size: int = 1,
    ) -> None:
        codecs: list[Codec] = [BytesCodec()] if codec is None else [BytesCodec(), codec]
        self.pipeline = cls.from_codecs(codecs, batch_size=batch_size).evolve_from_array_spec(SPEC)
        self.batch: list[Any] = [
            (StorePath(store, f"c/{n}"), SPEC, (slice(4),), (slice(4 * n, 4 * n + 4),), False)
            for n in range(count)
        ]
        self.array = np.full(4 * count, 99, dtype="int32")
        self.out: NDBuffer = PROTOTYPE.nd_buffer.from_ndarray_like(self.array)

    async def read(self) -> list[str]:
        results: tuple[GetResult, ...] = await self.pipeline.read(self.batch, self.out)
        return [result["status"] for result in results]

    def start(self) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self.read())

    @property
    def values(self) -> list[int]:
        """What stands at the place of each chunk."""
        chunks = self.array.reshape(-1, 4)
        assert (chunks == chunks[:, :1]).all()
        return [int(value) for value in chunks[:, 0]]


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


@pytest.fixture
def work() -> Generator[Work]:
    work = Work()
    yield work
    work.release.set()


ROADS = {
    "batched-sync": (BatchedCodecPipeline, SyncCodec),
    "fused-sync": (FusedCodecPipeline, SyncCodec),
    "batched-foreign": (BatchedCodecPipeline, ForeignCodec),
    "batched-async": (BatchedCodecPipeline, AsyncCodec),
    "fused-async": (FusedCodecPipeline, AsyncCodec),
}
"""The pipelines, each with a codec that worker threads can run and with one that they can't."""


type MakeReader = Callable[..., Reader]


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    cls, codec = ROADS[request.param]
    return lambda store, count, **kwargs: Reader(store, count, codec(work), cls=cls, **kwargs)


@pytest.fixture(params=["batched", "fused"])
def threads(request: pytest.FixtureRequest, work: Work) -> MakeReader:
    """The pipelines with a codec that worker threads run."""
    cls = PIPELINES[request.param]
    return lambda store, count, **kwargs: Reader(store, count, SyncCodec(work), cls=cls, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
async def test_one_get_many_for_a_read(road: MakeReader, batch_size: int) -> None:
    store = ChunkStore(20)
    reader = road(store, 20, batch_size=batch_size)
    assert await reader.read() == ["present"] * 20
    assert reader.values == list(range(20))
    assert store.requested == [[f"c/{number}" for number in range(20)]]


async def test_the_fused_pipeline_decodes_a_single_chunk_synchronously(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(ChunkStore(1), 1, cls=FusedCodecPipeline)
    monkeypatch.setattr(BytesCodec, "_decode_single", None)
    assert await reader.read() == ["present"]
    assert reader.values == [0]


async def test_a_single_chunk_without_compression_takes_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zarr.core.codec_pipeline._run_in_thread", None)
    assert await Reader(ChunkStore(1), 1).read() == ["present"]


async def test_results_are_in_the_order_of_the_batch(road: MakeReader) -> None:
    """Whatever arrives first, and whatever is missing."""
    store = ChunkStore(6, closed=range(8))
    del store._store_dict["c/2"]
    reader = road(store, 8)
    task = reader.start()
    for number in (7, 3, 2, 0, 5, 6, 1, 4):
        store.let(number)
        await turns(10)
    statuses = await task
    expected = [-1 if number in (2, 6, 7) else number for number in range(8)]
    assert reader.values == expected
    assert statuses == ["missing" if value == -1 else "present" for value in expected]


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_decoding_starts_before_the_last_byte_is_there(
    road: MakeReader, work: Work, batch_size: int
) -> None:
    store = ChunkStore(10, closed=[9])
    reader = road(store, 10, batch_size=batch_size)
    task = reader.start()
    await until(lambda: reader.values[:9] == list(range(9)))
    assert sorted(work.decoded) == list(range(9))
    assert reader.values[9] == 99
    assert not task.done()
    store.let(9)
    await task
    assert reader.values == list(range(10))


async def test_decoding_is_done_on_worker_threads(threads: MakeReader, work: Work) -> None:
    """Few of them, since the chunks are small. They see the context variables of the caller."""
    token = caller.set("somebody")
    work.held = {0}
    task = threads(ChunkStore(20), 20).start()
    await until(lambda: work.active)
    await turns(500)
    assert work.decoded == [0]
    work.release.set()
    await task
    caller.reset(token)
    assert threading.get_ident() not in work.threads
    assert work.callers == {"somebody"}


@pytest.fixture
def work_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as they are, each of these chunks is enough work for a thread."""
    monkeypatch.setattr("zarr.core.codec_pipeline.DECODED_PER_SHARE", 20)


@pytest.mark.usefixtures("work_for_many")
@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_the_number_of_threads_is_limited(
    threads: MakeReader, work: Work, workers: int
) -> None:
    """`threading.max_workers` for one pipeline, `codec_pipeline.max_workers` for the other."""
    work.held = set(range(30))
    setting = {"threading.max_workers": workers, "codec_pipeline.max_workers": workers}
    with config.set({**setting, "async.concurrency": 30}):
        reader = threads(ChunkStore(30), 30)
        task = reader.start()
        await until(lambda: work.active == workers)
        await asyncio.sleep(0.02)
        assert len(work.decoded) == workers
        work.release.set()
        await task
    assert work.most_active == workers
    assert reader.values == list(range(30))


async def test_a_thread_decodes_many_chunks(
    threads: MakeReader, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change of thread for each chunk: what is there is worked through in one go."""
    hops = 0
    loop = asyncio.get_running_loop()
    original = loop.run_in_executor

    def run_in_executor(*args: Any) -> Any:
        nonlocal hops
        hops += 1
        return original(*args)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        task = threads(ChunkStore(200), 200).start()
        await until(lambda: work.decoded == [0])
        await turns(2000)
        work.release.set()
        await task
    assert len(work.decoded) == 200
    assert hops < 20


@pytest.mark.usefixtures("work_for_many")
@pytest.mark.parametrize("fails", [False, True])
async def test_what_waits_to_be_decoded_is_limited(
    threads: MakeReader, work: Work, fails: bool
) -> None:
    """A slow codec holds the store back, and if it fails then, the requests end as well."""
    work.held = {0}
    setting = {"threading.max_workers": 1, "codec_pipeline.max_workers": 1}
    with config.set({**setting, "async.concurrency": 4}):
        store = ChunkStore(100, closed=[5])
        reader = threads(store, 100)
        task = reader.start()
        await until(lambda: len(store.started) >= 6)
        await turns(500)
        # One is decoded, two wait, and four are in flight.
        assert len(store.started) <= 10
        if fails:
            work.failures[0] = OSError("not a valid stream")
            work.release.set()
            with pytest.raises(OSError, match="valid"):
                await task
            assert store.running == 0
        else:
            work.release.set()
            store.let(5)
            await task
            assert reader.values == list(range(100))


CALLS: Counter[str] = Counter()


@pytest.fixture
def calls() -> Counter[str]:
    CALLS.clear()
    return CALLS


class PipelineWithReadBatch(BatchedCodecPipeline):
    async def read_batch(
        self,
        batch_info: Iterable[tuple[ByteGetter, ArraySpec, Any, Any, bool]],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = list(batch_info)
        CALLS["chunks"] += len(batch)
        CALLS["batches"] += 1
        return await super().read_batch(batch, out, drop_axes)


class PipelineWithDecode(BatchedCodecPipeline):
    async def decode(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        batch = list(chunk_bytes_and_specs)
        CALLS["chunks"] += len(batch)
        CALLS["batches"] += 1
        return await super().decode(batch)


class PipelineWithDecodeBatch(BatchedCodecPipeline):
    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        batch = list(chunk_bytes_and_specs)
        CALLS["chunks"] += len(batch)
        CALLS["batches"] += 1
        return await super().decode_batch(batch)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("codec", [SyncCodec, AsyncCodec])
@pytest.mark.parametrize(
    "cls", [PipelineWithReadBatch, PipelineWithDecode, PipelineWithDecodeBatch]
)
async def test_what_a_pipeline_overrides_is_called(
    cls: type[BatchedCodecPipeline],
    codec: type[SyncCodec | AsyncCodec],
    batch_size: int,
    work: Work,
    calls: Counter[str],
) -> None:
    reader = Reader(ChunkStore(10), 10, codec(work), cls=cls, batch_size=batch_size)
    assert await reader.read() == ["present"] * 10
    assert reader.values == list(range(10))
    assert sorted(work.decoded) == list(range(10))
    batches = 1 if cls is PipelineWithReadBatch else -(-10 // batch_size)
    assert calls == {"chunks": 10, "batches": batches}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("fails", ["codec", "store"])
async def test_a_failure_ends_the_read(
    road: MakeReader, work: Work, fails: str, batch_size: int
) -> None:
    """It comes out as itself, at once, though other chunks will never arrive."""
    error = OSError("the cable is out")
    store = ChunkStore(10, closed=range(4, 10))
    task = road(store, 10, batch_size=batch_size).start()
    if fails == "codec":
        work.failures[2] = error
    else:
        await until(lambda: len(work.decoded) == 4)
        store.fail(5, error)
    async with asyncio.timeout(10):
        with pytest.raises(OSError) as caught:
            await task
    assert caught.value is error
    assert error.__cause__ is None
    if batch_size == 1:
        named = f"While reading 'c/{2 if fails == 'codec' else 5}' from memory://"
        assert named in str(error.__notes__)
    assert store.running == work.active == 0
    assert set(store.cancelled) == {f"c/{n}" for n in range(4, 10) if fails == "codec" or n != 5}


@pytest.mark.usefixtures("work_for_many")
@pytest.mark.parametrize("times", [1, 3])
async def test_no_thread_outlives_a_cancelled_read(
    threads: MakeReader, work: Work, times: int
) -> None:
    """A thread can't be cancelled: the read waits for the chunk that it is at, and for no other."""
    work.held = {0}
    with config.set({"threading.max_workers": 1, "codec_pipeline.max_workers": 1}):
        store = ChunkStore(10, closed=[9])
        reader = threads(store, 10)
        task = reader.start()
        await until(lambda: work.decoded == [0])
        await turns(200)
        for _ in range(times):
            task.cancel()
            await turns()
            assert not task.done()
        work.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    at_the_end = reader.array.copy()
    assert work.active == 0
    assert work.decoded == [0]
    assert store.running == 0
    assert store.cancelled == ["c/9"]
    await asyncio.sleep(0.02)
    np.testing.assert_array_equal(reader.array, at_the_end)


@pytest.mark.parametrize("forgotten", [0, 4, 9])
async def test_a_chunk_that_the_store_forgot_is_not_missing(
    road: MakeReader, forgotten: int
) -> None:
    """A store that reports less than it was asked for is in error; nothing is filled in silence."""
    with pytest.raises(RuntimeError, match="No result for 1 of 10 chunks"):
        await road(ChunkStore(10, forgotten=forgotten), 10).read()


# --- codecs and byte getters of others --------------------------------------------------------


class ForeignFilter(Delta):  # type: ignore[misc]
    """A filter of version 2 that is not one of numcodecs."""


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize(
    ("codecs", "on_threads"),
    [
        ("bytes, zstd", True),
        ("version 2", True),
        ("version 2, foreign filter", False),
        ("bytes, numcodecs", False),
        ("bytes, foreign, zstd", False),
    ],
)
def test_only_codecs_of_zarr_run_on_threads(codecs: str, on_threads: bool) -> None:
    made: dict[str, Callable[[], Any]] = {
        "bytes": BytesCodec,
        "zstd": ZstdCodec,
        "foreign": ForeignCodec,
        "numcodecs": numcodecs_codecs.LZ4,
        "version 2": lambda: V2Codec(filters=None, compressor=None),
        "foreign filter": lambda: V2Codec(filters=(ForeignFilter("i4"),), compressor=None),
    }
    chain = [made[name]() for name in codecs.split(", ")]
    assert _run_on_threads(chain) == on_threads


class OwnPath(StorePath):
    """Somebody's `StorePath` with a `get` of its own."""

    async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
        CALLS["get"] += 1
        return await super().get(*args, **kwargs)


class NoStore:
    """An object that passes for a store, and has no `get_many`."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer:
        CALLS["get"] += 1
        return chunk(int(key.removeprefix("c/")))


@pytest.mark.parametrize("kind", ["own path", "no store", "several stores"])
async def test_byte_getters_of_other_kinds(
    road: MakeReader, kind: str, calls: Counter[str]
) -> None:
    store, other = ChunkStore(10), ChunkStore(10)
    no_store: Any = NoStore()
    makers: dict[str, Callable[[int], StorePath]] = {
        "own path": lambda number: OwnPath(store, f"c/{number}"),
        "no store": lambda number: StorePath(no_store, f"c/{number}"),
        "several stores": lambda number: StorePath((store, other)[number % 2], f"c/{number}"),
    }
    reader = road(store, 10)
    reader.batch = [(makers[kind](n), *rest) for n, (_, *rest) in enumerate(reader.batch)]
    assert await reader.read() == ["present"] * 10
    assert reader.values == list(range(10))
    if kind == "several stores":
        assert sorted(store.started) == [f"c/{number}" for number in range(0, 10, 2)]
    else:
        assert calls == {"get": 10}
