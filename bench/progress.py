"""What the commands show while they work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


class Progress:
    """Tells what is being done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None

    def note(self, text: str) -> None:
        """Say what is being done."""
        self._console.print(f"{text} …", style="dim", highlight=False)

    @contextlib.contextmanager
    def steps(self, total: int) -> Iterator[None]:
        """Count the steps that are told in the context."""
        self._count, self._total = 0, total
        if not self._console.is_terminal:
            yield
            return
        columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
        # The bar is drawn on the cores that the reads are timed on: seldom.
        self._bar = Bar(
            *columns,
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        with self._bar:
            self._task = self._bar.add_task("", total=total)
            yield

    def step(self, text: str) -> None:
        """Begin the next step."""
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=self._count)
        else:
            self._console.print(f"[{self._count + 1}/{self._total}] {text}", markup=False)
        self._count += 1
