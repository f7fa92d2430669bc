"""The stack of this project."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tools import suite
from tools.overlay.module import merge_module
from tools.overlay.project import Project
from tools.stack import check
from tools.stack.cut import Stack
from tools.stack.leaves import is_module
from tools.stack.restrict import restrict_module
from tools.tests.checked import RUFF, untidy_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def stack() -> Stack:
    project = Project()
    return Stack(project, suite.unpacked(project))


def test_it_stands(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stats = check.check(stack)
    with capsys.disabled():
        print("\n" + "\n".join(check.table(stack, stats)))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_any_part_of_a_module_is_tidy(stack: Stack, tmp_path: Path, share: float) -> None:
    """Whatever the cut, nothing is left to sort, to lay out or to remove from the imports."""
    for path, leaves in stack.leaves.items():
        names = [leaf.name for leaf in leaves]
        kept = names[: round(len(names) * share)]
        if not is_module(path) or not kept or not path.startswith("src/"):
            continue
        theirs = stack.upstream[path]
        upstream = theirs.decode() if theirs is not None else None
        text = restrict_module(stack.overlay[path].decode(), kept, upstream)
        if upstream is not None:
            merged = merge_module(upstream, text, path=path)
            assert merged.problems == ()
            text = merged.text
        assert "overlay:" not in text
        target = tmp_path / path.removeprefix("src/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    assert untidy_folder(tmp_path) == ""
    command = [
        RUFF,
        "check",
        "--isolated",
        "--no-cache",
        "--select=F401,TC001,TC002,TC003,TC004,TC005",
        "--target-version=py312",
    ]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
