"""Whole runs on the toy task, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwise.methods.base import Method
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult, PhaseStore
from headwise.training.loop import Machine, hush, run_phases
from made_networks import toy_data


def train(
    net: Backbone, methods: Sequence[Method], folder: Path, **protocol: Any
) -> tuple[list[PhaseResult], list[Path]]:
    """The records of the phases, and the files of their tensors."""
    hush()
    store = PhaseStore(folder)
    recipe = Protocol(**{"epochs": 1, "batch_size": 16, **protocol})
    machine = Machine(threads=1, progress=False)
    phases = run_phases(
        net, methods, toy_data(), recipe, store, {"toy": 1}, seed=0, machine=machine, say=lambda _: None
    )
    return phases, [store.path(phase.fingerprint) / "phase.safetensors" for phase in phases]
