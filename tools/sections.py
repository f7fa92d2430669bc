"""The sections of a test run, one after the other, and the table at its end."""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from checks import sections as checks
from tools import children, covered, suite
from tools.environment import BUILD, ROOT, Environment, SetupError
from tools.outcomes import Counts, Outcomes, function, parted, total
from tools.overlay.problems import OverlayError
from tools.overlay.project import Project
from tools.selection import UPSTREAM, parse
from tools.stack import branches, check, repository, verify
from tools.stack.cut import Stack
from tools.test import SECTIONS
from tools.trial import Report, Trial

OWN_TESTS = {"fork": ("tests",), "tools": ("tools/tests", "bench/tests", "checks/tests")}
OTHER_RELEASE = "3.4.0"
"""A release beside the pinned one on which the stack must build."""
PROVENANCE = ROOT.parent / "shared" / "tools" / "provenance.py"


def lint(trial: Trial, report: Report) -> None:
    """Run ruff."""
    for title, *command in (("ruff check", "check"), ("ruff format", "format", "--check")):
        trial.check(report, f"{title}, this checkout", "-m", "ruff", *command, ".")
        trial.check(
            report,
            f"{title}, the merged modules as upstream wants them",
            *("-m", "ruff", *command, "--no-cache", *trial.modules),
            cwd=trial.workplace,
        )


def types(trial: Trial, report: Report) -> None:
    """Run mypy."""
    cache = f"--cache-dir={BUILD / 'cache' / 'mypy'}"
    settings = f"--config-file={trial.workplace / 'pyproject.toml'}"
    trial.check(report, "mypy, tools", "-m", "mypy", cache)
    trial.check(
        report,
        "mypy, the merged modules as upstream wants them",
        # What is wrong in modules that the overlay does not touch is upstream's affair.
        *("-m", "mypy", f"{cache}-merged", "--follow-imports=silent", *trial.modules),
        cwd=trial.workplace,
    )
    trial.check(
        report,
        "mypy, the fork's tests as upstream wants them",
        *("-m", "mypy", f"{cache}-tests", "--follow-imports=silent", settings, "tests"),
    )


def fork(trial: Trial, report: Report) -> None:
    """Run the fork's tests; where they are all run, measure what they cover."""
    arguments = trial.selection.arguments("fork", OWN_TESTS["fork"])
    data = BUILD / "coverage" / "data"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.unlink(missing_ok=True)
    if not trial.selection:
        # What a plugin imports before the measurement begins would count as not covered.
        arguments += ["--cov", "--cov-report=", "-p", "no:zarr"]
    outcomes = trial.pytest(
        report, *arguments, cwd=ROOT, workers=trial.workers, COVERAGE_FILE=str(data)
    )
    if report.good and not trial.selection:
        _cover(trial, report, data)
    report.tell(outcomes)


def _cover(trial: Trial, report: Report, data: Path) -> None:
    result, log = data.with_name("report.json"), data.with_name("log.txt")
    command = [str(trial.environment.python), "-m", "coverage", "json", "-q", "-o", str(result)]
    variables = trial.environment.variables(COVERAGE_FILE=str(data))
    if children.run(command, cwd=ROOT, env=variables, log=log):
        report.fail(f"coverage json: {log.read_text().strip()}")
        return
    files = {
        (ROOT / name).resolve(): file
        for name, file in json.loads(result.read_text())["files"].items()
    }
    rows = covered.measure_all(trial.plan, trial.environment.packages.resolve(), files)
    print("\nCovered by the fork's tests, of what the overlay adds and replaces:\n")
    print("\n".join(covered.table(rows)), flush=True)
    overlay = covered.total("the overlay", rows)
    if not overlay.enough():
        report.fail(f"they cover less than {covered.REQUIRED}% of the overlay")


def tools(trial: Trial, report: Report) -> None:
    """Run the tests of what is not installed."""
    folders = [f for f in OWN_TESTS["tools"] if any((ROOT / f).rglob("test_*.py"))]
    arguments = trial.selection.arguments("tools", folders)
    report.tell(trial.pytest(report, *arguments, cwd=ROOT, workers=trial.workers))


def upstream(trial: Trial, report: Report) -> None:
    """Run upstream's suite on the fork, and compare it with what the release does."""
    outcomes = _run_suite(trial, report, trial.workplace, trial.environment)
    added = suite.added_tests(trial.plan.definitions("adds"))
    _, new = parted(outcomes, lambda test: function(test) in added)
    if new:
        report.notes.append(f"{len(new)} of these tests are added by the fork")
    if trial.stock:
        _compare_with_stock(trial, report, outcomes)
        return
    report.tell(outcomes)
    if trial.selection:
        return
    release = trial.project.pinned
    expected = trial.record.expected(release, trial.pipeline, trial.python)
    if expected is None:
        report.notes.append("what the release does was not recorded: --stock compares with it")
    elif differences := suite.against_record(outcomes, added, expected):
        report.fail(*differences)
    else:
        report.notes.append(f"all others do what they do on zarr {release}")


def _compare_with_stock(trial: Trial, report: Report, outcomes: Outcomes) -> None:
    """Run the suite on the release, and compare test by test."""
    other = trial.install_release()
    on_release = Report("upstream")
    stock = _run_suite(trial, on_release, suite.workplace(trial.sdist, other), other)
    if counts := on_release.counts:
        report.notes.append(
            f'on the release: "{trial.python}" = {{ passed = {counts.passed}, '
            f"skipped = {counts.skipped}, xfailed = {counts.xfailed} }}, {counts.failed} failed"
        )
    if not on_release.good:
        report.fail("on the release:", *on_release.notes)
    if differences := suite.against_stock(outcomes, stock):
        report.fail("tests that fail or are skipped on the fork alone:", *differences)
    else:
        report.notes.append("no test fails or is skipped on the fork alone")


def _run_suite(trial: Trial, report: Report, place: Path, environment: Environment) -> Outcomes:
    return trial.pytest(
        report,
        *trial.selection.arguments(UPSTREAM, suite.WHOLE),
        *_deselected(trial, report, in_docs=False),
        cwd=place,
        environment=environment,
        workers=trial.workers,
        # One of upstream's profiles, which draws the same examples every time.
        HYPOTHESIS_PROFILE=os.environ.get("HYPOTHESIS_PROFILE", "ci"),
        ZARR_CODEC_PIPELINE__PATH=suite.PIPELINES[trial.pipeline],
    )


def docs(trial: Trial, report: Report) -> None:
    """Run the examples in upstream's documentation, and in the docstrings of the installed fork."""
    outcomes = trial.pytest(
        report,
        *suite.DOCUMENTATION,
        f"--ignore={trial.environment.packages / 'zarr' / '_cli'}",
        *_deselected(trial, report, in_docs=True),
        *trial.selection.options,
        cwd=trial.workplace,
        workers=trial.workers,
    )
    report.tell(outcomes)


def stack(trial: Trial, report: Report) -> None:
    """Cut the overlay into pull requests, make the branches, and try each of them."""
    project = trial.project
    for version in (OTHER_RELEASE, project.pinned):
        checkout = repository.of_release(project, version, BUILD / "stack")
        base = checkout.commit(f"v{version}")
        made = branches.commits(project, checkout, base, checkout.nobody(base))
        branches.build(checkout, made, force=True)
        report.notes.append(f"{len(made.branches)} branches on zarr {version}")
    check.check(Stack(project, trial.sdist), made, checkout)
    verification = verify.prepare(project, checkout, made, project.pinned)
    verdicts = verification.run([branch.name for branch in made.branches])
    print("\n".join(["", *verify.table(verification, verdicts)]), flush=True)
    report.counts = total(verdict.counts for verdict in verdicts)
    if wrong := [f"{v.branch}: {v.wrong[0]}" for v in verdicts if not v.good]:
        report.fail(*wrong)


def provenance(trial: Trial, report: Report) -> None:
    """Look for text of upstream's in this repository."""
    trial.check(report, "text of upstream's", PROVENANCE, trial.sdist, "--repo", ROOT)


RUN: dict[str, Callable[[Trial, Report], None]] = {
    "lint": lint,
    "types": types,
    "fork": fork,
    "tools": tools,
    **checks.RUN,
    "upstream": upstream,
    "docs": docs,
    "stack": stack,
    "provenance": provenance,
}


def run(environment: Environment, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the sections in the environment that has the fork, as `tools/test.py` was told, and return the status."""
    began = time.monotonic()
    project = Project()
    selection = parse(arguments, OWN_TESTS, lambda: suite.unpacked(project))
    workers = options.workers
    if workers is None:
        workers = 0 if selection else len(os.sched_getaffinity(0))
    trial = Trial(
        environment, selection, options.stock, options.pipeline, workers, project, options
    )
    reports = [_section("install", lambda trial, _: trial.install(), trial)]
    for name in options.only or trial.selection.sections((*OWN_TESTS, UPSTREAM)) or SECTIONS:
        if name == "provenance" and not PROVENANCE.exists():
            continue
        if reports[0].good:
            reports.append(_section(name, RUN[name], trial))
        else:
            reports.append(Report(name, good=False, notes=["not run"]))
    if trial.selection and selects_nothing(reports):
        reports.append(Report("selection", good=False, notes=["it selects no test"]))
    return summary(reports, time.monotonic() - began)


def selects_nothing(reports: Sequence[Report]) -> bool:
    """Tell whether sections ran pytest, and none of them has found a test."""
    counts = [report.counts for report in reports if report.counts]
    return bool(counts) and total(counts) == Counts()


def _section(name: str, work: Callable[[Trial, Report], None], trial: Trial) -> Report:
    what = SECTIONS.get(name, "what is tested, and what it is tested with")
    print(f"\n==== {name}: {what}\n", flush=True)
    report = Report(name)
    began = time.monotonic()
    try:
        work(trial, report)
    except (OverlayError, SetupError) as error:
        print(error, flush=True)
        report.fail(str(error).partition("\n")[0])
    report.seconds = time.monotonic() - began
    return report


def _deselected(trial: Trial, report: Report, *, in_docs: bool) -> list[str]:
    """Return the arguments that leave out what the record names, and say so where it would run."""
    named = trial.record.deselected(trial.pipeline)
    report.notes.extend(
        f"not run: {test}: {reason}"
        for test, reason in named.items()
        if test.startswith(suite.DOCUMENTATION[0]) is in_docs
    )
    return [f"--deselect={test}" for test in named]


def summary(reports: Sequence[Report], seconds: float) -> int:
    """Print the table, and as the last line the counts of all tests; return the exit status."""
    print("\n==== summary\n")
    print(f"{'':14}{'':8}{'passed':>8}{'failed':>8}{'skipped':>9}{'xfailed':>9}{'seconds':>9}")
    for report in reports:
        numbers = ""
        if counts := report.counts:
            numbers = f"{counts.passed:8}{counts.failed:8}{counts.skipped:9}{counts.xfailed:9}"
        verdict = ("good" if report.counts != Counts() else "no tests") if report.good else "FAILED"
        print(f"{report.name:14}{verdict:8}{numbers:34}{report.seconds:9.0f}")
        for note in report.notes:
            print(f"{'':14}{note}")
    counts = total(report.counts for report in reports if report.counts)
    good = all(report.good for report in reports)
    print(f"\n{'good' if good else 'FAILED'}, in {seconds:.0f} s\n")
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped", flush=True)
    return not good
