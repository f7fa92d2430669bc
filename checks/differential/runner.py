"""Run cases with the zarr of this environment: reads JSON lines, prints JSON lines."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numcodecs
import numpy as np

import zarr
from checks.differential import foreign, stores
from zarr.buffer.cpu import NDBuffer
from zarr.core.dtype import VariableLengthBytes
from zarr.storage import LocalStore

SHOWN = 48
"""Longest data, in bytes, that a report contains in full; longer data is hashed."""


def main() -> None:
    """Answer each case with its results, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Other output must not be taken for answers.
    warnings.simplefilter("ignore")
    logging.disable()
    foreign.register()
    print(json.dumps({"zarr": zarr.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        folder, case = Path(request["folder"]), request["case"]
        try:
            if request["make"]:
                make(case, folder / "made")
        except Exception as error:  # noqa: BLE001, the release refuses some arrays
            answer: dict[str, Any] = {"refused": f"{type(error).__name__}: {error}"[:200]}
        else:
            try:
                answer = {"results": run(case, folder, request["side"], request["url"])}
            except Exception:  # noqa: BLE001, a bug of the test itself
                answer = {"results": [], "died": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


# The array


def make(case: dict[str, Any], folder: Path) -> None:
    """Write the array of a case to a directory, and damage it."""
    array = case["array"]
    dtype = data_type(array["dtype"])
    shape = tuple(array["shape"])
    all_values = values(array["dtype"], shape, array["data"])
    fill: dict[str, Any] = {}
    if array["fill"] == "drawn":
        fill = {"fill_value": values(array["dtype"], (1,), array["data"] + 1)[0]}
    elif array["fill"] != "default":
        fill = {"fill_value": None if array["fill"] == "none" else float("nan")}
    with zarr.config.set({"array.rectilinear_chunks": True}):
        made = zarr.create_array(
            LocalStore(folder),
            name=array["name"] or None,
            zarr_format=array["zarr_format"],
            shape=shape,
            dtype=dtype,
            chunks=array["chunks"] if _uneven(array) else tuple(array["chunks"]),
            config={"write_empty_chunks": array["write_empty_chunks"]},
            **fill,
            **_codecs(array),
            **_keys(array),
        )
        for box in case["written"]:
            region = tuple(slice(*limits) for limits in box)
            made[region] = all_values[region]
    if case["damage"]:
        damage(folder, **case["damage"])


def _uneven(array: dict[str, Any]) -> bool:
    return any(isinstance(chunks, list) for chunks in array["chunks"])


def _codecs(array: dict[str, Any]) -> dict[str, Any]:
    if array["zarr_format"] == 3:
        return {name: array[name] for name in ("filters", "serializer", "compressors")}
    filters = [numcodecs.get_codec(dict(each)) for each in array["filters"]]
    compressor = array["compressors"] and numcodecs.get_codec(dict(array["compressors"]))
    if array["dtype"] in ("str", "bytes"):
        codec = numcodecs.VLenUTF8 if array["dtype"] == "str" else numcodecs.VLenBytes
        filters = [codec()]
    return {"filters": filters, "compressors": compressor, "order": array["order"]}


def _keys(array: dict[str, Any]) -> dict[str, Any]:
    v2 = array["zarr_format"] == 2 or array["v2_keys"]
    encoding = {"name": "v2" if v2 else "default", "separator": array["separator"]}
    return {"chunk_key_encoding": encoding}


def data_type(named: Any) -> Any:
    """Return the data type that a case names."""
    if named == "str":
        return str
    if named == "bytes":
        return VariableLengthBytes()
    return np.dtype([tuple(field) for field in named] if isinstance(named, list) else named)


def values(named: Any, shape: tuple[int, ...], seed: int) -> Any:
    """Return reproducible data in which one value is frequent."""
    random = np.random.default_rng(seed)
    numbers = np.asarray(random.integers(0, 100, shape) * random.integers(0, 2, shape))
    if named == "str":
        made = np.array(["", *(f"{n}ä" * (n % 4) for n in range(1, 100))], dtype=object)
        return made[numbers.ravel()].reshape(shape)
    if named == "bytes":
        found = np.empty(100, dtype=object)
        found[:] = [bytes([n]) * (n % 5) for n in range(100)]
        return found[numbers.ravel()].reshape(shape)
    dtype = data_type(named)
    if dtype.fields:
        made = np.zeros(shape, dtype)
        for number, (name, field) in enumerate(named):
            made[name] = values(field, shape, seed + number)
        return made
    if dtype.kind == "V":
        return (numbers % 251).astype("u1").repeat(dtype.itemsize).view(dtype).reshape(shape)
    if dtype.kind in "mM":
        return (
            numbers.astype("i8").view(f"{dtype.kind}8[{np.datetime_data(dtype)[0]}]").astype(dtype)
        )
    return (numbers % 2 if dtype.kind == "b" else numbers).astype(dtype)


def damage(folder: Path, kind: str, chunk: int, at: float) -> None:
    """Damage the file of one chunk."""
    keys = stores.chunk_keys(folder)
    if not keys:
        return
    file = folder / keys[chunk % len(keys)]
    content = bytearray(file.read_bytes())
    place = int(at * max(0, len(content) - 1))
    if kind == "delete":
        file.unlink()
        return
    if kind == "truncate":
        del content[place:]
    elif kind == "empty":
        content.clear()
    elif kind == "extend":
        content += b"more"
    elif content:
        content[place] ^= 1
    file.write_bytes(content)


# The steps


def run(case: dict[str, Any], folder: Path, side: str, url: str) -> list[Any]:
    """Run the steps of a case, and report their results."""
    own = folder / side
    own.mkdir()
    settings = {"array.rectilinear_chunks": True, **case["settings"]}
    with zarr.config.set(settings):
        place = stores.build(case["store"], folder / "made", own, url, copy=case["writes"])
        mode: Any = "r+" if case["writes"] else "r"
        results: list[Any] = []

        def attempt(work: Any) -> Any:
            try:
                value = work()
            except Exception as error:  # noqa: BLE001, whatever is raised is compared
                results.append(raised(error))
                return None
            results.append(reported(value))
            return value

        array: Any = None

        def opened() -> None:
            nonlocal array
            # References in Parquet cannot be asked for `zarr.json`, so the format has to be known.
            of_parquet = case["store"]["kind"] == "references-parquet"
            array = zarr.open_array(
                place.store,
                path=case["array"]["name"],
                mode=mode,
                zarr_format=case["array"]["zarr_format"] if of_parquet else None,
            )

        attempt(opened)
        wrote = True
        alone: list[str] = []
        for step in case["steps"] if array is not None else ():
            attempt(lambda step=step: perform(array, case["array"]["dtype"], step))
            several = results[-1] if isinstance(results[-1], list) else results[-1:]
            for result in several if side == "stock" else ():
                if "raised" in result:
                    alone = alone or errors_of_chunks(array)
                    result["alone"] = alone
            if step["do"] in ("set", "append", "resize") and "raised" in str(results[-1]):
                wrote = False  # How much was written before the error is unspecified.
                break
        if case["writes"] and wrote:
            attempt(lambda: array[...])
            # gzip stores the time.
            timed = "gzip" in json.dumps(case["array"])
            hashed = (lambda value: "") if timed else _hash
            attempt(lambda: {k: hashed(v) for k, v in sorted(place.contents().items())})
        place.store.close()
        return results


def errors_of_chunks(array: Any) -> list[str]:
    """Return the exceptions that the chunks of an array raise when each is read alone.

    If several chunks are read at once, which of these is raised first depends on timing.
    """
    found: set[str] = set()
    for number, place in enumerate(np.ndindex(*array.cdata_shape)):
        if number == 64:
            break
        try:
            array.blocks[place]
        except Exception as error:  # noqa: BLE001, whatever is raised is compared
            found |= _kinds(error)
    return sorted(found)


def _kinds(error: BaseException) -> set[str]:
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_kinds, error.exceptions))
    return {_name(error)}


def perform(array: Any, dtype: Any, step: dict[str, Any]) -> Any:
    """Do one step."""
    match step["do"]:
        case "get":
            return get(array, dtype, step)
        case "set":
            return put(array, dtype, step)
        case "threads":
            chosen = [selection("basic", each, array) for each in step["selections"]]
            with ThreadPoolExecutor(3) as pool:
                return list(pool.map(lambda each: _or_raised(array, each), chosen))
        case "count":
            return array.nchunks_initialized
        case "resize":
            return array.resize(tuple(step["shape"]))
        case "append":
            return array.append(
                values(dtype, (step["rows"], *array.shape[1:]), step["data"]), axis=0
            )


def _or_raised(array: Any, chosen: Any) -> Any:
    try:
        return reported(array[chosen])
    except Exception as error:  # noqa: BLE001, whatever is raised is compared
        return raised(error)


def get(array: Any, dtype: Any, step: dict[str, Any]) -> Any:
    """Read a selection, possibly into an existing array."""
    chosen = selection(step["how"], step["selection"], array)
    if step["how"] == "item":
        return array[chosen]
    read = getattr(array, f"get_{step['how']}_selection")
    fields = {"fields": step["fields"]} if "fields" in step else {}
    if "out" not in step:
        return read(chosen, **fields)
    # An element of an array of objects is an object too.
    shown = np.asarray(read(chosen, **fields), dtype=object if array.dtype == object else None)
    out = output(shown, dtype, **step["out"])
    returned = read(chosen, out=NDBuffer.from_ndarray_like(out), **fields)
    return [reported(out), reported(returned)]


def output(
    like: np.ndarray[Any, Any],
    named: Any,
    *,
    order: Any = "C",
    dtype: str | None = None,
    strided: bool = False,
    read_only: bool = False,
    short: bool = False,
) -> np.ndarray[Any, Any]:
    """Return an array to read into."""
    shape = (*like.shape[:-1], like.shape[-1] + 1) if short and like.ndim else like.shape
    wide = (*shape[:-1], 2 * shape[-1]) if strided and shape else shape
    out = np.zeros(wide, np.dtype(dtype) if dtype else like.dtype, order)
    out = out[..., ::2] if strided and shape else out
    out.flags.writeable = not read_only
    return out


def put(array: Any, dtype: Any, step: dict[str, Any]) -> None:
    """Write to a selection."""
    chosen = selection(step["how"], step["selection"], array)
    if step["value"] == "fill":
        value = array.fill_value
    elif step["value"] == "scalar":
        value = values(dtype, (1,), step["data"])[0]
    else:
        here = np.empty(array.shape, "i1")
        shape = _shape_of(here, step["how"], chosen)
        value = values(dtype, shape, step["data"])
    if step["how"] == "item":
        array[chosen] = value
    else:
        getattr(array, f"set_{step['how']}_selection")(chosen, value)


def _shape_of(here: Any, how: str, chosen: Any) -> Any:
    """Return the shape that NumPy gives a selection; for blocks, any shape."""
    if how == "block":
        return here.shape
    if how != "orthogonal":
        return here[chosen].shape
    for axis in reversed(range(len(chosen))):
        here = here[(*[slice(None)] * axis, chosen[axis])]
    return here.shape


def selection(how: str, drawn: Any, array: Any) -> Any:
    """Convert a selection from JSON to what zarr accepts."""
    if how == "mask":
        random = Random(drawn["seed"])
        count = int(np.prod(array.shape))
        mask = [random.random() < drawn["density"] for _ in range(count)]
        return np.array(mask, dtype=bool).reshape(array.shape)
    return tuple(_part(part) for part in drawn)


def _part(drawn: Any) -> Any:
    if drawn == "...":
        return ...
    if isinstance(drawn, dict):
        return slice(*drawn["slice"])
    if isinstance(drawn, list):
        boolean = bool(drawn) and isinstance(drawn[0], bool)
        return np.array(drawn, dtype=bool if boolean else int)
    return drawn


# The results


def raised(error: BaseException) -> dict[str, Any]:
    """Report an exception: its type, and those of its members if it is a group."""
    if isinstance(error, BaseExceptionGroup):
        return {"raised": _name(error), "members": sorted(_kinds(error)), "says": str(error)[:200]}
    return {"raised": _name(error), "says": str(error)[:200]}


def reported(value: Any) -> Any:
    """Report a result: its type, its layout, and its contents or their hash."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        return {
            "type": _name(value),
            "dtype": str(value.dtype.descr) if value.dtype.fields else str(value.dtype),
            "shape": value.shape,
            "strides": value.strides,
            "flags": [flags.c_contiguous, flags.f_contiguous, flags.writeable, flags.aligned],
            "content": _content(value),
        }
    if isinstance(value, np.generic):
        return {"type": _name(value), "dtype": str(value.dtype), "content": _content(value)}
    if isinstance(value, dict | list | tuple):
        return value
    return {"type": _name(value), "content": repr(value)}


def _content(value: Any) -> str:
    if value.dtype.kind in "OT" or value.dtype.hasobject:
        shown = repr(value.tolist() if value.ndim else value[()])
        return shown if len(shown) < 500 else _hash(shown.encode())
    data = value.tobytes()
    return data.hex() if len(data) <= SHOWN else _hash(data)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


if __name__ == "__main__":
    main()
