"""What a finished run changed: the weights of q, k and v, whose rows are heads', before and after each phase.

Legend: L layers, O/I features, H heads, e rows of a head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwise.analysis.switches import with_heads
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.network.backbone import Backbone
from headwise.network.nf4 import FourBit
from headwise.protocol.variants import beside_common, common_choices
from headwise.report.headmap import layer_names
from headwise.training.mechanism import LEAST
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear


@dataclass(frozen=True)
class Change:
    """What one phase, or all together, did to the projections with heads.

    Attributes:
        label: of the phase; ``all phases`` for the whole run.
        before, after: weights, (O, I), in float32 on the CPU.
    """

    label: str
    before: dict[Site, Tensor]
    after: dict[Site, Tensor]

    def update(self, site: Site) -> Tensor:
        """The update of one projection, (O, I)."""
        return self.after[site] - self.before[site]

    @property
    def changed(self) -> list[Site]:
        """The projections that did change, in network order."""
        return [s for s in self.before if self.update(s).norm() > LEAST * self.before[s].norm()]

    def of(self, group: Group) -> tuple[Tensor, Tensor]:
        """Weights before, and their updates, of all layers of a group, (L, O, I) each."""
        return torch.stack([self.before[s] for s in group.sites]), torch.stack([self.update(s) for s in group.sites])

    def live(self, group: Group) -> Tensor:
        """Which heads of a group changed, (L, H): one that a gate left off has no update, so no directions."""
        before, update = (by_head(weights, group.num_heads).norm(dim=(-2, -1)) for weights in self.of(group))
        return update > LEAST * before

    def groups(self) -> list[Group]:
        """The changed projections by name (q, k, v) and size, for sums over equal shapes: each a batch of layers."""
        by_shape: dict[tuple[str, torch.Size, int], list[Site]] = {}
        for site in self.changed:
            by_shape.setdefault((site.proj, self.before[site].shape, site.num_heads), []).append(site)
        several = len({site.stage for site in self.before}) > 1
        return [Group(proj, tuple(sites), several) for (proj, _, _), sites in by_shape.items()]


@dataclass(frozen=True)
class Group:
    """One projection of the layers that have the same shape: all of a ViT, those of one stage of a Swin.

    Attributes:
        sites: its layers in network order.
        several: whether the network has more than one stage, so that names must say which.
    """

    proj: str
    sites: tuple[Site, ...]
    several: bool = False

    @property
    def name(self) -> str:
        """In words: ``q``, or ``q of stage 2``."""
        return f"{self.proj} of stage {self._stages}" if self.several else self.proj

    @property
    def key(self) -> str:
        """In names of files: ``q``, or ``q_stage2``."""
        return f"{self.proj}_stage{self._stages}" if self.several else self.proj

    @property
    def layers(self) -> list[str]:
        """Names of the layers in pictures."""
        return layer_names([(site.stage, site.block) for site in self.sites])

    @property
    def num_heads(self) -> int:
        return self.sites[0].num_heads

    def named(self, layer: int) -> dict[str, Any]:
        """The columns of a table that name one of the layers by its place in the group."""
        site = self.sites[layer]
        return {"projection": self.proj, "stage": site.stage, "block": site.block}

    def among(self, sites: Collection[Site]) -> Group:
        """The group of those of its layers that are among others."""
        return replace(self, sites=tuple(site for site in self.sites if site in sites))

    @property
    def _stages(self) -> str:
        return "-".join(str(stage) for stage in dict.fromkeys(site.stage for site in self.sites))


def by_head(weights: Tensor, num_heads: int) -> Tensor:
    """Rows by head: (..., O, I) to (..., H, e, I)."""
    return weights.unflatten(-2, (num_heads, -1))


@torch.no_grad()
def changes(run: SavedRun, weights: str | Path | None = None) -> list[Change]:
    """What each phase of a run changed; with several, then what all did together.

    Raises:
        WeightsError: if they are missing. CheckpointError: if a phase's file is. ConfigError: if the run changed no
            projection with heads: what it trained lies elsewhere (adapters, prompts, the head alone).
    """
    net = run.network(weights)
    sites = with_heads(net)
    if not sites:
        raise ConfigError(f"{run.folder}: {run.spec.name} has no projection of several heads to analyse")
    first = before = _weights(net, sites)
    phases: list[Change] = []
    dense = set(sites)
    for phase, installed in run.install(net):
        installed.merge()
        for site in sorted(dense):
            module = net.linear(site)
            if isinstance(module, BesideLinear):  # what rounding to 4 bits did in the same step was not learned
                dense.remove(site)
                base = {site: _weight(module.module)}
                before, first = {**before, **base}, {**first, **base}
        after = _weights(net, sites)
        phases.append(Change(phase.label, before, after))
        before = after
    if not any(change.changed for change in phases):
        labels = ", ".join(dict.fromkeys(change.label for change in phases))
        raise ConfigError(
            f"{run.folder}: {labels} changed no weight of q, k or v, so its heads have no update to analyse; allowed: "
            "runs of methods that update these projections (lora, head_lora, hs_lora, heart_lora, ...)"
        )
    return phases if len(phases) == 1 else [*phases, Change("all phases", first, before)]


def _weights(net: Backbone, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """The weight that each projection computes with, (O, I), whatever carries it."""
    return {site: _weight(net.linear(site)) for site in sites}


def _weight(module: nn.Module) -> Tensor:
    if isinstance(module, BesideLinear):
        base = _weight(module.module)
        eye = torch.eye(base.shape[1])
        return base + module.delta(eye, eye.new_empty(0)).T.float()
    if isinstance(module, FourBit):
        return module.dense().float().clone()
    if isinstance(module, nn.Linear):
        return module.weight.detach().float().clone()
    raise ConfigError(f"a projection is a {type(module).__name__}, which has no dense weight to analyse")


def same_network(runs: Sequence[SavedRun], kind: str) -> None:
    """Refuse runs that do not stand on the same pretrained network; names two."""
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in (
            ("backbone", first.spec.name, run.spec.name),
            ("weights", first.content("backbone", "weights"), run.content("backbone", "weights")),
        ):
            if one != other:
                raise ConfigError(
                    f"{kind} compares runs of one network: {first.folder} has the {what} {one[:24]}, "
                    f"{run.folder} has {other[:24]}"
                )


def names_of(runs: Sequence[SavedRun]) -> list[str]:
    """The shortest names that tell runs apart: method, dataset, and what not all share of variant and seed."""
    common = common_choices(run.result.key.variant for run in runs)
    keys = [
        (key.method, key.dataset, beside_common(key.variant, common), f"seed {key.seed}")
        for key in (run.result.key for run in runs)
    ]
    shown = [len({key[part] for key in keys}) > 1 or part < 2 for part in range(4)]
    names = [", ".join(word for word, wanted in zip(key, shown, strict=True) if wanted) for key in keys]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]
