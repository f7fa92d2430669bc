"""The environments that the measurements run in, under `build/`.

`demo-stock` and `demo-fork` hold the same packages at the same versions and differ in zarr alone. So does
`demo-before`, where something else than the release is compared with.
`demo-peers` holds the release beside the other libraries that are measured.
`demo-tools` serves, draws and prints, so that none of that is imported where a read is timed.
Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import platform
import sys
import tomllib
from typing import TYPE_CHECKING

from tools.environment import BUILD, ROOT, Environment

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = Environment(BUILD / "demo-tools")
STOCK = Environment(BUILD / "demo-stock")
FORK = Environment(BUILD / "demo-fork")
BEFORE = Environment(BUILD / "demo-before")
PEERS = Environment(BUILD / "demo-peers")

# `zarr.testing`, whose `LatencyStore` is measured, imports pytest.
BESIDE_ZARR = ("aiohttp", "dask[array]", "pytest")
OTHER_LIBRARIES = ("tensorstore==0.1.86", "zarrs==0.2.3")
FOR_THE_TOOLS = ("aiohttp", "matplotlib", "rich")

FORK_IS_BUILT_FROM = (
    "pyproject.toml",
    "overlay.lock",
    "src",
    "tools/build_hook.py",
    "tools/overlay",
)


def prepare_tools() -> None:
    """Make the environment of what is not measured, unless it is up to date."""
    TOOLS.make(sys.executable, platform.python_version())
    TOOLS.install("the server and the display", FOR_THE_TOOLS)


def prepare_measured(fork: Path, before: Path | None = None, *, peers: bool = False) -> None:
    """Make the environments of the release and of the fork, unless they are up to date.

    Parameters
    ----------
    fork : Path
        A checkout of the fork or of zarr-python, or a wheel built from one. Only its zarr is taken:
        all that zarr needs was installed with the release, here as there.
    before : Path, optional
        The same, for what the fork is compared with in place of the release.
    peers : bool
        Make that of other libraries as well.
    """
    released = release()
    others = {FORK: fork} if before is None else {FORK: fork, BEFORE: before}
    for environment in (STOCK, *others, *[PEERS] * peers):
        environment.make(sys.executable, platform.python_version())
        what = f"{released} in {environment.path.name}"
        environment.install(what, [released.replace("==", "[remote]=="), *BESIDE_ZARR])
    if peers:
        PEERS.install("other libraries", OTHER_LIBRARIES)
    for environment, path in others.items():
        parts = [path] if path.is_file() else [path / name for name in FORK_IS_BUILT_FROM]
        alone = ("--no-deps", "--force-reinstall", str(path))
        # One name, whatever is installed: what was there before is not there any more.
        what = f"zarr in {environment.path.name}"
        environment.install(what, alone, made_of=[part for part in parts if part.exists()])


def release() -> str:
    """The release that the fork is made from, `zarr==…`, as `pyproject.toml` pins it."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    (pinned,) = (requirement for requirement in requires if requirement.startswith("zarr=="))
    return str(pinned)
