"""`LocalStore.get_many`: a worker thread reads many files in a row."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

from zarr.abc.store import noting, numbered_requests, paired_with
from zarr.core.common import _cancel_and_wait
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

SHARE_BYTES = 4 << 20
"""How many bytes a thread reads, or more, before it returns the values."""

SHARE_SECONDS = 0.01
"""How long a thread reads before it returns the values."""

SLOW_SECONDS = 0.0002
"""Storage is slow if a file takes longer than this. One that the operating system holds in memory
takes a tenth of it."""


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

    While storage is fast, one thread makes all calls, as several would wait for one another between
    system calls. While it is slow, all threads wait for it together. After a failure or a
    cancellation, a thread finishes the request at hand and stops.
    """
    pending = deque(numbered_requests(requests))
    tasks: set[asyncio.Task[tuple[Sequence[tuple[int, Buffer | None]], float]]] = set()
    done = tasks
    is_slow = False

    def get_share() -> tuple[Sequence[tuple[int, Buffer | None]], float]:
        share: list[tuple[int, Buffer | None]] = []
        nbytes, began = 0, perf_counter()
        while nbytes < SHARE_BYTES and perf_counter() - began < SHARE_SECONDS:
            try:
                index, key, byte_range = pending.popleft()
            except IndexError:
                break
            with noting(store, key):
                value = get(key, byte_range)
            share.append((index, value))
            nbytes += 0 if value is None else len(value)
        return share, perf_counter() - began

    try:
        while pending or tasks:
            most = (threads or len(pending)) if is_slow else 1
            for _ in range(min(most - len(tasks), len(pending))):
                tasks.add(asyncio.create_task(asyncio.to_thread(get_share)))
            timeout = 2 * SHARE_SECONDS if pending else None
            done, tasks = await asyncio.wait(
                tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            is_slow = not done
            for task in done:
                share, seconds = task.result()
                is_slow |= seconds > SLOW_SECONDS * len(share)
                if share:
                    yield share
    finally:
        pending.clear()
        await _cancel_and_wait(tasks | done)
