"""Workers end with the sweep that started them, however it ends. Standard library only.

A sweep leaves its process id in the environment, which its workers inherit. A worker of the same machine looks every
half second whether that process still lives, and ends at once if not. What it was computing is lost back to its last
saved epoch, exactly as if it had been killed itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator

from headwise.storage import claims

VARIABLE = "HEADWISE_SWEEP"
PERIOD = 0.5
"""Seconds between looks."""
STATUS = 70
"""Exit status of a worker whose sweep is gone."""

_holding = threading.Lock()


@contextlib.contextmanager
def thrown() -> Iterator[None]:
    """Tie every process that is started inside to this one."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps(claims.myself())
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def hold() -> bool:
    """End this process when the sweep it belongs to is gone; once a process. Returns whether it belongs to one here."""
    try:
        sweep = json.loads(os.environ.get(VARIABLE, ""))
        pid, started = int(sweep["pid"]), sweep["started"]
        here = claims.myself()
        if any(sweep[key] != here[key] for key in ("host", "space")) or pid == here["pid"]:
            return False
    except (ValueError, KeyError, TypeError):
        return False
    if _holding.acquire(blocking=False):
        threading.Thread(target=_watch, args=(pid, started), name="lifeline", daemon=True).start()
    return True


def _watch(pid: int, started: str | None) -> None:
    while claims.alive(pid, started):
        time.sleep(PERIOD)
    # an exception would end this thread only, and training would go on
    os._exit(STATUS)
