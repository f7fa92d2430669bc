"""The store that the guide for authors of stores shows."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tools.environment import ROOT
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.storage import LoggingStore, MemoryStore
from zarr.testing.store import StoreTests

PAGE = ROOT / "docs" / "user-guide" / "storage.md"
TESTS = [name for name in dir(StoreTests) if name.startswith("test_get_many_")]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """The store of the first code block, over files that are counted."""
    code = re.search(r"^```python exec.*?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert code is not None
    (tmp_path / "shown.py").write_text(code[1])
    shown = runpy.run_path(str(tmp_path / "shown.py"))
    return shown["ManifestStore"](MemoryStore(), LoggingStore(MemoryStore(), "ERROR"), {})


class Conformance(StoreTests[Any, cpu.Buffer]):
    """The tests of stores, for values that are appended to one file."""

    buffer_cls = cpu.Buffer

    async def set(self, store: Any, key: str, value: Buffer) -> None:
        files: MemoryStore = store.files._store
        before = await files.get("file", default_buffer_prototype())
        start = 0 if before is None else len(before)
        await files.set("file", value if before is None else before + value)
        store.manifest[key] = "file", start, start + len(value)

    async def get(self, store: Any, key: str) -> Buffer:
        raise NotImplementedError


def test_there_are_tests() -> None:
    assert len(TESTS) >= 4


@pytest.mark.parametrize("name", TESTS)
async def test_conformance(store: Any, name: str) -> None:
    tests: Any = Conformance  # without those of a store that can be written
    await getattr(tests(), name)(store)


async def _read(store: Any, requests: list[Any]) -> dict[int, bytes]:
    groups = store.get_many(requests, prototype=default_buffer_prototype())
    return {index: value.to_bytes() async for group in groups for index, value in group}


async def test_close_ranges_are_one_read(store: Any) -> None:
    await store.files.set("a", cpu.Buffer.from_bytes(bytes(range(256)) * 512))
    await store.files.set("b", cpu.Buffer.from_bytes(b"other"))
    store.manifest = {
        "far": ("a", 100_000, 100_004),
        "second": ("a", 8, 12),
        "first": ("a", 4, 9),
        "other": ("b", 0, 5),
    }
    found = await _read(store, ["first", "far", "other", "second"])
    assert found == {
        0: bytes(range(4, 9)),
        1: bytes(range(160, 164)),
        2: b"other",
        3: bytes(range(8, 12)),
    }
    assert store.files.counter["get"] == 3


@pytest.mark.parametrize(("file", "error"), [("none", FileNotFoundError), ("a", OSError)])
async def test_what_the_manifest_gets_wrong_is_no_missing_chunk(
    store: Any, file: str, error: type[Exception]
) -> None:
    await store.files.set("a", cpu.Buffer.from_bytes(b"short"))
    store.manifest = {"key": (file, 0, 10)}
    with pytest.raises(error):
        await store.get("key", default_buffer_prototype())
    with pytest.raises(error):
        await _read(store, ["key"])
