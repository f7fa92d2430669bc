"""Laying merged modules out with ruff, by upstream's rules."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.overlay.problems import OverlayError, Problem

SETTINGS = ("--isolated", "--no-cache", "--line-length=100", "--target-version=py312")
UNUSED = "--select=F401,TC001,TC002,TC003,TC004,TC005"
"""No import that nothing uses, and those for typing alone in their block."""
SORTED = "--select=I,RUF022"
"""Imports and `__all__`. They come last: what is left of a list of names may fit on one line."""
_FIRST_PARTY = "--config=lint.isort.known-first-party = ['zarr', 'tests']"


def ruff() -> str:
    """Return the path of ruff, which is a requirement of the build."""
    try:
        from ruff import find_ruff_bin  # type: ignore[import-untyped]

        return str(find_ruff_bin())
    except (ImportError, FileNotFoundError):
        what = "is not installed, and it lays out what is merged"
        remedy = "install the release that pyproject.toml requires for building, with pip or uv"
        raise OverlayError([Problem("ruff", what, remedy)]) from None


def tidy(modules: Mapping[str, str]) -> dict[str, str]:
    """Sort the imports of modules, leave out those that nothing uses, and format the modules.

    Texts come and go by path. Upstream's own modules are so already, and stay as they are.
    """
    if not modules:
        return {}
    program = ruff()
    with tempfile.TemporaryDirectory(prefix="zarr-tidy-") as folder:
        for path, text in modules.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
        fix = ("check", "--fix", "--unsafe-fixes", "--exit-zero", _FIRST_PARTY)
        for command in ((*fix, UNUSED), (*fix, SORTED), ("format",)):
            arguments = [program, *command, "--quiet", *SETTINGS, "."]
            subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return {path: (Path(folder) / path).read_bytes().decode() for path in modules}
