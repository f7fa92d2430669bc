"""Draw how many bytes a stream of blocks has in flight over time, against its budget.

python3 bench/readahead.py [docs/images/readahead.png]

What is drawn is measured: in a process with the fork, a stream reads from a store that takes 20 ms
for each value, for a program that takes its time, stops for a while, and then takes blocks as they
come. A thread looks at the figures of the stream twice in a millisecond.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.environments import FORK, prepare_measured
from bench.launch import run_in_tools_environment
from tools.environment import ROOT

PICTURE = ROOT / "docs" / "images" / "readahead.png"
BUDGET = 8 << 20
BLOCKS = 300


def measure() -> dict[str, list[list[float]]]:
    """What was in flight, and which blocks had been taken, each with the time. Needs the fork."""
    import numpy as np

    import zarr
    from zarr.experimental.block_stream import BlockStream
    from zarr.storage import MemoryStore
    from zarr.testing.store import LatencyStore

    memory = MemoryStore()
    data = np.random.default_rng(0).integers(0, 256, (BLOCKS, 256, 512), dtype="uint8")
    zarr.create_array(memory, data=data, chunks=(1, 256, 512), compressors=None)
    array: zarr.Array[Any] = zarr.open_array(LatencyStore(memory, get_latency=0.02), mode="r")
    stream = BlockStream(array, readahead_bytes=BUDGET)
    in_flight: list[list[float]] = []
    taken: list[list[float]] = []
    done = threading.Event()
    began = time.perf_counter()

    def watch() -> None:
        while not done.wait(0.0005):
            in_flight.append([time.perf_counter() - began, stream.stats.nbytes_in_flight])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with stream:
        for block in stream:
            taken.append([time.perf_counter() - began, block.index + 1])
            if block.index < BLOCKS // 3:
                time.sleep(0.003)
            elif block.index == BLOCKS // 3:
                time.sleep(0.15)
    done.set()
    watcher.join()
    return {"in_flight": in_flight, "taken": taken}


def draw(figures: dict[str, list[list[float]]], file: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from bench.picture import FORK_COLOUR, QUIET, STOCK_COLOUR, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        times, nbytes = zip(*figures["in_flight"], strict=True)
        above.fill_between(times, [n / 2**20 for n in nbytes], color=FORK_COLOUR, alpha=0.35)
        above.plot(times, [n / 2**20 for n in nbytes], color=FORK_COLOUR, linewidth=1)
        above.axhline(BUDGET / 2**20, color=STOCK_COLOUR, linestyle="--", linewidth=1)
        above.annotate(
            f"readahead_bytes = {BUDGET >> 20} << 20",
            (1, BUDGET / 2**20),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=STOCK_COLOUR,
        )
        above.set_ylim(0, BUDGET / 2**20 * 1.2)
        above.set_ylabel("MiB in flight")
        above.set_title("Blocks in flight, against the budget", loc="left", fontsize=12)
        times, blocks = zip(*figures["taken"], strict=True)
        below.step(times, blocks, where="post", color=QUIET, linewidth=1)
        below.set_ylabel("blocks taken")
        below.set_xlabel("seconds; each fetch takes 20 ms, and the program stops for 150 ms")
        below.set_xlim(0)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)


def main() -> int:
    """Measure in the environment of the fork, and draw in that of the tools."""
    prepare_measured(ROOT)
    command = [str(FORK.python), __file__, "--measure"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(json.loads(done.stdout), file)
    print(file)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
    else:
        run_in_tools_environment(main)
