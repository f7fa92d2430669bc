"""Run cases in the environment that is measured: their names come in, lines of JSON go out.

echo http-whole | build/demo-stock/bin/python bench/worker.py --data build/bench --url http://…
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import zarr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES, Case, Source, Trial
from bench.peers import PEERS


def peak_memory() -> int | None:
    """The most bytes that this process has held in memory so far, where the platform tells."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def digest(values: Any) -> str:
    """A hash of what was read: shape, type and every byte."""
    hashed = hashlib.sha256()
    for value in values if isinstance(values, list) else [values]:
        array = np.ascontiguousarray(value)
        hashed.update(f"{array.shape} {array.dtype.str} ".encode())
        hashed.update(array.data.cast("B"))
    return hashed.hexdigest()


def reported(trial: Trial) -> dict[str, Any] | None:
    """What zarr itself says of one more read, which is not timed; `None` if it can't: stock zarr."""
    try:
        from zarr.experimental.read_report import report_reads
    except ImportError:
        return None
    with report_reads() as report:
        trial.read()
    return dataclasses.asdict(report)


def run(case: Case, source: Source, peer: str | None) -> dict[str, Any] | None:
    """Read as often as the case asks for. Moments are of the clock that the server uses too."""
    trial = PEERS[peer](case.name, source) if peer else case.prepare(source)
    if trial is None:
        return None
    trial.warm_up()
    baseline = peak_memory()
    started, seconds, values = time.monotonic(), [], None
    for _ in range(case.rounds):
        began = time.perf_counter()
        values = trial.read()
        seconds.append(time.perf_counter() - began)
    outcome = {
        "case": case.name,
        "zarr": peer or zarr.__version__,
        "started": started,
        "ended": time.monotonic(),
        "seconds": sorted(seconds)[len(seconds) // 2],
        "peak": peak_memory(),
        "baseline": baseline,
        "digest": digest(values),
        "problems": trial.problems(),
    }
    del values  # it may fill half of the memory
    return outcome | {"report": None if peer else reported(trial)}


def main() -> None:
    """Run the cases that standard input names, one after another."""
    parser = argparse.ArgumentParser(description="Run the cases that standard input names.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--url", required=True, help="of the server that serves the folder")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--peer", choices=[*PEERS], help="read with this instead of zarr")
    options = parser.parse_args()
    source = Source(options.data, options.url, options.size, options.chunk)
    for name in sys.stdin:
        outcome = run(CASES[name.strip()], source, options.peer)
        print(json.dumps(outcome or {}), flush=True)


if __name__ == "__main__":
    main()
