"""The arrays that are read, made with the released zarr. Runs in a measured environment.

build/demo-stock/bin/python bench/arrays.py DATA field 2048 64
build/demo-stock/bin/python bench/arrays.py DATA large
build/demo-stock/bin/python bench/arrays.py DATA group
build/demo-stock/bin/python bench/arrays.py DATA shards
build/demo-stock/bin/python bench/arrays.py DATA blocks
build/demo-stock/bin/python bench/arrays.py DATA variants
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np

import zarr
from zarr.codecs import ZstdCodec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.references import pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE_CHUNKS = 64
LARGE_CHUNK_SHAPE = (2048, 2048)
"""16 MiB of float32."""


def terrain(size: int) -> NDArray[np.int32]:
    """Heights in centimetres, as a survey has them: hills on hills, and some noise."""
    random = np.random.default_rng(1758)
    at = np.linspace(0, 1, size)
    heights = np.zeros((size, size))
    for octave in range(1, 9):
        knots = np.linspace(0, 1, 2**octave + 1)
        peaks = random.normal(size=(knots.size, knots.size))
        across = np.stack([np.interp(at, knots, row) for row in peaks])
        lower = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, knots.size - 2)
        share = (at - knots[lower]) / (knots[1] - knots[0])
        heights += ((1 - share)[:, None] * across[lower] + share[:, None] * across[lower + 1]) / (
            2**octave
        )
    noise = random.normal(scale=5, size=heights.shape)
    return np.rint(heights * 100_000 + noise).astype(np.int32)


def write_field(folder: Path, size: int, chunk: int) -> None:
    """The terrain as a zarr array, in a ZIP archive, and as references into one file."""
    array = zarr.create_array(
        folder / "array.zarr",
        shape=(size, size),
        chunks=(chunk, chunk),
        dtype="int32",
        compressors=ZstdCodec(level=3),
    )
    array[:] = terrain(size)
    pack(folder / "array.zarr", folder / "packed.bin", folder / "references.json")
    archive(folder)


def archive(folder: Path) -> None:
    """The array in a ZIP archive."""
    with ZipFile(folder / "array.zip", "w") as zipped:
        for file in (folder / "array.zarr").rglob("*"):
            if file.is_file():
                zipped.write(file, file.relative_to(folder / "array.zarr"))


def write_large(folder: Path) -> None:
    """1 GiB of measurements with noise in them, which compress a little, in chunks of 16 MiB."""
    height, width = LARGE_CHUNK_SHAPE
    array = zarr.create_array(
        folder / "array.zarr",
        shape=(LARGE_CHUNKS * height, width),
        chunks=LARGE_CHUNK_SHAPE,
        dtype="float32",
        compressors=ZstdCodec(level=1),
    )
    random = np.random.default_rng(4112)
    for row in range(0, array.shape[0], height):
        array[row : row + height] = random.standard_normal(LARGE_CHUNK_SHAPE, dtype=np.float32)
    archive(folder)


def write_shards(folder: Path) -> None:
    """The terrain in 64 shards of 64 inner chunks."""
    array = zarr.create_array(
        folder / "array.zarr",
        shape=(2048, 2048),
        chunks=(32, 32),
        shards=(256, 256),
        dtype="int32",
        compressors=ZstdCodec(level=3),
    )
    array[:] = terrain(2048)


def write_group(folder: Path) -> None:
    """A group of 1,000 small arrays."""
    group = zarr.create_group(folder / "group.zarr")
    for number in range(1000):
        group.create_array(f"array-{number:04}", shape=(number + 1, 10), dtype="float32")


def write_blocks(folder: Path) -> None:
    """The terrain as 1,024 blocks of 16 KiB, one below the other, and as references into one file."""
    tiles = terrain(2048).reshape(32, 64, 32, 64).swapaxes(1, 2).reshape(-1, 64)
    zarr.create_array(
        folder / "array.zarr", data=tiles, chunks=(64, 64), compressors=ZstdCodec(level=3)
    )
    pack(folder / "array.zarr", folder / "packed.bin", folder / "references.json")


def write_variants(folder: Path) -> None:
    """Genotypes of 1,000 samples at 10,000 positions, as VCF Zarr has them."""
    random = np.random.default_rng(355)
    group = zarr.create_group(folder / "group.zarr")
    frequency = random.beta(0.3, 2, size=(10_000, 1, 1))
    calls = (random.random((10_000, 1_000, 2)) < frequency).astype(np.int8)
    group.create_array("call_genotype", data=calls, chunks=(1_000, 500, 2))
    positions = np.cumsum(random.integers(1, 200, 10_000)).astype(np.int32)
    group.create_array("position", data=positions, chunks=(1_000,))
    names = np.array([f"rs{number}" for number in positions], dtype=np.dtypes.StringDType())
    group.create_array("id", data=names, chunks=(1_000,))
    group.create_array("quality", data=random.random(10_000, np.float32), chunks=(1_000,))


def main(data: str, kind: str, *numbers: str) -> None:
    """Write the array under a name that appears only when it is whole."""
    write: dict[str, Any] = {
        "field": write_field,
        "large": write_large,
        "group": write_group,
        "shards": write_shards,
        "blocks": write_blocks,
        "variants": write_variants,
    }
    folder = Path(data, "-".join((kind, *numbers)))
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write[kind](unfinished, *map(int, numbers))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
