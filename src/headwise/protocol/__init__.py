"""What makes a number: recipes, the plan of a run and its identity, searches, published settings."""

from __future__ import annotations

from headwise.moved import sought_in

__getattr__ = sought_in("headwise.protocol")  # until it was a room, it was a module
