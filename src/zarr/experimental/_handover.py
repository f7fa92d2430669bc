"""Blocks that are there wait here until they are taken, in order, by threads and by tasks."""

from __future__ import annotations

import math
from dataclasses import replace
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.experimental._readahead import MAX_ADMITTED, BlockStreamStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.experimental._readahead import Readahead


class Outcome(NamedTuple):
    """What became of a block: what to hand over, or the error. `StopIteration`: there is no more."""

    value: Any = None
    error: BaseException | None = None
    nbytes: int = 0
    running_nbytes: int = 0  # while it was being read
    fetched_at: float = 0.0


def failed(error: BaseException) -> Outcome:
    """The outcome of a block that could not be read."""
    if isinstance(error, StopIteration | StopAsyncIteration):
        # Where blocks are taken, that would say that there are no more.
        failure = RuntimeError(f"{type(error).__name__} was raised while a block was read.")
        failure.__cause__ = error
        return Outcome(error=failure)
    return Outcome(error=error)


class Handover:
    """Outcomes of blocks, from any thread, for consumers in any thread.

    Parameters
    ----------
    readahead
        When blocks start.
    has_room
        Called, from any thread, when blocks may start after `admit` had none to start.

    Attributes
    ----------
    position
        Which block is taken next.
    failed_at
        The first block that is known to have failed.
    closed
        Whether there is nothing to be taken any more. Whoever sets it calls `clear`.
    """

    def __init__(self, readahead: Readahead, has_room: Callable[[], object]) -> None:
        self.position = 0
        self.failed_at: float = math.inf
        self.closed = False
        self._readahead = readahead
        self._has_room = has_room
        # What a signal handler or the garbage collector runs on this thread may ask for `stats`.
        self._lock = RLock()
        self._ready: dict[int, Outcome] = {}
        self._waiters: list[Callable[[], object]] = []
        self._parked = False
        self._idle_since: float | None = None
        self._stats = BlockStreamStats()

    def admit(self, most: int = MAX_ADMITTED) -> range:
        """Start blocks, so many at most: which positions, if any."""
        with self._lock:
            admitted = self._readahead.admit(most)
            self._parked = not admitted
            if admitted:
                self._was_idle()
            return admitted

    def put(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Have the outcomes of blocks wait. The first one of a block counts."""
        with self._lock:
            for position, outcome in outcomes:
                if self.closed or position in self._ready or position < self.position:
                    continue
                self._ready[position] = outcome
                if outcome.error is None:
                    self._readahead.finish(position, outcome.running_nbytes, outcome.nbytes)
                else:
                    self.failed_at = min(self.failed_at, position)
            if self._readahead.running == 0 and self._idle_since is None:
                self._idle_since = perf_counter()
            signals = self._signals()
        for signal in signals:
            signal()

    def fail(self, error: BaseException) -> None:
        """Have an error wait in the place of the first block that is not there."""
        missing = (p for p in range(self.position, self._readahead.count) if p not in self._ready)
        self.put([(next(missing, self._readahead.count - 1), failed(error))])

    def take(self, wake: Callable[[], object], since: float | None) -> Outcome | None:
        """Take the next block; `None` if it is not there yet: then `wake` is called when it is.

        `since` is when the caller began to wait for a block, if it has.
        """
        with self._lock:
            if self.closed or self.position == self._readahead.count:
                return Outcome(error=StopIteration())
            outcome = self._ready.pop(self.position, None)
            if outcome is None:
                self._waiters.append(wake)
                return None
            if outcome.error is None:
                self._readahead.take(self.position)
                self._stats.blocks += 1
                self._stats.nbytes += outcome.nbytes
            # An error is the last thing that there is.
            self.position = self.position + 1 if outcome.error is None else self._readahead.count
            if since is not None:
                now = perf_counter()
                fetched_at = min(max(outcome.fetched_at, since), now)
                self._stats.io_seconds += fetched_at - since
                self._stats.decode_seconds += now - fetched_at
            if self.position == self._readahead.count:
                self._was_idle()
            signals = self._signals()
        for signal in signals:
            signal()
        return outcome

    def clear(self) -> None:
        """Keep nothing, and wake whoever waits."""
        with self._lock:
            dropped, self._ready = self._ready, {}
            signals = self._signals()
        del dropped  # without the lock: anything may happen when values are destroyed
        for signal in signals:
            signal()

    def stats(self, requests: int) -> BlockStreamStats:
        """The figures as they are now."""
        with self._lock:
            return replace(
                self._stats,
                nbytes_in_flight=0 if self.closed else self._readahead.nbytes,
                max_nbytes_in_flight=self._readahead.max_nbytes,
                max_blocks_in_flight=self._readahead.max_blocks,
                requests=requests,
            )

    def _was_idle(self) -> None:
        if self._idle_since is not None:
            self._stats.consumer_seconds += perf_counter() - self._idle_since
            self._idle_since = None

    def _signals(self) -> list[Callable[[], object]]:
        """What to call once the lock is released."""
        signals: list[Callable[[], object]] = []
        ended = self.closed or self.position == self._readahead.count
        if self._waiters and (ended or self.position in self._ready):
            signals, self._waiters = self._waiters, []
        if self._parked and not self.closed and self._readahead.admits():
            self._parked = False
            signals.append(self._has_room)
        return signals
