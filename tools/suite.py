"""Upstream's own tests: where they run, with what, and what the release itself does with them."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.environment import BUILD, ROOT, Environment, SetupError
from tools.outcomes import Counts, Outcomes, function, parted
from tools.overlay import upstream
from tools.overlay.problems import OverlayError
from tools.overlay.project import Project
from tools.overlay.tree import Plan

RECORD = ROOT / "tools" / "upstream_suite.toml"

EXTRAS = "remote,optional,cli,cast-value-rs"
"""The extras of zarr that upstream's CI tests with."""

WHOLE = ("tests", "--ignore=tests/benchmarks", "--ignore=tests/test_docs.py")
"""The arguments of pytest that select the suite."""

DOCUMENTATION = ("tests/test_docs.py", "--pyargs", "zarr")
"""Those that select the examples in the documentation, and the installed package's doctests."""

PIPELINES = {
    "batched": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
}


def unpacked(project: Project) -> Path:
    """Return the folder with upstream's source distribution, which is downloaded and checked."""
    into = project.downloads
    try:
        sha256 = project.load_lock().sdist
        archive = upstream.fetch(project.pinned, "sdist", into, sha256=sha256)
    except OverlayError as error:
        raise SetupError(str(error)) from error
    return upstream.unpack(archive, into)


def requirements(sdist: Path) -> list[str]:
    """Return arguments for `pip install` with which upstream's tests and examples run."""
    settings = tomllib.loads((sdist / "pyproject.toml").read_text())
    examples: list[str] = settings["tool"]["hatch"]["envs"]["doctest"]["extra-dependencies"]
    return ["--group", f"{sdist / 'pyproject.toml'}:remote-tests", *examples]


def workplace(
    sdist: Path,
    environment: Environment,
    documents: Iterable[Plan] = (),
    *,
    into: Path = BUILD / "suite",
) -> Path:
    """Lay out upstream's checkout as if the installed zarr were what it holds, and return the folder.

    It is a fresh copy of the source distribution in which `src/zarr` is a copy of the installed package:
    tests that read the sources, or build them, see what is tested. No test imports it from there. `documents`
    is what the overlay makes of the documentation. Such places are named like the environments.
    """
    place = into / environment.path.name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sdist, place, ignore=shutil.ignore_patterns("src", "__pycache__"))
    shutil.copytree(
        environment.packages / "zarr",
        place / "src" / "zarr",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for plan in documents:
        for path, part in plan.parts.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(part.content)
    return place


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of the release's suite."""

    release: str
    stock: Mapping[str, Mapping[str, Counts]]
    """By codec pipeline and version of Python, what the release does with it."""
    left_out: Mapping[str, Mapping[str, str]]
    """By codec pipeline, or `always`, and by test id, why it is not run."""

    @staticmethod
    def load(path: Path = RECORD) -> Record:
        """Read the record."""
        table = tomllib.loads(path.read_text())
        stock = {
            pipeline: {python: Counts(**counts) for python, counts in by_python.items()}
            for pipeline, by_python in table["stock"].items()
        }
        return Record(table["release"], stock, table["deselected"])

    def expected(self, release: str, pipeline: str, python: str) -> Counts | None:
        """Return what the release does with its suite, if that was recorded."""
        return self.stock.get(pipeline, {}).get(python) if release == self.release else None

    def deselected(self, pipeline: str) -> dict[str, str]:
        """Return which tests are not run, and why."""
        return {**self.left_out.get("always", {}), **self.left_out.get(pipeline, {})}


def added_tests(definitions: Collection[str]) -> set[str]:
    """Pick the functions that the overlay adds to `zarr.testing`, whose tests upstream's suite inherits."""
    return {
        name.rpartition(".")[2]
        for path, _, name in (definition.partition("::") for definition in definitions)
        if path.startswith("zarr/testing/") and name.rpartition(".")[2].startswith("test_")
    }


def against_record(outcomes: Outcomes, added: Collection[str], expected: Counts) -> list[str]:
    """Compare a run on the fork with the recorded counts of the release, but for tests that the fork adds."""
    theirs, _ = parted(outcomes, lambda test: function(test) in added)
    counts = Counts.of(theirs)
    if counts == expected:
        return []
    return [
        f"upstream's tests on the fork:  {counts}",
        f"on the release, as recorded:   {expected}",
        "--stock tells which ones differ",
    ]


def against_stock(fork: Outcomes, stock: Outcomes) -> list[str]:
    """Return a line for each test that passes on the release alone, or fails on the fork alone."""
    losses = [
        f"{test}: {fork.get(test, 'not run')}"
        for test, outcome in stock.items()
        if outcome == "passed" and fork.get(test) != "passed"
    ]
    return losses + [
        f"{test}: failed"
        for test, outcome in fork.items()
        if outcome == "failed" and stock.get(test) not in ("failed", "passed")
    ]
