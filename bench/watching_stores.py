"""Stores as other packages write them: each overrides `get` alone, and has to see every read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFileSystem

from zarr.abc.store import Store
from zarr.storage import FsspecStore, MemoryStore, WrapperStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

# `seen` belongs to the class because zarr makes read-only copies of the stores that it opens.


class WatchingFsspecStore(FsspecStore):
    seen: ClassVar[list[str]] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.seen.append(key)
        return await super().get(key, prototype, byte_range)


class WatchingMemoryStore(MemoryStore):
    seen: ClassVar[list[str]] = []

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.seen.append(key)
        return await super().get(key, prototype, byte_range)


class WatchingWrapper(WrapperStore[Store]):
    seen: ClassVar[list[str]] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.seen.append(key)
        return await super().get(key, prototype, byte_range)


class WatchingStore(Store):
    """A store from nothing but `Store`, which keeps its values in a dictionary."""

    seen: ClassVar[list[str]] = []
    supports_writes = supports_deletes = supports_listing = True

    def __init__(self, values: dict[str, Buffer], *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WatchingStore) and other.values is self.values

    def with_read_only(self, read_only: bool = False) -> WatchingStore:
        return type(self)(self.values, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.seen.append(key)
        return self.values.get(key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        return key in self.values

    async def set(self, key: str, value: Buffer) -> None:
        self.values[key] = value

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def list(self) -> AsyncIterator[str]:
        for key in list(self.values):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in list(self.values):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = prefix.rstrip("/") + "/" if prefix else ""
        for name in {k[len(below) :].partition("/")[0] for k in self.values if k.startswith(below)}:
            yield name


def watching_stores() -> list[Any]:
    """One of each, empty."""
    files = AsyncFileSystemWrapper(MemoryFileSystem(), asynchronous=True)
    return [
        WatchingFsspecStore(files, path="/watched"),
        WatchingMemoryStore(),
        WatchingWrapper(MemoryStore()),
        WatchingStore({}),
    ]
