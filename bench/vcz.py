"""Compare vcztools' own reader with `BlockStream` in its place, and check that they write the same.

python3 bench/vcz.py --quick

A VCF Zarr store is made, whose fields have chunks of 1,000, 5,000 and 10,000 variants. `vcztools view` and
`vcztools query` read it from a local disk and over HTTP, in the environment of the fork, with the pool of 32 threads
that vcztools has and with `bench/vcztools_adapter.py`. Times leave out the start of Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.environments import FORK_IS_BUILT_FROM
from bench.launch import not_negative, positive
from bench.server import REQUESTS_PATH
from tools.environment import BUILD, ROOT, Environment, SetupError

VCZ = Environment(BUILD / "demo-vcz")
# vcztools wants `ruranges-py`, which has no wheel for every machine, and takes pyranges as well.
VCZTOOLS = ("--no-deps", "vcztools==0.2.0")
BESIDE_IT = (
    "aiohttp",
    "requests",
    "click>=8.2",
    "humanfriendly",
    "pandas",
    "pyparsing>=3.1",
    "pyranges==0.1.4",
)
COMMANDS = {
    "view": ("view", "--no-version"),
    "query": ("query", "-f", "%CHROM %POS %DP\\n", "-i", "QUAL>0.5"),
}


def main() -> int:
    """Prepare, run all sides in turn, and print a table. 1 if what they write differs."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--variants", type=positive, default=100_000, metavar="N")
    parser.add_argument("--samples", type=positive, default=1_000, metavar="N")
    parser.add_argument("--latency-ms", type=not_negative, default=20.0, metavar="MS")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="20,000 variants, read once")
    options = parser.parse_args()
    if options.quick:
        options.variants, options.repeats = 20_000, 1
    VCZ.make(sys.executable, platform.python_version())
    fork = [ROOT / name for name in FORK_IS_BUILT_FROM]
    VCZ.install("the fork", [f"{ROOT}[remote]"], made_of=fork)
    VCZ.install("what vcztools needs", BESIDE_IT)
    VCZ.install("vcztools", VCZTOOLS)
    with tempfile.TemporaryDirectory() as folder:
        _worker("make", f"{folder}/a.vcz", options.variants, options.samples)
        server = [sys.executable, str(ROOT / "bench" / "server.py"), folder]
        server += ["--latency-ms", str(options.latency_ms)]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as serving:
            assert serving.stdout is not None
            url = json.loads(serving.stdout.readline())["url"]
            try:
                return _compare(folder, url, options)
            finally:
                serving.terminate()


def _compare(folder: str, url: str, options: argparse.Namespace) -> int:
    print(
        f"{options.variants:,} variants of {options.samples:,} samples, {options.latency_ms:g} ms, "
        f"median of {options.repeats}\n\n"
        "| command | store | 32 threads | BlockStream | faster | requests |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    different = 0
    for place, path in (("local", folder), ("HTTP", url)):
        for command in COMMANDS:
            seconds: dict[str, list[float]] = {"threads": [], "stream": []}
            written, requests = set(), {}
            for turn in range(options.repeats):
                for reader, times in seconds.items():
                    print(f"{command} {place} {reader} {turn + 1}", file=sys.stderr, flush=True)
                    _requests(url, "DELETE")
                    output = f"{folder}/output"
                    times.append(_worker(reader, command, f"{path}/a.vcz", output)["seconds"])
                    requests[reader] = len(_requests(url, "GET"))
                    written.add(hashlib.sha256(Path(output).read_bytes()).hexdigest())
            threads, stream = (statistics.median(times) for times in seconds.values())
            counts = " → ".join(f"{count:,}" for count in requests.values())
            print(
                f"| `{command}` | {place} | {threads:.2f} s | {stream:.2f} s | "
                f"{threads / stream:.2f}x | {counts if place == 'HTTP' else ''} |",
                flush=True,
            )
            if len(written) > 1:
                different = 1
                print(f"error: {command} wrote other records ({place})", file=sys.stderr)
    return different


def _requests(url: str, method: str) -> list[Any]:
    with urllib.request.urlopen(urllib.request.Request(url + REQUESTS_PATH, method=method)) as page:
        return list(json.loads(page.read() or "[]"))


def _worker(*arguments: object) -> dict[str, Any]:
    command = [str(VCZ.python), __file__, "--worker", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def run(reader: str, command: str, path: str, output: str) -> dict[str, float]:
    """Run a command of vcztools in this process."""
    from vcztools.cli import vcztools_main

    if reader == "stream":
        from bench.vcztools_adapter import install

        install()
    storage = ["--backend-storage", "fsspec"] if path.startswith("http") else []
    sys.argv[1:] = [*COMMANDS[command], *storage, "-o", output, path]
    began = time.perf_counter()
    try:
        vcztools_main()
    except SystemExit as done:
        if done.code:
            raise
    return {"seconds": time.perf_counter() - began}


def make(path: str, variants: str, samples: str) -> dict[str, float]:
    """Write a store of made-up variants."""
    import numpy as np

    import zarr

    random, text = np.random.default_rng(0), np.dtypes.StringDType()
    count, people = int(variants), int(samples)
    shutil.rmtree(path, ignore_errors=True)
    root = zarr.create_group(path)
    root.attrs.update(vcf_zarr_version="0.4", source="bench/vcz.py")

    def add(name: str, data: Any, chunks: tuple[int, ...], *dimensions: str) -> None:
        root.create_array(name, data=data, chunks=chunks, dimension_names=dimensions)

    def words(values: list[Any]) -> Any:
        return np.array(values, dtype=text)

    add("sample_id", words([f"s{n}" for n in range(people)]), (500,), "samples")
    add("contig_id", words(["chr1", "chr2"]), (2,), "contigs")
    add("filter_id", words(["PASS"]), (1,), "filters")
    long = (10_000,)
    add("variant_contig", (np.arange(count) > count // 2).astype("int8"), long, "variants")
    add("variant_position", np.arange(1, count + 1, dtype="int32") * 10, long, "variants")
    add("variant_length", np.ones(count, dtype="int8"), long, "variants")
    add("variant_id", words([f"rs{n}" for n in range(count)]), long, "variants")
    add("variant_allele", words([["A", "C"]] * count), (10_000, 2), "variants", "alleles")
    add("variant_quality", random.random(count, dtype="float32"), long, "variants")
    add("variant_filter", np.ones((count, 1), dtype=bool), (10_000, 1), "variants", "filters")
    add("variant_DP", random.integers(0, 99, count, dtype="int16"), (5_000,), "variants")
    calls = random.integers(0, 2, (count, people, 2), dtype="int8")
    dimensions = ("variants", "samples", "ploidy")
    add("call_genotype", calls, (1_000, 500, 2), *dimensions)
    add("call_genotype_phased", calls[..., 0] > 0, (1_000, 500), *dimensions[:2])
    zarr.consolidate_metadata(path)
    return {}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, *rest = sys.argv[2:]
        print(json.dumps(make(*rest) if name == "make" else run(name, *rest)))
    else:
        try:
            sys.exit(main())
        except SetupError as problem:
            sys.exit(f"error: {problem}")
