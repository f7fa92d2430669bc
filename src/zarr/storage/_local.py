"""`LocalStore.get_many`: a worker thread reads many files in a row."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from zarr.abc.store import noting, numbered_requests, paired_with
from zarr.core.common import concurrent_as_completed
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

SHARE = 64
"""How many files a thread reads at most before it returns the values."""

SHARE_BYTES = 1 << 20
"""How many bytes a thread reads, or more, before it returns the values."""


class LocalStore:
    # overlay: after get
    _own_get = get
    """The `get` that `get_sync` may stand in for, if nothing has replaced it."""

    # overlay: after _own_get
    @paired_with(get)
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        await self._ensure_open()
        root = str(self.root)

        def read(key: str, byte_range: ByteRequest | None) -> Buffer | None:
            if byte_range is None:
                try:  # making a `Path` takes longer than reading a small file
                    with open(os.path.join(root, key), "rb", buffering=0) as file:
                        return prototype.buffer.from_bytes(file.read())
                except OSError:
                    pass  # `_get` decides what that means
            try:
                return _get(self.root / key, prototype, byte_range)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        limit = max_concurrency or config.get("async.concurrency")
        async with contextlib.aclosing(_get_in_threads(self, requests, read, limit)) as groups:
            async for group in groups:
                yield group


# overlay: after LocalStore
async def _get_in_threads(
    store: Store,
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    get: Callable[[str, ByteRequest | None], Buffer | None],
    threads: int | None,
) -> AsyncGenerator[Sequence[tuple[int, Buffer | None]]]:
    """Call `get(key, byte_range)` for each request, on at most `threads` threads at a time.

    Each thread takes the next request when it is done with one. So if storage is fast, few threads
    do all the work; if it is slow, all of them wait for it together. After a failure or a
    cancellation, a thread finishes the request at hand and stops.
    """
    pending = deque(numbered_requests(requests))

    def get_share() -> Sequence[tuple[int, Buffer | None]]:
        share: list[tuple[int, Buffer | None]] = []
        nbytes = 0
        while len(share) < SHARE and nbytes < SHARE_BYTES:
            try:
                index, key, byte_range = pending.popleft()
            except IndexError:
                break
            with noting(store, key):
                value = get(key, byte_range)
            share.append((index, value))
            nbytes += 0 if value is None else len(value)
        return share

    limit = min(threads or len(pending), len(pending)) or None
    calls = ((get_share,) for _ in iter(pending.__len__, 0))
    try:
        async with contextlib.aclosing(
            concurrent_as_completed(calls, asyncio.to_thread, limit)
        ) as shares:
            async for share in shares:
                if share:
                    yield share
    finally:
        pending.clear()
