"""Read the metadata of all members of a group with one request, and of several groups at once."""

from __future__ import annotations

from contextlib import aclosing, nullcontext, suppress
from typing import TYPE_CHECKING

from zarr.abc.store import _read_many
from zarr.core._bounded import (
    checked,
    closing_groups,
    concurrency_is_chosen,
    fetch_limit,
    map_ahead,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from zarr.core.buffer import BufferPrototype

type Member = tuple[str, AnyAsyncArray | AsyncGroup]

GROUPS_AT_ONCE = 4
"""How many groups of a hierarchy are listed and read at once."""


# overlay: after _getitem_semaphore
class _MetadataDocuments:
    """What `_read_metadata_v2` and `_read_metadata_v3` need of a store, from memory, once each."""

    def __init__(self, store: Store, documents: dict[str, Buffer | None]) -> None:
        self._store = store
        self._documents = documents

    def __str__(self) -> str:
        return str(self._store)

    async def get(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        return self._documents.pop(key)


# overlay: after _MetadataDocuments
async def _read_members(
    node: AsyncGroup, keys: Sequence[str]
) -> AsyncGenerator[tuple[str, AnyAsyncArray | AsyncGroup | KeyError]]:
    """Read the metadata of members of a group with one request.

    Parameters
    ----------
    node : AsyncGroup
        The group.
    keys : sequence of str
        The names of members.

    Yields
    ------
    tuple[str, AnyAsyncArray | AsyncGroup | KeyError]
        Each key with its array or group, or with the error that `getitem` raises if it has no
        metadata, as they arrive.
    """
    store, prototype = node.store, default_buffer_prototype()
    v3 = node.metadata.zarr_format == 3
    read = _read_metadata_v3 if v3 else _read_metadata_v2
    names = (ZARR_JSON,) if v3 else (ZARRAY_JSON, ZGROUP_JSON, ZATTRS_JSON)
    paths = [(node.store_path / key).path for key in keys]
    requests = [_join_paths([path, name]) for path in paths for name in names]
    documents: dict[str, Buffer | None] = {}
    source = cast("Store", _MetadataDocuments(store, documents))
    to_come = [len(names)] * len(keys)
    fetched = checked(_read_many(store, requests, prototype=prototype), len(requests))
    async with closing_groups(fetched) as groups:
        async for group in groups:
            for index, value in group:
                documents[requests[index]] = value
                number = index // len(names)
                to_come[number] -= 1
                if to_come[number]:
                    continue
                member: AnyAsyncArray | AsyncGroup | KeyError
                try:
                    metadata = await read(store=source, path=paths[number])
                    member = _build_node(store=store, path=paths[number], metadata=metadata)
                except FileNotFoundError:
                    member = KeyError(keys[number])
                except KeyError as error:  # of a document that lacks something
                    member = error
                yield keys[number], member


# overlay: after _read_members
async def _get_members(
    node: AsyncGroup, keys: Sequence[str]
) -> AsyncGenerator[tuple[str, AnyAsyncArray | AsyncGroup | KeyError]]:
    """`_read_members`, by `getitem` for each of them."""

    async def get(key: str) -> tuple[str, AnyAsyncArray | AsyncGroup | KeyError]:
        try:
            return key, await node.getitem(key)
        except KeyError as error:
            return key, error

    async with aclosing(map_ahead(get, keys, limit=fetch_limit())) as members:
        async for member in members:
            yield member


async def _iter_members(
    node: AsyncGroup,
    skip_keys: Sequence[str],
    semaphore: asyncio.Semaphore | None,
) -> AsyncGenerator[Member]:
    """
    Yield the arrays and groups in a group, with their names, as their metadata arrive.

    Parameters
    ----------
    node : AsyncGroup
        The group.
    skip_keys : sequence of str
        What is in the group's directory and is none of its members.
    semaphore : asyncio.Semaphore | None
        Limits how many groups are read at once.
    """
    async with semaphore or nullcontext():
        keys = [key async for key in node.store.list_dir(node.path) if key not in skip_keys]
        # Consolidated metadata are there without a request. A subclass may mean something else.
        stored = node.metadata.consolidated_metadata is None
        at_once = stored and type(node).getitem is AsyncGroup.getitem
        unread = dict.fromkeys(keys)
        if not unread:
            return
        for read in (_read_members, _get_members) if at_once else (_get_members,):
            # A store may raise FileNotFoundError for a key that is absent: ask for each, then.
            with suppress(FileNotFoundError) if read is _read_members else nullcontext():
                async with aclosing(read(node, list(unread))) as members:
                    async for key, member in members:
                        unread.pop(key, None)
                        if not isinstance(member, KeyError):
                            yield member.basename, member
                            continue
                        # Some object that lies there, and is neither array nor group.
                        message = (
                            f"Object at {member.args[0]} is not recognized as a component of a "
                            "Zarr hierarchy."
                        )
                        warnings.warn(message, ZarrUserWarning, stacklevel=1)


async def _iter_members_deep(
    group: AsyncGroup,
    *,
    max_depth: int | None,
    skip_keys: Sequence[str],
    semaphore: asyncio.Semaphore | None = None,
    use_consolidated_for_children: bool = True,
) -> AsyncGenerator[Member]:
    """
    Yield the arrays and groups in a group, with their names, then those in its groups.

    The groups are read several at a time, unless `async.concurrency` was set: it limits what is
    read of one group at a time.

    Parameters
    ----------
    group : AsyncGroup
        The group.
    max_depth : int | None
        How many levels to go down; `None` for all of them.
    skip_keys : sequence of str
        What is in a group's directory and is none of its members.
    semaphore : asyncio.Semaphore | None
        Limits how many groups are read at once.
    use_consolidated_for_children : bool, default True
        Whether to trust the consolidated metadata of the groups that are found.
    """
    descend = max_depth is None or max_depth > 0
    groups: list[tuple[str, AsyncGroup]] = []
    members = _iter_members(group, skip_keys=skip_keys, semaphore=semaphore)
    async with aclosing(members):
        async for name, node in members:
            if isinstance(node, AsyncGroup):
                if not use_consolidated_for_children and node.metadata.consolidated_metadata:
                    metadata = replace(node.metadata, consolidated_metadata=None)
                    node = replace(node, metadata=metadata)
                if descend:
                    groups.append((name, node))
            yield name, node

    async def walk(item: tuple[str, AsyncGroup]) -> list[Member]:
        prefix, node = item
        below = _iter_members_deep(
            node,
            max_depth=None if max_depth is None else max_depth - 1,
            skip_keys=skip_keys,
            semaphore=semaphore,
        )
        async with aclosing(below):
            return [(f"{prefix}/{name}".lstrip("/"), member) async for name, member in below]

    limit = 1 if concurrency_is_chosen() else GROUPS_AT_ONCE
    async with aclosing(map_ahead(walk, groups, limit=limit)) as walked:
        async for found in walked:
            for member in found:
                yield member
