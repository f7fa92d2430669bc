"""Definitions that an earlier pull request has in another form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.stack import check
from tools.stack.cut import Stack
from tools.stack.earlier import load_earlier
from tools.stack.manifest import StackError
from tools.tests.checked import untidy
from tools.tests.conftest import write
from tools.tests.stacked import make

if TYPE_CHECKING:
    from pathlib import Path

STORE = "src/zarr/store.py"
PLAN = "src/zarr/_plan.py"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(*make(tmp_path))


def put(stack: Stack, files: dict[str, str]) -> Stack:
    """Return the stack with files in `stack/`."""
    write(stack.project.root / "stack", files)
    return Stack(stack.project, stack.base)


def problems(stack: Stack) -> list[str]:
    with pytest.raises(StackError) as caught:
        load_earlier(stack.project.root, stack.manifest, stack.owners)
    return [str(problem) for problem in caught.value.problems]


def test_a_definition_has_its_form_until_it_is_rewritten(stack: Stack) -> None:
    before = [stack.files(number) for number in range(4)]
    text = '"""Not yet."""\n\nimport sys\n\n\ndef close() -> None:\n    sys.exit()\n'
    stack = put(stack, {f"feat/many/{STORE}": text})
    after = [stack.files(number) for number in range(4)]
    assert after[0] == {}
    assert after[3] == before[3]
    for number in (1, 2):
        store = after[number][STORE].decode()
        assert store.endswith("\n\n\ndef close() -> None:\n    sys.exit()\n")
        assert "import sys\n" in store
        assert "Not yet" not in store
        assert untidy(store) == ""
        assert {p: c for p, c in after[number].items() if p != STORE} == {
            p: c for p, c in before[number].items() if p != STORE
        }
    assert check.check(stack)


def test_a_member_has_its_form_and_its_place(stack: Stack) -> None:
    text = (
        "class Store:\n    def report(self) -> str:\n"
        '        """Say something."""\n        return ""\n'
    )
    stack = put(stack, {f"feat/many/{STORE}": text})
    first, second = (stack.files(number)[STORE].decode() for number in (1, 2))
    assert (
        "        return [self.get(key) for key in plan_reads(keys)]\n\n"
        "    def report(self) -> str:\n"
        '        """Say something."""\n        return ""\n'
    ) in first
    assert "ReadReport" not in first
    assert "from zarr._report import ReadReport" in second
    assert "Say something" not in second


def test_each_definition_is_rewritten_in_its_time(stack: Stack) -> None:
    text = (
        "import sys\n\n\nclass Store:\n    def report(self) -> str:\n        return sys.version\n\n\n"
        "def close() -> None:\n    raise OSError\n"
    )
    stack = put(stack, {f"feat/many/{STORE}": text})
    first, second, third = (stack.files(number)[STORE].decode() for number in (1, 2, 3))
    for part, has in (
        ("sys.version", (1, 0, 0)),
        ("raise OSError", (1, 1, 0)),
        ("import sys", (1, 0, 0)),
    ):
        assert tuple(part in each for each in (first, second, third)) == tuple(map(bool, has)), part


def test_a_new_file_that_is_rewritten(stack: Stack) -> None:
    text = "from sys import maxsize\n\n\ndef plan_writes() -> int:\n    return maxsize\n"
    stack = put(stack, {f"feat/many/{PLAN}": text})
    first, second = (stack.files(number)[PLAN].decode() for number in (1, 2))
    assert first.endswith("\n\n\ndef plan_writes() -> int:\n    return maxsize\n")
    assert "from sys import maxsize" in first
    assert untidy(first) == ""
    assert "maxsize" not in second
    assert second == stack.overlay[PLAN].decode()


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        (f"feat/other/{STORE}", "", "is in the folder of no branch"),
        (STORE, "", "is in the folder of no branch"),
        (
            f"feat/report/{STORE}",
            "class Store:\n    def report(self): ...\n",
            "no later pull request",
        ),
        (f"feat/report/{STORE}", "def unknown(): ...\n", "no later pull request"),
        (f"feat/report/{STORE}", "def close(:\n", "is not Python"),
        ("feat/report/docs/guide.md", "# Guide\n", "is no Python module"),
    ],
)
def test_what_has_no_place(stack: Stack, path: str, text: str, problem: str) -> None:
    assert problem in problems(put(stack, {path: text}))[0]
