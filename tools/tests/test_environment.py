"""Environments and the programs that run in them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import children, installer
from tools.environment import Environment, SetupError, _installer, digest

# Starts a process that would go on for an hour, and tells its id.
START_ANOTHER = """\
import subprocess, sys
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print(other.pid, flush=True)
"""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    # A killed process whose parent is gone stays until somebody asks for its status.
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def _gone(process: int) -> bool:
    deadline = time.monotonic() + 120
    while _alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(process)


def test_run_returns_the_status(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(sys.stdin.read() or 3)"
    )
    assert children.run([sys.executable, "-c", code], cwd=tmp_path, log=log) == 3
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_run_ends_what_a_child_leaves_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert children.run([sys.executable, "-c", START_ANOTHER], cwd=tmp_path, log=log) == 0
    assert _gone(int(log.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_its_children(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[2]
    stubborn = f"import signal, time\n{START_ANOTHER}\ntime.sleep(3600)"
    runner = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from tools import children\n"
        # A shell that starts the tests in the background has them ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))\n"
        f"children.run([sys.executable, '-c', {stubborn!r}], cwd=Path())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", runner], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout:
        other = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(120) != 0
    assert _gone(other)


def test_digest_follows_contents(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a"
    file.write_text("one")
    first = digest([tmp_path], "word")
    assert digest([tmp_path], "word") == first
    assert digest([tmp_path], "other") != first
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("compiled")
    assert digest([tmp_path, tmp_path / "none"], "word") == first
    file.write_text("two")
    assert digest([tmp_path], "word") != first
    file.rename(file.with_name("b"))
    assert digest([tmp_path], "word") != first


def test_variables_that_configure_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_ASYNC__CONCURRENCY", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setenv("PATH", "/bin")
    variables = Environment(Path("/environment")).variables(ZARR_THREADING__MAX_WORKERS="2")
    assert "ZARR_ASYNC__CONCURRENCY" not in variables
    assert "PYTEST_ADDOPTS" not in variables
    assert variables["ZARR_THREADING__MAX_WORKERS"] == "2"
    assert variables["PATH"] == f"/environment/bin{os.pathsep}/bin"


def test_no_environment_without_an_interpreter(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be run"):
        Environment.of(str(tmp_path / "python"))
    old = tmp_path / "python3.1"
    old.write_text("#!/bin/sh\necho 3.1.4\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(SetupError, match=r"Python 3\.1\.4; Python 3\.12 or newer"):
        Environment.of(str(old))


def test_pip_where_an_environment_has_none(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    command = installer.pip(str(bare / "bin" / "python"))
    assert "pip-" in command[1]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip ")


def test_uv_where_there_is_no_pip_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(_: str) -> list[str]:
        raise LookupError("no pip")

    monkeypatch.setattr(installer, "pip", pip)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert _installer("python3", Path("there")) == [
        "/bin/uv",
        "pip",
        "install",
        "--python",
        "there",
    ]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SetupError, match="no pip, or put uv on the path"):
        _installer("python3", Path("there"))


def test_neither_pip_nor_ensurepip(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(LookupError, match="neither pip nor ensurepip"):
        installer.pip(str(python))


@pytest.mark.slow
def test_environment_is_made_and_installed_into_once(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "nothing-at-all"\nversion = "1"\n')
    (package / "nothing_at_all.py").write_text("x = 1\n")
    environment = Environment(tmp_path / "environment")
    environment.make(sys.executable, "3")
    environment.make("not called again", "3")
    assert environment.packages.is_dir()
    assert environment.install("a package", [str(package)], made_of=[package])
    (package / "nothing_at_all.py").write_text("x = 2\n")
    assert environment.install("a package", [str(package)], made_of=[package])
    read = [str(environment.python), "-c", "import nothing_at_all; print(nothing_at_all.x)"]
    assert subprocess.run(read, check=True, capture_output=True, text=True).stdout == "2\n"
