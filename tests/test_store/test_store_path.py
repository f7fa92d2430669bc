"""A key that is put behind a store path: the short way leads where the long one does."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import example, given

from zarr.storage import MemoryStore, StorePath

STORE = MemoryStore()


class OwnPath(StorePath):
    """A subclass makes its own."""


def below(path: StorePath, key: str) -> tuple[type, str] | type[Exception]:
    try:
        found = path / key
    except ValueError as error:
        return type(error)
    assert found.store is STORE
    return type(found), found.path


@given(
    root=st.sampled_from(["", "a", "a/b"]),
    key=st.text(alphabet="a.0/\\ é", max_size=8),
    cls=st.sampled_from([StorePath, OwnPath]),
)
@example(root="a", key="c/0/1", cls=StorePath)
@example(root="a", key=".zarray", cls=StorePath)
@example(root="", key="a/../b", cls=StorePath)
def test_a_key_below_a_path(root: str, key: str, cls: type[StorePath]) -> None:
    try:
        expected: object = (cls, cls(STORE, "/".join(part for part in (root, key) if part)).path)
    except ValueError as error:
        expected = type(error)
    assert below(cls(STORE, root), key) == expected
