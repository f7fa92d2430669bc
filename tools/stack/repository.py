"""Git, by its plumbing: what is made here never touches a work tree."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.overlay import upstream
from tools.overlay.problems import Problem
from tools.overlay.project import Project
from tools.stack.manifest import StackError

_AUTHOR = re.compile(r"(?P<name>[^<>\n]*[^<>\s]) <(?P<email>[^<>\s]+)>")
_NOBODY = ("zarr-python", "zarr@localhost")
_RELEASED = "1000000000 +0000"
"""The date of what is made of a source distribution."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes commits, and when."""

    name: str
    email: str
    date: str
    """In a form that git reads: `1700000000 +0000`, `2026-01-02T03:04:05Z`."""

    def variables(self) -> dict[str, str]:
        """Return the environment variables that tell git."""
        return {
            f"GIT_{role}_{part}": text
            for role in ("AUTHOR", "COMMITTER")
            for part, text in (("NAME", self.name), ("EMAIL", self.email), ("DATE", self.date))
        }


@dataclass(frozen=True, slots=True)
class Repository:
    """A checkout."""

    path: Path

    def git(
        self, *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> str:
        """Run git, which must not fail, and return its output without the newline at its end."""
        done = self._run(arguments, stdin, env)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            what = f"`git {' '.join(map(str, arguments[:2]))}` failed: {said}"
            raise StackError([Problem(str(self.path), what, "see what git says")])
        return done.stdout.decode(errors="replace").removesuffix("\n")

    def asks(self, *arguments: str) -> str | None:
        """Run git for an answer that it may not have, `None`."""
        done = self._run(arguments, b"", None)
        return None if done.returncode else done.stdout.decode().strip()

    def _run(
        self, arguments: Sequence[str | Path], stdin: bytes, env: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[bytes]:
        # Variables such as GIT_DIR, which hooks have, would lead git to another repository.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or "CONFIG" in k}
        try:
            return subprocess.run(
                ["git", "-c", "core.autocrlf=false", *map(str, arguments)],
                cwd=self.path,
                env=kept | dict(env or {}),
                input=stdin,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            what, remedy = "cannot be found", "install git, and put it on the path"
            raise StackError([Problem("git", what, remedy)]) from None

    def commit(self, ref: str) -> str:
        """Return the hash of the commit that a tag, a branch or a hash names."""
        if found := self.asks("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"):
            return found
        remedy = "fetch it (`git fetch --tags` for releases), or name another with --base"
        raise StackError([Problem(str(self.path), f"`{ref}` names no commit", remedy)])

    def checked_out(self) -> set[str]:
        """Return the branches that are checked out, in any of the work trees."""
        mark = "branch refs/heads/"
        listed = self.git("worktree", "list", "--porcelain").splitlines()
        return {line.removeprefix(mark) for line in listed if line.startswith(mark)}

    def branches(self) -> dict[str, str]:
        """Return the branches, and the commit of each."""
        form = "--format=%(refname:lstrip=2) %(objectname)"
        listed = self.git("for-each-ref", form, "refs/heads").splitlines()
        return dict(line.rsplit(" ", 1) for line in listed)

    def changed(self, before: str, after: str) -> dict[str, tuple[int, int]]:
        """Return by path how many lines are added and removed between two commits."""
        listed = self.git("diff", "--numstat", "-z", "--no-renames", before, after).split("\0")
        rows = (line.split("\t") for line in listed if line)
        # Of what is no text git tells no numbers.
        return {path: (int(a.replace("-", "0")), int(r.replace("-", "0"))) for a, r, path in rows}

    def identity(self, *, base: str, author: str | None, date: str | None) -> Identity:
        """Find out who makes commits, git's user if none is given, and when, the base's date if none is."""
        date = date or self._date(base)
        if author is None:
            name, email = (self.asks("config", f"user.{part}") for part in ("name", "email"))
            if not name or not email:
                remedy = "pass --author, or set user.name and user.email"
                raise StackError([Problem(str(self.path), "git knows no user here", remedy)])
            return Identity(name, email, date)
        match = _AUTHOR.fullmatch(author)
        if match is None:
            what, remedy = f"`{author}` is no author", "write `Name <name@example.org>`"
            raise StackError([Problem("--author", what, remedy)])
        return Identity(match["name"], match["email"], date)

    def nobody(self, base: str) -> Identity:
        """Return who makes commits that are not for sending, at the time of a commit."""
        return Identity(*_NOBODY, self._date(base))

    def _date(self, commit: str) -> str:
        return "@" + self.git("show", "--no-patch", "--format=%cd", "--date=raw", commit)

    @contextmanager
    def index(self, commit: str) -> Iterator[dict[str, str]]:
        """Give the environment in which git has an index of its own, with what a commit holds."""
        with tempfile.TemporaryDirectory(prefix="zarr-stack-") as folder:
            env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self.git("read-tree", commit, env=env)
            yield env

    @contextmanager
    def files(self, commit: str) -> Iterator[Path]:
        """Give a folder with the files of a commit."""
        with tempfile.TemporaryDirectory(prefix="zarr-stack-") as folder, self.index(commit) as env:
            self.git("checkout-index", "--all", f"--prefix={folder}/", env=env)
            yield Path(folder)


def at(path: Path) -> Repository:
    """Take the checkout of zarr-python at a path, or around it."""
    top = Repository(path).asks("rev-parse", "--show-toplevel") if path.is_dir() else None
    if not top:
        remedy = "name a clone of zarr-python with --checkout, or leave it out to have one made"
        raise StackError([Problem(str(path), "is no checkout", remedy)])
    return Repository(Path(top))


def of_release(project: Project, version: str, into: Path) -> Repository:
    """Make a checkout of the source distribution of a release, unless it is there."""
    sha256 = project.load_lock().sdist if version == project.pinned else None
    archive = upstream.fetch(version, "sdist", project.downloads, sha256=sha256)
    return of_folder(upstream.unpack(archive, project.downloads), version, into)


def of_folder(source: Path, version: str, into: Path) -> Repository:
    """Make a checkout of the files of a release, unless it is there: one commit, always the same, and a tag."""
    made = Repository(into / f"zarr-{version}")
    if (made.path / ".git").is_dir() and made.asks("rev-parse", "--verify", f"v{version}"):
        return made
    shutil.rmtree(made.path, ignore_errors=True)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as folder:
        new = Repository(Path(folder) / "checkout")
        shutil.copytree(
            source, new.path, ignore=shutil.ignore_patterns("__pycache__", ".git", "PKG-INFO")
        )
        new.git("init", "--quiet", "--initial-branch=main")
        new.git("add", "--all")
        who = Identity(*_NOBODY, _RELEASED).variables()
        message = f"zarr {version}, as in its source distribution\n".encode()
        commit = new.git("commit-tree", new.git("write-tree"), stdin=message, env=who)
        new.git("update-ref", "refs/heads/main", commit)
        new.git("tag", f"v{version}", commit)
        new.path.rename(made.path)
    return made
