"""Merging a whole package, and writing it down."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools.overlay.markdown import merge_document
from tools.overlay.module import merge_module
from tools.overlay.problems import Action, Change, OverlayError, Problem
from tools.overlay.tidy import tidy

STAMP = ".overlay-merged"
"""A file beside the package in every tree written here: only such a tree is ever overwritten."""

PACKAGE = "zarr"
DOCUMENTS = "docs"

_VERSION_FILE = "zarr/_version.py"


@dataclass(frozen=True, slots=True)
class Part:
    """What the overlay makes of one file."""

    content: bytes
    new: bool
    """Whether upstream lacks the file."""
    changes: tuple[Change, ...] = ()
    composed: bool = False
    """Whether it is a module that was put together, and is to be laid out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the overlay makes of a folder; files that it does not touch do not occur."""

    folder: str
    """The folder: the package, or the documents."""
    parts: Mapping[str, Part]
    """By path, `zarr/abc/store.py`."""
    problems: tuple[Problem, ...]

    def _named(self) -> Iterator[tuple[str, Change]]:
        """Yield all that the overlay does, by `zarr/abc/store.py::Store.get`."""
        for path, part in self.parts.items():
            yield from ((f"{path}::{change.name}", change) for change in part.changes)

    def opened(self) -> set[str]:
        """Return the files and classes of upstream that the overlay goes into."""
        merged = {path for path, part in self.parts.items() if not part.new}
        return (merged - {_VERSION_FILE}) | self.definitions("opens")

    def replaced(self) -> dict[str, str]:
        """Return each replaced definition with upstream's fingerprint."""
        return {name: change.upstream for name, change in self._named() if change.upstream}

    def definitions(self, action: Action) -> set[str]:
        """Return the definitions with which the overlay does the one thing."""
        return {name for name, change in self._named() if change.action == action}


def files(root: Path, folder: str) -> Iterator[str]:
    """Yield the path below `root` of every file in a folder of it, sorted; not what Python and hypothesis leave behind."""
    for path in sorted((root / folder).rglob("*")):
        if path.is_file() and not {"__pycache__", ".hypothesis"} & {*path.parts}:
            yield path.relative_to(root).as_posix()


def plan(
    upstream: Path,
    overlay: Path,
    *,
    folder: str = PACKAGE,
    version: str | None = None,
    lay_out: bool = True,
) -> Plan:
    """Merge a folder of the overlay into upstream's, in memory; `upstream` and `overlay` hold the two.

    `version` is what `zarr.__version__` is to be, upstream's if left out; ruff lays out what is merged only
    if `lay_out` says so.
    """
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for path in files(overlay, folder):
        theirs = upstream / path
        before = theirs.read_bytes() if theirs.exists() else None
        part, wrong = merge_file(before, (overlay / path).read_bytes(), path=path)
        if part:
            parts[path] = part
        problems += wrong
    if lay_out and not problems:
        parts = laid_out(parts)
    if version and folder == PACKAGE and (upstream / _VERSION_FILE).exists():
        text = versioned((upstream / _VERSION_FILE).read_bytes().decode(), version)
        parts[_VERSION_FILE] = Part(text.encode(), new=False)
    return Plan(folder, parts, tuple(problems))


def laid_out(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Format the merged modules with ruff."""
    texts = {path: part.content.decode() for path, part in parts.items() if part.composed}
    texts = tidy(texts)
    return {
        path: replace(part, content=texts[path].encode()) if part.composed else part
        for path, part in parts.items()
    }


def merge_file(
    upstream: bytes | None,
    overlay: bytes,
    *,
    path: str,
    keep: Callable[[str], bool] | None = None,
    forms: Sequence[str] = (),
) -> tuple[Part | None, tuple[Problem, ...]]:
    """Merge one file of the overlay into upstream's, which may lack it.

    `path` tells by its suffix how it merges. `keep` tells by its name whether a definition or section is
    merged, and `forms` are modules with other forms of those that are not. The part that comes back is
    `None` if the file cannot be merged at all.
    """
    new = upstream is None
    if new and keep is None:
        return Part(overlay, new=True), ()
    kept, theirs = keep or (lambda name: True), None if upstream is None else upstream.decode()
    if path.endswith(".py"):
        merged = merge_module(theirs, overlay.decode(), path=path, keep=kept, forms=forms)
    elif path.endswith(".md"):
        merged = merge_document(theirs, overlay.decode(), path=path, keep=kept)
    else:
        what = "upstream has this file, and files of its kind do not merge"
        return None, (Problem(path, what, "remove it"),)
    composed = path.endswith(".py") and merged.text != theirs
    part = Part(merged.text.encode(), new, merged.changes, composed=composed)
    return part, merged.problems


def versioned(text: str, version: str) -> str:
    """Set the version, as a string and as a tuple, in the text of `zarr/_version.py`."""
    public, _, local = version.partition("+")
    parts = [*public.split("."), *filter(None, [local])]
    fields = tuple(int(part) if part.isdecimal() else part for part in parts)
    values = {"__version__ = version": version, "__version_tuple__ = version_tuple": fields}
    for names, value in values.items():
        text, count = re.subn(rf"^{names} = .*$", f"{names} = {value!r}", text, flags=re.MULTILINE)
        if count != 1:
            what = f"upstream's build no longer writes `{names} = …` once"
            remedy = "teach `versioned` in tools/overlay/tree.py how it is written now"
            raise OverlayError([Problem(_VERSION_FILE, what, remedy)])
    return text


def materialise(plan: Plan, upstream: Path, into: Path) -> list[str]:
    """Write the merged package, or bring up to date what was merged into that folder before.

    Returns a line for each file that changed: `+` for a new one, `~` for a changed one, `-` for one that is
    gone. A package that was not written here is not touched.
    """
    stamp = into / STAMP
    if (into / "zarr").exists() and not stamp.exists():
        raise OverlayError(
            [Problem(str(into / "zarr"), "exists, and was not merged by this tool", "move it away")]
        )
    into.mkdir(parents=True, exist_ok=True)
    stamp.write_text("Written by `python -m tools.overlay merge`; edits here are lost.\n")
    wanted = sorted({*files(upstream, PACKAGE), *plan.parts})
    log: list[str] = []
    for path in sorted(set(files(into, PACKAGE)).difference(wanted)):
        (into / path).unlink()
        log.append(f"- {path}")
    for path in wanted:
        target = into / path
        part = plan.parts.get(path)
        content = part.content if part else (upstream / path).read_bytes()
        if not target.exists():
            log.append(f"+ {path}")
        elif target.read_bytes() != content:
            log.append(f"~ {path}")
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return log
