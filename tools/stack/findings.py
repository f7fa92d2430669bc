"""What linters find in a branch that they do not find in its base."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUFF_CHECK = ("ruff", "check", "--no-cache", "--output-format=concise")
RUFF_FORMAT = ("ruff", "format", "--no-cache", "--check", "--output-format=concise")
MYPY = (
    *("mypy", "--follow-imports=silent", "--no-pretty", "--hide-error-context"),
    *("--hide-error-code-links", "--no-error-summary", "--no-color-output"),
)

_PLACED = re.compile(r"(?P<path>[^:\s][^:]*):\d+:(?:\d+:)? (?P<what>(?!note: ).+)")

type Findings = Counter[tuple[str, str]]
"""Path and message of each, whatever the line."""


def parse(output: str) -> Findings:
    """Read what ruff or mypy printed.

    Parameters
    ----------
    output : str
        One finding on a line, with file and line in front.

    Returns
    -------
    Counter
        The findings, and how often each occurs.
    """
    found: Findings = Counter()
    for line in output.splitlines():
        if match := _PLACED.fullmatch(line):
            found[match["path"], match["what"]] += 1
    return found


@dataclass(frozen=True, slots=True)
class Linted:
    """What a linter said of some files."""

    status: int
    output: str

    @property
    def findings(self) -> Findings:
        """What it found."""
        return parse(self.output)

    def beyond(self, base: Findings) -> list[str]:
        """Return what it found that was not found in the base.

        Parameters
        ----------
        base : Counter
            What was found there, in these files at least.

        Returns
        -------
        list of str
            A line for each; the end of what it printed where it failed and found nothing.
        """
        if self.status == 0:
            return []
        found = self.findings
        if not found:
            return ["it failed:", *self.output.splitlines()[-10:]]
        return [f"{path}: {what}" for path, what in (found - base).elements()]


def rendered(fragments: Mapping[str, str], output: str) -> list[str]:
    """Return the change fragments whose text does not occur in what towncrier printed.

    Parameters
    ----------
    fragments : Mapping
        By file name, their texts.
    output : str
        The draft of the release notes.

    Returns
    -------
    list of str
        The names.
    """
    words = " ".join(output.split())
    # Of what is of no interest to users, towncrier tells only that there is such a thing.
    wanted = {
        name: f"#{name.partition('.')[0]}" if ".misc." in name else " ".join(text.split())
        for name, text in fragments.items()
    }
    return [name for name, text in wanted.items() if text not in words]


def differences(
    meant: Mapping[str, bytes], there: Mapping[str, bytes], *, but: Sequence[str] = ()
) -> list[str]:
    """Compare two sets of files.

    Parameters
    ----------
    meant, there : Mapping
        By path, the contents.
    but : Sequence of str
        Paths that may differ.

    Returns
    -------
    list of str
        A line for each file that is on one side only, or differs.
    """
    told: list[str] = []
    for path in sorted(meant.keys() | there.keys()):
        if path in but or meant.get(path) == there.get(path):
            continue
        what = "is missing" if path not in there else "differs" if path in meant else "is too many"
        told.append(f"{path} {what}")
    return told
