"""The catalogue of methods: where each acts, whether it merges, and what it costs in a given network."""

from __future__ import annotations

import copy
import csv
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from headwise.backbone import Backbone
from headwise.errors import ConfigError
from headwise.methods.base import Method

COLUMNS = ("method", "phase", "acts on", "merges", "backbone", "head", "stored bytes", "printed", "about")
PAPER_COLUMNS = ("paper", "row", "printed", "here", "parameters", "stored bytes", "setting", "why")
UNITS = {"M": ("num_tunable", 1e6), "MiB": ("stored_bytes", 2**20)}
"""What the papers print: parameters in millions, or stored bytes."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One size that a paper prints.

    Attributes:
        method: label of ours.
        paper, row: where it stands.
        printed: as printed.
        unit: of `UNITS`.
        setting: command-line choices that come nearest to it; empty where no single setting does (a mean over tasks).
        parameters: of the backbone at that setting on ViT-B/16, by arithmetic; None without a setting.
        why: agrees, or what makes the difference.
    """

    method: str
    paper: str
    row: str
    printed: str
    unit: str
    setting: tuple[str, ...]
    parameters: int | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One phase of a method in one network.

    Attributes:
        name: of the configuration.
        about: first sentence of its file: paper, what it does.
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
        return {**vars(self), "printed": [asdict(size) for size in printed_sizes() if size.method == self.phase]}


def printed_sizes() -> list[Printed]:
    """What the papers print, from ``paper/sizes.csv``."""
    file = importlib.resources.files("headwise") / "paper" / "sizes.csv"
    sizes = []
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        setting, parameters = tuple(row.pop("setting").split()), row.pop("parameters")
        sizes.append(Printed(**row, setting=setting, parameters=int(parameters) if parameters else None))
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
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    reasons = []
    for entry in entries:
        sizes = [size for size in printed_sizes() if size.method == entry.phase]
        printed = ", ".join(f"{size.printed} {size.unit}" for size in sizes)
        reasons += [f"- {s.method}: {s.paper} prints {s.printed} {s.unit} ({s.why})" for s in sizes]
        numbers = (entry.num_tunable, entry.num_head, entry.stored_bytes)
        cells = [
            entry.name,
            entry.phase,
            entry.acts_on or entry.note,
            "yes" if entry.merges else "no",
            *(_number(number) for number in numbers),
            printed,
            entry.about,
        ]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *dict.fromkeys(reasons)])


def papers(measured: Mapping[tuple[str, ...], Entry]) -> str:
    """The papers' size columns beside what is measured here, by setting, as a Markdown table."""
    lines = ["Sizes as printed, and at the setting that comes nearest; M is millions of parameters.", ""]
    lines += [_line(PAPER_COLUMNS), _line(["---"] * len(PAPER_COLUMNS))]
    for size in printed_sizes():
        entry = measured.get(size.setting)
        field, scale = UNITS[size.unit]
        here = None if entry is None else getattr(entry, field)
        numbers = (None, None) if entry is None else (entry.num_tunable, entry.stored_bytes)
        cells = [size.paper, size.row, f"{size.printed} {size.unit}", "" if here is None else f"{here / scale:.3f}"]
        lines.append(_line([*cells, *map(_number, numbers), " ".join(size.setting), size.why]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
