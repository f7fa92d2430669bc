"""`FsspecStore.get_many` without an adaptive limit."""

from __future__ import annotations

from contextlib import aclosing
from itertools import batched
from typing import TYPE_CHECKING

from zarr.abc.store import noting, numbered_requests, paired_with
from zarr.core.common import concurrent_as_completed
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence


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
            for parts, data in zip(reads, await _read_ranges(reads), strict=True):
                for part in parts:
                    offset = part.start - parts[0].start
                    value = bytes(data[offset : offset + part.end - part.start])
                    if len(value) == part.end - part.start:
                        served.append((part.request[0], prototype.buffer.from_bytes(value)))
                    else:
                        unserved.append(part)
            return served

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

        for items in (calls(), ((fetch, *part.request, part) for part in unserved)):
            async with aclosing(
                concurrent_as_completed(items, lambda f, *args: f(*args), limit)
            ) as groups:
                async for group in groups:
                    if group:
                        yield group
