"""Calls that run concurrently: lazily and in completion order, and none left when one fails."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine


# overlay: after _cancel_and_wait
async def concurrent_as_completed[T: tuple[Any, ...], V](
    items: Iterable[T],
    func: Callable[..., Coroutine[Any, Any, V]],
    limit: int | None = None,
) -> AsyncGenerator[V]:
    """Call `func(*item)` for every item concurrently, and yield the results in completion order.

    `items` is consumed lazily. A call counts against `limit` until its result has been taken, so a
    slow consumer holds the calls back.

    If a call fails, the failure is raised as itself. Whether the iteration fails, is cancelled or is
    closed early (`contextlib.aclosing`), the calls in flight are cancelled and awaited first.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    upcoming = iter(items)
    tasks: set[asyncio.Task[V]] = set()
    finished: asyncio.Queue[asyncio.Task[V]] = asyncio.Queue()
    try:
        while True:
            for item in islice(upcoming, None if limit is None else limit - len(tasks)):
                task = asyncio.create_task(func(*item))
                tasks.add(task)
                task.add_done_callback(finished.put_nowait)
            if not tasks:
                return
            task = await finished.get()
            tasks.remove(task)
            yield task.result()
    finally:
        await _cancel_and_wait(tasks)
