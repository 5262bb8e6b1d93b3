"""A second thread, for what one alone cannot do: claims do not nest within a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What a call gives, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
