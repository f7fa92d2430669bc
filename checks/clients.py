"""Read the same values with libraries that use zarr, on the release and on the fork, and compare.

python3 checks/clients.py                   all clients
python3 checks/clients.py xarray kerchunk   some of them
python3 checks/clients.py --quick           those that a test run takes
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    if sys.version_info < (3, 12):  # noqa: UP036, any Python may run it
        sys.exit(
            f"run this with Python 3.12 or newer: {sys.executable} is {sys.version.split()[0]}"
        )
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.environments import FORK_IS_BUILT_FROM, release
from bench.trials import Child, take_requests
from checks import third_parties
from checks.client_programs import PROGRAMS
from tools import children
from tools.environment import BUILD, ROOT, Environment, SetupError, alone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUIREMENTS = ROOT / "checks" / "clients.txt"
PLACE = BUILD / "clients"
LATENCY_MS = 20
QUICK = ("xarray-threads", "kerchunk")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program on one side."""

    zarr: str = ""
    version: str = ""  # of the client
    seconds: float = 0.0
    requests: int = 0
    digest: str = ""
    skipped: str = ""  # why it could not run here
    failed: str = ""  # how it ended, if it did not end well

    def problem(self, written: str) -> str:
        """Tell what is wrong, if anything is. `written` is the digest of the values to read."""
        if self.failed or self.skipped:
            return self.failed
        return "" if self.digest == written else "other values"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A program on both sides."""

    name: str
    stock: Outcome
    fork: Outcome
    written: str
    """The digest of the values to read."""

    @property
    def problems(self) -> list[str]:
        """What is wrong."""
        stock, fork, pinned = self.stock, self.fork, release().removeprefix("zarr==")
        sides = {"the release": stock, "the fork": fork}
        wrong = {side: outcome.problem(self.written) for side, outcome in sides.items()}
        found = [f"{side}: {problem}" for side, problem in wrong.items() if problem]
        if not found and (stock.zarr != pinned or not fork.zarr.startswith(f"{pinned}+getmany")):
            found.append(f"read with zarr {stock.zarr} and {fork.zarr}")
        if bool(stock.skipped) != bool(fork.skipped):
            found.append("skipped on one side")
        if fork.requests > stock.requests:
            found.append("the fork makes more requests")
        return found

    def row(self) -> str:
        """Return its row of the table."""
        stock, fork, problems = self.stock, self.fork, self.problems
        cells = (
            f"`{self.name}`",
            PROGRAMS[self.name].title,
            fork.version,
            f"{stock.requests:,} → {fork.requests:,}" if stock.requests or fork.requests else "",
            f"{stock.seconds:.2f} → {fork.seconds:.2f}" if stock.seconds or fork.seconds else "",
            f"NO: {'; '.join(problems)}" if problems else fork.skipped or "yes",
        )
        return f"| {' | '.join(cells)} |"


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the table, as Markdown."""
    headings = "| client | what it does | version | requests | seconds | equal |"
    return "\n".join(
        [headings, "|---|---|---|---|---|---|", *(comparison.row() for comparison in comparisons)]
    )


def prepare(base: Environment) -> dict[str, Environment]:
    """Make the environments: zarr first, then the clients, as someone who has the fork installs them."""
    fork = [ROOT / path for path in FORK_IS_BUILT_FROM]
    pinned = [REQUIREMENTS, third_parties.REQUIREMENTS]
    environments = {side: base.beside(f"clients-{side}") for side in ("stock", "fork")}
    environments["stock"].install("zarr", [release().replace("==", "[remote]==")])
    environments["fork"].install("zarr", [f"{ROOT}[remote]"], made_of=fork)
    for environment in environments.values():
        environment.install("clients", ["--requirement", str(REQUIREMENTS)], made_of=pinned)
    return environments


def call(environment: Environment, task: str, *arguments: str) -> dict[str, Any]:
    """Run a task of `client_programs.py` and return its result, or how it failed."""
    log = BUILD / "reports" / f"{environment.path.name}-{task}.log"
    result = PLACE / "result.json"
    program = ROOT / "checks" / "client_programs.py"
    result.unlink(missing_ok=True)  # that of another task
    # -P: `checks/` is not where the clients are imported from.
    command: list[str | Path] = [environment.python, "-P", program, task, result, *arguments]
    status = children.run(command, cwd=PLACE, env=environment.variables(), log=log)
    if status:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        return {"failed": f"{last or f'status {status}'} (see {log})"}
    return dict(json.loads(result.read_text()))


def compare(names: Sequence[str], base: Environment) -> Iterator[Comparison]:
    """Run programs on both sides, in environments beside another one."""
    environments = prepare(base)
    served = PLACE / "served"
    shutil.rmtree(PLACE, ignore_errors=True)
    served.mkdir(parents=True)
    server = [sys.executable, str(ROOT / "bench" / "server.py"), str(served)]
    with Child([*server, "--latency-ms", str(LATENCY_MS)]) as serving:
        if (started := serving.next()) is None:
            raise SetupError(f"the HTTP server did not start:\n{serving.complaint()}")
        url = started["url"]
        print("writing what is read", file=sys.stderr, flush=True)
        made = call(environments["stock"], "make", str(served), url)
        if failed := made.get("failed"):
            raise SetupError(f"what is read could not be written: {failed}")
        for number, name in enumerate(names, 1):
            outcomes = {}
            for side, environment in environments.items():
                step = f"[{number}/{len(names)}] {name}, {side}"
                print(step, file=sys.stderr, flush=True)
                take_requests(url)
                result = call(environment, name, url)
                outcomes[side] = Outcome(**result, requests=len(take_requests(url)))
            yield Comparison(name, **outcomes, written=made["digest"])


def main() -> int:
    """Run the programs, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 checks/clients.py",
        description="Read the same values from an HTTP server on this machine, which delays each "
        f"response by {LATENCY_MS} ms, with libraries that use zarr: on the release of zarr and on "
        "the fork. The exit status is 0 if all of them read what was written. The seconds are those "
        "of the whole program without its imports. Logs are in build/reports/.",
    )
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="which ones (default: all)")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--list", action="store_true", help="list the clients, and run none")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:28}{each.title}" for name, each in PROGRAMS.items()))
        return 0
    if unknown := [name for name in options.clients if name not in PROGRAMS]:
        parser.error(f"unknown clients: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    names = options.clients or (QUICK if options.quick else [*PROGRAMS])
    try:
        with alone():
            comparisons = list(compare(names, Environment.of(sys.executable)))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(comparisons))
    return 1 if any(comparison.problems for comparison in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main())
