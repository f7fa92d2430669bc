"""What is measured: each case prepares a read, which is not timed, and returns it, to be timed.

A new case is a function here, under `@case`. It gets a `Source`, which opens the arrays of
`bench/arrays.py`, and runs in the environment that is measured. The programs that list the cases
have no zarr: what a case imports from it, it imports inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.references import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr import Array
    from zarr.storage import FsspecStore

type Data = Literal["field", "large", "group", "shards", "blocks", "variants"]

CASES: dict[str, Case] = {}


def tile_edge(size: int, chunk: int) -> int:
    """The edge of the tile that is read from the middle of a square array."""
    return min(10 * chunk, size)


@dataclass(frozen=True, slots=True)
class Trial:
    """A read that is ready to be timed."""

    read: Callable[[], Any]
    warm_up: Callable[[], object] = lambda: None  # first, and not timed
    problems: Callable[[], list[str]] = list  # after the read: what it did that it must not


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A read to measure."""

    name: str
    title: str
    prepare: Callable[[Source], Trial]
    memory: bool  # whether it is about peak memory
    rounds: int  # reads in one process, of which the median counts
    latency_ms: float | None  # of the server; None: what the user asks for
    data: Data | None  # the array that it reads, where that is not one of its own


@dataclass(frozen=True, slots=True)
class Source:
    """Where a case reads from: a folder of arrays, and the server that serves it."""

    data: Path
    url: str
    size: int
    chunk: int

    @property
    def field(self) -> str:
        return f"field-{self.size}-{self.chunk}"

    @property
    def tile(self) -> tuple[slice, slice]:
        """A square in the middle, of ten chunks by ten, that does not keep to their borders."""
        edge = tile_edge(self.size, self.chunk)
        start = max(0, (self.size - edge) // 2 - self.chunk // 3)
        return (slice(start, start + edge),) * 2

    @property
    def one_chunk(self) -> tuple[slice, slice]:
        return (slice(0, self.chunk),) * 2

    def local(self) -> Array[Any]:
        return _open(self.data / self.field / "array.zarr")

    def zipped(self) -> Array[Any]:
        from zarr.storage import ZipStore

        return _open(ZipStore(self.data / self.field / "array.zip", mode="r"))

    def memory(self) -> Array[Any]:
        from zarr.storage import MemoryStore

        folder = self.data / self.field / "array.zarr"
        return _open(MemoryStore(_buffers(folder)))

    def http(self, name: str | None = None) -> Array[Any]:
        return _open(self.http_store(f"{name or self.field}/array.zarr"))

    def http_store(self, path: str) -> FsspecStore:
        from zarr.storage import FsspecStore

        options = {"skip_instance_cache": True}
        return FsspecStore.from_url(f"{self.url}/{path}", options, read_only=True)

    def object_store(self, name: str | None = None) -> Array[Any]:
        from obstore.store import HTTPStore

        from zarr.storage import ObjectStore

        url = f"{self.url}/{name or self.field}/array.zarr"
        http = HTTPStore.from_url(url, client_options={"allow_http": True})
        return _open(ObjectStore(http, read_only=True))

    def references(self, name: str | None = None) -> Array[Any]:
        import fsspec

        from zarr.storage import FsspecStore

        fs = fsspec.filesystem(
            "reference",
            fo=str(self.data / (name or self.field) / "references.json"),
            template_overrides={TEMPLATE: f"{self.url}/{name or self.field}/packed.bin"},
            remote_protocol="http",
            remote_options={"asynchronous": True, "skip_instance_cache": True},
            asynchronous=True,
        )
        return _open(FsspecStore(fs, read_only=True, path=""))


def reading(array: Array[Any], selection: Any = ...) -> Trial:
    """A read of a process that has read before: its imports, its threads, its connection are there."""
    one_chunk = tuple(slice(0, edge) for edge in array.chunks)
    return Trial(lambda: array[selection], warm_up=lambda: array[one_chunk])


def _open(store: Any, **options: Any) -> Array[Any]:
    import zarr

    return zarr.open_array(store, mode="r", **options)


def _buffers(folder: Path) -> dict[str, Any]:
    from zarr.core.buffer import default_buffer_prototype

    to_buffer = default_buffer_prototype().buffer.from_bytes
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): to_buffer(file.read_bytes()) for file in files}


def case(
    name: str,
    title: str,
    *,
    memory: bool = False,
    rounds: int = 1,
    latency_ms: float | None = None,
    data: Data | None = "field",
) -> Callable[[Callable[[Source], Trial]], Callable[[Source], Trial]]:
    """Add the decorated function to the cases."""

    def add(prepare: Callable[[Source], Trial]) -> Callable[[Source], Trial]:
        CASES[name] = Case(
            name=name,
            title=title,
            prepare=prepare,
            memory=memory,
            rounds=rounds,
            latency_ms=latency_ms,
            data=data,
        )
        return prepare

    return add


# --- over HTTP --------------------------------------------------------------------------------


@case(
    "http-whole",
    "whole array over HTTP",
)
def http_whole(source: Source) -> Trial:
    array = source.http()
    return reading(array)


@case(
    "references-whole",
    "whole array by references",
)
def references_whole(source: Source) -> Trial:
    array = source.references()
    return reading(array)


@case(
    "references-tile",
    "{tile}x{tile} tile by references",
)
def references_tile(source: Source) -> Trial:
    array = source.references()
    return reading(array, source.tile)


@case("http-chunk", "one chunk over HTTP", rounds=10)
def http_chunk(source: Source) -> Trial:
    array = source.http()
    return reading(array, source.one_chunk)


@case("references-chunk", "one chunk by references", rounds=10)
def references_chunk(source: Source) -> Trial:
    array = source.references()
    return reading(array, source.one_chunk)


@case(
    "object-store-whole",
    "whole array, ObjectStore over HTTP",
)
def object_store_whole(source: Source) -> Trial:
    array = source.object_store()
    return reading(array)


@case(
    "large-chunks",
    "1 GiB in chunks of 16 MiB over HTTP",
    memory=True,
    data="large",
)
def large_chunks(source: Source) -> Trial:
    array = source.http("large")
    return Trial(lambda: array[...])


@case(
    "large-object-store",
    "1 GiB in chunks of 16 MiB, ObjectStore over HTTP",
    memory=True,
    data="large",
)
def large_object_store(source: Source) -> Trial:
    array = source.object_store("large")
    return Trial(lambda: array[...])


@case(
    "large-local",
    "1 GiB in chunks of 16 MiB, LocalStore",
    memory=True,
    data="large",
)
def large_local(source: Source) -> Trial:
    array = _open(source.data / "large" / "array.zarr")
    return Trial(lambda: array[...])


@case(
    "large-memory",
    "1 GiB in chunks of 16 MiB, MemoryStore",
    memory=True,
    data="large",
)
def large_memory(source: Source) -> Trial:
    from zarr.storage import MemoryStore

    array = _open(MemoryStore(_buffers(source.data / "large" / "array.zarr")))
    return Trial(lambda: array[...])


@case(
    "large-zip",
    "1 GiB in chunks of 16 MiB, ZipStore",
    memory=True,
    data="large",
)
def large_zip(source: Source) -> Trial:
    from zarr.storage import ZipStore

    array = _open(ZipStore(source.data / "large" / "array.zip", mode="r"))
    return Trial(lambda: array[...])


# --- through dask -----------------------------------------------------------------------------


@case("dask-chunks", "whole array over HTTP, a dask task for each chunk")
def dask_chunks(source: Source) -> Trial:
    return _through_dask(source)


@case("dask-bands", "whole array over HTTP, 8 dask tasks of 128 chunks")
def dask_bands(source: Source) -> Trial:
    return _through_dask(source, chunks=(source.size // 8, source.size))


def _through_dask(source: Source, **chunks: Any) -> Trial:
    import dask.array

    array = source.http()
    lazy = dask.array.from_zarr(array, **chunks)
    return Trial(lambda: lazy.compute(scheduler="threads"), warm_up=lambda: array[source.one_chunk])


# --- shards -----------------------------------------------------------------------------------


@case(
    "shards-band",
    "16 whole shards over HTTP",
    data="shards",
)
def shards_band(source: Source) -> Trial:
    return _of_shards(source, slice(None), slice(0, 512))


@case("shards-columns", "10 columns through 8 shards over HTTP", rounds=3, data="shards")
def shards_columns(source: Source) -> Trial:
    return _of_shards(source, slice(None), slice(300, 310))


@case("shards-point", "one element of a shard over HTTP", rounds=10, data="shards")
def shards_point(source: Source) -> Trial:
    return _of_shards(source, 1000, 1000)


@case(
    "shards-scattered",
    "an inner chunk of each of 64 shards over HTTP",
    data="shards",
)
def shards_scattered(source: Source) -> Trial:
    return _of_shards(source, slice(16, None, 256), slice(16, None, 256))


@case(
    "shards-local",
    "16 whole shards, LocalStore",
    data="shards",
)
def shards_local(source: Source) -> Trial:
    array = _open(source.data / "shards" / "array.zarr")
    return Trial(lambda: array[:, :512], warm_up=lambda: array[1500, 1500])


def _of_shards(source: Source, *selection: Any) -> Trial:
    array = source.http("shards")
    return Trial(lambda: array[selection], warm_up=lambda: array[1500, 1500])


@case(
    "group-members",
    "members of a group of 1,000 arrays over HTTP",
    data="group",
)
def group_members(source: Source) -> Trial:
    import zarr

    group = zarr.open_group(source.http_store("group/group.zarr"), mode="r")

    def read() -> Any:
        import numpy as np

        return np.array([(name, str(array.shape)) for name, array in sorted(group.members())])

    return Trial(read)


# --- block by block ---------------------------------------------------------------------------

IO_CONCURRENCY = 32


@case(
    "blocks-local",
    "1,024 blocks of 16 KiB, LocalStore, in a loop",
    rounds=5,
    data="blocks",
)
def blocks_local(source: Source) -> Trial:
    return _block_by_block(_open(source.data / "blocks" / "array.zarr"), threads=1)


@case(
    "blocks-local-pool",
    "1,024 blocks of 16 KiB, LocalStore, 32 threads",
    rounds=5,
    data="blocks",
)
def blocks_local_pool(source: Source) -> Trial:
    return _block_by_block(_open(source.data / "blocks" / "array.zarr"))


@case(
    "blocks-references",
    "1,024 blocks by references, 32 threads",
    rounds=3,
    latency_ms=20,
    data="blocks",
)
def blocks_references(source: Source) -> Trial:
    return _block_by_block(source.references("blocks"))


@case(
    "blocks-http",
    "1,024 blocks over HTTP, 32 threads",
    # The floor is that of as many requests at a time, each of which takes as long as the latency.
    rounds=3,
    latency_ms=20,
    data="blocks",
)
def blocks_http(source: Source) -> Trial:
    return _block_by_block(source.http("blocks"))


@case(
    "blocks-local-together",
    "1,024 blocks of 16 KiB, LocalStore, 32 at a time",
    rounds=5,
    data="blocks",
)
def blocks_local_together(source: Source) -> Trial:
    array = _open(source.data / "blocks" / "array.zarr")
    return _block_by_block(array, threads=1, together=32)


@case(
    "blocks-references-together",
    "1,024 blocks by references, 32 at a time",
    rounds=3,
    latency_ms=20,
    data="blocks",
)
def blocks_references_together(source: Source) -> Trial:
    return _block_by_block(source.references("blocks"), threads=1, together=32)


@case("blocks-shards", "8 rows of 8 shards over HTTP, 32 threads", latency_ms=20, data="shards")
def blocks_shards(source: Source) -> Trial:
    return _block_by_block(source.http("shards"))


@case(
    "blocks-inner-chunks",
    "32 rows of 32 inner chunks over HTTP, 32 threads",
    latency_ms=20,
    data="shards",
)
def blocks_inner_chunks(source: Source) -> Trial:
    return _block_by_block(source.http("shards"), rows=64)


def _block_by_block(
    array: Array[Any],
    *,
    threads: int = IO_CONCURRENCY,
    together: int = 1,
    rows: int | None = None,
) -> Trial:
    """Walk over blocks: with the stream where there is one, else with `threads` threads.

    Without the stream, `together` blocks are one read. A block has `rows` rows, or those of a chunk.
    """
    from concurrent.futures import ThreadPoolExecutor

    length = rows or (array.shards or array.chunks)[0]
    firsts = range(0, array.shape[0] // length, together)

    def kept(block: Any) -> Any:
        return block[::16].copy()  # a program that walks over blocks does not keep them

    def read(first: int) -> list[Any]:
        if rows is None and together == 1:
            return [kept(array.blocks[first])]
        values: Any = array[first * length : (first + together) * length]
        return [kept(values[n * length : (n + 1) * length]) for n in range(together)]

    def without_stream() -> list[Any]:
        if threads == 1:
            return [block for first in firsts for block in read(first)]
        with ThreadPoolExecutor(threads) as pool:
            return [block for blocks in pool.map(read, firsts) for block in blocks]

    try:
        from zarr.experimental.block_stream import BlockStream
    except ImportError:
        return Trial(without_stream, warm_up=lambda: array.blocks[0])

    def streamed() -> list[Any]:
        with BlockStream(array, block_length=rows, io_concurrency=IO_CONCURRENCY) as stream:
            return [kept(block.array) for block in stream]

    return Trial(streamed, warm_up=lambda: array.blocks[0])


VARIANTS_BUDGET = 8 << 20
VARIANTS_BLOCK = 1000 * (1000 * 2 + 4 + 16 + 4)
"""Bytes of a block of the four arrays: calls, positions, text of up to 15 bytes, qualities."""


@case(
    "blocks-vcf",
    "4 arrays in step, 8 MiB ahead, LocalStore",
    memory=True,
    data="variants",
)
def blocks_vcf(source: Source) -> Trial:
    import zarr

    group = zarr.open_group(source.data / "variants" / "group.zarr", mode="r")
    arrays: dict[str, Any] = dict(sorted(group.arrays()))
    figures: list[Any] = []

    def summary(blocks: Any) -> list[Any]:
        return [blocks[name][::100].astype("U16" if name == "id" else None) for name in arrays]

    def in_step() -> list[Any]:
        found: list[Any] = []
        for index in range(10):
            found += summary({name: array.blocks[index] for name, array in arrays.items()})
        return found

    def warm_up() -> None:
        for array in arrays.values():
            array.blocks[0]

    try:
        from zarr.experimental.block_stream import BlockStream
    except ImportError:
        return Trial(in_step, warm_up=warm_up)

    def streamed() -> list[Any]:
        found: list[Any] = []
        with BlockStream(arrays, readahead_bytes=VARIANTS_BUDGET) as stream:
            for block in stream:
                found += summary(block.arrays)
        figures.append(stream.stats)
        return found

    def problems() -> list[str]:
        most = max(figure.max_nbytes_in_flight for figure in figures)
        over = most > VARIANTS_BUDGET
        return [f"{most:,} bytes were in flight, of {VARIANTS_BUDGET:,}"] if over else []

    return Trial(streamed, warm_up=warm_up, problems=problems)


# --- on this machine --------------------------------------------------------------------------


@case(
    "local-whole",
    "whole array, LocalStore",
)
def local_whole(source: Source) -> Trial:
    array = source.local()
    return reading(array)


@case(
    "memory-whole",
    "whole array, MemoryStore",
)
def memory_whole(source: Source) -> Trial:
    array = source.memory()
    return reading(array)


@case(
    "zip-whole",
    "whole array, ZipStore",
)
def zip_whole(source: Source) -> Trial:
    array = source.zipped()
    return reading(array)


# --- what a read of one chunk costs -----------------------------------------------------------


@case("local-latency", "one chunk, LocalStore", rounds=500)
def local_latency(source: Source) -> Trial:
    array = source.local()
    return reading(array, source.one_chunk)


@case("zip-latency", "one chunk, ZipStore", rounds=500)
def zip_latency(source: Source) -> Trial:
    array = source.zipped()
    return reading(array, source.one_chunk)


@case("object-store-latency", "one chunk, ObjectStore without latency", rounds=200, latency_ms=0)
def object_store_latency(source: Source) -> Trial:
    array = source.object_store()
    return reading(array, source.one_chunk)


@case("memory-latency", "one chunk, MemoryStore", rounds=500)
def memory_latency(source: Source) -> Trial:
    array = source.memory()
    return reading(array, source.one_chunk)


@case("http-latency", "one chunk, HTTP without latency", rounds=200, latency_ms=0)
def http_latency(source: Source) -> Trial:
    array = source.http()
    return reading(array, source.one_chunk)


# --- stores that wait or watch ----------------------------------------------------------------


@case("latency-store", "64 chunks, LatencyStore of 50 ms", data=None)
def latency_store(source: Source) -> Trial:
    import numpy as np

    import zarr
    from zarr.storage import MemoryStore
    from zarr.testing.store import LatencyStore

    memory = MemoryStore()
    zarr.create_array(memory, data=np.arange(512 * 512).reshape(512, 512), chunks=(64, 64))
    array = _open(LatencyStore(memory, get_latency=0.05))
    return reading(array)


@case("latency-shard", "64 inner chunks of a shard, LatencyStore of 50 ms", data=None)
def latency_shard(source: Source) -> Trial:
    """A column of chunks: between each and the next lies a row of others, which nobody wants."""
    import numpy as np

    import zarr
    from zarr.storage import MemoryStore
    from zarr.testing.store import LatencyStore

    memory = MemoryStore()
    values = np.random.default_rng(3953).integers(0, 1 << 30, size=(2048, 512))
    zarr.create_array(memory, data=values, chunks=(32, 32), shards=values.shape)
    array = _open(
        LatencyStore(memory, get_latency=0.05), config={"sharding_coalesce_max_gap_bytes": 0}
    )
    return reading(array, np.s_[:, :32])


@case("custom-stores", "stores that override `get` see each read", data=None)
def custom_stores(source: Source) -> Trial:
    import numpy as np

    import zarr
    from bench.watching_stores import watching_stores

    values = np.arange(64 * 64).reshape(64, 64)
    stores = watching_stores()
    arrays = []
    for store in stores:
        zarr.create_array(store, data=values, chunks=(8, 8))
        arrays.append(_open(store))
        store.seen.clear()
    chunks = 64

    def problems() -> list[str]:
        return [
            f"{type(store).__name__}.get saw {len(seen)} of {chunks} chunks"
            for store in stores
            if len(seen := {key for key in store.seen if key.startswith("c/")}) != chunks
        ]

    return Trial(lambda: [array[...] for array in arrays], problems=problems)
