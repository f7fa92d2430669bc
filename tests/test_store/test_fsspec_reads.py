"""How the reads of `FsspecStore.get_many` are planned. Nothing here does any I/O."""

from __future__ import annotations

import base64
import inspect
import json
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage._fsspec_reads import (
    CUT,
    MAX_GAP,
    MAX_MERGED,
    MAX_WASTE,
    MIN_CUT,
    SMALL_GAP,
    MergeLimits,
    Span,
    as_slice,
    batch_size,
    cuts,
    is_reference,
    locator,
    merge,
    merge_limits,
)

pytest.importorskip("fsspec", minversion="2024.12.0")

from fsspec.asyn import AsyncFileSystem
from fsspec.config import conf as fsspec_config
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import LazyReferenceMapper, ReferenceFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest

KIB = 1 << 10

exhaustive = settings(max_examples=100)


class Sealed(AsyncFileSystem):  # type: ignore[misc]
    """A filesystem that must be planned with, and not read."""

    protocol = "sealed"
    cachable = False  # codespell:ignore cachable

    async def _cat_file(self, path: str, **kwargs: Any) -> bytes:
        raise AssertionError(f"{path} was read")

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        raise AssertionError(f"{path} was looked at")


class SealedToo(Sealed):
    protocol = "sealed2"


def sealed(**options: Any) -> Sealed:
    return Sealed(asynchronous=True, **options)


def references(
    refs: dict[str, Any], into: AsyncFileSystem | None = None, **options: Any
) -> ReferenceFileSystem:
    return ReferenceFileSystem(
        fo=refs, fs=sealed() if into is None else into, asynchronous=True, **options
    )


# Positions and lengths around every limit that the planner has: the same units in both, so that
# ranges touch, overlap, contain one another and coincide often.
_units = st.sampled_from(
    [1, 10, SMALL_GAP, SMALL_GAP + 1, MAX_GAP, MAX_GAP + 1, MIN_CUT, MAX_MERGED]
)
_positions = st.builds(lambda unit, count: unit * count, _units, st.integers(0, 6))
_objects = st.sampled_from(["a", "b", ("a", "b")])


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(_positions)
    return start, start + max(1, draw(_positions))


_open_ended = st.tuples(
    st.one_of(st.none(), st.integers(-20, 20)), st.one_of(st.none(), st.integers(-20, 20))
).filter(lambda item: item[0] is None or item[1] is None or not 0 <= item[0] < item[1])


def _numbered(items: Sequence[tuple[Any, tuple[int | None, int | None]]]) -> list[Span]:
    return [Span(index, obj, *where) for index, (obj, where) in enumerate(items)]


range_spans = st.lists(st.tuples(_objects, ranges()), max_size=24).map(_numbered)
any_spans = st.lists(st.tuples(_objects, st.one_of(ranges(), _open_ended)), max_size=24).map(
    _numbered
)
limits = st.builds(
    MergeLimits,
    max_gap=st.one_of(st.just(MAX_GAP), st.integers(-1, 2 * MAX_GAP)),
    max_merged=st.one_of(st.just(MAX_MERGED), st.integers(0, 2 * MAX_MERGED)),
    max_waste=st.one_of(st.none(), st.just(MAX_WASTE), st.floats(0, 2)),
)


def is_range(span: Span) -> bool:
    return span.start is not None and span.end is not None and 0 <= span.start < span.end


class Hull(NamedTuple):
    """What the read of a group covers, and how much of it nobody asked for."""

    start: int
    end: int
    gaps: list[int]

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def asked(self) -> int:
        return self.size - sum(self.gaps)


def hull(group: Iterable[Span]) -> Hull:
    pairs = sorted((span.start, span.end) for span in group)
    start, end = pairs[0]
    assert start is not None
    assert end is not None
    gaps: list[int] = []
    reach: int = end
    for first, last in pairs[1:]:
        assert first is not None
        assert last is not None
        if first > reach:
            gaps.append(first - reach)
        reach = max(reach, last)
    return Hull(start, reach, gaps)


def grouped(groups: list[list[Span]]) -> set[frozenset[int]]:
    return {frozenset(span.request for span in group) for group in groups}


def alone(spans: list[Span]) -> bool:
    """Whether one span of a group covers all of it."""
    covered = hull(spans)
    return any((span.start, span.end) == (covered.start, covered.end) for span in spans)


class TestMerge:
    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_every_span_is_in_one_group(self, spans: list[Span], limits: MergeLimits) -> None:
        groups = merge(spans, limits)
        assert all(groups)
        assert sorted(span.request for group in groups for span in group) == list(range(len(spans)))
        assert {span for group in groups for span in group} == set(spans)

    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_a_group_is_of_one_object(self, spans: list[Span], limits: MergeLimits) -> None:
        for group in merge(spans, limits):
            assert len({span.object for span in group}) == 1

    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_only_ranges_are_merged(self, spans: list[Span], limits: MergeLimits) -> None:
        for group in merge(spans, limits):
            if len({span[1:] for span in group}) > 1:
                assert all(is_range(span) for span in group)

    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_the_earliest_request_comes_first(self, spans: list[Span], limits: MergeLimits) -> None:
        earliest = [min(span.request for span in group) for group in merge(spans, limits)]
        assert earliest == sorted(earliest)

    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_a_group_is_sorted_by_start(self, spans: list[Span], limits: MergeLimits) -> None:
        for group in merge(spans, limits):
            starts = [span.start for span in group if span.start is not None]
            assert starts == sorted(starts)

    @exhaustive
    @given(spans=range_spans, limits=limits)
    @example(
        # The long range covers what lies between the last two, but is not read with them.
        spans=_numbered(
            [("a", (0, 4 * MIN_CUT)), ("a", (1, 2)), ("a", (2 * MAX_GAP, 2 * MAX_GAP + 1))]
        ),
        limits=MergeLimits(),
    )
    def test_no_gap_is_wider_than_allowed(self, spans: list[Span], limits: MergeLimits) -> None:
        for group in merge(spans, limits):
            assert max(hull(group).gaps, default=-1) <= limits.max_gap

    @exhaustive
    @given(spans=range_spans, limits=limits)
    def test_no_merged_read_is_larger_than_allowed(
        self, spans: list[Span], limits: MergeLimits
    ) -> None:
        for group in merge(spans, limits):
            assert hull(group).size <= limits.max_merged or alone(group)

    @exhaustive
    @given(spans=range_spans, limits=limits)
    @example(
        # A dense stretch, and after it single bytes as far apart as one read may span.
        spans=_numbered(
            [("a", (at * KIB, (at + 128) * KIB)) for at in range(0, 1024, 128)]
            + [("a", (at, at + 1)) for at in range(1024 * KIB, 1024 * KIB + 4 * MAX_GAP, MAX_GAP)]
        ),
        limits=MergeLimits(),
    )
    def test_no_read_is_mostly_gaps(self, spans: list[Span], limits: MergeLimits) -> None:
        """What a read takes along in gaps that are not small is a fraction of what was asked."""
        if limits.max_waste is None:
            return
        for group in merge(spans, limits):
            covered = hull(group)
            wasted = sum(gap for gap in covered.gaps if gap > SMALL_GAP)
            assert wasted <= limits.max_waste * covered.asked

    @exhaustive
    @given(spans=any_spans, limits=limits, data=st.data())
    def test_the_order_of_the_requests_does_not_matter(
        self, spans: list[Span], limits: MergeLimits, data: st.DataObject
    ) -> None:
        shuffled = data.draw(st.permutations(spans))
        assert merge(shuffled, limits) == merge(spans, limits) or grouped(
            merge(shuffled, limits)
        ) == grouped(merge(spans, limits))

    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_planning_twice_gives_the_same(self, spans: list[Span], limits: MergeLimits) -> None:
        assert merge(iter(spans), limits) == merge(spans, limits)

    @exhaustive
    @given(spans=any_spans, limits=limits, copies=st.integers(2, 3))
    @example(spans=_numbered([("a", (0, MIN_CUT + 1))]), limits=MergeLimits(), copies=2)
    @example(spans=_numbered([("a", (0, 10))]), limits=MergeLimits(max_gap=-1), copies=2)
    def test_identical_requests_share_a_read(
        self, spans: list[Span], limits: MergeLimits, copies: int
    ) -> None:
        repeated = [
            span._replace(request=span.request + copy * len(spans))
            for copy in range(copies)
            for span in spans
        ]
        of: dict[tuple[Any, ...], set[int]] = {}
        for number, group in enumerate(merge(repeated, limits)):
            for span in group:
                of.setdefault(span[1:], set()).add(number)
        assert all(len(numbers) == 1 for numbers in of.values())

    @exhaustive
    @given(spans=any_spans, gap=st.integers(-(1 << 20), -1))
    def test_a_negative_gap_merges_nothing(self, spans: list[Span], gap: int) -> None:
        for group in merge(spans, MergeLimits(max_gap=gap)):
            assert len({span[1:] for span in group}) == 1

    @exhaustive
    @given(spans=range_spans, limits=limits)
    def test_neighbours_are_parted_for_a_reason(
        self, spans: list[Span], limits: MergeLimits
    ) -> None:
        """Two reads are one unless the gap is too wide, or they would be too large together."""
        if limits.max_gap < 0:
            return
        groups = sorted(
            merge(spans, limits), key=lambda group: (str(group[0].object), group[0][2:])
        )
        for left, right in pairwise(groups):
            if left[0].object == right[0].object:
                before, after = hull(left), hull(right[:1])
                small = after.start - before.end <= min(SMALL_GAP, limits.max_gap)
                together = max(before.end, after.end) - before.start
                assert not small or together > min(MIN_CUT, limits.max_merged)

    @exhaustive
    @given(sizes=st.lists(st.integers(1, 9 * KIB), min_size=1, max_size=40), gap=st.integers(0, 2))
    def test_adjacent_ranges_are_one_read(self, sizes: list[int], gap: int) -> None:
        spans: list[Span] = []
        start = 0
        for index, size in enumerate(sizes):
            spans.append(Span(index, "a", start, start + size))
            start += size
        (group,) = merge(reversed(spans), MergeLimits(max_gap=gap))
        assert group == spans

    @pytest.mark.parametrize("gap", [0, 1, SMALL_GAP, MAX_GAP])
    def test_the_limit_of_a_gap_is_inclusive(self, gap: int) -> None:
        limits = MergeLimits(max_gap=gap, max_waste=None)
        near = [Span(0, "a", 0, 10), Span(1, "a", 10 + gap, 20 + gap)]
        far = [Span(0, "a", 0, 10), Span(1, "a", 11 + gap, 21 + gap)]
        assert grouped(merge(near, limits)) == {frozenset({0, 1})}
        assert grouped(merge(far, limits)) == {frozenset({0}), frozenset({1})}

    @pytest.mark.parametrize("max_merged", [0, 1, 19, 20])
    def test_the_limit_of_a_size_is_inclusive(self, max_merged: int) -> None:
        spans = [Span(0, "a", 0, 10), Span(1, "a", 10, 20)]
        expected = 1 if max_merged >= 20 else 2
        assert len(merge(spans, MergeLimits(max_merged=max_merged))) == expected

    def test_a_wide_gap_is_read_along_where_it_is_little_beside_the_rest(self) -> None:
        gap = 4 * SMALL_GAP
        for asked, expected in ((4 * gap, 1), (4 * gap - 1, 2)):
            spans = [Span(0, "a", 0, asked // 2), Span(1, "a", asked // 2 + gap, asked + gap)]
            assert len(merge(spans, MergeLimits(max_waste=0.25))) == expected

    def test_small_gaps_need_no_justification(self) -> None:
        spans = [Span(i, "a", i * SMALL_GAP, i * SMALL_GAP + 1) for i in range(50)]
        assert len(merge(spans, MergeLimits())) == 1

    def test_a_contained_range_adds_nothing(self) -> None:
        spans = [Span(0, "a", 0, 1000), Span(1, "a", 10, 20), Span(2, "a", 500, 1000)]
        (group,) = merge(spans, MergeLimits(max_gap=0))
        assert hull(group)[:2] == (0, 1000)

    def test_the_end_of_a_run_is_that_of_its_longest_range(self) -> None:
        """A short range inside a long one does not make the long one's end forgotten."""
        spans = [Span(0, "a", 0, 1000), Span(1, "a", 10, 20), Span(2, "a", 1000, 1010)]
        (group,) = merge(spans, MergeLimits(max_gap=0))
        assert hull(group)[:2] == (0, 1010)

    @pytest.mark.parametrize("count", [8, 64, 512, 4096])
    def test_a_long_run_is_cut_to_travel_side_by_side(self, count: int) -> None:
        size = 16 * KIB
        spans = [Span(i, "a", i * size, (i + 1) * size) for i in range(count)]
        sizes = [hull(group).size for group in merge(spans, MergeLimits())]
        assert sum(sizes) == count * size
        assert max(sizes) <= min(MAX_MERGED, max(MIN_CUT, 2 * sum(sizes) // (CUT + 1)))
        assert len(sizes) <= max(sum(sizes) / MAX_MERGED + 2, CUT) + 1
        assert sizes[:-1] == sorted(sizes[:-1])  # the first is there soon, to be decoded

    def test_a_single_range_is_never_cut(self) -> None:
        span = Span(0, "a", 0, 10 * MAX_MERGED)
        assert merge([span], MergeLimits(max_merged=1)) == [[span]]

    @pytest.mark.parametrize(
        "where",
        [(None, None), (3, None), (-3, None), (None, 5), (5, 5), (9, 3), (-5, -1), (0, -1), (0, 0)],
    )
    def test_what_is_no_plain_range_is_shared_and_not_merged(
        self, where: tuple[int | None, int | None]
    ) -> None:
        spans = [Span(0, "a", *where), Span(1, "a", 0, 10), Span(2, "a", *where)]
        groups = merge(spans, MergeLimits())
        assert grouped(groups) == {frozenset({0, 2}), frozenset({1})}

    def test_nothing_to_merge(self) -> None:
        assert merge([], MergeLimits()) == []


class TestCuts:
    @exhaustive
    @given(spans=any_spans, limits=limits)
    def test_a_read_is_cut_where_the_spans_are(
        self, spans: list[Span], limits: MergeLimits
    ) -> None:
        """What is read reaches from the first byte that was asked for to the last, no further."""
        for group in merge(spans, limits):
            cut = cuts(group)
            if cut is None:
                assert len({span[1:] for span in group}) == 1
                continue
            start, end, parts = cut
            assert (start, end) == hull(group)[:2]
            assert [part[0] for part in parts] == [span.request for span in group]
            for (_, first, last), span in zip(parts, group, strict=True):
                assert (start + first, start + last) == (span.start, span.end)

    @pytest.mark.parametrize("where", [(None, None), (3, None), (-3, None), (5, 5), (9, 3), (5, 9)])
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_identical_requests_need_no_cutting(
        self, where: tuple[int | None, int | None], count: int
    ) -> None:
        assert cuts([Span(index, "a", *where) for index in range(count)]) is None


class TestAsSlice:
    @pytest.mark.parametrize(
        ("byte_range", "expected"),
        [
            (None, (None, None)),
            (RangeByteRequest(2, 5), (2, 5)),
            (RangeByteRequest(5, 5), (5, 5)),
            (OffsetByteRequest(0), (0, None)),
            (OffsetByteRequest(7), (7, None)),
            (SuffixByteRequest(7), (-7, None)),
        ],
    )
    def test_byte_ranges(
        self, byte_range: ByteRequest | None, expected: tuple[int | None, int | None]
    ) -> None:
        assert as_slice(byte_range) == expected

    @exhaustive
    @given(data=st.binary(max_size=30), first=st.integers(0, 40), second=st.integers(1, 40))
    def test_they_are_slices(self, data: bytes, first: int, second: int) -> None:
        start, end = as_slice(RangeByteRequest(first, first + second))
        assert data[start:end] == data[first : first + second]
        start, end = as_slice(OffsetByteRequest(first))
        assert data[start:end] == data[first:]
        start, end = as_slice(SuffixByteRequest(second))
        assert data[start:end] == data[max(0, len(data) - second) :]

    @pytest.mark.parametrize("wrong", [(0, 5), 5, "0-5", slice(0, 5), RangeByteRequest])
    def test_anything_else_is_an_error(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match="Unexpected byte_range"):
            as_slice(wrong)


SLICES = st.tuples(
    st.one_of(st.none(), st.integers(-30, 30)), st.one_of(st.none(), st.integers(-30, 30))
)


class TestLocate:
    def test_a_plain_filesystem_is_taken_as_it_is(self) -> None:
        fs = sealed()
        found = locator(fs)("some/key", 3, None)
        assert found == (fs, "some/key", 3, None, None, None)

    @exhaustive
    @given(offset=st.integers(0, 20), size=st.integers(0, 20), where=SLICES)
    def test_a_reference_is_a_slice_of_its_target(
        self, offset: int, size: int, where: tuple[int | None, int | None]
    ) -> None:
        target = bytes(range(60))
        fs = references({"key": ["sealed://file", offset, size]})
        found = locator(fs)("key", *where)
        assert found.value is None
        assert found.path == "sealed://file"
        assert found.via == "key"
        assert found.fs is fs.fss["sealed"]
        assert found.start is not None
        assert found.end is not None
        assert offset <= found.start <= offset + size
        assert offset <= found.end <= offset + size
        part = target[offset : offset + size]
        assert target[found.start : found.end] == part[slice(*where)]

    @exhaustive
    @given(where=SLICES)
    def test_a_reference_to_a_whole_file(self, where: tuple[int | None, int | None]) -> None:
        found = locator(references({"key": ["sealed://file"]}))("key", *where)
        assert (found.path, found.start, found.end) == ("sealed://file", *where)
        assert found.via == "key"

    @pytest.mark.parametrize(
        ("inline", "value"),
        [
            ("text", b"text"),
            ("", b""),
            (b"bytes", b"bytes"),
            ("base64:" + base64.b64encode(b"\0\xff binary").decode(), b"\0\xff binary"),
            (b"base64:" + base64.b64encode(b"\0\xff binary"), b"\0\xff binary"),
        ],
        ids=["text", "empty", "bytes", "base64", "base64 as bytes"],
    )
    @exhaustive
    @given(where=SLICES)
    def test_a_value_in_the_table(
        self, inline: str | bytes, value: bytes, where: tuple[int | None, int | None]
    ) -> None:
        for refs in ({"key": inline}, {"version": 1, "refs": {"key": inline}}):
            found = locator(references(refs))("key", *where)
            assert found.value == value[slice(*where)]

    def test_an_object_in_the_table_is_its_json(self) -> None:
        for refs in ({"key": {"a": 1}}, {"version": 1, "refs": {"key": {"a": 1}}}):
            found = locator(references(refs))("key", None, None)
            assert found.value is not None
            assert json.loads(found.value) == {"a": 1}

    def test_something_that_becomes_bytes(self) -> None:
        class Value:
            def to_bytes(self) -> bytes:
                return b"value"

        assert locator(references({"key": Value()}))("key", 1, None).value == b"value"[1:]

    def test_an_unknown_key(self) -> None:
        with pytest.raises(FileNotFoundError):
            locator(references({"key": b""}))("another", None, None)

    @pytest.mark.parametrize("path", ["key", "key/", "reference://key"])
    def test_a_path_is_normalized_as_the_filesystem_does(self, path: str) -> None:
        found = locator(references({"key": ["sealed://file", 5, 10]}))(path, None, None)
        assert (found.path, found.start, found.end) == ("sealed://file", 5, 15)

    def test_a_reference_without_a_file_is_of_the_default_target(self) -> None:
        fs = references({"key": [None, 5, 10]}, target="sealed://default")
        assert locator(fs)("key", None, None)[1:4] == ("sealed://default", 5, 15)

    def test_targets_of_several_protocols(self) -> None:
        one, two, plain = sealed(), SealedToo(asynchronous=True), sealed()
        fs = ReferenceFileSystem(
            fo={"a": ["sealed://f", 0, 1], "b": ["sealed2://f", 0, 1], "c": ["f", 0, 1]},
            fs={"sealed": one, "sealed2": two, None: plain},
            asynchronous=True,
        )
        assert locator(fs)("a", None, None).fs is one
        assert locator(fs)("b", None, None).fs is two
        assert locator(fs)("c", None, None).fs is plain

    @pytest.mark.parametrize("url", ["elsewhere://file", None])
    def test_a_reference_that_leads_nowhere_is_left_to_its_filesystem(
        self, url: str | None
    ) -> None:
        fs = references({"key": [url, 0, 10]})
        assert locator(fs)("key", 2, 4) == (fs, "key", 2, 4, None, None)

    def test_templates(self) -> None:
        fs = references(
            {
                "version": 1,
                "templates": {"u": "sealed://server/path"},
                "refs": {"a": ["{{u}}/file", 1, 2], "b": ["{{u}}"]},
            }
        )
        assert locator(fs)("a", None, None)[1:4] == ("sealed://server/path/file", 1, 3)
        assert locator(fs)("b", None, None)[1:4] == ("sealed://server/path", None, None)

    def test_generated_references(self) -> None:
        pytest.importorskip("jinja2")
        fs = references(
            {
                "version": 1,
                "templates": {"u": "sealed://file"},
                "gen": [
                    {
                        "key": "c/{{i}}",
                        "url": "{{u}}",
                        "offset": "{{i * 10}}",
                        "length": "10",
                        "dimensions": {"i": {"stop": 3}},
                    },
                    {"key": "w/{{i}}", "url": "{{u}}{{i}}", "dimensions": {"i": [7, 8]}},
                ],
                "refs": {},
            },
            simple_templates=False,
        )
        found = [locator(fs)(f"c/{i}", None, None)[1:4] for i in range(3)]
        assert found == [("sealed://file", 10 * i, 10 * i + 10) for i in range(3)]
        assert locator(fs)("w/8", 5, None)[1:4] == ("sealed://file8", 5, None)

    def test_references_in_parquet_before_they_are_written(self, tmp_path: Path) -> None:
        table = _lazy_table(tmp_path)
        fs = references(table)
        assert locator(fs)("v/2", None, None)[1:4] == ("sealed://file", 20, 30)
        assert locator(fs)("v/2", 3, -3)[1:4] == ("sealed://file", 23, 27)
        assert locator(fs)("v/.zarray", None, None).value is not None
        for absent in ("v/99", "nothing"):
            with pytest.raises(FileNotFoundError):
                locator(fs)(absent, None, None)

    @pytest.mark.filterwarnings("ignore:The 'fastparquet' engine is deprecated")
    def test_references_in_parquet(self, tmp_path: Path) -> None:
        """What Parquet calls an integer is one: such ranges merge as any others."""
        pytest.importorskip("pandas")
        pytest.importorskip("fastparquet")
        _lazy_table(tmp_path).flush()
        fs = ReferenceFileSystem(
            fo=f"{tmp_path / 'refs'}/", fs=sealed(), remote_protocol="sealed", asynchronous=True
        )
        found = [locator(fs)(f"v/{i}", None, None) for i in range(5)]
        assert [at[1:4] for at in found] == [
            ("sealed://file", 10 * i, 10 * i + 10) for i in range(5)
        ]
        spans = [Span(index, at.path, at.start, at.end) for index, at in enumerate(found)]
        assert grouped(merge(spans, MergeLimits())) == {frozenset(range(5))}
        assert locator(fs)("v/5", None, None)[1:4] == ("sealed://whole", None, None)
        assert locator(fs)("v/6", None, None).value == b"inline"
        with pytest.raises(FileNotFoundError):
            locator(fs)("v/7", None, None)

    def test_integers_of_numpy_are_integers(self) -> None:
        """References that a program made may well hold them."""
        np = pytest.importorskip("numpy")
        fs = references({f"{i}": ["sealed://f", np.int64(i * 10), np.int64(10)] for i in range(3)})
        found = [locator(fs)(f"{i}", None, None) for i in range(3)]
        spans = [Span(index, at.path, at.start, at.end) for index, at in enumerate(found)]
        assert len(merge(spans, MergeLimits())) == 1

    def test_through_directories(self) -> None:
        fs = sealed()
        inner = DirFileSystem(path="root", fs=fs, asynchronous=True)
        outer = DirFileSystem(path="sub", fs=inner, asynchronous=True)
        assert locator(outer)("key", 1, 2) == (fs, "root/sub/key", 1, 2, None, None)

    def test_through_a_directory_to_references(self) -> None:
        fs = references({"root/key": ["sealed://file", 5, 10], "root/inline": b"0123"})
        directory = DirFileSystem(path="root", fs=fs, asynchronous=True)
        found = locator(directory)("key", None, 3)
        assert found == (fs.fss["sealed"], "sealed://file", 5, 8, None, "root/key")
        assert locator(directory)("inline", 1, None).value == b"123"
        with pytest.raises(FileNotFoundError):
            locator(directory)("absent", None, None)

    def test_references_into_a_directory(self) -> None:
        directory = DirFileSystem(path="root", fs=sealed(), asynchronous=True)
        fs = references({"key": ["file", 5, 10]}, directory)
        assert locator(fs)("key", None, None) == (directory, "file", 5, 15, None, "key")

    @pytest.mark.parametrize("method", ["_cat_file", "_cat_common"])
    def test_a_filesystem_that_resolves_otherwise_is_left_alone(self, method: str) -> None:
        changed = type("Changed", (ReferenceFileSystem,), {method: lambda *args, **kwargs: None})
        fs = changed(fo={"key": ["sealed://file", 5, 10]}, fs=sealed(), asynchronous=True)
        assert not is_reference(fs)
        assert locator(fs)("key", 1, 2) == (fs, "key", 1, 2, None, None)

    @pytest.mark.parametrize("method", ["_cat_file", "_join"])
    def test_a_directory_that_reads_otherwise_is_left_alone(self, method: str) -> None:
        changed = type("Changed", (DirFileSystem,), {method: lambda *args, **kwargs: None})
        fs = changed(path="root", fs=sealed(), asynchronous=True)
        assert locator(fs)("key", 1, 2) == (fs, "key", 1, 2, None, None)

    def test_an_instance_that_reads_otherwise_is_left_alone(self) -> None:
        async def cat_file(path: str, **kwargs: Any) -> bytes:
            raise AssertionError(path)

        directory = DirFileSystem(path="root", fs=sealed(), asynchronous=True)
        for fs in (references({"key": ["sealed://file", 5, 10]}), directory):
            fs._cat_file = cat_file
            assert locator(fs)("key", 1, 2) == (fs, "key", 1, 2, None, None)

    @pytest.mark.parametrize(
        ("where", "expected"),
        [((2, 9), 7), ((4, 4), 0), ((0, None), None), ((None, None), None)]
        + [((-4, None), 4), ((-4, -2), None), ((0, -2), None), ((9, 2), None)],
    )
    def test_how_many_bytes_there_are_at_most(
        self, where: tuple[int | None, int | None], expected: int | None
    ) -> None:
        assert locator(sealed())("key", *where).nbytes == expected
        assert locator(references({"key": ["sealed://file"]}))("key", *where).nbytes == expected

    def test_how_many_bytes_a_reference_has(self) -> None:
        fs = references({"key": ["sealed://file", 50, 10]})
        assert locator(fs)("key", None, None).nbytes == 10
        assert locator(fs)("key", 3, 99).nbytes == 7
        assert locator(fs)("key", -4, None).nbytes == 4

    def test_a_subclass_that_changes_neither_is_followed(self) -> None:
        class Named(ReferenceFileSystem):  # type: ignore[misc]
            protocol = "named"

        fs = Named(fo={"key": ["sealed://file", 5, 10]}, fs=sealed(), asynchronous=True)
        assert is_reference(fs)
        assert locator(fs)("key", None, None).start == 5


def _lazy_table(tmp_path: Path) -> LazyReferenceMapper:
    import fsspec

    root = f"{tmp_path / 'refs'}"
    table = LazyReferenceMapper.create(root, fs=fsspec.filesystem("file"), record_size=100)
    table[".zgroup"] = b'{"zarr_format": 2}'
    table["v/.zarray"] = json.dumps({"shape": [8], "chunks": [1], "zarr_format": 2}).encode()
    for i in range(5):
        table[f"v/{i}"] = ["sealed://file", 10 * i, 10]
    table["v/5"] = ["sealed://whole"]
    table["v/6"] = b"inline"
    return table


class TestMergeLimits:
    def test_the_widest_gap_is_that_of_fsspec(self) -> None:
        parameters = inspect.signature(ReferenceFileSystem.__init__).parameters
        assert parameters["max_gap"].default == MAX_GAP
        assert MergeLimits() == MergeLimits(max_gap=MAX_GAP, max_merged=MAX_MERGED)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_defaults(self, wrapped: bool) -> None:
        for fs in (sealed(), references({})):
            if wrapped:
                fs = DirFileSystem(path="root", fs=fs, asynchronous=True)
            assert merge_limits(fs) == MergeLimits()

    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("max_gap", [-1, 0, 1, 1_000_000])
    def test_a_gap_that_was_chosen_is_taken_at_its_word(self, max_gap: int, wrapped: bool) -> None:
        fs = references({}, max_gap=max_gap)
        if wrapped:
            fs = DirFileSystem(path="root", fs=fs, asynchronous=True)
        assert merge_limits(fs) == MergeLimits(max_gap=max_gap, max_waste=None)

    @pytest.mark.parametrize("max_block", [0, 1000, MAX_MERGED])
    def test_a_chosen_block_is_the_largest_read(self, max_block: int) -> None:
        assert merge_limits(references({}, max_block=max_block)).max_merged == max_block

    def test_fsspecs_large_default_block_is_no_reason_to_wait_for_one_large_read(self) -> None:
        assert merge_limits(references({})).max_merged == MAX_MERGED


class TestBatchSize:
    def test_fsspecs_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.asyn import _get_batch_size

        assert batch_size(sealed()) == _get_batch_size(nofiles=True)
        monkeypatch.setitem(fsspec_config, "nofiles_gather_batch_size", 17)
        assert batch_size(sealed()) == 17

    @pytest.mark.parametrize(("given", "expected"), [(5, 5), (10**6, 10**6), (-1, sys.maxsize)])
    def test_what_the_filesystem_was_given(self, given: int, expected: int) -> None:
        assert batch_size(sealed(batch_size=given)) == expected

    def test_without_a_limit_in_the_configuration(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(fsspec_config, "nofiles_gather_batch_size", -1)
        assert batch_size(sealed()) == sys.maxsize

    def test_the_smallest_of_what_the_filesystems_below_were_given(self) -> None:
        target = sealed(batch_size=7)
        assert batch_size(references({}, target)) == 7
        assert batch_size(references({}, target, batch_size=3)) == 3
        assert batch_size(references({}, target, batch_size=9)) == 7
        directory = DirFileSystem(path="root", fs=target, asynchronous=True)
        assert batch_size(directory) == 7
        assert batch_size(references({}, directory)) == 7
        outer = DirFileSystem(path="sub", fs=references({}, directory), asynchronous=True)
        assert batch_size(outer) == 7
