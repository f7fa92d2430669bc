"""Third-party codecs and stores, as other packages might write them. Both runners use them."""

from __future__ import annotations

import asyncio
import builtins
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numcodecs
import numpy as np
from numcodecs.abc import Codec as NumcodecsCodec

from zarr.abc.codec import (
    ArrayArrayCodec,
    ArrayBytesCodecPartialDecodeMixin,
    BytesBytesCodec,
)
from zarr.abc.store import Store
from zarr.codecs import (
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.registry import register_codec
from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


class _Named:
    """A codec called `name` in metadata, which may build on zarr's codec `builds_on`."""

    name: ClassVar[str]
    builds_on: ClassVar[str] = ""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        if not cls.builds_on:
            return cls()
        renamed = {**data, "name": cls.builds_on}
        return super().from_dict(renamed)  # type: ignore[misc, no-any-return]

    def to_dict(self) -> dict[str, Any]:
        if not self.builds_on:
            return {"name": self.name}
        return {**super().to_dict(), "name": self.name}  # type: ignore[misc]


def _flipped(buffer: Any) -> Any:
    """Flip bits of a buffer of bytes."""
    return type(buffer).from_bytes((np.frombuffer(buffer.to_bytes(), "u1") ^ 0x55).tobytes())


def _reversed(array: Any) -> Any:
    """Reverse an array along its first axis."""
    inside = array.as_ndarray_like()
    return type(array).from_ndarray_like(inside[::-1] if inside.ndim else inside)


# Independent codecs: synchronous, asynchronous, batched


class FlipAsync(_Named, BytesBytesCodec):
    name = "differential.flip-async"
    is_fixed_size = True

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        await asyncio.sleep(0)
        return _flipped(chunk_data)

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        await asyncio.sleep(0)
        return _flipped(chunk_data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return input_byte_length


class Flip(FlipAsync):
    name = "differential.flip"

    def _decode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return _flipped(chunk_data)

    def _encode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return _flipped(chunk_data)


class FlipBatched(FlipAsync):
    name = "differential.flip-batched"

    async def decode(self, chunks_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        return [chunk if chunk is None else _flipped(chunk) for chunk, _ in chunks_and_specs]


class ReverseAsync(_Named, ArrayArrayCodec):
    name = "differential.reverse-async"
    is_fixed_size = True

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        await asyncio.sleep(0)
        return _reversed(chunk_data)

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return _reversed(chunk_data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return input_byte_length


class Reverse(ReverseAsync):
    name = "differential.reverse"

    def _decode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return _reversed(chunk_data)

    def _encode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return _reversed(chunk_data)


# Subclasses of zarr's codecs that override one method, so that results show whether it is called


class ZstdSingle(_Named, ZstdCodec):
    name, builds_on = "differential.zstd-single", "zstd"

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return _flipped(await super()._decode_single(chunk_bytes, chunk_spec))


class GzipSync(_Named, GzipCodec):
    name, builds_on = "differential.gzip-sync", "gzip"

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return _flipped(super()._decode_sync(chunk_bytes, chunk_spec))


class Crc32cDecode(_Named, Crc32cCodec):
    name, builds_on = "differential.crc32c-decode", "crc32c"

    async def decode(self, chunks_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        decoded = await super().decode(chunks_and_specs)
        return [chunk if chunk is None else _flipped(chunk) for chunk in decoded]


class TransposeSingle(_Named, TransposeCodec):
    name, builds_on = "differential.transpose", "transpose"

    async def _decode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        return _reversed(await super()._decode_single(chunk_array, chunk_spec))


class BytesSingle(_Named, BytesCodec):
    name, builds_on = "differential.bytes-single", "bytes"

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return _reversed(await super()._decode_single(chunk_bytes, chunk_spec))


class BytesBatched(_Named, BytesCodec):
    name, builds_on = "differential.bytes-batched", "bytes"

    async def decode(self, chunks_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        decoded = await super().decode(chunks_and_specs)
        return [chunk if chunk is None else _reversed(chunk) for chunk in decoded]


class BytesPartial(_Named, BytesCodec, ArrayBytesCodecPartialDecodeMixin):
    name, builds_on = "differential.bytes-partial", "bytes"

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, chunk_spec: Any
    ) -> Any:
        encoded = await byte_getter.get(prototype=chunk_spec.prototype)
        if encoded is None:
            return None
        return (await self._decode_single(encoded, chunk_spec))[selection]


class ShardingSingle(_Named, ShardingCodec):
    name, builds_on = "differential.sharding-single", "sharding_indexed"

    async def _decode_single(self, shard_bytes: Any, shard_spec: Any) -> Any:
        return _reversed(await super()._decode_single(shard_bytes, shard_spec))


class ShardingPartial(_Named, ShardingCodec):
    name, builds_on = "differential.sharding-partial", "sharding_indexed"

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, shard_spec: Any
    ) -> Any:
        decoded = await super()._decode_partial_single(byte_getter, selection, shard_spec)
        return decoded if decoded is None else _reversed(decoded)


class FlipV2(NumcodecsCodec):  # type: ignore[misc, unused-ignore]
    codec_id = "differential-flip"

    def encode(self, buf: Any) -> bytes:
        return (np.frombuffer(np.ascontiguousarray(buf).tobytes(), "u1") ^ 0x55).tobytes()

    def decode(self, buf: Any, out: Any = None) -> Any:
        return np.frombuffer(self.encode(buf), "u1").copy()


CODECS: tuple[type[Any], ...] = (
    *(Flip, FlipAsync, FlipBatched, Reverse, ReverseAsync),
    *(ZstdSingle, GzipSync, Crc32cDecode, TransposeSingle),
    *(BytesSingle, BytesBatched, BytesPartial, ShardingSingle, ShardingPartial),
)


def register() -> None:
    """Register the codecs with zarr and numcodecs."""
    for codec in CODECS:
        register_codec(codec.name, codec)
    numcodecs.register_codec(FlipV2)


# Stores


class OwnLocal(LocalStore):
    """A local store whose values all pass through its own `get`."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        return await super().get(key, prototype, byte_range)


class OwnGet(WrapperStore[Store]):
    """A wrapper with a `get` of its own."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        await asyncio.sleep(0)
        return await self._store.get(key, prototype, byte_range)


class Failing(WrapperStore[Store]):
    """A store that cannot get one of its keys."""

    def __init__(self, store: Store, key: str = "", error: str = "OSError") -> None:
        super().__init__(store)
        self.key = key
        self.error = error

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.key, self.error)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key == self.key:
            raise getattr(builtins, self.error)(key)
        return await self._store.get(key, prototype, byte_range)


class Bare(Store):
    """A store with only the abstract methods."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, store: Store) -> None:
        super().__init__(read_only=store.read_only)
        self.inside = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bare) and self.inside == other.inside

    __hash__ = None  # type: ignore[assignment]

    def with_read_only(self, read_only: bool = False) -> Bare:
        return Bare(self.inside.with_read_only(read_only))

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        return await self.inside.get(key, prototype, byte_range)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        return await self.inside.get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        return await self.inside.exists(key)

    async def set(self, key: str, value: Any) -> None:
        await self.inside.set(key, value)

    async def delete(self, key: str) -> None:
        await self.inside.delete(key)

    def list(self) -> AsyncIterator[str]:
        return self.inside.list()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self.inside.list_prefix(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self.inside.list_dir(prefix)
