"""Intended disagreements of the fork and the release, with the reasons."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

type Judge = Callable[[dict[str, Any], dict[str, Any] | None, Any, Any], bool]


@dataclass(frozen=True, slots=True)
class Expected:
    """A known disagreement."""

    reason: str
    applies: Judge
    """Given the case, the step, and the results of the release and the fork: does it apply?"""


OF_A_BAD_INDEX = {"builtins.ValueError", "builtins.OSError", "builtins.RuntimeError"}
"""What reading at the places that a damaged index names may raise."""


def _nested_element(
    case: dict[str, Any], step: dict[str, Any] | None, stock: Any, fork: Any
) -> bool:
    if case["array"]["dtype"] != "bytes" or not isinstance(stock, dict):
        return False
    if step and step["do"] == "set" and stock.get("raised") == "builtins.TypeError":
        return "raised" not in str(fork)

    if not isinstance(fork, dict):
        return False

    def flat(report: Any) -> str:
        return re.sub(r"array\(|,\s+dtype=object\)", "", str(report.get("content")))

    nested = "array(" in str(stock) or fork.get("type") == "builtins.bytes"
    return nested and "array(" not in str(fork) and flat(stock) == flat(fork)


def _several_errors(
    case: dict[str, Any], step: dict[str, Any] | None, stock: Any, fork: Any
) -> bool:
    """Tell whether each raised an error of some chunk, or one of writing to the output."""
    if not isinstance(stock, dict) or not isinstance(fork, dict) or not stock.get("alone"):
        return False
    if ("members" in stock) != ("members" in fork):
        return False
    # A write that reads may fail in writing on one side, and in reading on the other.
    possible = {*stock["alone"], *stock.get("members", [stock.get("raised")])}
    if step and ("fields" in step or "out" in step):
        possible |= {"builtins.TypeError", "builtins.ValueError"}
    return len(possible) > 1 and set(fork.get("members", [fork.get("raised")])) <= possible


def _unprotected_index(
    case: dict[str, Any], step: dict[str, Any] | None, stock: Any, fork: Any
) -> bool:
    codecs = json.dumps(case["array"].get("serializer"))
    unprotected = codecs.count("index_codecs") > codecs.count('{"name": "crc32c"}], "index_loc')
    damaged = case["damage"] and case["damage"]["kind"] in ("flip", "truncate", "extend")
    if not unprotected or not damaged or not isinstance(fork, dict):
        return False
    return set(fork.get("members", [fork.get("raised")])) <= OF_A_BAD_INDEX


EXPECTED: tuple[Expected, ...] = (
    Expected(
        "several chunks fail in different ways, and which error is raised first depends on timing",
        _several_errors,
    ),
    Expected(
        "a damaged shard index without a checksum: for ranges outside the shard, the fork raises "
        "where the release treats them as missing chunks or raises another error",
        _unprotected_index,
    ),
    Expected(
        "the release nests single elements of variable-length bytes in arrays, and cannot write them",
        _nested_element,
    ),
)


def reason(case: dict[str, Any], number: int, stock: Any, fork: Any) -> str | None:
    """Return why a disagreement is expected, or `None` if it is not.

    Parameters
    ----------
    case : dict
        The case.
    number : int
        The index of the result: the first result is that of opening the array, then one per step.
    stock, fork
        The results of the release and the fork.

    Returns
    -------
    str or None
        The reason.
    """
    steps = case["steps"]
    step = steps[number - 1] if 0 < number <= len(steps) else None
    for each in EXPECTED:
        if each.applies(case, step, stock, fork):
            return each.reason
    return None
