"""Whole runs on the toy task, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.data.vtab import VTABDataModule
from headwise.methods.base import Method
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult, PhaseStore
from headwise.training.loop import Machine, hush, run_phases
from made_networks import toy_data

TOY = {"toy": 1}


def trained(
    net: Backbone,
    methods: Sequence[Method],
    folder: Path,
    protocol: Protocol,
    *,
    data: VTABDataModule | None = None,
    ground: Mapping[str, Any] = TOY,
    seed: int = 0,
    parts: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> list[PhaseResult]:
    """The records of phases that are trained on one thread, or taken from the store in `folder`."""
    hush()
    return run_phases(
        net,
        methods,
        toy_data() if data is None else data,
        protocol,
        PhaseStore(folder),
        ground,
        seed=seed,
        machine=Machine(threads=1, progress=False, parts=parts),
        say=say,
    )


def train(
    net: Backbone, methods: Sequence[Method], folder: Path, **protocol: Any
) -> tuple[list[PhaseResult], list[Path]]:
    """The records of the phases, and the files of their tensors."""
    phases = trained(net, methods, folder, Protocol(**{"epochs": 1, "batch_size": 16, **protocol}))
    return phases, [PhaseStore(folder).path(phase.fingerprint) / "phase.safetensors" for phase in phases]
