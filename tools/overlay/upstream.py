"""Finding the release that the overlay is merged into."""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools import installer
from tools.overlay.problems import OverlayError, Problem

type Kind = Literal["sdist", "wheel"]
KINDS: tuple[Kind, ...] = ("sdist", "wheel")

_VERSION = re.compile(r"^__version__ = version = ['\"]([^'\"]+)['\"]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Release:
    """A release of zarr, unpacked."""

    root: Path
    """The folder that holds the package."""
    version: str | None
    """Its version, where it says so: a checkout does not."""
    info: Path | None = None
    """The `dist-info` folder, where it is an installed or unpacked wheel."""


def at(path: Path, *, unpack_into: Path) -> Release:
    """Take the release at a path that someone gave.

    It may be a wheel, a source distribution, or a folder: of an unpacked one, of a checkout, of the package,
    or one that holds the package. An archive is unpacked into `unpack_into`.
    """
    if path.is_file():
        path = unpack(path, unpack_into)
    for root in (path, path / "src", path.parent):
        if (root / "zarr" / "__init__.py").is_file() and (
            root != path.parent or path.name == "zarr"
        ):
            version_file = root / "zarr" / "_version.py"
            match = _VERSION.search(version_file.read_text()) if version_file.exists() else None
            info = next(iter(sorted(root.glob("zarr-*.dist-info"))), None)
            return Release(root, match[1] if match else None, info)
    raise OverlayError(
        [Problem(str(path), "there is no zarr there", "name a wheel, an sdist or a source folder")]
    )


def installed() -> Release:
    """Take the release that is installed in this environment, as the registry's wheel holds it."""
    try:
        found = importlib.metadata.distribution("zarr")
    except importlib.metadata.PackageNotFoundError:
        what = "has no zarr, which the overlay is merged into"
        remedy = "build with isolation, or install what pyproject.toml lists as build requirements"
        raise OverlayError([Problem("the build environment", what, remedy)]) from None
    root = Path(str(found.locate_file("")))
    return Release(root, found.version, root / f"zarr-{found.version}.dist-info")


def fetch(version: str, kind: Kind, into: Path, *, sha256: str | None = None) -> Path:
    """Download the archive of a release from the package registry, once, which must hash to `sha256`."""
    name = f"zarr-{version}-py3-none-any.whl" if kind == "wheel" else f"zarr-{version}.tar.gz"
    archive = into / name
    if not archive.exists():
        into.mkdir(parents=True, exist_ok=True)
        only = ["--only-binary", ":all:"] if kind == "wheel" else ["--no-binary", "zarr"]
        target = ["--dest", str(into), f"zarr=={version}"]
        try:
            command = [*installer.pip(), "download", "--quiet", "--no-deps", *only, *target]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stderr.strip() or done.stdout.strip()
        except LookupError as error:
            said = str(error)
        if not archive.exists():
            what = f"cannot be downloaded with pip: {said}"
            remedy = "check that pip can reach the registry, or pass --upstream"
            raise OverlayError([Problem(name, what, remedy)])
    if sha256 and digest(archive) != sha256:
        what = f"hashes to {digest(archive)}, but overlay.lock says {sha256}"
        remedy = "remove it, and do not build before you know where it came from"
        raise OverlayError([Problem(str(archive), what, remedy)])
    return archive


def digest(archive: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a wheel or a source distribution, unless it is there, into `zarr-VERSION` or `zarr-VERSION-sdist`."""
    name, is_wheel = archive.name.removesuffix(".tar.gz"), archive.suffix == ".whl"
    target = into / ("-".join(name.split("-")[:2]) if is_wheel else f"{name}-sdist")
    if target.exists():
        return target
    with _complete(target) as folder:
        if is_wheel:
            shutil.unpack_archive(archive, folder, "zip")
        else:
            shutil.unpack_archive(archive, folder, "gztar", filter="data")
            (inner,) = folder.iterdir()  # `zarr-VERSION`
            for path in inner.iterdir():
                path.rename(folder / path.name)
            inner.rmdir()
    return target


def keep(release: Release, into: Path) -> Path:
    """Copy an installed release, so that later merges have it, to where `unpack` would put the wheel."""
    target = into / f"zarr-{release.version}"
    if not target.exists():
        with _complete(target) as folder:
            for source in filter(None, (release.root / "zarr", release.info)):
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / source.name, ignore=ignore)
    return target


@contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """Give a folder that takes the name of the target once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as folder:
        made = Path(folder) / target.name
        made.mkdir()
        yield made
        made.rename(target)
