"""`WrapperStore.get_many` forwards the whole request to the wrapped store."""

from __future__ import annotations

from zarr.abc.store import paired_with


class WrapperStore:
    # overlay: after get_partial_values
    @paired_with(get)
    def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # docstring inherited
        return self._store.get_many(requests, prototype=prototype, max_concurrency=max_concurrency)
