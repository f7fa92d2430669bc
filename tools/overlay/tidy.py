"""Laying merged modules out with ruff, by upstream's rules."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.overlay.problems import OverlayError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = (
    "--isolated",
    "--no-cache",
    "--config=line-length = 100",
    "--config=target-version = 'py312'",
)
RULES = (
    # Sorted imports and `__all__`, no import that nothing uses, and those for typing alone in their block.
    "--select=I,RUF022,F401,TC001,TC002,TC003,TC004,TC005",
    "--config=lint.isort.known-first-party = ['zarr', 'tests']",
)


def ruff() -> str:
    """Return the path of ruff, which lays out what is merged.

    Raises
    ------
    OverlayError
        If it is not installed for this interpreter.
    """
    try:
        from ruff import find_ruff_bin  # type: ignore[import-untyped]

        return str(find_ruff_bin())
    except (ImportError, FileNotFoundError):
        what = "is not installed, and it lays out what is merged"
        remedy = "install the build requirements of pyproject.toml: `pip install hatchling ruff`"
        raise OverlayError([Problem("ruff", what, remedy)]) from None


def tidy(modules: Mapping[str, str]) -> dict[str, str]:
    """Sort the imports of modules, leave out those that nothing uses, and format them.

    Upstream's own modules are so already, and stay as they are.

    Parameters
    ----------
    modules : Mapping
        By path, texts that are Python.

    Returns
    -------
    dict
        By path, the texts as ruff lays them out.
    """
    if not modules:
        return {}
    program = ruff()
    with tempfile.TemporaryDirectory(prefix="zarr-tidy-") as folder:
        for path, text in modules.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
        for command in (
            ("check", "--fix", "--unsafe-fixes", "--exit-zero", *RULES),
            ("format",),
        ):
            subprocess.run(
                [program, *command, "--quiet", *SETTINGS, "."],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return {path: (Path(folder) / path).read_bytes().decode() for path in modules}
