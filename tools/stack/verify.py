"""Verify each branch separately, as upstream's reviewers and its CI would."""

import platform
import re
import shutil
import sys
import time
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from tools import children, installer, suite
from tools.environment import Environment, SetupError
from tools.outcomes import Counts, finished, read
from tools.overlay.project import Project
from tools.stack import check
from tools.stack.branches import Branch, Made
from tools.stack.repository import Repository

_SCM = ("SETUPTOOLS_SCM_PRETEND_VERSION", "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_ZARR")
_VERSION_FILE = "zarr/_version.py"
_PATIENCE = 600
"""Seconds that a test may take."""

LINTERS: dict[str, tuple[str, ...]] = {
    "ruff check": ("ruff", "check", "--no-cache", "--output-format=concise"),
    "ruff format": ("ruff", "format", "--no-cache", "--check", "--output-format=concise"),
    "mypy": (
        *("mypy", "--follow-imports=silent", "--no-pretty", "--hide-error-context"),
        *("--hide-error-code-links", "--no-error-summary", "--no-color-output"),
    ),
    # The words that upstream's hook lets pass, beside those of its `pyproject.toml`.
    "codespell": ("codespell_lib", "-L", "astroid,ba,ihs,kake,nd,noe,nwo,te,fo,zar"),
}
"""What upstream runs over the files that a branch touches, with upstream's settings."""
SCRIPTS = ("check_changelog_entries.py", "check_documented_exports.py", "lint_docs.py")
"""Upstream's own checks, in `ci/`."""

type Findings = Counter[str]
"""What a linter said, without line numbers, and how often."""


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


def findings(output: str) -> Findings:
    """Count the lines that a linter printed of files: one finding on a line, with file and line in front."""
    found = (re.sub(r":\d+(:\d+)?:", ":", line) for line in output.splitlines())
    return Counter(line for line in found if re.match(r"[^:\s][^:]*: (?!note: )", line))


def requirements(sdist: Path) -> list[str]:
    """Return arguments for `pip install` with which a branch builds, and its checks run."""
    settings = sdist / "pyproject.toml"
    table = tomllib.loads(settings.read_text())
    groups = ["--group", f"{settings}:remote-tests", "--group", f"{settings}:release"]
    return [*groups, *table["build-system"]["requires"], "mypy", "ruff", "codespell"]


def environment_for(project: Project) -> Environment:
    """Make the environment in which branches are installed, `build/env-3.12-stack`, unless it is there.

    It holds the release, for its dependencies, until a branch takes its place.
    """
    version = platform.python_version()
    name = f"env-{version.rpartition('.')[0]}-stack"
    environment = Environment(project.root / "build" / name)
    environment.make(sys.executable, version)
    needed = requirements(suite.unpacked(project))
    environment.install("what branches are verified with", needed)
    environment.install("the dependencies of zarr", [f"zarr[{suite.EXTRAS}]=={project.pinned}"])
    return environment


@dataclass
class Verification:
    """One run over some or all of the branches."""

    project: Project
    repository: Repository
    """A checkout that has the commits."""
    made: Made
    environment: Environment
    """Where they are installed, in turn; it has all that is needed, dependencies of zarr too."""
    folder: Path
    """Where the work tree, caches and reports lie."""
    version: str
    """What the installed package is to call itself."""
    compare: bool = False
    """Whether what all series together install must be what the fork's wheel holds."""
    suite: bool = False
    """Whether to run upstream's whole suite on that."""

    @property
    def tree(self) -> Repository:
        """The work tree that takes one branch after the other."""
        return Repository(self.folder / "tree")

    @property
    def reports(self) -> Path:
        """The folder for what programs print."""
        return self.folder / "reports"

    def run(self, wanted: Collection[str]) -> list[Verdict]:
        """Verify the branches with these names, and all series together where all are wanted."""
        shutil.rmtree(self.reports, ignore_errors=True)
        self.reports.mkdir(parents=True)
        chosen = [branch for branch in self.made.branches if branch.name in wanted]
        self._remove_tree()
        try:
            self.repository.git("worktree", "add", "--detach", self.tree.path, self.made.base)
            if failed := self._install(self.made.base, "base"):
                raise SetupError("\n".join(["the base of the branches:", *failed]))
            touched = {path for branch in chosen for path in self._touched(branch)}
            known = self._lint("base", sorted(touched))
            verdicts = []
            for number, branch in enumerate(chosen, 1):
                print(f"-- {number}/{len(chosen)} {branch.name}", flush=True)
                work = partial(self._branch, branch, f"{number:02}", known)
                verdicts.append(_judge(branch.name, work))
            if len(chosen) == len(self.made.branches) and (self.compare or self.suite):
                print("-- all series", flush=True)
                verdicts.append(_judge("all series", self._whole))
            return verdicts
        finally:
            self._remove_tree()

    def _remove_tree(self) -> None:
        shutil.rmtree(self.tree.path, ignore_errors=True)
        self.repository.git("worktree", "prune")

    def _checkout(self, commit: str) -> None:
        """Check a commit out, with nothing beside it."""
        self.tree.git("checkout", "--quiet", "--force", "--detach", commit)
        self.tree.git("clean", "--quiet", "-ffdx")

    def _touched(self, branch: Branch) -> list[str]:
        """Return the paths that a branch adds or changes."""
        return list(self.repository.changed(branch.parent, branch.commit))

    def _branch(self, branch: Branch, name: str, known: Findings, verdict: Verdict) -> None:
        """Verify one branch."""
        verdict.wrong += self._apply(branch, name)
        if failed := self._install(branch.commit, name):
            verdict.wrong += failed
            return
        touched = self._touched(branch)
        tests = [*filter(_is_test, touched), *branch.pull_request.upstream_tests]
        message = self.reports / f"{name}-message.txt"
        message.write_text(branch.pull_request.message)
        verdict.wrong += self._lint(name, [*touched, str(message)]) - known
        if tests:
            self._pytest(verdict, name, *dict.fromkeys(tests))
        towncrier = ["-m", "towncrier", "build", "--draft", "--name=zarr", "--version=0"]
        verdict.wrong += self._run(name, "towncrier", towncrier)
        for script in SCRIPTS:
            if (path := self.tree.path / "ci" / script).exists():
                verdict.wrong += self._run(name, script, [path])

    def _apply(self, branch: Branch, name: str) -> list[str]:
        """Apply the patch to the base of the branch, and compare the result."""
        patch = self.reports / f"{name}.patch"
        shown = ("format-patch", "--stdout", "--binary", "--full-index", "--no-renames", "-1")
        patch.write_bytes(self.repository.git(*shown, branch.commit).encode() + b"\n")
        self._checkout(branch.parent)
        who = self.repository.nobody(self.made.base)
        as_them = ("-c", f"user.name={who.name}", "-c", f"user.email={who.email}")
        if self.tree.asks(*as_them, "am", "--quiet", str(patch)) is None:
            self.tree.asks("am", "--abort")
            return ["`git am` does not apply its patch"]
        meant, came = (
            self.tree.git("show", "--no-patch", "--format=%T%n%B", commit)
            for commit in (branch.commit, "HEAD")
        )
        return [] if meant == came else ["`git am` makes something else of its patch"]

    def _install(self, commit: str, name: str) -> list[str]:
        """Install a commit from its sources."""
        self._checkout(commit)
        how = ("install", "--no-deps", "--no-build-isolation", "--force-reinstall")
        command = [*self._pip(), *how, self.tree.path]
        return self._run(name, "install", command, **dict.fromkeys(_SCM, self.version))

    def _pip(self) -> list[str | Path]:
        return [*installer.pip(str(self.environment.python))[1:]]

    def _run(
        self, name: str, title: str, command: Sequence[str | Path], **variables: str
    ) -> list[str]:
        """Run a program of the environment in the work tree, and return the end of what it said if it fails."""
        log = self.reports / f"{name}-{title.replace(' ', '-')}.txt"
        everything = {"MYPYPATH": "src", "HYPOTHESIS_PROFILE": "ci", **variables}
        status = children.run(
            [self.environment.python, *command],
            cwd=self.tree.path,
            env=self.environment.variables(**everything),
            log=log,
        )
        said = log.read_text(errors="replace").splitlines()
        return [f"{title} fails:", *(f"   {line}" for line in said[-15:])] if status else []

    def _lint(self, name: str, paths: Sequence[str]) -> Findings:
        """Return what the linters say of files, of those that are there; raise if one of them cannot run."""
        there = [path for path in paths if (self.tree.path / path).exists()]
        modules = [path for path in there if path.endswith(".py")]
        found: Findings = Counter()
        for title, command in LINTERS.items():
            some = there if title == "codespell" else modules
            cache = [f"--cache-dir={self.folder / 'cache'}"] if title == "mypy" else []
            if some and (said := self._run(name, title, ["-m", *command, *cache, *some])):
                log = self.reports / f"{name}-{title.replace(' ', '-')}.txt"
                lines = findings(log.read_text(errors="replace"))
                if not any(line.partition(": ")[0] in some for line in lines):
                    raise SetupError("\n".join(said))
                found += Counter({f"{title}: {line}": n for line, n in lines.items()})
        return found

    def _pytest(self, verdict: Verdict, name: str, *arguments: str) -> None:
        """Run tests, and note what pytest said."""
        report = self.reports / f"{name}-pytest.jsonl"
        command = [
            *("-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-n", "auto", *arguments),
            # Where much fails, or a test hangs, the rest is not worth the wait.
            *("--maxfail=10", "-o", f"faulthandler_timeout={_PATIENCE}", f"--report-log={report}"),
        ]
        said = self._run(name, "pytest", command)
        outcomes = read(report)
        verdict.counts += Counts.of(outcomes)
        verdict.wrong += [f"{test} failed" for test, end in outcomes.items() if end == "failed"]
        if not finished(report):
            verdict.wrong.append("pytest was killed, or a test hung")
        elif not any(outcome == "passed" for outcome in outcomes.values()):
            verdict.wrong.append("no test passed")
        verdict.wrong += said

    def _whole(self, verdict: Verdict) -> None:
        """Do what is for all series together."""
        verdict.wrong += self._install(self.made.whole, "whole")
        if self.compare and verdict.good:
            verdict.wrong += self._compare_with_wheel()
        if self.suite and verdict.good:
            theirs = self.tree.git("ls-tree", "-r", "--name-only", self.made.base, "tests")
            there = self.tree.git("ls-files", "tests")
            new = set(there.splitlines()).difference(theirs.splitlines())
            self._pytest(
                verdict,
                "suite",
                *suite.WHOLE,
                *(f"--ignore={path}" for path in sorted(new) if _is_test(path)),
                *(f"--deselect={test}" for test in suite.Record.load().deselected("batched")),
            )

    def _compare_with_wheel(self) -> list[str]:
        """Compare what is installed, the version aside, with the wheel of the fork, built for that."""
        into = self.folder / "wheel"
        shutil.rmtree(into, ignore_errors=True)
        command = [*self._pip(), "wheel", "--no-deps", "--wheel-dir", into, self.project.root]
        if failed := self._run("whole", "wheel", command):
            return failed
        (wheel,) = into.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("zarr/")]
            meant = {name: archive.read(name) for name in names if not name.endswith("/")}
        packages = self.environment.packages
        there = {
            path.relative_to(packages).as_posix(): path.read_bytes()
            for path in (packages / "zarr").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        return differences(meant, there)


def _judge(branch: str, work: Callable[[Verdict], None]) -> Verdict:
    began = time.monotonic()
    verdict = Verdict(branch)
    work(verdict)
    verdict.seconds = time.monotonic() - began
    for line in verdict.wrong:
        print(f"   {line}", flush=True)
    return verdict


def differences(meant: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[str]:
    """Return a line for each file that is on one side only or differs, the version aside."""
    return [
        f"{path} {'is missing' if path not in there else 'differs' if path in meant else 'is too many'}"
        for path in sorted((meant.keys() | there.keys()) - {_VERSION_FILE})
        if meant.get(path) != there.get(path)
    ]


def _is_test(path: str) -> bool:
    name = PurePosixPath(path).name
    return path.startswith("tests/") and name.startswith("test_") and name.endswith(".py")


def prepare(
    project: Project, repository: Repository, made: Made, version: str, *, suite: bool = False
) -> Verification:
    """Make the environment in which branches are verified, and return the run, which is yet to be started."""
    folder = project.root / "build" / "stack" / "verify"
    compare = made.base == repository.asks("rev-parse", f"v{project.pinned}^{{commit}}")
    environment = environment_for(project)
    return Verification(
        project, repository, made, environment, folder, version, compare=compare, suite=suite
    )


def table(verification: Verification, verdicts: Sequence[Verdict]) -> list[str]:
    """Lay out what became of each branch."""
    by_name = {verdict.branch: verdict for verdict in verdicts}

    def cells(branch: Branch) -> tuple[str, ...]:
        if (verdict := by_name.get(branch.name)) is None:
            return ("", "", "", "")
        counts, state = verdict.counts, "good" if verdict.good else "FAILED"
        return str(counts.passed), str(counts.failed), f"{verdict.seconds:.0f}", state

    heads = ("passed", "failed", "seconds", "")
    rows = check.table(verification.made, verification.repository, cells, heads)
    whole = [verdict for verdict in verdicts if verdict.branch == "all series"]
    return rows + [f"all series: {'good' if verdict.good else 'FAILED'}" for verdict in whole]
