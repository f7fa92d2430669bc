"""`ZipStore.get_many`: one lock and one hop to a worker thread for many members."""

from __future__ import annotations

import struct
import zlib
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from zarr.core._bounded import get_each
from zarr.storage._blocking import clipped, get_in_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable, Sequence

    from zarr.storage._blocking import Request

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""What stands before the name of a member, section 4.3.7 of
<https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>."""

PLAIN_FLAGS = 0x808
"""Flags of a member that don't matter here: its sizes follow its data, its name is in UTF-8."""


class ZipStore:
    # overlay: after get
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many members of the archive, or byte ranges of members.

        A worker thread takes the lock once for many of them. Of a member that is stored and not
        compressed only the byte range is read, and so it is not checked against its checksum. See
        `Store.get_many` for the parameters, what is yielded, and the errors.
        """
        if len(requests) == 1:
            many = get_each(self.get, requests, prototype=prototype)
        else:
            read = partial(self._read_members, prototype=prototype)
            many = get_in_threads(requests, read, threads=1)
        async with aclosing(many) as groups:
            async for group in groups:
                yield group

    # overlay: after get_many
    def _read_members(
        self, requests: Iterable[Request], *, prototype: BufferPrototype
    ) -> Generator[tuple[int, Buffer | None]]:
        """Serve requests one after another."""
        with self._lock:
            if not self._is_open:
                self._sync_open()
            archive = self._zf
            # What is still being written has to go through the archive's own file object.
            file = archive.fp if self.path is not None and archive.mode == "r" else None
            for index, key, byte_range in requests:
                data = None
                if file is not None and key in archive.NameToInfo and hasattr(os, "pread"):
                    data = _read_stored(file.fileno(), archive.getinfo(key), byte_range)
                if data is None:
                    yield index, self._get(key, prototype, byte_range)
                else:
                    yield index, prototype.buffer.from_bytes(data)


# overlay: after ZipStore
def _read_stored(
    descriptor: int, member: zipfile.ZipInfo, byte_range: ByteRequest | None
) -> memoryview | None:
    """Bytes of a member that is stored as it is, or `None` where that is for `zipfile` to read.

    A whole member is checked against its checksum.
    """
    size = member.file_size
    span = clipped(byte_range, size)
    plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ~PLAIN_FLAGS
    if span is None or not plain or member.compress_size != size:
        return None
    start, end = span
    name = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
    before = LOCAL_HEADER.size + len(name)
    # From the start on, one call reads header and data: its extra fields are seldom longer than
    # those in the directory.
    ahead = before + len(member.extra) + (end if start == 0 else 0)
    read = os.pread(descriptor, ahead, member.header_offset)
    if len(read) < before or read[LOCAL_HEADER.size : before] != name:
        return None
    signature, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(read)
    if signature != b"PK\3\4" or name_length != len(name):
        return None
    first = before + extra_length + start
    data = memoryview(read)[first:] if start == 0 else memoryview(b"")
    if len(data) < end - start:
        data = memoryview(os.pread(descriptor, end - start, member.header_offset + first))
    data = data[: end - start]
    if len(data) < end - start or (end - start == size and zlib.crc32(data) != member.CRC):
        return None
    return data
