"""Merging small modules, with the checks that every merge must pass."""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent
from typing import TYPE_CHECKING

from tools.overlay.module import merge_module
from tools.overlay.tidy import tidy

if TYPE_CHECKING:
    from tools.overlay.problems import Merged


def untidy(text: str) -> str:
    """Return the module as ruff lays it out if it is laid out in another way, else nothing."""
    laid_out = formatted(text)
    return "" if laid_out == text else laid_out


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
