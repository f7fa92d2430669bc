"""How many blocks may be in flight within a budget of bytes. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr.core.indexing import is_integer

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ADMITTED = 1024
"""How many blocks start together at most: what is planned together keeps the event loop busy."""

UNSEEN = 8
"""How many times what their shapes say blocks are taken to weigh while none of them is there.
Encoded and decoded, a block seldom weighs more than twice as much."""

OVERHEAD = 4 << 10
"""What a block takes besides its data, in bytes, about."""

_UNITS = {"": 1} | {
    f"{prefix}{infix}B".upper(): factor**power
    for infix, factor in (("", 1000), ("i", 1024))
    for power, prefix in enumerate(("", "k", "M", "G", "T"))
    if prefix or not infix
}


def parse_nbytes(size: int | str) -> int:
    """A number of bytes, from `"64MiB"`, `"1.5 GB"`, `"4096"` or a number.

    Raises
    ------
    ValueError
        If it is none, or less than one byte.
    """
    nbytes = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", size)
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            raise ValueError(f"Expected a number of bytes such as '64MiB', got {size!r}.")
        nbytes = int(Decimal(match[1]) * unit)
    if not is_integer(nbytes) or nbytes < 1:
        raise ValueError(f"Expected a positive number of bytes, got {size!r}.")
    return int(nbytes)


def held_nbytes(array: Any) -> int:
    """How many bytes an array holds, about, those that its elements point to included."""
    nbytes, kind = int(array.nbytes), array.dtype.kind
    if kind == "O":
        nbytes += sum(map(getsizeof, array.flat))
    elif kind == "T":
        nbytes += int(np.strings.str_len(array).sum())
    return nbytes


@dataclass(slots=True, kw_only=True)
class BlockStreamStats:
    """Figures of a stream of blocks.

    Attributes
    ----------
    blocks, nbytes
        Blocks that were delivered, and how many bytes they hold.
    nbytes_in_flight
        Bytes of blocks that are being read, or wait to be taken, as they are counted against the
        budget.
    max_nbytes_in_flight, max_blocks_in_flight
        The most of these bytes, and of these blocks, that there were.
    requests
        Operations that the stores ran, as `ReadReport.reads` counts them.
    io_seconds, decode_seconds
        How long the consumer waited for a block that was being fetched, or decoded.
    consumer_seconds
        How long reading stood still because the consumer took no block.
    """

    blocks: int = 0
    nbytes: int = 0
    nbytes_in_flight: int = 0
    max_nbytes_in_flight: int = 0
    max_blocks_in_flight: int = 0
    requests: int = 0
    io_seconds: float = 0.0
    decode_seconds: float = 0.0
    consumer_seconds: float = 0.0


class Readahead:
    """Decides when blocks start, in order.

    The first one runs alone, or with others that would all fit if each weighed `UNSEEN` times what
    its shape says. The most that a block has weighed while it was read, beside what its shape says,
    is expected of all that are being read; as soon as a block is there, it weighs what it holds.
    Blocks start while they fit into the budget, and one starts always. They start several at a
    time, once a quarter of the budget is free, so that what lies side by side can be read together.

    Parameters
    ----------
    count
        How many blocks there are.
    expected
        What the block at a position should weigh, from its shape.
    budget
        The bytes that blocks may weigh together from their start until they are taken.
    sized
        Whether blocks of one shape weigh the same. If not (text), the first one runs alone, and
        then no more than have been finished, so that many do not start on the evidence of one that
        is light.
    """

    def __init__(
        self, count: int, expected: Callable[[int], int], budget: int, *, sized: bool = True
    ) -> None:
        self.count = count
        self.admitted = 0
        self.max_nbytes = 0
        self.max_blocks = 0
        self._expected = expected
        self._budget = budget
        self._sized = sized
        self._unseen = budget // UNSEEN if sized else 0
        self._factor: float | None = None
        self._running: dict[int, int] = {}  # what each should weigh, by its shape
        self._running_nbytes = 0  # the sum of that
        self._there: dict[int, int] = {}  # what each weighs
        self._there_nbytes = 0
        self._finished = 0

    def __len__(self) -> int:
        """How many blocks have started and were not taken."""
        return len(self._running) + len(self._there)

    @property
    def running(self) -> int:
        """How many blocks have started and are not finished."""
        return len(self._running)

    @property
    def nbytes(self) -> int:
        """What the blocks weigh that have started and were not taken."""
        return self._with(0, 0)

    def _with(self, blocks: int, expected: int) -> int:
        """What they would weigh with so many more, of so many bytes by their shape."""
        running = ceil((self._running_nbytes + expected) * (self._factor or 1))
        return self._there_nbytes + running + (len(self) + blocks) * OVERHEAD

    def admits(self) -> bool:
        """Whether blocks may start now."""
        if self.admitted == self.count or not len(self):
            return self.admitted < self.count
        more = self._with(1, self._expected(self.admitted))
        if self._factor is None:
            return more <= self._unseen
        if not self._sized and self.running >= self._finished:
            return False
        return more <= self._budget and self._budget - self.nbytes >= self._budget // 4

    def admit(self, most: int = MAX_ADMITTED) -> range:
        """Start blocks, so many at most: which positions, if any."""
        first = self.admitted
        if self.admits():
            limit = min(self.count, first + most)
            budget = self._unseen if self._factor is None else self._budget
            if not self._sized:
                limit = min(limit, first + max(1, self._finished - self.running))
            while self.admitted < limit:
                expected = self._expected(self.admitted)
                if len(self) and self._with(1, expected) > budget:
                    break
                self._running[self.admitted] = expected
                self._running_nbytes += expected
                self.admitted += 1
            self.max_nbytes = max(self.max_nbytes, self.nbytes)
            self.max_blocks = max(self.max_blocks, len(self))
        return range(first, self.admitted)

    def finish(self, position: int, running: int, finished: int) -> None:
        """Note what a block weighed while it ran, and what of that it weighs now that it is there."""
        expected = self._running.pop(position)
        self._running_nbytes -= expected
        self._there[position] = finished
        self._there_nbytes += finished
        self._finished += 1
        factor = running / (expected or 1)
        if self._factor is None or factor > self._factor:
            self._factor = factor
            self.max_nbytes = max(self.max_nbytes, self.nbytes)

    def take(self, position: int) -> None:
        """A block was taken, and counts no more."""
        self._there_nbytes -= self._there.pop(position)
