"""How many lines a pull request adds and removes."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = {"src": "src/", "tests": "tests/", "docs": "docs/", "changes": "changes/"}


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines added and removed."""

    added: int = 0
    removed: int = 0

    def __str__(self) -> str:
        return f"+{self.added} -{self.removed}"

    def __add__(self, other: Lines) -> Lines:
        return Lines(self.added + other.added, self.removed + other.removed)


@dataclass(frozen=True, slots=True)
class Diffstat:
    """What a pull request does to each file."""

    files: Mapping[str, Lines]

    def within(self, folder: str) -> Lines:
        """Sum up what is in a folder, `src/`."""
        counts = (lines for path, lines in self.files.items() if path.startswith(folder))
        return sum(counts, Lines())


def measure(diff: Mapping[str, tuple[bytes | None, bytes]]) -> Diffstat:
    """Count lines as `git diff` does.

    Parameters
    ----------
    diff : Mapping
        By path, a file before and after; `None` for one that is new.

    Returns
    -------
    Diffstat
        The counts; those of files that are not text are zero.
    """
    with tempfile.TemporaryDirectory(prefix="zarr-stack-") as folder:
        for side in ("a", "b"):
            (Path(folder) / side).mkdir()
        for path, (before, after) in diff.items():
            for side, content in (("a", before), ("b", after)):
                if content is not None:
                    target = Path(folder) / side / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
        command = ["git", "diff", "--no-index", "--no-renames", "--numstat", "-z", "a", "b"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return Diffstat({path.partition("/")[2]: lines for path, lines in _parsed(done.stdout)})


def parse(output: str) -> Diffstat:
    """Read what `git diff --numstat -z` printed."""
    return Diffstat(dict(_parsed(output)))


def _parsed(output: str) -> Iterator[tuple[str, Lines]]:
    """Yield paths and counts: of a file that is on both sides, and of one that is new."""
    fields = output.split("\0")
    while len(fields) > 1:
        added, removed, path = fields.pop(0).split("\t")
        if not path:
            _, path = fields.pop(0), fields.pop(0)
        yield path, Lines(*(int(n) if n.isdecimal() else 0 for n in (added, removed)))
