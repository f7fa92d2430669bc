#!/usr/bin/env python3
"""Mutation tests, to see whether the tests notice faults: `python3 checks/mutants.py [WORD ...]`.

Each mutant of `checks/mutants.toml` is a single fault. It is applied to a merged copy of the
package in `build/mutants/`, and the tests listed with it run on that copy. If they pass, the mutant
has survived. Words select the mutants whose file or description contains one of them.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    if sys.version_info < (3, 12):  # noqa: UP036, any Python may run it
        sys.exit(
            f"run this with Python 3.12 or newer: {sys.executable} is {sys.version.split()[0]}"
        )
    sys.path[0] = str(ROOT)

from tools import children
from tools.environment import Environment, SetupError, alone

LIST = ROOT / "checks" / "mutants.toml"
COPY = ROOT / "build" / "mutants"
LOG = ROOT / "build" / "reports" / "mutants.log"


class BadMutant(Exception):
    """A mutant cannot be applied or tested; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A single fault."""

    file: str
    """The file to change, `zarr/abc/store.py`."""
    before: str
    """The text to replace, which occurs once in the file."""
    after: str
    breaks: str
    """What goes wrong because of it."""
    tests: list[str]
    """Tests of which at least one must fail, as pytest arguments."""

    def __post_init__(self) -> None:
        if not self.tests:
            raise BadMutant(f"{self}\n  names no tests")

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def applied(self, text: str) -> str:
        """Return the text of the file with the fault.

        Raises
        ------
        BadMutant
            If the text to replace does not occur exactly once.
        """
        if (count := text.count(self.before)) != 1:
            raise BadMutant(f"{self}\n  occurs {count} times, not once:\n{self.before}")
        return text.replace(self.before, self.after)


def listed() -> list[Mutant]:
    """Return the faults of `mutants.toml`."""
    return [Mutant(**entry) for entry in tomllib.loads(LIST.read_text())["mutant"]]


def survives(mutant: Mutant, python: str | Path, copy: Path = COPY) -> bool:
    """Apply a fault to the copy, run its tests, and restore the copy."""
    file = copy / mutant.file
    sound = file.read_text()
    file.write_text(mutant.applied(sound))
    try:
        return passes(mutant.tests, python, copy)
    finally:
        file.write_text(sound)


def passes(tests: list[str], python: str | Path, copy: Path = COPY) -> bool:
    """Run tests on a copy of the package, up to the first failure.

    Raises
    ------
    BadMutant
        If pytest cannot run them.
    """
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [python, "-B", "-m", "pytest", *options, *tests]
    variables = Environment(Path(sys.prefix)).variables(PYTHONPATH=str(copy))
    status = children.run(command, cwd=ROOT, env=variables, log=LOG)
    if status not in (0, 1):
        raise BadMutant(f"pytest ended with status {status}, see {LOG}: {' '.join(tests)}")
    return status == 0


def check(mutants: list[Mutant], python: str | Path) -> int:
    """Try each fault, and return how many survived or could not be tried."""
    everything = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"{len(mutants)} faults; first their tests on the unmodified copy ...", flush=True)
    if not passes(everything, python):
        raise BadMutant(f"a test fails on the unmodified copy, see {LOG}")
    bad = 0
    for number, mutant in enumerate(mutants, 1):
        try:
            verdict = "SURVIVED" if survives(mutant, python) else "killed"
        except BadMutant as error:
            verdict = f"NOT TRIED: {error}"
        bad += verdict != "killed"
        print(f"{number:3}/{len(mutants)}  {mutant}: {verdict}", flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} faults were noticed")
    return bad


def main() -> int:
    """Merge a copy, and try the selected faults; 1 if any is not noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="try only faults with this word")
    words = parser.parse_args().words
    try:
        mutants = listed()
        for word in words:
            if not any(word in str(mutant) for mutant in mutants):
                parser.error(f"no fault has the word {word}")
        if words:
            mutants = [mutant for mutant in mutants if any(word in str(mutant) for word in words)]
        with alone():
            LOG.parent.mkdir(exist_ok=True)
            python = (
                sys.executable if all(map(find_spec, ("zarr", "ruff", "pytest"))) else _set_up()
            )
            merge = [python, "-m", "tools.overlay", "merge", "--into", COPY]
            if children.run(merge, cwd=ROOT, log=LOG):
                print(LOG.read_text(), file=sys.stderr)
                return 1
            return 1 if check(mutants, python) else 0
    except (BadMutant, SetupError) as error:
        print(error, file=sys.stderr)
        return 1


def _set_up() -> Path:
    """The interpreter of the environment in `build/` that `tools/test.py` uses."""
    environment = Environment.of(sys.executable)
    settings = ROOT / "pyproject.toml"
    environment.install("the runner", ["--group", f"{settings}:dev"], made_of=[settings])
    environment.install(
        "what the faults are tried with", [f"{ROOT}[remote]"], made_of=[ROOT / "src"]
    )
    return environment.python


if __name__ == "__main__":
    sys.exit(main())
