"""Basic indexing takes the projections of a chunk apart in one go, not attribute by attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class BasicIndexer:
    def __iter__(self) -> Iterator[ChunkProjection]:
        if not self.dim_indexers:
            yield ChunkProjection((), (), (), True)
            return
        all_kept = len(self.shape) == len(self.dim_indexers)
        for dims in itertools.product(*self.dim_indexers):
            coords, chunk_selection, out, complete = zip(*dims, strict=True)
            if not all_kept:
                out = tuple(selector for selector in out if selector is not None)
            yield ChunkProjection(coords, chunk_selection, out, all(complete))
