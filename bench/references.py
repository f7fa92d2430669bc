"""Pack a zarr store into one file, with references into it: what kerchunk makes of a NetCDF file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "packed"
"""The template in a reference set that stands for the packed file's address."""


def pack(store: Path, packed: Path, references: Path) -> None:
    """Write the chunks of a zarr v3 array one after another, and a version 1 reference set.

    Parameters
    ----------
    store : Path
        A directory that holds one zarr v3 array.
    packed : Path
        The file to write the chunks to, in the array's C order.
    references : Path
        The file to write the references to. Metadata is held in it; each chunk is a range of
        `{{packed}}`, the template that whoever opens the references sets to the file's address.
    """
    refs: dict[str, str | list[str | int]] = {"zarr.json": (store / "zarr.json").read_text()}
    offset = 0
    with packed.open("wb") as file:
        for chunk in sorted((store / "c").rglob("*"), key=_coordinates):
            if chunk.is_file():
                length = file.write(chunk.read_bytes())
                refs[chunk.relative_to(store).as_posix()] = [f"{{{{{TEMPLATE}}}}}", offset, length]
                offset += length
    content = {"version": 1, "templates": {TEMPLATE: packed.name}, "refs": refs}
    references.write_text(json.dumps(content))


def _coordinates(chunk: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", chunk.as_posix().rpartition("/c/")[2])]
