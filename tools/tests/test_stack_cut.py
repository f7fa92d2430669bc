"""What each branch has of the fork's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.stack.cut import Stack
from tools.stack.manifest import StackError
from tools.tests.checked import untidy
from tools.tests.stacked import OVERLAY, UPSTREAM, again, edit, make, put, relock

if TYPE_CHECKING:
    from pathlib import Path

STORE = "src/zarr/store.py"
CLOSED = "def close() -> None:\n    pass\n"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(*make(tmp_path))


def problems(stack: Stack) -> str:
    """Return what is wrong with the ownership, or with the forms."""
    with pytest.raises(StackError) as caught:
        _ = again(stack).owners, again(stack).forms, again(stack).fragments
    return str(caught.value)


def test_files(stack: Stack) -> None:
    assert stack.files(()) == {}
    first, second, third = stack.files([0]), stack.files([0, 1]), stack.files([0, 1, 2])
    assert first.keys() == {
        *(STORE, "src/zarr/_plan.py", "tests/test_get_many.py", "docs/guide.md"),
        "changes/9001.feature.md",
    }
    assert first[STORE].decode() == (
        '"""Stores."""\n\nfrom zarr._plan import plan_reads\n\n\nclass Store:\n'
        "    def get(self, key: str) -> int:\n        return len(key)\n\n"
        '    def get_many(self, keys: list[str]) -> list[int]:\n        """Read many keys."""\n'
        f"        return [self.get(key) for key in plan_reads(keys)]\n\n\n{CLOSED}"
    )
    assert b"plan_writes" not in first["src/zarr/_plan.py"]
    assert first["docs/guide.md"].decode() == (
        "# Guide\n\n## Stores\n\nText.\n\n## Many keys\n\nRead them.\n"
    )
    assert second["docs/guide.md"].endswith(b"Read them.\n\n### Reports\n\nWhat was read.\n")
    assert second["src/zarr/_plan.py"].decode() == OVERLAY["src/zarr/_plan.py"]
    assert second[STORE].decode().endswith(CLOSED)
    assert third[STORE].decode().endswith("def close() -> None:\n    return None\n")
    for files in (first, second, third):
        texts = {path: content.decode() for path, content in files.items() if path.endswith(".py")}
        assert {path: untidy(text) for path, text in texts.items()} == dict.fromkeys(texts, "")


def test_a_series_stands_on_the_first_alone(stack: Stack) -> None:
    text = (stack.project.root / "stack.toml").read_text()
    text = text.replace(
        'branch = "feat/report"\nseries = "core"', 'branch = "feat/report"\nseries = "other"'
    )
    text = text.replace(
        '[[series]]\nname = "local"',
        '[[series]]\nname = "other"\nmost-added-in-src = 1\n'
        'most-added-in-tests = 1\nmost-added-by-branch = 1\n\n[[series]]\nname = "local"',
    )
    stack = put(stack, {"stack.toml": text})
    assert [stack.manifest.below(number) for number in range(3)] == [(), (0,), (0,)]
    assert stack.manifest.tips() == [0, 1, 2]
    assert stack.diff(2).keys() == {STORE, "changes/9003.misc.md"}
    assert b"ReadReport" not in stack.diff(2)[STORE]
    assert b"ReadReport" in stack.files(range(3))[STORE]


def test_no_series_names_what_another_brings(stack: Stack) -> None:
    text = (stack.project.root / "stack.toml").read_text()
    stack = put(
        stack, {"stack.toml": text.replace('series = "local"\ntitle', 'series = "core"\ntitle')}
    )
    assert stack.manifest.below(2) == (0, 1)


def test_numbers_of_fragments(stack: Stack) -> None:
    given = Stack(stack.project, stack.base, 4200, {"feat/report": 77})
    assert list(given.fragments.values()) == [
        *("changes/4200.feature.md", "changes/77.feature.md", "changes/4202.misc.md"),
    ]
    (stack.base / "changes").mkdir()
    (stack.base / "changes/9002.feature.md").write_text("Taken.\n")
    with pytest.raises(StackError, match="give the pull request another number"):
        _ = again(stack).fragments
    with pytest.raises(StackError, match="give the pull request another number"):
        _ = Stack(stack.project, stack.base, 1, {"feat/many": 2, "fix/close": 2}).fragments


def test_several_fragments_of_a_kind(stack: Stack) -> None:
    stack = put(stack, {"changes/more.feature.md": "More.\n", "changes/doc.doc.md": "Docs.\n"})
    listed = '["many.feature.md", "more.feature.md", "doc.doc.md"]'
    edit(stack.project.root / "stack.toml", '["many.feature.md"]', listed)
    assert [path for path in again(stack).diff(0) if path.startswith("changes/")] == [
        *("changes/9001.doc.md", "changes/9001.feature.md", "changes/9001.feature.1.md"),
    ]


def test_a_definition_has_its_form_until_it_is_rewritten(stack: Stack) -> None:
    before = [stack.files(range(number)) for number in range(4)]
    text = '"""Not yet."""\n\nimport sys\n\n\ndef close() -> None:\n    sys.exit()\n'
    stack = put(stack, {f"stack/feat/many/{STORE}": text})
    after = [stack.files(range(number)) for number in range(4)]
    assert (after[0], after[3]) == (before[0], before[3])
    for number in (1, 2):
        store = after[number][STORE].decode()
        assert store.endswith("\n\n\ndef close() -> None:\n    sys.exit()\n")
        assert "import sys\n" in store
        assert "Not yet" not in store
        assert untidy(store) == ""
        assert after[number] | {STORE: b""} == before[number] | {STORE: b""}


def test_the_last_of_several_forms_counts_whatever_the_branches_are_called(stack: Stack) -> None:
    edit(stack.project.root / "stack.toml", "feat/many", "z/many")
    forms = {"z/many": "first", "feat/report": "second"}
    texts = {
        f"stack/{branch}/{STORE}": f"def close() -> str:\n    return {word!r}\n"
        for branch, word in forms.items()
    }
    stack = put(stack, texts)
    for number, word in enumerate([*forms.values()], 1):
        assert f'    return "{word}"\n' in stack.files(range(number))[STORE].decode()


def test_a_member_has_its_form_and_its_place(stack: Stack) -> None:
    text = 'class Store:\n    def report(self) -> str:\n        """Say."""\n        return ""\n'
    stack = put(stack, {f"stack/feat/many/{STORE}": text})
    first, second = (stack.files(range(number))[STORE].decode() for number in (1, 2))
    assert (
        "        return [self.get(key) for key in plan_reads(keys)]\n\n"
        '    def report(self) -> str:\n        """Say."""\n        return ""\n'
    ) in first
    assert "ReadReport" not in first
    assert "from zarr._report import ReadReport" in second
    assert '"""Say."""' not in second


def test_a_form_in_a_module_of_the_forks(stack: Stack) -> None:
    text = "import os\n\n\n# Why.\ndef plan_writes(keys: list[str]) -> list[str]:\n    return [os.sep]\n"
    stack = put(stack, {"stack/feat/many/src/zarr/_plan.py": text})
    first = stack.files([0])["src/zarr/_plan.py"].decode()
    assert first.startswith('"""Plans."""\n\nimport os\n\n\ndef plan_reads(')
    assert first.endswith(text.partition("\n\n\n")[2])
    assert untidy(first) == ""


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        (f"feat/many/{STORE}", "def other() -> None: ...\n", "no later pull request has this"),
        (f"fix/close/{STORE}", "def close() -> None: ...\n", "no later pull request has this"),
        (
            f"feat/other/{STORE}",
            "def close() -> None: ...\n",
            "no module in the folder of a branch",
        ),
        ("feat/many/docs/guide.md", "# Guide\n", "no module in the folder of a branch"),
    ],
)
def test_a_form_that_is_none(stack: Stack, path: str, text: str, says: str) -> None:
    assert says in problems(put(stack, {f"stack/{path}": text}))


def test_new_definition_belongs_to_none(stack: Stack) -> None:
    path = stack.project.root / STORE
    path.write_text(path.read_text() + "\n\ndef another() -> None: ...\n")
    assert f"{STORE}::another\n    belongs to no pull request" in problems(stack)


def test_marker_in_a_new_file(stack: Stack) -> None:
    edit(stack.project.root / "src/zarr/_report.py", "class", "# overlay: after x\nclass")
    assert "upstream lacks this file, so it takes no marker" in problems(stack)


def test_file_that_cannot_be_read(stack: Stack) -> None:
    edit(stack.project.root / "tests/test_report.py", "def test_report()", "def test_report(")
    assert "cannot be taken apart" in problems(stack)


def test_test_file_that_upstream_has(stack: Stack) -> None:
    text = '"""More."""\n\n\n# overlay: after test_get\ndef test_more() -> None:\n    pass\n'
    stack = put(stack, {"tests/test_store.py": text})
    listed = '["tests/test_report.py", "tests/test_store.py::test_more"]'
    edit(stack.project.root / "stack.toml", '["tests/test_report.py"]', listed)
    relock(stack.project, stack.base)
    assert "tests/test_store.py" not in again(stack).files([0])
    assert again(stack).files([0, 1])["tests/test_store.py"].decode() == (
        UPSTREAM["tests/test_store.py"] + "\n\ndef test_more() -> None:\n    pass\n"
    )


def test_statements_of_a_new_module_stay_with_what_they_use(stack: Stack) -> None:
    text = (
        "from __future__ import annotations\n\n"
        "import sys\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from collections.abc import (\n        Iterator,\n        Sequence,\n    )\n\n"
        '__all__ = ["ReadReport", "other"]\n\nsys.path.append("")\n\n\nclass ReadReport:\n'
        "    x: Iterator[int]\n\n    def more(self) -> Sequence[int]: ...\n\n\n"
        "def other() -> None: ...\n\n\nother()\n"
    )
    stack = put(stack, {"src/zarr/_report.py": text})
    edit(
        stack.project.root / "stack.toml",
        '["zarr/store.py::close"]',
        '["zarr/store.py::close", "zarr/_report.py::other", "zarr/_report.py::ReadReport.more"]',
    )
    assert again(stack).files([0, 1])["src/zarr/_report.py"].decode() == (
        "from __future__ import annotations\n\n"
        "import sys\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from collections.abc import Iterator\n\n"
        '__all__ = ["ReadReport"]\n\nsys.path.append("")\n\n\nclass ReadReport:\n    x: Iterator[int]\n'
    )
    assert again(stack).files(range(3))["src/zarr/_report.py"].decode() == text
