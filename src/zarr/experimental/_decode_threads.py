"""Threads that decode, and that nobody has to wait for."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class DecodeThreads:
    """A few threads that run what they are given. They don't keep a program from ending."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self._stopped = False

    def submit(self, work: Callable[[], object]) -> None:
        """Have a thread run `work`, which must not raise."""
        self._queue.put(work)
        if len(self.threads) < self._limit and not self._stopped:
            thread = threading.Thread(target=self._run, name="zarr_block_decode", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there can't be more, as when the interpreter shuts down
                if not self.threads:
                    raise
            else:
                self.threads.append(thread)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None and not self._stopped:
            work()
            del work

    def stop(self) -> None:
        """Let the threads end, each after what it is at."""
        self._stopped = True
        for _ in self.threads:
            self._queue.put(None)
