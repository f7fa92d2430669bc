"""Which byte ranges of which objects a `FsspecStore` reads, and with how many calls.

Nothing here does I/O. What counts is where the bytes of a request really are: a key of a kerchunk
reference set is a range of another file. `merge` joins the ranges of one object that lie close
together.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from numbers import Integral
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, cast

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from typing import Any

    from fsspec.asyn import AsyncFileSystem

    from zarr.abc.store import ByteRequest

MAX_GAP = 64_000
"""Widest gap between two ranges that one read may span, in bytes: fsspec's own default for
reference file systems, <https://filesystem-spec.readthedocs.io/en/latest/api.html>."""

MAX_MERGED = 4 << 20
"""Largest read that is made by merging, in bytes."""

MIN_CUT = 512 << 10
"""Smallest size, in bytes, to which a run of merged ranges is cut for the sake of concurrency."""

CUT = 6
"""Into how many reads a run is cut, if they are at least `MIN_CUT` and at most `MAX_MERGED` large.
They travel side by side, each larger than the one before, so that decoding starts soon and goes on
while the larger ones arrive."""

MAX_WASTE = 0.25
"""Bytes in the gaps of one merged read, at most, as a fraction of the bytes that were asked for."""

SMALL_GAP = 4 << 10
"""A gap of up to this many bytes costs less than a request does, whatever the fraction."""


class Span(NamedTuple):
    """Where the bytes of request number `request` are: `object[start:end]`, a Python slice."""

    request: int
    object: Hashable
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLimits:
    """How far `merge` goes.

    Attributes
    ----------
    max_gap
        Widest gap, in bytes, that may lie between two merged ranges. Negative: merge nothing.
    max_merged
        Largest merged read, in bytes. A single range may be larger.
    max_waste
        Bytes in gaps, as a fraction of the bytes asked for, per read; `None` for no limit.
    """

    max_gap: int = MAX_GAP
    max_merged: int = MAX_MERGED
    max_waste: float | None = MAX_WASTE


def merge(spans: Iterable[Span], limits: MergeLimits) -> list[list[Span]]:
    """Group spans into reads: one read of an object serves all the spans of a group.

    Ranges with a known start and end are merged with their neighbours in the same object.
    Anything else (a whole object, a suffix, an open end) is merged only with its own likes:
    identical requests share one read.

    Parameters
    ----------
    spans
        What was asked for.
    limits
        When to merge.

    Returns
    -------
    list[list[Span]]
        The groups, those with the earliest request first; within a group by start, so that
        a group of ranges covers `group[0].start` to the largest `end` in it.
    """
    ranges: dict[Hashable, list[_Range]] = {}
    alike: dict[tuple[Hashable, int | None, int | None], list[Span]] = {}
    for span in spans:
        if limits.max_gap >= 0 and _is_range(span):
            start, end = cast("tuple[int, int]", span[2:])
            ranges.setdefault(span.object, []).append(_Range(start, end, span))
        else:
            alike.setdefault(span[1:], []).append(span)
    groups = list(alike.values())
    for neighbours in ranges.values():
        neighbours.sort(key=itemgetter(0, 1))
        groups.extend([item.span for item in read] for read in _reads(neighbours, limits))
    groups.sort(key=lambda group: min([span.request for span in group]))
    return groups


class _Range(NamedTuple):
    """A span whose start and end are known."""

    start: int
    end: int
    span: Span


def _is_range(span: Span) -> bool:
    start, end = span.start, span.end
    return isinstance(start, int) and isinstance(end, int) and 0 <= start < end


def _reads(ranges: list[_Range], limits: MergeLimits) -> Iterator[list[_Range]]:
    """Group sorted ranges into runs of neighbours, and cut long runs into reads of a good size."""
    for run in _group(ranges, limits, repeat(sys.maxsize)):
        length = max([item.end for item in run]) - run[0].start
        shares = chain(range(1, CUT + 1), repeat(CUT))
        sizes = (length * share // (CUT * (CUT + 1) // 2) for share in shares)
        yield from _group(run, limits, (_clamp(size, limits) for size in sizes))


def _clamp(size: int, limits: MergeLimits) -> int:
    return min(max(size, MIN_CUT), limits.max_merged)


def _group(
    ranges: list[_Range], limits: MergeLimits, sizes: Iterator[int]
) -> Iterator[list[_Range]]:
    """Part sorted ranges where a gap is too wide to be read along, or a group exceeds its size."""
    group: list[_Range] = []
    size = 0
    start = end = asked = wasted = 0
    for item in ranges:
        first, last, _ = item
        gap = first - end if first > end else 0
        more = last - max(first, end) if last > end else 0
        if (
            group
            and (not more or last - start <= size)
            and (not gap or _worth_reading(gap, wasted + gap, asked + more, limits))
        ):
            group.append(item)
            end, asked, wasted = end + gap + more, asked + more, wasted + gap
        else:
            if group:
                yield group
            size = next(sizes)
            group, start, end = [item], first, last
            asked, wasted = last - first, 0
    if group:
        yield group


def _worth_reading(gap: int, wasted: int, asked: int, limits: MergeLimits) -> bool:
    if gap > limits.max_gap:
        return False
    return gap <= SMALL_GAP or limits.max_waste is None or wasted <= limits.max_waste * asked


def cuts(group: Sequence[Span]) -> tuple[int, int, list[tuple[int, int, int]]] | None:
    """How one read serves a group of ranges that differ, or `None` if it needs no cutting apart.

    Returns
    -------
    start, end
        The range to read.
    parts
        `(request, first, last)` for each span: where in what was read its bytes lie.
    """
    if not _is_range(group[0]) or all(span[2:] == group[0][2:] for span in group):
        return None
    ranges = cast("list[tuple[int, Hashable, int, int]]", group)
    start, end = ranges[0][2], max(item[3] for item in ranges)
    return start, end, [(request, a - start, b - start) for request, _, a, b in ranges]


def in_gaps(parts: Sequence[tuple[int, int, int]]) -> int:
    """How many bytes of a merged read lie in none of its `parts`, which are sorted by `first`."""
    gaps = end = 0
    for _, first, last in parts:
        gaps += max(0, first - end)
        end = max(end, last)
    return gaps


def as_slice(byte_range: ByteRequest | None) -> tuple[int | None, int | None]:
    """The `start` and `end` that fsspec's `cat_file` takes for a byte range.

    Raises
    ------
    ValueError
        If `byte_range` is no byte range.
    """
    if byte_range is None:
        return None, None
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    if isinstance(byte_range, SuffixByteRequest):
        return -byte_range.suffix, None
    raise ValueError(f"Unexpected byte_range, got {byte_range}.")


class Location(NamedTuple):
    """Where a path really leads: the filesystem that has the bytes, and which of them.

    `value` holds the bytes where no read is needed. `via` is the path in the reference file
    system that led there.
    """

    fs: AsyncFileSystem
    path: str
    start: int | None
    end: int | None
    value: bytes | None = None
    via: str | None = None

    @property
    def nbytes(self) -> int | None:
        """How many bytes there are at most, if the slice says so."""
        if self.start is None:
            return None
        if self.end is None:
            return -self.start if self.start < 0 else None
        return self.end - self.start if 0 <= self.start <= self.end else None


def locator(fs: AsyncFileSystem) -> Callable[[str, int | None, int | None], Location]:
    """A function that follows paths to the bytes that they stand for, without I/O on the target.

    A `DirFileSystem` prefixes paths. A `ReferenceFileSystem` maps them to byte ranges of other
    files, or to bytes that its table holds. Any other filesystem is taken as it is, and so is
    a reference that leads nowhere: reading it raises what it always raised.

    Parameters
    ----------
    fs
        Where to look paths up.

    Returns
    -------
    Callable
        It takes a path with the `start` and the `end` that were asked for, as `fs.cat_file` does,
        and raises `FileNotFoundError` if the reference table has no such path.
    """
    joins: list[Callable[[str], str]] = []
    while is_directory(fs):
        joins.append(fs._join)
        fs = fs.fs
    referring = is_reference(fs)
    targets: dict[object, AsyncFileSystem | None] = {}

    def locate(path: str, start: int | None, end: int | None) -> Location:
        for join in joins:
            path = join(path)
        if not referring:
            return Location(fs, path, start, end)
        target, first, last = fs._cat_common(path, start=start, end=end)
        if isinstance(target, bytes):
            return Location(fs, path, start, end, target[start:end])
        if not isinstance(target, str):
            return Location(fs, path, start, end)
        if target not in targets:
            targets[target] = fs.fss.get(_protocol(target))
        target_fs = targets[target]
        if target_fs is None:
            return Location(fs, path, start, end)
        if type(first) is not int and isinstance(first, Integral) and isinstance(last, Integral):
            # A table in Parquet holds those of NumPy.
            first, last = int(first), int(last)
        return Location(target_fs, target, first, last, None, path)

    return locate


def is_directory(fs: AsyncFileSystem) -> bool:
    """Whether `fs` prefixes paths as fsspec's `DirFileSystem` does."""
    return _kinds(type(fs))[0] and "_cat_file" not in vars(fs)  # type: ignore[arg-type]


def is_reference(fs: AsyncFileSystem) -> bool:
    """Whether `fs` resolves paths as fsspec's `ReferenceFileSystem` does."""
    return _kinds(type(fs))[1] and "_cat_file" not in vars(fs)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _kinds(cls: Hashable) -> tuple[bool, bool]:
    """Whether a class reads as `DirFileSystem` does, and as `ReferenceFileSystem` does."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.reference import ReferenceFileSystem

    def inherits(base: type, *methods: str) -> bool:
        return all(getattr(cls, name, None) is getattr(base, name) for name in methods)

    return (
        inherits(DirFileSystem, "_cat_file", "_join"),
        inherits(ReferenceFileSystem, "_cat_file", "_cat_common"),
    )


def _protocol(url: str) -> str | None:
    from fsspec.core import split_protocol

    protocol: str | None = split_protocol(url)[0]
    return protocol


def merge_limits(fs: AsyncFileSystem) -> MergeLimits:
    """The limits for reads through `fs`: those that a reference file system was given hold.

    `max_gap` and `max_block` are arguments of `ReferenceFileSystem`. A gap that somebody chose
    is taken at its word; at the default, gaps are also limited by what they waste.
    """
    while is_directory(fs):
        fs = fs.fs
    if not is_reference(fs):
        return MergeLimits()
    max_gap = getattr(fs, "max_gap", MAX_GAP)
    return MergeLimits(
        max_gap=max_gap,
        max_merged=min(MAX_MERGED, getattr(fs, "max_block", MAX_MERGED)),
        max_waste=MAX_WASTE if max_gap == MAX_GAP else None,
    )


def batch_size(fs: AsyncFileSystem) -> int:
    """How many requests fsspec would have in flight for reads through `fs`.

    The smallest of what `fs` and the filesystems below it were given, or fsspec's default for
    operations that open no local file.
    """
    from fsspec.asyn import _get_batch_size

    below: list[Any] = [fs]
    for current in below:
        if is_directory(current):
            below.append(current.fs)
        elif is_reference(current):
            below.extend(current.fss.values())
    given = [int(size) for each in below if (size := getattr(each, "batch_size", None))]
    smallest = min(given) if given else int(_get_batch_size(nofiles=True))
    return sys.maxsize if smallest < 0 else smallest
