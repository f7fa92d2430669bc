"""Run other projects' tests of zarr on the release and on the fork, and compare them test by test.

python3 checks/third_parties.py             all suites
python3 checks/third_parties.py xarray …    some of them
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    if sys.version_info < (3, 12):  # noqa: UP036, any Python may run it
        sys.exit(
            f"run this with Python 3.12 or newer: {sys.executable} is {sys.version.split()[0]}"
        )
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools import children
from tools.environment import BUILD, ROOT, Environment, SetupError, alone
from tools.outcomes import Counts, Outcomes, finished, read
from tools.suite import against_stock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUITES = ROOT / "checks" / "third_parties.toml"
REQUIREMENTS = ROOT / "checks" / "third_parties.txt"
PLACES = BUILD / "third-parties"


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of another project; `third_parties.toml` says what the fields are."""

    package: str
    tests: list[str]
    options: list[str] = field(default_factory=list)
    variables: Mapping[str, str] = field(default_factory=dict)
    here: bool = False
    expected: Mapping[str, str] = field(default_factory=dict)


def suites() -> dict[str, Suite]:
    """Return the suites by their names."""
    return {name: Suite(**table) for name, table in tomllib.loads(SUITES.read_text()).items()}


def pinned(package: str) -> str:
    """Return the version of a package that the requirements name."""
    found = re.search(rf"(?m)^{re.escape(package)}==(\S+)$", REQUIREMENTS.read_text())
    if not found:
        raise SetupError(f"{REQUIREMENTS.name} does not pin {package}")
    return found[1]


def install(name: str, zarr: str) -> Environment:
    """Install zarr, and all packages that the suites need, in an environment of their own."""
    environment = Environment.of(sys.executable).beside(f"third-parties-{name}")
    sources = [ROOT / path for path in ("src", "tools/overlay", "pyproject.toml", "overlay.lock")]
    packages = [zarr, "--requirement", str(REQUIREMENTS)]
    environment.install("other projects", packages, made_of=[REQUIREMENTS, *sources])
    code = "import zarr; print(zarr.__version__)"
    command = [str(environment.python), "-c", code]
    variables = environment.variables()
    found = subprocess.check_output(command, cwd=BUILD, env=variables, text=True).strip()
    print(f"{environment.path.name}: zarr {found}", flush=True)
    if ("+" in found) is (name == "stock"):
        raise SetupError("this is not the zarr to test")
    return environment


def sources(package: str, environment: Environment) -> Path:
    """Return the unpacked source distribution of a package, which is downloaded once.

    pip unpacks it and then prepares its metadata. That may fail without the package's build
    requirements, which does not matter: only the unpacked files are used.
    """
    version = pinned(package)
    target = PLACES / f"{package}-{version}"
    if not target.exists():
        scratch = PLACES / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        pip = f"-m pip download --no-deps --no-build-isolation --no-clean --no-binary {package}"
        command = [
            str(environment.python),
            *pip.split(),
            "--dest",
            str(scratch),
            f"{package}=={version}",
        ]
        log = scratch / "pip.log"
        children.run(command, cwd=ROOT, env=environment.variables(TMPDIR=str(scratch)), log=log)
        unpacked = [file.parent for file in scratch.glob("pip-download-*/*/PKG-INFO")]
        if len(unpacked) != 1:
            raise SetupError(f"pip cannot download {package}:\n{log.read_text()}")
        unpacked[0].rename(target)
        shutil.rmtree(scratch)
    return target


def run(name: str, suite: Suite, environment: Environment, workers: int) -> Outcomes:
    """Run a suite in an environment, in a fresh copy of the source distribution."""
    place = ROOT
    if not suite.here:
        place = PLACES / environment.path.name / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sources(suite.package, environment), place)
    report = BUILD / "reports" / f"{name}-{environment.path.name}.jsonl"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [
        *(str(environment.python), "-m", "pytest", *suite.tests, "-o", "addopts=", *suite.options),
        *("-q", "-rfE", "--hypothesis-seed=0", "-n", str(workers), f"--report-log={report}"),
        *("-o", f"cache_dir={BUILD / 'cache' / report.stem}"),
    ]
    log = report.with_suffix(".log")
    # With different hash seeds, tests parametrized over a set differ in order between processes.
    variables = environment.variables(PYTHONHASHSEED="0", **suite.variables)
    status = children.run(command, cwd=place, env=variables, log=log)
    if status not in (0, 1) or not finished(report):
        last = "\n".join(log.read_text().splitlines()[-25:])
        raise SetupError(f"pytest ended with status {status}, see {log}:\n{last}")
    return read(report)


def parted(
    differences: Iterable[str], expected: Mapping[str, str]
) -> tuple[list[str], dict[str, int]]:
    """Return the differences that are not expected, and how many each pattern matches."""
    matched = dict.fromkeys(expected, 0)
    others = []
    for difference in differences:
        test = difference.rpartition(": ")[0].partition("[")[0]
        pattern = next((pattern for pattern in expected if fnmatchcase(test, pattern)), None)
        if pattern is None:
            others.append(difference)
        else:
            matched[pattern] += 1
    return others, matched


def compare(name: str, suite: Suite, stock: Outcomes, fork: Outcomes) -> bool:
    """Print the row of a suite, and tell whether the differences are the expected ones.

    They are not if no test passed on the release, or if a pattern of expected differences matches none.
    """
    differences = against_stock(fork, stock)
    others, matched = parted(differences, suite.expected)
    counts = "".join(
        f"{c.passed:9}{c.failed:8}{c.skipped:9}" for c in map(Counts.of, (stock, fork))
    )
    print(f"{name:20}{pinned(suite.package):11}{counts}{len(differences):8}")
    for pattern, count in matched.items():
        print(f"    {count or 'NONE'} expected, {pattern}: {suite.expected[pattern].strip()}")
    print("".join(f"    NOT expected, {difference}\n" for difference in others), end="", flush=True)
    if not (passed := "passed" in stock.values()):
        print("    no test passed on the release", flush=True)
    return passed and not others and all(matched.values())


def main() -> int:
    """Set up the environments, run the suites, print the table."""
    known = suites()
    parser = argparse.ArgumentParser(
        prog="python3 checks/third_parties.py",
        description="Run other projects' tests of zarr on the release and on the fork, and list "
        "those that fail or are skipped only on the fork. The exit status is 0 if all of these are "
        f"expected. Suites: {', '.join(known)}. Reports and logs are in build/reports/.",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="which suites (default: all)")
    parser.add_argument("-n", dest="workers", type=int, default=2, help="processes (default: 2)")
    options = parser.parse_args()
    if unknown := [name for name in options.suites if name not in known]:
        parser.error(f"unknown suites: {', '.join(unknown)}; there are {', '.join(known)}")
    release = tomllib.loads((ROOT / "overlay.lock").read_text())["upstream"]
    zarrs = {"stock": f"zarr[remote]=={release}", "fork": f"{ROOT}[remote]"}
    good = True
    try:
        with alone():
            both = [install(name, zarr) for name, zarr in zarrs.items()]
            print(f"\n{'':31}{'stock':>9}{'':17}{'fork':>9}{'':17}{'fork':>8}")
            columns = f"{'passed':>9}{'failed':>8}{'skipped':>9}"
            print(f"{'suite':20}{'version':11}{columns * 2}{'alone':>8}", flush=True)
            for name in options.suites or known:
                try:
                    stock, fork = (run(name, known[name], each, options.workers) for each in both)
                    good &= compare(name, known[name], stock, fork)
                except SetupError as error:
                    print(f"{name:20}{error}", flush=True)
                    good = False
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
