"""What can be said of a stack without running anything: its sizes, and whether its branches stand alone."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tools.overlay.problems import Problem
from tools.stack.branches import Branch, Made
from tools.stack.cut import Stack
from tools.stack.manifest import NAME, Series, StackError
from tools.stack.repository import Repository

KINDS = ("src", "tests", "docs", "changes")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"`+([^`\n]+)`+")
_BOUND = re.compile(r"(?:def|class) (\w+)|(\w+) *(?::|=(?!=))")


def check(stack: Stack, made: Made, repository: Repository) -> None:
    """See to it that the branches are small and stand alone, and raise all that is wrong."""
    problems: list[Problem] = []
    for branch in made.branches:
        request = branch.pull_request
        where = f"{NAME}, {request.branch}"
        if not request.fragments:
            what = "it has no change fragment"
            problems.append(Problem(where, what, "write one in changes/ and list it"))
        if not request.tests and not request.upstream_tests:
            what = "it is not tested"
            problems.append(Problem(where, what, "list `tests` or `upstream_tests`"))
        problems += (
            Problem(where, f"upstream has no `{path}`", "correct `upstream_tests`")
            for path in request.upstream_tests
            if not (stack.base / path.partition("::")[0]).exists()
        )
        if (added := lines(repository, branch, "src")[0]) > request.most_added:
            what = f"adds {added} lines in src/, and the most is {request.most_added}"
            problems.append(Problem(branch.name, what, "move definitions to another pull request"))
    for series in made.manifest.series:
        for kind, most in (
            ("src", series.most_added_in_src),
            ("tests", series.most_added_in_tests),
        ):
            added = sum(lines(repository, branch, kind)[0] for branch in _of(series, made))
            if added > most:
                what = f"adds {added} lines in {kind}/, and the most is {most}"
                problems.append(Problem(f"series {series.name}", what, "move or shorten some"))
    problems += _mentions(stack, made)
    if problems:
        raise StackError(problems)


def lines(repository: Repository, branch: Branch, kind: str) -> tuple[int, int]:
    """Return how many lines a branch adds and removes in one of the folders."""
    changed = repository.changed(branch.parent, branch.commit)
    counts = [count for path, count in changed.items() if path.startswith(f"{kind}/")]
    return sum(added for added, _ in counts), sum(removed for _, removed in counts)


def _of(series: Series, made: Made) -> list[Branch]:
    return [branch for branch in made.branches if branch.pull_request.series == series.name]


def _mentions(stack: Stack, made: Made) -> Iterator[Problem]:
    """Find text on a branch that mentions names which only branches outside its base define.

    A linter finds uses of such names in code, but not in comments, docstrings and documentation.
    """
    brought: dict[str, int] = {}
    for leaf, owner in stack.owners.items():
        if leaf.path.startswith("src/"):
            for name in (leaf.name.rpartition(".")[2], PurePosixPath(leaf.path).stem):
                brought[name] = min(owner, brought.get(name, owner))
    told = {word for text in _texts(stack.base) for word in _WORD.findall(text)}
    for number, branch in enumerate(made.branches):
        here = {number, *made.manifest.below(number)}
        files = {path: text.decode(errors="ignore") for path, text in stack.files(here).items()}
        absent = {name for name, owner in brought.items() if name and owner not in here}
        for path in stack.diff(number):
            text = files[path]
            words = {
                word for word in _WORD.findall(text) if "_" in word or word[1:].lower() != word[1:]
            }
            words.update(_WORD.findall(" ".join(_CODE.findall(text))))
            # Not what the branch itself gives this name: a parameter, a variable, a function of a test.
            bound = {
                name
                for every in files.values()
                for found in _BOUND.findall(every)
                for name in found
            }
            for name in sorted((absent & words) - told - bound):
                told.add(name)
                line = re.split(rf"\b{name}\b", text, maxsplit=1)[0].count("\n") + 1
                yield Problem(
                    f"{branch.name}, {path}:{line}",
                    f"mentions `{name}`, which {made.branches[brought[name]].name} brings",
                    "move what mentions it there, or what it mentions here",
                )


def _texts(base: Path) -> Iterator[str]:
    """Yield upstream's sources, tests and documents."""
    for folder in KINDS[:3]:
        for path in (base / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".ipynb"):
                yield path.read_text(errors="replace")


def table(
    made: Made,
    repository: Repository,
    more: Callable[[Branch], Sequence[str]] = lambda branch: (),
    heads: Sequence[str] = (),
) -> list[str]:
    """Lay out what each branch and each series adds and may add; `more` and `heads` are further columns."""
    rows: list[tuple[str, ...]] = []
    for series in made.manifest.series:
        sums = dict.fromkeys(KINDS, (0, 0))
        for branch in _of(series, made):
            counts = {kind: lines(repository, branch, kind) for kind in KINDS}
            sums = {k: (sums[k][0] + a, sums[k][1] + r) for k, (a, r) in counts.items()}
            most = (f"of {branch.pull_request.most_added}", "")
            rows.append((branch.name, *_cells(counts, most), *more(branch)))
        most = (f"of {series.most_added_in_src}", f"of {series.most_added_in_tests}")
        rows.append((f"= {series.name}", *_cells(sums, most), *("" for _ in heads)))
    return aligned([("", "src", "", "tests", "", "docs", "changes", *heads), *rows])


def _cells(counts: dict[str, tuple[int, int]], most: tuple[str, str]) -> list[str]:
    src, tests, *others = (f"+{added} -{removed}" for added, removed in counts.values())
    return [src, most[0], tests, most[1], *others]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows of text in columns, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def contents(made: Made, repository: Repository) -> Iterator[str]:
    """Yield lines that tell for each branch its title and what it does to which file."""
    for number, branch in enumerate(made.branches, 1):
        request = branch.pull_request
        issues = " ".join(f"#{issue}" for issue in request.issues)
        yield f"{number:2} {branch.name}  ({request.series})  {issues}".rstrip()
        yield f"   {request.title}"
        changed = repository.changed(branch.parent, branch.commit)
        yield from (
            f"   {row}"
            for row in aligned([(path, f"+{a} -{r}") for path, (a, r) in changed.items()])
        )
        yield ""
