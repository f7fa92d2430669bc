"""Small programs that read the same values with libraries that use zarr. `checks/clients.py` runs them.

Each takes the address of a server, and returns the values of `field`. A new one is a function under `@program`, which
names the modules to import before the clock starts. The table shows the version of the first.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

type Run = Callable[[str], Any]
"""Takes the address of the server, and returns an array."""

PROGRAMS: dict[str, Program] = {}
SHAPE, CHUNKS = (128, 128, 256), (4, 32, 64)
"""16 MiB in 512 chunks."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the packages that it needs."""

    run: Run
    packages: tuple[str, ...]

    @property
    def title(self) -> str:
        """What it does, as its docstring says."""
        return str(self.run.__doc__)


def program(*packages: str) -> Callable[[Run], Run]:
    """Register a program under the name of its function."""

    def register(run: Run) -> Run:
        PROGRAMS[run.__name__.replace("_", "-")] = Program(run, packages)
        return run

    return register


# ---- xarray ------------------------------------------------------------------------------------------


@program("xarray")
def xarray(url: str) -> Any:
    """xarray over HTTP, without dask"""
    import xarray as xr

    dataset = xr.open_zarr(f"{url}/field.zarr", chunks=None)
    return dataset["temperature"].values


@program("xarray", "dask.array")
def xarray_threads(url: str) -> Any:
    """xarray over HTTP, on dask's threads"""
    import xarray as xr

    dataset = xr.open_zarr(f"{url}/field.zarr", chunks={"time": 32, "lat": -1, "lon": -1})
    return dataset["temperature"].compute(scheduler="threads", num_workers=2).values


@program("xarray", "dask.array", "dask.multiprocessing")
def xarray_processes(url: str) -> Any:
    """xarray over HTTP, on dask's processes"""
    import xarray as xr

    chunks = {"time": 32, "lat": -1, "lon": -1}
    dataset = xr.open_dataset(f"{url}/field.zarr", engine="zarr", chunks=chunks)
    return dataset["temperature"].compute(scheduler="processes", num_workers=2).values


@program("xarray", "distributed")
def xarray_cluster(url: str) -> Any:
    """xarray over HTTP, on a cluster of two worker processes"""
    import xarray as xr
    from distributed import Client, LocalCluster

    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**workers) as cluster, Client(cluster):
        dataset = xr.open_zarr(f"{url}/field.zarr", chunks={"time": 32, "lat": -1, "lon": -1})
        return dataset["temperature"].values


@program("xarray", "obstore")
def xarray_obstore(url: str) -> Any:
    """xarray over obstore"""
    import xarray as xr
    from obstore.store import HTTPStore

    from zarr.storage import ObjectStore

    http = HTTPStore.from_url(f"{url}/field.zarr", client_options={"allow_http": True})
    dataset = xr.open_zarr(ObjectStore(http, read_only=True), chunks=None)
    return dataset["temperature"].values


# ---- references --------------------------------------------------------------------------------------


def open_references(references: dict[str, Any] | str, chunks: dict[str, int] | None = None) -> Any:
    """Open references to files on an HTTP server with xarray."""
    import xarray as xr

    asynchronous = {"asynchronous": True}
    storage = {"fo": references, "remote_protocol": "http", "remote_options": asynchronous}
    backend = {"consolidated": False, "storage_options": storage}
    return xr.open_dataset("reference://", engine="zarr", chunks=chunks, backend_kwargs=backend)


@program("kerchunk", "kerchunk.hdf", "xarray")
def kerchunk(url: str) -> Any:
    """kerchunk's references to a NetCDF file, opened with xarray"""
    from kerchunk.hdf import SingleHdf5ToZarr

    references = SingleHdf5ToZarr(f"{url}/field.nc").translate()
    return open_references(references)["temperature"].values


@program("kerchunk", "kerchunk.combine", "kerchunk.hdf", "xarray")
def kerchunk_files(url: str) -> Any:
    """kerchunk's references to two NetCDF files, combined"""
    from kerchunk.combine import MultiZarrToZarr
    from kerchunk.hdf import SingleHdf5ToZarr

    files = [f"{url}/first.nc", f"{url}/second.nc"]
    parts = [SingleHdf5ToZarr(file, inline_threshold=4000).translate() for file in files]
    combined = MultiZarrToZarr(parts, concat_dims=["time"], remote_protocol="http").translate()
    return open_references(combined)["temperature"].values


@program("xarray", "dask.array", "dask.multiprocessing")
def xarray_references(url: str) -> Any:
    """xarray over references in a file, on dask's processes"""
    chunks = {"time": 32, "lat": -1, "lon": -1}
    dataset = open_references(f"{url}/references.json", chunks)
    return dataset["temperature"].compute(scheduler="processes", num_workers=2).values


@program("virtualizarr", "virtualizarr.parsers", "xarray")
def virtualizarr(url: str) -> Any:
    """VirtualiZarr's kerchunk references, opened with xarray"""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import HTTPStore
    from virtualizarr import open_virtual_dataset
    from virtualizarr.parsers import HDFParser

    http = HTTPStore.from_url(url, client_options={"allow_http": True})
    registry = ObjectStoreRegistry({url: http})
    virtual = open_virtual_dataset(f"{url}/field.nc", registry=registry, parser=HDFParser())
    return open_references(virtual.vz.to_kerchunk(format="dict"))["temperature"].values


@program("virtualizarr", "virtualizarr.parsers", "xarray")
def virtualizarr_store(url: str) -> Any:
    """VirtualiZarr's `ManifestStore`, opened with xarray"""
    import xarray as xr
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import HTTPStore
    from virtualizarr.parsers import HDFParser

    http = HTTPStore.from_url(url, client_options={"allow_http": True})
    store = HDFParser()(url=f"{url}/field.nc", registry=ObjectStoreRegistry({url: http}))
    dataset = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None)
    return dataset["temperature"].values


# ---- other libraries ---------------------------------------------------------------------------------


@program("icechunk", "icechunk.xarray", "xarray")
def icechunk(_: str) -> Any:
    """An icechunk repository in memory, written and read with xarray"""
    import icechunk
    import xarray as xr
    from icechunk.xarray import to_icechunk

    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    to_icechunk(field(), session, encoding={"temperature": {"chunks": CHUNKS}})
    session.commit("the field")
    store = repository.readonly_session("main").store
    return xr.open_zarr(store, consolidated=False, chunks=None)["temperature"].values


@program("icechunk", "xarray")
def icechunk_http(url: str) -> Any:
    """An icechunk repository over HTTP, read with xarray"""
    import icechunk
    import xarray as xr

    storage = icechunk.http_storage(f"{url}/field.icechunk", opts={"allow_http": "true"})
    store = icechunk.Repository.open(storage).readonly_session("main").store
    return xr.open_zarr(store, consolidated=False, chunks=None)["temperature"].values


@program("anndata")
def anndata(url: str) -> Any:
    """anndata over HTTP, all of it: `read_zarr`"""
    import anndata as ad

    import zarr

    group = zarr.open_group(f"{url}/field.anndata", mode="r")
    return ad.io.read_zarr(group).X.reshape(SHAPE)


@program("anndata", "dask.array")
def anndata_lazy(url: str) -> Any:
    """anndata over HTTP, on dask's threads: `read_elem_lazy`"""
    from anndata.experimental import read_elem_lazy

    import zarr

    group = zarr.open_group(f"{url}/field.anndata", mode="r")
    lazy = read_elem_lazy(group["X"], chunks=(32, 32768))
    return lazy.compute().reshape(SHAPE)


@program("anndata", "scipy.sparse")
def anndata_backed(url: str) -> Any:
    """anndata over HTTP, a backed sparse matrix and an element"""
    from anndata.io import read_elem, sparse_dataset

    import zarr

    layers = zarr.open_group(f"{url}/field.anndata/layers", mode="r")
    warm, cold = sparse_dataset(layers["warm"]), read_elem(layers["cold"])
    return (warm[:].toarray() + cold).reshape(SHAPE)


@program("zarrs")
def zarrs(url: str) -> Any:
    """The codec pipeline of zarrs, over HTTP"""
    import zarr

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(f"{url}/field.zarr/temperature", mode="r")[:]


@program("cupy")
def gpu(url: str) -> Any:
    """Buffers on a GPU, over HTTP"""
    import zarr

    with zarr.config.enable_gpu():
        return zarr.open_array(f"{url}/field.zarr/temperature", mode="r")[:].get()


# ---- what they read, and how they are run ------------------------------------------------------------


def field() -> Any:
    """Temperatures on a grid: a dataset of xarray."""
    import numpy as np
    import xarray as xr

    time, lat, lon = np.ogrid[: SHAPE[0], -90 : 90 : SHAPE[1] * 1j, 0 : 360 : SHAPE[2] * 1j]
    waves = 25 * np.cos(np.radians(lat)) + 8 * np.sin(np.radians(lon + 3 * time))
    noise = np.random.default_rng(1714).normal(size=SHAPE)
    values = np.round(waves + noise, 1).astype(np.float32) + np.float32(0)  # no negative zeros
    axes = {"time": time.ravel(), "lat": lat.ravel(), "lon": lon.ravel()}
    return xr.Dataset({"temperature": (list(axes), values)}, coords=axes)


def make(folder: str, url: str) -> dict[str, Any]:
    """Write the field in all formats, and tell what its values are."""
    import anndata as ad
    import icechunk
    import numpy as np
    from icechunk.xarray import to_icechunk
    from kerchunk.hdf import SingleHdf5ToZarr
    from scipy.sparse import csr_array

    dataset, place = field(), Path(folder)
    chunks = {"temperature": {"chunks": CHUNKS}}
    dataset.to_zarr(place / "field.zarr", zarr_format=3, encoding=chunks)

    deflated = {"temperature": {"chunksizes": CHUNKS, "zlib": True}}
    halves = dataset.isel(time=slice(64)), dataset.isel(time=slice(64, None))
    for name, part in zip(("field", "first", "second"), (dataset, *halves), strict=True):
        part.to_netcdf(place / f"{name}.nc", engine="h5netcdf", encoding=deflated)
    with (place / "field.nc").open("rb") as file:
        references = SingleHdf5ToZarr(file, url=f"{url}/field.nc").translate()
    (place / "references.json").write_text(json.dumps(references))

    storage = icechunk.local_filesystem_storage(str(place / "field.icechunk"))
    session = icechunk.Repository.create(storage).writable_session("main")
    to_icechunk(dataset, session, encoding=chunks)
    session.commit("the field")

    values = dataset["temperature"].values
    matrix = values.reshape(SHAPE[0], -1)
    warm = np.where(matrix > 30, matrix, np.float32(0))
    layers = {"warm": csr_array(warm), "cold": matrix - warm}
    data = ad.AnnData(matrix, layers=layers)
    data.write_zarr(place / "field.anndata", chunks=(4, 2048))
    return {"digest": digest(values)}


def digest(values: Any) -> str:
    """Hash values, their shape and their type."""
    content = f"{values.shape} {values.dtype.str} ".encode() + values.tobytes()
    return hashlib.sha256(content).hexdigest()


def run(name: str, url: str) -> dict[str, Any]:
    """Run a program in this process."""
    import zarr

    packages = PROGRAMS[name].packages
    try:
        for package in packages:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != "cupy":  # whose wheels depend on the GPU
            raise
        return {"zarr": zarr.__version__, "skipped": f"skipped: {error}"}
    began = time.perf_counter()
    values = PROGRAMS[name].run(url)
    seconds = time.perf_counter() - began
    return {
        "zarr": zarr.__version__,
        "version": importlib.metadata.version(packages[0]),
        "seconds": seconds,
        "digest": digest(values),
    }


if __name__ == "__main__":
    task, output, *arguments = sys.argv[1:]
    result = make(*arguments) if task == "make" else run(task, *arguments)
    Path(output).write_text(json.dumps(result))
