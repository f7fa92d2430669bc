"""A store that returns more bytes than requested is an error, not an offset into other bytes."""

from __future__ import annotations


async def _fetch(ctx: _WorkerCtx, byte_range: ByteRequest | None) -> Buffer:
    """Fetch a byte range, or the whole value.

    Raises
    ------
    FileNotFoundError
        If the key is absent.
    """
    async with ctx.semaphore:
        value = await ctx.fetch(byte_range)
    if value is None:
        raise FileNotFoundError
    return value


async def _fetch_single(
    ctx: _WorkerCtx, idx: int, req: ByteRequest | None
) -> Sequence[tuple[int, Buffer | None]]:
    """Fetch one byte range."""
    return ((idx, await _fetch(ctx, req)),)


async def _fetch_group(
    ctx: _WorkerCtx, members: list[tuple[int, RangeByteRequest]]
) -> Sequence[tuple[int, Buffer | None]]:
    """Fetch ranges that are sorted by `start` as one, and cut it apart.

    Raises
    ------
    OSError
        If there are more bytes than requested: some servers ignore byte ranges.
    """
    start = members[0][1].start
    merged = RangeByteRequest(start, max(member.end for _, member in members))
    value = await _fetch(ctx, merged)
    if len(members) == 1:
        return ((members[0][0], value),)
    if len(value) > merged.end - merged.start:
        raise OSError(f"Requested {merged}, but the store returned {len(value)} bytes.")
    return [(idx, value[member.start - start : member.end - start]) for idx, member in members]
