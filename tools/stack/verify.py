"""Trying each branch by itself, as upstream's reviewers and its CI would."""

from __future__ import annotations

import platform
import shutil
import sys
import time
import tomllib
import zipfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tools import children, suite
from tools.environment import Environment
from tools.outcomes import Counts, finished, read
from tools.stack import branches, diffstat
from tools.stack.check import aligned
from tools.stack.findings import (
    MYPY,
    RUFF_CHECK,
    RUFF_FORMAT,
    Findings,
    Linted,
    differences,
    rendered,
)
from tools.stack.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tools.overlay.project import Project
    from tools.stack.branches import Branch
    from tools.stack.diffstat import Diffstat

_SCM = ("SETUPTOOLS_SCM_PRETEND_VERSION", "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_ZARR")
_VERSION_FILE = "zarr/_version.py"
_PATIENCE = 600
"""Seconds that a test may take."""

_LINTERS = ("mypy", "ruff")


@dataclass(slots=True)
class Verdict:
    """What became of a branch."""

    branch: str
    seconds: float = 0
    counts: Counts = field(default_factory=Counts)
    wrong: list[str] = field(default_factory=list)
    """What failed, one line for each, or several."""

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return not self.wrong


def requirements(sdist: Path) -> list[str]:
    """Return arguments for `pip install` with which a branch builds, and its checks run.

    Parameters
    ----------
    sdist : Path
        Upstream's source distribution, unpacked.

    Returns
    -------
    list of str
        Upstream's own groups, its build requirements, and linters.
    """
    settings = sdist / "pyproject.toml"
    table = tomllib.loads(settings.read_text())
    groups = ["--group", f"{settings}:remote-tests", "--group", f"{settings}:release"]
    return [*groups, *table["build-system"]["requires"], *_LINTERS]


def environment_for(project: Project) -> Environment:
    """Make the environment in which branches are installed, `build/env-3.12-stack`, unless it is there.

    Parameters
    ----------
    project : Project
        The fork, whose pinned release says what its tests need.

    Returns
    -------
    Environment
        The environment. It holds the release, for its dependencies, until a branch takes its place.

    Raises
    ------
    SetupError
        If something cannot be installed.
    """
    version = platform.python_version()
    name = f"env-{version.rpartition('.')[0]}-stack"
    environment = Environment(project.root / "build" / name)
    environment.make(sys.executable, version)
    needed = requirements(suite.unpacked(project))
    environment.install("what branches are verified with", needed)
    release = f"zarr[{suite.EXTRAS}]=={project.pinned}"
    environment.install("the dependencies of zarr", [release])
    return environment


@dataclass
class Verification:
    """One run over some or all of the branches."""

    project: Project
    repository: Repository
    """A checkout that has the commits."""
    made: Sequence[Branch]
    """All branches, in their order."""
    environment: Environment
    """Where they are installed, in turn; it has all that is needed, dependencies of zarr too."""
    folder: Path
    """Where work trees, caches and reports lie."""
    version: str
    """What the installed package is to call itself."""
    compare: bool = False
    """Whether what the tip installs must be what the fork's wheel holds."""
    suite: bool = False
    """Whether to run upstream's whole suite at the tip."""

    @property
    def tree(self) -> Repository:
        """The work tree that takes one branch after the other."""
        return Repository(self.folder / "tree")

    @property
    def patched(self) -> Repository:
        """The work tree to which the patches are applied."""
        return Repository(self.folder / "patched")

    @cached_property
    def reports(self) -> Path:
        """The folder for what programs print."""
        path = self.folder / "reports"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    @cached_property
    def base(self) -> str:
        """The commit that the first branch stands on."""
        return self.made[0].parent

    def stat(self, branch: Branch) -> Diffstat:
        """Count the lines that a branch adds and removes."""
        return diffstat.parse(
            self.repository.git(
                *("diff", "--numstat", "-z", "--no-renames", branch.parent, branch.commit)
            )
        )

    def touched(self, branch: Branch) -> list[str]:
        """Return the paths that a branch adds or changes."""
        changed = self.repository.git(
            "diff", "--name-only", "-z", "--no-renames", branch.parent, branch.commit
        )
        return [path for path in changed.split("\0") if path]

    def run(self, wanted: Collection[str]) -> list[Verdict]:
        """Verify branches.

        Parameters
        ----------
        wanted : Collection of str
            Their names.

        Returns
        -------
        list of Verdict
            One for each, in their order.
        """
        with self._work_trees():
            patches = branches.export(
                self.repository, self.made, self.folder / "patches", force=True
            )
            self._install(self.base, "base")
            known = self._lint_base([b for b in self.made if b.pull_request.branch in wanted])
            verdicts: list[Verdict] = []
            for number, (branch, patch) in enumerate(zip(self.made, patches, strict=True), 1):
                began = time.monotonic()
                verdict = Verdict(branch.pull_request.branch)
                applied = self._apply(branch, patch)
                if verdict.branch in wanted:
                    print(f"-- {number}/{len(self.made)} {verdict.branch}", flush=True)
                    verdict.wrong += applied
                    self._verify(branch, f"{number:02}", known, verdict)
                    if branch is self.made[-1]:
                        self._verify_tip(verdict)
                    verdict.seconds = time.monotonic() - began
                    for line in verdict.wrong:
                        print(f"   {line}", flush=True)
                    verdicts.append(verdict)
            return verdicts

    @contextmanager
    def _work_trees(self) -> Iterator[None]:
        """Give the two work trees, fresh ones, and take them away again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        trees = (self.tree, self.patched)
        for tree in trees:
            shutil.rmtree(tree.path, ignore_errors=True)
        self.repository.git("worktree", "prune")
        try:
            for tree in trees:
                self.repository.git("worktree", "add", "--detach", tree.path, self.base)
            yield
        finally:
            for tree in trees:
                shutil.rmtree(tree.path, ignore_errors=True)
            self.repository.git("worktree", "prune")

    def _apply(self, branch: Branch, patch: Path) -> list[str]:
        """Apply the next patch, and compare what comes of it."""
        who = self.repository.nobody(self.base)
        as_them = ("-c", f"user.name={who.name}", "-c", f"user.email={who.email}")
        if self.patched.asks(*as_them, "am", "--quiet", str(patch)) is None:
            self.patched.asks("am", "--abort")
            return [f"`git am` does not apply {patch.name}"]
        meant = self.repository.git("rev-parse", f"{branch.commit}^{{tree}}")
        if self.patched.git("rev-parse", "HEAD^{tree}") != meant:
            return [f"`git am` makes something else of {patch.name}"]
        return []

    def _install(self, commit: str, name: str) -> list[str]:
        """Check a commit out, with nothing beside it, and install it from its sources."""
        self.tree.git("checkout", "--quiet", "--force", "--detach", commit)
        self.tree.git("clean", "--quiet", "-ffdx")
        log = self.reports / f"{name}-install.txt"
        command: list[str | Path] = [
            *(self.environment.python, "-m", "pip", "--disable-pip-version-check", "--no-input"),
            *("install", "--no-deps", "--no-build-isolation", "--force-reinstall", self.tree.path),
        ]
        variables = self.environment.variables(**dict.fromkeys(_SCM, self.version))
        if children.run(command, cwd=self.folder, env=variables, log=log):
            return ["it does not install:", *_last(log)]
        return []

    def _lint(self, command: Sequence[str], log: Path) -> Linted:
        """Run a linter in the work tree."""
        (status,) = self._together({log: self._module(*command)}).values()
        return Linted(status, log.read_text(errors="replace"))

    def _module(self, *arguments: str | Path) -> list[str | Path]:
        return [self.environment.python, "-m", *arguments]

    def _together(self, commands: Mapping[Path, Sequence[str | Path]]) -> dict[Path, int]:
        variables = self.environment.variables(MYPYPATH="src", HYPOTHESIS_PROFILE="ci")
        return children.together(commands, cwd=self.tree.path, env=variables)

    def _mypy(self, paths: Sequence[str]) -> list[str]:
        return [*MYPY, f"--cache-dir={self.folder / 'cache'}", *paths]

    def _lint_base(self, wanted: Sequence[Branch]) -> Findings:
        """Find out what the linters say of the files as upstream has them."""
        touched = {path for branch in wanted for path in self.touched(branch)}
        paths = sorted(p for p in touched if p.endswith(".py") and (self.tree.path / p).exists())
        found: Findings = Counter()
        if paths:
            for name, command in (
                ("ruff-check", [*RUFF_CHECK, *paths]),
                ("ruff-format", [*RUFF_FORMAT, *paths]),
                ("mypy", self._mypy(paths)),
            ):
                found += self._lint(command, self.reports / f"base-{name}.txt").findings
        return found

    def _verify(self, branch: Branch, name: str, known: Findings, verdict: Verdict) -> None:
        wrong = verdict.wrong
        if failed := self._install(branch.commit, name):
            wrong += failed
            return
        touched = self.touched(branch)
        modules = [path for path in touched if path.endswith(".py")]
        for title, command in (("ruff check", RUFF_CHECK), ("ruff format", RUFF_FORMAT)):
            log = self.reports / f"{name}-{title.replace(' ', '-')}.txt"
            if modules:
                linted = self._lint([*command, *modules], log)
                wrong += [f"{title}: {line}" for line in linted.beyond(known)]

        tests = list(
            dict.fromkeys([*filter(_is_test, touched), *branch.pull_request.upstream_tests])
        )
        commands: dict[Path, Sequence[str | Path]] = {}
        typed, tested = self.reports / f"{name}-mypy.txt", self.reports / f"{name}-pytest.txt"
        if modules:
            commands[typed] = self._module(*self._mypy(modules))
        if tests:
            commands[tested] = self._pytest(name, *tests)
        statuses = self._together(commands)
        if modules:
            linted = Linted(statuses[typed], typed.read_text(errors="replace"))
            wrong += [f"mypy: {line}" for line in linted.beyond(known)]
        if tests:
            wrong += self._tested(name, statuses[tested], verdict)
        wrong += self._fragments(branch, name)

    def _pytest(self, name: str, *arguments: str) -> list[str | Path]:
        return self._module(
            *("pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-n", "auto", *arguments),
            # Where much fails, or a test hangs, the rest is not worth the wait.
            *("--maxfail=10", "-o", f"faulthandler_timeout={_PATIENCE}"),
            f"--report-log={self.reports / f'{name}-pytest.jsonl'}",
        )

    def _tested(self, name: str, status: int, verdict: Verdict) -> list[str]:
        """Say what pytest said."""
        report = self.reports / f"{name}-pytest.jsonl"
        outcomes = read(report)
        verdict.counts += Counts.of(outcomes)
        wrong = [f"{test} failed" for test, outcome in outcomes.items() if outcome == "failed"]
        if not finished(report):
            wrong.append("pytest was killed, or a test hung")
        elif status and not wrong:
            wrong.append(f"pytest ended with status {status}")
        elif not any(outcome == "passed" for outcome in outcomes.values()):
            wrong.append("no test passed")
        return [*wrong, *_last(self.reports / f"{name}-pytest.txt")] if wrong else []

    def _fragments(self, branch: Branch, name: str) -> list[str]:
        """Let towncrier render the change fragments of a branch."""
        log = self.reports / f"{name}-towncrier.txt"
        command = self._module("towncrier", "build", "--draft", "--name=zarr", "--version=0")
        (status,) = self._together({log: command}).values()
        if status:
            return ["towncrier fails:", *_last(log)]
        texts = {
            path: (self.tree.path / "changes" / path).read_text()
            for path in branch.pull_request.fragments
        }
        return [
            f"towncrier does not render changes/{path}"
            for path in rendered(texts, log.read_text(errors="replace"))
        ]

    def _verify_tip(self, verdict: Verdict) -> None:
        """Do what is for the last branch alone, which is installed and checked out."""
        if self.compare:
            verdict.wrong += self._compare_with_wheel()
        if self.suite:
            verdict.wrong += self._run_suite(verdict)

    def _compare_with_wheel(self) -> list[str]:
        """Compare what is installed, the version aside, with the wheel of the fork, built for that."""
        into, log = self.folder / "wheel", self.reports / "wheel.txt"
        shutil.rmtree(into, ignore_errors=True)
        command = self._module("pip", "wheel", "--no-deps", "--wheel-dir", into, self.project.root)
        if children.run(command, cwd=self.folder, env=self.environment.variables(), log=log):
            return ["the wheel of the fork cannot be built:", *_last(log)]
        (wheel,) = into.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            meant = {
                name: archive.read(name)
                for name in archive.namelist()
                if name.startswith("zarr/") and not name.endswith("/")
            }
        packages = self.environment.packages
        there = {
            path.relative_to(packages).as_posix(): path.read_bytes()
            for path in (packages / "zarr").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        return differences(meant, there, but=[_VERSION_FILE])

    def _run_suite(self, verdict: Verdict) -> list[str]:
        """Run upstream's whole suite."""
        ours = {path for branch in self.made for path in self.touched(branch)}
        theirs = self.repository.git("ls-tree", "-r", "--name-only", self.base, "tests")
        new = sorted(filter(_is_test, ours.difference(theirs.splitlines())))
        left_out = suite.Record.load().deselected("batched")
        command = self._pytest(
            "suite",
            *suite.WHOLE,
            *(f"--ignore={path}" for path in new),
            *(f"--deselect={test}" for test in left_out),
        )
        (status,) = self._together({self.reports / "suite-pytest.txt": command}).values()
        return self._tested("suite", status, verdict)


def _is_test(path: str) -> bool:
    name = PurePosixPath(path).name
    return path.startswith("tests/") and name.startswith("test_") and name.endswith(".py")


def _last(log: Path, count: int = 15) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [f"   {line}" for line in lines[-count:]]


def prepare(
    project: Project,
    repository: Repository,
    made: Sequence[Branch],
    version: str,
    *,
    suite: bool = False,
) -> Verification:
    """Make the environment in which branches are verified.

    Parameters
    ----------
    project : Project
        The fork.
    repository : Repository
        A checkout of zarr-python.
    made : Sequence of Branch
        The branches, on which nothing need stand yet.
    version : str
        The release that their base is of.
    suite : bool
        Whether to run upstream's whole suite at the tip.

    Returns
    -------
    Verification
        The run, which has yet to be started.

    Raises
    ------
    SetupError
        If something cannot be installed.
    """
    folder = project.root / "build" / "stack" / "verify"
    compare = made[0].parent == repository.asks("rev-parse", f"v{project.pinned}^{{commit}}")
    environment = environment_for(project)
    return Verification(
        project, repository, made, environment, folder, version, compare=compare, suite=suite
    )


def table(verification: Verification, verdicts: Sequence[Verdict]) -> list[str]:
    """Lay out what became of each branch.

    Parameters
    ----------
    verification : Verification
        The run.
    verdicts : Sequence of Verdict
        What became of them.

    Returns
    -------
    list of str
        A line for each.
    """
    made = {branch.pull_request.branch: branch for branch in verification.made}
    rows = [("", *diffstat.KINDS, "passed", "failed", "seconds", "")]
    for verdict in verdicts:
        stat = verification.stat(made[verdict.branch])
        rows.append(
            (
                verdict.branch,
                *(str(stat.within(folder)) for folder in diffstat.KINDS.values()),
                str(verdict.counts.passed),
                str(verdict.counts.failed),
                f"{verdict.seconds:.0f}",
                "good" if verdict.good else "FAILED",
            )
        )
    return aligned(rows)
