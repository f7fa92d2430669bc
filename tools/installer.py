"""Find pip, even for interpreters and environments without it, such as those made by uv."""

from __future__ import annotations

import subprocess
import sys

_FIND = """\
import importlib.util, pathlib
if importlib.util.find_spec("pip"):
    print("-m", "pip", sep="\\n")
else:
    import ensurepip
    print(next(pathlib.Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")) / "pip")
"""


def pip(python: str = sys.executable) -> list[str]:
    """Return the command that runs an interpreter's own pip, or else the one that Python bundles."""
    done = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError(f"{python} has neither pip nor ensurepip: install pip for it")
    return [python, *done.stdout.splitlines(), "--disable-pip-version-check", "--no-input"]
