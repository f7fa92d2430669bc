"""Comparing upstream's suite on the fork with what the release does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import suite
from tools.environment import Environment
from tools.outcomes import Counts
from tools.overlay.project import Project
from tools.overlay.tree import Part, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from tools.outcomes import Outcomes

STOCK: Outcomes = {"a.py::test_a": "passed", "a.py::test_b": "skipped", "a.py::test_c": "xfailed"}
EXPECTED = Counts(passed=1, skipped=1, xfailed=1)


def test_record_is_about_the_pinned_release() -> None:
    record = suite.Record.load()
    pinned = Project().pinned
    assert record.release == pinned
    assert record.expected(pinned, "batched", "3.12")
    assert record.expected(pinned, "batched", "2.7") is None
    assert record.expected("0.0", "batched", "3.12") is None
    assert record.deselected("batched").items() < record.deselected("fused").items()
    assert all(record.deselected("fused").values())


def test_added_tests_are_those_of_zarr_testing() -> None:
    assert suite.added_tests(
        {
            "zarr/testing/store.py::StoreTests.test_get_many",
            "zarr/testing/store.py::LatencyStore.get_many",
            "zarr/abc/store.py::Store.test_nothing",
        }
    ) == {"test_get_many"}


def test_against_record_leaves_out_what_the_fork_adds() -> None:
    run: Outcomes = {**STOCK, "a.py::Tests::test_new[1]": "skipped"}
    assert suite.against_record(run, {"test_new"}, EXPECTED) == []
    assert suite.against_record(run, {"test_other"}, EXPECTED) != []


def test_against_record_sees_a_new_skip() -> None:
    run: Outcomes = {**STOCK, "a.py::test_a": "skipped"}
    theirs, recorded, _ = suite.against_record(run, (), EXPECTED)
    assert "0 passed, 0 failed, 2 skipped, 1 xfailed" in theirs
    assert "1 passed, 0 failed, 1 skipped, 1 xfailed" in recorded


def test_against_stock() -> None:
    stock: Outcomes = {**STOCK, "a.py::test_d": "failed", "a.py::test_e": "passed"}
    fork: Outcomes = {
        "a.py::test_a": "failed",
        "a.py::test_b": "failed",
        "a.py::test_c": "xfailed",
        "a.py::test_d": "failed",
        "a.py::test_new": "failed",
        "a.py::test_newer": "passed",
    }
    assert suite.against_stock(fork, stock) == [
        "a.py::test_a: failed",
        "a.py::test_e: not run",
        "a.py::test_b: failed",
        "a.py::test_new: failed",
    ]
    assert suite.against_stock(STOCK, STOCK) == []


def test_requirements_are_upstreams(tmp_path: Path) -> None:
    settings = tmp_path / "pyproject.toml"
    settings.write_text('[tool.hatch.envs.doctest]\nextra-dependencies = ["examples"]\n')
    assert suite.requirements(tmp_path) == ["--group", f"{settings}:remote-tests", "examples"]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_workplace_holds_the_installed_package(tmp_path: Path) -> None:
    sdist = tmp_path / "sdist"
    _write(sdist / "tests" / "test_a.py", "theirs")
    _write(sdist / "docs" / "page.md", "theirs")
    _write(sdist / "src" / "zarr" / "old.py", "theirs")
    environment = Environment(tmp_path / "environment-of-a-test")
    _write(environment.path / "lib/python3.12/site-packages/zarr/new.py", "installed")
    documents = Plan("docs", {"docs/a/page.md": Part(b"merged", new=True)}, ())
    for _ in range(2):
        place = suite.workplace(sdist, environment, [documents], into=tmp_path / "places")
        found = {
            path.relative_to(place).as_posix(): path.read_text()
            for path in place.rglob("*")
            if path.is_file()
        }
        assert found == {
            "tests/test_a.py": "theirs",
            "docs/page.md": "theirs",
            "docs/a/page.md": "merged",
            "src/zarr/new.py": "installed",
        }
        _write(place / "left" / "over.txt", "by a test")
