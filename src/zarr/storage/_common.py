"""A path that is one already is not taken apart again for each chunk key that is put behind it."""

from __future__ import annotations

import re

PLAIN_KEY = re.compile(r"[^/\\.][^/\\]*(?:/[^/\\.][^/\\]*)*")
"""Keys that `normalize_path` leaves as they are, those of chunks among them."""


class StorePath:
    def __truediv__(self, other: str) -> StorePath:
        """The path of a key below this path."""
        if type(self) is not StorePath or PLAIN_KEY.fullmatch(other) is None:
            return self.__class__(self.store, _join_paths([self.path, other]))
        below = StorePath.__new__(StorePath)
        below.store = self.store
        below.path = f"{self.path}/{other}" if self.path else other
        return below
