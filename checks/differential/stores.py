"""Stores of every kind with the same contents: those of a directory that holds an array."""

from __future__ import annotations

import base64
import logging
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import LazyReferenceMapper, ReferenceFileSystem

from checks.differential import foreign
from zarr.core.buffer import default_buffer_prototype
from zarr.experimental.cache_store import CacheStore
from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)
from zarr.testing.store import LatencyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

METADATA = (".zarray", ".zattrs", ".zgroup", "zarr.json")


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and a function that returns its contents."""

    store: Store
    contents: Callable[[], dict[str, bytes]]


def chunk_keys(folder: Path) -> list[str]:
    """Return the keys of the chunks that a directory holds, sorted."""
    return [key for key in sorted(read_all(folder)) if not key.endswith(METADATA)]


def read_all(folder: Path) -> dict[str, bytes]:
    """Read all files below a directory, by key."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build(described: dict[str, Any], made: Path, own: Path, url: str, *, copy: bool) -> Place:
    """Build a store.

    Parameters
    ----------
    described : dict
        The `store` of a case.
    made : Path
        The directory with the array. It is not modified.
    own : Path
        An empty directory for anything else that the store needs.
    url : str
        The URL of the parent directory of `made` and `own`.
    copy : bool
        Whether the store will be written to.

    Returns
    -------
    Place
        The store with its wrappers.
    """
    place = _innermost(described, made, own, url, copy=copy)
    store = place.store
    if fails := described.get("fails"):
        keys = chunk_keys(made) or [""]
        store = foreign.Failing(store, keys[fails["chunk"] % len(keys)], fails["error"])
    for name in described["wrappers"]:
        store = _WRAPPERS[name](store)
    return Place(store, place.contents)


_WRAPPERS: dict[str, Callable[[Store], Store]] = {
    "wrapper": WrapperStore,
    "logging": lambda store: LoggingStore(store, log_handler=logging.NullHandler()),
    "latency": lambda store: LatencyStore(store, get_latency=0.0005),
    "cache": lambda store: CacheStore(store, cache_store=MemoryStore()),
    "own-get": foreign.OwnGet,
    "bare": foreign.Bare,
}


def _innermost(described: dict[str, Any], made: Path, own: Path, url: str, *, copy: bool) -> Place:
    kind: str = described["kind"]
    folder = made
    if copy and kind.endswith("local"):
        folder = own / "copy"
        shutil.copytree(made, folder)

    def files() -> dict[str, bytes]:
        return read_all(folder)

    match kind:
        case "memory":
            buffer = default_buffer_prototype().buffer
            held = {key: buffer.from_bytes(value) for key, value in read_all(made).items()}
            return Place(
                MemoryStore(held), lambda: {key: value.to_bytes() for key, value in held.items()}
            )
        case "local":
            return Place(LocalStore(folder), files)
        case "own-local":
            return Place(foreign.OwnLocal(folder), files)
        case "zip" | "zip-deflated":
            return _archive(made, own / "archive.zip", deflated=kind != "zip", copy=copy)
        case "fsspec-local":
            return Place(FsspecStore.from_url(f"file://{folder}"), files)
        case "fsspec-http":
            return Place(FsspecStore.from_url(f"{url}/{made.name}"), files)
        case "dir-local":
            local = AsyncFileSystemWrapper(fsspec.filesystem("file"), asynchronous=True)
            return Place(FsspecStore(_directory(str(folder), local), path=""), files)
        case "dir-http":
            return Place(FsspecStore(_directory(f"{url}/{made.name}", _http()), path=""), files)
        case "fsspec-memory" | "dir-memory":
            return _in_memory(made, f"/{own.parent.name}/{own.name}", kind)
        case "obstore-local":
            from obstore.store import LocalStore as ObstoreLocal

            return Place(ObjectStore(ObstoreLocal(prefix=str(folder))), files)
        case "obstore-http":
            from obstore.store import HTTPStore

            options: Any = {"allow_http": True}
            client = HTTPStore.from_url(f"{url}/{made.name}", client_options=options)
            return Place(ObjectStore(client, read_only=True), files)
        case "obstore-memory":
            return _obstore_memory(made)
        case _:
            return Place(_references(described, made, own, url), files)


def _archive(made: Path, path: Path, *, deflated: bool, copy: bool) -> Place:
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, value in read_all(made).items():
            archive.writestr(key, value)
    store = ZipStore(path, mode="a" if copy else "r", compression=method)

    def contents() -> dict[str, bytes]:
        store.close()
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings(action="ignore"):
            return {name: archive.read(name) for name in archive.namelist()}

    return Place(store, contents)


def _directory(path: str, inside: Any) -> DirFileSystem:
    return DirFileSystem(path=path, fs=inside, asynchronous=True, skip_instance_cache=True)


def _http() -> Any:
    return fsspec.filesystem("http", asynchronous=True)


def _in_memory(made: Path, root: str, kind: str) -> Place:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for key, value in read_all(made).items():
        memory.pipe_file(f"{root}/{key}", value)

    def contents() -> dict[str, bytes]:
        found = memory.find(root)
        return {name.removeprefix(f"{root}/"): memory.cat_file(name) for name in found}

    if kind == "fsspec-memory":
        return Place(FsspecStore.from_url(f"memory:/{root}"), contents)
    inside = AsyncFileSystemWrapper(memory, asynchronous=True)
    return Place(FsspecStore(_directory(root, inside), path=""), contents)


def _obstore_memory(made: Path) -> Place:
    from obstore.store import MemoryStore as ObstoreMemory

    held = ObstoreMemory()
    for key, value in read_all(made).items():
        held.put(key, value)

    def contents() -> dict[str, bytes]:
        paths = [item["path"] for part in held.list() for item in part]
        return {path: bytes(held.get(path).bytes()) for path in paths}

    return Place(ObjectStore(held), contents)


def _references(described: dict[str, Any], made: Path, own: Path, url: str) -> FsspecStore:
    """Pack the chunks into one file, and open it through references."""
    kind: str = described["kind"]
    layout = Random(described["layout"])
    remote = "http" if "http" in kind or ("references" in kind and layout.random() < 0.3) else ""
    remote = remote or ("memory" if "memory" in kind else "local")
    packed = own / "packed"
    where = {
        "http": f"{url}/{own.name}/packed",
        "memory": "memory://packed",
        "local": f"file://{packed}",
    }[remote]
    references = dict(_pack(described, made, packed, where, layout))
    if kind == "dir-references":
        references = {f"root/{key}": value for key, value in references.items()}
    if remote == "memory":
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pipe_file("/packed", packed.read_bytes())
    target: Any = {"version": 1, "refs": references}
    if kind == "references-parquet":
        target = f"{own / 'parquet'}/"
        (own / "parquet").mkdir()
        mapper = LazyReferenceMapper.create(target, fs=fsspec.filesystem("file"), record_size=8)
        mapper.update(references)
        mapper.flush()
    protocol = {"http": "http", "memory": "memory", "local": "file"}[remote]
    inside = _http() if remote == "http" else AsyncFileSystemWrapper(fsspec.filesystem(protocol))
    filesystem = ReferenceFileSystem(
        fo=target,
        fs={protocol: inside},
        remote_protocol=protocol,
        asynchronous=True,
        skip_instance_cache=True,
        **layout.choice(({}, {}, {"max_gap": 0}, {"max_gap": 10, "max_block": 100})),
    )
    if kind == "dir-references":
        return FsspecStore(_directory("root", filesystem), path="", read_only=True)
    return FsspecStore(filesystem, path="", read_only=True)


def _pack(
    described: dict[str, Any], made: Path, packed: Path, where: str, layout: Random
) -> Iterator[tuple[str, Any]]:
    """Write the chunks to one file in some order, with gaps, and yield the references to them."""
    in_parquet = described["kind"] == "references-parquet"
    values = read_all(made)
    keys = [key for key in values if not key.endswith(METADATA)]
    if layout.random() < 0.4:
        layout.shuffle(keys)
    wrong = described.get("wrong")
    victims = layout.sample(keys, (len(keys) + 1) // 2) if wrong else []
    for key in values.keys() - set(keys):
        yield key, values[key] if in_parquet else values[key].decode()
    gaps = layout.choice((0, 0, 3, 200))
    with packed.open("wb") as file:
        for key in keys:
            value = values[key]
            file.write(bytes(layout.randint(0, gaps)))
            offset, length = file.tell(), len(value)
            file.write(value)
            if key in victims and wrong == "dangling":
                yield key, [f"{where}-missing", offset, length]
            elif key in victims:
                yield key, [where, offset + (1 << 20), length]
            elif layout.random() < 0.05 and not in_parquet:
                yield key, "base64:" + base64.b64encode(value).decode()
            else:
                yield key, [where, offset, length]
