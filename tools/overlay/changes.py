"""What a merge did to one file, and what was wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tools.overlay.problems import Problem

type Action = Literal["opens", "adds", "replaces", "exports", "keeps"]


@dataclass(frozen=True, slots=True)
class Change:
    """What the overlay does with one definition of one module, or one section of a document."""

    action: Action
    """`keeps` where upstream has the very text that the overlay has."""
    name: str
    """The qualified name, `Store.get`."""
    after: str | None = None
    """The sibling that an added definition follows, where a marker names one."""
    upstream: str | None = None
    """The fingerprint of the upstream definition that is replaced."""


@dataclass(slots=True)
class Log:
    """What a merge did and what was wrong, over a whole file."""

    path: str
    changes: list[Change] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, name: str, what: str, remedy: str) -> None:
        """Note what is wrong with one definition, or with the file where `name` is empty."""
        where = f"{self.path}::{name}" if name else self.path
        self.problems.append(Problem(where, what, remedy))


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged file. The text is of use only where there are no problems."""

    text: str
    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
