"""`LocalStore.get_many`: a worker thread reads many files in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import paired_with
from zarr.core.config import config
from zarr.storage._blocking import get_in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


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
        async with contextlib.aclosing(get_in_threads(self, requests, read, limit)) as groups:
            async for group in groups:
                yield group
