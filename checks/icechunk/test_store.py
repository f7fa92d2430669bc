"""The tests of `StoreTests` for Icechunk's store.

Icechunk overrides most of them in its own suite, because its store accepts only keys of a hierarchy: the metadata of
nodes, and chunks within the grid of an existing array. No test is overridden here, so that a run on zarr's release
shows which tests demand more than such a store can do, and a run on the fork shows which tests the fork adds to
these. `checks/third_parties.py` compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zarr.core.buffer import Buffer, cpu
from zarr.testing.store import StoreTests

if TYPE_CHECKING:
    from pathlib import Path

icechunk = pytest.importorskip("icechunk")


class TestIcechunkStore(StoreTests[Any, cpu.Buffer]):
    store_cls = icechunk.IcechunkStore
    buffer_cls = cpu.Buffer

    async def set(self, store: Any, key: str, value: Buffer) -> None:
        await store._store.set(key, value.to_bytes())

    async def get(self, store: Any, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(await store._store.get(key))

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"storage": icechunk.local_filesystem_storage(str(tmp_path))}

    @pytest.fixture
    async def store(self, store_kwargs: dict[str, Any]) -> Any:
        return icechunk.Repository.open_or_create(**store_kwargs).writable_session("main").store

    @pytest.fixture
    async def store_not_open(self, store: Any) -> Any:
        store._is_open = False
        return store
