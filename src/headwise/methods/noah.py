"""NOAH (Zhang et al., arXiv:2206.04673): prompts, LoRA and an adapter in every block, sized by a search per task.

This is the search's third stage: a found subnet, retrained from the pretrained weights. Block l has p_l prompts (at the
end of the sequence, in place of those of block l - 1), LoRA of rank r_l on q, k and v with one A, and an adapter of
width w_l on the MLP's output: m + U drop(quick_gelu(D m)), outside drop-path. The nineteen subnets that were published
are part of the package (paper/noah_subnets.csv, from the authors' configuration files).

Legend: C channels.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from headwise.adapted import Delta
from headwise.backbone import Backbone
from headwise.bottleneck import Bottleneck
from headwise.errors import ConfigError
from headwise.lowrank import LowRank
from headwise.methods.base import Installed, Method, Plan
from headwise.methods.structural import blocks, place, require_vit, width_of
from headwise.prompting import Prompted, Prompts, chain
from headwise.sites import QKV, Site
from headwise.wrapping import After, check_block

KINDS = ("prompt_tokens", "lora_rank", "adapter_width")
Subnet = dict[str, list[int]]


def published_subnets() -> dict[str, Subnet]:
    """The subnets by task: sizes of each of `KINDS`, block by block (12)."""
    file = importlib.resources.files("headwise") / "paper" / "noah_subnets.csv"
    subnets: dict[str, Subnet] = {}
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        sizes = [int(row[f"block{index}"]) for index in range(len(row) - 2)]
        subnets.setdefault(row["task"], {})[row["module"]] = sizes
    return subnets


class NOAHInstalled(Installed):
    """A subnet at work."""

    def __init__(self, net: Backbone, owners: Mapping[str, nn.Module], subnet: Subnet, source: str) -> None:
        super().__init__(net, owners)
        self.subnet, self.source = subnet, source
        self.freeze_rest()

    def report(self) -> dict[str, Any]:
        """The sizes, and where they come from."""
        return {**super().report(), "subnet": {**self.subnet, "source": self.source}}


@dataclass(frozen=True, kw_only=True)
class NOAH(Method):
    """A NOAH subnet, retrained; only its LoRA merges, the rest stays in place. Starts off the identity. ViT only.

    Parameters: C per prompt, 4 C per rank, 2 C w + w + C per adapter; ViT-B/16: 360,134 on average over the 19 tasks.
    Init: prompts and adapters Xavier uniform, LoRA Kaiming and zero.

    Attributes:
        task: whose published subnet to take; a task without one (few-shot) takes `default`.
        default: size of prompts, ranks and adapters in every block; 5 is the middle of the search space {1, 5, 10}.
        subnet: sizes of prompt_tokens, lora_rank and adapter_width, one per block; goes before `task`.
        dropout: of prompts and of both hiddens, in [0, 1).

    A published subnet has twelve blocks; a network of L takes the sizes of blocks floor(12 i / L). What was used is in
    the record of the phase.
    """

    targets: Sequence[str] = QKV
    task: str | None = None
    default: int = 5
    subnet: Mapping[str, Sequence[int]] | None = None
    dropout: float = 0.1
    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 10.0
    networks: ClassVar[tuple[str, ...]] = ("vit",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.targets) != set(QKV):
            raise ConfigError(f"NOAH's LoRA adapts q, k and v together, got targets={list(self.targets)}")
        if self.default < 1:
            raise ConfigError(f"default of method {self.label!r} must be at least 1, got {self.default}")

    def sizes(self, num_blocks: int) -> tuple[Subnet, str]:
        """The subnet for a network of `num_blocks`, and where it comes from.

        Raises:
            ConfigError: if `subnet` lacks a kind, has another number of blocks, or a size below 1.
        """
        if self.subnet is not None:
            given = {kind: list(self.subnet.get(kind, ())) for kind in KINDS}
            for kind, sizes in given.items():
                if len(sizes) != num_blocks or min(sizes, default=0) < 1:
                    raise ConfigError(f"subnet.{kind} of NOAH must be {num_blocks} sizes of at least 1, got {sizes}")
            return given, "given"
        published = published_subnets().get(self.task or "")
        if published is None:
            return {kind: [self.default] * num_blocks for kind in KINDS}, "default"
        total = len(published["lora_rank"])
        picked = {
            kind: [sizes[total * i // num_blocks] for i in range(num_blocks)] for kind, sizes in published.items()
        }
        return picked, f"published for {self.task}"

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put deltas at q, k and v, wrap every block, the end of its MLP branch, and the final norm.

        Raises:
            ConfigError: on a network that is no ViT, or for sizes out of range.
        """
        require_vit(net, self)
        found = list(blocks(net))
        subnet, source = self.sizes(len(found))
        owners = dict(super().install(net, plan).owners)
        live = [sum(w.count for w in chain(block) if w.at_end) for _, _, block in found]
        previous = 0
        for index, (key, path, block) in enumerate(found):
            check_block(block)
            width = width_of(net, key)
            count = subnet["prompt_tokens"][index]
            prompts = Prompts(count, width, math.sqrt(6.0 / (count + width)), self.dropout)
            adapter = Bottleneck(
                width,
                subnet["adapter_width"][index],
                activation="quick_gelu",
                bias=True,
                dropout=self.dropout,
                init="xavier",
            )
            owners |= {f"{key}.prompts": prompts, f"{key}.adapter": adapter}
            place(net, f"{path}.drop_path2", functools.partial(After, part=adapter))
            behind = live[index - 1] if index else 0
            _prompt(net, path, prompts, behind, previous)
            previous = count
        _prompt(net, "norm", None, live[-1], previous)
        return NOAHInstalled(net, owners, subnet, source)

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """LoRA of each block's rank, one A for q, k and v."""
        ranks = self.sizes(1 + max(site.block for site in bases))[0]["lora_rank"]
        deltas: dict[Site, Delta] = {}
        first: dict[int, LowRank] = {}
        for site, base in bases.items():
            delta = LowRank(site, base, ranks[site.block], dropout=self.dropout)
            delta.A = first.setdefault(site.block, delta).A
            deltas[site] = delta
        return deltas


def _prompt(net: Backbone, path: str, prompts: Prompts | None, behind: int, replaced: int) -> None:
    place(net, path, lambda inner: Prompted(inner, prompts, behind, replaced, at_end=True))
