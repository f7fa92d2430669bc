"""What can be wrong with an overlay, said so that the reader knows what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


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
