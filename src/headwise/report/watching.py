"""Doing something again while runs go on, whenever something has changed, until the user says stop. No torch."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType


def watch(renew: Callable[[], bool], state: Callable[[], object], seconds: int) -> None:
    """Renew at once, then look every few seconds whether the state has changed; ends with Ctrl-C or SIGTERM.

    Args:
        renew: makes it new; False if it is not ready yet and should be tried again, changed or not.
        state: what it is made from, cheap to ask for; it is asked for before `renew`, so that no change is lost.
        seconds: between looks.
    """
    before: object = None
    is_made = False
    with contextlib.suppress(KeyboardInterrupt), _ended_by_sigterm():
        while True:
            now = state()
            if not is_made or now != before:
                before, is_made = now, renew()
            time.sleep(seconds)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
