"""`stack.toml`: the pull requests in their order, and what belongs to each."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from tools.overlay.problems import OverlayError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "stack.toml"

_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*[A-Za-z0-9_-])*")
# What `git am` takes for the end of the message.
_CUTS = re.compile(r"^(---\s*$|diff -|Index: )", re.MULTILINE)
_FRAGMENT = re.compile(r"(\d+|\+[a-z0-9-]+)\.(feature|bugfix|doc|removal|misc)(\.\d+)?\.md")


class StackError(OverlayError):
    """The stack is not what it should be, or cannot be made; `problems` holds every reason."""

    failure: ClassVar[str] = "the stack does not stand"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """One pull request."""

    branch: str
    title: str
    text: str
    issues: tuple[int, ...] = ()
    """The issues of zarr-python that it answers."""
    definitions: tuple[str, ...] = ()
    """`zarr/abc/store.py::Store.get_many`, or a whole file."""
    tests: tuple[str, ...] = ()
    """`tests/test_array.py::test_name`, or a whole file."""
    docs: tuple[str, ...] = ()
    """`docs/user-guide/storage.md#Heading`, or a whole file."""
    fragments: tuple[str, ...] = ()
    """Files of `changes/`."""
    upstream_tests: tuple[str, ...] = ()
    """Upstream's tests of the modules that it touches."""

    @property
    def message(self) -> str:
        """The commit message."""
        return f"{self.title}\n\n{self.text.strip()}\n"

    def selectors(self) -> Iterator[tuple[str, str]]:
        """Yield each thing that it names, as it stands there, and with its path in upstream's checkout."""
        for name in self.definitions:
            yield name, f"src/{name}"
        for name in (*self.tests, *self.docs):
            yield name, name
        for name in self.fragments:
            yield name, f"changes/{name}"


@dataclass(frozen=True, slots=True)
class Compatible:
    """A definition that another release has otherwise than the pinned one, and that may be replaced alike."""

    definition: str
    """`zarr/abc/store.py::Store.get`."""
    fingerprint: str
    """That of the other release's."""
    why: str
    """Why the overlay's serves there too."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `stack.toml`."""

    pull_requests: tuple[PullRequest, ...]
    most_added_lines: int
    """How many lines a branch may add in `src/`."""
    own: tuple[str, ...] = ()
    """Files that stay with the fork."""
    compatible: tuple[Compatible, ...] = ()
    """What may be replaced in other releases too."""

    def number(self, branch: str) -> int:
        """Return the index of the pull request with a branch.

        Parameters
        ----------
        branch : str
            The branch, or what follows its last slash.

        Returns
        -------
        int
            The index.

        Raises
        ------
        StackError
            If there is none, or more than one.
        """
        found = [
            index
            for index, pull_request in enumerate(self.pull_requests)
            if branch in (pull_request.branch, pull_request.branch.rpartition("/")[2])
        ]
        if len(found) == 1:
            return found[0]
        names = ", ".join(pull_request.branch for pull_request in self.pull_requests)
        what = "more than one branch" if found else "no branch"
        raise StackError([Problem(NAME, f"`{branch}` names {what}", f"name one of {names}")])


_LISTS = {
    "definitions": "Python files of `src/`, `zarr/abc/store.py::Store.get_many`",
    "tests": "files of `tests/`",
    "docs": "files of `docs/`, `docs/user-guide/storage.md#Heading`",
    "fragments": "file names in `changes/`, `1234.feature.md`, or `+name.feature.md` where there is no issue",
    "upstream_tests": "files of upstream's `tests/`",
}
_FORMS = {
    "definitions": re.compile(r"zarr/[^#]+"),
    "tests": re.compile(r"tests/[^#]+"),
    "docs": re.compile(r"docs/[^#]+(#.+)?"),
    "fragments": _FRAGMENT,
    "upstream_tests": re.compile(r"tests/[^#]+"),
}


@dataclass(slots=True)
class _Reader:
    """Takes the table apart, and notes what is wrong."""

    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(f"{NAME}, {where}", what, remedy))

    def unknown(self, where: str, table: dict[str, Any], known: set[str]) -> None:
        for key in sorted(table.keys() - known):
            self.wrong(where, f"`{key}` is not known", f"the keys are {', '.join(sorted(known))}")

    def text(self, where: str, table: dict[str, Any], key: str) -> str:
        value = table.get(key)
        if isinstance(value, str) and value.strip():
            return value
        self.wrong(where, f"`{key}` is not given as text", f'write `{key} = "..."`')
        return ""

    def strings(self, where: str, table: dict[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong(where, f"`{key}` is not a list of strings", f'write `{key} = ["..."]`')
            return ()
        for item in value:
            if key in _FORMS and not _FORMS[key].fullmatch(item):
                self.wrong(where, f"`{item}` under `{key}` has another form", f"list {_LISTS[key]}")
        return tuple(value)

    def compatible(self, listed: object) -> tuple[Compatible, ...]:
        if not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
            self.wrong("top level", "`compatible` is no list", "write `[[compatible]]`")
            return ()
        names = [f.name for f in fields(Compatible)]
        found: list[Compatible] = []
        for table in listed:
            self.unknown("compatible", table, set(names))
            found.append(Compatible(*(self.text("compatible", table, name) for name in names)))
        return tuple(found)

    def pull_request(self, number: int, table: dict[str, Any]) -> PullRequest:
        branch = table.get("branch")
        where = branch if isinstance(branch, str) and branch else f"pull request {number}"
        self.unknown(where, table, {f.name for f in fields(PullRequest)})
        branch, title, text = (self.text(where, table, key) for key in ("branch", "title", "text"))
        if branch and not _BRANCH.fullmatch(branch):
            self.wrong(where, "that is no name for a branch", "use letters, digits, `-` and `/`")
        if "\n" in title.strip():
            self.wrong(where, "the title has more than one line", "keep the rest for `text`")
        if _CUTS.search(text):
            self.wrong(
                where, "the text has a line that ends the message of a patch", "write it otherwise"
            )
        issues = table.get("issues", [])
        if not isinstance(issues, list) or not all(type(issue) is int for issue in issues):
            self.wrong(where, "`issues` is not a list of numbers", "write `issues = [1234]`")
            issues = []
        return PullRequest(
            branch,
            title,
            text,
            tuple(issues),
            **{key: self.strings(where, table, key) for key in _LISTS},
        )


def load(path: Path) -> Manifest:
    """Read `stack.toml`.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Manifest
        What it says.

    Raises
    ------
    StackError
        If there is none, or it is not laid out as it should be: with every problem there is.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise StackError([Problem(NAME, "there is none", "write it")]) from None
    except tomllib.TOMLDecodeError as error:
        raise StackError([Problem(NAME, f"is not TOML: {error}", "see there")]) from None
    reader = _Reader()
    reader.unknown("top level", table, {"pull_request", "most-added-lines", "own", "compatible"})
    most = table.get("most-added-lines")
    if type(most) is not int or most < 1:
        reader.wrong("top level", "`most-added-lines` is not given", "write a number of lines")
        most = 1
    listed = table.get("pull_request")
    if not isinstance(listed, list) or not listed or not all(isinstance(t, dict) for t in listed):
        reader.wrong("top level", "it names no pull request", "write a `[[pull_request]]`")
        listed = []
    own = reader.strings("top level", table, "own")
    compatible = reader.compatible(table.get("compatible", []))
    found = tuple(reader.pull_request(number, entry) for number, entry in enumerate(listed, 1))
    branches = [pull_request.branch for pull_request in found]
    for branch in sorted({branch for branch in branches if branch and branches.count(branch) > 1}):
        reader.wrong(branch, "two pull requests have this branch", "rename one of them")
    if reader.problems:
        raise StackError(reader.problems)
    return Manifest(found, most, own, compatible)
