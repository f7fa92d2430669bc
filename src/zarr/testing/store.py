"""What every store's `get_many` is tested for; and the simulated latency applies to each fetch."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, UserList
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core._bounded import closing_groups, get_each
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.config import config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer.core import ArrayLike, BufferPrototype


class StoreTests:
    # -------------------------------------------------------------------
    # Store.get_many
    # -------------------------------------------------------------------
    # Each test is about one promise of `Store.get_many`, and is named for it. None of them knows
    # how a store keeps it: whether by one `get` for each request, or by other means. What a store
    # holds is watched through the buffers that it makes, and what it runs through the event loop.

    async def _set_some(self, store: S, count: int = 8, nbytes: int = 20) -> dict[str, bytes]:
        """Put values into the store, each different from the others."""
        pattern = bytes(range(251)) * (2 + nbytes // 251)
        values = {f"many/c/{index}": pattern[index : index + nbytes] for index in range(count)}
        for key, value in values.items():
            await self.set(store, key, self.buffer_cls.from_bytes(value))
        return values

    async def test_get_many_reports_each_request_once(self, store: S) -> None:
        """
        Report every request by its index, once, in groups of `(index, value)`. The order is free.
        """
        present = await self._set_some(store)
        requests = [*present, "many/absent", *present, "many/c/absent"]
        reports = await _reports(store, requests)
        assert sorted(index for index, _ in reports) == list(range(len(requests)))
        assert all(value is None or isinstance(value, Buffer) for _, value in reports)

    async def test_get_many_gives_each_request_its_own_value(self, store: S) -> None:
        """
        The index that is reported with a value is the index of the request for that value, in
        whatever order the values arrive.
        """
        present = await self._set_some(store, count=40)
        for requests in ([*present], [*present][::-1]):
            expected = {index: present[key] for index, key in enumerate(requests)}
            assert await _read_many(store, requests) == expected

    async def test_get_many_agrees_with_get(self, store: S) -> None:
        """
        Report for every request what `get` returns for it, to the byte: for any range of any
        value, also beyond its end. If `get` raises for one of them, raise an error of that type.
        """
        await self._set_some(store, count=2)
        await self.set(store, "many/empty", self.buffer_cls.from_bytes(b""))
        at = (0, 1, 7, 19, 20, 21, 30)  # of values of 20 bytes
        byte_ranges: list[ByteRequest | None] = [
            None,
            *(RangeByteRequest(start, end) for start in at for end in at if start <= end),
            *(OffsetByteRequest(offset) for offset in at),
            *(SuffixByteRequest(suffix) for suffix in at),
        ]
        keys = ("many/c/1", "many/empty", "many/absent", "many/c")
        await _assert_agreement(store, [(keys[0], byte_range) for byte_range in byte_ranges])
        for few in (None, RangeByteRequest(0, 1), OffsetByteRequest(1), SuffixByteRequest(1)):
            await _assert_agreement(store, [(key, few) for key in keys])

    async def test_get_many_agrees_with_get_for_any_mixture(self, store: S) -> None:
        """
        The same for mixtures of requests that Hypothesis draws.
        """
        hypothesis = pytest.importorskip("hypothesis")
        st = pytest.importorskip("hypothesis.strategies")
        loop = asyncio.get_running_loop()
        await self._set_some(store, count=2)
        await self.set(store, "many/empty", self.buffer_cls.from_bytes(b""))

        limit = st.integers(0, 25)
        byte_ranges = st.one_of(
            st.none(),
            st.builds(lambda a, b: RangeByteRequest(min(a, b), max(a, b)), limit, limit),
            st.builds(OffsetByteRequest, limit),
            st.builds(SuffixByteRequest, limit),
        )
        keys = st.sampled_from(["many/c/0", "many/c/1", "many/empty", "many/absent", "many/c"])
        requests = st.lists(st.one_of(keys, st.tuples(keys, byte_ranges)), max_size=15)

        # Hypothesis calls plain functions. It does so on a thread of its own, so that the store
        # stays on the event loop that it belongs to.
        @hypothesis.settings(max_examples=15, deadline=None)  # type: ignore[untyped-decorator]
        @hypothesis.given(requests=requests)  # type: ignore[untyped-decorator]
        def check(requests: list[_Request]) -> None:
            agreeing = _assert_agreement(store, requests)
            asyncio.run_coroutine_threadsafe(agreeing, loop).result()

        await asyncio.to_thread(check)

    async def test_get_many_takes_keys_and_pairs(self, store: S) -> None:
        """
        A request is a key, or a pair of a key and a byte range, and `None` means the whole value.
        They come in any kind of sequence.
        """
        (key, value), *_ = (await self._set_some(store)).items()
        requests: list[_Request] = [key, (key, None), (key, RangeByteRequest(1, 3))]
        expected = {0: value, 1: value, 2: value[1:3]}
        for sequence in (requests, tuple(requests), UserList(requests)):
            assert await _read_many(store, sequence) == expected

    @pytest.mark.parametrize(
        "requests",
        [
            "many",
            [None],
            [3],
            [("many/c/0",)],
            [("many/c/0", None, None)],
            ["many/c/0", "many/c/1", RangeByteRequest(0, 1)],
        ],
        ids=["a-key", "none", "a-number", "single", "triple", "a-range"],
    )
    async def test_get_many_rejects_what_is_no_request(self, store: S, requests: Any) -> None:
        """
        Raise a `TypeError` if a request is neither a key nor a pair, and if a single key is passed
        instead of a sequence of keys.
        """
        await self._set_some(store)
        with pytest.raises(TypeError):
            await _read_many(store, requests)

    async def test_get_many_duplicate_requests(self, store: S) -> None:
        """
        A key, or a range of it, may be asked for more than once. Report it each time.
        """
        present = await self._set_some(store, count=2)
        byte_range = RangeByteRequest(2, 9)
        pairs = [(key, wanted) for key in present for wanted in (None, byte_range)] * 20
        expected = {
            index: present[key] if wanted is None else present[key][2:9]
            for index, (key, wanted) in enumerate(pairs)
        }
        assert await _read_many(store, pairs) == expected

    async def test_get_many_byte_ranges(self, store: S) -> None:
        """
        Ranges, offsets and suffixes of several keys are served together: they overlap, touch or
        lie apart, and each gets its own bytes.
        """
        present = await self._set_some(store, count=3)
        slices: list[tuple[ByteRequest | None, slice]] = [
            (RangeByteRequest(5, 9), slice(5, 9)),
            (SuffixByteRequest(4), slice(-4, None)),
            (RangeByteRequest(0, 1), slice(0, 1)),
            (OffsetByteRequest(13), slice(13, None)),
            (None, slice(None)),
            (RangeByteRequest(7, 12), slice(7, 12)),
            (RangeByteRequest(9, 11), slice(9, 11)),
            (SuffixByteRequest(20), slice(None)),
            (OffsetByteRequest(0), slice(None)),
            (RangeByteRequest(0, 20), slice(None)),
        ]
        requests = [(key, byte_range) for byte_range, _ in slices for key in present]
        expected = [value[part] for _, part in slices for value in present.values()]
        assert await _read_many(store, requests) == dict(enumerate(expected))

    async def test_get_many_is_never_short(self, store: S) -> None:
        """
        A value, or a range that lies within a value, comes with all its bytes, however long. A
        store that gets fewer of them has to raise an error, not to report what it got.
        """
        (key, value), *_ = (await self._set_some(store, count=1, nbytes=1 << 20)).items()
        start, end = 1000, len(value) - 1000
        requests: list[_Request] = [
            key,
            (key, RangeByteRequest(start, end)),
            (key, OffsetByteRequest(start)),
            (key, SuffixByteRequest(end)),
        ]
        read = await _read_many(store, requests)
        expected = [value, value[start:end], value[start:], value[-end:]]
        assert [len(read[index] or b"") for index in range(4)] == [len(part) for part in expected]
        assert read == dict(enumerate(expected))

    async def test_get_many_absent_is_none(self, store: S) -> None:
        """
        Report `None` for a key that is absent, whatever range of it is asked for, and for nothing
        else: a value without bytes is an empty buffer.
        """
        present = await self._set_some(store)
        await self.set(store, "many/empty", self.buffer_cls.from_bytes(b""))
        byte_ranges = [None, RangeByteRequest(0, 5), OffsetByteRequest(3), SuffixByteRequest(3)]
        requests: list[_Request] = [*present, "many/empty", ("many/empty", None)]
        expected: list[bytes | None] = [*present.values(), b"", b""]
        requests += [("many/absent", byte_range) for byte_range in byte_ranges]
        expected += [None for _ in byte_ranges]
        assert await _read_many(store, requests) == dict(enumerate(expected))
        assert await _read_many(store, ["many/absent"]) == {0: None}

    async def test_get_many_of_nothing(self, store: S) -> None:
        """
        No requests are no mistake: there is nothing to report.
        """
        assert await _read_many(store, []) == {}
        assert await _read_many(store, ()) == {}

    async def test_get_many_thousands_of_keys(self, store: S) -> None:
        """
        Thousands of requests in one call, most of them for absent keys, as in a sparse array.
        """
        present = await self._set_some(store, count=20)
        requests = [f"many/c/{index}" for index in range(0, 5000, 5)] * 2
        expected = {index: present.get(key) for index, key in enumerate(requests)}
        assert await _read_many(store, requests) == expected

    async def test_get_many_honours_the_prototype(self, store: S) -> None:
        """
        Values are buffers of the class that the prototype names, as those of `get` are.
        """
        present = await self._set_some(store)
        watched = _WatchedBuffers()
        byte_range = RangeByteRequest(0, 3)
        requests: list[_Request] = [*present, *((key, byte_range) for key in present)]
        for _, value in await _reports(store, requests, watched.prototype):
            assert isinstance(value, watched.prototype.buffer)

    async def test_get_many_opens_the_store(self, store_not_open: S) -> None:
        """
        A store that is not open yet can be read: what `get` opens first, `get_many` opens as well.
        """
        assert not store_not_open._is_open
        present = await self._set_some(store_not_open)
        expected = dict(enumerate(present.values()))
        assert await _read_many(store_not_open, [*present]) == expected

    async def test_get_many_side_by_side(self, store: S) -> None:
        """
        Several reads of one store at the same time do not get in each other's way.
        """
        keys = [*await self._set_some(store)]
        orders = [keys[turn:] + keys[:turn] for turn in range(len(keys))]
        expected = [await _read_many(store, order) for order in orders]
        assert await asyncio.gather(*(_read_many(store, order) for order in orders)) == expected

    @pytest.mark.parametrize("byte_range", [(0, 2), "0-2", 5], ids=["tuple", "text", "number"])
    async def test_get_many_raises_what_get_raises(self, store: S, byte_range: Any) -> None:
        """
        A read that fails raises what `get` raises for it, as itself: not in an exception group,
        not as another type, and not as the `None` of an absent key, which an array would fill.
        """
        present = await self._set_some(store)
        failing: _Request = (next(iter(present)), byte_range)
        await _assert_agreement(store, [failing])
        await _assert_agreement(store, [*present, failing, *present])

    async def test_get_many_raises_what_get_raises_for_a_key(self, store: S) -> None:
        """
        The same for keys that a backend may refuse: for one that is too long for the name of a
        file, and for one that other keys have as their directory.
        """
        present = await self._set_some(store)
        for key in ("many/" + "k" * 300, "many", "many/c", "many/c/0/below"):
            await _assert_agreement(store, [key])
            await _assert_agreement(store, [*present, (key, RangeByteRequest(0, 1)), *present])

    async def test_get_many_ends_by_an_error_in_the_middle(self, store: S) -> None:
        """
        What is reported before a read fails is right, and after it nothing is reported. What was
        in flight is cancelled and awaited before the error is raised.
        """
        present = await self._set_some(store)
        failing = await _failing_request(store, next(iter(present)))
        requests: list[_Request] = [*[*present] * 40, failing, *[*present] * 40]
        expected = [*[*present.values()] * 40, None, *[*present.values()] * 40]
        groups = store.get_many(requests, prototype=default_buffer_prototype())
        async with _nothing_left_behind():
            with pytest.raises((TypeError, ValueError)):
                await _assert_reported(groups, expected)
        assert [group async for group in groups] == []

    async def test_get_many_leaves_no_error_unseen(self, store: S) -> None:
        """
        If several reads fail, one error is raised. The others must not come to light later, in
        the log of the event loop, as never retrieved.
        """
        present = await self._set_some(store)
        failing = [await _failing_request(store, key) for key in present]
        for requests in ([*present, *failing, *present, *failing], failing * 5):
            async with _nothing_left_behind():
                with pytest.raises((TypeError, ValueError)):
                    await _read_many(store, requests)

    async def test_get_many_leaves_no_task_behind(self, store: S) -> None:
        """
        When the last request is reported, nothing runs any more.
        """
        present = await self._set_some(store)
        async with _nothing_left_behind():
            read = await _read_many(store, [*present] * 10)
        assert len(read) == 10 * len(present)

    @pytest.mark.parametrize("taken", [1, 3])
    async def test_get_many_stops_early(self, store: S, taken: int) -> None:
        """
        When the consumer closes the iterator, what is in flight is cancelled and awaited before
        `aclose` returns, and nothing more is reported. An iterator without `aclose` has nothing in
        flight between two groups.
        """
        requests = [*await self._set_some(store)] * 200
        groups = store.get_many(requests, prototype=default_buffer_prototype())
        async with _nothing_left_behind(), closing_groups(groups):
            for _ in range(taken):
                await anext(groups, None)
        if hasattr(groups, "aclose"):
            assert [group async for group in groups] == []

    async def test_get_many_is_broken_off(self, store: S) -> None:
        """
        A consumer may leave the loop and forget the iterator. What is in flight ends by itself.
        """
        requests = [*await self._set_some(store)] * 200
        before = asyncio.all_tasks()
        async for group in store.get_many(requests, prototype=default_buffer_prototype()):
            assert group
            break
        async with asyncio.timeout(_PATIENCE):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0)

    async def test_get_many_is_cancelled(self, store: S) -> None:
        """
        When the consumer is cancelled in the middle, the cancellation reaches it, and what was in
        flight has been cancelled and awaited by then. The store can still be read.
        """
        present = await self._set_some(store)
        requests = [*present] * 200

        async def consume() -> None:
            groups = store.get_many(requests, prototype=default_buffer_prototype())
            async with closing_groups(groups):
                await anext(groups)
                consumer.cancel()  # it comes when the store, or else the consumer, next waits
                async for _ in groups:
                    pass
                await asyncio.sleep(0)

        async with _nothing_left_behind():
            consumer = asyncio.create_task(consume())
            await asyncio.wait([consumer], timeout=_PATIENCE)
            assert consumer.cancelled()
        assert await _read_many(store, [*present]) == dict(enumerate(present.values()))

    async def test_get_many_is_lazy(self, store: S) -> None:
        """
        Nothing is read, and no task is made, before the first group is asked for.
        """
        requests = [*await self._set_some(store)]
        watched = _WatchedBuffers()
        async with _nothing_left_behind():
            groups = store.get_many(requests, prototype=watched.prototype)
            assert isinstance(groups, AsyncIterator)
            await _let_things_happen()
        assert watched.made == 0
        async with closing_groups(groups):
            await anext(groups)

    async def test_get_many_holds_back_for_a_slow_consumer(self, store: S) -> None:
        """
        What is in flight, and what has arrived and was not taken, is limited in number: of
        thousands of requests, not half may have a task or a value at a time.
        """
        requests = [*await self._set_some(store)] * 500
        watched = _WatchedBuffers()
        before = len(asyncio.all_tasks())
        async for _ in _slowly(store, requests, watched.prototype):
            assert len(watched.alive) < len(requests) / 2
            assert len(asyncio.all_tasks()) - before < len(requests) / 2

    async def test_get_many_holds_bytes_back_for_a_slow_consumer(self, store: S) -> None:
        """
        It is limited in bytes as well: where values are large, fewer of them are held. Of 160 MiB
        that are asked for, not 120 may be in memory at a time.
        """
        requests = [*await self._set_some(store, count=4, nbytes=1 << 20)] * 40
        watched = _WatchedBuffers()
        async for _ in _slowly(store, requests, watched.prototype):
            assert watched.nbytes() < 120 << 20

    async def test_get_many_goes_through_the_get_of_a_subclass(self, store: S) -> None:
        """
        A subclass that overrides `get` alone, to decrypt, to count or to delay, sees every read
        in its `get`, and what it raises comes out. `Store.__init_subclass__` takes care of that.
        """
        requests = [*await self._set_some(store), "many/absent"]
        expected = await _read_many(store, requests)
        seen: Counter[str] = Counter()
        refused = PermissionError("refused")

        def override(get: Callable[..., Any]) -> Callable[..., Any]:
            async def see(self: Store, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
                seen[key] += 1
                if key == "many/refused":
                    raise refused
                await asyncio.sleep(0.001)
                value: Buffer | None = await get(self, key, *args, **kwargs)
                return value

            return see

        _override_get(store, override)
        assert await _read_many(store, requests) == expected
        assert Counter(requests) <= seen
        async with _nothing_left_behind():
            with pytest.raises(PermissionError) as caught:
                await _read_many(store, [*requests, "many/refused", *requests])
            assert caught.value is refused

    async def test_get_many_of_a_subclass_keeps_to_the_concurrency(self, store: S) -> None:
        """
        No more than `async.concurrency` calls of the `get` of such a subclass run at a time.
        """
        requests = [*await self._set_some(store)] * 10
        running: list[int] = [0]

        def override(get: Callable[..., Any]) -> Callable[..., Any]:
            async def count(self: Store, *args: Any, **kwargs: Any) -> Buffer | None:
                running.append(running[-1] + 1)
                await asyncio.sleep(0)
                value: Buffer | None = await get(self, *args, **kwargs)
                running.append(running[-1] - 1)
                return value

            return count

        _override_get(store, override)
        with config.set({"async.concurrency": 3}):
            await _read_many(store, requests)
        assert 1 <= max(running) <= 3


# overlay: after StoreTests
type _Request = str | tuple[str, ByteRequest | None]


# overlay: after _Request
_PATIENCE = 60.0
"""Seconds that a read may take before a test gives up."""


# overlay: after _PATIENCE
async def _reports(
    store: Store, requests: Sequence[_Request], prototype: BufferPrototype | None = None
) -> list[tuple[int, Buffer | None]]:
    """All that `get_many` reports, as it does."""
    groups = store.get_many(requests, prototype=prototype or default_buffer_prototype())
    async with asyncio.timeout(_PATIENCE), closing_groups(groups):
        return [report async for group in groups for report in group]


# overlay: after _reports
async def _read_many(store: Store, requests: Sequence[_Request]) -> dict[int, bytes | None]:
    """The values that `get_many` reports, by the index of the request."""
    values: dict[int, bytes | None] = {}
    for index, value in await _reports(store, requests):
        assert index not in values, f"request {index} was reported twice"
        values[index] = None if value is None else value.to_bytes()
    return values


# overlay: after _read_many
async def _assert_reported(
    groups: AsyncIterator[Sequence[tuple[int, Buffer | None]]], expected: Sequence[bytes | None]
) -> None:
    """Check each value that is reported, to the end. None may be absent."""
    async for group in groups:
        for index, value in group:
            assert value is not None
            assert value.to_bytes() == expected[index]


# overlay: after _assert_reported
async def _read_one(store: Store, request: _Request) -> bytes | type[Exception] | None:
    """What `get` returns for a request, or the type of what it raises."""
    key, byte_range = (request, None) if isinstance(request, str) else request
    try:
        value = await store.get(key, prototype=default_buffer_prototype(), byte_range=byte_range)
    except Exception as error:  # noqa: BLE001
        return type(error)
    return None if value is None else value.to_bytes()


# overlay: after _read_one
async def _assert_agreement(store: Store, requests: Sequence[_Request]) -> None:
    """Check that `get_many` reports what `get` returns, or raises what it raises.

    What `get` serves is asked for together, what it refuses is asked for alone, and then all of
    it together: that has to raise what `get` raises for one of them.
    """
    expected = [await _read_one(store, request) for request in requests]
    both = list(zip(requests, expected, strict=True))
    served = {request: value for request, value in both if not isinstance(value, type)}
    refused = {request: error for request, error in both if isinstance(error, type)}
    assert await _read_many(store, [*served]) == dict(enumerate(served.values()))
    for request, error in refused.items():
        await _assert_raises(store, [request], {error})
    if refused:
        await _assert_raises(store, requests, set(refused.values()))
    else:
        assert await _read_many(store, requests) == dict(enumerate(expected))


# overlay: after _assert_agreement
async def _assert_raises(
    store: Store, requests: Sequence[_Request], errors: set[type[Exception]]
) -> None:
    """Check that `get_many` raises an error of one of these types, not of one derived from them."""
    with pytest.raises(tuple(errors)) as caught:
        await _read_many(store, requests)
    assert type(caught.value) in errors


# overlay: after _assert_raises
async def _failing_request(store: Store, key: str) -> _Request:
    """A request for a key that is there, for which `get` raises a `TypeError` or a `ValueError`."""
    request: Any = (key, (0, 2))
    if await _read_one(store, request) not in (TypeError, ValueError):
        pytest.skip("get of this store takes a tuple for a byte range")
    return request  # type: ignore[no-any-return]


# overlay: after _failing_request
@asynccontextmanager
async def _nothing_left_behind() -> AsyncIterator[None]:
    """Check that a block leaves no task, not even for a moment, and no error that nobody saw."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    before = asyncio.all_tasks()
    try:
        yield
        left = [str(task) for task in asyncio.all_tasks() - before]
        gc.collect()  # a task complains when it is gone
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(handler)
    assert left == []
    assert complaints == []


# overlay: after _nothing_left_behind
async def _let_things_happen() -> None:
    """Give other tasks and threads the time to do what they are about to do."""
    for _ in range(50):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


# overlay: after _let_things_happen
async def _slowly(
    store: Store, requests: Sequence[_Request], prototype: BufferPrototype
) -> AsyncIterator[None]:
    """Take a few groups; yield with each in hand when the store has had time to read ahead."""
    async with closing_groups(store.get_many(requests, prototype=prototype)) as groups:
        for _ in range(4):
            group = await anext(groups, None)
            await _let_things_happen()
            yield
            del group


# overlay: after _slowly
def _override_get(store: Store, override: Callable[[Callable[..., Any]], Any]) -> None:
    """Make `store` an instance of a subclass of its class in which `get` alone is overridden."""
    cls = type(store)
    store.__class__ = type(f"{cls.__name__}WithGet", (cls,), {"get": override(cls.get)})


# overlay: after _override_get
class _WatchedBuffers:
    """Buffers that tell what a store has made: how many of them, and which are still held."""

    def __init__(self) -> None:
        self.made = 0
        self.alive: dict[int, tuple[int, int]] = {}
        prototype = default_buffer_prototype()
        watching = self

        class Watched(prototype.buffer):  # type: ignore[name-defined,misc]
            def __init__(self, array_like: ArrayLike) -> None:
                super().__init__(array_like)
                watching.made += 1
                watching.alive[id(self)] = _memory(array_like)

            def __del__(self) -> None:
                watching.alive.pop(id(self), None)

        self.prototype = prototype._replace(buffer=Watched)

    def nbytes(self) -> int:
        """Bytes of memory behind the buffers. Views of the same memory count once."""
        return sum(dict(list(self.alive.values())).values())


# overlay: after _WatchedBuffers
def _memory(array: Any) -> tuple[int, int]:
    """The address of an array in memory, on the host or on a device, and its size in bytes."""
    interface = getattr(array, "__array_interface__", None) or array.__cuda_array_interface__
    return interface["data"][0], array.nbytes


class LatencyStore:
    # overlay: after get_ranges
    async def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        *,
        prototype: BufferPrototype,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Reads built on `self.get`, so that each fetch pays latency.

        As many are in flight as a remote backend serves at once: a hundred, the size of
        aiohttp's connection pool, unless `async.concurrency` is set.
        """
        each = get_each(self.get, requests, prototype=prototype, backend_limit=100)
        async with aclosing(each) as groups:
            async for group in groups:
                yield group
