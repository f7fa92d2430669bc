"""`LocalStore.get_many`: many files for each hop to a worker thread."""

from __future__ import annotations

import stat
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from zarr.core._bounded import get_each
from zarr.storage._blocking import clipped, get_in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Sequence

    from zarr.storage._blocking import Request

MAX_READ = 1 << 30
"""What one call reads at most, in bytes: systems have limits of about twice that."""


# overlay: after _get
def _open_plain(root: str, key: str) -> int | None:
    """A descriptor of the file of `key`, or `None` where only `_get` knows what becomes of it.

    A key is put behind the root as it is, without a `Path` for each: so it must be one that `Path`
    leaves alone.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    if key[:1] in "/." or key[-1:] in "/." or "/." in key or "//" in key or os.sep != "/":
        return None
    try:
        return os.open(f"{root}/{key}", os.O_RDONLY | os.O_NONBLOCK)  # never wait for a pipe
    except FileNotFoundError:
        raise
    except OSError:
        return None


# overlay: after _open_plain
def _read_descriptor(
    descriptor: int, prototype: BufferPrototype, byte_range: ByteRequest | None
) -> Buffer | None:
    """What `_get` reads of an open file, or `None` where it is for `_get` to say what that is."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    span = clipped(byte_range, status.st_size)  # of a file in /proc, which has no size, `None`
    if span is None or span[1] - span[0] > MAX_READ:
        return None
    start, end = span
    try:
        data = os.pread(descriptor, end - start, start)
    except OSError:
        return None
    return prototype.buffer.from_bytes(data) if len(data) == end - start else None


class LocalStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many files, or byte ranges of files.

        A worker thread reads many of them for each time that it is asked to, and opens a file once
        for all its ranges. See `Store.get_many` for the parameters, what is yielded, and the
        errors.
        """
        if len(requests) == 1:
            many = get_each(self.get, requests, prototype=prototype)
        else:
            await self._ensure_open()
            many = get_in_threads(requests, partial(self._read_files, prototype=prototype))
        async with aclosing(many) as groups:
            async for group in groups:
                yield group

    # overlay: after get_many
    def _read_files(
        self, requests: Iterable[Request], *, prototype: BufferPrototype
    ) -> Generator[tuple[int, Buffer | None]]:
        """Serve requests one after another; those of one key follow each other."""
        root = str(self.root)
        opened: str | None = None
        descriptor: int | None = None
        try:
            for index, key, byte_range in requests:
                value = None
                try:
                    if key != opened:
                        if descriptor is not None:
                            os.close(descriptor)
                        opened, descriptor = key, None
                        descriptor = _open_plain(root, key)
                    if descriptor is not None:
                        value = _read_descriptor(descriptor, prototype, byte_range)
                    if value is None:
                        value = _get(self.root / key, prototype, byte_range)
                except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    opened = None
                yield index, value
        finally:
            if descriptor is not None:
                os.close(descriptor)
