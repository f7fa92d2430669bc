"""The metadata of the release, in the terms of `pyproject.toml`."""

import configparser
from typing import Any

from tools.overlay.upstream import Release

_OWN = ("name", "version", "readme", "dynamic")
_TABLES = {"console_scripts": "scripts", "gui_scripts": "gui-scripts"}


def project_table(release: Release) -> dict[str, Any]:
    """Return what a wheel says about itself, but name, version and readme, as a `project` table."""
    from hatchling.metadata.spec import project_metadata_from_core_metadata

    info = release.info or release.root
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
    folder = (release.info or release.root) / "licenses"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
