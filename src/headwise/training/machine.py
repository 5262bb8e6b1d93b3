"""Around Lightning's loops: what it leaves behind, and signals to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import lightning as L

from headwise.errors import Interrupted
from headwise.network.backbone import Backbone

STOPPED = "stopped by the user; what was saved stays: run the same command to resume"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Take a terminal that is closed (SIGHUP) for SIGTERM, unless nohup ignores it; give all handlers back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    if before[signal.SIGHUP] is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextlib.contextmanager
def attended(trainer: L.Trainer, net: Backbone, stopped: str = STOPPED) -> Iterator[None]:
    """Around a fit or a test of Lightning's, which leaves the network on the CPU and lets a late signal pass.

    Afterwards the network is on its device again. Interrupted, with the text `stopped`, where Ctrl-C, SIGTERM or SIGHUP
    came meanwhile.
    """
    device = next(net.parameters()).device
    try:
        with _signals():
            yield
    except SystemExit as stop:
        raise Interrupted(stopped) from stop
    # a signal after Lightning's last look at it raises nothing, it only sets this flag
    if trainer.received_sigterm:
        raise Interrupted(stopped)
    net.to(device)
