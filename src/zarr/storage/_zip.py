"""`ZipStore.get_many`: a worker thread reads many members of the archive in a row."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from zarr.abc.store import Store, paired_with
from zarr.storage._blocking import get_in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class ZipStore:
    # overlay: after get
    @paired_with(get)
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        if len(requests) == 1:  # not worth a switch to a thread
            async for group in Store.get_many(self, requests, prototype=prototype):
                yield group
            return

        def read(key: str, byte_range: ByteRequest | None) -> Buffer | None:
            with self._lock:
                return self._get(key, prototype=prototype, byte_range=byte_range)

        async with aclosing(get_in_threads(self, requests, read, threads=1)) as groups:
            async for group in groups:
                yield group
