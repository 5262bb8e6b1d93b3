"""The catalogue of methods: where each acts, whether it merges, and what it costs in a given network."""

from __future__ import annotations

import copy
import csv
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headwise.backbone import Backbone
from headwise.errors import ConfigError
from headwise.methods.base import Method

COLUMNS = ("method", "phase", "acts on", "merges", "backbone", "head", "stored bytes", "printed", "about")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One phase of a method in one network.

    Attributes:
        name: of the configuration.
        about: first line of its file: paper, what it does.
        phase: label of the phase.
        acts_on: kinds of places, such as ``q, v`` or ``adapter_mlp``.
        merges: whether it folds into the weights without a trace.
        num_tunable: trained parameters of the backbone, without the head.
        num_head: of the classifier.
        stored_bytes: payload of the stored phase without the classifier.
        note: why nothing could be measured, or empty.
    """

    name: str
    about: str
    phase: str
    acts_on: str = ""
    merges: bool = False
    num_tunable: int | None = None
    num_head: int | None = None
    stored_bytes: int | None = None
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold, with what the papers print for it."""
        return {**vars(self), "printed": printed_sizes().get(self.phase, [])}


def printed_sizes() -> dict[str, list[dict[str, str]]]:
    """What the papers print, by label: paper, row, printed, unit (M parameters or MiB), why it differs."""
    file = importlib.resources.files("headwise") / "paper" / "sizes.csv"
    sizes: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        sizes.setdefault(row.pop("method"), []).append(row)
    return sizes


def measure(name: str, about: str, phases: Sequence[Method], net: Backbone) -> list[Entry]:
    """Install every phase in a copy of `net` and count.

    A method that looks at training images first (SPT-LoRA) is shown noise: its size is right, its choice is not.
    """
    net = copy.deepcopy(net)
    entries = []
    for index, method in enumerate(phases, start=1):
        try:
            plan = method.prepare(net, lambda: _noise(net), 100)
            installed = method.install(net, plan)
        except ConfigError as error:
            entries.append(Entry(name=name, about=about, phase=method.label, merges=method.merges, note=str(error)))
            break
        places = [owner.split(".", 2)[-1] if owner.startswith("s") else owner for owner in installed.owners]
        if not any(owner.startswith("s0.") for owner in installed.owners):
            places = list(method.targets) or [name.rpartition(".")[2] for name in installed.adapter()]
        entries.append(
            Entry(
                name=name,
                about=about,
                phase=method.label,
                acts_on=", ".join(dict.fromkeys(places)) or "head",
                merges=method.merges,
                num_tunable=sum(tensor.numel() for tensor in installed.adapter().values()),
                num_head=sum(tensor.numel() for tensor in installed.head().values()),
                stored_bytes=installed.stored_bytes(),
            )
        )
        if index < len(phases):
            installed.merge()
    return entries


def _noise(net: Backbone) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, net.img_size, net.img_size, generator=generator)
    return [(images, torch.arange(2) % net.head.out_features)]


def markdown(entries: Sequence[Entry], backbone: str) -> str:
    """The catalogue as a Markdown table, and below it why printed sizes differ."""
    lines = [f"Methods on {backbone}; parameters without and of the head.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "|".join(" --- " for _ in COLUMNS) + "|"]
    reasons = []
    for entry in entries:
        rows = printed_sizes().get(entry.phase, [])
        printed = ", ".join(f"{row['printed']} {row['unit']}" for row in rows)
        reasons += [
            f"- {entry.phase}: {row['paper']} prints {row['printed']} {row['unit']} ({row['why']})" for row in rows
        ]
        numbers = (entry.num_tunable, entry.num_head, entry.stored_bytes)
        cells = [
            entry.name,
            entry.phase,
            entry.acts_on or entry.note,
            "yes" if entry.merges else "no",
            *("" if number is None else f"{number:,}" for number in numbers),
            printed,
            entry.about,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join([*lines, "", *dict.fromkeys(reasons)])
