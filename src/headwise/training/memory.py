"""How much memory a process has held at most since it was last asked to forget."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_seen = [0]
"""Largest value read since the last `forget_peak`: the kernel's own is not exact to the page and may fall a little."""


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement; the peak is then what is held now. Only Linux can forget that of a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            # 5 resets the peak of the resident set alone (proc(5))
            (_PROCESS / "clear_refs").write_text("5")
            _seen[0] = 0


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held since `forget_peak`: by tensors on a GPU, by the whole process on a CPU; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError):
        peak = re.search(r"^VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
        if peak is not None:
            _seen[0] = max(_seen[0], int(peak[1]) * 1024)
            return _seen[0]
    return None
