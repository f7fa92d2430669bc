"""Trying branches by themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import children
from tools.environment import Environment
from tools.overlay import tree
from tools.overlay.upstream import Release
from tools.stack import branches, verify
from tools.stack.findings import Linted, differences, parse, rendered
from tools.stack.repository import Identity, of_folder
from tools.stack.verify import Verdict, Verification
from tools.tests.checked import RUFF
from tools.tests.conftest import write
from tools.tests.stacked import edit, make

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "zarr"
version = "1.2.3"

[tool.hatch]
build.hooks.custom.path = "hook.py"

[tool.hatch.build.targets.wheel]
packages = ["src/zarr"]
artifacts = ["_version.py"]

[tool.ruff]
line-length = 100
lint.extend-select = ["I"]

[tool.mypy]
strict = true
pretty = true

[tool.pytest.ini_options]
addopts = ["-p", "no:zarr"]

[tool.towncrier]
directory = "changes"
filename = "docs/release-notes.md"
start_string = "<!-- towncrier release notes start -->\\n"
"""
HOOK = """\
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):
    def initialize(self, version, build_data):
        text = "__version__ = version = '1.2.3'\\n"
        Path(self.root, "src/zarr/_version.py").write_text(text)
"""


def test_parse() -> None:
    output = (
        "src/a.py:1:2: F401 `os` imported but unused\n"
        "src/a.py:9:2: F401 `os` imported but unused\n"
        "src/b.py:3: error: Name is not defined  [name-defined]\n"
        "src/b.py:3: note: See there\n"
        "src/c.py:2:1: unformatted: File would be reformatted\n"
        "Found 2 errors.\n"
    )
    assert parse(output) == Counter(
        {
            ("src/a.py", "F401 `os` imported but unused"): 2,
            ("src/b.py", "error: Name is not defined  [name-defined]"): 1,
            ("src/c.py", "unformatted: File would be reformatted"): 1,
        }
    )


def test_findings_that_the_base_has_do_not_count() -> None:
    base = parse("src/a.py:1:2: E1 one\nsrc/a.py:2:2: E1 one\nsrc/b.py:1: error: two\n")
    assert Linted(1, "src/a.py:7:2: E1 one\nsrc/b.py:2: error: two\n").beyond(base) == []
    more = Linted(1, "src/a.py:1:1: E1 one\n" * 3 + "src/c.py:1: error: two\n")
    assert more.beyond(base) == ["src/a.py: E1 one", "src/c.py: error: two"]
    assert Linted(0, "All checks passed!\n").beyond(base) == []
    assert Linted(2, "No such option\n").beyond(base) == ["it failed:", "No such option"]


def test_rendered() -> None:
    output = "## Features\n\n- Added a thing\n  that is wrapped. (#1)\n\n## Misc\n\n- #3\n"
    texts = {
        "1.feature.md": "Added a thing that is wrapped.\n",
        "2.doc.md": "Another.\n",
        "3.misc.md": "Not shown.\n",
        "4.misc.md": "Not there.\n",
    }
    assert rendered(texts, output) == ["2.doc.md", "4.misc.md"]


def test_differences() -> None:
    meant = {"a": b"1", "b": b"2", "c": b"3", "v": b"4"}
    there = {"a": b"1", "b": b"x", "d": b"5", "v": b"6"}
    assert differences(meant, there, but=["v"]) == ["b differs", "c is missing", "d is too many"]


def test_requirements(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\n'
    )
    settings = tmp_path / "pyproject.toml"
    assert verify.requirements(tmp_path) == [
        *("--group", f"{settings}:remote-tests", "--group", f"{settings}:release"),
        *("hatchling", "hatch-vcs", "mypy", "ruff"),
    ]


def test_together(tmp_path: Path) -> None:
    code = "import sys, time; time.sleep({}); print({!r}); sys.exit({})"
    commands = {
        tmp_path / name: [sys.executable, "-c", code.format(seconds, name, status)]
        for name, seconds, status in (("late", 0.2, 3), ("early", 0, 0))
    }
    statuses = children.together(commands, cwd=tmp_path, env={})
    assert list(statuses.items()) == [(tmp_path / "late", 3), (tmp_path / "early", 0)]
    assert (tmp_path / "late").read_text() == "late\n"


def test_nothing_is_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    commands: dict[Path, list[str]] = {
        tmp_path / "sleeps": [sys.executable, "-c", "import time; time.sleep(60)"],
        tmp_path / "absent": [str(tmp_path / "no such program")],
    }
    with pytest.raises(FileNotFoundError):
        children.together(commands, cwd=tmp_path, env={})
    (child,) = started
    assert child.poll() is not None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that borrows what is installed here, and has room for a zarr of its own."""
    path = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    made = Environment(path)
    (made.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (made.bin / "ruff").symlink_to(RUFF)
    return made


@pytest.fixture
def verification(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> Verification:
    """A run over the branches of the small fork, on a base that has a finding of its own."""
    project, upstream = make(tmp_path)
    write(upstream, {"pyproject.toml": PYPROJECT, "hook.py": HOOK})
    write(upstream, {"src/zarr/py.typed": "", "src/zarr/testing.py": ""})
    store = upstream / "src/zarr/store.py"
    store.write_text(store.read_text().replace('"""Stores."""\n', '"""Stores."""\nimport os\n'))
    checkout = of_folder(upstream, "1.2.3", tmp_path / "checkouts")
    base = checkout.commit("v1.2.3")
    made = branches.commits(
        project, checkout, base, Identity("n", "e@example.org", "1000000000 +0000")
    )

    def build(command: list[str | Path], *, log: Path, **options: Any) -> int:
        """Pack what the fork merges to, in place of a build that needs the registry."""
        if "wheel" not in command:
            return run(command, log=log, **options)
        into = Path(command[command.index("--wheel-dir") + 1])
        merged = tmp_path / "merged"
        found = Release(upstream / "src", None)
        for plan in project.plans(found)[:1]:
            tree.materialise(plan, found.root, merged)
        shutil.make_archive(str(into / "zarr"), "zip", merged)
        (into / "zarr.zip").rename(into / "zarr-1.2.3.whl")
        return 0

    run = children.run
    monkeypatch.setattr(children, "run", build)
    return Verification(
        project, checkout, made, environment, tmp_path / "verify", "1.2.3", compare=True
    )


def again(verification: Verification) -> Verification:
    """Return the run for the fork as its files are now."""
    made = branches.commits(
        verification.project,
        verification.repository,
        verification.base,
        Identity("n", "e@example.org", "1000000000 +0000"),
    )
    return replace(verification, made=made)


def names(verification: Verification) -> list[str]:
    return [branch.pull_request.branch for branch in verification.made]


@pytest.mark.slow
def test_good_branches(verification: Verification, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = verification.run(names(verification))
    assert [(v.branch, v.wrong) for v in verdicts] == [
        ("feat/many", []),
        ("feat/report", []),
        ("fix/close", []),
    ]
    assert [v.counts.passed for v in verdicts] == [2, 2, 1]
    assert "-- 3/3 fix/close" in capsys.readouterr().out
    assert not (verification.folder / "tree").exists()
    assert verification.repository.git("worktree", "list").count("\n") == 0
    rows = [line.split() for line in verify.table(verification, verdicts)]
    assert rows[1][:5] == ["feat/many", "+12", "-0", "+5", "-0"]
    assert [row[-1] for row in rows[1:]] == ["good"] * 3


@pytest.mark.slow
def test_bad_branches(verification: Verification) -> None:
    root = verification.project.root
    plan = root / "src/zarr/_plan.py"
    plan.write_text(
        plan.read_text()
        .replace("list[str]) -> list[str]:\n", "list[str]) -> list[int]:\n", 1)
        .replace('"""Plans."""\n', '"""Plans."""\n\nimport sys\nimport json\n')
        .replace("def plan_writes(keys: ", "def plan_writes(\n    keys: ")
    )
    edit(root / "tests/test_report.py", "plan_writes([]) == []", "plan_writes([]) == [1]")
    bad = again(verification)
    bad = replace(
        bad,
        made=[
            bad.made[0],
            replace(
                bad.made[1],
                pull_request=replace(bad.made[1].pull_request, fragments=("1.feature.md",)),
            ),
            replace(
                bad.made[2],
                pull_request=replace(bad.made[2].pull_request, upstream_tests=("tests/gone.py",)),
            ),
        ],
    )
    wrong = {verdict.branch: "\n".join(verdict.wrong) for verdict in bad.run(names(bad))}
    assert "ruff check: src/zarr/_plan.py: F401" in wrong["feat/many"]
    assert "ruff check: src/zarr/_plan.py: I001" in wrong["feat/many"]
    assert "mypy: src/zarr/_plan.py: error: Incompatible return value type" in wrong["feat/many"]
    assert "src/zarr/store.py: F401" not in wrong["feat/many"]
    assert "ruff format: src/zarr/_plan.py: unformatted" in wrong["feat/report"]
    assert "test_report.py::test_writes failed" in wrong["feat/report"]
    assert "pytest ended with status" in wrong["fix/close"]


@pytest.mark.slow
def test_one_branch_that_does_not_install(verification: Verification) -> None:
    hook = verification.repository.path / "hook.py"
    hook.write_text("raise SystemExit('no build today')\n")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    verification.repository.git(*who, "commit", "--quiet", "--all", "--message=Break")
    base = verification.repository.commit("main")
    made = branches.commits(
        verification.project, verification.repository, base, Identity("n", "e", "1000000000 +0000")
    )
    (verdict,) = replace(verification, made=made).run(["feat/report"])
    assert verdict.wrong[0] == "it does not install:"
    assert any("no build today" in line for line in verdict.wrong)


@pytest.mark.slow
def test_tip_that_is_not_the_wheel(
    verification: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, tip = verification.made
    write(verification.project.root, {"src/zarr/_late.py": '"""Late."""\n'})
    plan = verification.project.root / "src/zarr/_plan.py"
    plan.write_text(plan.read_text() + "\n\nMORE = 1\n")
    (verdict,) = verification.run([tip.pull_request.branch])
    assert verdict.wrong == ["zarr/_late.py is missing", "zarr/_plan.py differs"]


def test_verdict() -> None:
    assert Verdict("b").good
    assert not Verdict("b", wrong=["it does not install"]).good
