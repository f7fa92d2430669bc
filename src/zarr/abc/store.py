"""`Store.get_many`: everything that a read needs, requested from the store in one call."""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from functools import wraps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from typing import Any

    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["numbered_requests", "paired_with"]


class Store:
    # overlay: after _get_many
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many values, or byte ranges of values, of many keys.

        The default calls `get` for each request, at most `max_concurrency` at a time. Stores
        whose backend can batch or merge requests should override it.

        Parameters
        ----------
        requests
            Keys, or `(key, byte_range)` pairs. A `byte_range` of `None` means the whole value,
            as does a key by itself. A key may occur several times.
        prototype
            Buffer prototype of the values.
        max_concurrency
            How many requests may be in flight. By default, `async.concurrency`.

        Yields
        ------
        Sequence[tuple[int, Buffer | None]]
            Groups of `(index, value)` pairs in completion order. Each index into `requests` is
            reported once. `None` means that the key does not exist.

        Raises
        ------
        TypeError
            If a request is neither a key nor a pair.
        Exception
            Whatever `get` raises. A failure is never reported as `None`.

        Notes
        -----
        Requests are started lazily. When the iteration fails, is cancelled, or is closed early
        (`contextlib.aclosing`), the requests in flight are cancelled and awaited first.

        Decorate an override with `zarr.abc.store.paired_with(get)` in the class that defines
        `get`. A subclass that overrides only `get` is then read through its `get`. As any `get_many`
        may call `get`, a subclass that translates keys must not pass translated ones to `super()`.
        """
        # Local imports: these modules import symbols from this one.
        from zarr.core._adaptive_limit import fetch_as_completed

        async def fetch(
            index: int, key: str, byte_range: ByteRequest | None
        ) -> Sequence[tuple[int, Buffer | None]]:
            with noting(self, key):
                value = await self.get(key, prototype=prototype, byte_range=byte_range)
            return ((index, value),)

        numbered = numbered_requests(requests)
        async with aclosing(
            fetch_as_completed(self._read_backend(), numbered, fetch, group_nbytes, max_concurrency)
        ) as groups:
            async for group in groups:
                yield group

    def _read_backend(self) -> object | None:
        """Return the object that this store reads from, if its reads may share an adaptive limit."""
        return None


# overlay: after Store
def paired_with[F: Callable[..., Any]](get: Callable[..., Any]) -> Callable[[F], F]:
    """Decorate the `get_many` of a store that defines it next to its own `get`.

    The decorated method is used only while `get` is the `get` of the store: if a subclass, an
    instance or a later assignment replaces `get`, `Store.get_many` reads through the replacement.
    """

    def decorate(get_many: F) -> F:
        @wraps(get_many)
        def checked(self: Store, *args: Any, **kwargs: Any) -> Any:
            is_paired = getattr(self.get, "__func__", None) is get
            return (get_many if is_paired else Store.get_many)(self, *args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


# overlay: after paired_with
def numbered_requests(
    requests: Sequence[str | tuple[str, ByteRequest | None]],
) -> Iterable[tuple[int, str, ByteRequest | None]]:
    """Yield `(index, key, byte_range)` for each request of a `Store.get_many`."""
    if isinstance(requests, str):
        raise TypeError(f"Expected a sequence of requests, got the key {requests!r}.")
    for index, request in enumerate(requests):
        match request:
            case str():
                yield index, request, None
            case (str(key), byte_range):
                yield index, key, byte_range
            case _:
                raise TypeError(f"Expected a key or a (key, byte_range) pair, got {request!r}.")


# overlay: after numbered_requests
class noting:
    """Add a note that names the key being read to any exception raised in the block."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and "While reading" not in str(
            getattr(error, "__notes__", "")
        ):
            with suppress(Exception):  # a note must not hide the error
                where = re.sub(r"(?<=//)[^/@]*@|\?[^)>]*", "", str(self._store))  # no credentials
                error.add_note(f"While reading {self._key!r} from {where}.")


# overlay: after noting
def group_nbytes(group: Sequence[tuple[int, Buffer | None]]) -> int:
    """Return how many bytes the values of a group have."""
    return sum(len(value) for _, value in group if value is not None)
