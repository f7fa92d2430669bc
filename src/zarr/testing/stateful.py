"""A rule that reads several keys with `get_many` and compares them with the model."""

from collections.abc import Sequence
from typing import Any

from hypothesis import note
from hypothesis.stateful import rule
from hypothesis.strategies import DataObject

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.testing.strategies import key_ranges
from zarr.testing.strategies import keys as zarr_keys


class SyncStoreWrapper:
    # overlay: after get_partial_values
    def get_many(
        self,
        requests: Sequence[str | tuple[str, ByteRequest | None]],
        prototype: BufferPrototype,
    ) -> builtins.list[Sequence[tuple[int, Buffer | None]]]:
        return self._sync_iter(self.store.get_many(requests, prototype=prototype))


class ZarrStoreStateMachine:
    # overlay: after get_partial_values
    @rule(key=zarr_keys(), data=st.data())
    def get_many(self, key: str, data: DataObject) -> None:
        # One of the keys is any, so that it may well be absent; all of them are asked for twice.
        keys = st.sampled_from(sorted({key, *self.model}))
        pairs = data.draw(key_ranges(keys=keys, max_size=MAX_BINARY_SIZE))
        requests: builtins.list[Any] = [*pairs, *(drawn for drawn, _ in pairs)]
        note(f"(get_many) {requests=}")

        reported = [
            (index, None if value is None else value.to_bytes())
            for group in self.store.get_many(requests, self.prototype)
            for index, value in group
        ]

        expected = [
            self._model_value(drawn, byte_range)
            for drawn, byte_range in [*pairs, *((drawn, None) for drawn, _ in pairs)]
        ]
        assert sorted(reported, key=lambda report: report[0]) == [*enumerate(expected)], requests

    # overlay: after get_many
    def _model_value(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        """What the model holds for a request, counted out without any function of a store."""
        if key not in self.model:
            return None
        value = self.model[key].to_bytes()
        match byte_range:
            case None:
                return value
            case RangeByteRequest(start, end):
                return value[start:end]
            case OffsetByteRequest(offset):
                return value[offset:]
            case SuffixByteRequest(suffix):
                return value[max(0, len(value) - suffix) :]
        raise AssertionError(f"unexpected byte_range {byte_range!r}")
