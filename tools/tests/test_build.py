"""Building and installing the package, as those do who use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path

import pytest

from tools import installer
from tools.overlay import upstream
from tools.overlay.project import ROOT, Project
from tools.tests.conftest import write

pytestmark = pytest.mark.slow

OVERLAY = {
    "src/zarr/_made_up.py": '"""All new."""\n\nANSWER = 42\n',
    "src/zarr/abc/store.py": (
        '"""Why."""\n\nfrom zarr._made_up import ANSWER\n\n\n'
        "class Store:\n    # overlay: after get\n    def answer(self) -> int:\n        return ANSWER\n"
    ),
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command, and fail with what it said."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment without what would let an interpreter see this checkout."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "PIP_NO_BUILD_ISOLATION"}
    return {key: value for key, value in os.environ.items() if key not in hidden}


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel, by paths without the version in them."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
        return {name.replace(info, "info"): archive.read(name) for name in names}


def other_python() -> str:
    """Return another interpreter than this one, if there is one."""
    for name in ("python3.13", "python3.14"):
        if sys.version_info[:2] != tuple(map(int, name.removeprefix("python").split("."))):
            candidates = [shutil.which(name)]
            candidates += map(str, Path(sys.base_prefix).parent.glob(f"{name[6:]}*/bin/{name}"))
            for found in filter(None, candidates):
                if not subprocess.run(
                    [found, "-c", ""], check=False, capture_output=True
                ).returncode:
                    return found
    return sys.executable


def make_environment(folder: Path, python: str = sys.executable) -> Path:
    """Make a virtual environment and return its interpreter."""
    run(python, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def stock() -> dict[str, bytes]:
    """The files of the released wheel."""
    project = Project()
    sha256 = project.load_lock().wheel
    return contents(upstream.fetch(project.pinned, "wheel", project.downloads, sha256=sha256))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project with an overlay of its own."""
    root = tmp_path_factory.mktemp("checkout")
    listed = run("git", "ls-files", "-coz", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if not name.startswith(("src/", "overlay.lock", "docs/")) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    project = Project(root)
    locked = Project().load_lock()
    write(root, OVERLAY | {"overlay.lock": replace(locked, opened=(), replaced={}).text()})
    run("git", "init", "--quiet", cwd=root)
    run("git", "add", ".", cwd=root)
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    run("git", *identity, "commit", "--quiet", "--message", "All", cwd=root)
    assert project.pinned == locked.upstream
    return root


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what a build requires, for builds without isolation."""
    python = make_environment(tmp_path_factory.mktemp("builder") / "venv")
    pip(python, "install", "hatchling", "ruff==0.16.9")
    pip(python, "install", "--no-deps", f"zarr=={Project().pinned}")
    return python


@pytest.fixture(scope="module")
def built(checkout: Path, builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the clone."""
    return wheel(builder, checkout, tmp_path_factory.mktemp("built"), "--no-build-isolation")


def pip(python: str | Path, *arguments: str | Path) -> str:
    """Run this environment's pip for another environment."""
    return run(*installer.pip(), "--python", python, *arguments)


def wheel(python: str | Path, source: str | Path, into: Path, *options: str) -> Path:
    """Build a wheel with pip."""
    pip(python, "wheel", "--no-deps", "--wheel-dir", into, *options, source)
    (found,) = into.glob("*.whl")
    return found


def metadata(files: dict[str, bytes]) -> tuple[list[tuple[str, str]], str]:
    """Return the fields of a wheel's metadata but those that say what it was made with, and the version."""
    message = message_from_bytes(files["info/METADATA"])
    fields = [field for field in message.items() if field[0] not in ("Metadata-Version", "Version")]
    return fields, message["Version"]


def test_wheel_of_this_project(stock: dict[str, bytes], tmp_path: Path) -> None:
    project = Project()
    made = wheel(sys.executable, ROOT, tmp_path)
    assert made.name == f"zarr-{project.version}-py3-none-any.whl"
    files = contents(made)
    assert metadata(files) == (metadata(stock)[0], project.version)
    assert (
        message_from_bytes(files["info/METADATA"]).get_payload() == (ROOT / "README.md").read_text()
    )
    same = ("info/entry_points.txt", "info/licenses/LICENSE.txt", "zarr/py.typed")
    assert [files[name] for name in same] == [stock[name] for name in same]
    assert b"Tag: py3-none-any\n" in files["info/WHEEL"]

    overlay = {
        path.relative_to(project.overlay).as_posix()
        for path in project.overlay.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files.keys() == stock.keys() | overlay
    touched = {name for name in stock if name.startswith("zarr/") and files[name] != stock[name]}
    assert touched == {*overlay.intersection(stock), "zarr/_version.py"}


def test_wheel_from_sdist(checkout: Path, builder: Path, built: Path, tmp_path: Path) -> None:
    run(
        builder,
        "-m",
        "hatchling",
        "build",
        "--target",
        "sdist",
        "--directory",
        tmp_path,
        cwd=checkout,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    made = wheel(builder, sdist, tmp_path / "wheel", "--no-build-isolation")
    assert made.read_bytes() == built.read_bytes()


def test_installed_from_git(checkout: Path, built: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv", other_python())
    made = wheel(python, f"git+{checkout.as_uri()}", tmp_path / "wheel")
    assert made.read_bytes() == built.read_bytes()
    pip(python, "install", made)
    assert "No broken requirements" in pip(python, "check")
    again = pip(python, "install", "--dry-run", f"zarr=={Project().pinned}", "zarr>=3.1")
    assert "Would install" not in again
    script = """if True:
        import importlib.metadata, zarr, zarr.abc.store
        assert zarr.__version__ == importlib.metadata.version("zarr"), zarr.__version__
        assert zarr.abc.store.Store.answer(None) == 42
        print(zarr.__version__)
    """
    assert run(python, "-c", script).strip() == Project(checkout).version


def test_editable(checkout: Path, builder: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    python = make_environment(tmp_path / "venv")
    # What builds the package and what it depends on are borrowed from other environments.
    (borrowed,) = builder.parents[1].glob("lib/python*/site-packages")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n{sysconfig.get_path('purelib')}\n")
    pip(python, "install", "--no-build-isolation", "--no-deps", "--editable", root)
    script = "import zarr.abc.store as s; print(s.__file__, s.Store.answer(None), s.ANSWER)"
    merged = root / "build/merged/zarr/abc/store.py"
    assert run(python, "-c", script).split() == [str(merged), "42", "42"]

    # The release is kept, so that bringing the merged package up to date downloads nothing.
    (kept,) = (root / "build/upstream").iterdir()
    assert kept.name == f"zarr-{Project().pinned}"
    source = root / "src/zarr/_made_up.py"
    source.write_text(source.read_text().replace("42", "43"))
    told = run(sys.executable, "-m", "tools.overlay", "merge", cwd=root).splitlines()
    assert told[:-1] == ["~ zarr/_made_up.py"]
    assert run(python, "-c", script).split() == [str(merged), "43", "43"]


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        (
            "overlay.lock",
            "[replaced]\n",
            '[replaced]\n"zarr/abc/store.py::Store.gone" = "sha256:0"\n',
            "zarr/abc/store.py::Store.gone",
        ),
        ("overlay.lock", "upstream = ", 'upstream = "1.0"\nwas = ', "written against zarr 1.0"),
        ("src/zarr/abc/store.py", "after get", "after nothing", "names `nothing`"),
        ("src/zarr/abc/store.py", "def answer", "def get", "the lock does not know of it"),
    ],
)
def test_stops(
    checkout: Path, builder: Path, tmp_path: Path, path: str, old: str, new: str, says: str
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new))
    with pytest.raises(AssertionError) as caught:
        wheel(builder, root, tmp_path / "wheel", "--no-build-isolation")
    said = str(caught.value)
    assert says in said
    assert "->" in said
    assert "Traceback" not in said


def test_stops_at_another_release(checkout: Path, builder: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    pinned = Project().pinned
    for path in ("pyproject.toml", "overlay.lock"):
        text = (root / path).read_text()
        (root / path).write_text(
            text.replace(f"zarr=={pinned}", "zarr==3.0.0").replace(f'"{pinned}"', '"3.0.0"')
        )
    with pytest.raises(AssertionError, match=f"holds zarr {pinned}"):
        wheel(builder, root, tmp_path / "wheel", "--no-build-isolation")
