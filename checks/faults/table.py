"""The table of what came of each cell, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.faults.cells import (
    CLIENTS,
    FAULTS,
    LIMITED,
    LIMITED_READS,
    READS,
    Cell,
    Outcome,
    fault_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

type Found = Mapping[Cell, Mapping[str, Outcome]]

_INTRODUCTION = """\
# Reads from a server that misbehaves

What becomes of a read when the server fails, on zarr 3.4.2 and on the fork, over one server on the
loopback interface. `data` is the right data; `fill` stands for fill values where there is data; `wrong` is
any other data; `hang` is a read that did not end within 45 s. Anything else is the exception. Where there is
one entry, both sides do the same; else the first is the release's and the second the fork's. An entry in
**bold** breaks a promise of the fork.

A store takes a `404` for an absent key, and zarr an absent key for a missing chunk, so that `fill` is
no fault there. An array is opened first; the server misbehaves from then on. It does so to the first
request for data, or to every one. Of the clients, fsspec's HTTP file system does not try again; s3fs and
obstore do, here a few times with short pauses.

Made by `python3 tools/test.py --only faults --table=docs/measurements/faults.md`.
"""


def markdown(found: Found) -> str:
    """Return the whole page.

    Parameters
    ----------
    found : mapping
        What came of each cell, by `stock` and `fork`.
    """
    lines = [_INTRODUCTION, *_legend("What is read", READS | LIMITED_READS)]
    lines += _legend("What the server does", {**_described(FAULTS), **LIMITED})
    for client, name in CLIENTS.items():
        lines += [f"## {name}", ""]
        rows = [(fault, times) for fault in FAULTS for times in ("once", "always")]
        lines += _table(found, client, READS, rows)
        lines += _table(found, client, LIMITED_READS, [(fault, "always") for fault in LIMITED])
    return "\n".join(lines)


def _described(faults: Mapping[str, str]) -> dict[str, str]:
    statuses = [fault for fault in faults if fault.isdecimal()]
    rest = {fault: text for fault, text in faults.items() if fault not in statuses}
    return {", ".join(statuses): "an answer with this status"} | rest


def _legend(title: str, entries: Mapping[str, str]) -> list[str]:
    rows = [f"| `{name}` | {text} |" for name, text in entries.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _table(
    found: Found, client: str, reads: Iterable[str], faults: Iterable[tuple[str, str]]
) -> list[str]:
    reads = list(reads)
    lines = ["| | " + " | ".join(reads) + " |", "|---" * (len(reads) + 1) + "|"]
    for fault, times in faults:
        cells = [Cell(client, read, fault, times) for read in reads]
        if any(cell in found for cell in cells):
            when = fault if fault in LIMITED else f"{fault}, {times}"
            lines.append(f"| {when} | " + " | ".join(_entry(found, cell) for cell in cells) + " |")
    return [*lines, ""]


def _entry(found: Found, cell: Cell) -> str:
    if cell not in found:
        return ""
    stock, fork = found[cell]["stock"], found[cell]["fork"]
    last = f"**{fork}**" if fault_in(cell, stock, fork) else str(fork)
    return last if str(stock) == str(fork) else f"{stock}, {last}"
