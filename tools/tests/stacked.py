"""A small fork with a stack, and the checkout of zarr-python that it is for."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.overlay.project import Project
from tools.stack.cut import Stack
from tools.tests.conftest import RELEASE, SETTINGS, write

UPSTREAM = {
    "pyproject.toml": '[project]\nname = "zarr"\n',
    ".gitignore": "_version.py\n",
    "src/zarr/__init__.py": "from zarr._version import version as __version__\n",
    "src/zarr/_version.py": RELEASE["zarr/_version.py"],
    "src/zarr/store.py": (
        '"""Stores."""\n\n\nclass Store:\n    def get(self, key: str) -> int:\n        return len(key)\n\n\n'
        "def close() -> None:\n    pass\n"
    ),
    "tests/__init__.py": "",
    "tests/test_store.py": (
        "from zarr.store import Store\n\n\ndef test_get() -> None:\n"
        '    assert Store().get("abc") == 3\n'
    ),
    "docs/guide.md": "# Guide\n\n## Stores\n\nText.\n",
    "docs/release-notes.md": "# Release notes\n\n<!-- towncrier release notes start -->\n",
}
OVERLAY = {
    "src/zarr/store.py": '''\
"""Reads of many keys."""

from zarr._plan import plan_reads
from zarr._report import ReadReport


class Store:
    # overlay: after get
    def get_many(self, keys: list[str]) -> list[int]:
        """Read many keys."""
        return [self.get(key) for key in plan_reads(keys)]

    # overlay: after get_many
    def report(self) -> ReadReport:
        """Report."""
        return ReadReport()


def close() -> None:
    return None
''',
    "src/zarr/_plan.py": '''\
"""Plans."""


def plan_reads(keys: list[str]) -> list[str]:
    """Plan."""
    return keys


def plan_writes(keys: list[str]) -> list[str]:
    """Plan."""
    return keys
''',
    "src/zarr/_report.py": '"""Reports."""\n\n\nclass ReadReport:\n    """A report."""\n',
    "tests/test_get_many.py": (
        "from zarr.store import Store\n\n\ndef test_get_many() -> None:\n"
        '    assert Store().get_many(["a"]) == [1]\n'
    ),
    "tests/test_report.py": (
        "from zarr._plan import plan_writes\nfrom zarr.store import Store\n\n\n"
        "def test_report() -> None:\n    assert Store().report()\n\n\n"
        "def test_writes() -> None:\n    assert plan_writes([]) == []\n"
    ),
    "docs/guide.md": (
        "<!-- overlay: after Stores -->\n## Many keys\n\nRead them.\n\n### Reports\n\nWhat was read.\n"
    ),
    "docs/picture.txt": "A picture.\n",
    "changes/many.feature.md": "Added `Store.get_many`.\n",
    "changes/report.feature.md": "Added reports and `_report`.\n",
    "changes/close.misc.md": "Closing a store returns `None`.\n",
}
MANIFEST = """\
# Only the fork's README shows it.
own = ["docs/picture.txt"]

[[series]]
name = "core"
most-added-in-src = 60
most-added-in-tests = 40
most-added-by-branch = 40

[[series]]
name = "local"
most-added-in-src = 10
most-added-in-tests = 10
most-added-by-branch = 10

[[pull_request]]
branch = "feat/many"
series = "core"
title = "feat(store): read many keys"
most-added = 20
issues = [1]
text = '''
## Summary

Because one call is enough.

## For reviewers

There is one test.
'''
definitions = ["zarr/store.py::Store.get_many", "zarr/_plan.py"]
tests = ["tests/test_get_many.py"]
docs = ["docs/guide.md"]
fragments = ["many.feature.md"]
upstream_tests = ["tests/test_store.py"]

[[pull_request]]
branch = "feat/report"
series = "core"
title = "feat(store): report reads"
text = "## Summary\\n\\nTo know.\\n\\n## For reviewers\\n\\nNothing."
definitions = ["zarr/store.py::Store.report", "zarr/_report.py", "zarr/_plan.py::plan_writes"]
tests = ["tests/test_report.py"]
docs = ["docs/guide.md#Reports"]
fragments = ["report.feature.md"]

[[pull_request]]
branch = "fix/close"
series = "local"
title = "fix: return nothing"
text = "## Summary\\n\\nThat is all.\\n\\n## For reviewers\\n\\nNothing."
definitions = ["zarr/store.py::close"]
upstream_tests = ["tests/test_store.py"]
fragments = ["close.misc.md"]
"""


def make(folder: Path) -> tuple[Project, Path]:
    """Write the fork and the files of upstream's checkout, and return the project and the latter's folder."""
    upstream, root = folder / "upstream", folder / "fork"
    write(upstream, UPSTREAM)
    write(root, OVERLAY | {"pyproject.toml": SETTINGS, "stack.toml": MANIFEST})
    project = Project(root)
    project.lock_file.write_text(
        'upstream = "1.2.3"\nsdist-sha256 = "0"\nwheel-sha256 = "1"\nopened = []\n[replaced]\n'
    )
    relock(project, upstream)
    return project, upstream


def relock(project: Project, upstream: Path) -> None:
    """Rewrite the lock for the overlay as it is now."""
    found = project.release(upstream)
    project.lock_file.write_text(project.rewritten(found, project.load_lock()).text())


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that occurs once in a file."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def copy(folder: Path, into: Path) -> Path:
    """Copy a folder and return the copy."""
    return Path(shutil.copytree(folder, into))


def again(stack: Stack) -> Stack:
    """Return the stack as its files are now."""
    return Stack(stack.project, stack.base)


def put(stack: Stack, files: dict[str, str]) -> Stack:
    """Return the stack with files in the project."""
    write(stack.project.root, files)
    return again(stack)
