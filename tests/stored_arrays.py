"""One array, plain and sharded, in a store of each kind, for tests of interrupted reads."""

from __future__ import annotations

import asyncio
import json
import zipfile
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.reference import ReferenceFileSystem

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ZipStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

KINDS = ("memory", "local", "zip", "fsspec memory", "http", "references", "get alone")
LAYOUTS = {"plain": None, "sharded": (8, 8)}

CONTENT = np.arange(1, 257, dtype="int32").reshape(16, 16)
PART = (slice(1, 15), slice(2, 11))
"""Touches each shard in part, and 12 chunks. No element is the fill value, 0."""


def write_arrays(folder: Path) -> None:
    """Write the arrays to `folder`: as files, in a ZIP archive, and in one file with references."""
    for name, shards in LAYOUTS.items():
        zarr.create_array(
            LocalStore(folder / "objects"), name=name, data=CONTENT, chunks=(4, 4), shards=shards
        )
    packed, references = b"", {}
    with zipfile.ZipFile(folder / "arrays.zip", "w") as archive:
        for key, value in _objects(folder).items():
            archive.writestr(key, value)
            references[key] = ["{{url}}/packed", len(packed), len(value)]
            packed += value
    (folder / "packed").write_bytes(packed)
    (folder / "references.json").write_text(json.dumps(references))


def open_store(kind: str, folder: Path, url: str) -> Store:
    """Open the store of a kind, with the arrays of `folder`, which `url` serves."""
    prototype = default_buffer_prototype()
    match kind:
        case "local":
            return LocalStore(folder / "objects", read_only=True)
        case "zip":
            return ZipStore(folder / "arrays.zip", mode="r")
        case "fsspec memory":
            memory = fsspec.filesystem("memory", skip_instance_cache=True)
            memory.pipe({f"/{folder.name}/{key}": data for key, data in _objects(folder).items()})
            wrapper = AsyncFileSystemWrapper(memory, asynchronous=True)
            return FsspecStore(wrapper, path=f"/{folder.name}", read_only=True)
        case "http" | "references":
            http = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
            if kind == "http":
                return FsspecStore(http, path=f"{url}/objects", read_only=True)
            references = (folder / "references.json").read_text().replace("{{url}}", url)
            fs = ReferenceFileSystem(fo=json.loads(references), fs=http, asynchronous=True)
            return FsspecStore(fs, path="", read_only=True)
    objects = {key: prototype.buffer.from_bytes(data) for key, data in _objects(folder).items()}
    return MemoryStore(objects, read_only=True) if kind == "memory" else GetAlone(objects)


async def close_store(store: Store) -> None:
    """Close a store, and the connections of its filesystem."""
    store.close()
    fs: Any = getattr(store, "fs", None)
    fs = fs.fss["http"] if isinstance(fs, ReferenceFileSystem) else fs
    if isinstance(fs, HTTPFileSystem) and fs._session is not None:
        await fs._session.close()


def read_part(array: zarr.Array[Any]) -> Any:
    """Read `PART`: a function that a spawned process can import."""
    return array[PART]


def _objects(folder: Path) -> dict[str, bytes]:
    root = folder / "objects"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


class GetAlone(Store):
    """A store as a third party may write it: read-only, with nothing beyond `get`."""

    supports_writes = supports_deletes = supports_listing = False

    def __init__(self, objects: dict[str, Buffer]) -> None:
        super().__init__(read_only=True)
        self.objects = objects

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        await asyncio.sleep(0)
        value = self.objects.get(key)
        match byte_range:
            case _ if value is None:
                return None
            case RangeByteRequest(start, end):
                value = value[start:end]
            case OffsetByteRequest(start):
                value = value[start:]
            case SuffixByteRequest(count):
                value = value[-count:]
        return prototype.buffer.from_buffer(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GetAlone) and self.objects is other.objects

    async def get_partial_values(self, *args: Any) -> Any:
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        return key in self.objects

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError
