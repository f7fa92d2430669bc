"""Running other programs so that none of them outlives this one."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
    """Run a program to its end, with no input.

    It gets a process group of its own. Whatever is left of that group when the program ends, or
    when this one is interrupted, is killed.

    Parameters
    ----------
    command : Sequence of str or Path
        The program and its arguments.
    cwd : Path
        The folder to run it in.
    env : Mapping, optional
        Its environment; this program's if left out.
    log : Path, optional
        A file for all that it prints; left out, it prints where this program does.

    Returns
    -------
    int
        Its exit status; negative where a signal ended it.
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
            _end(child)


def together(
    commands: Mapping[Path, Sequence[str | Path]], *, cwd: Path, env: Mapping[str, str]
) -> dict[Path, int]:
    """Run programs at the same time, each to its end, with no input.

    As with `run`, nothing of them is left when this returns or is interrupted.

    Parameters
    ----------
    commands : Mapping
        By a file for all that it prints, each program with its arguments.
    cwd : Path
        The folder to run them in.
    env : Mapping
        Their environment.

    Returns
    -------
    dict
        By the same files, their exit statuses.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for log, command in commands.items():
            with log.open("wb") as output:
                running.append(
                    subprocess.Popen(
                        [str(part) for part in command],
                        cwd=cwd,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        process_group=0,
                    )
                )
        return {log: child.wait() for log, child in zip(commands, running, strict=True)}
    finally:
        for child in running:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
