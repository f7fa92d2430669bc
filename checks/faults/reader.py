"""Read cells in the current environment: takes JSON on stdin, prints a line of JSON for each cell.

    … | build/env-3.12/bin/python -m checks.faults.reader

With `--write DIRECTORY`, write the arrays to read instead.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import urllib.request
from dataclasses import astuple
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from aiobotocore.session import AioSession
from aiohttp import ClientTimeout
from obstore.fsspec import FsspecStore as ObstoreFileSystem
from obstore.store import HTTPStore

import zarr
from checks.faults.cells import TIME_LIMIT, Cell, Outcome
from checks.faults.server import ARM_PATH
from zarr.storage import FsspecStore, ObjectStore

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from zarr.abc.store import Store

BUCKET = "bucket"
FILL = -1
_APART = 64 * 1024
_SESSION = AioSession()

# The shape, chunks and shards of each array; then the array and the selection of each kind of read.
_CHUNKS: Any = ((16, 256), (1, 256), None)
_MANY_CHUNKS: Any = ((256, 16), (1, 16), None)
_SHARDS: Any = ((4, 512), (1, 64), (1, 512))
_MANY_SHARDS: Any = ((100, 64), (1, 16), (1, 64))
_ARRAYS = {"chunks": _CHUNKS, "many": _MANY_CHUNKS, "shards": _SHARDS, "many-shards": _MANY_SHARDS}
_READ: dict[str, tuple[str, Any]] = {
    "chunk": ("chunks", np.s_[3:4]),
    "chunks": ("chunks", np.s_[:]),
    "merged": ("chunks", np.s_[:]),
    "apart": ("chunks", np.s_[:]),
    "index": ("shards", np.s_[:, 128:320]),
    "inner": ("shards", np.s_[:, 128:320]),
    "100-chunks": ("many", np.s_[:100]),
    "100-apart": ("many", np.s_[:100]),
    "100-inner": ("many-shards", np.s_[:, 16:48]),
    "256-chunks": ("many", np.s_[:]),
}


def expected(name: str) -> np.ndarray[Any, Any]:
    """The contents of an array. The fill value does not occur in them."""
    shape = _ARRAYS[name][0]
    return np.arange(np.prod(shape), dtype="int32").reshape(shape)


def write(folder: Path) -> None:
    """Write the arrays, and files with all the chunks of an array for references."""
    for name, (shape, chunks, shards) in _ARRAYS.items():
        # Without a compressor: no codec may notice what the store should notice.
        array = zarr.create_array(
            folder / BUCKET / name, shape=shape, chunks=chunks, shards=shards, dtype="int32",
            fill_value=FILL, compressors=None,
        )  # fmt: skip
        array[:] = expected(name)
        if shards is None:
            for read in ("merged", "apart"):
                rows = expected(name)
                nbytes, stride = rows[0].nbytes, _stride(read, rows[0].nbytes)
                padded = (row.tobytes().ljust(stride, b"\xff") for row in rows[: stride and 100])
                (folder / BUCKET / f"{name}-{read}").write_bytes(b"".join(padded) + bytes(nbytes))


def _stride(read: str, nbytes: int) -> int:
    return nbytes + (_APART if "apart" in read else 16)


def open_store(cell: Cell, url: str) -> Store:
    """Open the store that holds the array of a cell."""
    name, _ = _READ[cell.read]
    if "merged" in cell.read or "apart" in cell.read:
        return _references(cell, url, name)
    if cell.client == "obstore":
        return ObjectStore(HTTPStore.from_url(f"{url}/{BUCKET}/{name}", **_obstore(cell)))
    return FsspecStore(_file_system(cell, url), path=_address(cell, url, name))


def _references(cell: Cell, url: str, name: str) -> FsspecStore:
    read = "apart" if "apart" in cell.read else "merged"
    target = _address(cell, url, f"{name}-{read}")
    if cell.client == "s3":
        target = f"s3://{target}"
    rows = expected(name)[:100]
    nbytes = rows[0].nbytes
    with urllib.request.urlopen(f"{url}/{BUCKET}/{name}/zarr.json") as answer:
        references = {"zarr.json": answer.read().decode()}
    for row in range(len(rows)):
        references[f"c/{row}/0"] = [target, row * _stride(read, nbytes), nbytes]
    protocol = "s3" if cell.client == "s3" else "http"
    return FsspecStore(
        fsspec.filesystem(
            "reference",
            fo=references,
            fs={protocol: _file_system(cell, url)},
            asynchronous=True,
            skip_instance_cache=True,
        )
    )


def _address(cell: Cell, url: str, name: str) -> str:
    return f"{BUCKET}/{name}" if cell.client == "s3" else f"{url}/{BUCKET}/{name}"


def _file_system(cell: Cell, url: str) -> Any:
    options: dict[str, Any] = {"asynchronous": True, "skip_instance_cache": True}
    match cell.client:
        case "obstore":
            return ObstoreFileSystem("http", **_obstore(cell), **options)
        case "http":
            total = cell.patience if cell.limited else None
            timeout = ClientTimeout(total=total, sock_read=cell.patience)
            return fsspec.filesystem("http", client_kwargs={"timeout": timeout}, **options)
        case _:
            # s3fs retries by itself, so botocore must not.
            config = {"read_timeout": cell.patience, "retries": {"max_attempts": 0}}
            system = fsspec.filesystem(
                "s3", anon=True, endpoint_url=url, config_kwargs=config, session=_SESSION,
                **options,
            )  # fmt: skip
            system.retries = 2  # s3fs runs one retry loop inside another
            return system


def _obstore(cell: Cell) -> dict[str, Any]:
    seconds = timedelta(seconds=cell.patience)
    backoff = {
        "init_backoff": timedelta(milliseconds=50),
        "max_backoff": timedelta(milliseconds=200),
        "base": 2,
    }
    return {
        "client_options": {"allow_http": True, "timeout": seconds},
        "retry_config": {"max_retries": 2, "retry_timeout": seconds * 3, "backoff": backoff},
    }


def read(cell: Cell, url: str, *, arm: bool) -> Outcome:
    """Open an array, make the server misbehave, and read."""
    name, selection = _READ[cell.read]
    array = zarr.open_array(open_store(cell, url), mode="r")
    if arm:
        urllib.request.urlopen(f"{url}/{ARM_PATH}").close()
    try:
        found = array[selection]
    except BaseException as error:  # noqa: BLE001, including `CancelledError`
        return Outcome("error", _name(error), str(error)[:200])
    if np.array_equal(found, expected(name)[selection]):
        return Outcome("data")
    return Outcome("fill" if np.any(np.equal(found, FILL)) else "wrong")


def _name(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, BaseExceptionGroup):
        return f"{name} of {', '.join(sorted({_name(inner) for inner in error.exceptions}))}"
    return name


def read_all(tasks: list[dict[str, Any]], at_once: int) -> None:
    """Read cells, each in a fork of this process, and print the outcomes as they arrive."""
    processes = multiprocessing.get_context("fork")  # imports happen once; no thread runs yet
    running: dict[Connection, tuple[Cell, Any, float]] = {}
    while tasks or running:
        while tasks and len(running) < at_once:
            task = tasks.pop(0)
            receiver, sender = processes.Pipe(duplex=False)
            process: Any = processes.Process(target=_send, args=(sender, task), daemon=True)
            process.start()
            sender.close()
            running[receiver] = Cell(*task["cell"]), process, time.monotonic() + TIME_LIMIT
        ready = wait(list(running), timeout=0.5)
        for receiver, (cell, process, end) in list(running.items()):
            if receiver in ready:
                outcome = receiver.recv()
            elif time.monotonic() > end:
                outcome = Outcome("hang")
            else:
                continue
            print(json.dumps([cell, astuple(outcome)]), flush=True)
            process.kill()
            process.join()
            del running[receiver]


def _send(sender: Connection, task: dict[str, Any]) -> None:
    """Read a cell, and wait to be killed."""
    sender.send(read(Cell(*task["cell"]), task["url"], arm=task["arm"]))
    time.sleep(TIME_LIMIT)  # the parent kills this process: no cleanup may affect the outcome


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        read_all(**json.load(sys.stdin))
