"""More shards are read at once than `async.concurrency` if that helps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("aiohttp")
from tests.range_server import RangeServer
from tests.test_store.test_adaptive_limit import (
    EDGE,
    KINDS,
    chunk_requests,
    closed_sessions,  # noqa: F401 -- a fixture
    objects,
    open_array,
    read_from_server_that_refuses,
)


def test_scattered_shards_are_read_together() -> None:
    files, values = objects((128, 128), shards=(16, 16))
    with RangeServer(files, latency=0.05) as server:
        array = open_array(server.url)
        assert np.array_equal(array.oindex[::16, ::16], values[::16, ::16])
        assert server.max_in_flight > 10
        assert len(chunk_requests(server)) == 128
        assert {request.in_flight for request in chunk_requests(server)} <= set(range(129))


def test_extra_shards_share_the_requests_of_the_first_ones() -> None:
    """Each shard has eight inner chunks to read. Ten shards at a time may make ten requests each."""
    shards = {"shards": (EDGE, 16 * EDGE), "config": {"sharding_coalesce_max_gap_bytes": 0}}
    files, values = objects((64 * EDGE, 16 * EDGE), **shards)
    with RangeServer(files, latency=0.05) as server:
        array = open_array(server.url, "obstore").with_config(shards["config"])
        for _ in range(3):
            assert np.array_equal(array[:, :: 2 * EDGE], values[:, :: 2 * EDGE])
        assert server.max_in_flight <= 128


@pytest.mark.parametrize("kind", KINDS)
def test_server_that_refuses_beyond_sixteen_requests(kind: str) -> None:
    read_from_server_that_refuses(kind, 503, shards=(16, 16))
