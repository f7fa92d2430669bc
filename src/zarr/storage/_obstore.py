"""`ObjectStore.get_many`: ranges of one object in one call of obstore, objects side by side."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, cast

from zarr.core._bounded import (
    Fetch,
    fetch_limit,
    ranges_are_merged,
    run_bounded,
    split_requests,
    value_nbytes,
)
from zarr.storage._fsspec_reads import MergeLimits, Span, merge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from zarr.core._bounded import ReadGroup

REQUESTS_AT_ONCE = 256
"""How many objects are read at once where `async.concurrency` is at its default, if the process may
open as many files. obstore has no limit of its own; Icechunk, which reads through the same Rust
library, allows as many (`max_concurrent_requests`)."""

REQUESTS_PLANNED_AT_ONCE = 4096
"""How many requests are considered together. Ranges are not merged across."""


def _requests_at_once() -> int:
    """`REQUESTS_AT_ONCE`, or a quarter of the files that the process may open: each request has one."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows has no such limit
        return REQUESTS_AT_ONCE
    files = getrlimit(RLIMIT_NOFILE)[0]
    if files == RLIM_INFINITY:
        return REQUESTS_AT_ONCE
    return max(fetch_limit(), min(REQUESTS_AT_ONCE, files // 4))


class ObjectStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many objects, or byte ranges of objects.

        Ranges of one object that lie close together are handed to obstore in one call, which
        merges them. Everything else is read as `get` reads it. Up to 256 calls are in flight at
        once unless `async.concurrency` is set. See `Store.get_many` for the parameters, what is
        yielded, and the errors.
        """
        fetches = self._plan_fetches(requests, prototype)
        limit = fetch_limit(_requests_at_once())
        async with aclosing(run_bounded(fetches, limit=limit)) as groups:
            async for group in groups:
                yield group

    # overlay: after get_many
    def _plan_fetches(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> Iterator[Fetch]:
        """Decide which calls serve `requests`, a window of them at a time."""
        for window in batched(enumerate(split_requests(requests)), REQUESTS_PLANNED_AT_ONCE):
            asked = dict(window)
            spans: list[Span] = []
            for index, (key, byte_range) in window:
                if isinstance(byte_range, RangeByteRequest) and not ranges_are_merged.get():
                    spans.append(Span(index, key, byte_range.start, byte_range.end))
                else:
                    run = partial(self._fetch_each, [index], asked, prototype)
                    yield Fetch(run, value_nbytes(byte_range))
            for group in merge(spans, MergeLimits()):
                indices = [span.request for span in group]
                fetch = self._fetch_ranges if len(group) > 1 else self._fetch_each
                nbytes = sum(value_nbytes(asked[index][1]) or 0 for index in indices)
                yield Fetch(partial(fetch, indices, asked, prototype), nbytes)

    # overlay: after _plan_fetches
    async def _fetch_each(
        self,
        indices: Sequence[int],
        asked: dict[int, tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> ReadGroup:
        served: list[tuple[int, Buffer | None]] = []
        for index in indices:
            key, byte_range = asked[index]
            value = await self.get(key, prototype=prototype, byte_range=byte_range)
            served.append((index, value))
        return served

    # overlay: after _fetch_each
    async def _fetch_ranges(
        self,
        indices: Sequence[int],
        asked: dict[int, tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> ReadGroup:
        """Serve ranges of one object with one call."""
        import obstore as obs

        key = asked[indices[0]][0]
        ranges = [cast("RangeByteRequest", asked[index][1]) for index in indices]
        starts, ends = [at.start for at in ranges], [at.end for at in ranges]
        try:
            values = await obs.get_ranges_async(self.store, key, starts=starts, ends=ends)
        except _ALLOWED_EXCEPTIONS:
            return [(index, None) for index in indices]
        except Exception:  # noqa: BLE001 -- `get` says which of them fails, and how
            values = []
        if [len(value) for value in values] != [at.end - at.start for at in ranges]:
            return await self._fetch_each(indices, asked, prototype)
        buffers = (prototype.buffer.from_bytes(value) for value in values)  # type: ignore[arg-type]
        return list(zip(indices, buffers, strict=True))
