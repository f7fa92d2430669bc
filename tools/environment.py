"""Virtual environments under `build/`, made once and kept up to date.

This runs before anything is installed, so it needs the standard library alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import children, installer

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"

# Variables that would configure what is tested, or lead a program to another environment.
_FOREIGN = (
    "ZARR_", "PYTEST_", "COVERAGE_", "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV",
)  # fmt: skip
_PROBE = "import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 12))"


class SetupError(Exception):
    """Something could not be installed, or is not there; the message is for the user."""


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other run is at work in this checkout, and keep others waiting."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run in this checkout to end ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment."""

    path: Path
    """Where it lies."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def bin(self) -> Path:
        """The folder with its programs."""
        return self.path / "bin"

    @property
    def packages(self) -> Path:
        """The folder with its packages."""
        return next((self.path / "lib").glob("python3.*")) / "site-packages"

    @staticmethod
    def running() -> Environment | None:
        """Return the environment that this program runs in, if it is one of those made here."""
        prefix = Path(sys.prefix)
        return Environment(prefix) if prefix.parent == BUILD else None

    @staticmethod
    def of(interpreter: str) -> Environment:
        """Make `build/env-3.12` for an interpreter, given by its path, name or version, unless it is there."""
        path = shutil.which(interpreter) or shutil.which(f"python{interpreter}")
        probe = [path or interpreter, "-c", _PROBE]
        try:
            done = subprocess.run(probe, capture_output=True, text=True, check=False)
        except OSError as error:
            raise SetupError(f"{interpreter} cannot be run: {error}") from error
        version = done.stdout.strip()
        if done.returncode:
            what = f"is Python {version}" if version else f"cannot be run: {done.stderr.strip()}"
            raise SetupError(f"{interpreter} {what}; Python 3.12 or newer is needed")
        environment = Environment(BUILD / f"env-{version.rpartition('.')[0]}")
        environment.make(probe[0], version)
        return environment

    def beside(self, name: str) -> Environment:
        """Make another one for the same interpreter, `build/env-3.12-NAME`, unless it is there."""
        other = Environment(self.path.with_name(f"{self.path.name}-{name}"))
        other.make(str(self.python), platform.python_version())
        return other

    def make(self, interpreter: str, version: str) -> None:
        """Make it, with a recent pip, unless it is there for this version of Python."""
        stamp = self.path / ".made-with"
        if stamp.exists() and stamp.read_text() == version and self.python.exists():
            return
        with _step(f"making {self.path.name} with Python {version}"):
            shutil.rmtree(self.path, ignore_errors=True)
            log = f"{self.path.name}-make"
            _call([interpreter, "-m", "venv", "--without-pip", str(self.path)], log)
            _call([*_installer(interpreter, self.python), "pip>=25.1"], log)
            stamp.write_text(version)

    def install(self, what: str, arguments: Sequence[str], *, made_of: Iterable[Path] = ()) -> bool:
        """Install packages, unless the same ones were installed before; tell whether anything was.

        `what` says to the user what they are, and `arguments` are those of `pip install`. They are installed
        again when the files and folders change that they are `made_of`.
        """
        wanted = digest([CONSTRAINTS, *made_of], *arguments)
        label = re.sub(r"\W+", "-", what)
        stamp = self.path / f".installed-{label}"
        if stamp.exists() and stamp.read_text() == wanted:
            return False
        stamp.unlink(missing_ok=True)
        pip = [*installer.pip(str(self.python)), "install", "--constraint", str(CONSTRAINTS)]
        with _step(f"installing {what}"):
            _call([*pip, *arguments], f"{self.path.name}-{label}")
        stamp.write_text(wanted)
        return True

    def variables(self, **extra: str) -> dict[str, str]:
        """Return this program's variables, for what is tested here, without those that would configure it."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}
        return kept | {"PATH": f"{self.bin}{os.pathsep}{kept.get('PATH', '')}"} | extra


def _installer(interpreter: str, target: Path) -> list[str]:
    """Return the command that installs into an environment that has no pip."""
    try:
        return [*installer.pip(interpreter), "--python", str(target), "install"]
    except LookupError as error:
        if uv := shutil.which("uv"):
            return [uv, "pip", "install", "--python", str(target)]
        raise SetupError(f"{error}, or put uv on the path") from None


def digest(paths: Iterable[Path], *words: str) -> str:
    """Hash words, and the contents of files and of folders; what is not there counts as such."""
    hashed = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                hashed.update(f"\0{file}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Tell the user what is being done, and how long it took."""
    began = time.monotonic()
    print(f"{what} ...", flush=True)
    yield
    print(f"    done in {time.monotonic() - began:.0f} s", flush=True)


def _call(command: Sequence[str], name: str) -> None:
    log = BUILD / "reports" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if children.run(command, cwd=ROOT, log=log):
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SetupError(f"failed: {' '.join(command)}\n{last}")
