from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import demo, environments, measure
from bench.launch import parse
from tools import environment
from tools.environment import ROOT


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "0"], "argument --size: has to be at least 1, and is 0"),
        (["--size", "many"], "argument --size: not a whole number: 'many'"),
        (["--chunk", "-4"], "argument --chunk: has to be at least 1, and is -4"),
        (["--repeats", "0"], "argument --repeats: has to be at least 1, and is 0"),
        (["--latency-ms", "-1"], "argument --latency-ms: has to be zero or more, and is -1"),
        (["--latency-ms", "nan"], "argument --latency-ms: has to be zero or more, and is nan"),
        (["--latency-ms", "soon"], "argument --latency-ms: not a number: 'soon'"),
        (["--store", "ftp"], "argument --store: invalid choice: 'ftp'"),
        (["--fork", "nowhere"], "argument --fork: neither a wheel nor a checkout: nowhere"),
        (["--size", "10", "--chunk", "11"], "a chunk of 11 does not fit an array of 10"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(demo.make_parser(), arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_options_have_defaults() -> None:
    options = parse(demo.make_parser(), [])
    assert (options.size, options.chunk, options.latency_ms, options.store) == (
        2048,
        64,
        20,
        "both",
    )
    assert options.fork == ROOT
    assert options.before is None


def test_fork_is_a_checkout_or_a_wheel(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    wheel = tmp_path / "zarr-3.4.2-py3-none-any.whl"
    wheel.touch()
    for path in (tmp_path, wheel):
        options = parse(demo.make_parser(), ["--fork", str(path), "--before", str(path)])
        assert (options.fork, options.before) == (path, path)


def test_what_is_measured_is_installed_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A, then B, then A again, in one environment."""
    installed: list[str] = []

    def call(command: list[str], _: str) -> None:
        if "install" in command:
            installed.append(f"{Path(command[0]).parents[1].name}: {Path(command[-1]).name}")

    monkeypatch.setattr(environment, "_call", call)
    monkeypatch.setattr(environment.installer, "pip", lambda python: [python, "-m", "pip"])
    monkeypatch.setattr(
        environment.Environment, "make", lambda self, *_: self.path.mkdir(exist_ok=True)
    )
    for name in ("STOCK", "FORK", "BEFORE"):
        monkeypatch.setattr(environments, name, environment.Environment(tmp_path / name.lower()))
    one, other = tmp_path / "one", tmp_path / "other"
    for checkout in (one, other):
        checkout.mkdir()
        (checkout / "pyproject.toml").touch()
    environments.prepare_measured(one)
    assert installed == ["stock: pytest", "fork: pytest", "fork: one"]
    for fork, before in ((other, None), (one, None), (one, other), (one, other)):
        environments.prepare_measured(fork, before)
    assert installed[3:] == ["fork: other", "fork: one", "before: pytest", "before: other"]


def test_unknown_case_is_named_before_anything_is_installed() -> None:
    command = [sys.executable, measure.__file__, "http-whole", "no-such-case"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"no such case: no-such-case \(--help lists them\)", done.stderr)
