"""Calls that run concurrently: lazily and in completion order, and none left when one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Coroutine


async def concurrent_map[T: tuple[Any, ...], V](
    items: Iterable[T], func: Callable[..., Awaitable[V]], limit: int | None = None
) -> list[V]:
    """Call `func(*item)` for every item, at most `limit` at a time, and return the results in order.

    If a call fails, or the caller is cancelled, the other calls are cancelled and awaited first.
    """
    tasks = concurrent_iter(items, func, limit)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await _cancel_and_wait(tasks)
        raise


# overlay: after concurrent_map
async def _cancel_and_wait(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that are not being cancelled already, and wait until all have ended."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# overlay: after _cancel_and_wait
async def concurrent_as_completed[T: tuple[Any, ...], V](
    items: Iterable[T],
    func: Callable[..., Coroutine[Any, Any, V]],
    limit: int | Callable[[int], bool] | None = None,
) -> AsyncGenerator[V]:
    """Call `func(*item)` for every item concurrently, and yield the results in completion order.

    `items` is consumed lazily. A call counts against `limit` until its result has been taken, so a
    slow consumer holds the calls back. If `limit` is a function, it is given the number of calls
    that count, and decides whether another one may start.

    If a call fails, the failure is raised as itself. Whether the iteration fails, is cancelled or is
    closed early (`contextlib.aclosing`), the calls in flight are cancelled and awaited first.
    """
    if isinstance(limit, int) and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    admits = limit if callable(limit) else lambda held: limit is None or held < limit
    upcoming = iter(items)
    tasks: set[asyncio.Task[V]] = set()
    finished: asyncio.Queue[asyncio.Task[V]] = asyncio.Queue()
    try:
        while True:
            while admits(len(tasks)) and (item := next(upcoming, None)) is not None:
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
