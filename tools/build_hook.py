"""What hatchling runs: metadata from the release, and the package from the merge.

Both hooks run in the build environment, where the release that the overlay is merged into is installed.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.overlay import metadata, tree, upstream
from tools.overlay.problems import OverlayError
from tools.overlay.project import Project


@contextmanager
def _without_traceback() -> Iterator[None]:
    """End the build with the problems alone."""
    try:
        yield
    except OverlayError as error:
        sys.exit(f"\n{error}\n")


def _release(project: Project) -> upstream.Release:
    found = upstream.installed()
    project.expect(found, where="the build environment")
    project.load_lock()
    return found


class Metadata(MetadataHookInterface):
    """Gives the fork the metadata of the release."""

    def update(self, metadata_: dict[str, Any]) -> None:
        """Fill in the fields of the `project` table that `pyproject.toml` leaves dynamic."""
        project = Project(Path(self.root))
        with _without_traceback():
            found = _release(project)
        metadata_ |= metadata.project_table(found) | {"version": project.version}


class Package(BuildHookInterface[Any]):
    """Gives the wheel the merged package, or an editable install a folder with it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Merge, for a wheel (`version` is `standard`) or an editable install (`editable`)."""
        project = Project(Path(self.root))
        with _without_traceback():
            found = _release(project)
            plan = project.plan(found)
            if version == "editable":
                upstream.keep(found, project.downloads)
                tree.materialise(plan, found.root, project.merged)
            else:
                self._folder = tempfile.TemporaryDirectory(prefix="zarr-merged-")
                tree.materialise(plan, found.root, Path(self._folder.name))
                build_data["force_include"][f"{self._folder.name}/zarr"] = "zarr"
        self._license(found)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel was packed from."""
        if version != "editable":
            self._folder.cleanup()

    def _license(self, found: upstream.Release) -> None:
        """Let the wheel carry the release's licence: the file of that name here is for this text alone."""
        builder = self.build_config.builder

        def add_licenses(archive: Any, records: Any) -> None:
            for name, content in metadata.licenses(found).items():
                records.write(archive.write_metadata(f"licenses/{name}", content))

        builder.add_licenses = add_licenses
