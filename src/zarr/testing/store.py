"""What every store's `get_many` is tested for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing


class StoreTests:
    # overlay: after test_get_many
    async def test_get_many_agrees_with_get(self, store: S) -> None:
        """Each request is reported once, by its index, with what `get` returns for it."""
        for key in ("c/0", "foo/0/0"):
            await self.set(store, key, self.buffer_cls.from_bytes(key.encode()))
        keys = ("c/0", "foo/0/0", "c/1", "c/0")
        byte_ranges = (None, RangeByteRequest(0, 2), OffsetByteRequest(1), SuffixByteRequest(2))
        pairs = [(key, byte_range) for byte_range in byte_ranges for key in keys]
        prototype = default_buffer_prototype()
        expected = [await store.get(pair[0], prototype, pair[1]) for pair in pairs]
        reported = [
            (index, value and value.to_bytes())
            async for group in store.get_many([*keys, *pairs[4:]], prototype=prototype)
            for index, value in group
        ]
        assert sorted(reported) == [
            (i, value and value.to_bytes()) for i, value in enumerate(expected)
        ]

    async def test_get_many_not_open(self, store_not_open: S) -> None:
        """Like `get`, `get_many` opens the store."""
        await self.set(store_not_open, "c/0", self.buffer_cls.from_bytes(b"value"))
        groups = store_not_open.get_many(["c/0"], prototype=default_buffer_prototype())
        assert [len(group) async for group in groups] == [1]

    async def test_get_many_raises(self, store: S) -> None:
        """An error is raised as itself: that of an invalid request, and that of `get`."""
        await self.set(store, "c/0", self.buffer_cls.from_bytes(b"value"))
        requests: Any
        for requests in (["c/0", ("c/0",)], ["c/0", ("c/0", (0, 2))]):
            with pytest.raises((TypeError, ValueError), match="pair|Unexpected byte_range"):
                [_ async for _ in store.get_many(requests, prototype=default_buffer_prototype())]

    async def test_get_many_closed_early(self, store: S) -> None:
        """When the iteration is closed early, nothing is left running."""
        keys = [f"c/{index}" for index in range(30)]
        for key in keys:
            await self.set(store, key, self.buffer_cls.from_bytes(key.encode()))
        before = asyncio.all_tasks()
        groups = store.get_many(keys, prototype=default_buffer_prototype())
        async with aclosing(groups):  # type: ignore[type-var]
            assert await anext(groups)
        assert asyncio.all_tasks() == before
