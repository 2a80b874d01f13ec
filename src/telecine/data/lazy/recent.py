"""The values that were used last, in memory."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps the values that were used last. Several threads may share it; a copy in another process is empty.

    Args:
        max_values: The largest number of values.
    """

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._values: dict[K, V] = {}  # in the order of their last use
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[int], "Recent[K, V]"], tuple[int]]:
        return Recent, (self._max_values,)

    def get(self, key: K) -> V | None:
        """Return the value of a key; None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            value = self._values.pop(key)
            self._values[key] = value
            return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, in place of the one whose last use was the earliest if there are many."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > self._max_values:
                del self._values[next(iter(self._values))]
