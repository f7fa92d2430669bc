"""Compare reads from memory, a disk and a ZIP archive: stock zarr, stock tuned, and the fork.

Each FOLDER has a `zarr` package in it, as `pip install --target` makes; all run in this interpreter. The
variants take turns, each in a process that stays alive. The table is printed in Markdown.

python3 bench/local_series.py --data build/bench stock=build/stock without=build/without fork=build/fork
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

AT_128 = {"ZARR_ASYNC__CONCURRENCY": "128"}
FUSED = {"ZARR_CODEC_PIPELINE__PATH": "zarr.core.codec_pipeline.FusedCodecPipeline"}


def cases(data: Path) -> dict[str, tuple[int, partial[Any]]]:
    """What is read, and how often in a row. Arrays that are missing are made."""
    import numpy as np

    import zarr
    from zarr.storage import LocalStore, MemoryStore, ZipStore

    terrain = np.cumsum(np.random.default_rng(1758).integers(-5, 6, (2048, 2048), np.int32), axis=1)
    made: dict[str, tuple[int, partial[Any]]] = {}

    def array(store: Any, name: str, values: Any = terrain, **how: Any) -> Any:
        if not isinstance(store, LocalStore) or not (store.root / name).exists():
            zarr.create_array(store, name=name, data=values, **how)
        return zarr.open_array(store, path=name)

    scattered = (slice(16, None, 256), slice(16, None, 256))
    for where, store in (("memory", MemoryStore()), ("local", LocalStore(data))):
        whole = array(store, "whole", chunks=(64, 64))
        shards = array(store, "shards", chunks=(32, 32), shards=(256, 256))
        reads = [
            ("1,024 chunks of 16 KiB", 1, whole, ...),
            ("the same raw", 1, array(store, "raw", chunks=(64, 64), compressors=None), ...),
            ("16 chunks of 1 MiB", 2, array(store, "large", chunks=(512, 512)), ...),
            ("16 whole shards", 1, shards, slice(512)),
            ("an inner chunk of each of 64 shards", 1, shards, scattered),
        ]
        for count in (1, 2, 4):
            for what, side in (("1 KiB", 16), ("1 MiB", 512)):
                values = terrain[: count * side, :side]
                few = array(store, f"{count}-of-{side}", values, chunks=(side, side))
                reads.append((f"{count} x {what}", 10, few, ...))
        for what, times, source, selection in reads:
            made[f"{where}, {what}"] = times, partial(source.__getitem__, selection)
    archive = data / "whole.zip"
    if not archive.exists():
        with ZipStore(archive, mode="w") as store:
            array(store, "whole", chunks=(64, 64))
    zipped = zarr.open_array(ZipStore(archive, mode="r"), path="whole")
    made["ZIP, 1,024 chunks of 16 KiB"] = 1, partial(zipped.__getitem__, ...)
    return made


def serve(data: Path) -> None:
    """Time the cases that standard input names: wall-clock and CPU seconds of one call."""
    known = cases(data)
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        count, call = known[json.loads(line)]
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps([each / count for each in spent]), flush=True)


def main() -> None:
    """Start a process for each variant, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="pattern that cases must match")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("variants", nargs="*", metavar="NAME=FOLDER")
    options = parser.parse_args()
    if options.serve:
        serve(options.data.resolve())
        return
    settings: dict[str, dict[str, str]] = {}
    for name, folder in (variant.split("=") for variant in options.variants):
        settings[name] = {"PYTHONPATH": folder}
        if name == "stock":
            settings |= {"at 128": settings[name] | AT_128, "Fused": settings[name] | FUSED}
    command = [sys.executable, __file__, "--serve", "--data", str(options.data)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers, names = {}, []
    for name, env in settings.items():  # one after the other: the first makes the arrays
        workers[name] = subprocess.Popen(command, env={**os.environ, **env}, **pipes)
        names = json.loads(workers[name].stdout.readline())
    print("| ms: median, best, CPU", *settings, sep=" | ", end=" |\n")
    print("|---" * (len(settings) + 1), "|", sep="")
    for case in (name for name in names if re.search(options.only, name)):
        spent: dict[str, list[list[float]]] = {name: [] for name in workers}
        for turn in range(options.rounds + 1):
            for name, worker in list(workers.items())[:: 1 if turn % 2 else -1]:
                print(json.dumps(case), file=worker.stdin, flush=True)
                spent[name].append(json.loads(worker.stdout.readline()))
        cells = []
        for times in spent.values():
            wall, cpu = ([1000 * value for value in each] for each in zip(*times[1:], strict=True))
            cells.append(f"{median(wall):.3g}, {min(wall):.3g}, {median(cpu):.3g}")
        print(f"| {case} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
