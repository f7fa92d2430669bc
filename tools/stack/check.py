"""What can be said of a stack without running anything: its sizes, and whether its branches stand alone."""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tools.overlay.problems import Problem
from tools.stack.manifest import NAME, StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tools.stack.branches import Branch, Made
    from tools.stack.cut import Stack
    from tools.stack.manifest import Series
    from tools.stack.repository import Repository

KINDS = ("src", "tests", "docs", "changes")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"`+([^`\n]+)`+")
_TEXTS = (".py", ".md", ".toml", ".yml", ".ipynb")


def check(stack: Stack, made: Made, repository: Repository) -> list[Problem]:
    """Return what keeps the branches from being small and from standing alone."""
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
    return [*problems, *_mentions(stack, made, repository)]


def lines(repository: Repository, branch: Branch, kind: str) -> tuple[int, int]:
    """Return how many lines a branch adds and removes in one of the folders."""
    changed = repository.changed(branch.parent, branch.commit)
    counts = [count for path, count in changed.items() if path.startswith(f"{kind}/")]
    return sum(added for added, _ in counts), sum(removed for _, removed in counts)


def _of(series: Series, made: Made) -> list[Branch]:
    return [branch for branch in made.branches if branch.pull_request.series == series.name]


def _mentions(stack: Stack, made: Made, repository: Repository) -> Iterator[Problem]:
    """Find what a branch says of names that only branches bring that it does not stand on.

    Where such a name is used a linter finds it. A comment, a docstring and a sentence can mention it too.
    """
    known = _words_of(stack)
    brought: dict[str, int] = {}
    for leaf, owner in stack.owners.items():
        if leaf.path.startswith("src/"):
            for name in (leaf.name.rpartition(".")[2], PurePosixPath(leaf.path).stem):
                if name and name not in known:
                    brought[name] = min(owner, brought.get(name, owner))
    told: set[tuple[str, str]] = set()
    for number, branch in enumerate(made.branches):
        here = {number, *made.manifest.below(number)}
        files = {path: text.decode(errors="ignore") for path, text in stack.files(here).items()}
        bound = {
            name for path, text in files.items() if path.endswith(".py") for name in _bound(text)
        }
        absent = {name for name, owner in brought.items() if owner not in here} - bound
        for path in stack.diff(number):
            code = set(_WORD.findall(" ".join(_CODE.findall(files[path]))))
            plain = {word for word in _WORD.findall(files[path]) if _is_distinctive(word)}
            for name in sorted(absent & (code | plain)):
                if (path, name) in told:
                    continue
                told.add((path, name))
                before = re.split(rf"\b{name}\b", files[path], maxsplit=1)[0]
                yield Problem(
                    f"{branch.name}, {path}:{before.count('\n') + 1}",
                    f"mentions `{name}`, which {made.branches[brought[name]].name} brings",
                    "move what mentions it there, or what it mentions here",
                )


def _is_distinctive(word: str) -> bool:
    """Tell a word that is none of English: it has an underscore, or capitals within."""
    return "_" in word or word[1:].lower() != word[1:]


def _bound(text: str) -> Iterator[str]:
    """Yield the names that a module binds in whatever way, parameters and attributes among them."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                yield name


def _words_of(stack: Stack) -> set[str]:
    """Return all words in upstream's sources, tests and documents."""
    return {
        word
        for folder in KINDS[:3]
        for path in (stack.base / folder).rglob("*")
        if path.suffix in _TEXTS and path.is_file()
        for word in _WORD.findall(path.read_text(errors="replace"))
    }


def table(
    made: Made,
    repository: Repository,
    more: Callable[[Branch], Sequence[str]] = lambda branch: (),
    heads: Sequence[str] = (),
) -> list[str]:
    """Lay out what each branch and each series adds and removes, and how much it may add.

    Parameters
    ----------
    made : Made
        The branches.
    repository : Repository
        Where their commits are.
    more : callable
        Returns further columns for a branch.
    heads : Sequence of str
        Their headings.

    Returns
    -------
    list of str
        A line for each branch and each series.
    """
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


def expect_sound(stack: Stack, made: Made, repository: Repository) -> None:
    """Raise what is wrong with a stack."""
    if problems := check(stack, made, repository):
        raise StackError(problems)
