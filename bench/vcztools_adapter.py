"""vcztools 0.2.0 reading with a `BlockStream` in place of its own pool of threads."""

from __future__ import annotations

from functools import partial
from typing import Any

from vcztools import retrieval

from zarr.experimental.block_stream import BlockStream


class StreamReader:
    """The fields of a query in step: a block of each for every chunk of the plan."""

    last_chunk_read_seconds = last_chunk_bytes = None  # for a log
    max_in_flight = 0

    def __init__(
        self, root: Any, plan: Any, samples: Any, columns: Any, fields: Any, **options: Any
    ) -> None:
        self._plan, self._length = plan, options["stream_chunk_size"]
        self._readahead_bytes = max(1, options["readahead_bytes"])
        given = {"sample_chunk_plan": samples, "output_columns": columns}
        view = retrieval.CachedLogicalVariantsChunk
        self._view = partial(view, root, stream_chunk_size=self._length, **given)
        self._arrays: dict[Any, Any] = {}
        self._selection: dict[Any, Any] = {}
        for field in fields:
            array = root[field]
            if not field.startswith("call_"):
                self._arrays[(field,)] = array
                continue
            width = array.chunks[1]
            for chunk in samples.chunk_reads:
                self._arrays[field, chunk.index] = array
                self._selection[field, chunk.index] = slice(
                    chunk.index * width, min((chunk.index + 1) * width, array.shape[1])
                )

    def __iter__(self) -> Any:
        if not self._arrays:
            for chunk in self._plan:
                yield self._view(chunk, blocks={})
            return
        with BlockStream(
            self._arrays,
            block_length=self._length,
            blocks=[int(chunk.index) for chunk in self._plan],
            selection=self._selection,
            readahead_bytes=self._readahead_bytes,
        ) as stream:
            for chunk, block in zip(self._plan, stream, strict=True):
                yield self._view(chunk, blocks=block.arrays)


def install() -> None:
    """Replace the `StreamReader` of vcztools, and nothing else of it."""
    retrieval.StreamReader = StreamReader
