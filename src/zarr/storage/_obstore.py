"""All `ObjectStore`s over one obstore store share an adaptive limit."""

from __future__ import annotations


class ObjectStore:
    # overlay: after get
    def _read_backend(self) -> object:
        return self.store
