"""`stack.toml`: the series of pull requests, in their order, and what belongs to each."""

import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from tools.overlay.problems import OverlayError, Problem

NAME = "stack.toml"
WIDTH = 72
"""How long a title may be, and a line of the text."""
HEADINGS = ("## Summary", "## For reviewers")
"""Headings of upstream's template, in this order. Its others are for whoever opens the pull request."""

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
    """Stacked pull requests. The first series is based on upstream, the others on the first."""

    name: str
    most_added_in_src: int
    """How many lines its branches may add in `src/`, all together; and below, each of them."""
    most_added_in_tests: int
    most_added_by_branch: int


@dataclass(frozen=True, slots=True)
class PullRequest:
    """One pull request."""

    branch: str
    series: str
    title: str
    text: str
    most_added: int
    issues: tuple[int, ...] = ()
    """The issues of zarr-python that it answers."""
    definitions: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    docs: tuple[str, ...] = ()
    fragments: tuple[str, ...] = ()
    """Files of `changes/`. On the branch their names begin with the number of the pull request."""
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
        """Return the indexes of the pull requests that one is based on, the nearest last."""
        series = (self.series[0].name, self.pull_requests[number].series)
        return tuple(n for n in range(number) if self.pull_requests[n].series in series)

    def tips(self) -> list[int]:
        """Return the index of the last pull request of each series that has any."""
        last = {request.series: number for number, request in enumerate(self.pull_requests)}
        return list(last.values())


_KINDS = {str: "text", int: "a number", dict: "tables"}
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
    """Takes tables apart, and notes what is wrong."""

    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(f"{NAME}, {where}", what, remedy))

    def known(self, where: str, table: dict[str, Any], keys: Collection[str]) -> None:
        for key in sorted(table.keys() - keys):
            self.wrong(where, f"`{key}` is not known", f"the keys are {', '.join(sorted(keys))}")

    def get[T](self, where: str, table: dict[str, Any], key: str, kind: type[T]) -> T:
        """Return a value that has to be there, and not to be empty."""
        value = table.get(key)
        if type(value) is kind and value:
            return value
        self.wrong(where, f"`{key}` is not given, or is something else", f"write {_KINDS[kind]}")
        return kind()

    def many(self, where: str, table: dict[str, Any], key: str, kind: type) -> list[Any]:
        """Return a list that may be left out."""
        value = table.get(key, [])
        if isinstance(value, list) and all(type(item) is kind for item in value):
            return value
        self.wrong(where, f"`{key}` lists something else", f"list only {_KINDS[kind]}")
        return []

    def make[T](self, kind: type[T], table: dict[str, Any]) -> T:
        """Make something of a table that gives each of its fields, as text or as a number."""
        types: dict[str, Any] = {f.name.replace("_", "-"): f.type for f in fields(kind)}  # type: ignore[arg-type]
        where = f"{kind.__name__.lower()} {table.get('name', '')}".rstrip()
        self.known(where, table, types)
        return kind(*(self.get(where, table, key, type_) for key, type_ in types.items()))

    def pull_request(
        self, number: int, table: dict[str, Any], series: dict[str, Series]
    ) -> PullRequest:
        where = str(table.get("branch") or f"pull request {number}")
        self.known(where, table, {f.name.replace("most_", "most-") for f in fields(PullRequest)})
        branch, name, title, text = (
            self.get(where, table, key, str) for key in ("branch", "series", "title", "text")
        )
        if branch and not _BRANCH.fullmatch(branch):
            self.wrong(where, "that is no name for a branch", "use letters, digits, `-` and `/`")
        if title and not (_TITLE.fullmatch(title) and len(title) <= WIDTH):
            what = f"the title is no Conventional Commit of at most {WIDTH} characters"
            self.wrong(where, what, "write `feat(store): add ...`")
        if name and name not in series:
            self.wrong(where, f"`{name}` is no series", f"name one of {', '.join(series)}")
        self.body(where, text)
        most = series[name].most_added_by_branch if name in series else 1
        if "most-added" in table:
            most = min(most, self.get(where, table, "most-added", int))
        issues = self.many(where, table, "issues", int)
        lists: dict[str, tuple[str, ...]] = {}
        for key, (form, said) in _LISTS.items():
            lists[key] = tuple(self.many(where, table, key, str))
            for item in lists[key]:
                if not re.fullmatch(form, item):
                    what = f"`{item}` under `{key}` has another form"
                    self.wrong(where, what, f"list {said}")
        return PullRequest(branch, name, title, text.strip(), most, tuple(issues), **lists)

    def body(self, where: str, text: str) -> None:
        """Look at the form of a text."""
        lines = text.splitlines()
        if text and [line for line in lines if line in HEADINGS] != list(HEADINGS):
            what = f"the text lacks {' or '.join(HEADINGS)}"
            self.wrong(where, what, "write both, in this order")
        if _CUTS.search(text):
            what = "the text has a line that ends the message of a patch"
            self.wrong(where, what, "write it otherwise")
        for line in lines:
            breakable = " " in line.strip().removeprefix("- ") and line.lstrip()[:1] != "|"
            if len(line) > WIDTH and breakable:
                self.wrong(where, f"a line has more than {WIDTH} characters: {line}", "wrap it")


def load(path: Path) -> Manifest:
    """Read `stack.toml`, or raise every problem that there is with it."""
    try:
        table = tomllib.loads(path.read_text())
    except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
        raise StackError([Problem(NAME, f"cannot be read: {error}", "write it")]) from None
    reader, top = _Reader(), "top level"
    reader.known(top, table, {"series", "pull_request", "own", "compatible"})
    series = [reader.make(Series, t) for t in reader.many(top, table, "series", dict)]
    by_name = {each.name: each for each in series}
    own = reader.many(top, table, "own", str)
    requests = [
        reader.pull_request(number, entry, by_name)
        for number, entry in enumerate(reader.many(top, table, "pull_request", dict), 1)
    ]
    compatible = [
        reader.make(Compatible, entry) for entry in reader.many(top, table, "compatible", dict)
    ]
    for what, names in (
        ("series", [each.name for each in series]),
        ("pull_request", [request.branch for request in requests]),
    ):
        if not names:
            reader.wrong(top, f"it names no {what}", f"write a `[[{what}]]`")
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            reader.wrong(name, f"two tables under `{what}` have this name", "rename one of them")
    if reader.problems:
        raise StackError(reader.problems)
    order = list(by_name)
    requests.sort(key=lambda request: order.index(request.series))
    return Manifest(tuple(series), tuple(requests), tuple(own), tuple(compatible))
