"""The project as a whole: its pins, its lock, its overlay, and what comes of merging them."""

import re
import shutil
import subprocess
import time
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.overlay import lock, tree, upstream
from tools.overlay.problems import OverlayError, Problem

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Project:
    """A checkout of the fork."""

    root: Path = ROOT

    @property
    def overlay(self) -> Path:
        """The folder that holds the overlay's package."""
        return self.root / "src"

    @property
    def merged(self) -> Path:
        """Where the merged package of an editable install lies."""
        return self.root / "build" / "merged"

    @property
    def downloads(self) -> Path:
        """Where releases are kept."""
        return self.root / "build" / "upstream"

    @property
    def lock_file(self) -> Path:
        """The lock."""
        return self.root / lock.NAME

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text())

    @cached_property
    def pinned(self) -> str:
        """The release that `pyproject.toml` requires for building."""
        for requirement in self._settings["build-system"]["requires"]:
            if match := re.fullmatch(r"zarr\s*==\s*([^\s;*]+)", requirement):
                return match[1]
        what = "build-system.requires does not name one release of zarr"
        raise OverlayError([Problem("pyproject.toml", what, "require `zarr==VERSION` there")])

    @cached_property
    def version(self) -> str:
        """The version of what is built here. In a repository, it ends in the time of the last commit, in UTC."""
        if (info := self.root / "PKG-INFO").exists():  # of a source distribution
            return str(re.findall(r"(?m)^Version: (\S+)$", info.read_text())[0])
        local = self._settings["tool"]["overlay"]["local-version"]
        if (self.root / ".git").exists() and shutil.which("git"):
            git = ["git", "log", "-1", "--format=%ct"]
            done = subprocess.run(git, cwd=self.root, capture_output=True, text=True, check=False)
            if done.stdout.strip().isdigit():  # git may say more about a signature
                local += time.strftime(".%Y%m%d%H%M%S", time.gmtime(int(done.stdout)))
        return f"{self.pinned}+{local}"

    def load_lock(self) -> lock.Lock:
        """Read the lock, which must be about the pinned release."""
        loaded = lock.load(self.lock_file)
        if loaded.upstream != self.pinned:
            what = f"was written against zarr {loaded.upstream}, but pyproject.toml requires {self.pinned}"
            remedy = f"check that the overlay still says what it should, then {lock.REWRITE}"
            raise OverlayError([Problem(lock.NAME, what, remedy)])
        return loaded

    def release(self, path: Path | None = None) -> upstream.Release:
        """Find the release to merge into: at a path, or the pinned one, which is downloaded once."""
        if path is None:
            path = self.downloads / f"zarr-{self.pinned}"
            if not path.exists():
                wheel = self.load_lock().wheel
                path = upstream.fetch(self.pinned, "wheel", self.downloads, sha256=wheel)
        found = upstream.at(path, unpack_into=self.downloads)
        self.expect(found, where=str(path))
        return found

    def expect(self, found: upstream.Release, *, where: str) -> None:
        """Refuse what is not the pinned release; a checkout, which has no version, passes."""
        if found.version not in (None, self.pinned):
            what = f"holds zarr {found.version}, but pyproject.toml requires {self.pinned}"
            remedy = f"use zarr {self.pinned} itself, or require the other and rewrite the lock"
            raise OverlayError([Problem(where, what, remedy)])

    def plans(self, found: upstream.Release, *, lay_out: bool = True) -> list[tree.Plan]:
        """Merge the overlay into a release, in memory: its package, and its documents where it has them.

        Documents come with a source distribution or a checkout. `lay_out` says whether ruff lays out modules.
        """
        plans = [tree.plan(found.root, self.overlay, version=self.version, lay_out=lay_out)]
        documents = found.root.parent
        if found.root.name == "src" and (documents / tree.DOCUMENTS).is_dir():
            plans.append(tree.plan(documents, self.root, folder=tree.DOCUMENTS))
        return plans

    def plan(self, found: upstream.Release) -> tree.Plan:
        """Merge the overlay into a release, in memory, compare it with the lock, and raise all that is wrong."""
        plans = self.plans(found)
        problems = [problem for plan in plans for problem in plan.problems]
        try:
            locked = self.load_lock()
        except OverlayError as error:
            problems += error.problems
        else:
            problems += (problem for plan in plans for problem in lock.verify(plan, locked))
        if problems:
            raise OverlayError(problems)
        return plans[0]

    def rewritten(self, found: upstream.Release, old: lock.Lock) -> lock.Lock:
        """Return the lock as it should be for a release.

        It names the archives of the `old` one, and what that says about documents stays where the release
        comes without them.
        """
        plans = self.plans(found, lay_out=False)
        if problems := [problem for plan in plans for problem in plan.problems]:
            raise OverlayError(problems)
        opened, replaced = set(old.opened), dict(old.replaced)
        for plan in plans:
            opened -= lock.within(plan.folder, opened)
            opened |= plan.opened()
            for name in lock.within(plan.folder, replaced):
                del replaced[name]
            replaced |= plan.replaced()
        return lock.Lock(self.pinned, old.sdist, old.wheel, tuple(sorted(opened)), replaced)
