"""Run the same cases with the fork and the release, and compare the results."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
import threading
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from typing import IO, TYPE_CHECKING, Any, Self, cast

from checks.differential import cases, expected
from tests.range_server import RangeServer
from tools.environment import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from checks.differential.cases import Case

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60
"""Seconds to wait for the result of one case; after that, the runner counts as stuck."""
PROGRESS = 30
"""Seconds between two progress lines, and the limit for simplifying one case."""
ENOUGH = 10
"""Number of failing cases after which the comparison stops."""


class Runner:
    """A process that runs cases with the zarr of one environment, and is restarted if it dies.

    Parameters
    ----------
    side : str
        Its name: `fork` or `stock`.
    python : Path
        The interpreter of the environment.
    variables : mapping
        Its environment variables.
    log : Path
        A file for its standard error.
    """

    def __init__(
        self, side: str, python: Path, variables: Mapping[str, str] | None, log: Path
    ) -> None:
        self.side = side
        self.command = [str(python), "-m", "checks.differential.runner"]
        self.variables = variables
        self.log = log
        self.pending = 0
        self.zarr = ""
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        answers: Queue[str] = Queue()

        def read(output: IO[str]) -> None:
            with output:
                for line in output:
                    answers.put(line)
            answers.put("")

        self._input = cast("IO[str]", self.process.stdin)
        output = cast("IO[str]", self.process.stdout)
        self.reader = threading.Thread(target=read, args=[output], daemon=True)
        self.reader.start()
        self.answers = answers
        self.pending = 1
        self.zarr = self.receive().get("zarr", "")
        if not self.zarr:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
            raise SetupError(f"{self.command[0]} cannot run the differential test:\n{last}")

    def send(self, case: Case, folder: Path, url: str, *, make: bool) -> None:
        """Send it a case."""
        self.pending += 1
        request = {"case": case, "folder": str(folder), "side": self.side, "url": url, "make": make}
        with suppress(BrokenPipeError):  # `receive` notices that the process has ended.
            print(json.dumps(request), file=self._input, flush=True)

    def receive(self) -> dict[str, Any]:
        """Return its answer to the oldest unanswered case."""
        self.pending -= 1
        try:
            line = self.answers.get(timeout=PATIENCE)
        except Empty:
            line, died = "", f"no answer within {PATIENCE} s"
        else:
            died = "the process ended"
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        if self.zarr:  # It has run before.
            self._start()
        return {"results": [], "died": died}

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        with suppress(BrokenPipeError):
            self._input.close()


@dataclass(slots=True)
class Tally:
    """Counts of what was compared."""

    compared: int = 0
    refused: int = 0
    results: int = 0
    raised: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)

    def add(self, case: Case, results: list[Any]) -> None:
        """Count a case."""
        self.compared += 1
        self.results += len(results)
        self.raised += sum("raised" in result for result in results if isinstance(result, dict))
        self.kinds.update(kinds(case))
        self.stores[case["store"]["kind"]] += 1
        self.opened[case["store"]["kind"]] += "raised" not in str(results[:1])
        self.steps.update(f"{step['do']} {step.get('how', '')}".strip() for step in case["steps"])

    def lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        for title, counts in (
            ("cases by kind", self.kinds),
            ("cases by store", self.stores),
            ("steps", self.steps),
            ("expected disagreements", self.expected),
        ):
            yield f"{title}:"
            yield from (f"{count:9,}  {name}" for name, count in sorted(counts.items()))
        yield (
            f"{self.compared:,} cases compared, {self.results:,} results, {self.raised:,} of them "
            f"exceptions; {self.refused:,} arrays that the release refuses to create"
        )


def kinds(case: Case) -> Iterator[str]:
    """Yield the kinds that a case belongs to."""
    array = case["array"]
    shards = json.dumps(array.get("serializer", "")).count("index_location")
    uneven = any(isinstance(chunks, list) for chunks in array["chunks"])
    dtype = "structured" if isinstance(array["dtype"], list) else array["dtype"]
    yield f"format {array['zarr_format']}"
    yield f"dtype {dtype}"
    yield f"{len(array['shape'])} dimensions"
    yield ("not sharded", "sharded", "nested shards", "nested shards")[min(shards, 3)]
    yield case["settings"].get("codec_pipeline.path", "default").rpartition(".")[2]
    if uneven:
        yield "rectilinear"
    if "differential" in json.dumps(array):
        yield "third-party codecs"
    if case["damage"]:
        yield f"damage: {case['damage']['kind']}"
    if case["store"].get("fails"):
        yield "a store that raises"
    if case["store"].get("wrong"):
        yield f"references: {case['store']['wrong']}"
    if case["writes"]:
        yield "writes"
    if case["store"]["wrappers"]:
        yield f"{len(case['store']['wrappers'])} wrappers"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A result that differs."""

    number: int
    stock: Any
    fork: Any

    def text(self, case: Case) -> str:
        """Return what to show of it."""
        steps = ["open the array", *map(json.dumps, case["steps"]), "what the store holds"]
        return (
            f"  at:    {steps[self.number] if self.number < len(steps) else 'the end'}\n"
            f"  stock: {json.dumps(self.stock)}\n  fork:  {json.dumps(self.fork)}"
        )


class Comparison:
    """Two runners, and a server for both.

    Parameters
    ----------
    interpreters : mapping
        The interpreters with the release and with the fork, by `stock` and `fork`.
    logs : Path
        A directory for the output of the runners and for failing cases.
    variables : mapping, optional
        Environment variables for both.
    """

    def __init__(
        self,
        interpreters: Mapping[str, Path],
        logs: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._interpreters = interpreters
        self._variables = variables
        self.tally = Tally()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="differential-")
        # Clients that abort requests are expected.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        self._server = RangeServer(self._folder.name).__enter__()
        self._runners = {side: self._runner(side) for side in self._interpreters}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for runner in self._runners.values():
            runner.stop()
        self._server.__exit__(kind, error, traceback)
        self._folder.cleanup()

    def _runner(self, side: str) -> Runner:
        log = self.logs / f"{side}.log"
        return Runner(side, self._interpreters[side], self._variables, log)

    @property
    def versions(self) -> dict[str, str]:
        """The versions of zarr that are compared."""
        return {side: runner.zarr for side, runner in self._runners.items()}

    def run(self, drawn: Iterator[Case], wanted: int) -> list[tuple[Case, list[Disagreement]]]:
        """Compare cases, and print the progress.

        Parameters
        ----------
        drawn : iterator of dict
            The cases.
        wanted : int
            How many cases to compare, not counting those whose array the release refuses to create.

        Returns
        -------
        list of tuple
            Each case that the fork and the release disagree on, with the disagreements.
        """
        began = told = time.monotonic()
        failed: list[tuple[Case, list[Disagreement]]] = []
        for case, stock, fork in self._answers(drawn):
            if "refused" in stock:
                self.tally.refused += 1
                if self.tally.refused > 100 + self.tally.compared:
                    raise SetupError(f"the release refuses most arrays: {stock['refused']}")
                continue
            self.tally.add(case, stock["results"])
            if found := self._disagreements(case, stock, fork):
                failed.append((case, found))
                self._show(case, found)
            if time.monotonic() - told > PROGRESS:
                told = time.monotonic()
                rate = self.tally.compared / (told - began)
                print(
                    f"{self.tally.compared:,} of {wanted:,} cases, {rate:.1f} a second, "
                    f"{len(failed)} disagree",
                    flush=True,
                )
            if self.tally.compared >= wanted or len(failed) >= ENOUGH:
                break
        return failed

    def save(self, case: Case) -> Path:
        """Write a case to a file named after a checksum of it."""
        text = json.dumps(case, indent=1)
        file = self.logs / f"case-{zlib.crc32(text.encode()):08x}.json"
        file.write_text(text)
        return file

    def _show(self, case: Case, found: list[Disagreement]) -> None:
        print(
            f"\n{self.save(case)}\n" + "\n".join(each.text(case) for each in found[:3]), flush=True
        )

    def _answers(
        self, drawn: Iterator[Case]
    ) -> Iterator[tuple[Case, dict[str, Any], dict[str, Any]]]:
        """Yield both answers to each case. The release is one case ahead: it creates the arrays."""
        waiting: tuple[Case, Path, dict[str, Any]] | None = None
        try:
            for case in drawn:
                folder = Path(tempfile.mkdtemp(dir=self._folder.name))
                self._send("stock", case, folder)
                if waiting:
                    yield self._finish(*waiting)
                stock = self._receive("stock")
                if "refused" not in stock:
                    self._send("fork", case, folder)
                waiting = (case, folder, stock)
            if waiting:
                yield self._finish(*waiting)
        finally:
            for side, runner in self._runners.items():
                while runner.pending:
                    self._receive(side)

    def _finish(
        self, case: Case, folder: Path, stock: dict[str, Any]
    ) -> tuple[Case, dict[str, Any], dict[str, Any]]:
        fork = {} if "refused" in stock else self._receive("fork")
        shutil.rmtree(folder, ignore_errors=True)
        self._server.reset()
        return case, stock, fork

    def _send(self, side: str, case: Case, folder: Path) -> None:
        url = f"{self._server.url}/{folder.name}"
        self._runners[side].send(case, folder, url, make=side == "stock")

    def _receive(self, side: str) -> dict[str, Any]:
        return self._runners[side].receive()

    def _disagreements(
        self, case: Case, stock: dict[str, Any], fork: dict[str, Any]
    ) -> list[Disagreement]:
        both = stock.get("died") == fork.get("died") == "the process ended"
        if both and "blosc" in json.dumps(case["array"]):
            self.tally.expected["both processes end: Blosc of numcodecs reads beyond a chunk"] += 1
            return []
        if "died" in stock or "died" in fork:  # This number is that of no step.
            return [Disagreement(len(case["steps"]) + 2, stock, fork)]
        found: list[Disagreement] = []
        for number, pair in enumerate(zip(stock["results"], fork["results"], strict=False)):
            if not self._explained(case, number, *pair):
                found.append(Disagreement(number, *pair))
        last = min(len(stock["results"]), len(fork["results"])) - 1
        differ = _comparable(stock["results"][last]) != _comparable(fork["results"][last])
        # A failing write ends a case, so there are fewer results if only the release fails.
        if len(stock["results"]) != len(fork["results"]) and not found and not differ:
            found.append(Disagreement(len(case["steps"]) + 2, stock, fork))
        return found

    def _explained(self, case: Case, number: int, stock: Any, fork: Any) -> bool:
        """Tell whether results agree, or disagree as expected."""
        if _comparable(stock) == _comparable(fork):
            return True
        if isinstance(stock, list) and isinstance(fork, list) and len(stock) == len(fork):
            pairs = zip(stock, fork, strict=True)
            return all(self._explained(case, number, *pair) for pair in pairs)
        why = expected.reason(case, number, stock, fork)
        self.tally.expected.update([why] if why else [])
        return bool(why)

    def reduce(self, case: Case) -> tuple[Case, list[Disagreement]]:
        """Simplify a case as long as the two still disagree on it.

        Parameters
        ----------
        case : dict
            The case.

        Returns
        -------
        tuple
            The simplest case found, and its disagreements; none if the case no longer fails.
        """
        found = self._once(case)
        simpler = True
        until = time.monotonic() + PROGRESS
        while found and simpler:
            simpler = False
            for other in _simpler(case):
                if time.monotonic() < until and (left := self._once(other)):
                    case, found, simpler = other, left, True
                    break
        return case, found

    def _once(self, case: Case) -> list[Disagreement]:
        for _, stock, fork in self._answers(iter([case])):
            if "refused" not in stock:
                return self._disagreements(case, stock, fork)
        return []


_TOLD = ("says", "alone")
"""Fields that are not compared: they are for the reader, and for `expected`."""


def _comparable(result: Any) -> Any:
    """Drop the fields that may differ."""
    if isinstance(result, dict):
        return {name: _comparable(value) for name, value in result.items() if name not in _TOLD}
    if isinstance(result, list):
        return [_comparable(value) for value in result]
    return result


def _simpler(case: Case) -> Iterator[Case]:
    """Yield versions of the case that lack one thing."""
    for number in range(len(case["steps"])):
        yield {**case, "steps": case["steps"][:number] + case["steps"][number + 1 :]}
    for name in case["settings"]:
        settings = {key: value for key, value in case["settings"].items() if key != name}
        yield {**case, "settings": settings}
    if case["damage"]:
        yield {**case, "damage": None}
    for number in range(len(case["store"]["wrappers"])):
        wrappers = list(case["store"]["wrappers"])
        del wrappers[number]
        yield {**case, "store": {**case["store"], "wrappers": wrappers}}
    for name in ("fails", "wrong"):
        if name in case["store"]:
            store = {key: value for key, value in case["store"].items() if key != name}
            yield {**case, "store": store}
    if case["store"]["kind"] not in ("memory", "local"):
        yield {**case, "store": {**case["store"], "kind": "local"}}
    for name in ("filters", "compressors"):
        codecs = case["array"][name]
        for number in range(len(codecs) if isinstance(codecs, list) else 0):
            array = {**case["array"], name: codecs[:number] + codecs[number + 1 :]}
            yield {**case, "array": array}


def compare(comparison: Comparison, wanted: int, seed: int, example: Path | None = None) -> int:
    """Compare cases, simplify those that fail, and print a summary.

    Parameters
    ----------
    comparison : Comparison
        The runners.
    wanted : int
        How many cases.
    seed : int
        The seed of the cases.
    example : Path, optional
        A file with one case to run instead.

    Returns
    -------
    int
        How many cases the fork and the release disagree on.
    """
    versions = comparison.versions
    print(f"zarr {versions['stock']} and {versions['fork']}, seed {seed}", flush=True)
    drawn: Iterator[Case] = (cases.case(seed, number) for number in count())
    if example:
        drawn, wanted = iter([json.loads(example.read_text())]), 1
    try:
        failed = comparison.run(drawn, wanted)
    finally:  # Also when a long run is interrupted.
        print("\n".join(comparison.tally.lines()), flush=True)
    for case, found in failed:
        file = comparison.save(case)
        simplest, still = comparison.reduce(case)
        if still:
            print(f"\n{file}, simplified:\n" + "\n".join(each.text(simplest) for each in still[:3]))
            file = comparison.save(simplest)
        else:
            print(f"\n{file}: no disagreement when it is run by itself; first it was")
            print("\n".join(each.text(case) for each in found[:3]))
        print(f"  again: python3 tools/test.py --only differential --example {file}", flush=True)
    tally = comparison.tally
    print(f"\n{len(failed)} disagreements in {tally.compared:,} cases", flush=True)
    if unused := [
        kind for kind, cases in tally.stores.items() if cases > 9 and not tally.opened[kind]
    ]:
        print(
            f"none of the arrays in these stores could be opened: {', '.join(unused)}", flush=True
        )
    return len(failed) + len(unused)
