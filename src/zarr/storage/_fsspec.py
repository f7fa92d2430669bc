"""`FsspecStore.get_many`: nearby byte ranges of one object are read as one."""

from __future__ import annotations

import operator
from contextlib import aclosing
from itertools import batched
from typing import TYPE_CHECKING, NamedTuple

from zarr.abc.store import group_nbytes, noting, numbered_requests, paired_with
from zarr.core._adaptive_limit import fetch_as_completed, limit_of
from zarr.core._coalesce import coalesce_ranges
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_GAP = 32 << 10
"""Widest gap between two ranges that are read as one, in bytes: what a link of 1.6 MB/s transfers
during a round trip of 20 ms. The `max_gap` of a reference file system takes precedence."""

MAX_MERGED = 2 << 20
"""Size limit of a merged read, in bytes. Ten merged reads side by side take less than the 300 s that
aiohttp allows for a request by default, even at 120 kB/s."""

REQUESTS_PER_PLAN = 4096
"""How many requests are considered together for merging."""


class _Part(NamedTuple):
    """A request, `(index, key, byte_range)`, and where its bytes are: in `path[start:end]` of `fs`."""

    fs: AsyncFileSystem
    path: str
    start: int
    end: int
    request: tuple[int, str, ByteRequest | None]


class FsspecStore:
    # overlay: after get
    @paired_with(get)
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many values as `Store.get_many` does, but nearby byte ranges of an object as one.

        Keys that a reference file system maps to byte ranges of one file count as such. All other
        requests are passed to `get`, as are those for which a merged read did not return the
        expected bytes.
        """
        await self._ensure_open()
        limit = max_concurrency or config.get("async.concurrency")
        backend = self._read_backend()
        fs = self.fs
        while hasattr(getattr(fs, "fs", None), "storage_options"):
            fs = fs.fs  # references are below directories
        max_gap = fs.storage_options.get("max_gap", MAX_GAP)
        max_nbytes = min(fs.storage_options.get("max_block", MAX_MERGED), MAX_MERGED)
        unserved: list[_Part] = []

        async def fetch(
            index: int, key: str, byte_range: ByteRequest | None, part: _Part | None = None
        ) -> Sequence[tuple[int, Buffer | None]]:
            with noting(self, key):
                value = await self.get(key, prototype=prototype, byte_range=byte_range)
                if part is not None and value is not None and len(value) != part.end - part.start:
                    await _check_length(part, len(value))
            return ((index, value),)

        async def read(*reads: Sequence[_Part]) -> Sequence[tuple[int, Buffer | None]]:
            served: list[tuple[int, Buffer | None]] = []
            found = await _read_ranges(reads)
            if limit is not None and not all(found) and limit_of(backend).extra(limit):
                limit_of(backend).failed()
            for parts, data in zip(reads, found, strict=True):
                for part in parts:
                    offset = part.start - parts[0].start
                    value = bytes(data[offset : offset + part.end - part.start])
                    if len(value) == part.end - part.start:
                        served.append((part.request[0], prototype.buffer.from_bytes(value)))
                    else:
                        unserved.append(part)
            return served

        def size(func: Any, *args: Any) -> int:
            reads = args if func is read else [args[3:]] if args[3:] else []
            return sum(end - start for _, start, end in map(_range, reads))

        def calls() -> Iterator[tuple[Any, ...]]:
            for window in batched(numbered_requests(requests), REQUESTS_PER_PLAN):
                parts: list[_Part] = []
                for request in window:
                    _, key, byte_range = request
                    if at := _locate(self.fs, _dereference_path(self.path, key), byte_range):
                        parts.append(_Part(*at, request))
                    else:
                        yield fetch, *request
                for reads in _calls(_merge(parts, max_gap, max_nbytes)):
                    if len(reads) == len(reads[0]) == 1:
                        yield fetch, *reads[0][0].request, reads[0][0]
                    else:
                        yield read, *reads

        for within, items in (
            (backend, calls()),
            (None, ((fetch, *part.request, part) for part in unserved)),
        ):
            async with aclosing(
                fetch_as_completed(
                    within,
                    items,
                    lambda f, *args: f(*args),
                    group_nbytes,
                    max_concurrency,
                    size=size,
                )
            ) as groups:
                async for group in groups:
                    if group:
                        yield group

    def _read_backend(self) -> object:
        from fsspec import AbstractFileSystem

        fs = self.fs
        while True:
            # Of a directory, references or a cache. References may have several filesystems.
            inner = getattr(fs, "fs", next(iter(getattr(fs, "fss", {}).values()), None))
            if not isinstance(inner, AbstractFileSystem):
                return fs
            fs = inner


# overlay: after FsspecStore
def _locate(
    fs: AsyncFileSystem, path: str, byte_range: ByteRequest | None
) -> tuple[AsyncFileSystem, str, int, int] | None:
    """Find the bytes of a value, through directories and references, if they are a known range.

    Returns `(fs, path, start, end)`, or `None`.
    """
    from fsspec.core import split_protocol
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.reference import ReferenceFileSystem

    if not isinstance(byte_range, RangeByteRequest | None):
        return None
    start: Any = byte_range and byte_range.start
    end: Any = byte_range and byte_range.end
    while _is_method(fs._cat_file, DirFileSystem._cat_file):
        fs, path = fs.fs, fs._join(path)
    try:
        if _is_method(fs._cat_file, ReferenceFileSystem._cat_file):
            path, start, end = fs._cat_common(path, start=start, end=end)
            fs = fs.fss[split_protocol(path)[0]]
        start, end = operator.index(start), operator.index(end)  # a whole object has none
    except Exception:  # noqa: BLE001 -- `get` raises it as well, or knows the end
        return None
    return (fs, path, start, end) if 0 <= start < end else None


# overlay: after _locate
def _is_method(method: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether a bound method is `function`, neither overridden in a subclass nor replaced."""
    return getattr(method, "__func__", None) is function


# overlay: after _is_method
def _merge(parts: Sequence[_Part], max_gap: int, max_nbytes: int) -> Iterator[Sequence[_Part]]:
    """Group ranges of the same object that are at most `max_gap` bytes apart, to be read as one."""
    by_object: dict[tuple[int, str], list[_Part]] = {}
    for part in parts:
        by_object.setdefault((id(part.fs), part.path), []).append(part)
    for same_object in by_object.values():
        groups, _ = coalesce_ranges(
            [RangeByteRequest(part.start, part.end) for part in same_object],
            max_gap_bytes=max_gap,
            max_coalesced_bytes=max_nbytes,
        )
        for group in groups:
            yield [same_object[position] for position, _ in group]


# overlay: after _merge
def _range(parts: Sequence[_Part]) -> tuple[str, int, int]:
    """Return the path, the start and the end of a merged read."""
    return parts[0].path, parts[0].start, max(part.end for part in parts)


# overlay: after _range
def _calls(reads: Iterable[Sequence[_Part]]) -> Iterator[Sequence[Sequence[_Part]]]:
    """Decide which merged reads are made by one call of `_cat_ranges`.

    A filesystem with a `_cat_ranges` of its own gets up to `MAX_MERGED` bytes in one call. That of
    fsspec makes a request for each range, so there each read is a call, to be decoded early.
    """
    from fsspec.asyn import AsyncFileSystem

    together: list[Sequence[_Part]] = []
    nbytes = 0
    for parts in reads:
        fs = parts[0].fs
        _, start, end = _range(parts)
        nbytes += end - start
        own = not _is_method(fs._cat_ranges, AsyncFileSystem._cat_ranges)
        if together and not (own and fs is together[0][0].fs and nbytes <= MAX_MERGED):
            yield together
            together, nbytes = [], end - start
        together.append(parts)
    if together:
        yield together


# overlay: after _calls
async def _read_ranges(reads: Sequence[Sequence[_Part]]) -> Sequence[memoryview]:
    """Read ranges of one filesystem. What cannot be read, or is too long, is returned empty."""
    from fsspec.asyn import AsyncFileSystem

    fs = reads[0][0].fs
    paths, starts, ends = zip(*map(_range, reads), strict=True)
    try:
        # fsspec's own `_cat_ranges` would leave its tasks running when it is cancelled.
        if _is_method(fs._cat_ranges, AsyncFileSystem._cat_ranges):
            found = [await fs._cat_file(paths[0], start=starts[0], end=ends[0])]
        else:
            found = await fs._cat_ranges(list(paths), list(starts), list(ends), on_error="return")
        views = [memoryview(b"" if isinstance(data, Exception) else data) for data in found]
        return [
            view[: len(view) if len(view) <= end - start else 0]
            for view, start, end in zip(views, starts, ends, strict=True)
        ]
    except Exception:  # noqa: BLE001 -- the requests are passed to `get`, which raises
        return [memoryview(b"")] * len(reads)


# overlay: after _read_ranges
async def _check_length(part: _Part, nbytes: int) -> None:
    """Raise an error if there are more bytes than requested, or less than the object has."""
    what = f"{nbytes} bytes for bytes {part.start} to {part.end} of {part.path!r}"
    if nbytes > part.end - part.start:
        raise OSError(f"The server ignored the byte range: it returned {what}.")
    try:
        size = (await part.fs._info(part.path))["size"]
    except Exception:  # noqa: BLE001 -- the size is not known, the value is what `get` returned
        return
    if size is not None and size > part.start + nbytes:
        raise OSError(f"Short read: got {what}, which has {size} bytes.")
