"""`FsspecStore.get_many`: ranges of one object are merged, everything else runs side by side."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING

from zarr.core._bounded import (
    Fetch,
    fetch_limit,
    ranges_are_merged,
    read_watcher,
    run_bounded,
    split_requests,
)
from zarr.storage._fsspec_reads import (
    Span,
    as_slice,
    batch_size,
    cuts,
    in_gaps,
    locator,
    merge,
    merge_limits,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from zarr.core._bounded import ReadGroup
    from zarr.storage._fsspec_reads import Location

REQUESTS_PLANNED_AT_ONCE = 4096
"""How many requests `FsspecStore.get_many` considers together. Merging does not reach across."""


class FsspecStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many values, or byte ranges of values, of many keys.

        Byte ranges of one object that lie close together are read as one and cut apart again.
        What counts is the object that holds the bytes: chunk keys that are ranges of one file,
        as in a kerchunk reference set, are merged, within the `max_gap` and `max_block` of the
        `ReferenceFileSystem`. As many reads are in flight as the `batch_size` of the filesystem
        allows. What is not merged is read as `get` reads it.

        See `Store.get_many` for the parameters, what is yielded, and the errors.
        """
        if not self._is_open:
            await self._open()
        fetches = self._plan_fetches(requests, prototype)
        limit = fetch_limit(batch_size(self.fs))
        async with aclosing(run_bounded(fetches, limit=limit)) as groups:
            async for group in groups:
                yield group

    # overlay: after get_many
    def _plan_fetches(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> Iterator[Fetch]:
        """Decide which reads serve `requests`, a window of them at a time."""
        limits = merge_limits(self.fs)
        find = locator(self.fs)
        numbered = enumerate(split_requests(requests))
        for window in batched(numbered, REQUESTS_PLANNED_AT_ONCE):
            asked = dict(window)
            distinct = len({key for key, _ in asked.values()}) == len(asked)
            alone = distinct or ranges_are_merged.get()
            at_hand: list[tuple[int, Buffer | None]] = []
            located: dict[int, Location] = {}
            for index, (key, byte_range) in window:
                path = _dereference_path(self.path, key)
                try:
                    at = find(path, *as_slice(byte_range))
                except self.allowed_exceptions:
                    at_hand.append((index, None))
                    continue
                if at.value is not None:
                    at_hand.append((index, prototype.buffer.from_bytes(at.value)))
                elif alone and at.via is None:
                    # Nothing in the rest of the plan could be merged with it.
                    run = partial(self._fetch_alike, at, [index], key, byte_range, prototype)
                    yield Fetch(run, at.nbytes)
                else:
                    located[index] = at
            if at_hand:
                yield Fetch(partial(_hand_over, at_hand), 0, is_read=False)
            spans = (
                Span(index, (id(at.fs), at.path), at.start, at.end) for index, at in located.items()
            )
            for group in merge(spans, limits):
                first = group[0].request
                at = located[first]
                if cut := cuts(group):
                    start, end, parts = cut
                    at = at._replace(start=start, end=end)
                    run = partial(self._fetch_merged, at, parts, located, asked, prototype)
                else:
                    indices = [span.request for span in group]
                    run = partial(self._fetch_alike, at, indices, *asked[first], prototype)
                yield Fetch(run, at.nbytes)

    # overlay: after _plan_fetches
    async def _fetch_alike(
        self,
        at: Location,
        indices: Sequence[int],
        key: str,
        byte_range: ByteRequest | None,
        prototype: BufferPrototype,
    ) -> ReadGroup:
        """Serve requests for the very same bytes with one `get`."""
        value = await self.get(key, prototype=prototype, byte_range=byte_range)
        # What a server makes of an ill-chosen range is for the caller to see, as with `get`; where
        # a reference chose it, nobody asked for more.
        expected = at.nbytes or 0
        got = expected if value is None else len(value)
        if got < expected or (got > expected > 0 and at.via is not None):
            await self._check_length(at, got)
        return [(index, value) for index in indices]

    # overlay: after _fetch_alike
    async def _fetch_merged(
        self,
        at: Location,
        parts: Sequence[tuple[int, int, int]],
        located: dict[int, Location],
        asked: dict[int, tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> ReadGroup:
        """Serve ranges of one object with one read, and cut it apart."""
        try:
            data = await at.fs._cat_file(at.path, start=at.start, end=at.end)
        except Exception as error:
            failure = error
            if at.via is not None:
                from fsspec.implementations.reference import ReferenceNotReachable

                failure = ReferenceNotReachable(at.via, at.path)
            if isinstance(failure, self.allowed_exceptions):
                return [(index, None) for index, _, _ in parts]
            if failure is not error:
                raise failure from error
            if not isinstance(error, OSError) or "not satisfiable" not in str(error):
                raise
            data = b""  # the first range starts beyond the end, so all of them do
        if len(data) == at.nbytes:
            if (watcher := read_watcher.get()) is not None:
                watcher.has_merged(len(data), in_gaps(parts))
            return [(i, prototype.buffer.from_bytes(data[a:b])) for i, a, b in parts]
        if len(data) > (at.nbytes or 0):
            await self._check_length(at, len(data))
        # The object ends within the merged range: what `get` says of each request holds.
        served: list[tuple[int, Buffer | None]] = []
        for index, _, _ in parts:
            served += await self._fetch_alike(located[index], [index], *asked[index], prototype)
        return served

    # overlay: after _fetch_merged
    async def _check_length(self, at: Location, nbytes: int) -> None:
        """Check that a range that came back short did so because the object ends there.

        Raises
        ------
        OSError
            If the object goes on, so that the transfer must have been cut short, or if there is
            more than was asked for.
        """
        asked = f"asked for bytes {at.start} to {at.end} of {at.path!r} and got {nbytes} bytes"
        if nbytes > (at.nbytes or 0):
            raise OSError(f"The server does not honour byte ranges: {asked}.")
        try:
            info = await at.fs._info(at.path)
        except Exception:  # noqa: BLE001 -- the value is there, this was a second look at it
            return
        if (info.get("size") or 0) > max(0, at.start or 0) + nbytes:
            raise OSError(f"Short read: {asked}, of an object of {info['size']} bytes.")


# overlay: after FsspecStore
async def _hand_over(group: ReadGroup) -> ReadGroup:
    return group
