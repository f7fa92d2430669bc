"""Waiting in tests, and seeing to it that a test leaves nothing behind in the event loop."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any


async def turns(count: int = 60) -> None:
    """Let everything run that can run without anything else happening."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen, here or on another thread."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """See to it that no task is left running, and no exception that the event loop complains about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    gc.freeze()  # so that collecting garbage looks at this test's objects alone
    yield
    gc.collect()
    gc.unfreeze()
    await turns()
    assert complaints == []
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
