"""Which byte ranges of which objects a `FsspecStore.get_many` reads, and with how many calls.

The planning functions do no I/O. `locate` says where the bytes of a request really are: a key
of a kerchunk reference set is a range of another file. `merge` joins the ranges of one object
that lie close together.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, cast

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
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
"""Into how many reads a run is cut, if they are at least `MIN_CUT` and at most `MAX_MERGED` large:
they travel side by side, and decoding starts when the first is there."""

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
        neighbours.sort(key=lambda item: item[:2])
        groups.extend([item.span for item in read] for read in _reads(neighbours, limits))
    groups.sort(key=lambda group: min(span.request for span in group))
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
    for run in _group(ranges, limits, sys.maxsize):
        length = max(item.end for item in run) - run[0].start
        yield from _group(run, limits, min(max(length // CUT, MIN_CUT), limits.max_merged))


def _group(ranges: list[_Range], limits: MergeLimits, size: int) -> Iterator[list[_Range]]:
    """Part sorted ranges where a gap is too wide to be read along, or a group exceeds `size`."""
    group = ranges[:1]
    start, end = group[0].start, group[0].end
    asked, wasted = end - start, 0
    for item in ranges[1:]:
        gap = max(0, item.start - end)
        more = max(0, item.end - max(item.start, end))
        fits = not more or item.end - start <= size
        if fits and _worth_reading(gap, wasted + gap, asked + more, limits):
            group.append(item)
            end, asked, wasted = end + gap + more, asked + more, wasted + gap
        else:
            yield group
            group, start, end = [item], item.start, item.end
            asked, wasted = end - start, 0
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


def locate(fs: AsyncFileSystem, path: str, start: int | None, end: int | None) -> Location:
    """Follow `path` to the bytes that it stands for, without I/O on the target.

    A `DirFileSystem` prefixes paths. A `ReferenceFileSystem` maps them to byte ranges of other
    files, or to bytes that its table holds. Any other filesystem is taken as it is, and so is
    a reference that leads nowhere: reading it raises what it always raised.

    Parameters
    ----------
    fs, path
        What to look up.
    start, end
        The slice that was asked for, as for `fs.cat_file`.

    Raises
    ------
    FileNotFoundError
        If the reference table has no such path.
    """
    while is_directory(fs):
        fs, path = fs.fs, fs._join(path)
    found = Location(fs, path, start, end)
    if not is_reference(fs):
        return found
    target, target_start, target_end = fs._cat_common(path, start=start, end=end)
    if isinstance(target, bytes):
        return found._replace(value=target[start:end])
    target_fs = fs.fss.get(_protocol(target)) if isinstance(target, str) else None
    if target_fs is None:
        return found
    if isinstance(target_start, Integral) and isinstance(target_end, Integral):
        # A table in Parquet holds those of NumPy.
        target_start, target_end = int(target_start), int(target_end)
    return Location(target_fs, target, target_start, target_end, via=path)


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
