"""One run of the tests: what it tests, in which places, and how it runs pytest and others there."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tools import children, covered, suite
from tools.environment import BUILD, ROOT, Environment, SetupError
from tools.outcomes import Counts, Outcomes, finished, read
from tools.overlay.project import Project
from tools.overlay.tree import Plan
from tools.overlay.upstream import Release, at
from tools.selection import Selection

FORK_IS_BUILT_FROM = (
    "src",
    "tools/overlay",
    "tools/build_hook.py",
    "tools/installer.py",
    "pyproject.toml",
    "overlay.lock",
)


@dataclass(slots=True)
class Report:
    """The result of a section."""

    name: str
    good: bool = True
    counts: Counts | None = None
    """Of its tests, where it has any."""
    seconds: float = 0
    notes: list[str] = field(default_factory=list)
    """Lines for the table at the end."""

    def fail(self, *notes: str) -> None:
        """Note what is wrong."""
        self.good = False
        self.notes.extend(notes)

    def tell(self, outcomes: Outcomes) -> None:
        """Note which tests have failed."""
        failed = [test for test, outcome in outcomes.items() if outcome == "failed"]
        if failed:
            more = len(failed) - 20
            self.fail(*failed[:20], *([f"and {more} more"] if more > 0 else []))


@dataclass
class Trial:
    """One run of the tests."""

    environment: Environment
    selection: Selection
    stock: bool
    pipeline: str
    workers: int
    project: Project = field(default_factory=Project)
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    """Those of the command line, for sections that have some of their own."""

    @cached_property
    def sdist(self) -> Path:
        """Upstream's source distribution, unpacked."""
        return suite.unpacked(self.project)

    @cached_property
    def release(self) -> Release:
        """The release that the overlay is merged into."""
        return at(self.sdist, unpack_into=self.project.downloads)

    @cached_property
    def plan(self) -> Plan:
        """What the overlay makes of the package."""
        return self.project.plan(self.release)

    @cached_property
    def modules(self) -> list[str]:
        """The modules that the overlay touches, by their paths in a workplace."""
        return [f"src/{path}" for path in sorted(covered.modules(self.plan))]

    @cached_property
    def workplace(self) -> Path:
        """Where upstream's tests and tools run on the fork."""
        documents = self.project.plans(self.release)[1:]
        return suite.workplace(self.sdist, self.environment, documents)

    @cached_property
    def record(self) -> suite.Record:
        """What is known of the release's suite."""
        return suite.Record.load()

    @property
    def python(self) -> str:
        """The version of Python, `3.12`."""
        return f"{sys.version_info[0]}.{sys.version_info[1]}"

    def install(self) -> None:
        """Install the fork as its users do, and the requirements of its tests and upstream's."""
        # Computed now, so that it matches what is installed even if files are edited meanwhile.
        _ = self.plan
        made_of = [ROOT / name for name in FORK_IS_BUILT_FROM]
        self._install(self.environment, "the fork", f"{ROOT}[{suite.EXTRAS}]", made_of)
        _expect_zarr(self.environment, f"{self.project.pinned}+*")

    def install_release(self) -> Environment:
        """Install the release in another environment that is otherwise the same as that of the fork."""
        other, version = self.environment.beside("stock"), self.project.pinned
        self._install(other, "the release", f"zarr[{suite.EXTRAS}]=={version}")
        _expect_zarr(other, version)
        return other

    def _install(
        self, environment: Environment, what: str, zarr: str, made_of: Sequence[Path] = ()
    ) -> None:
        environment.install("upstream's test requirements", suite.requirements(self.sdist))
        environment.install(what, [zarr], made_of=made_of)

    def check(self, report: Report, title: str, *command: str | Path, cwd: Path = ROOT) -> None:
        """Run a program whose exit status tells whether it succeeded."""
        print(f"-- {title}", flush=True)
        command = (self.environment.python, *command)
        if children.run(command, cwd=cwd, env=self.environment.variables()):
            report.fail(title)

    def pytest(
        self,
        report: Report,
        *arguments: str,
        cwd: Path,
        environment: Environment | None = None,
        workers: int = 0,
        **variables: str,
    ) -> Outcomes:
        """Run pytest, and return what became of each test.

        The report takes the counts, and a note where pytest could not run to its end. `cwd` is the folder to
        run it in, `workers` how many processes share the tests, `variables` go into its environment.
        """
        environment = environment or self.environment
        name = f"{report.name}-{environment.path.name}"
        log = BUILD / "reports" / f"{name}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        share = ["-n", str(workers)] if workers else []
        command: list[str | Path] = [
            environment.python,
            *("-m", "pytest", *arguments, *share),
            *("-q", "-rfE", "--durations=5", f"--report-log={log}"),
            *("-o", f"cache_dir={BUILD / 'cache' / name}"),
        ]
        status = children.run(command, cwd=cwd, env=environment.variables(**variables))
        outcomes = read(log)
        report.counts = Counts.of(outcomes)
        if not finished(log):
            report.fail("pytest was killed, or a test hung")
        elif status == 5 and self.selection:
            print("nothing here is selected")
        elif status not in (0, 1):
            report.fail(f"pytest ended with status {status}")
        elif status == 1 and not report.counts.failed:
            report.fail("pytest says that something failed")
        return outcomes


def _expect_zarr(environment: Environment, version: str) -> None:
    """Show which zarr an environment imports, and check that it is the right one."""
    code = "import fnmatch, zarr; print('zarr', v := zarr.__version__, 'in', zarr.__path__[0]); "
    command = [str(environment.python), "-c", f"{code}exit(not fnmatch.fnmatch(v, {version!r}))"]
    if children.run(command, cwd=BUILD, env=environment.variables()):
        raise SetupError(f"{environment.path.name} should hold zarr {version}")
