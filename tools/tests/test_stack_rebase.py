"""Comparing the overlay with another release."""

from __future__ import annotations

import ast
import shutil
from typing import TYPE_CHECKING

import pytest

from tools.overlay import upstream
from tools.overlay.fingerprint import fingerprint
from tools.overlay.project import Project
from tools.stack import cli, rebase
from tools.stack.cut import Stack
from tools.stack.manifest import StackError
from tools.tests.stacked import edit, make, relock

if TYPE_CHECKING:
    from pathlib import Path

    from tools.stack.rebase import Report

STORE = "src/zarr/store.py"
GONE = "and upstream no longer has it"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make(tmp_path)[0]


@pytest.fixture
def other(project: Project, tmp_path: Path) -> Path:
    """The sources of another release, which is the same so far."""
    copied = tmp_path / "other"
    shutil.copytree(tmp_path / "upstream", copied)
    version = copied / "src/zarr/_version.py"
    version.write_text(
        version.read_text().replace("1.2.3", "1.3.0").replace("(1, 2, 3)", "(1, 3, 0)")
    )
    return copied


def compare(project: Project, other: Path) -> Report:
    old = other.with_name("upstream")
    return rebase.compare(Stack(project, old), other, "1.3.0")


def told(report: Report) -> list[tuple[str, str, str, bool, tuple[str, ...]]]:
    return [(f.path, f.name, f.what, f.accepted, f.concerns) for f in report.findings]


def test_nothing_changed(project: Project, other: Path) -> None:
    report = compare(project, other)
    assert told(report) == []
    assert "docs/picture.txt" not in report.files
    shown = list(rebase.lines(report))
    assert shown[0] == "The overlay, written against zarr 1.2.3, and zarr 1.3.0:"
    assert f"    {STORE}" in shown
    assert "    src/zarr/_plan.py" in shown
    assert "0 drifted, 0 do not apply" in shown


def test_drift(project: Project, other: Path) -> None:
    edit(other / STORE, "    pass\n", "    return print()\n")
    report = compare(project, other)
    now = fingerprint(ast.parse("def close() -> None:\n    return print()\n").body)
    assert told(report) == [(STORE, "close", f"upstream's is {now}", True, ("fix/close",))]
    shown = list(rebase.lines(report))
    assert f"    drifted: close: upstream's is {now}  [fix/close]" in shown
    assert "        -    pass" in shown
    assert "        +    return print()" in shown
    assert "    fix/close: 1" in shown


def test_definition_that_is_gone(project: Project, other: Path) -> None:
    edit(other / STORE, "\n\ndef close() -> None:\n    pass\n", "\n\nclosed = 1\n")
    assert told(compare(project, other)) == [
        (STORE, "close", f"the overlay replaces this definition, {GONE}", False, ("fix/close",))
    ]


def test_class_that_is_gone(project: Project, other: Path) -> None:
    edit(other / STORE, "class Store:", "class Other:")
    lost, *uses = told(compare(project, other))
    assert lost == (
        *(STORE, "Store", f"the overlay goes into this, {GONE}", False),
        ("feat/many", "feat/report"),
    )
    assert [(path, what.partition(",")[0]) for path, _, what, *_ in uses] == [
        (path, "uses `Store` from zarr.store")
        for path in ("tests/test_get_many.py", "tests/test_report.py")
    ]


def test_anchor_that_is_gone(project: Project, other: Path) -> None:
    edit(other / STORE, "def get(", "def read(")
    (finding,) = told(compare(project, other))
    assert finding[:2] == (STORE, "Store.get_many")
    assert "names `get`, which neither upstream nor the overlay defines" in finding[2]
    assert finding[3:] == (False, ("feat/many",))


def test_file_that_is_gone(project: Project, other: Path) -> None:
    (other / STORE).unlink()
    assert told(compare(project, other))[0] == (
        *(STORE, "", f"the overlay goes into this, {GONE}", False),
        ("feat/many", "feat/report", "fix/close"),
    )


def test_file_and_definition_that_upstream_has_now(project: Project, other: Path) -> None:
    (other / "src/zarr/_report.py").write_text('"""Theirs."""\n')
    edit(other / STORE, "def close", "def report() -> None: ...\n\n\ndef close")
    edit(other / STORE, "    def get(", "    def report(self) -> None: ...\n\n    def get(")
    found = told(compare(project, other))
    assert (
        STORE,
        "Store.report",
        "the overlay replaces upstream's definition, and the lock does not know of it",
        False,
        ("feat/report",),
    ) in found
    assert (
        *("src/zarr/_report.py", "", "upstream has a file of this name", False),
        ("feat/report",),
    ) in found


def test_section_that_is_gone(project: Project, other: Path) -> None:
    edit(other / "docs/guide.md", "## Stores", "## Keeping data")
    (finding,) = told(compare(project, other))
    assert finding[:2] == ("docs/guide.md", "Many keys")
    assert finding[3:] == (False, ("feat/many", "feat/report"))


def test_release_without_documents(project: Project, other: Path) -> None:
    shutil.rmtree(other / "docs")
    report = compare(project, other)
    assert report.left_out == ("docs",)
    assert told(report) == []
    assert "what is in docs/ is not compared: the release comes without" in rebase.lines(report)


def test_names_that_are_gone(project: Project, other: Path) -> None:
    old = other.with_name("upstream")
    for release in (old, other):
        (release / "src/zarr/tool.py").write_text(
            "def tool() -> int:\n    return 1\n\n\nspare = 1\n"
        )
        (release / "src/zarr/kit").mkdir()
        (release / "src/zarr/kit/__init__.py").touch()
        (release / "src/zarr/kit/part.py").touch()
        edit(release / STORE, '"""Stores."""\n', '"""Stores."""\n\nimport os\nimport sys\n')
    plan = project.root / "src/zarr/_plan.py"
    edit(
        plan,
        '    """Plan."""\n    return keys\n\n\n',
        "    from zarr.kit import part\n    from zarr.tool import spare, tool\n\n"
        "    return [*keys, str(tool() + spare), str(part)]\n\n\n",
    )
    edit(project.root / STORE, "    return None\n", "    print(os.sep)\n")
    relock(project, old)
    assert told(compare(project, other)) == []
    edit(other / STORE, "import os\n", "")
    edit(other / "src/zarr/tool.py", "def tool", "def tool_of_another_name")
    (other / "src/zarr/kit/part.py").unlink()
    assert sorted(finding[:3] for finding in told(compare(project, other))) == [
        *(
            ("src/zarr/_plan.py", "", f"uses {what}, which upstream does not have there")
            for what in ("`part` from zarr.kit", "`tool` from zarr.tool")
        ),
        (STORE, "", "uses `os` of the same module, which upstream does not have there"),
    ]
    # What the overlay imports itself it does not miss.
    edit(project.root / STORE, "from zarr._plan", "import os\n\nfrom zarr._plan")
    assert STORE not in [path for path, *_ in told(compare(project, other))]


def accept(project: Project, other: Path) -> None:
    found = upstream.at(other, unpack_into=other)
    rebase.accept(project, compare(project, other), found, {"sdist": "5", "wheel": "6"})


def test_accept(project: Project, other: Path) -> None:
    edit(other / STORE, "    pass\n", "    return print()\n")
    before = project.load_lock()
    accept(project, other)
    again = Project(project.root)
    assert again.pinned == "1.3.0"
    assert again.version == "1.3.0+fork.7"
    locked = again.load_lock()
    assert (locked.upstream, locked.sdist, locked.wheel) == ("1.3.0", "5", "6")
    assert locked.opened == before.opened
    assert locked.replaced.keys() == before.replaced.keys()
    assert locked.replaced != before.replaced
    Stack(again, other).check_base()


def test_accept_refuses_what_does_not_apply(project: Project, other: Path) -> None:
    edit(other / STORE, "def get(", "def read(")
    files = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    with pytest.raises(StackError, match=r"does not apply to zarr 1\.3\.0"):
        accept(project, other)
    assert {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()} == files


def test_command_line(
    project: Project,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = project.root
    into = project.downloads
    into.mkdir(parents=True)
    for version, folder in (("1.2.3", other.with_name("upstream")), ("1.3.0", other)):
        (into / f"zarr-{version}.tar.gz").write_bytes(version.encode())
        (into / f"zarr-{version}-py3-none-any.whl").write_bytes(version.encode())
        shutil.copytree(folder, into / f"zarr-{version}-sdist")
    digest = upstream.digest(into / "zarr-1.2.3.tar.gz")
    edit(root / "overlay.lock", 'sdist-sha256 = "0"', f'sdist-sha256 = "{digest}"')
    assert cli.main(["rebase", "1.3.0"], root=root) == 0
    edit(into / "zarr-1.3.0-sdist" / STORE, "    pass\n", "    return print()\n")
    assert cli.main(["rebase", "1.3.0"], root=root) == 1
    assert "drifted: close" in capsys.readouterr().out
    assert cli.main(["rebase", "1.3.0", "--accept"], root=root) == 0
    assert capsys.readouterr().out.endswith("the fork is pinned to zarr 1.3.0\n")
    assert Project(root).pinned == "1.3.0"
    assert Project(root).load_lock().wheel == upstream.digest(into / "zarr-1.3.0-py3-none-any.whl")


def test_text_of_a_definition() -> None:
    text = "class A:\n    class B:\n        # why\n        def f(self): ...\n\n        x = 1\n\ny = 2\n"
    assert rebase.definition(text, "A.B.f") == "def f(self): ...\n"
    assert rebase.definition(text, "y") == "y = 2\n"
    assert rebase.definition(text, "A.f") == ""


def test_text_of_a_section() -> None:
    text = "# A\n\n## B\nb\n### C\nc\n## D\n"
    assert rebase.section(text, "B") == "## B\nb\n### C\nc\n"
    assert rebase.section(text, "E") == ""
