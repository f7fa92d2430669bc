"""Making the branches, and patches of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.overlay.problems import Problem
from tools.overlay.project import Project
from tools.stack.cut import FIRST_NUMBER, Stack
from tools.stack.manifest import Manifest, PullRequest, StackError
from tools.stack.repository import Identity, Repository

_PATCH = re.compile(r"\d{4}-.*\.patch")


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch."""

    pull_request: PullRequest
    commit: str
    parent: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.pull_request.branch


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a stack."""

    manifest: Manifest
    base: str
    """The commit that the first series is based on."""
    branches: tuple[Branch, ...]
    """In the order of the manifest."""
    whole: str
    """A commit with all of the series."""


def commits(
    project: Project,
    repository: Repository,
    base: str,
    who: Identity,
    *,
    first_number: int = FIRST_NUMBER,
    numbers: Mapping[str, int] | None = None,
) -> Made:
    """Make the commits of the stack on a base, on which no branch stands yet.

    The same base, overlay, identity and numbers of the pull requests give the same hashes. If the base holds
    no zarr, or the overlay does not fit it, every problem that there is is raised.
    """
    with repository.files(base) as folder:
        if not (folder / "src" / "zarr" / "__init__.py").is_file():
            what, remedy = f"{base[:12]} holds no src/zarr", "name a checkout of zarr-python"
            raise StackError([Problem(str(repository.path), what, remedy)])
        stack = Stack(project, folder, first_number, numbers or {})
        stack.check_base()
        manifest = stack.manifest
        made: list[Branch] = []
        for number, request in enumerate(manifest.pull_requests):
            files = stack.diff(number)
            if not files:
                what, remedy = "changes nothing", "remove it, or let it name something"
                raise StackError([Problem(request.branch, what, remedy)])
            below = manifest.below(number)
            parent = made[below[-1]].commit if below else base
            commit = _commit(repository, [parent], files, request.message, who)
            made.append(Branch(request, commit, parent))
        tips = [made[number].commit for number in manifest.tips()]
        files = stack.files(range(len(made)))
        whole = _commit(repository, tips, files, "All series\n", who)
    return Made(manifest, base, tuple(made), whole)


def _commit(
    repository: Repository,
    parents: Sequence[str],
    files: Mapping[str, bytes],
    message: str,
    who: Identity,
) -> str:
    """Make a commit of files on top of what the first parent holds, with the mode that they have there."""
    with repository.index(parents[0]) as env:
        listed = repository.git("ls-files", "--stage", "-z", "--", *files, env=env).split("\0")
        modes = {path: entry[:6] for entry, _, path in (line.partition("\t") for line in listed)}
        entries = []
        for path, content in files.items():
            blob = repository.git("hash-object", "-w", "--stdin", stdin=content)
            entries.append(f"{modes.get(path, '100644')} {blob}\t{path}\0")
        stdin = "".join(entries).encode()
        repository.git("update-index", "-z", "--index-info", stdin=stdin, env=env)
        tree = repository.git("write-tree", env=env)
    options = [option for parent in parents for option in ("-p", parent)]
    return repository.git(
        "commit-tree", tree, *options, stdin=message.encode(), env=who.variables()
    )


def build(repository: Repository, made: Made, *, force: bool) -> None:
    """Let all branches point to their commits; one that exists moves with `force` alone, and in no work tree."""
    existing, used = repository.branches(), repository.checked_out()
    problems: list[Problem] = []
    lines: list[str] = []
    for branch in made.branches:
        before = existing.get(branch.name, "0" * len(branch.commit))
        lines.append(f"update refs/heads/{branch.name} {branch.commit} {before}\n")
        if before == branch.commit or branch.name not in existing:
            continue
        if branch.name in used:
            remedy = "check another one out: it is not moved under a work tree"
            problems.append(Problem(branch.name, "is checked out", remedy))
        elif not force:
            remedy = "pass --force to replace it, or rename it"
            problems.append(Problem(branch.name, "exists, and is another commit", remedy))
    if problems:
        raise StackError(problems)
    repository.git("update-ref", "--stdin", stdin="".join(lines).encode())


def export(repository: Repository, made: Made, into: Path, *, force: bool) -> list[Path]:
    """Write the commits as patches for `git am`, a folder for each series; `force` replaces what is there."""
    into = into.resolve()
    written: list[Path] = []
    for series in made.manifest.series:
        folder = into / series.name
        folder.mkdir(parents=True, exist_ok=True)
        old = [path for path in folder.iterdir() if _PATCH.fullmatch(path.name)]
        if old and not force:
            remedy = "pass --force to replace them, or name another folder"
            raise StackError([Problem(str(folder), "holds patches already", remedy)])
        for path in old:
            path.unlink()
        own = [branch for branch in made.branches if branch.pull_request.series == series.name]
        if own:
            repository.git(
                *("format-patch", "--quiet", "--no-signature", "--full-index", "--binary"),
                *("--no-renames", "--numbered", "--output-directory", folder),
                f"{own[0].parent}..{own[-1].commit}",
            )
        written += sorted(path for path in folder.iterdir() if _PATCH.fullmatch(path.name))
    return written
