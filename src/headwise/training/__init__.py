"""The loop over phases: train, score, mask, fit, test, store."""

from __future__ import annotations

from headwise.moved import sought_in

__getattr__ = sought_in("headwise.training")  # until it was a room, it was a module
