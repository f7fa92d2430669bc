"""A fault is applied once, to a copy, and the verdict is that of the tests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from checks import mutants
from checks.mutants import BadMutant, Mutant, passes, survives
from tools import suite
from tools.overlay import tree
from tools.overlay.project import Project
from tools.overlay.upstream import at

if TYPE_CHECKING:
    from pathlib import Path

SOUND = "def double(number):\n    return number + number\n"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a package, and a test of it."""
    monkeypatch.setattr(mutants, "LOG", tmp_path / "log")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "sample.py").write_text(SOUND)
    test = "from sample import double\n\ndef test_double():\n    assert double(2) == 4\n"
    (tmp_path / "test_double.py").write_text(test)
    return tmp_path


def fault(folder: Path, before: str, after: str) -> Mutant:
    tests = [str(folder / "test_double.py")]
    return Mutant("sample.py", before, after, "doubles are wrong", tests)


@pytest.mark.parametrize(
    ("before", "after", "survived"),
    [("+ number", "- number", False), ("+ number", "* number", True)],
)
def test_a_fault_survives_if_no_test_fails(
    tried: Path, before: str, after: str, survived: bool
) -> None:
    assert survives(fault(tried, before, after), sys.executable, tried / "copy") is survived
    assert (tried / "copy" / "sample.py").read_text() == SOUND


@pytest.mark.parametrize(("before", "count"), [("absent", 0), ("number", 3)])
def test_the_text_to_replace_occurs_once(tried: Path, before: str, count: int) -> None:
    with pytest.raises(BadMutant, match=f"occurs {count} times, not once"):
        survives(fault(tried, before, ""), sys.executable, tried / "copy")


def test_a_word_that_no_fault_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mutants.py", "zarr", "no such word"])
    with pytest.raises(SystemExit, match="2"):
        mutants.main()
    assert "no fault has the word no such word" in capsys.readouterr().err


def test_a_fault_without_tests() -> None:
    with pytest.raises(BadMutant, match="names no tests"):
        Mutant("sample.py", "a", "b", "nothing", [])


def test_each_listed_fault_applies_once(tmp_path: Path) -> None:
    project = Project()
    release = at(suite.unpacked(project), unpack_into=project.downloads)
    tree.materialise(project.plan(release), release.root, tmp_path)
    for mutant in mutants.listed():
        mutant.applied((tmp_path / mutant.file).read_text())


def test_a_test_that_is_not_there_is_no_verdict(tried: Path) -> None:
    with pytest.raises(BadMutant, match="status 4"):
        passes([str(tried / "test_absent.py")], sys.executable, tried / "copy")
