"""A store is let go with the last reference to it, not with the next collection of garbage.

A `ZipStore` that nobody closes writes its directory when it is let go, and only if that does not
happen in the middle of a collection.
"""

from __future__ import annotations

import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore, ZipStore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from zarr.abc.store import Store


class RemoteStore(MemoryStore):
    """Has no synchronous I/O, as a remote store has none."""

    _supports_sync_io = False


STORES: dict[str, Callable[[Path], Store]] = {
    "remote": lambda _: RemoteStore(),
    "wrapper": lambda _: WrapperStore(RemoteStore()),
    "local": lambda path: LocalStore(path / "local"),
    "zip": lambda path: ZipStore(path / "array.zip", mode="w"),
}

ACTIONS: dict[str, Callable[[zarr.Group], object]] = {
    "whole": lambda group: _array(group)[...],
    "part": lambda group: _array(group)[1:30, 3:29],
    "element": lambda group: _array(group)[5, 5],
    "write": lambda group: _array(group).__setitem__(np.s_[1:30, 3:29], 7),
    "members": lambda group: group.members(max_depth=None),
}


def _array(group: zarr.Group) -> zarr.Array[Any]:
    array = group["array"]
    assert isinstance(array, zarr.Array)
    return array


@pytest.fixture
def no_collection() -> Generator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
@pytest.mark.parametrize("shards", [None, (8, 8)])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_store_outlives_its_references(
    tmp_path: Path,
    pipeline: str,
    shards: tuple[int, int] | None,
    kind: str,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A timer that is left behind would hold the store for longer than this test waits.
    monkeypatch.setattr("zarr.core._chunk_reads.COLLECTING_SECONDS", 3600)
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        store = STORES[kind](tmp_path)
        group = zarr.create_group(store)
        array = group.create_array(
            "array", shape=(32, 32), chunks=(4, 4), shards=shards, dtype="i4"
        )
        array[...] = np.arange(1024).reshape(32, 32)
        ACTIONS[action](group)
        alive = weakref.ref(store)
        del store, group, array
    for _ in range(6000):  # the event loop's thread lets go of its last task a little later
        if alive() is None:
            break
        time.sleep(0.01)
    assert alive() is None
