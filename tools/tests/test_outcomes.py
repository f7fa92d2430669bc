"""Reading, counting and comparing what became of tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tools import outcomes
from tools.outcomes import Counts

if TYPE_CHECKING:
    from pathlib import Path


def _report(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def _phases(test: str, *phases: str, **more: object) -> list[dict[str, object]]:
    return [
        {"$report_type": "TestReport", "nodeid": test, "outcome": outcome, **more}
        for outcome in phases
    ]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (["passed", "passed", "passed"], "passed"),
        (["passed", "failed", "passed"], "failed"),
        (["failed", "passed"], "failed"),
        (["passed", "passed", "failed"], "failed"),
        (["skipped", "passed"], "skipped"),
        (["passed", "skipped", "passed"], "skipped"),
    ],
)
def test_read_joins_phases(tmp_path: Path, phases: list[str], expected: str) -> None:
    report = _report(tmp_path / "log", *_phases("a.py::test", *phases))
    assert outcomes.read(report) == {"a.py::test": expected}


def test_read_tells_expected_failures(tmp_path: Path) -> None:
    entries = _phases("a.py::test", "skipped", wasxfail="reason: not yet")
    assert outcomes.read(_report(tmp_path / "log", *entries)) == {"a.py::test": "xfailed"}


def test_read_counts_modules_that_are_not_collected(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [
        {"$report_type": "CollectReport", "nodeid": f"{outcome}.py", "outcome": outcome}
        for outcome in ("passed", "skipped", "failed")
    ]
    report = _report(tmp_path / "log", {"$report_type": "SessionStart"}, *entries)
    assert outcomes.read(report) == {"skipped.py": "skipped", "failed.py": "failed"}


def test_read_without_a_report(tmp_path: Path) -> None:
    assert outcomes.read(tmp_path / "none") == {}


def test_counts() -> None:
    counts = Counts.of({"a": "passed", "b": "passed", "c": "failed", "d": "xfailed"})
    assert counts == Counts(passed=2, failed=1, xfailed=1)
    assert str(counts) == "2 passed, 1 failed, 0 skipped, 1 xfailed"
    assert outcomes.total([counts, Counts(skipped=3)]) == Counts(2, 1, 3, 1)
    assert str(outcomes.total([])) == "0 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize(
    "test", ["a.py::test_x", "a.py::Class::test_x", "a.py::Class::test_x[b::c]", "a.py::test_x[1]"]
)
def test_function(test: str) -> None:
    assert outcomes.function(test) == "test_x"


def test_parted() -> None:
    run: outcomes.Outcomes = {"a": "passed", "b": "failed"}
    assert outcomes.parted(run, lambda test: test == "b") == ({"a": "passed"}, {"b": "failed"})
