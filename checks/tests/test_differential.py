"""The differential test: what it draws, and that it sees a difference."""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from checks.differential import cases, expected
from checks.differential.compare import Comparison, compare, kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

BROKEN = """
import zarr

read = zarr.Array.get_basic_selection
zarr.Array.get_basic_selection = lambda *args, **kwargs: read(*args, **kwargs)[::-1]
"""


def _in_memory(seed: int) -> Iterator[dict[str, Any]]:
    """Yield cases of plain arrays in memory."""
    for number in count():
        case = cases.case(seed, number)
        if case["store"]["kind"] == "memory" and not case["writes"]:
            yield case


def _python(folder: Path, customised: str) -> Path:
    """Return an interpreter that runs some code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(customised)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_a_case_is_drawn_again() -> None:
    drawn = [cases.case(3, number) for number in range(200)]
    assert drawn == [cases.case(3, number) for number in range(200)]
    assert drawn == json.loads(json.dumps(drawn))
    assert drawn != [cases.case(4, number) for number in range(200)]


def test_everything_is_drawn() -> None:
    drawn = [cases.case(0, number) for number in range(2000)]
    assert {case["store"]["kind"] for case in drawn} == set(cases.STORES)
    assert {json.dumps(case["array"]["dtype"]) for case in drawn} == set(
        map(json.dumps, cases.DTYPES)
    )
    wrappers = {name for case in drawn for name in case["store"]["wrappers"]}
    assert wrappers == set(cases.WRAPPERS)
    found = {kind for case in drawn for kind in kinds(case)}
    assert found >= {
        *("format 2", "format 3", "sharded", "nested shards", "rectilinear"),
        *("third-party codecs", "3 wrappers", "writes", "a store that raises"),
        *(f"{number} dimensions" for number in range(5)),
        *(f"damage: {kind}" for kind in ("truncate", "empty", "extend", "delete", "flip")),
        *cases.PIPELINES,
    }


@pytest.mark.slow
def test_the_same_zarr_agrees(tmp_path: Path) -> None:
    here = Path(sys.executable)
    with Comparison({"stock": here, "fork": here}, tmp_path / "logs") as comparison:
        assert comparison.run(_in_memory(1), 5) == []
        assert comparison.tally.compared == 5


@pytest.mark.slow
def test_a_difference_is_seen_saved_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interpreters = {"stock": Path(sys.executable), "fork": _python(tmp_path / "site", BROKEN)}
    with Comparison(interpreters, tmp_path / "logs") as comparison:
        assert comparison.run(_in_memory(1), 5)
    case = next(_in_memory(1))
    case["array"] |= {"zarr_format": 3, "dtype": "<i2", "shape": [9], "chunks": [4], "filters": []}
    case["array"] |= {
        "serializer": {"name": "bytes", "configuration": {"endian": "little"}},
        "compressors": [],
        "fill": "default",
    }
    case["array"] |= {"v2_keys": False, "separator": "/", "data": 1, "name": ""}
    read = {"do": "get", "how": "basic", "selection": ["..."]}
    case |= {"damage": None, "written": [[[0, 9]]], "steps": [read, {"do": "count"}]}
    case["store"] = {"kind": "memory", "wrappers": ["bare"], "layout": 0}
    example = tmp_path / "example.json"
    example.write_text(json.dumps(case))
    with Comparison(interpreters, tmp_path / "logs") as comparison:
        assert compare(comparison, 1, 5, example) == 1
    *_, simplified = sorted((tmp_path / "logs").glob("case-*.json"), key=os.path.getmtime)
    saved = json.loads(simplified.read_text())
    assert saved["steps"] == [read]
    assert saved["store"]["wrappers"] == []
    told = capsys.readouterr().out
    assert f"--example {simplified}" in told
    assert "1 disagreements in 1 cases" in told


@pytest.mark.slow
def test_a_runner_that_dies_is_a_disagreement(tmp_path: Path) -> None:
    dies = _python(tmp_path / "site", DIES)
    interpreters = {"stock": Path(sys.executable), "fork": dies}
    with Comparison(interpreters, tmp_path / "logs") as comparison:
        failed = comparison.run(_in_memory(1), 2)
    assert [found[0].fork["died"] for _, found in failed] == ["the process ended"] * 2


DIES = """
import os
import zarr
zarr.open_array = lambda *args, **kwargs: os._exit(3)
"""


NESTED = "array(array(b'x', dtype=object), dtype=object)"


@pytest.mark.parametrize(
    ("dtype", "fork", "is_expected"),
    [
        ("bytes", "b'x'", True),
        ("bytes", "array(b'x', dtype=object)", False),
        ("bytes", "b'y'", False),
        ("str", "b'x'", False),
    ],
)
def test_a_nested_element_is_expected(dtype: str, fork: str, *, is_expected: bool) -> None:
    case: dict[str, Any] = {
        "array": {"dtype": dtype, "serializer": None},
        "damage": None,
        "steps": [{}],
    }
    assert bool(expected.reason(case, 1, {"content": NESTED}, {"content": fork})) is is_expected
