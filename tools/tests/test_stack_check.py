"""The sizes of a stack, and whether its branches stand alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.stack import branches, check, cli
from tools.stack.cut import Stack
from tools.stack.manifest import StackError
from tools.stack.repository import Repository, of_folder
from tools.tests.stacked import again, edit, make

if TYPE_CHECKING:
    from pathlib import Path

    from tools.stack.branches import Made


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(*make(tmp_path))


def made(stack: Stack) -> tuple[Made, Repository]:
    """Make the commits of the stack as its files are now."""
    checkout = of_folder(stack.base, "1.2.3", stack.base.parent / "checkouts")
    base = checkout.commit("main")
    return branches.commits(stack.project, checkout, base, checkout.nobody(base)), checkout


def problems(stack: Stack) -> list[str]:
    """Return what is wrong with a stack."""
    try:
        check.check(again(stack), *made(stack))
    except StackError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_a_good_stack(stack: Stack) -> None:
    assert problems(stack) == []
    assert [line.split() for line in check.table(*made(stack))] == [
        ["src", "tests", "docs", "changes"],
        ["feat/many", "+12", "-0", "of", "20", "+5", "-0", "+4", "-0", "+1", "-0"],
        ["feat/report", "+15", "-0", "of", "40", "+10", "-0", "+4", "-0", "+1", "-0"],
        "= core +27 -0 of 60 +15 -0 of 40 +8 -0 +1 -0".replace("+1 -0", "+2 -0").split(),
        ["fix/close", "+1", "-1", "of", "10", "+0", "-0", "+0", "-0", "+1", "-0"],
        ["=", "local", "+1", "-1", "of", "10", "+0", "-0", "of", "10", "+0", "-0", "+1", "-0"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "most-added = 20",
            "most-added = 11",
            "feat/many\n    adds 12 lines in src/, and the most is 11",
        ),
        (
            "by-branch = 40",
            "by-branch = 14",
            "feat/report\n    adds 15 lines in src/, and the most is 14",
        ),
        (
            "in-src = 60",
            "in-src = 26",
            "series core\n    adds 27 lines in src/, and the most is 26",
        ),
        (
            "in-tests = 40",
            "in-tests = 14",
            "series core\n    adds 15 lines in tests/, and the most is 14",
        ),
    ],
)
def test_too_many_lines(stack: Stack, old: str, new: str, says: str) -> None:
    edit(stack.project.root / "stack.toml", old, new)
    (problem,) = problems(stack)
    assert problem.startswith(says)


def test_what_a_pull_request_must_have(stack: Stack) -> None:
    root = stack.project.root
    edit(root / "stack.toml", 'fragments = ["close.misc.md"]\n', "")
    edit(root / "stack.toml", 'tests = ["tests/test_report.py"]\n', "")
    text = (root / "stack.toml").read_text()
    (root / "stack.toml").write_text(text.replace("tests/test_store.py", "tests/test_gone.py"))
    (root / "changes/close.misc.md").unlink()
    (root / "tests/test_report.py").unlink()
    assert [problem.partition("\n    ->")[0] for problem in problems(stack)] == [
        "stack.toml, feat/many\n    upstream has no `tests/test_gone.py`",
        "stack.toml, feat/report\n    it is not tested",
        "stack.toml, fix/close\n    it has no change fragment",
        "stack.toml, fix/close\n    upstream has no `tests/test_gone.py`",
    ]


def test_a_pull_request_that_changes_nothing(stack: Stack) -> None:
    edit(stack.project.root / "stack.toml", 'fragments = ["close.misc.md"]\n', "")
    edit(stack.project.root / "stack.toml", '["zarr/store.py::close"]', "[]")
    edit(
        stack.project.root / "stack.toml",
        '"zarr/_report.py"',
        '"zarr/_report.py", "zarr/store.py::close"',
    )
    edit(
        stack.project.root / "stack.toml",
        '["report.feature.md"]',
        '["report.feature.md", "close.misc.md"]',
    )
    with pytest.raises(StackError, match="fix/close\n    changes nothing"):
        made(stack)


def test_overlay_that_does_not_fit(stack: Stack) -> None:
    edit(stack.base / "src/zarr/store.py", "    pass\n", "    return 1\n")
    said = "upstream's definition is not the one that was replaced"
    with pytest.raises(StackError, match=said):
        again(stack).check_base()
    fingerprint = {f for plan in again(stack).plans for f in plan.replaced().values()}.pop()
    manifest = stack.project.root / "stack.toml"
    text = manifest.read_text()
    known = f'[[compatible]]\ndefinition = "zarr/store.py::close"\nfingerprint = "{fingerprint}"\n'
    manifest.write_text(text.replace("[[pull_request]]", f'{known}why = "w"\n[[pull_request]]', 1))
    again(stack).check_base()
    edit(stack.base / "src/zarr/store.py", "    return 1\n", "    return 2\n")
    with pytest.raises(StackError, match=said):
        again(stack).check_base()


PLAN, TEST = "src/zarr/_plan.py", "tests/test_get_many.py"


@pytest.mark.parametrize(
    ("path", "old", "new", "name"),
    [
        (PLAN, '"""Plans."""', '"""Plans, see `zarr._report`."""', "_report"),
        (PLAN, "    return keys\n\n", "    return keys  # ReadReport\n\n", "ReadReport"),
        ("docs/guide.md", "Read them.", "Read them with `plan_writes`.", "plan_writes"),
        ("docs/guide.md", "Read them.", "Then call `store.report()`.", "report"),
        ("changes/many.feature.md", "Added", "Beside plan_writes, added", "plan_writes"),
        (TEST, "    assert", '    print("zarr.store.ReadReport")\n    assert', "ReadReport"),
    ],
)
def test_mention_of_what_comes_later(
    stack: Stack, path: str, old: str, new: str, name: str
) -> None:
    edit(stack.project.root / path, old, new)
    (problem,) = problems(stack)
    path = path.replace("/many.", "/9001.")
    assert problem.startswith(f"feat/many, {path}:")
    assert f"mentions `{name}`, which feat/report brings" in problem


def test_mention_of_what_another_series_brings(stack: Stack) -> None:
    root = stack.project.root
    edit(root / "stack.toml", '"zarr/_plan.py::plan_writes"]', "]")
    edit(
        root / "stack.toml",
        '["zarr/store.py::close"]',
        '["zarr/store.py::close", "zarr/_plan.py::plan_writes"]',
    )
    found = problems(stack)
    assert any("mentions `plan_writes`, which fix/close brings" in problem for problem in found)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        # A word of English, an earlier name, a parameter of the same name.
        ("docs/guide.md", "Read them.", "Read them and report."),
        ("docs/guide.md", "Read them.", "Read them with `plan_reads` and `get`."),
        (TEST, "many() -> None:", "many(plan_writes: int = 1) -> None:\n    assert plan_writes"),
    ],
)
def test_mention_that_is_none(stack: Stack, path: str, old: str, new: str) -> None:
    edit(stack.project.root / path, old, new)
    assert problems(stack) == []


def test_name_that_upstream_has(stack: Stack) -> None:
    (stack.base / "docs/other.md").write_text("About plan_writes.\n")
    edit(stack.project.root / "docs/guide.md", "Read them.", "Read them with `plan_writes`.")
    assert problems(stack) == []


def test_command_line(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    root, checkout = stack.project.root, f"--checkout={made(stack)[1].path}"
    assert cli.main(["check", checkout], root=root) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["src", "tests", "docs", "changes"]
    assert cli.main(["show", checkout], root=root) == 0
    shown = capsys.readouterr().out
    assert " 1 feat/many  (core)  #1\n   feat(store): read many keys\n" in shown
    assert "   src/zarr/_plan.py        +6 -0\n" in shown
    edit(root / "stack.toml", "most-added = 20", "most-added = 11")
    assert cli.main(["check", checkout], root=root) == 1
    assert capsys.readouterr().err.startswith("the stack does not stand: 1 problem\n")
