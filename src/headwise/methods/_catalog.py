"""The catalogue of methods: where each acts, whether it merges, and what it costs in a given network."""

from __future__ import annotations

import copy
import csv
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from headwise.errors import ConfigError
from headwise.methods._fitting import fitted, fitting
from headwise.methods.base import Installed, Method
from headwise.network.backbone import Backbone

COLUMNS = ("method", "phase", "paper", "acts on", "merges", "backbone", "head", "stored bytes", "printed", "starts")
PAPER_COLUMNS = ("paper", "row", "printed", "here", "parameters", "stored bytes", "setting", "why")
NUMBERS = ("backbone", "head", "stored bytes", "here", "parameters")
UNITS = {"M": ("num_tunable", 1e6), "MiB": ("stored_bytes", 2**20)}
"""What the papers print: parameters in millions, or stored bytes."""
DISGUISE = "as many parameters as the weights that it adapts have, full tuning in disguise"


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
class CatalogRow:
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
        starts_off: whether training starts off the pretrained network.
        in_disguise: whether it trains as much as the weights that it adapts hold, see `is_disguised`.
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
    starts_off: bool = False
    in_disguise: bool = False
    note: str = ""

    @property
    def paper(self) -> str:
        """What its file cites, such as ``Hu et al., arXiv:2106.09685``; empty for baselines and controls."""
        cited = re.search(r"\(([^()]*(?:arXiv:|et al\.|HS-LoRA sec\.)[^()]*)\)", self.about)
        return cited[1] if cited else ""

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold, with what the papers print for it."""
        printed = [asdict(size) for size in printed_sizes() if size.method == self.phase]
        return {**vars(self), "paper": self.paper, "printed": printed}


def printed_sizes() -> list[Printed]:
    """What the papers print, from ``paper/sizes.csv``."""
    file = importlib.resources.files("headwise") / "paper" / "sizes.csv"
    sizes = []
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        setting, parameters = tuple(row.pop("setting").split()), row.pop("parameters")
        sizes.append(Printed(**row, setting=setting, parameters=int(parameters) if parameters else None))
    return sizes


def measure(name: str, about: str, phases: Sequence[Method], net: Backbone) -> list[CatalogRow]:
    """Install every phase in a copy of `net` and count.

    A method that looks at training images first (SPT-LoRA) is shown noise: its size is right, its choice is not.
    """
    # how much a weight holds is asked of the plain network, once the copy has been adapted
    shape, net = net, copy.deepcopy(net)
    entries = []
    for index, method in enumerate(phases, start=1):
        try:
            with fitting(net, method):
                plan = method.prepare(net, lambda: _noise(net), 100)
            installed = fitted(method, net, plan)
        except ConfigError as error:
            entries.append(
                CatalogRow(name=name, about=about, phase=method.label, merges=method.merges, note=str(error))
            )
            break
        num_tunable = sum(tensor.numel() for tensor in installed.adapter().values())
        entries.append(
            CatalogRow(
                name=name,
                about=about,
                phase=method.label,
                acts_on=_places(method, installed, net),
                merges=method.merges,
                num_tunable=num_tunable,
                num_head=sum(tensor.numel() for tensor in installed.head().values()),
                stored_bytes=installed.stored_bytes(),
                starts_off=method.identity_tolerance > Method.identity_tolerance,
                in_disguise=is_disguised(method, shape, num_tunable),
            )
        )
        if index < len(phases):
            installed.merge()
    return entries


def is_disguised(method: Method, net: Backbone, num_tunable: int) -> bool:
    """Whether an update trains nine tenths or more of what the weights that it adapts hold, in a plain `net`."""
    whole = sum(base.numel() for base in net.bases(method.targets).values()) if method.targets else 0
    return 0 < 0.9 * whole <= num_tunable


def _places(method: Method, installed: Installed, net: Backbone) -> str:
    """Where it acts: its owners without their block, or its targets, or kinds of the network's own parameters."""
    tuned = len(installed.trainable())
    if any(owner.startswith("s0.") for owner in installed.owners):
        places = [re.sub(r"^(s\d+\.b\d+|net)\.", "", owner) for owner in installed.owners if owner != "shared"]
    elif method.targets:
        places = list(method.targets)
    elif tuned == len(list(net.parameters())):
        places = ["everything"]
    else:
        places = [f"every {name.rpartition('.')[2]}" for name in installed.adapter()]
    return ", ".join(dict.fromkeys(places)) or "head"


def _noise(net: Backbone) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, net.img_size, net.img_size, generator=generator)
    return [(images, torch.arange(2) % net.head.out_features)]


def markdown(entries: Sequence[CatalogRow], backbone: str) -> str:
    """The catalogue as a Markdown table, and below it what could not be installed and why printed sizes differ."""
    rows, notes, reasons = [], [], []
    for entry in entries:
        sizes = [size for size in printed_sizes() if size.method == entry.phase]
        reasons += [f"- {s.method}: {s.paper} prints {s.printed} {s.unit} ({s.why})" for s in sizes]
        notes += [f"- {entry.name}: not on this backbone ({entry.note})"] if entry.note else []
        notes += [f"- {entry.name}: {DISGUISE}"] if entry.in_disguise else []
        numbers = (entry.num_tunable, entry.num_head, entry.stored_bytes)
        rows.append(
            [
                entry.name,
                entry.phase,
                entry.paper,
                entry.acts_on,
                "yes" if entry.merges else "no",
                *(_number(number) for number in numbers),
                ", ".join(f"{size.printed} {size.unit}" for size in sizes),
                "off the network" if entry.starts_off else "",
            ]
        )
    title = f"Methods on {backbone}: parameters of the backbone and of the head. Printed sizes are of ViT-B/16."
    parts = [[title], _table(COLUMNS, rows), notes, list(dict.fromkeys(reasons))]
    return "\n\n".join("\n".join(part) for part in parts if part)


def papers(measured: Mapping[tuple[str, ...], CatalogRow]) -> str:
    """The papers' size columns beside what is measured here, by setting, as a Markdown table."""
    rows = []
    for size in printed_sizes():
        entry = measured.get(size.setting)
        field, scale = UNITS[size.unit]
        here = None if entry is None else getattr(entry, field)
        numbers = (None, None) if entry is None else (entry.num_tunable, entry.stored_bytes)
        cells = [size.paper, size.row, f"{size.printed} {size.unit}", "" if here is None else f"{here / scale:.3f}"]
        rows.append([*cells, *map(_number, numbers), " ".join(size.setting), size.why])
    title = "Sizes as printed, and at the setting that comes nearest; M is millions of parameters."
    return "\n".join([title, "", *_table(PAPER_COLUMNS, rows)])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns line up as plain text; numbers to the right."""
    whole = [list(columns), *([cell.replace("|", "/") for cell in row] for row in rows)]
    widths = [max(3, *map(len, cells)) for cells in zip(*whole, strict=True)]
    right = [name in NUMBERS for name in columns]
    whole.insert(1, ["-" * (width - 1) + (":" if end else "-") for width, end in zip(widths, right, strict=True)])
    return [
        "| "
        + " | ".join(c.rjust(w) if end else c.ljust(w) for c, w, end in zip(cells, widths, right, strict=True))
        + " |"
        for cells in whole
    ]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
