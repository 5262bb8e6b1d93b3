"""What a user is told once, however many runs of a sweep find it. Standard library only."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
_said: set[str] = set()


def say_once(text: str) -> None:
    """Tell something, as a warning, once in this process."""
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)
