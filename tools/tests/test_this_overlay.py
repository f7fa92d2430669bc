"""The overlay of this project, merged into the release that it is pinned to."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tools.overlay.module import merge_module
from tools.overlay.project import Project
from tools.overlay.tidy import tidy
from tools.overlay.tree import Plan, files
from tools.tests.checked import untidy

if TYPE_CHECKING:
    from tools.overlay.upstream import Release


@pytest.fixture(scope="module")
def release() -> Release:
    return Project().release()


@pytest.fixture(scope="module")
def plan(release: Release) -> Plan:
    return Project().plan(release)


def test_lock_is_up_to_date(release: Release) -> None:
    project = Project()
    locked = project.load_lock()
    assert project.rewritten(release, locked).text() == project.lock_file.read_text()


def test_touched_modules_are_tidy(plan: Plan) -> None:
    left = {
        path: untidy(part.content.decode()) for path, part in plan.parts.items() if part.changes
    }
    assert {path: text for path, text in left.items() if text} == {}


def test_nothing_is_kept(plan: Plan) -> None:
    assert plan.definitions("keeps") == set(), "the overlay repeats what upstream has"


def test_opened_modules_survive(release: Release, plan: Plan) -> None:
    for path in (path for path in plan.opened() if path.endswith(".py")):
        text = (release.root / path).read_bytes().decode()
        merged = merge_module(text, '"""Nothing."""\n', path=path)
        assert (merged.text, merged.problems) == (text, ())


ADDITION = """\
import fractions
from typing import TYPE_CHECKING, Any
from zarr.abc.store import RangeByteRequest as _Range
import zarr_made_up
if TYPE_CHECKING:
    from collections.abc import Sequence, Hashable
    from zarr.core import made_up
MADE_UP = 1
def made_up_too() -> Sequence[made_up]: print(fractions, _Range, zarr_made_up)
"""


def test_every_module_of_the_release_takes_an_addition(release: Release) -> None:
    texts: dict[str, str] = {}
    before: dict[str, str] = {}
    for path in files(release.root, "zarr"):
        if path.endswith(".py") and path != "zarr/_version.py":
            text = (release.root / path).read_bytes().decode()
            merged = merge_module(text, ADDITION, path=path)
            assert merged.problems == ()
            texts[path] = merged.text
            before[path] = text
    laid_out = tidy(texts)
    assert [path for path in before if not made_of(laid_out[path]) >= made_of(before[path])] == []
    assert tidy(laid_out) == laid_out
    assert tidy(before) == before, "ruff would change what the overlay does not touch"


def made_of(text: str) -> set[str]:
    """Return the names that a module imports, and its other statements."""
    body = ast.parse(text).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {ast.dump(alias) for node in imports for alias in node.names}
    return names | {ast.dump(node) for node in body if node not in imports and not is_typing(node)}


def is_typing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
