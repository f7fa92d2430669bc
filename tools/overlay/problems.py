"""What a merge did, and what was wrong, said so that the reader knows what to do."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that keeps the overlay from being merged."""

    where: str
    """The file and the definition, `zarr/abc/store.py::Store.get`."""
    what: str
    """What is wrong there."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.where}\n    {self.what}\n    -> {self.remedy}"


class OverlayError(Exception):
    """The overlay does not fit its upstream; `problems` holds every reason, not only the first."""

    failure: ClassVar[str] = "the overlay cannot be merged"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        head = f"{self.failure}: {count} problem{'s' if count > 1 else ''}"
        super().__init__("\n\n".join([head, *map(str, self.problems)]))


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
