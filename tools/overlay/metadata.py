"""The metadata of the release, in the terms of `pyproject.toml`."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

from tools.overlay.upstream import Release

_OWN = ("name", "version", "readme", "dynamic")
_TABLES = {"console_scripts": "scripts", "gui_scripts": "gui-scripts"}


def project_table(release: Release) -> dict[str, Any]:
    """Return what an installed or unpacked wheel says about itself, as a `project` table.

    The name, the version and the readme are the fork's, and are left out.
    """
    from hatchling.metadata.spec import project_metadata_from_core_metadata

    info = _info(release)
    table = project_metadata_from_core_metadata((info / "METADATA").read_text())
    for field in _OWN:
        table.pop(field, None)
    entry_points = configparser.ConfigParser(delimiters="=")
    entry_points.optionxform = str  # type: ignore[assignment, method-assign]
    entry_points.read(info / "entry_points.txt")
    for group in entry_points.sections():
        points = dict(entry_points[group])
        if group in _TABLES:
            table[_TABLES[group]] = points
        else:
            table.setdefault("entry-points", {})[group] = points
    return table


def licenses(release: Release) -> dict[str, bytes]:
    """Return the licence files of the release, by the path that its metadata gives them."""
    folder = _info(release) / "licenses"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _info(release: Release) -> Path:
    if release.info is None:
        raise ValueError(f"{release.root} holds no dist-info")
    return release.info
