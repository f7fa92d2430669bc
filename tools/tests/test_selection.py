"""Sorting the arguments of `tools/test.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools import selection
from tools.environment import SetupError

if TYPE_CHECKING:
    from pathlib import Path

OWN = {"fork": ("tests",), "tools": ("tools/tests",)}


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """A checkout and a source distribution, with one file that both have."""
    for name, text in {
        "here/tests/test_own.py": "def test_own(): ...",
        "here/tests/test_both.py": "class TestNew:\n    def test_it(self): ...",
        "here/tools/tests/test_tools.py": "",
        "there/tests/test_both.py": "def test_old(): ...",
        "there/tests/test_theirs.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "here", tmp_path / "there"


def _parse(trees: tuple[Path, Path], *arguments: str) -> selection.Selection:
    here, there = trees
    return selection.parse(arguments, OWN, lambda: there, root=here)


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("tests/test_own.py", ["fork"]),
        ("tests/test_own.py::test_own[a-b]", ["fork"]),
        ("tests/test_theirs.py", ["upstream"]),
        ("tests/test_both.py", ["fork", "upstream"]),
        ("tests/test_both.py::test_old", ["upstream"]),
        ("tests/test_both.py::TestNew::test_it", ["fork"]),
        ("tests", ["fork", "upstream"]),
        ("tools/tests/test_tools.py", ["tools"]),
    ],
)
def test_paths(trees: tuple[Path, Path], path: str, sections: list[str]) -> None:
    selected = _parse(trees, path, "-x")
    assert selected
    assert selected.sections(["fork", "upstream"]) == sections
    for section in sections:
        assert selected.arguments(section, ["everything"]) == [path, "-x"]


def test_options_apply_everywhere(trees: tuple[Path, Path]) -> None:
    selected = _parse(trees, "-k", "tests", "--maxfail=2", "-m", "not tests/test_own.py")
    assert selected
    assert selected.sections(["fork", "upstream"]) == ["fork", "upstream"]
    assert selected.arguments("fork", ["tests"])[:3] == ["tests", "-k", "tests"]


def test_nothing_selected(trees: tuple[Path, Path]) -> None:
    selected = _parse(trees)
    assert not selected
    assert selected.sections(["fork"]) == ()
    assert selected.arguments("fork", ["tests"]) == ["tests"]


def test_each_path_goes_to_its_own_section(trees: tuple[Path, Path]) -> None:
    selected = _parse(trees, "tests/test_own.py", "tests/test_theirs.py")
    assert selected.arguments("fork", []) == ["tests/test_own.py"]
    assert selected.arguments("upstream", []) == ["tests/test_theirs.py"]


@pytest.mark.parametrize("path", ["tests/test_none.py", "tests/test_both.py::test_none"])
def test_unknown_path(trees: tuple[Path, Path], path: str) -> None:
    with pytest.raises(SetupError, match=path):
        _parse(trees, path)
