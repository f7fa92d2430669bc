"""`Store.get_many`: everything a read needs, asked of the store in one call."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Any

    from zarr.core.buffer import Buffer, BufferPrototype


class Store:
    # overlay: after __init__
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not _get_many_is_current(cls):
            cls.get_many = Store.get_many  # type: ignore[method-assign]

    # overlay: after _get_many
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many values, or byte ranges of values, of many keys.

        This is `get` for everything that one read needs, so that a store can batch and merge.
        The default calls `get` for each request, `async.concurrency` of them at a time. Override
        it where the backend has a cheaper way. A subclass that overrides `get` and leaves
        `get_many` alone gets the default, so that all its reads pass through its `get`.

        Parameters
        ----------
        requests
            What to read: a key for its whole value, or `(key, byte_range)`, in which a
            `byte_range` of `None` means the whole value too. A key may occur more than once.
        prototype
            Buffer prototype of the values.

        Yields
        ------
        Sequence[tuple[int, Buffer | None]]
            One group for each underlying operation, in the order in which they complete: the
            index of each request that it served, with the value, or with `None` if the store
            says that the key is absent, and for no other reason. Every request is reported
            once.

        Raises
        ------
        TypeError
            If a request is neither a key nor a pair.
        Exception
            A fetch that fails raises what `get` would have raised, as itself. Further failures
            of the same moment are in a group at the end of its chain of `__cause__`.

        Notes
        -----
        Reading is lazy and bounded: what is in flight and what has not been taken yet are
        limited, in number and in bytes, so that a slow consumer holds the store back. When the
        iteration fails, is cancelled or is closed (`aclose`) early, what is in flight is
        cancelled and awaited first.

        How requests are batched, and across which gaps byte ranges are merged, is up to the
        store. For ranges of one key with explicit limits there is `get_ranges`.
        """
        # Local import: zarr.core._bounded imports symbols from this module.
        from zarr.core._bounded import get_each

        async with aclosing(get_each(self.get, requests, prototype=prototype)) as groups:
            async for group in groups:
                yield group


# overlay: after Store
def _get_many_is_current(cls: type[Store]) -> bool:
    """Whether `get_many` of a store class knows of its `get`, so that reads may go through it.

    A class that overrides `get` alone (a wrapper that decrypts, counts or delays) must see every
    read in its `get`, and an inherited `get_many` would read around it. So the two are compared by
    where in the ancestry they are defined: `get_many` is current if `get` is not defined further
    down. A class that defines both is taken at its word, unless its `get` was replaced later.
    """
    nearest = next(c for c in cls.__mro__ if {"get", "get_many"} & vars(c).keys())
    if "get_many" not in vars(nearest):
        return False
    get = vars(nearest).get("get")
    ours = nearest.__module__.partition(".")[0] == "zarr"
    return (
        get is None
        or not ours
        or getattr(get, "__qualname__", None) == f"{nearest.__qualname__}.get"
    )


# overlay: after _get_many_is_current
def _read_many(
    store: Store,
    requests: Sequence[str | tuple[str, ByteRequest | None]],
    *,
    prototype: BufferPrototype,
) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
    """`store.get_many` where it knows of the `get` of `store`; otherwise one `get` for each request.

    How zarr itself reads many keys: `_get_many_is_current` is asked again, because `get` may have
    been replaced since the class was made, or in this instance alone, and because anything that
    has the methods of a store has always been accepted as one.
    """
    from zarr.core._bounded import get_each, read_watcher

    cls = type(store)
    is_store = issubclass(cls, Store)
    groups: AsyncIterator[Sequence[tuple[int, Buffer | None]]]
    if is_store and _get_many_is_current(cls) and "get" not in vars(store):
        groups = store.get_many(requests, prototype=prototype)
    else:
        groups = get_each(store.get, requests, prototype=prototype)
    watcher = read_watcher.get()
    return groups if watcher is None else watcher.watch(groups, len(requests))
