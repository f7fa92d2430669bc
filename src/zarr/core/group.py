"""The metadata of the members of a group is read through a `StorePath`, and so reported."""

from __future__ import annotations


async def _read_metadata_v3(store: Store, path: str) -> ArrayV3Metadata | GroupMetadata:
    """Read the metadata of an array or a group, or raise `FileNotFoundError`."""
    document = await StorePath(store, _join_paths([path, ZARR_JSON])).get()
    if document is None:
        raise FileNotFoundError(path)
    return _build_metadata_v3(buffer_to_json_object(document), path=str(StorePath(store, path)))


async def _read_metadata_v2(store: Store, path: str) -> ArrayV2Metadata | GroupMetadata:
    """Read the metadata of an array or a group, or raise `FileNotFoundError`."""
    names = (ZARRAY_JSON, ZGROUP_JSON, ZATTRS_JSON)
    array, group, attributes = await asyncio.gather(
        *(StorePath(store, _join_paths([path, name])).get() for name in names)
    )
    if (document := group if array is None else array) is None:
        raise FileNotFoundError(path)
    return _build_metadata_v2(
        buffer_to_json_object(document),
        {} if attributes is None else buffer_to_json_object(attributes),
        path=str(StorePath(store, path)),
    )
