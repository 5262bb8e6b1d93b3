"""What a finished run changed: the weights of every projection with heads, before and after each phase.

Legend: L layers, O/I features, H heads, e rows of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.network.backbone import Backbone
from headwise.network.nf4 import FourBit
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear

LEAST = 1e-6
"""A change below this share of the weight is rounding."""


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

    def groups(self) -> list[tuple[str, list[Site]]]:
        """The changed projections by name (q, k, v) and size, for sums over equal shapes: each a batch of layers."""
        found: dict[tuple[str, torch.Size, int], list[Site]] = {}
        for site in self.changed:
            found.setdefault((site.proj, self.before[site].shape, site.num_heads), []).append(site)
        return [(proj, sites) for (proj, _, _), sites in found.items()]


def by_head(weights: Tensor, num_heads: int) -> Tensor:
    """Rows by head: (..., O, I) to (..., H, e, I)."""
    return weights.unflatten(-2, (num_heads, -1))


def layer_of(site: Site) -> str:
    """Name of a layer: its number, of a network with stages ``stage.block``."""
    return str(site.block) if site.stage == 0 else f"{site.stage}.{site.block}"


@torch.no_grad()
def changes(run: SavedRun, weights: str | Path | None = None) -> list[Change]:
    """What each phase of a run changed; with several, then what all did together.

    Args:
        run: a finished one.
        weights: file of the pretrained weights, if it is not where the run found it.

    Raises:
        WeightsError: if they are missing. CheckpointError: if a phase's file is. ConfigError: if the run changed no
            projection with heads: what it trained lies elsewhere (adapters, prompts, the head alone).
    """
    net = run.network(weights)
    sites = [site for site in net.sites if site.num_heads > 1]
    if not sites:
        raise ConfigError(f"{run.folder}: {run.spec.name} has no projection of several heads to analyse")
    first = before = _weights(net, sites)
    found: list[Change] = []
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
        found.append(Change(phase.label, before, after))
        before = after
    if not any(change.changed for change in found):
        labels = ", ".join(dict.fromkeys(change.label for change in found))
        raise ConfigError(
            f"{run.folder}: {labels} changed no weight of q, k or v, so its heads have no update to analyse; allowed: "
            "runs of methods that update these projections (lora, head_lora, hs_lora, heart_lora, ...)"
        )
    return found if len(found) == 1 else [*found, Change("all phases", first, before)]


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
    """Check that runs stand on the same pretrained network.

    Raises:
        ConfigError: naming two that do not.
    """
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
