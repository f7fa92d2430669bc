"""`stack.toml`: the series of pull requests, in their order, and what belongs to each."""

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
TITLE = 72
"""How long a title may be, and a line of the text."""
HEADINGS = ("## Summary", "## For reviewers")
"""The headings of upstream's template that the text has, in this order. The template's others, `## Author
attestation` and `## TODO`, are the same for every pull request: they belong into `closing`."""

_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*[A-Za-z0-9_-])*")
_TITLE = re.compile(
    r"(build|chore|ci|docs|feat|fix|perf|refactor|style|test)(\([\w, -]+\))?!?: \S.*"
)
# What `git am` takes for the end of the message.
_CUTS = re.compile(r"^(---\s*$|diff -|Index: )", re.MULTILINE)


class StackError(OverlayError):
    """The stack is not what it should be, or cannot be made; `problems` holds every reason."""

    failure: ClassVar[str] = "the stack does not stand"


@dataclass(frozen=True, slots=True)
class Series:
    """Pull requests on top of each other. The first series stands on upstream, the others on the first."""

    name: str
    most_added_in_src: int
    """How many lines its branches may add in `src/`, all together."""
    most_added_in_tests: int
    most_added_by_branch: int
    """How many lines each of them may add in `src/`."""


@dataclass(frozen=True, slots=True)
class PullRequest:
    """One pull request."""

    branch: str
    series: str
    title: str
    text: str
    most_added: int
    """How many lines it may add in `src/`."""
    issues: tuple[int, ...] = ()
    """The issues of zarr-python that it answers."""
    definitions: tuple[str, ...] = ()
    """`zarr/abc/store.py::Store.get_many`, or a whole file."""
    tests: tuple[str, ...] = ()
    """`tests/test_array.py::test_name`, or a whole file."""
    docs: tuple[str, ...] = ()
    """`docs/user-guide/storage.md#Heading`, or a whole file."""
    fragments: tuple[str, ...] = ()
    """Files of `changes/`, `get-many.feature.md`: on the branch the number of the pull request stands first."""
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

    def fragment_paths(self, number: int) -> dict[str, str]:
        """Return by the path that each fragment has here its path on the branch of a pull request."""
        kinds: list[str] = []
        paths: dict[str, str] = {}
        for name in self.fragments:
            kind = name.split(".")[1]
            again = f".{kinds.count(kind)}" if kind in kinds else ""
            paths[f"changes/{name}"] = f"changes/{number}.{kind}{again}.md"
            kinds.append(kind)
        return paths


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

    series: tuple[Series, ...]
    pull_requests: tuple[PullRequest, ...]
    """Those of the first series first."""
    own: tuple[str, ...] = ()
    """Files that stay with the fork."""
    compatible: tuple[Compatible, ...] = ()
    """What may be replaced in other releases too."""

    def number(self, branch: str) -> int:
        """Return the index of the pull request with a branch, or with what follows its last slash."""
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

    def below(self, number: int) -> tuple[int, ...]:
        """Return the indexes of the pull requests that one stands on, the nearest last."""
        series = (self.series[0].name, self.pull_requests[number].series)
        return tuple(n for n in range(number) if self.pull_requests[n].series in series)

    def tips(self) -> list[int]:
        """Return the index of the last pull request of each series that has any."""
        last = {request.series: number for number, request in enumerate(self.pull_requests)}
        return list(last.values())


_LISTS = {
    "definitions": (r"zarr/[^#]+", "Python files of `src/`, `zarr/abc/store.py::Store.get_many`"),
    "tests": (r"tests/[^#]+", "files of `tests/`"),
    "docs": (r"docs/[^#]+(#.+)?", "files of `docs/`, `docs/user-guide/storage.md#Heading`"),
    "fragments": (
        r"[\w+-]+\.(feature|bugfix|doc|removal|misc)(\.\d+)?\.md",
        "file names in `changes/`, `get-many.feature.md`",
    ),
    "upstream_tests": (r"tests/[^#]+", "files of upstream's `tests/`"),
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

    def tables(self, table: dict[str, Any], key: str) -> list[dict[str, Any]]:
        listed = table.get(key, [])
        if isinstance(listed, list) and all(isinstance(item, dict) for item in listed):
            return listed
        self.wrong("top level", f"`{key}` is no list of tables", f"write `[[{key}]]`")
        return []

    def text(self, where: str, table: dict[str, Any], key: str) -> str:
        value = table.get(key)
        if isinstance(value, str) and value.strip():
            return value
        self.wrong(where, f"`{key}` is not given as text", f'write `{key} = "..."`')
        return ""

    def count(self, where: str, table: dict[str, Any], key: str) -> int:
        value = table.get(key)
        if type(value) is int and value >= 1:
            return value
        self.wrong(where, f"`{key}` is not given", "write a number of lines")
        return 1

    def strings(self, where: str, table: dict[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong(where, f"`{key}` is not a list of strings", f'write `{key} = ["..."]`')
            return ()
        form, said = _LISTS.get(key, ("(?s:.*)", ""))
        for item in value:
            if not re.fullmatch(form, item):
                self.wrong(where, f"`{item}` under `{key}` has another form", f"list {said}")
        return tuple(value)

    def series(self, table: dict[str, Any]) -> Series:
        keys = [f.name.replace("_", "-") for f in fields(Series)]
        name = self.text("series", table, "name")
        self.unknown(f"series {name}", table, set(keys))
        return Series(name, *(self.count(f"series {name}", table, key) for key in keys[1:]))

    def pull_request(
        self, number: int, table: dict[str, Any], known: list[Series], closing: str
    ) -> PullRequest:
        branch = table.get("branch")
        where = branch if isinstance(branch, str) and branch else f"pull request {number}"
        keys = {f.name for f in fields(PullRequest)} - {"most_added"} | {"most-added"}
        self.unknown(where, table, keys)
        branch, name, title, text = (
            self.text(where, table, key) for key in ("branch", "series", "title", "text")
        )
        if branch and not _BRANCH.fullmatch(branch):
            self.wrong(where, "that is no name for a branch", "use letters, digits, `-` and `/`")
        if title and not (_TITLE.fullmatch(title) and len(title) <= TITLE):
            what = f"the title is no Conventional Commit of at most {TITLE} characters"
            self.wrong(where, what, "write `feat(store): add ...`")
        self.body(where, text)
        series = next((each for each in known if each.name == name), None)
        if series is None and name:
            self.wrong(where, f"`{name}` is no series", f"name one of {[s.name for s in known]}")
        most = series.most_added_by_branch if series else 1
        if "most-added" in table:
            most = min(most, self.count(where, table, "most-added"))
        issues = table.get("issues", [])
        if not isinstance(issues, list) or not all(type(issue) is int for issue in issues):
            self.wrong(where, "`issues` is not a list of numbers", "write `issues = [1234]`")
            issues = []
        lists = {key: self.strings(where, table, key) for key in _LISTS}
        text = "\n\n".join(part.strip() for part in (text, closing) if part.strip())
        return PullRequest(branch, name, title, text, most, tuple(issues), **lists)

    def body(self, where: str, text: str) -> None:
        """Look at the form of a text."""
        lines = text.splitlines()
        if text and [line for line in lines if line in HEADINGS] != list(HEADINGS):
            self.wrong(
                where, f"the text lacks {' or '.join(HEADINGS)}", "write both, in this order"
            )
        if _CUTS.search(text):
            self.wrong(
                where, "the text has a line that ends the message of a patch", "write it otherwise"
            )
        for line in lines:
            breakable = " " in line.strip().removeprefix("- ") and line.lstrip()[:1] != "|"
            if len(line) > TITLE and breakable:
                what = f"a line has more than {TITLE} characters: {line}"
                self.wrong(where, what, "wrap it")


def load(path: Path) -> Manifest:
    """Read `stack.toml`.

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
    reader.unknown("top level", table, {"series", "pull_request", "own", "compatible", "closing"})
    series = [reader.series(entry) for entry in reader.tables(table, "series")]
    listed = reader.tables(table, "pull_request")
    for what, found in (("series", series), ("pull_request", listed)):
        if not found:
            reader.wrong("top level", f"it names no {what}", f"write a `[[{what}]]`")
    own = reader.strings("top level", table, "own")
    names = [f.name for f in fields(Compatible)]
    compatible: list[Compatible] = []
    for entry in reader.tables(table, "compatible"):
        reader.unknown("compatible", entry, set(names))
        compatible.append(Compatible(*(reader.text("compatible", entry, n) for n in names)))
    closing = reader.text("top level", table, "closing") if "closing" in table else ""
    requests = [reader.pull_request(n, e, series, closing) for n, e in enumerate(listed, 1)]
    branches = [pull_request.branch for pull_request in requests]
    for branch in sorted({branch for branch in branches if branch and branches.count(branch) > 1}):
        reader.wrong(branch, "two pull requests have this branch", "rename one of them")
    order = {each.name: number for number, each in enumerate(series)}
    if len(order) < len(series):
        reader.wrong("top level", "two series have one name", "rename one of them")
    if reader.problems:
        raise StackError(reader.problems)
    requests.sort(key=lambda request: order[request.series])
    return Manifest(tuple(series), tuple(requests), own, tuple(compatible))
