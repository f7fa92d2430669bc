"""What can be said of a stack without git, and without running anything: its contents and its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.overlay.problems import Problem
from tools.stack import alone
from tools.stack.diffstat import KINDS, measure
from tools.stack.manifest import NAME, StackError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.stack.cut import Stack
    from tools.stack.diffstat import Diffstat


def check(stack: Stack) -> list[Diffstat]:
    """See to it that a stack is whole, and that its branches are small and stand alone.

    Parameters
    ----------
    stack : Stack
        The stack.

    Returns
    -------
    list of Diffstat
        What each pull request does.

    Raises
    ------
    StackError
        If something is wrong: with all that can be found out.
    """
    stack.check_base()
    _ = stack.owners
    problems = list(_listed(stack))
    stats = [measure(stack.diff(n)) for n in range(len(stack.manifest.pull_requests))]
    most = stack.manifest.most_added_lines
    for pull_request, stat in zip(stack.manifest.pull_requests, stats, strict=True):
        if (added := stat.within("src/").added) > most:
            problems.append(
                Problem(
                    pull_request.branch,
                    f"adds {added} lines in src/, and the most is {most}",
                    "move definitions to another pull request",
                )
            )
        if not stat.files:
            problems.append(
                Problem(
                    pull_request.branch, "changes nothing", "remove it, or let it name something"
                )
            )
    problems += _whole(stack)
    problems += alone.mentions(stack)
    if problems:
        raise StackError(problems)
    return stats


def _listed(stack: Stack) -> list[Problem]:
    """Report what a pull request lacks, and upstream's tests that are not there."""
    problems: list[Problem] = []
    for pull_request in stack.manifest.pull_requests:
        where = f"{NAME}, {pull_request.branch}"
        if not pull_request.fragments:
            problems.append(
                Problem(where, "it has no change fragment", "write one in changes/ and list it")
            )
        if not pull_request.tests and not pull_request.upstream_tests:
            problems.append(Problem(where, "it is not tested", "list `tests` or `upstream_tests`"))
        problems.extend(
            Problem(where, f"upstream has no `{path}`", "correct `upstream_tests`")
            for path in pull_request.upstream_tests
            if not (stack.base / path.partition("::")[0]).exists()
        )
    return problems


def _whole(stack: Stack) -> list[Problem]:
    """Report files that are not at the tip what they are when the overlay is merged at once."""
    tip = stack.files(len(stack.manifest.pull_requests))
    whole = {
        path: part.content
        for plan in stack.plans
        for name, part in plan.parts.items()
        if (path := f"src/{name}" if name.startswith("zarr/") else name) not in stack.manifest.own
    }
    return [
        Problem(
            path, "is not at the tip of the stack what the whole overlay makes of it", "see why"
        )
        for path in sorted(whole)
        if tip.get(path) != whole[path]
    ]


def table(stack: Stack, stats: Sequence[Diffstat]) -> list[str]:
    """Lay out what each pull request adds and removes.

    Parameters
    ----------
    stack : Stack
        The stack.
    stats : Sequence of Diffstat
        What each pull request does.

    Returns
    -------
    list of str
        A line for each, and one for all of them.
    """
    rows = [
        ("", *KINDS),
        *(_row(pr.branch, s) for pr, s in zip(stack.manifest.pull_requests, stats, strict=True)),
    ]
    total = [
        sum((s.within(folder) for s in stats[1:]), stats[0].within(folder))
        for folder in KINDS.values()
    ]
    rows.append(("all", *map(str, total)))
    return aligned(rows)


def _row(branch: str, stat: Diffstat) -> tuple[str, ...]:
    return (branch, *(str(stat.within(folder)) for folder in KINDS.values()))


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


def contents(stack: Stack, stats: Sequence[Diffstat]) -> list[str]:
    """List what each pull request does to which file.

    Parameters
    ----------
    stack : Stack
        The stack.
    stats : Sequence of Diffstat
        What each pull request does.

    Returns
    -------
    list of str
        Lines: for each the branch, the title, and its files.
    """
    lines: list[str] = []
    for number, (pull_request, stat) in enumerate(
        zip(stack.manifest.pull_requests, stats, strict=True), 1
    ):
        issues = " ".join(f"#{issue}" for issue in pull_request.issues)
        lines += [
            f"{number:2} {pull_request.branch}  {issues}".rstrip(),
            f"   {pull_request.title}",
        ]
        lines += [
            f"   {row}"
            for row in aligned(
                [*((p, str(c)) for p, c in sorted(stat.files.items()))] or [("nothing",)]
            )
        ]
        lines.append("")
    return lines
