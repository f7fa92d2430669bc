"""Count what a training loop over shuffled rows fetches and decodes, by rows and by blocks.

python3 bench/training.py

Batches of 32 random rows of an array in chunks of 128 rows, from a store that takes 20 ms for each value. One loop
takes its rows with `array.oindex`. The other takes the blocks of a `BlockStream` in a shuffled order, and batches of
random rows within each of them. Both see each row once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.environments import FORK, prepare_measured
from bench.launch import positive, run_in_tools_environment
from tools.environment import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK, BATCH = 128, 32


def measure(rows: int) -> list[dict[str, Any]]:
    """What each loop fetches and decodes. Needs the fork."""
    import numpy as np

    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.experimental.block_stream import BlockStream
    from zarr.storage import MemoryStore
    from zarr.testing.store import LatencyStore

    counts = {"fetched": 0, "decoded": 0}
    decode = ZstdCodec._decode_sync

    class Counting(MemoryStore):
        async def get(self, key: str, *args: Any, **options: Any) -> Any:
            counts["fetched"] += "c/" in key
            return await super().get(key, *args, **options)

    def counted(self: Any, *args: Any) -> Any:
        counts["decoded"] += 1
        return decode(self, *args)

    store, random = Counting(), np.random.default_rng(0)
    values = random.integers(0, 256, (rows, 256), dtype="uint8")
    zarr.create_array(store, data=values, chunks=(CHUNK, 256), compressors=ZstdCodec())
    array: Any = zarr.open_array(LatencyStore(store, get_latency=0.02), mode="r")

    def by_rows() -> Iterator[Any]:
        for batch in random.permutation(rows).reshape(-1, BATCH):
            yield array.oindex[np.sort(batch)]

    def by_blocks() -> Iterator[Any]:
        with BlockStream(array, blocks=random.permutation(rows // CHUNK)) as stream:
            for block in stream:
                for batch in random.permutation(CHUNK).reshape(-1, BATCH):
                    yield block.array[batch]

    found = []
    with patch.object(ZstdCodec, "_decode_sync", counted):
        for name, loop in (("`array.oindex`", by_rows), ("`BlockStream`", by_blocks)):
            counts.update(fetched=0, decoded=0)
            began, batches, total = time.perf_counter(), 0, 0
            for batch in loop():
                batches, total = batches + 1, total + int(batch.sum(dtype="int64"))
            assert total == int(values.sum(dtype="int64")), "a row is missing, or came twice"
            found.append({"loop": name, "batches": batches, **counts})
            found[-1]["seconds"] = time.perf_counter() - began
    return found


def main() -> int:
    """Measure in the environment of the fork, and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--chunks", type=positive, default=64, metavar="N", help="of 128 rows each (default: 64)"
    )
    rows = CHUNK * parser.parse_args().chunks
    prepare_measured(ROOT)
    command = [str(FORK.python), __file__, "--measure", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print("| loop | batches of 32 rows | chunks fetched | chunks decoded | time |")
    print("| --- | --- | --- | --- | --- |")
    for each in json.loads(done.stdout):
        numbers = [f"{each[name]:,}" for name in ("batches", "fetched", "decoded")]
        print(f"| {each['loop']} | {' | '.join(numbers)} | {each['seconds']:.2f} s |")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        run_in_tools_environment(main)
