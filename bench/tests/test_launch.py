from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench import demo, measure
from bench.launch import parse
from tools.environment import ROOT

if TYPE_CHECKING:
    from pathlib import Path


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


def test_fork_is_a_checkout_or_a_wheel(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    wheel = tmp_path / "zarr-3.4.2-py3-none-any.whl"
    wheel.touch()
    for path in (tmp_path, wheel):
        assert parse(demo.make_parser(), ["--fork", str(path)]).fork == path


def test_unknown_case_is_named_before_anything_is_installed() -> None:
    command = [sys.executable, measure.__file__, "http-whole", "no-such-case"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"no such case: no-such-case \(--help lists them\)", done.stderr)
