"""Merging small modules, with the checks that every merge must pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tools.overlay.module import Merged, merge_module

RUFF = str(Path(sys.executable).with_name("ruff"))
_SETTINGS = (
    "--isolated",
    "--no-cache",
    "--config=line-length = 100",
    "--config=target-version = 'py312'",
)
_SORTED = (
    "--select=I,RUF022",
    "--config=lint.isort.known-first-party = ['zarr']",
)
_TEXT = ("--stdin-filename=zarr/module.py", "-")


def untidy(text: str) -> str:
    """Return what ruff would change about the layout, the imports and `__all__`; empty for nothing."""
    return _untidy(*_TEXT, input=text)


def untidy_folder(folder: Path) -> str:
    """Return the same for all the modules in a folder."""
    return _untidy(str(folder))


def _untidy(*what: str, input: str | None = None) -> str:
    commands = (("format", "--diff"), ("check", "--diff", *_SORTED))
    done = [
        subprocess.run(
            [RUFF, *command, *_SETTINGS, *what],
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        for command in commands
    ]
    return "".join(f"{process.stdout}{process.stderr}" for process in done if process.returncode)


def formatted(text: str) -> str:
    """Lay a module out as ruff would."""
    for command in (("check", "--fix", "--quiet", *_SORTED), ("format",)):
        text = subprocess.run(
            [RUFF, *command, *_SETTINGS, *_TEXT],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return text


def merge(upstream: str, overlay: str) -> str:
    """Merge two modules, and check that the outcome is tidy and stays as it is when merged again."""
    upstream, overlay = dedent(upstream), dedent(overlay)
    assert untidy(upstream) == "", "the test's own text must be tidy"
    merged = merge_module(upstream, overlay, path="zarr/module.py")
    assert merged.problems == ()
    assert untidy(merged.text) == ""
    again = merge_module(merged.text, overlay, path="zarr/module.py")
    assert again.problems == ()
    assert again.text == merged.text
    return merged.text


def attempt(upstream: str, overlay: str) -> Merged:
    """Merge two modules that may not fit."""
    return merge_module(dedent(upstream), dedent(overlay), path="zarr/module.py")


def problem(upstream: str, overlay: str) -> str:
    """Merge two modules that do not fit, and return the one problem that there is."""
    (found,) = attempt(upstream, overlay).problems
    assert found.what
    assert found.remedy
    return str(found)
