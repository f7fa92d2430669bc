"""Before a consumer can limit the fetches of several reads together."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import Iterable


def _observed(fetches: Iterable[Fetch]) -> Iterable[Fetch]:
    """Have fetches watched, if the consumer has asked for it."""
    if (watcher := read_watcher.get()) is not None:
        return map(watcher.fetch, fetches)
    return fetches


def fetch_limit(backend: int | None = None) -> int:
    """How many fetches of one read may be in flight at once.

    A user's `async.concurrency` (one that differs from its default) holds for every store, up
    or down. At the default, a store asks for what its backend is made for.

    Parameters
    ----------
    backend
        The number of concurrent requests that suits the backend, or `None` if it has no
        preference: then `async.concurrency` applies.
    """
    configured: int | None = config.get("async.concurrency")
    if configured is None:
        return sys.maxsize
    if backend is None or concurrency_is_chosen():
        return max(1, configured)
    return backend
