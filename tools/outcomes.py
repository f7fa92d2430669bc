"""What became of tests: reading it from pytest's report, counting it, comparing two runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

type Outcome = Literal["passed", "skipped", "xfailed", "failed"]
type Outcomes = Mapping[str, Outcome]
"""By the id of the test. A module that is skipped or broken as a whole is one, as in pytest."""

# The phases of a test (setup, call, teardown) have outcomes of their own: the last of these counts.
_RANK: dict[Outcome, int] = {"passed": 0, "skipped": 1, "xfailed": 2, "failed": 3}


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests there were of each outcome."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    xfailed: int = 0

    @staticmethod
    def of(outcomes: Outcomes) -> Counts:
        """Count the outcomes of a run."""
        count = Counter(outcomes.values())
        return Counts(count["passed"], count["failed"], count["skipped"], count["xfailed"])

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.xfailed + other.xfailed,
        )

    def __str__(self) -> str:
        expected = f", {self.xfailed} xfailed" if self.xfailed else ""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped{expected}"


def read(report: Path) -> dict[str, Outcome]:
    """Read what `pytest --report-log` wrote, if it wrote any."""
    outcomes: dict[str, Outcome] = {}
    lines = report.read_text().splitlines() if report.exists() else []
    for entry in map(json.loads, lines):
        kind = entry.get("$report_type")
        if kind == "TestReport" or (kind == "CollectReport" and entry["outcome"] != "passed"):
            outcome: Outcome = entry["outcome"]
            if outcome == "skipped" and "wasxfail" in entry:
                outcome = "xfailed"
            test = entry["nodeid"]
            outcomes[test] = max(outcomes.get(test, outcome), outcome, key=_RANK.__getitem__)
    return outcomes


def finished(report: Path) -> bool:
    """Tell whether pytest came to its end, in whichever way: it was not killed and did not hang."""
    return report.exists() and '"SessionFinish"' in report.read_text()[-1000:]


def parted(outcomes: Outcomes, added: Callable[[str], bool]) -> tuple[Outcomes, Outcomes]:
    """Part the tests that one side of a comparison lacks from the others, which come first."""
    return (
        {test: outcome for test, outcome in outcomes.items() if not added(test)},
        {test: outcome for test, outcome in outcomes.items() if added(test)},
    )


def function(test: str) -> str:
    """Return the name of the function that a test id names, without class and parameters."""
    return test.partition("[")[0].rpartition("::")[2]


def total(counts: Iterable[Counts]) -> Counts:
    """Add counts up."""
    return sum(counts, start=Counts())
