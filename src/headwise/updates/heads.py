"""Which heads matter: scores from gradients of the gate, and the choice of heads to switch off. Pure functions.

The gate of a head multiplies its update, so dL/dgate at 1 is the sum over the head of update times its gradient: for
plain LoRA sum(B_i * G_i), G = dL/dB (Heart-LoRA, Eq. 5).

Legend: H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from headwise.errors import ConfigError
from headwise.updates.gate import Gate
from headwise.updates.sites import HEADED, Site


@dataclass(frozen=True)
class Evidence:
    """What was measured at one projection, (H,) each.

    Attributes:
        gate: dL/dgate, L the mean loss.
        weight: L2 norm of each head's rows of the update's up-projection.
        grad: L2 norm of their gradient; None where it was not taken.
    """

    gate: Tensor
    weight: Tensor
    grad: Tensor | None = None

    def to_lists(self) -> dict[str, list[float] | None]:
        """What was measured as data that JSON can hold."""
        return {name: None if values is None else values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, list[float] | None]) -> Self:
        """The evidence that `to_lists` gave."""
        values: Any = {name: None if entries is None else torch.tensor(entries) for name, entries in lists.items()}
        return cls(**values)


def responsiveness(evidence: Evidence, score: str) -> Tensor:
    """How much each head matters by one of the named scores, (H,); the smallest is switched off first.

    Raises:
        ConfigError: if ``grad_l2`` is asked for where no gradient was taken.
    """
    if score == "weight_l2":
        return evidence.weight
    if score == "grad_l2":
        if evidence.grad is None:
            raise ConfigError("gate.score=grad_l2 needs an update with an up-projection B of its own; use taylor_abs")
        return evidence.grad
    return {"taylor_pos": evidence.gate, "taylor_neg": -evidence.gate, "taylor_abs": evidence.gate.abs()}[score]


def least_responsive(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` smallest of (H,) scores, (count,); of equal ones the first."""
    return torch.argsort(scores, stable=True)[:count]


def head_norms(tensor: Tensor, num_heads: int) -> Tensor:
    """L2 norm of each of `num_heads` equal pieces of a tensor whose leading entries are the heads' rows, (H,).

    Raises:
        ConfigError: if the tensor does not divide into equal parts.
    """
    if tensor.numel() % num_heads:
        raise ConfigError(f"a tensor of {tuple(tensor.shape)} does not divide into {num_heads} heads")
    return tensor.reshape(num_heads, -1).norm(dim=1)


def check(gate: Gate, sites: Mapping[Site, object]) -> None:
    """Check a gate against its projections; ConfigError for ones without heads, or an amount that does not fit them."""
    heads = {site.num_heads for site in sites}
    headless = sorted({site.proj for site in sites if site.num_heads == 1})
    if headless:
        raise ConfigError(f"{', '.join(headless)} has no heads to gate; allowed targets: {', '.join(HEADED)}")
    if len(heads) > 1 and gate.count:
        raise ConfigError(
            f"gate.count={gate.count} on layers of {', '.join(map(str, sorted(heads)))} heads: give the share of heads "
            "instead, ne=quarter or gate.ratio"
        )
    if gate.budget is not None:
        if len({site.stage for site in sites}) > 1:
            raise ConfigError("gate.budget compares heads of all layers, but stages are never compared; use gate.ratio")
        total = max(sum(site.num_heads for site in members) for members in _sets(gate, sites).values())
        if gate.budget > total:
            raise ConfigError(f"gate.budget={gate.budget} heads are to stay on, there are {total}")
    for count in heads:
        gate.num_off(count)


def choose(gate: Gate, scores: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Masks, (H,) with 1 for on, from scores, (H,), larger where a head matters more."""
    if gate.budget is not None:
        return _keep_best(gate, scores)
    masks: dict[Site, Tensor] = {}
    for sites in _groups(gate, scores).values():
        # head i of every layer of the group stands or falls together: (layers, H) summed to (H,)
        total = torch.stack([scores[site] for site in sites]).sum(0)
        mask = torch.ones_like(total)
        mask[least_responsive(total, gate.num_off(len(total)))] = 0.0
        masks.update(dict.fromkeys(sites, mask))
    return {site: masks[site] for site in scores}


def fixed(gate: Gate, sites: Mapping[Site, object]) -> dict[Site, Tensor]:
    """Masks without scores: the first heads off, or random ones, drawn from torch's present random state."""
    draw: Callable[[int], Tensor] = torch.randperm if gate.mode == "random" else torch.arange
    ranks: dict[Site, Tensor] = {}
    for members in _groups(gate, sites).values():
        # the order in which heads go, turned into scores (H,): the place of each head in it
        ranks.update(dict.fromkeys(members, torch.argsort(draw(members[0].num_heads)).float()))
    return choose(gate, {site: ranks[site] for site in sites})


def _keep_best(gate: Gate, scores: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    """Masks, (H,), that leave `gate.budget` heads of all layers on, wherever they are."""
    masks = {}
    for sites in _sets(gate, scores).values():
        layers: dict[int, list[Site]] = {}
        for site in sites:
            layers.setdefault(site.block, []).append(site)
        # one row of scores per layer, (L, H); those of pooled projections of a layer are added
        table = torch.stack([sum((scores[s] for s in members), torch.zeros(())) for members in layers.values()])
        best = torch.zeros(table.numel())
        best[torch.argsort(table.flatten(), descending=True, stable=True)[: gate.budget]] = 1.0
        for members, mask in zip(layers.values(), best.view_as(table), strict=True):
            masks.update(dict.fromkeys(members, mask))
    return {site: masks[site] for site in scores}


def _sets(gate: Gate, sites: Mapping[Site, object]) -> dict[str, list[Site]]:
    """Sites that are chosen for together: those of one projection, or all."""
    sets: dict[str, list[Site]] = {}
    for site in sites:
        sets.setdefault("" if gate.pooled else site.proj, []).append(site)
    return sets


def _groups(gate: Gate, sites: Mapping[Site, object]) -> dict[tuple[int | str, ...], list[Site]]:
    """Sites whose scores are added: of one stage or one layer, and of one projection unless pooled."""
    groups: dict[tuple[int | str, ...], list[Site]] = {}
    for name, members in _sets(gate, sites).items():
        for site in members:
            key = (name, site.stage, site.block) if gate.scope == "layer" else (name, site.stage)
            groups.setdefault(key, []).append(site)
    return groups
