"""A small project with an overlay and a release to merge it into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.overlay.project import Project

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = {
    "zarr/__init__.py": "from zarr._version import version as __version__\n",
    "zarr/_version.py": (
        "__version__: str\n\n__version__ = version = '1.2.3'\n"
        "__version_tuple__ = version_tuple = (1, 2, 3)\n"
    ),
    "zarr/py.typed": "",
    "zarr/store.py": "class Store:\n    def get(self): ...\n\n    def put(self): ...\n\n\ndef f(): ...\n",
    "zarr/untouched.py": "this is not Python, and nobody looks\r\n",
}
OVERLAY = {
    "zarr/_reads.py": '"""All new."""\n',
    "zarr/store.py": (
        '"""Why."""\n\n\nclass Store:\n    # overlay: after get\n    def get_many(self): ...\n\n'
        "    def put(self, value): ...\n"
    ),
}
SETTINGS = """\
[build-system]
requires = ["hatchling", "zarr==1.2.3"]

[tool.overlay]
local-version = "fork.7"
"""


def write(root: Path, files: dict[str, str]) -> None:
    """Write files, by their paths below a folder."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text.encode())


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder that holds a released package."""
    root = tmp_path / "release"
    write(root, RELEASE)
    return root


@pytest.fixture
def project(tmp_path: Path, release: Path) -> Project:
    """A project with a lock that fits."""
    root = tmp_path / "project"
    write(root / "src", OVERLAY)
    write(root, {"pyproject.toml": SETTINGS})
    project = Project(root)
    project.lock_file.write_text(
        'upstream = "1.2.3"\nsdist-sha256 = "0"\nwheel-sha256 = "1"\nopened = []\n[replaced]\n'
    )
    found = project.release(release)
    project.lock_file.write_text(project.rewritten(found, project.load_lock()).text())
    return project
