"""Decoding builds the data type of what is stored only where it differs from the array's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer


class BytesCodec:
    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype = chunk_spec.dtype.to_native_dtype()
        stored = self._stored_dtype(chunk_spec, dtype)
        values = chunk_bytes.as_array_like().view(dtype=stored)  # type: ignore[attr-defined]
        chunk = chunk_spec.prototype.nd_buffer.from_ndarray_like(values)
        if stored is not dtype and stored != dtype:
            chunk = chunk.astype(dtype)
        return chunk if chunk.shape == chunk_spec.shape else chunk.reshape(chunk_spec.shape)

    # overlay: after _decode_sync
    def _stored_dtype(self, chunk_spec: ArraySpec, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """`dtype`, that of the array, in the byte order of this codec."""
        zdtype = chunk_spec.dtype
        if isinstance(zdtype, HasEndianness):
            if zdtype.endianness == self.endian:
                return dtype
            return replace(zdtype, endianness=self.endian).to_native_dtype()  # type: ignore[call-arg]
        if isinstance(zdtype, Struct) and self.endian is not None:
            return dtype.newbyteorder(self.endian)
        return dtype
