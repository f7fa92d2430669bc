"""The sections of a test run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import sections, trial
from tools.environment import BUILD, Environment
from tools.outcomes import Counts
from tools.selection import Selection
from tools.test import SECTIONS
from tools.trial import Report, Trial


def _trial(*options: str) -> Trial:
    environment = Environment(Path(sys.prefix))
    return Trial(environment, Selection(options), stock=False, pipeline="batched", workers=0)


def _tests(folder: Path, text: str) -> Path:
    (folder / "test_them.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    pytest.importorskip("pytest_reportlog")
    monkeypatch.setattr(trial, "BUILD", tmp_path / "build")
    return Report("some")


def test_every_section_is_explained() -> None:
    assert list(sections.RUN) == list(SECTIONS)


def test_pytest_counts(tmp_path: Path, report: Report) -> None:
    text = "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): __import__('pytest').skip()\n"
    outcomes = _trial().pytest(report, ".", cwd=_tests(tmp_path, text))
    assert report.counts == Counts(passed=1, failed=1, skipped=1)
    assert [outcomes[f"test_them.py::test_{name}"] for name in "abc"] == [
        "passed",
        "failed",
        "skipped",
    ]
    # Which tests failed is for the section to say: it may know better.
    assert report.good


def test_pytest_that_cannot_collect(tmp_path: Path, report: Report) -> None:
    _trial().pytest(report, ".", cwd=_tests(tmp_path, "import no_such_module"))
    assert report.counts == Counts(failed=1)
    assert report.notes == ["pytest ended with status 2"]


def test_pytest_that_ends_early(tmp_path: Path, report: Report) -> None:
    text = "import os\ndef test_a(): pass\ndef test_b(): os._exit(9)\n"
    _trial().pytest(report, ".", cwd=_tests(tmp_path, text))
    assert not report.good
    assert report.notes == ["pytest was killed, or a test hung"]


@pytest.mark.parametrize("selected", [True, False])
def test_nothing_collected_is_wrong_unless_selected(
    tmp_path: Path, report: Report, *, selected: bool
) -> None:
    place = _tests(tmp_path, "def test_a(): pass\n")
    _trial(*["-k", "none"] if selected else []).pytest(report, ".", "-k", "none", cwd=place)
    assert report.good is selected


def test_sections_without_a_test() -> None:
    lint, empty = Report("lint"), Report("faults", counts=Counts())
    assert not sections.selects_nothing([lint])
    assert sections.selects_nothing([lint, empty, empty])
    assert not sections.selects_nothing([empty, Report("fork", counts=Counts(skipped=1))])


def test_check(capfd: pytest.CaptureFixture[str]) -> None:
    report = Report("some")
    _trial().check(report, "fine", "-c", "print('what it says')")
    assert report == Report("some")
    _trial().check(report, "broken", "-c", "raise SystemExit(1)")
    assert report == Report("some", good=False, notes=["broken"])
    assert capfd.readouterr().out == "-- fine\nwhat it says\n-- broken\n"


def test_summary_ends_with_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [Report("lint"), Report("fork", counts=Counts(3, 0, 1, 2), notes=["a note"])]
    assert sections.summary(reports, 1.0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 passed, 0 failed, 1 skipped"
    reports[0].fail("ruff")
    reports.append(Report("upstream", counts=Counts(1, 1)))
    assert sections.summary(reports, 1.0) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "4 passed, 1 failed, 1 skipped"
    assert "lint          FAILED" in "\n".join(out)


def test_a_section_without_tests_is_not_good(capsys: pytest.CaptureFixture[str]) -> None:
    sections.summary([Report("lint"), Report("fork", counts=Counts())], 1.0)
    out = capsys.readouterr().out
    assert "lint          good " in out
    assert "fork          no tests " in out


def test_build_is_ignored() -> None:
    assert "/build/" in (BUILD.parent / ".gitignore").read_text().splitlines()
