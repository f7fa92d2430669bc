"""The contents and the sizes of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.stack import alone, check, cli
from tools.stack.cut import Stack
from tools.stack.diffstat import Lines, measure
from tools.stack.manifest import StackError
from tools.tests.checked import untidy
from tools.tests.stacked import OVERLAY, UPSTREAM, edit, make, relock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(*make(tmp_path))


def again(stack: Stack) -> Stack:
    """Return the stack as its files are now."""
    return Stack(stack.project, stack.base)


def problems(stack: Stack) -> list[str]:
    """Return what is wrong with a stack."""
    with pytest.raises(StackError) as caught:
        check.check(again(stack))
    return [str(problem) for problem in caught.value.problems]


def test_files(stack: Stack) -> None:
    assert stack.files(0) == {}
    first, second, third = (stack.files(number) for number in (1, 2, 3))
    assert first.keys() == {
        *("src/zarr/store.py", "src/zarr/_plan.py", "tests/test_get_many.py", "docs/guide.md"),
        "changes/1.feature.md",
    }
    assert first["src/zarr/store.py"].decode() == (
        '"""Stores."""\n\nfrom zarr._plan import plan_reads\n\n\nclass Store:\n'
        "    def get(self, key: str) -> int:\n        return len(key)\n\n"
        '    def get_many(self, keys: list[str]) -> list[int]:\n        """Read many keys."""\n'
        "        return [self.get(key) for key in plan_reads(keys)]\n\n\n"
        "def close() -> None:\n    pass\n"
    )
    assert b"plan_writes" not in first["src/zarr/_plan.py"]
    assert first["docs/guide.md"].decode() == (
        "# Guide\n\n## Stores\n\nText.\n\n## Many keys\n\nRead them.\n"
    )
    assert second["docs/guide.md"].endswith(b"Read them.\n\n### Reports\n\nWhat was read.\n")
    assert second["src/zarr/_plan.py"].decode() == OVERLAY["src/zarr/_plan.py"]
    assert b"    pass\n" in second["src/zarr/store.py"]
    assert b"    pass\n" not in third["src/zarr/store.py"]
    assert stack.diff(2) == {
        "src/zarr/store.py": (second["src/zarr/store.py"], third["src/zarr/store.py"]),
        "changes/3.misc.md": (None, b"Closing a store returns `None`.\n"),
    }
    for files in (first, second, third):
        texts = {path: content.decode() for path, content in files.items() if path.endswith(".py")}
        assert {path: untidy(text) for path, text in texts.items()} == dict.fromkeys(texts, "")


def test_a_good_stack(stack: Stack) -> None:
    stats = check.check(stack)
    assert [stat.within("src/") for stat in stats] == [Lines(12, 0), Lines(15, 0), Lines(1, 1)]
    assert check.table(stack, stats)[-1].split() == [
        *("all", "+28", "-1", "+15", "-0", "+8", "-0", "+3", "-0"),
    ]


def test_measure() -> None:
    stat = measure(
        {
            "src/a.py": (b"1\n2\n3\n", b"1\nx\n3\n4\n"),
            "tests/with space.py": (None, b"1\n2\n"),
            "docs/x.png": (None, b"\0\1\2"),
        }
    )
    assert stat.files == {
        "src/a.py": Lines(2, 1),
        "tests/with space.py": Lines(2, 0),
        "docs/x.png": Lines(0, 0),
    }
    assert str(stat.within("src/")) == "+2 -1"


def test_too_many_lines(stack: Stack) -> None:
    edit(stack.project.root / "stack.toml", "= 40", "= 13")
    (problem,) = problems(stack)
    assert problem.startswith("feat/report\n    adds 15 lines in src/, and the most is 13\n")


def test_what_a_pull_request_must_have(stack: Stack) -> None:
    root = stack.project.root
    edit(root / "stack.toml", 'fragments = ["3.misc.md"]\n', "")
    edit(root / "stack.toml", 'tests = ["tests/test_report.py"]\n', "")
    text = (root / "stack.toml").read_text()
    (root / "stack.toml").write_text(text.replace("tests/test_store.py", "tests/test_gone.py"))
    (root / "changes/3.misc.md").unlink()
    (root / "tests/test_report.py").unlink()
    assert [problem.partition("\n    ->")[0] for problem in problems(stack)] == [
        "stack.toml, feat/many\n    upstream has no `tests/test_gone.py`",
        "stack.toml, feat/report\n    it is not tested",
        "stack.toml, fix/close\n    it has no change fragment",
        "stack.toml, fix/close\n    upstream has no `tests/test_gone.py`",
    ]


def test_new_definition_belongs_to_none(stack: Stack) -> None:
    path = stack.project.root / "src/zarr/store.py"
    path.write_text(path.read_text() + "\n\ndef another() -> None: ...\n")
    (problem,) = problems(stack)
    assert problem.startswith("src/zarr/store.py::another\n    belongs to no pull request")


def test_overlay_that_does_not_fit(stack: Stack) -> None:
    edit(stack.base / "src/zarr/store.py", "    pass\n", "    return 1\n")
    (problem,) = problems(stack)
    assert "upstream's definition is not the one that was replaced" in problem
    fingerprint = {f for plan in stack.plans for f in plan.replaced().values()}.pop()
    manifest = stack.project.root / "stack.toml"
    text = manifest.read_text()
    said = f'[[compatible]]\ndefinition = "zarr/store.py::close"\nfingerprint = "{fingerprint}"\n'
    manifest.write_text(text.replace("[[pull_request]]", f'{said}why = "w"\n[[pull_request]]', 1))
    assert check.check(again(stack))
    edit(stack.base / "src/zarr/store.py", "    return 1\n", "    return 2\n")
    (problem,) = problems(stack)
    assert "upstream's definition is not the one that was replaced" in problem


def test_marker_in_a_new_file(stack: Stack) -> None:
    edit(stack.project.root / "src/zarr/_report.py", "class", "# overlay: after x\nclass")
    (problem,) = problems(stack)
    assert "upstream lacks this file, so it takes no marker" in problem


def test_file_that_cannot_be_read(stack: Stack) -> None:
    edit(stack.project.root / "tests/test_report.py", "def test_report()", "def test_report(")
    with pytest.raises(StackError, match="cannot be taken apart"):
        _ = again(stack).owners


@pytest.mark.parametrize(
    ("path", "old", "new", "name"),
    [
        ("src/zarr/_plan.py", '"""Plans."""', '"""Plans, see `zarr._report`."""', "_report"),
        (
            "src/zarr/_plan.py",
            "    return keys\n\n",
            "    return keys  # ReadReport\n\n",
            "ReadReport",
        ),
        ("docs/guide.md", "Read them.", "Read them with `plan_writes`.", "plan_writes"),
        ("docs/guide.md", "Read them.", "Then call `store.report()`.", "report"),
        ("changes/1.feature.md", "Added", "Beside plan_writes, added", "plan_writes"),
        (
            "tests/test_get_many.py",
            "    assert Store()",
            '    print("zarr.store.ReadReport")\n    assert Store()',
            "ReadReport",
        ),
    ],
)
def test_mention_of_what_comes_later(
    stack: Stack, path: str, old: str, new: str, name: str
) -> None:
    edit(stack.project.root / path, old, new)
    (problem,) = problems(stack)
    assert problem.startswith(f"feat/many, {path}:")
    assert f"mentions `{name}`, which feat/report brings" in problem


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        # A word of English, an earlier name, a parameter of the same name.
        ("docs/guide.md", "Read them.", "Read them and report."),
        ("docs/guide.md", "Read them.", "Read them with `plan_reads` and `get`."),
        (
            "tests/test_get_many.py",
            "test_get_many() -> None:",
            "test_get_many(plan_writes: int = 1) -> None:\n    assert plan_writes",
        ),
    ],
)
def test_mention_that_is_none(stack: Stack, path: str, old: str, new: str) -> None:
    edit(stack.project.root / path, old, new)
    assert alone.mentions(again(stack)) == []


def test_name_that_upstream_has(stack: Stack) -> None:
    (stack.base / "docs/other.md").write_text("About plan_writes.\n")
    edit(stack.project.root / "docs/guide.md", "Read them.", "Read them with `plan_writes`.")
    assert alone.mentions(again(stack)) == []


def test_tip_is_the_whole(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stack.files(3)
    monkeypatch.setattr(
        Stack, "files", lambda self, number: whole | {"src/zarr/_plan.py": b"# Other\n"}
    )
    wrong = [problem.where for problem in check._whole(stack)]
    assert wrong == ["src/zarr/_plan.py"]


def test_command_line(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    root, upstream = stack.project.root, f"--upstream={stack.base}"
    assert cli.main(["check", upstream], root=root) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["src", "tests", "docs", "changes"]
    assert cli.main(["show", upstream], root=root) == 0
    shown = capsys.readouterr().out
    assert " 1 feat/many  #1\n   Read many keys\n" in shown
    assert "   src/zarr/_plan.py       +6 -0\n" in shown
    edit(root / "stack.toml", "fix/close", "feat/many")
    assert cli.main(["check", upstream], root=root) == 1
    said = capsys.readouterr().err
    assert said.startswith("the stack does not stand: 1 problem\n")
    assert "two pull requests have this branch" in said


def test_test_file_that_upstream_has(stack: Stack) -> None:
    mine = stack.project.root / "tests/test_store.py"
    mine.write_text(
        '"""More."""\n\n\n# overlay: after test_get\ndef test_more() -> None:\n    pass\n'
    )
    edit(
        stack.project.root / "stack.toml",
        '["tests/test_report.py"]',
        '["tests/test_report.py", "tests/test_store.py::test_more"]',
    )
    relock(stack.project, stack.base)
    made = again(stack)
    assert "tests/test_store.py" not in made.files(1)
    assert made.files(2)["tests/test_store.py"].decode() == (
        UPSTREAM["tests/test_store.py"] + "\n\ndef test_more() -> None:\n    pass\n"
    )
    assert check.check(made)
