"""Finding a release."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import installer
from tools.overlay import upstream
from tools.overlay.problems import OverlayError
from tools.tests.conftest import RELEASE, write


def wheel(folder: Path) -> Path:
    path = folder / "zarr-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**RELEASE, "zarr-1.2.3.dist-info/METADATA": "Name: zarr\n"}.items():
            archive.writestr(name, text)
    return path


def sdist(folder: Path) -> Path:
    path = folder / "zarr-1.2.3.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {**RELEASE, "../docs/x.md": "# X\n"}.items():
            member = tarfile.TarInfo(f"zarr-1.2.3/src/{name}".replace("src/../", ""))
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def at(path: Path, into: Path) -> upstream.Release:
    return upstream.at(path, unpack_into=into)


def test_folders(release: Path, tmp_path: Path) -> None:
    for path in (release, release / "zarr"):
        assert at(path, tmp_path) == upstream.Release(release, "1.2.3")
    write(tmp_path / "checkout/src", RELEASE)
    (tmp_path / "checkout/src/zarr/_version.py").unlink()
    assert at(tmp_path / "checkout", tmp_path) == upstream.Release(tmp_path / "checkout/src", None)


def test_archives(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    found = at(wheel(tmp_path), kept)
    assert found == upstream.Release(
        kept / "zarr-1.2.3", "1.2.3", kept / "zarr-1.2.3/zarr-1.2.3.dist-info"
    )
    found = at(sdist(tmp_path), kept)
    assert found == upstream.Release(kept / "zarr-1.2.3-sdist/src", "1.2.3")
    assert (found.root.parent / "docs/x.md").exists()
    assert sorted(path.name for path in kept.iterdir()) == ["zarr-1.2.3", "zarr-1.2.3-sdist"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="no zarr"):
        at(tmp_path, tmp_path)


def test_kept_as_unpacked(tmp_path: Path) -> None:
    found = at(wheel(tmp_path), tmp_path / "site")
    write(found.root, {"zarr/__pycache__/x.pyc": ""})
    kept = at(upstream.keep(found, tmp_path / "kept"), tmp_path)
    assert (kept.version, kept.info and kept.info.name) == ("1.2.3", "zarr-1.2.3.dist-info")
    assert not (kept.root / "zarr/__pycache__").exists()


class TestFetch:
    def test_downloaded_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = wheel(tmp_path)
        commands = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            into = Path(command[command.index("--dest") + 1])
            (into / source.name).write_bytes(source.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(installer, "pip", lambda: ["pip"])
        monkeypatch.setattr(subprocess, "run", run)
        for _ in range(2):
            sha256 = upstream.digest(source)
            found = upstream.fetch("1.2.3", "wheel", tmp_path / "kept", sha256=sha256)
            assert found == tmp_path / "kept" / source.name
        (command,) = commands
        assert command[-1] == "zarr==1.2.3"

    def test_not_the_one_that_was_locked(self, tmp_path: Path) -> None:
        wheel(tmp_path)
        with pytest.raises(OverlayError, match=r"overlay\.lock says 00"):
            upstream.fetch("1.2.3", "wheel", tmp_path, sha256="00")

    def test_cannot_be_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, 1, "", "no network")

        monkeypatch.setattr(installer, "pip", lambda: ["pip"])
        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(OverlayError, match="no network"):
            upstream.fetch("1.2.3", "sdist", tmp_path)
