"""`get_many` is logged as one call, with the keys that it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.core._bounded import closing_groups, split_requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class LoggingStore:
    # overlay: after get_partial_values
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        with self.log(",".join(key for key, _ in split_requests(requests))):
            async with closing_groups(super().get_many(requests, prototype=prototype)) as groups:
                async for group in groups:
                    yield group
