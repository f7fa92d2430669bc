"""`get_many` serves what is cached and asks the source for the rest at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import _read_many
from zarr.core._bounded import (
    checked,
    closing_groups,
    fetch_limit,
    process_bounded,
    split_requests,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zarr.core._bounded import ReadGroup


class CacheStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        misses: list[int] = []
        split = list(split_requests(requests))
        async with closing_groups(self._get_many_cached(split, misses, prototype)) as hits:
            async for group in hits:
                yield group
        misses.sort()
        self._state.misses += len(misses)
        missing = [split[index] for index in misses]
        fetched = checked(super().get_many(missing, prototype=prototype), len(missing))

        async def keep(group: ReadGroup) -> ReadGroup:
            kept = [(misses[position], value) for position, value in group]
            for index, value in kept:
                await self._cache_miss(*split[index], value)
            return kept

        async with closing_groups(process_bounded(fetched, keep, limit=fetch_limit())) as groups:
            async for group in groups:
                yield group

    async def _get_many_cached(
        self,
        requests: Sequence[tuple[str, ByteRequest | None]],
        misses: list[int],
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield what is cached and still fresh; put the index of everything else in `misses`."""
        whole: list[int] = []
        for index, (key, byte_range) in enumerate(requests):
            if byte_range is None:
                (whole if self._is_key_fresh(key) else misses).append(index)
                continue
            value = self._state.range_cache.get(key, {}).get(byte_range)
            if value is None or not self._is_key_fresh((key, byte_range)):
                misses.append(index)
                continue
            self._state.hits += 1
            await self._update_access_order((key, byte_range))
            yield [(index, value)]

        keys = [requests[index][0] for index in whole]
        cached = checked(_read_many(self._cache, keys, prototype=prototype), len(keys))
        async with closing_groups(cached) as groups:
            async for group in groups:
                misses.extend(whole[position] for position, value in group if value is None)
                hits = [(whole[position], value) for position, value in group if value is not None]
                for index, _ in hits:
                    self._state.hits += 1
                    await self._update_access_order(requests[index][0])
                if hits:
                    yield hits
