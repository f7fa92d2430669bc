"""The sections of a test run that compare the fork with the release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks import clients as libraries
from tools.environment import BUILD, ROOT
from tools.outcomes import Counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.trial import Report, Trial

PARQUET = ("cramjam", "fastparquet", "kerchunk", "pandas", "ujson")
"""Packages for references in Parquet files, installed where no other test imports them."""


def faults(trial: Trial, report: Report) -> None:
    """Read from a server that misbehaves, on the release and on the fork."""
    stock = f"--stock-python={trial.install_release().python}"
    report.tell(trial.pytest(report, "checks/faults", stock, *trial.selection.options, cwd=ROOT))


def differential(trial: Trial, report: Report) -> None:
    """Compare what the fork and the release do with the same arrays."""
    # Local import: what it needs is installed by now, and not before.
    from checks.differential.compare import Comparison, compare

    release, parquet, options = trial.install_release(), BUILD / "parquet", trial.options
    arguments = ["--no-deps", "--upgrade", "--target", str(parquet), *PARQUET]
    trial.environment.install("what reads and writes Parquet", arguments)
    variables = trial.environment.variables(PYTHONPATH=str(parquet))
    interpreters = {"stock": release.python, "fork": trial.environment.python}
    comparison = Comparison(interpreters, BUILD / "differential", variables)
    with comparison:
        failed = compare(comparison, options.cases, options.seed, options.example)
    compared = comparison.tally.compared
    report.counts = Counts(passed=compared - failed, failed=failed)
    if failed or not compared:
        report.fail(f"{failed} disagreements in {compared:,} cases")


def clients(trial: Trial, report: Report) -> None:
    """Read with libraries that use zarr, on the release and on the fork."""
    comparisons = list(libraries.compare(libraries.QUICK, trial.environment))
    print(libraries.table(comparisons), flush=True)
    failed = [f"{each.name}: {'; '.join(each.problems)}" for each in comparisons if each.problems]
    report.counts = Counts(passed=len(comparisons) - len(failed), failed=len(failed))
    if failed:
        report.fail(*failed)


RUN: dict[str, Callable[[Trial, Report], None]] = {
    "faults": faults,
    "differential": differential,
    "clients": clients,
}
