"""Comparing what libraries read on the release and on the fork."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checks import clients
from checks.client_programs import PROGRAMS
from checks.clients import QUICK, Comparison, Outcome
from tools.environment import ROOT, Environment

STOCK = Outcome("3.4.2", "1.0", seconds=2, requests=1500, digest="same")
FORK = Outcome("3.4.2+getmany.20261127023000", "1.0", seconds=1, requests=10, digest="same")
SKIPPED: dict[str, Any] = {
    "digest": "",
    "version": "",
    "seconds": 0,
    "requests": 0,
    "skipped": "no GPU",
}
GOOD = Comparison("xarray", STOCK, FORK, "same")


def row(comparison: Comparison) -> list[str]:
    return comparison.row().strip("| ").split(" | ")


@pytest.fixture(autouse=True)
def _release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "release", lambda: "zarr==3.4.2")


def test_programs_are_explained() -> None:
    assert {*QUICK} < {*PROGRAMS}
    assert all(re.fullmatch(r".+[^.]", each.title) for each in PROGRAMS.values())


def test_equal() -> None:
    assert not GOOD.problems
    assert row(GOOD)[2:] == ["1.0", "1,500 → 10", "2.00 → 1.00", "yes"]


@pytest.mark.parametrize(
    ("stock", "fork", "problem"),
    [
        ({}, {"digest": "other"}, "the fork: other values"),
        ({"digest": "other"}, {"digest": "other"}, "the release: other values"),
        ({}, {"zarr": "3.4.2"}, "read with zarr 3.4.2 and 3.4.2"),
        ({}, {"failed": "OSError"}, "the fork: OSError"),
        ({}, SKIPPED, "skipped on one side"),
        ({}, {"requests": 1501}, "the fork makes more requests"),
    ],
)
def test_problems(stock: dict[str, Any], fork: dict[str, Any], problem: str) -> None:
    comparison = Comparison("xarray", replace(STOCK, **stock), replace(FORK, **fork), "same")
    assert problem in comparison.problems
    assert row(comparison)[-1].startswith("NO: ")
    assert problem in row(comparison)[-1]


def test_skipped() -> None:
    comparison = Comparison("gpu", replace(STOCK, **SKIPPED), replace(FORK, **SKIPPED), "same")
    assert not comparison.problems
    assert row(comparison)[-1] == "no GPU"


def test_a_program_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BUILD", tmp_path)
    monkeypatch.setattr(clients, "PLACE", tmp_path)
    (tmp_path / "reports").mkdir()
    outcome = clients.call(Environment(Path(sys.prefix)), "unknown", "url")
    assert outcome["failed"].startswith("KeyError: 'unknown' (see ")


def test_unknown_clients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clients.py", "xarray", "tiledb"])
    with pytest.raises(SystemExit):
        clients.main()
    assert "unknown clients: tiledb; there are xarray, " in capsys.readouterr().err


def test_the_examples_of_the_page_are_run() -> None:
    source = (ROOT / "checks" / "client_programs.py").read_text()
    page = (ROOT / "docs" / "clients.md").read_text()
    blocks = re.findall(r"```python .*?\n(.*?)```", page, re.DOTALL)
    assert blocks
    assert [line for line in "".join(blocks).splitlines() if line.strip() not in source] == []
