"""Assigning a zero-dimensional object array to an element assigns its value."""

from __future__ import annotations


class NDBuffer:
    def __setitem__(self, key: Any, value: Any) -> None:
        data = value._data if isinstance(value, NDBuffer) else value
        if isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 0:
            element = data.item()  # NumPy would store the array itself as an element.
            data = element if isinstance(element, bytes | str) else data
        self._data.__setitem__(key, data)
