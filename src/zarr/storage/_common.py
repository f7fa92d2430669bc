"""Reads of a `StorePath` are reported to observers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

read_observers: list[Callable[[Sequence[Buffer | None]], None]] = []
"""Called with the values that a store has returned together, on the thread that reads."""


class StorePath:
    async def get(
        self, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value, or a byte range of it, with the default prototype unless another is given.

        Returns
        -------
        Buffer or None
            `None` if the key does not exist.
        """
        prototype = prototype or default_buffer_prototype()
        value = await self.store.get(self.path, prototype=prototype, byte_range=byte_range)
        report_read((value,))
        return value

    def get_sync(
        self, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value like `get`, without an event loop."""
        if not isinstance(self.store, SupportsGetSync):
            raise TypeError(f"{type(self.store).__name__} cannot be read synchronously.")
        prototype = prototype or default_buffer_prototype()
        value = self.store.get_sync(self.path, prototype=prototype, byte_range=byte_range)
        report_read((value,))
        return value


# overlay: after StorePath
def report_read(values: Sequence[Buffer | None]) -> None:
    """Pass values that a store has returned together to the observers."""
    for observe in tuple(read_observers):
        observe(values)
