"""Run cells with the release and with the fork, in separate processes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

from checks.faults.cells import Cell, Outcome
from checks.faults.server import FaultyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 100
"""Cells that have servers at the same time, so that sockets do not run out."""


class Bench:
    """The arrays, servers and interpreters that the cells run with.

    Parameters
    ----------
    folder : Path
        An empty folder for the arrays.
    stock, fork : Path
        The interpreters that import the release and the fork.
    """

    def __init__(self, folder: Path, stock: Path, fork: Path) -> None:
        self._folder = folder
        self._pythons = {"stock": stock, "fork": fork}
        self._objects: dict[str, bytes] = {}

    async def run(self, cells: Iterable[Cell]) -> dict[Cell, dict[str, Outcome]]:
        """Return the outcomes of each cell on both sides."""
        await self._call("stock", ["--write", str(self._folder)])
        for file in self._folder.rglob("*"):
            if file.is_file():
                self._objects[str(file.relative_to(self._folder))] = file.read_bytes()
        cells = list(cells)
        sides = await asyncio.gather(*(self._run_side(side, cells) for side in self._pythons))
        by_side = dict(zip(self._pythons, sides, strict=True))
        return {cell: {side: by_side[side][cell] for side in by_side} for cell in cells}

    async def _run_side(self, side: str, cells: list[Cell]) -> dict[Cell, Outcome]:
        found: dict[Cell, Outcome] = {}
        for batch in batched([cell for cell in cells if not cell.limited], _BATCH):
            found |= await self._read(side, batch, at_once=8)
        found |= await self._read(side, [cell for cell in cells if cell.limited], at_once=2)
        return found

    async def _read(self, side: str, cells: Iterable[Cell], at_once: int) -> dict[Cell, Outcome]:
        """Read cells in forks of one process."""
        async with AsyncExitStack() as servers:
            tasks = []
            for cell in cells:
                url = await servers.enter_async_context(self._server(cell))
                tasks.append({"cell": cell, "url": url, "arm": "http.server" not in cell.fault})
            lines = await self._call(side, [], json.dumps({"tasks": tasks, "at_once": at_once}))
        return {Cell(*cell): Outcome(*outcome) for cell, outcome in map(json.loads, lines)}

    async def _call(self, side: str, arguments: list[str], text: str = "") -> list[str]:
        """Run the reader, and return the lines that it prints."""
        process = await asyncio.create_subprocess_exec(
            self._pythons[side], "-W", "ignore", "-m", "checks.faults.reader", *arguments,
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            done, errors = await process.communicate(text.encode())
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"the reader failed on {side}:\n{errors.decode()}")
        return done.decode().splitlines()

    @asynccontextmanager
    async def _server(self, cell: Cell) -> AsyncIterator[str]:
        """Start the server of a cell."""
        if not cell.fault.startswith("http.server"):
            server = FaultyServer(self._objects, cell)
            async with server.running():
                yield server.url
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1",
            "--directory", str(self._folder),
            "--protocol", f"HTTP/{cell.fault.rpartition('-')[2]}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            line = (await process.stdout.readline()).decode() if process.stdout else ""
            yield re.findall(r"http://[\d.:]+", line)[0]
        finally:
            process.kill()
            await process.wait()


def run(
    cells: Iterable[Cell], *, stock: Path, fork: Path = Path(sys.executable)
) -> Mapping[Cell, Mapping[str, Outcome]]:
    """Run cells on both sides.

    Parameters
    ----------
    cells : iterable of Cell
        The cells to run.
    stock, fork : Path
        The interpreters that import the release and the fork.

    Returns
    -------
    mapping
        For each cell, its outcomes by `stock` and `fork`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(Bench(Path(folder), stock, fork).run(cells))
