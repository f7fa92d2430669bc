"""The loops of bench/training.py see the same rows, and blocks are fetched and decoded once."""

from bench.training import BATCH, CHUNK, measure


def test_each_chunk_is_fetched_and_decoded_once_by_blocks() -> None:
    by_rows, by_blocks = measure(2 * CHUNK)
    assert by_blocks["fetched"] == by_blocks["decoded"] == 2
    assert by_rows["batches"] == by_blocks["batches"] == 2 * CHUNK // BATCH
    assert by_rows["fetched"] == by_rows["decoded"] > 8
