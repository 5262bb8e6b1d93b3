"""The phases of a run: trained, tested once, stored, merged, one after the other.

`loop` joins them, `phase` takes one through its steps, `module` is one training step, `address` says what a phase is
called and where it is stored. What a step computes is in `headwise.updates`; so is the gate, which scores heads and
switches them off.
"""

from __future__ import annotations
