"""Tests for how the members of groups are read: one `get_many` for each group, groups side by side."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

pytest.importorskip("hypothesis")

import hypothesis.strategies as st
from hypothesis import given, settings

import zarr
from tests.event_loop import nothing_left_behind, turns
from zarr.api.asynchronous import consolidate_metadata
from zarr.core import group as group_module
from zarr.core.array import AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.config import config
from zarr.core.group import AsyncGroup
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

type Tree = dict[str, Tree | None]
"""The members of a group; an array is `None`."""

BUFFER = default_buffer_prototype().buffer


@pytest.fixture(autouse=True)
async def _nothing_left_behind() -> AsyncGenerator[None]:
    async with nothing_left_behind():
        yield


class RecordingStore(MemoryStore):
    """Keeps what each call asked for. Groups in `gates` are read when their gate is opened."""

    def __init__(self, documents: dict[str, bytes]) -> None:
        super().__init__({key: BUFFER.from_bytes(value) for key, value in documents.items()})
        self.many: list[list[str]] = []
        self.gets: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.failures: dict[str, Exception] = {}
        self.running = self.most_running = 0

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted([key async for key in super().list_dir(prefix)]):
            yield key

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.gets.append(key)
        return await super().get(key, prototype, byte_range)

    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        keys = [request for request in requests if isinstance(request, str)]
        if not keys:
            return
        self.many.append(keys)
        group = keys[0].rpartition("/")[0].rpartition("/")[0]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if group in self.gates:
                await self.gates[group].wait()
            if group in self.failures:
                raise self.failures[group]
            # The last first, so that nobody can rely on the order.
            for index in reversed(range(len(keys))):
                yield [(index, await MemoryStore.get(self, keys[index], prototype))]
        finally:
            self.running -= 1

    def groups(self) -> list[str]:
        """The group of which each `get_many` has read the members."""
        return [keys[0].rpartition("/")[0].rpartition("/")[0] for keys in self.many]


def documents(tree: Tree | None, path: str = "", *, zarr_format: int = 3) -> dict[str, bytes]:
    """What is stored of a hierarchy."""
    prefix = f"{path}/" if path else ""
    attributes = {"path": path}
    name, metadata = ("zarr.json", ARRAY_V3) if tree is None else ("zarr.json", GROUP_V3)
    if zarr_format == 2:
        name, metadata = (".zarray", ARRAY_V2) if tree is None else (".zgroup", GROUP_V2)
        found = {f"{prefix}.zattrs": json.dumps(attributes).encode()}
    else:
        found, metadata = {}, {**metadata, "attributes": attributes}
    found[prefix + name] = json.dumps(metadata).encode()
    for key, below in (tree or {}).items():
        found |= documents(below, prefix + key, zarr_format=zarr_format)
    return found


def stored(path: str, **kwargs: Any) -> dict[str, Any]:
    store = MemoryStore()
    zarr.create_array(store, shape=(4,), chunks=(2,), dtype="int8", compressors=None, **kwargs)
    value: dict[str, Any] = json.loads(store._store_dict[path].to_bytes())
    return value


ARRAY_V3, ARRAY_V2 = stored("zarr.json"), stored(".zarray", zarr_format=2)
GROUP_V3: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
GROUP_V2: dict[str, Any] = {"zarr_format": 2}

TREE: Tree = {
    "array": None,
    "empty": {},
    "first": {"array": None, "inner": {"array": None, "innermost": {"x": None, "y": None}}},
    "second": {"array": None, "other": None},
}
DEPTHS: dict[int | None, set[str]] = {
    0: {"array", "empty", "first", "second"},
}
DEPTHS[1] = DEPTHS[0] | {"first/array", "first/inner", "second/array", "second/other"}
DEPTHS[2] = DEPTHS[1] | {"first/inner/array", "first/inner/innermost"}
DEPTHS[None] = DEPTHS[2] | {"first/inner/innermost/x", "first/inner/innermost/y"}


async def members(
    store: Any, max_depth: int | None = None, *, cls: type[AsyncGroup] = AsyncGroup, **kwargs: Any
) -> dict[str, Any]:
    """The members of the group at the root, by name, in the order in which they come."""
    group = await cls.open(store, **kwargs)
    forget(store)
    found: dict[str, Any] = {}
    async with aclosing(group.members(max_depth)) as nodes:
        async for name, node in nodes:
            assert name not in found
            found[name] = node
    return found


def forget(store: Any) -> None:
    if isinstance(store, RecordingStore):
        store.many.clear()
        store.gets.clear()


def attributes(found: dict[str, Any]) -> dict[str, tuple[bool, Any]]:
    """Whether each member is an array, and its attributes."""
    return {name: (isinstance(node, AsyncArray), node.attrs) for name, node in found.items()}


class AskedGroup(AsyncGroup):
    """Wants to be asked for each of its members."""

    asked: ClassVar[list[str]] = []

    async def getitem(self, key: str) -> Any:
        AskedGroup.asked.append(key)
        return await super().getitem(key)


# ---------------------------------------------------------------------------
# What is found
# ---------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("max_depth", DEPTHS)
async def test_one_get_many_for_each_group(zarr_format: Any, max_depth: int | None) -> None:
    store = RecordingStore(documents(TREE, zarr_format=zarr_format))
    found = await members(store, max_depth, zarr_format=zarr_format)
    assert found.keys() == DEPTHS[max_depth]
    for name, node in found.items():
        is_array = name.rpartition("/")[2] in ("array", "other", "x", "y")
        assert isinstance(node, AsyncArray if is_array else AsyncGroup)
        assert (node.path, node.attrs) == (name, {"path": name})
    groups = {name.rpartition("/")[0] for name in DEPTHS[max_depth]}
    assert Counter(store.groups()) == Counter(groups)
    names = ["zarr.json"] if zarr_format == 3 else [".zarray", ".zgroup", ".zattrs"]
    asked = sorted(key for keys in store.many for key in keys)
    assert asked == sorted(f"{path}/{name}" for path in DEPTHS[max_depth] for name in names)
    assert store.gets == []


trees: st.SearchStrategy[Any] = st.recursive(
    st.just({}),
    lambda below: st.dictionaries(st.sampled_from("abcde"), st.none() | below, max_size=4),
    max_leaves=12,
)


def assert_in_order(names: Sequence[str], tree: Tree, depth: int | None) -> None:
    """The members of a group come first, then those of its groups, in the same order."""
    direct = [name for name in names if "/" not in name]
    assert set(direct) == tree.keys()
    rest = list(names[len(direct) :])
    for name in direct:
        below = tree[name]
        if not below or depth == 0:
            continue
        inside = [other for other in rest if other.startswith(f"{name}/")]
        assert rest[: len(inside)] == inside
        rest = rest[len(inside) :]
        inner = [other.removeprefix(f"{name}/") for other in inside]
        assert_in_order(inner, below, None if depth is None else depth - 1)
    assert rest == []
    assert names[: len(direct)] == direct


@given(tree=trees, zarr_format=st.sampled_from([2, 3]), depth=st.sampled_from([None, 0, 1, 2]))
@settings(max_examples=60)
def test_hierarchies(tree: Tree, zarr_format: Any, depth: int | None) -> None:
    """All members are found, in order, and are those that `getitem` finds."""
    store = RecordingStore(documents(tree, zarr_format=zarr_format))
    found = sync(members(store, depth, zarr_format=zarr_format))
    asked = sync(members(store, depth, zarr_format=zarr_format, cls=AskedGroup))
    assert_in_order(list(found), tree, depth)
    assert attributes(found) == attributes(asked)
    assert [node.metadata for node in found.values()] == [asked[name].metadata for name in found]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("cls", [AsyncGroup, AskedGroup])
async def test_what_is_no_member_is_warned_of(zarr_format: Any, cls: type[AsyncGroup]) -> None:
    store = RecordingStore(
        documents(TREE, zarr_format=zarr_format) | {"notes.txt": b"!", "first/folder/file": b"?"}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = await members(store, zarr_format=zarr_format, cls=cls)
    assert found.keys() == DEPTHS[None]
    assert {warning.category for warning in caught} == {ZarrUserWarning}
    assert [str(warning.message) for warning in caught] == [
        f"Object at {name} is not recognized as a component of a Zarr hierarchy."
        for name in ("notes.txt", "folder")
    ]


@pytest.mark.filterwarnings("ignore:Object at notes.txt is not recognized")
@pytest.mark.parametrize("zarr_format", [2, 3])
async def test_a_store_that_raises_for_an_absent_key(zarr_format: Any) -> None:
    """Members that were read before are not reported twice."""

    class Raising(RecordingStore):
        async def get(self, *args: Any, **kwargs: Any) -> Buffer | None:
            value = await MemoryStore.get(self, *args, **kwargs)
            if value is None and ".z" not in args[0]:
                raise FileNotFoundError(args[0])
            return value

        async def get_many(self, requests: Any, *, prototype: Any) -> Any:
            self.many.append(list(requests))
            for index, key in enumerate(requests):
                if await MemoryStore.get(self, key, prototype) is None and "notes" in key:
                    raise FileNotFoundError(key)
                yield [(index, await MemoryStore.get(self, key, prototype))]

    store = Raising(documents(TREE, zarr_format=zarr_format) | {"notes.txt": b"!"})
    found = await members(store, zarr_format=zarr_format)
    assert found.keys() == DEPTHS[None]


async def test_a_subclass_is_asked_for_each_member() -> None:
    AskedGroup.asked.clear()
    store = RecordingStore(documents(TREE))
    assert (await members(store, 0, cls=AskedGroup)).keys() == DEPTHS[0]
    assert AskedGroup.asked == sorted(DEPTHS[0])
    assert store.many == []


async def test_a_store_that_is_no_store() -> None:
    """It has never needed more than the methods of one."""

    class Duck:
        def __init__(self, store: MemoryStore) -> None:
            self.get, self.list_dir = store.get, store.list_dir
            self.read_only, self.supports_listing = False, True

    store = RecordingStore(documents(TREE))
    group = await AsyncGroup.open(store)
    object.__setattr__(group.store_path, "store", Duck(store))
    store.gets.clear()
    assert {name async for name, _ in group.members(None)} == DEPTHS[None]
    assert sorted(store.gets) == sorted(f"{name}/zarr.json" for name in DEPTHS[None])
    assert store.many == []


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("trusted", [False, True])
async def test_groups_with_consolidated_metadata(trusted: bool) -> None:
    """Their members are known; what has been changed since is seen if they are not trusted."""
    store = RecordingStore(documents(TREE))
    await consolidate_metadata(store, "first", zarr_format=3)
    store._store_dict["first/array/zarr.json"] = BUFFER.from_bytes(
        json.dumps({**ARRAY_V3, "attributes": {"path": "changed"}}).encode()
    )
    group = await AsyncGroup.open(store, use_consolidated=False)
    forget(store)
    members = group.members(None, use_consolidated_for_children=trusted)
    found = {name: node.attrs["path"] async for name, node in members}
    changed = {} if trusted else {"first/array": "changed"}
    assert found == {name: name for name in DEPTHS[None]} | changed
    below = {"first", "first/inner", "first/inner/innermost"}
    assert below.isdisjoint(store.groups()) == trusted
    assert store.gets == []


# ---------------------------------------------------------------------------
# When it is read
# ---------------------------------------------------------------------------

MANY: Tree = {f"g{i:02}": {"x": None, "y": None} for i in range(12)}


class Walk:
    """A task that takes all members of a gated store."""

    def __init__(self, store: RecordingStore) -> None:
        self.found: list[str] = []
        self.store = store
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        group = await AsyncGroup.open(self.store)
        async with aclosing(group.members(None)) as nodes:
            async for name, _ in nodes:
                self.found.append(name)


def gated(tree: Tree) -> RecordingStore:
    store = RecordingStore(documents(tree))
    store.gates = {name: asyncio.Event() for name in tree}
    return store


@pytest.mark.parametrize(("concurrency", "expected"), [(10, 4), (3, 1), (50, 1), (1, 1)])
async def test_groups_are_read_side_by_side(concurrency: int, expected: int) -> None:
    """But one at a time where `async.concurrency` was set: it limits what is read of one."""
    assert group_module.GROUPS_AT_ONCE == 4
    store = gated(MANY)
    with config.set({"async.concurrency": concurrency}):
        walk = Walk(store)
        await turns()
        assert len(walk.found) == 12
        assert store.running == expected
        for gate in store.gates.values():
            await turns()
            assert store.running <= expected
            gate.set()
        await walk.task
    assert store.most_running == expected
    assert len(walk.found) == 36


async def test_the_order_is_that_of_the_groups() -> None:
    """Whichever is read first."""
    store = gated(MANY)
    walk = Walk(store)
    await turns()
    groups = list(walk.found)
    for name in reversed(groups[1:10]):
        store.gates[name].set()
        await turns()
    assert walk.found == groups
    for name in groups:
        store.gates[name].set()
    await walk.task
    assert walk.found == groups + [f"{name}/{key}" for name in groups for key in ("y", "x")]


async def test_an_error_comes_in_its_turn() -> None:
    store = gated(MANY)
    walk = Walk(store)
    await turns()
    groups = list(walk.found)
    store.failures[groups[2]] = error = OSError("broken")
    for name in (groups[2], groups[1]):
        store.gates[name].set()
        await turns()
    assert not walk.task.done()
    store.gates[groups[0]].set()
    with pytest.raises(OSError) as raised:
        await walk.task
    assert raised.value is error
    assert walk.found == groups + [f"{name}/{key}" for name in groups[:2] for key in ("y", "x")]
    assert store.running == 0


async def test_an_error_of_the_first_group() -> None:
    store = gated(MANY)
    store.failures[""] = error = OSError("broken")
    with pytest.raises(OSError) as raised:
        await Walk(store).task
    assert raised.value is error


async def test_a_cancelled_walk_leaves_nothing_behind() -> None:
    store = gated(MANY)
    walk = Walk(store)
    await turns()
    assert store.running == group_module.GROUPS_AT_ONCE
    walk.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walk.task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert store.running == 0


@pytest.mark.parametrize("taken", [1, 12, 13, 14])
async def test_a_walk_is_broken_off(taken: int) -> None:
    """While the members of the root come, and while those of its groups do."""
    store = RecordingStore(documents(MANY))
    store.gates["g09"] = asyncio.Event()  # the third
    group = await AsyncGroup.open(store)
    found = []
    async for name, _ in group.members(None):
        found.append(name)
        if len(found) == taken:
            break
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert store.running == 0
