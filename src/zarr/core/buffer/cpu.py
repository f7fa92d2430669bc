"""An array without dimensions that is assigned to an element of an object array is taken for its value."""

from __future__ import annotations


class NDBuffer:
    def __setitem__(self, key: Any, value: Any) -> None:
        data = value._data if isinstance(value, NDBuffer) else value
        if self._data.dtype == object and getattr(data, "shape", None) == ():
            # NumPy would store the array itself, also where it belongs to one element only.
            data = data[()]
        self._data.__setitem__(key, data)
