"""Merging small modules, with the checks that every merge must pass."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from textwrap import dedent
from typing import TYPE_CHECKING

from tools.overlay.module import merge_module
from tools.overlay.tidy import RULES, SETTINGS, ruff, tidy

if TYPE_CHECKING:
    from pathlib import Path

    from tools.overlay.changes import Merged


def untidy(text: str) -> str:
    """Return the module as ruff lays it out if it is laid out in another way, else nothing."""
    laid_out = formatted(text)
    return "" if laid_out == text else laid_out


def untidy_folder(folder: Path) -> str:
    """Return what ruff would change in the modules of a folder; empty for nothing."""
    commands = (("format", "--diff"), ("check", "--diff", "--unsafe-fixes", *RULES))
    done = [
        subprocess.run(
            [ruff(), *command, *SETTINGS, str(folder)], capture_output=True, text=True, check=False
        )
        for command in commands
    ]
    return "".join(f"{process.stdout}{process.stderr}" for process in done if process.returncode)


def formatted(text: str) -> str:
    """Lay a module out as ruff would."""
    return tidy({"m.py": text})["m.py"]


def merge(upstream: str, overlay: str) -> str:
    """Merge two modules, and check that the outcome stays as it is when merged again."""
    upstream = dedent(upstream)
    merged = attempt(upstream, overlay)
    assert merged.problems == ()
    again = attempt(merged.text, overlay)
    assert again.problems == ()
    assert again.text == merged.text
    return merged.text


def attempt(upstream: str, overlay: str) -> Merged:
    """Merge two modules that may not fit, and lay out what comes of it if they do."""
    merged = merge_module(dedent(upstream), dedent(overlay), path="zarr/module.py")
    return merged if merged.problems else replace(merged, text=formatted(merged.text))


def problem(upstream: str, overlay: str) -> str:
    """Merge two modules that do not fit, and return the one problem that there is."""
    (found,) = attempt(upstream, overlay).problems
    assert found.what
    assert found.remedy
    return str(found)
