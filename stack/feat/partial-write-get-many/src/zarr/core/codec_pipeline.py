"""Before shards are read together."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr.core._chunk_reads import ChunkRead


class FusedCodecPipeline:
    async def read(
        self,
        batch_info: Iterable[ChunkRead],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        from zarr.abc.store import SyncByteGetter

        batch = list(batch_info)
        if not batch:
            return ()
        codec = self.array_bytes_codec
        if self.sync_transform is not None and _is_synchronous(batch[0][0], SyncByteGetter):
            read, workers = self.read_sync, _resolve_max_workers()
            return await asyncio.to_thread(read, batch, out, drop_axes, max_workers=workers)
        if not self.supports_partial_decode:
            return await _async_read_fallback(self, batch, out, drop_axes)
        partly = cast("ArrayBytesCodecPartialDecodeMixin", codec)
        chunks = await partly.decode_partial([(item[0], item[2], item[1]) for item in batch])
        return tuple(
            scatter_chunk(chunk, out, chunk_spec=spec, out_selection=selection, drop_axes=drop_axes)
            for chunk, (_, spec, _, selection, _) in zip(chunks, batch, strict=True)
        )
