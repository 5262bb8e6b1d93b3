"""Around Lightning's loops: what it leaves behind, and signals to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import lightning as L

from headwise.backbone import Backbone
from headwise.errors import Interrupted

STOPPED = "stopped by the user; every finished epoch is saved: run the same command to resume"


@contextlib.contextmanager
def attended(trainer: L.Trainer, net: Backbone, stopped: str = STOPPED) -> Iterator[None]:
    """Around a fit or a test of Lightning's, which leaves the network on the CPU and lets a late signal pass.

    Afterwards the network is on its device again.

    Args:
        trainer: that fits or tests.
        net: that it works on.
        stopped: what to say where it is stopped.

    Raises:
        Interrupted: where Ctrl-C or SIGTERM came meanwhile.
    """
    device, handler = next(net.parameters()).device, signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise Interrupted(stopped) from stop
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    if trainer.received_sigterm:
        raise Interrupted(stopped)
    net.to(device)
