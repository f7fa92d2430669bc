from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

import zarr
from bench.references import TEMPLATE, pack
from zarr.storage import FsspecStore

if TYPE_CHECKING:
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    array = zarr.create_array(
        tmp_path / "array.zarr", shape=(12, 13), chunks=(1, 5), dtype="int32", fill_value=-1
    )
    array[:11] = np.arange(143).reshape(11, 13)
    pack(tmp_path / "array.zarr", tmp_path / "packed.bin", tmp_path / "references.json")
    return tmp_path


def test_references_read_as_the_array(packed: Path) -> None:
    fs = fsspec.filesystem(
        "reference",
        fo=str(packed / "references.json"),
        template_overrides={TEMPLATE: str(packed / "packed.bin")},
        remote_protocol="file",
        asynchronous=True,
    )
    read = zarr.open_array(FsspecStore(fs, read_only=True, path=""), mode="r")
    expected = zarr.open_array(packed / "array.zarr", mode="r")
    np.testing.assert_array_equal(read[...], expected[...])


def test_chunks_lie_one_after_another_in_the_order_of_the_array(packed: Path) -> None:
    content = json.loads((packed / "references.json").read_text())
    assert content["version"] == 1
    assert json.loads(content["refs"].pop("zarr.json"))["shape"] == [12, 13]
    assert list(content["refs"]) == [
        f"c/{row}/{column}" for row in range(11) for column in range(3)
    ]
    end = 0
    for url, offset, length in content["refs"].values():
        assert (url, offset) == ("{{packed}}", end)
        end += length
    assert (packed / "packed.bin").stat().st_size == end
