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
from tools.environment import Environment, SetupError
from tools.overlay import tree
from tools.overlay.tidy import ruff
from tools.overlay.upstream import Release
from tools.stack import branches, cli, verify
from tools.stack.repository import Identity, of_folder
from tools.stack.verify import Verdict, Verification, differences, findings
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
SCRIPT = """\
import sys
from pathlib import Path

names = [path.name for path in (Path(__file__).parents[1] / "changes").glob("*")]
sys.exit(0 if all(name[0].isdigit() for name in names) else f"refused: {names}")
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


def test_findings() -> None:
    output = (
        "src/a.py:1:2: F401 `os` imported but unused\n"
        "src/a.py:9:2: F401 `os` imported but unused\n"
        "src/b.py:3: error: Name is not defined  [name-defined]\n"
        "src/b.py:3: note: See there\n"
        "src/c.py:2:1: unformatted: File would be reformatted\n"
        "docs/a.md:7: teh ==> the\n"
        "Found 2 errors.\n"
    )
    assert findings(output) == Counter(
        {
            "src/a.py: F401 `os` imported but unused": 2,
            "src/b.py: error: Name is not defined  [name-defined]": 1,
            "src/c.py: unformatted: File would be reformatted": 1,
            "docs/a.md: teh ==> the": 1,
        }
    )


def test_differences() -> None:
    meant = {"a": b"1", "b": b"2", "c": b"3", "zarr/_version.py": b"4"}
    there = {"a": b"1", "b": b"x", "d": b"5", "zarr/_version.py": b"6"}
    assert differences(meant, there) == ["b differs", "c is missing", "d is too many"]


def test_requirements(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling", "hatch-vcs"]\n'
    )
    settings = tmp_path / "pyproject.toml"
    assert verify.requirements(tmp_path) == [
        *("--group", f"{settings}:remote-tests", "--group", f"{settings}:release"),
        *("hatchling", "hatch-vcs", "mypy", "ruff", "codespell"),
    ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment that borrows what is installed here, and has room for a zarr of its own."""
    path = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    made = Environment(path)
    (made.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (made.bin / "ruff").symlink_to(ruff())
    return made


@pytest.fixture
def verification(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> Verification:
    """A run over the branches of the small fork, on a base that has a finding of its own."""
    project, upstream = make(tmp_path)
    write(upstream, {"pyproject.toml": PYPROJECT, "hook.py": HOOK})
    write(upstream, {"src/zarr/py.typed": "", "src/zarr/testing.py": ""})
    write(upstream, {f"ci/{name}": SCRIPT for name in verify.SCRIPTS})
    store = upstream / "src/zarr/store.py"
    store.write_text(
        store.read_text().replace('"""Stores."""\n', '"""Stores."""\n\nBAD: int = ""\n')
    )
    checkout = of_folder(upstream, "1.2.3", tmp_path / "checkouts")
    base = checkout.commit("v1.2.3")
    made = branches.commits(
        project, checkout, base, Identity("n", "e@example.org", "1000000000 +0000")
    )

    def build(command: list[str | Path], *, log: Path, **options: Any) -> int:
        """Pack what the fork merges to, in place of a build that needs the registry."""
        if "wheel" not in command:
            return run(command, log=log, **options)
        log.touch()
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


def again(verification: Verification, base: str | None = None) -> Verification:
    """Return the run for the fork as its files are now."""
    made = branches.commits(
        verification.project,
        verification.repository,
        base or verification.made.base,
        Identity("n", "e@example.org", "1000000000 +0000"),
    )
    return replace(verification, made=made)


def changed(verification: Verification, number: int, **fields: Any) -> Verification:
    """Return the run with something else said of one of the pull requests."""
    made = list(verification.made.branches)
    request = replace(made[number].pull_request, **fields)
    made[number] = replace(made[number], pull_request=request)
    return replace(verification, made=replace(verification.made, branches=tuple(made)))


NAMES = ["feat/many", "feat/report", "fix/close"]


@pytest.mark.slow
def test_good_branches(verification: Verification, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = verification.run(NAMES)
    assert [(v.branch, v.wrong) for v in verdicts] == [(n, []) for n in (*NAMES, "all series")]
    assert [v.counts.passed for v in verdicts] == [2, 2, 1, 0]
    assert "-- 3/3 fix/close" in capsys.readouterr().out
    assert not (verification.folder / "tree").exists()
    assert verification.repository.git("worktree", "list").count("\n") == 0
    logs = {path.name for path in verification.reports.iterdir()}
    assert {f"03-{script}.txt" for script in verify.SCRIPTS} < logs
    rows = [line.split() for line in verify.table(verification, verdicts)]
    assert rows[1][:3] == ["feat/many", "+12", "-0"]
    assert [row[-1] for row in rows if row[0] in [*NAMES, "all"]] == ["good"] * 4


@pytest.mark.slow
def test_bad_branches(verification: Verification) -> None:
    root = verification.project.root
    plan = root / "src/zarr/_plan.py"
    plan.write_text(
        plan.read_text()
        .replace("list[str]) -> list[str]:\n", "list[str]) -> list[int]:\n", 1)
        .replace('"""Plans."""\n', '"""Plans of teh reads."""\n\nimport sys\nimport json\n')
        .replace("def plan_writes(keys: ", "def plan_writes(\n    keys: ")
    )
    edit(root / "tests/test_report.py", "plan_writes([]) == []", "plan_writes([]) == [1]")
    bad = changed(again(verification), 2, upstream_tests=("tests/gone.py",), text="Teh end.")
    wrong = {verdict.branch: "\n".join(verdict.wrong) for verdict in bad.run(NAMES)}
    assert "codespell: src/zarr/_plan.py: teh ==> the" in wrong["feat/many"]
    assert "mypy: src/zarr/_plan.py: error: Incompatible return value type" in wrong["feat/many"]
    assert "Incompatible types in assignment" not in wrong["feat/many"]
    assert "ruff check: src/zarr/_plan.py: F401" in wrong["feat/report"]
    assert "ruff check: src/zarr/_plan.py: I001" in wrong["feat/report"]
    assert "ruff format: src/zarr/_plan.py: unformatted" in wrong["feat/report"]
    assert "test_report.py::test_writes failed" in wrong["feat/report"]
    assert "no test passed" in wrong["fix/close"]
    assert "03-message.txt: Teh ==> The" in wrong["fix/close"]


@pytest.mark.slow
def test_a_check_of_upstreams_that_fails(verification: Verification) -> None:
    repository = verification.repository
    (repository.path / "ci/lint_docs.py").write_text("raise SystemExit('not like this')\n")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    repository.git(*who, "commit", "--quiet", "--all", "--message=Refuse")
    (verdict,) = again(verification, repository.commit("main")).run(["fix/close"])
    assert verdict.wrong == ["lint_docs.py fails:", "   not like this"]


def with_hook(verification: Verification, check: str) -> Verification:
    """Return the run on a base whose build begins with a check."""
    repository = verification.repository
    (repository.path / "hook.py").write_text(HOOK + check)
    who = ("-c", "user.name=n", "-c", "user.email=e")
    repository.git(*who, "commit", "--quiet", "--all", "--message=Break")
    return again(verification, repository.commit("main"))


@pytest.mark.slow
def test_one_branch_that_does_not_install(verification: Verification) -> None:
    check = (
        "\nif Path(__file__).with_name('tests').joinpath('test_report.py').exists():\n"
        "    raise SystemExit('no build today')\n"
    )
    (verdict,) = with_hook(verification, check).run(["feat/report"])
    assert verdict.wrong[0] == "install fails:"
    assert any("no build today" in line for line in verdict.wrong)


@pytest.mark.slow
def test_a_base_that_does_not_install(verification: Verification) -> None:
    broken = with_hook(verification, "\nraise SystemExit('no build today')\n")
    with pytest.raises(
        SetupError, match=r"(?s)the base of the branches:\ninstall fails:.*no build"
    ):
        broken.run(["feat/report"])


@pytest.mark.slow
def test_a_linter_that_cannot_run(
    verification: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.LINTERS, "mypy", ("mypy", "--no-such-option"))
    with pytest.raises(SetupError, match=r"(?s)mypy fails:.*--no-such-option"):
        verification.run(["feat/report"])


@pytest.mark.slow
def test_series_that_are_not_the_wheel(verification: Verification) -> None:
    write(verification.project.root, {"src/zarr/_late.py": '"""Late."""\n'})
    plan = verification.project.root / "src/zarr/_plan.py"
    plan.write_text(plan.read_text() + "\n\nMORE = 1\n")
    *_, whole = verification.run(NAMES)
    assert whole.wrong == ["zarr/_late.py is missing", "zarr/_plan.py differs"]


def test_an_unknown_branch_is_told_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = make(tmp_path)

    def run(*_: object, **__: object) -> int:
        raise AssertionError("something was run")

    monkeypatch.setattr(children, "run", run)
    assert cli.main(["verify", "--branch", "nope"], root=project.root) == 1
    assert "`nope` names no branch" in capsys.readouterr().err
    assert not (project.root / "build").exists()


def test_verdict() -> None:
    assert Verdict("b").good
    assert not Verdict("b", wrong=["it does not install"]).good
