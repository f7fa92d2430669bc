"""Generate random cases as JSON: an array, its damage, a store, settings, reads and writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

type Case = dict[str, Any]

NUMBERS = ("<i2", ">i2", "<u4", ">u4", "<i8", ">u8", "<f2", ">f4", "<f8")
DTYPES: tuple[Any, ...] = (
    *("bool", "i1", "u1", *NUMBERS, "<c8", ">c16", "S3", "V5", "<U4", ">U4"),
    *("<M8[s]", ">M8[ns]", "<m8[10us]", "str", "bytes"),
    *([["a", ">i4"], ["b", "<f8"], ["c", "S3"]], [["a", "u1"], ["b", "<i2"]]),
)
VARIABLE = ("str", "bytes")
STORES = (
    *("memory", "local", "zip", "zip-deflated", "own-local"),
    *("fsspec-memory", "fsspec-local", "fsspec-http"),
    *("references-local", "references-http", "references-memory", "references-parquet"),
    *("dir-memory", "dir-local", "dir-http", "dir-references"),
    *("obstore-memory", "obstore-local", "obstore-http"),
)
READ_ONLY = ("http", "references", "parquet")
WRAPPERS = ("wrapper", "logging", "latency", "cache", "own-get", "bare")
ERRORS = ("OSError", "KeyError", "FileNotFoundError", "PermissionError", "ValueError")
PIPELINES = ("BatchedCodecPipeline", "FusedCodecPipeline")
# With a flipped bit, these may allocate gigabytes or return uninitialised memory.
FRAGILE = ("blosc", "lz4", "vlen", "packbits", "lzma", "bz2")


def case(seed: int, number: int) -> Case:
    """Generate the case of this number.

    Parameters
    ----------
    seed : int
        The seed of the run.
    number : int
        The number of the case in it.

    Returns
    -------
    dict
        The case. The same seed and number always give the same case.
    """
    return _Draw(Random(f"{seed}/{number}")).case()


def _at_most(limit: int, shape: list[int], chunks: list[int]) -> list[int]:
    """Enlarge chunks until there are few enough."""
    while math.prod(math.ceil(n / c) for n, c in zip(shape, chunks, strict=True)) > limit:
        chunks = [c + 1 for c in chunks]
    return chunks


@dataclass(slots=True)
class _Draw:
    random: Random

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def number(self) -> int:
        return self.random.randrange(1 << 30)

    def case(self) -> Case:
        store = self.store()
        in_parquet = store["kind"] == "references-parquet"
        array = self.array(2 if in_parquet else self.one(2, 3, 3))
        if in_parquet:  # Parquet references need an array in a group, with dots in its chunk keys.
            array |= {"name": self.one("a", "g/a"), "separator": "."}
        read_only = any(word in store["kind"] for word in READ_ONLY)
        writes = self.chance(0.03 if read_only else 0.3)
        return {
            "array": array,
            "written": self.written(array["shape"]),
            "damage": self.damage(array) if self.chance(0.2) else None,
            "store": store,
            "settings": self.settings(),
            "writes": writes,
            "steps": [self.step(array, writes) for _ in range(self.random.randint(4, 8))],
        }

    # The array

    def array(self, zarr_format: int) -> dict[str, Any]:
        dtype = self.one(*DTYPES)
        shape, chunks = self.grid()
        array = {
            "name": self.one("a", "a", "", "g/a"),
            "zarr_format": zarr_format,
            "dtype": dtype,
            "shape": shape,
            "chunks": chunks,
            "order": self.one("C", "F"),
            "write_empty_chunks": self.chance(0.3),
            "fill": self.one(
                "default", "drawn", "drawn", "none" if zarr_format == 2 else "default"
            ),
            "data": self.number(),
        }
        if dtype in NUMBERS and "f" in dtype and self.chance(0.3):
            array["fill"] = "nan"
        if zarr_format == 2:
            array |= self.v2_codecs(dtype)
            array["separator"] = self.one(".", "/")
            return array
        array["separator"] = self.one("/", "/", ".")
        array["v2_keys"] = self.chance(0.1)
        sharded = bool(shape) and self.chance(0.5)
        if not sharded:
            if shape and self.chance(0.15):
                array["chunks"] = [self.edges(n, 1) for n in shape]
            array |= self.v3_codecs(dtype, len(shape))
            return array
        inner = _at_most(
            60, shape, [self.random.randint(1, max(1, math.ceil(n / 3))) for n in chunks]
        )
        shards = [
            c * self.random.randint(1, max(1, n // c)) for c, n in zip(inner, shape, strict=True)
        ]
        array["chunks"] = shards
        if self.chance(0.15):
            array["chunks"] = [self.edges(n, c) for n, c in zip(shape, inner, strict=True)]
            array["shape"] = [sum(edges) for edges in array["chunks"]]
        array["filters"] = [self.transpose(len(shape))] if self.chance(0.05) else []
        array["compressors"] = [{"name": "crc32c"}] if self.chance(0.05) else []
        array["serializer"] = self.sharding(dtype, inner, nested=self.chance(0.25))
        return array

    def grid(self) -> tuple[list[int], list[int]]:
        """Draw a shape and a chunk shape: mostly few small chunks, sometimes large or many ones."""
        kind = self.random.random()
        if kind < 0.03:
            return [self.random.randint(200, 500), 200], [self.random.randint(40, 200), 90]
        if kind < 0.06:
            return [self.random.randint(100, 300)], [self.random.randint(1, 2)]
        dimensions = self.one(0, 1, 1, 2, 2, 2, 3, 3, 4)
        limit = (0, 60, 12, 7, 5)[dimensions]
        shape = [self.random.randint(self.chance(0.98), limit) for _ in range(dimensions)]
        chunks = [self.random.randint(1, n + 2) for n in shape]
        return shape, _at_most(40, shape, chunks)

    def edges(self, length: int, multiple: int) -> list[int]:
        """Draw the lengths of chunks along a rectilinear dimension."""
        edges: list[int] = []
        while sum(edges) < length or not edges:
            edges.append(multiple * self.random.randint(1, max(1, length // multiple)))
            if len(edges) == 5:
                edges.append(multiple * max(1, math.ceil((length - sum(edges)) / multiple)))
        if multiple == 1 and sum(edges) > length:
            edges[-1] -= sum(edges) - length
        return [edge for edge in edges if edge]

    def transpose(self, dimensions: int) -> dict[str, Any]:
        order = self.random.sample(range(dimensions), dimensions)
        name = self.one("transpose", "transpose", "differential.transpose")
        return {"name": name, "configuration": {"order": order}}

    def v3_codecs(self, dtype: Any, dimensions: int, *, inner: bool = False) -> dict[str, Any]:
        filters: list[Any] = []
        if dimensions and self.chance(0.25):
            filters.append(self.transpose(dimensions))
        if dtype not in VARIABLE and self.chance(0.15):
            filters.append({"name": self.one("differential.reverse", "differential.reverse-async")})
        if dtype in NUMBERS and self.chance(0.1):
            filters.append({"name": "numcodecs.delta", "configuration": {"dtype": dtype}})
        if dtype == "bool" and self.chance(0.2) and not inner:
            filters.append({"name": "numcodecs.packbits", "configuration": {}})
        name = self.one("bytes", "bytes", "bytes", "bytes", "differential.bytes-single")
        name = self.one(name, name, "differential.bytes-batched", "differential.bytes-partial")
        serializer = {"name": name, "configuration": {"endian": self.one("little", "big")}}
        if dtype in VARIABLE:
            serializer = {"name": "vlen-utf8" if dtype == "str" else "vlen-bytes"}
        compressors = [self.compressor() for _ in range(self.one(0, 1, 1, 1, 2, 3))]
        if dtype not in VARIABLE and self.chance(0.2):
            # These do not decode to what was encoded, so they must be decoded last.
            own = self.one("zstd-single", "gzip-sync", "crc32c-decode")
            compressors.insert(0, self.bytes_codec(f"differential.{own}"))
        return {"filters": filters, "serializer": serializer, "compressors": compressors}

    def compressor(self) -> dict[str, Any]:
        name = self.one(
            *("zstd", "zstd", "zstd", "gzip", "blosc", "crc32c", "crc32c"),
            *("numcodecs.zlib", "numcodecs.lz4", "numcodecs.bz2", "numcodecs.fletcher32"),
            *("numcodecs.crc32", "numcodecs.shuffle", "numcodecs.adler32"),
            *("differential.flip", "differential.flip-async", "differential.flip-batched"),
        )
        return self.bytes_codec(name)

    def bytes_codec(self, name: str) -> dict[str, Any]:
        configuration: dict[str, Any] = {}
        if "zstd" in name:
            configuration = {"level": self.one(0, 3), "checksum": self.chance(0.5)}
        elif "gzip" in name:
            configuration = {"level": 1}
        elif name == "blosc":
            configuration = {"cname": self.one("lz4", "zstd", "zlib"), "clevel": 5}
            configuration |= {"shuffle": self.one("noshuffle", "shuffle", "bitshuffle")}
            configuration |= {"typesize": self.one(1, 2, 4), "blocksize": 0}
        elif name == "numcodecs.shuffle":
            configuration = {"elementsize": self.one(1, 2, 4)}
        return {"name": name, "configuration": configuration}

    def sharding(self, dtype: Any, chunks: list[int], *, nested: bool) -> dict[str, Any]:
        chain = self.v3_codecs(dtype, len(chunks), inner=True)
        codecs = [*chain["filters"], chain["serializer"], *chain["compressors"]]
        if nested:
            smaller = list(chunks)
            axis = self.random.randrange(len(chunks))
            smaller[axis] = self.one(
                *(d for d in range(1, chunks[axis] + 1) if chunks[axis] % d == 0)
            )
            codecs = [self.sharding(dtype, smaller, nested=self.chance(0.1))]
        own = self.one("differential.sharding-single", "differential.sharding-partial")
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        return {
            "name": own if self.chance(0.1) else "sharding_indexed",
            "configuration": {
                "chunk_shape": chunks,
                "codecs": codecs,
                "index_codecs": [little, {"name": "crc32c"}] if self.chance(0.8) else [little],
                "index_location": self.one("start", "end"),
            },
        }

    def v2_codecs(self, dtype: Any) -> dict[str, Any]:
        filters: list[Any] = []
        if dtype in NUMBERS and self.chance(0.3):
            filters.append({"id": "delta", "dtype": dtype})
        if dtype in NUMBERS and "f" in dtype and self.chance(0.2):
            filters.append({"id": "quantize", "digits": 1, "dtype": dtype})
        if dtype in NUMBERS and "f" not in dtype and self.chance(0.1):
            filters.append({"id": "fixedscaleoffset", "offset": 1, "scale": 2, "dtype": dtype})
        if dtype == "bool" and self.chance(0.3):
            filters.append({"id": "packbits"})
        if dtype not in VARIABLE and self.chance(0.3):
            filters.append(self.one({"id": "shuffle", "elementsize": 2}, {"id": "fletcher32"}))
        if dtype not in VARIABLE and self.chance(0.1):
            filters.append({"id": "differential-flip"})
        compressor = self.one(
            *(None, None, {"id": "zlib", "level": 1}, {"id": "zstd", "level": 1}),
            *({"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, {"id": "lz4"}),
            *({"id": "bz2", "level": 1}, {"id": "gzip", "level": 1}, {"id": "differential-flip"}),
        )
        return {"filters": filters, "compressors": compressor}

    def written(self, shape: list[int]) -> list[list[list[int]]]:
        """Draw the regions to write: everything, some parts, or nothing."""
        whole = [[0, n] for n in shape]
        if self.chance(0.6):
            return [whole]
        return [[self.box(n) for n in shape] for _ in range(self.one(0, 1, 2, 3))]

    def box(self, length: int) -> list[int]:
        return sorted(self.random.randint(0, length) for _ in range(2))

    def damage(self, array: dict[str, Any]) -> dict[str, Any]:
        kinds = ["truncate", "truncate", "truncate", "empty", "extend"]
        kinds += ["delete"] * 2 + ["flip"] * 4
        if any(word in str(array) for word in FRAGILE) or array["dtype"] in VARIABLE:
            kinds = kinds[:-4]
        if "blosc" in str(array):
            kinds = kinds[3:]
        return {
            "kind": self.one(*kinds),
            "chunk": self.number(),
            "at": self.one(0.0, 1.0, self.random.random(), self.random.random()),
        }

    # The store and the settings

    def store(self) -> dict[str, Any]:
        kind = self.one(*STORES, "memory", "local", "local", "zip")
        count = self.one(0, 0, 0, 1, 2, 3)
        store: dict[str, Any] = {
            "kind": kind,
            "wrappers": [self.one(*WRAPPERS) for _ in range(count)],
            "layout": self.number(),
        }
        if self.chance(0.06):
            store["fails"] = {"chunk": self.number(), "error": self.one(*ERRORS)}
        if "references" in kind and self.chance(0.12):
            store["wrong"] = self.one("dangling", "overrun")
        return store

    def settings(self) -> dict[str, Any]:
        return {
            "codec_pipeline.path": f"zarr.core.codec_pipeline.{self.one(*PIPELINES)}",
            "codec_pipeline.batch_size": self.one(1, 1, 2, 7, 100),
            "codec_pipeline.max_workers": self.one(None, 1, 2, 8),
            "threading.max_workers": self.one(None, None, 1, 4),
            "async.concurrency": self.one(1, 3, 10, 10, 100),
            "array.order": self.one("C", "F"),
            "array.write_empty_chunks": self.chance(0.3),
            "array.read_missing_chunks": self.chance(0.9),
            "array.sharding_coalesce_max_gap_bytes": self.one(0, 10, 1 << 20),
            "array.sharding_coalesce_max_bytes": self.one(1, 100, 16 << 20),
        }

    # What is done with the array

    def step(self, array: dict[str, Any], writes: bool) -> dict[str, Any]:
        shape = array["shape"]
        if writes and self.chance(0.4):
            return self.write(array)
        if self.chance(0.05):
            return {"do": "threads", "selections": [self.basic(shape) for _ in range(6)]}
        if self.chance(0.03):
            return {"do": "count"}
        how, selection = self.selection(shape)
        step = {"do": "get", "how": how, "selection": selection}
        if isinstance(array["dtype"], list) and how != "item" and self.chance(0.3):
            step["fields"] = self.one("a", "b", ["a"], ["b", "a"])
        if how != "item" and self.chance(0.2):
            step["out"] = self.one(
                *({"order": "C"}, {"order": "F"}, {"strided": True}, {"read_only": True}),
                *({"dtype": "<f8"}, {"dtype": ">i2"}, {"dtype": "O"}, {"short": True}),
            )
        return step

    def write(self, array: dict[str, Any]) -> dict[str, Any]:
        shape = array["shape"]
        if shape and self.chance(0.05):
            return {"do": "resize", "shape": [max(1, n + self.one(-2, 0, 3)) for n in shape]}
        if shape and self.chance(0.05):
            return {"do": "append", "data": self.number(), "rows": self.random.randint(1, 3)}
        how, selection = self.selection(shape)
        value = self.one("scalar", "array", "array", "fill")
        return {
            "do": "set",
            "how": how,
            "selection": selection,
            "value": value,
            "data": self.number(),
        }

    def selection(self, shape: list[int]) -> tuple[str, Any]:
        how = self.one(
            *("whole", "item", "item", "basic", "basic", "orthogonal", "orthogonal"),
            *("coordinate", "mask", "block"),
        )
        if not shape and how in ("coordinate", "mask", "block"):
            how = "basic"
        if how == "whole":
            return "basic", ["..."]
        if how == "orthogonal":
            return how, [self.axis(n) for n in shape]
        if how == "coordinate":
            count = self.random.randint(0, 6)
            return how, [[self.index(n) for _ in range(count)] for n in shape]
        if how == "mask":
            return how, {"density": self.one(0.0, 0.1, 0.5, 1.0), "seed": self.number()}
        if how == "block":
            return how, [self.block() for _ in shape]
        return how, self.basic(shape)

    def basic(self, shape: list[int]) -> list[Any]:
        parts: list[Any] = [self.index(n) if self.chance(0.25) else self.slice(n) for n in shape]
        if self.chance(0.25):
            start, stop = sorted(self.random.randint(0, len(parts)) for _ in range(2))
            parts[start:stop] = ["..."]
        elif self.chance(0.15):
            del parts[self.random.randint(0, len(parts)) :]
        return parts

    def axis(self, length: int) -> Any:
        kind = self.random.random()
        if kind < 0.35:
            return self.slice(length)
        if kind < 0.5:
            return self.index(length)
        if kind < 0.65:
            return [self.chance(0.5) for _ in range(length)]
        indexes = [self.index(length) for _ in range(self.random.randint(0, 5))]
        return sorted(indexes) if self.chance(0.5) else indexes

    def index(self, length: int) -> int:
        if length == 0 or self.chance(0.01):
            return length
        return self.random.randint(-length if self.chance(0.2) else 0, length - 1)

    def slice(self, length: int) -> dict[str, Any]:
        if self.chance(0.25):
            return {"slice": [None, None, None]}
        start, stop = self.box(length + 1)
        if self.chance(0.1):
            start -= length
        step = self.one(None, None, None, 1, 2, 3, 5, length + 1)
        if self.chance(0.03):
            step = self.one(-1, 0, -2)
        return {"slice": [self.one(None, start, start), self.one(None, stop, stop), step]}

    def block(self) -> Any:
        if self.chance(0.5):
            return self.one(0, 0, 0, 1, -1)
        return {"slice": [self.one(None, 0, 1), self.one(None, 1, 2), self.one(None, None, 1)]}
