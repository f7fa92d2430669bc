"""What every store's `get_many` is tested for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class StoreTests:
    # overlay: after test_get_many
    async def test_get_many_agrees_with_get(self, store: S) -> None:
        """
        Each request is reported once, by its index, with what `get` returns for it. This includes
        byte ranges, keys that are requested twice, and keys that do not exist.
        """
        keys = ("c/0", "foo/c/0.0", "foo/0/0")
        for key in keys:
            await self.set(store, key, self.buffer_cls.from_bytes(key.encode()))
        byte_ranges = (None, RangeByteRequest(0, 2), OffsetByteRequest(1), SuffixByteRequest(2))
        pairs = [(key, byte_range) for key in (*keys, "c/1", "c/0") for byte_range in byte_ranges]
        observed = await self._get_many(store, [*pairs, *keys])
        expected = [
            await store.get(key, default_buffer_prototype(), byte_range)
            for key, byte_range in (*pairs, *((key, None) for key in keys))
        ]
        assert [value and value.to_bytes() for value in observed] == [
            value and value.to_bytes() for value in expected
        ]

    async def test_get_many_not_open(self, store_not_open: S) -> None:
        """
        Like `get`, `get_many` opens the store.
        """
        await self.set(store_not_open, "c/0", self.buffer_cls.from_bytes(b"value"))
        (value,) = await self._get_many(store_not_open, ["c/0"])
        assert value is not None
        assert value.to_bytes() == b"value"

    async def test_get_many_raises(self, store: S) -> None:
        """
        An error is raised as itself: that of an invalid request, and that of `get`.
        """
        await self.set(store, "c/0", self.buffer_cls.from_bytes(b"value"))
        assert await self._get_many(store, []) == []
        with pytest.raises(TypeError, match="key"):
            await self._get_many(store, ["c/0", ("c/0",)])
        with pytest.raises((ValueError, TypeError), match=r"Unexpected byte_range, got.*"):
            await self._get_many(store, ["c/0", ("c/0", (0, 2))])

    async def test_get_many_closed_early(self, store: S) -> None:
        """
        When the iteration is closed early, nothing is left running.
        """
        keys = [f"c/{index}" for index in range(30)]
        for key in keys:
            await self.set(store, key, self.buffer_cls.from_bytes(key.encode()))
        before = asyncio.all_tasks()
        groups = store.get_many(keys, prototype=default_buffer_prototype())
        async with aclosing(cast("AsyncGenerator[Any]", groups)):
            assert await anext(groups)
        assert asyncio.all_tasks() == before

    # overlay: after test_get_many_closed_early
    @staticmethod
    async def _get_many(store: S, requests: Sequence[Any]) -> list[Buffer | None]:
        values: dict[int, Buffer | None] = {}
        async for group in store.get_many(requests, prototype=default_buffer_prototype()):
            for index, value in group:
                assert index not in values
                values[index] = value
        assert sorted(values) == list(range(len(requests)))
        return [values[index] for index in range(len(requests))]
