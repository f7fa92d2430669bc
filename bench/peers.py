"""What zarr is measured beside: TensorStore, and the floor, which is what any library has to do at least.

The floor requests the same bytes with bare aiohttp, or reads the same files, and decodes them with numcodecs on as
many threads as there are processors. It knows beforehand where everything is. The third peer, zarrs as zarr's codec
pipeline, needs nothing here: it runs the ordinary cases.
"""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.cases import Source, Trial

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

FLOOR_IN_FLIGHT = 128


class Read(NamedTuple):
    """A read of an array: where it is, and what is selected."""

    place: str  # `http` or `file`
    name: str
    selection: Any = ...
    packed: bool = False  # whether chunks are ranges of one file


def read_of(case: str, source: Source) -> Read | None:
    """What a case reads, if the peers can read it as well."""
    field = source.field
    return {
        "http-whole": Read("http", field),
        "http-chunk": Read("http", field, source.one_chunk),
        "references-whole": Read("http", field, packed=True),
        "large-chunks": Read("http", "large"),
        "large-local": Read("file", "large"),
        "shards-band": Read("http", "shards", np.s_[:, :512]),
        "shards-columns": Read("http", "shards", np.s_[:, 300:310]),
        "shards-point": Read("http", "shards", np.s_[1000, 1000]),
        "shards-scattered": Read("http", "shards", np.s_[16::256, 16::256]),
        "shards-local": Read("file", "shards", np.s_[:, :512]),
        "local-whole": Read("file", field),
        "local-latency": Read("file", field, source.one_chunk),
    }.get(case)


def tensorstore(case: str, source: Source) -> Trial | None:
    """TensorStore at its defaults."""
    import tensorstore as ts

    read = read_of(case, source)
    if read is None or read.packed:  # it does not read kerchunk references
        return None
    path = f"{read.name}/array.zarr/"
    local = {"driver": "file", "path": f"{source.data / path}/"}
    remote = {"driver": "http", "base_url": source.url, "path": f"/{path}"}
    kvstore = remote if read.place == "http" else local
    array = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    first = tuple(slice(0, 1) for _ in array.shape)
    return Trial(
        lambda: np.asarray(array[read.selection].read().result()),
        warm_up=lambda: array[first].read().result(),
    )


def floor(case: str, source: Source) -> Trial | None:
    """The same bytes, requested and decoded with nothing in between."""
    read = read_of(case, source)
    if read is None:
        return None
    plan = _plan(read, source.data / read.name / "array.zarr")
    base = f"{source.url}/{read.name}/" if read.place == "http" else f"{source.data / read.name}/"
    pool = ThreadPoolExecutor(os.cpu_count())

    def warm_up() -> None:
        list(pool.map(lambda _: None, range(8)))

    if read.place == "file":
        return Trial(lambda: _read_files(plan, base, pool), warm_up=warm_up)
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(_session())

    async def connect() -> None:
        async with session.get(f"{base}array.zarr/zarr.json") as response:
            await response.read()

    return Trial(
        lambda: loop.run_until_complete(_read_over_http(plan, base, pool, session)),
        warm_up=lambda: (warm_up(), loop.run_until_complete(connect())),
    )


class Part(NamedTuple):
    """A range of a file with encoded chunks, and what becomes of each."""

    path: str
    start: int
    stop: int
    chunks: list[tuple[int, int, Any, Any]]  # start, stop, of what is decoded, and where to


class Plan(NamedTuple):
    """What to read, and what to make of it."""

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    index_nbytes: int  # of a shard, which a part of it has to be found with
    parts: list[Part]


def _plan(read: Read, folder: Path) -> Plan:
    """Find out where every chunk is. This is not timed."""
    import zarr
    from zarr.core.chunk_grids import ChunkGrid
    from zarr.core.indexing import BasicIndexer

    array = zarr.open_array(folder, mode="r")
    outer, inner = array.shards or array.chunks, array.chunks
    grid = ChunkGrid.from_sizes(array.shape, inner)
    indexer = BasicIndexer(read.selection, array.shape, grid)
    references = json.loads((folder.parent / "references.json").read_text()) if read.packed else {}
    by_file: dict[str, list[tuple[int, int, Any, Any]]] = {}
    for coords, selected, where, *_ in indexer:
        shard = tuple(c * i // o for c, i, o in zip(coords, inner, outer, strict=True))
        key = "/".join(map(str, ("c", *shard)))
        path, start, stop = f"array.zarr/{key}", 0, (folder / key).stat().st_size
        if array.shards is not None:
            start, stop = _in_shard(folder / key, coords, inner, outer)
        if read.packed:
            _, start, size = references.get("refs", references)[key]
            path, stop = "packed.bin", start + size
        by_file.setdefault(path, []).append((start, stop, selected, where))
    parts = [part for path, chunks in by_file.items() for part in _parts(path, chunks, read)]
    per_shard = np.prod([o // i for o, i in zip(outer, inner, strict=True)])
    whole = len(indexer.shape) == array.ndim and all(len(p.chunks) == per_shard for p in parts)
    index_nbytes = 0 if array.shards is None or whole else int(per_shard) * 16 + 4
    return Plan(indexer.shape, inner, array.dtype, index_nbytes, parts)


def _in_shard(file: Path, coords: Any, inner: Any, outer: Any) -> tuple[int, int]:
    counts = [o // i for o, i in zip(outer, inner, strict=True)]
    size = int(np.prod(counts)) * 16 + 4
    index = np.frombuffer(file.read_bytes()[-size:-4], "<u8").reshape(*counts, 2)
    start, nbytes = index[tuple(c % n for c, n in zip(coords, counts, strict=True))]
    return int(start), int(start + nbytes)


def _parts(path: str, chunks: list[tuple[int, int, Any, Any]], read: Read) -> Iterator[Part]:
    """One part of each file, or parts of 2 MiB where all chunks are in one."""
    chunks = sorted(chunks, key=lambda chunk: chunk[:2])
    while chunks:
        limit = chunks[0][0] + (2 << 20)
        count = sum(stop <= limit for _, stop, *_ in chunks) if read.packed else len(chunks)
        here, chunks = chunks[: max(1, count)], chunks[max(1, count) :]
        yield Part(path, here[0][0], here[-1][1], here)


def _decode(plan: Plan, part: Part, data: bytes, out: Any) -> None:
    from numcodecs import zstd

    for start, stop, selected, where in part.chunks:
        decoded = zstd.decompress(data[start - part.start : stop - part.start])
        out[where] = np.frombuffer(decoded, plan.dtype).reshape(plan.chunk_shape)[selected]


def _read_files(plan: Plan, base: str, pool: ThreadPoolExecutor) -> Any:
    out = np.empty(plan.shape, plan.dtype)

    def read(parts: list[Part]) -> None:
        for part in parts:
            with open(base + part.path, "rb", buffering=0) as file:
                if plan.index_nbytes:
                    end = os.fstat(file.fileno()).st_size
                    os.pread(file.fileno(), plan.index_nbytes, end - plan.index_nbytes)
                _decode(
                    plan, part, os.pread(file.fileno(), part.stop - part.start, part.start), out
                )

    share = max(1, len(plan.parts) // 32)
    shares = [plan.parts[at : at + share] for at in range(0, len(plan.parts), share)]
    list(pool.map(read, shares))
    return out


async def _session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=FLOOR_IN_FLIGHT))


async def _read_over_http(plan: Plan, base: str, pool: ThreadPoolExecutor, session: Any) -> Any:
    out = np.empty(plan.shape, plan.dtype)
    loop = asyncio.get_running_loop()

    async def get(path: str, wanted: str) -> bytes:
        async with session.get(base + path, headers={"Range": f"bytes={wanted}"}) as response:
            data: bytes = await response.read()
            return data

    async def read(part: Part) -> Awaitable[None]:
        if plan.index_nbytes:
            await get(part.path, f"-{plan.index_nbytes}")
        data = await get(part.path, f"{part.start}-{part.stop - 1}")
        return loop.run_in_executor(pool, _decode, plan, part, data, out)

    decoding = await asyncio.gather(*map(read, plan.parts))
    await asyncio.gather(*decoding)
    return out


PEERS: dict[str, Callable[[str, Source], Trial | None]] = {
    "tensorstore": tensorstore,
    "floor": floor,
}
