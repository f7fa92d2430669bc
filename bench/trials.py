"""Run cases with stock zarr and with the fork, in turns, and put what came of them side by side."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, fields
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.request import Request, urlopen

from bench.cases import tile_edge
from bench.environments import BEFORE, FORK, PEERS, STOCK, prepare_measured
from tools.environment import BUILD, ROOT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.cases import Case
    from bench.progress import Progress
    from tools.environment import Environment

DATA = BUILD / "bench"


class TrialFailed(Exception):
    """A measurement came to nothing; the message says why, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the person who measures chooses."""

    size: int
    chunk: int
    latency_ms: float
    repeats: int
    fork: Path
    before: Path | None = None
    bandwidth: float = math.inf  # of the server, in MB/s

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """What the options of a command say."""
        given = vars(options)
        return cls(**{each.name: given[each.name] for each in fields(cls) if each.name in given})

    def title(self, case: Case) -> str:
        """The title of a case, with the numbers that it has here."""
        return case.title.format(tile=tile_edge(self.size, self.chunk))


@dataclass(frozen=True, slots=True)
class Served:
    """A request as the server saw it, in seconds since the read began."""

    start: float
    end: float
    sent: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One run of a case on one side."""

    zarr: str
    seconds: float
    rounds: int
    served: tuple[Served, ...]
    peak: int | None
    baseline: int | None
    digest: str
    problems: tuple[str, ...]
    report: dict[str, Any] | None = None  # zarr's own, a `ReadReport`, where it has that

    @property
    def requests(self) -> int:
        """Requests for each read."""
        return len(self.served) // self.rounds

    @property
    def sent(self) -> int:
        """Bytes for each read."""
        return sum(served.sent for served in self.served) // self.rounds

    @property
    def in_flight(self) -> int:
        return max((served.in_flight for served in self.served), default=0)


TUNED = {
    "128": {"ZARR_ASYNC__CONCURRENCY": "128"},
    "Fused": {"ZARR_CODEC_PIPELINE__PATH": "zarr.core.codec_pipeline.FusedCodecPipeline"},
}
"""Settings with which zarr may be faster, as environment variables."""


class Side(NamedTuple):
    """What a case is run with."""

    environment: Environment
    variables: dict[str, str]
    peer: str | None = None  # a function of `bench/peers.py` that reads in place of zarr


PEER_SIDES = {
    "zarrs": Side(PEERS, {"ZARR_CODEC_PIPELINE__PATH": "zarrs.ZarrsCodecPipeline"}),
    "TensorStore": Side(PEERS, {}, "tensorstore"),
    "floor": Side(PEERS, {}, "floor"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All runs of a case."""

    case: Case
    title: str
    stock: tuple[Reading, ...]
    fork: tuple[Reading, ...]
    tuned: dict[str, tuple[Reading, ...]]
    """Runs of stock zarr with each of the settings in `TUNED`, if they were made."""
    peers: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    """Runs of other libraries, of those that can do this."""
    fork_tuned: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    """Runs of the fork with each of the settings in `TUNED`, if they were made."""

    @property
    def best_tuned(self) -> tuple[str, Reading]:
        """The setting that makes stock zarr fastest, and its reading of median duration."""
        return _fastest({"default": self.stock, **self.tuned})

    @property
    def best_fork(self) -> tuple[str, Reading]:
        """The same for the fork."""
        return _fastest({"default": self.fork, **self.fork_tuned})

    @property
    def faster(self) -> float:
        """How many times faster the fork is."""
        return middle(self.stock).seconds / middle(self.fork).seconds

    @property
    def problems(self) -> list[str]:
        """What makes the comparison void."""
        others = itertools.chain(
            *self.tuned.values(), *self.peers.values(), *self.fork_tuned.values()
        )
        readings = (*self.stock, *self.fork, *others)
        found = sorted({f"{r.zarr}: {problem}" for r in readings for problem in r.problems})
        if len({reading.digest for reading in readings}) > 1:
            found.append("not all sides read the same values")
        return found


def middle(readings: Sequence[Reading]) -> Reading:
    """The reading of median duration."""
    seconds = median_low(reading.seconds for reading in readings)
    return next(reading for reading in readings if reading.seconds == seconds)


def _fastest(sides: dict[str, tuple[Reading, ...]]) -> tuple[str, Reading]:
    medians = {name: middle(readings) for name, readings in sides.items()}
    return min(medians.items(), key=lambda at: at[1].seconds)


class Laboratory:
    """The environments, the arrays and the servers that a measurement needs, while it is open."""

    def __init__(
        self, settings: Settings, progress: Progress, *, peers: Sequence[str] = ()
    ) -> None:
        self.settings = settings
        self._progress = progress
        self._peers = peers
        self._servers: dict[float, str] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.redirect_stdout(sys.stderr):
            prepare_measured(self.settings.fork, self.settings.before, peers=bool(self._peers))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def compare(
        self,
        cases: Sequence[Case],
        *,
        alone: bool,
        tuned: bool = False,
        fork_tuned: bool = False,
    ) -> list[Comparison]:
        """Run each case as often as the settings say, on all sides in turns.

        Parameters
        ----------
        cases : sequence of Case
            What to run.
        alone : bool
            Give each case a process of its own. Otherwise one process runs all of them.
        tuned, fork_tuned : bool
            Also run stock zarr, or the fork, with each of the settings in `TUNED`.

        Returns
        -------
        list of Comparison
            One for each case.
        """
        for case in cases:
            self._make_array(case)
        stock = BEFORE if self.settings.before else STOCK
        sides = {"stock": Side(stock, {}), "fork": Side(FORK, {})}
        if tuned:
            sides |= {name: Side(stock, variables) for name, variables in TUNED.items()}
        if fork_tuned:
            sides |= {f"fork {name}": Side(FORK, variables) for name, variables in TUNED.items()}
        sides |= {name: PEER_SIDES[name] for name in self._peers}
        batches = [[case] for case in cases] if alone else [cases]
        readings: dict[tuple[str, str], list[Reading]] = {}
        repeats = self.settings.repeats
        with self._progress.steps(len(cases) * repeats * len(sides)):
            for batch, repeat in itertools.product(batches, range(repeats)):
                # What runs first may find the machine in another state, so they take turns in it.
                for side in sorted(sides, reverse=repeat % 2 == 0):
                    turn = f"{side}, {repeat + 1} of {repeats}"
                    for case, reading in self._run(batch, sides[side], turn):
                        readings.setdefault((case.name, side), []).append(reading)
        return [
            Comparison(
                case,
                self.settings.title(case),
                tuple(readings[case.name, "stock"]),
                tuple(readings[case.name, "fork"]),
                {name: tuple(readings[case.name, name]) for name in TUNED} if tuned else {},
                {
                    name: tuple(readings[case.name, name])
                    for name in PEER_SIDES
                    if (case.name, name) in readings
                },
                {name: tuple(readings[case.name, f"fork {name}"]) for name in TUNED}
                if fork_tuned
                else {},
            )
            for case in cases
        ]

    def _run(self, cases: Sequence[Case], side: Side, turn: str) -> Iterator[tuple[Case, Reading]]:
        """Run cases in one process. They share the server of the first."""
        asked = cases[0].latency_ms
        url = self._serve(self.settings.latency_ms if asked is None else asked)
        size, chunk = str(self.settings.size), str(self.settings.chunk)
        worker = [str(side.environment.python), str(ROOT / "bench" / "worker.py"), "--url", url]
        options = ["--data", str(DATA), "--size", size, "--chunk", chunk]
        options += ["--peer", side.peer] if side.peer else []
        with Child([*worker, *options], side.variables) as child:
            for case in cases:
                self._progress.step(f"{self.settings.title(case)} ({turn})")
                outcome = child.ask(case.name)
                if outcome is None:
                    raise TrialFailed(f"{case.name} failed ({turn}):\n{child.complaint()}")
                if outcome:  # nothing: a peer that cannot do this
                    yield case, _reading(case, outcome, take_requests(url))
            if child.end():
                raise TrialFailed(f"{turn} did not end well:\n{child.complaint()}")

    def _serve(self, latency_ms: float) -> str:
        """The address of a server that waits so long before each answer."""
        if latency_ms not in self._servers:
            server = [sys.executable, str(ROOT / "bench" / "server.py"), str(DATA)]
            child = self._open.enter_context(
                Child(
                    [*server, "--latency-ms", str(latency_ms), "--listings"]
                    + ["--bandwidth", str(self.settings.bandwidth)]
                )
            )
            started = child.next()
            if started is None:
                raise TrialFailed(f"the HTTP server did not start:\n{child.complaint()}")
            self._servers[latency_ms] = started["url"]
        return self._servers[latency_ms]

    def _make_array(self, case: Case) -> None:
        """Write what a case reads, unless it is there."""
        if case.data is None:
            return
        numbers = (self.settings.size, self.settings.chunk) if case.data == "field" else ()
        name = "-".join(map(str, (case.data, *numbers)))
        writers = [ROOT / "bench" / "arrays.py", ROOT / "bench" / "references.py"]
        made_by = hashlib.sha256(b"".join(writer.read_bytes() for writer in writers)).hexdigest()
        stamp = DATA / name / "made-by"
        if stamp.is_file() and stamp.read_text() == made_by:
            return
        self._progress.note(f"writing {(DATA / name).relative_to(ROOT)}")
        command = [str(STOCK.python), str(writers[0]), str(DATA), case.data]
        with Child([*command, *map(str, numbers)]) as child:
            if child.end():
                raise TrialFailed(f"the array could not be written:\n{child.complaint()}")
        stamp.write_text(made_by)


def take_requests(url: str) -> list[dict[str, Any]]:
    """What a server has recorded since it was last asked."""
    with urlopen(Request(f"{url}/__requests__", method="DELETE")) as response:
        requests: list[dict[str, Any]] = json.load(response)
    return requests


def _reading(case: Case, outcome: dict[str, Any], requests: list[dict[str, Any]]) -> Reading:
    """What a worker and a server say of one read."""
    began, ended = outcome["started"], outcome["ended"]
    served = tuple(
        Served(
            request["started"] - began,
            (request["ended"] or ended) - began,
            request["sent"],
            request["in_flight"],
        )
        for request in requests
        if began <= request["started"] <= ended
    )
    return Reading(
        zarr=outcome["zarr"],
        seconds=outcome["seconds"],
        rounds=case.rounds,
        served=served,
        peak=outcome["peak"],
        baseline=outcome["baseline"],
        digest=outcome["digest"],
        problems=tuple(outcome["problems"]),
        report=outcome["report"],
    )


class Child:
    """A process that answers lines with lines of JSON, and does not outlive its context."""

    def __init__(self, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        self._command = command
        self._variables = variables or {}

    def __enter__(self) -> Self:
        self._complaint = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env={**os.environ, **self._variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaint,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._process:
            self._process.terminate()
        self._complaint.close()

    def next(self) -> Any:
        """The next line, or `None` where the process ended without one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, question: str) -> Any:
        """The answer to a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{question}\n")
        return self.next()

    def end(self) -> int:
        """Send nothing more, and return the exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait()

    def complaint(self) -> str:
        """The end of what it wrote to standard error."""
        self._process.wait()
        self._complaint.seek(0)
        return "".join(self._complaint.readlines()[-20:]).strip()
