"""A wrapper hands the whole request to the store that it wraps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import _read_many
from zarr.core._bounded import closing_groups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zarr.abc.buffer import Buffer
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype


class WrapperStore:
    # overlay: after get_ranges
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        many = _read_many(self._store, requests, prototype=prototype)
        async with closing_groups(many) as groups:
            async for group in groups:
                yield group
