"""Running other programs so that none of them outlives this one."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

_PATIENCE = 10
"""Seconds for a child to end by itself once it was interrupted."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> int:
    """Run a program to its end, with no input, and return its status; negative where a signal ended it.

    It gets a process group of its own. Whatever is left of that group when the program ends, or when this
    one is interrupted, is killed. What it prints goes to `log`, or where this program prints.
    """
    with log.open("wb") if log else nullcontext() as output:
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            process_group=0,
        )
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    child.wait(_PATIENCE)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
