"""Comparing other projects' suites on the release and on the fork."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from checks import third_parties
from checks.third_parties import Suite
from tools.environment import Environment, SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from tools.outcomes import Outcomes

STOCK: Outcomes = {"a.py::A::test_a[1]": "passed", "a.py::A::test_b": "failed"}
FORK: Outcomes = {"a.py::A::test_a[1]": "skipped", "a.py::A::test_b": "failed"}

FAKE_PIP = """\
import os, sys, tempfile
from pathlib import Path
print(*sys.argv[1:])
for name in os.environ["UNPACKS"].split():
    folder = Path(tempfile.mkdtemp(prefix="pip-download-")) / name
    folder.mkdir()
    (folder / "PKG-INFO").write_text(name)
sys.exit(1)
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders for suites and reports, and requirements that pin a package `fake`."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# fake==0\nfake==1.2\nloose\n")
    monkeypatch.setattr(third_parties, "REQUIREMENTS", requirements)
    monkeypatch.setattr(third_parties, "PLACES", tmp_path / "places")
    monkeypatch.setattr(third_parties, "BUILD", tmp_path / "build")
    return tmp_path / "places"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment whose interpreter is the running one."""
    environment = Environment(tmp_path / "environment")
    environment.bin.mkdir(parents=True)
    environment.python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    environment.python.chmod(0o755)
    return environment


def test_suites_and_their_packages_are_known() -> None:
    suites = third_parties.suites()
    assert {"xarray", "icechunk", "anndata", "zarrs", "dask"} <= suites.keys()
    for suite in suites.values():
        assert third_parties.pinned(suite.package)
        assert all(suite.expected.values())


@pytest.mark.usefixtures("places")
def test_pinned() -> None:
    assert third_parties.pinned("fake") == "1.2"
    for name in ("loose", "f.ke"):
        with pytest.raises(SetupError, match="does not pin"):
            third_parties.pinned(name)


def test_parted_matches_ids_without_parameters() -> None:
    differences = ["a.py::A::test_a[x: y]: failed", "a.py::B::test_a[1]: not run"]
    expected = {"*::A::test_*": "a reason", "*::C::*": "another"}
    others, matched = third_parties.parted(differences, expected)
    assert others == ["a.py::B::test_a[1]: not run"]
    assert matched == {"*::A::test_*": 1, "*::C::*": 0}


@pytest.mark.usefixtures("places")
def test_compare_tells_of_what_is_not_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert not third_parties.compare("name", Suite("fake", []), STOCK, FORK)
    row, line = capsys.readouterr().out.splitlines()
    assert row.split() == ["name", "1.2", "1", "1", "0", "0", "1", "1", "1"]
    assert line.strip() == "NOT expected, a.py::A::test_a[1]: skipped"
    assert third_parties.compare("name", Suite("fake", []), STOCK, STOCK)


@pytest.mark.usefixtures("places")
def test_compare_gives_the_reason_of_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    suite = Suite("fake", [], expected={"*::test_a": "a reason"})
    assert third_parties.compare("name", suite, STOCK, FORK)
    assert "1 expected, *::test_a: a reason" in capsys.readouterr().out


@pytest.mark.usefixtures("places")
def test_compare_refuses_a_pattern_that_matches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    suite = Suite("fake", [], expected={"*::test_a": "a reason", "*::test_c": "another"})
    assert not third_parties.compare("name", suite, STOCK, FORK)
    assert "NONE expected, *::test_c: another" in capsys.readouterr().out


@pytest.mark.usefixtures("places")
def test_compare_refuses_a_suite_that_does_not_work(capsys: pytest.CaptureFixture[str]) -> None:
    failed: Outcomes = {"a.py::test_a": "failed"}
    assert not third_parties.compare("name", Suite("fake", []), failed, failed)
    assert "no test passed on the release" in capsys.readouterr().out


def _fake_pip(environment: Environment, monkeypatch: pytest.MonkeyPatch, unpacks: str) -> None:
    module = environment.path / "modules" / "pip" / "__main__.py"
    module.parent.mkdir(parents=True)
    module.write_text(FAKE_PIP)
    module.with_name("__init__.py").touch()  # or the pip that is installed would go before it
    environment.python.write_text(
        f'#!/bin/sh\nPYTHONPATH={module.parents[1]} exec {sys.executable} "$@"\n'
    )
    monkeypatch.setenv("UNPACKS", unpacks)


def test_sources_are_what_pip_unpacked(
    places: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_pip(environment, monkeypatch, "fake_1")
    for _ in range(2):
        assert third_parties.sources("fake", environment) == places / "fake-1.2"
        monkeypatch.setenv("UNPACKS", "")
    assert (places / "fake-1.2" / "PKG-INFO").read_text() == "fake_1"
    assert [path.name for path in places.iterdir()] == ["fake-1.2"]


def test_sources_that_pip_does_not_unpack(
    places: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_pip(environment, monkeypatch, "")
    with pytest.raises(SetupError, match="cannot download fake"):
        third_parties.sources("fake", environment)
    assert not (places / "fake-1.2").exists()


@pytest.mark.slow
def test_run_uses_a_fresh_copy(places: Path, environment: Environment) -> None:
    source = places / "fake-1.2"
    (source / "tests").mkdir(parents=True)
    (source / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--no-such-option"]\n'
    )
    (source / "tests" / "test_a.py").write_text(
        "import os\nfrom pathlib import Path\n\n"
        "def test_fresh():\n    assert not Path('left').exists()\n    Path('left').touch()\n\n"
        "def test_variable():\n    assert os.environ['A_VARIABLE'] == 'set'\n\n"
        "def test_wrong():\n    assert False\n"
    )
    suite = Suite("fake", ["tests"], ["-k", "not wrong"], {"A_VARIABLE": "set"})
    for _ in range(2):
        assert third_parties.run("fake", suite, environment, workers=0) == {
            "tests/test_a.py::test_fresh": "passed",
            "tests/test_a.py::test_variable": "passed",
        }
    assert not (source / "left").exists()
    failing = Suite("fake", ["tests"], ["-k", "wrong"])
    assert third_parties.run("fake", failing, environment, workers=0) == {
        "tests/test_a.py::test_wrong": "failed"
    }
    with pytest.raises(SetupError, match="pytest ended with status 4"):
        third_parties.run("fake", Suite("fake", ["no_tests"]), environment, workers=0)
