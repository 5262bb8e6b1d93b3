"""Peak memory: it grows with what is held, and a new measurement forgets the old one."""

from __future__ import annotations

import sys

import pytest
import torch

from headwise.training.memory import forget_peak, peak_memory

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")


def test_the_peak_is_that_of_what_was_held_since() -> None:
    forget_peak(CPU)
    before = peak_memory(CPU)
    held = torch.ones(64, 2**20, dtype=torch.uint8)
    with_it = peak_memory(CPU)
    del held
    after = peak_memory(CPU)
    assert before is not None
    assert with_it is not None
    assert after is not None
    assert 0 <= after - with_it < 2**20  # to ask takes some pages itself
    assert 60 * 2**20 < with_it - before < 80 * 2**20
    forget_peak(CPU)
    assert (peak_memory(CPU) or 0) < with_it - 50 * 2**20


def test_an_unknown_device_has_no_peak() -> None:
    forget_peak(torch.device("meta"))
    assert peak_memory(torch.device("meta")) is None
