"""Making the branches, and patches of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.overlay.problems import Problem
from tools.stack.cut import Stack
from tools.stack.manifest import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.overlay.project import Project
    from tools.stack.manifest import PullRequest
    from tools.stack.repository import Identity, Repository

_PATCH = re.compile(r"\d{4}-.*\.patch")


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch."""

    pull_request: PullRequest
    commit: str
    parent: str


def commits(project: Project, repository: Repository, base: str, who: Identity) -> list[Branch]:
    """Make the commits of the stack, on which no branch stands yet.

    Parameters
    ----------
    project : Project
        The fork.
    repository : Repository
        A checkout of zarr-python.
    base : str
        The commit to start from.
    who : Identity
        Who makes them, and when: the same for the same base and overlay gives the same hashes.

    Returns
    -------
    list of Branch
        The branches in their order, each on top of the one before.

    Raises
    ------
    OverlayError
        If the base holds no zarr or the overlay does not fit it: with every problem there is.
    """
    with repository.files(base) as folder, repository.index(base) as env:
        if not (folder / "src" / "zarr" / "__init__.py").is_file():
            what, remedy = f"{base[:12]} holds no src/zarr", "name a checkout of zarr-python"
            raise StackError([Problem(str(repository.path), what, remedy)])
        stack = Stack(project, folder)
        stack.check_base()
        made: list[Branch] = []
        parent = base
        for number, pull_request in enumerate(stack.manifest.pull_requests):
            files = {path: after for path, (_, after) in stack.diff(number).items()}
            if not files:
                what, remedy = "changes nothing", "see `python -m tools.stack check`"
                raise StackError([Problem(pull_request.branch, what, remedy)])
            _stage(repository, env, files)
            tree = repository.git("write-tree", env=env)
            message = pull_request.message.encode()
            commit = repository.git(
                "commit-tree", tree, "-p", parent, stdin=message, env=who.variables()
            )
            made.append(Branch(pull_request, commit, parent))
            parent = commit
    return made


def _stage(repository: Repository, env: dict[str, str], files: dict[str, bytes]) -> None:
    """Put files into an index, with the mode that they have there."""
    listed = repository.git("ls-files", "--stage", "-z", "--", *files, env=env).split("\0")
    modes = {path: entry[:6] for entry, _, path in (line.partition("\t") for line in listed)}
    entries = []
    for path, content in files.items():
        blob = repository.git("hash-object", "-w", "--stdin", stdin=content)
        entries.append(f"{modes.get(path, '100644')} {blob}\t{path}\0")
    repository.git("update-index", "-z", "--index-info", stdin="".join(entries).encode(), env=env)


def build(repository: Repository, made: Sequence[Branch], *, force: bool) -> None:
    """Let the branches point to their commits: all of them, or none.

    Parameters
    ----------
    repository : Repository
        The checkout.
    made : Sequence of Branch
        The branches.
    force : bool
        Whether branches that exist may be moved.

    Raises
    ------
    StackError
        If one exists that may not be moved: that of a work tree never is.
    """
    existing, used = repository.branches(), repository.checked_out()
    problems: list[Problem] = []
    lines: list[str] = []
    for branch in made:
        name = branch.pull_request.branch
        before = existing.get(name, "0" * len(branch.commit))
        lines.append(f"update refs/heads/{name} {branch.commit} {before}\n")
        if before == branch.commit or name not in existing:
            continue
        if name in used:
            what, remedy = (
                "is checked out",
                "check another one out: it is not moved under a work tree",
            )
            problems.append(Problem(name, what, remedy))
        elif not force:
            what, remedy = (
                "exists, and is another commit",
                "pass --force to replace it, or rename it",
            )
            problems.append(Problem(name, what, remedy))
    if problems:
        raise StackError(problems)
    repository.git("update-ref", "--stdin", stdin="".join(lines).encode())


def export(
    repository: Repository, made: Sequence[Branch], into: Path, *, force: bool
) -> list[Path]:
    """Write the commits as patches for `git am`.

    Parameters
    ----------
    repository : Repository
        The checkout that has the commits.
    made : Sequence of Branch
        The branches.
    into : Path
        The folder.
    force : bool
        Whether patches that lie there are replaced.

    Returns
    -------
    list of Path
        The files, in their order.

    Raises
    ------
    StackError
        If there are patches in the folder already.
    """
    into = into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    old = [path for path in into.iterdir() if _PATCH.fullmatch(path.name)]
    if old and not force:
        what, remedy = (
            "holds patches already",
            "pass --force to replace them, or name another folder",
        )
        raise StackError([Problem(str(into), what, remedy)])
    for path in old:
        path.unlink()
    repository.git(
        *("format-patch", "--quiet", "--no-signature", "--full-index", "--binary", "--no-renames"),
        *("--numbered", "--output-directory", into, f"{made[0].parent}..{made[-1].commit}"),
    )
    return sorted(path for path in into.iterdir() if _PATCH.fullmatch(path.name))
