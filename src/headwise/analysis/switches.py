"""A trained network, each of whose heads' updates can be switched off; loss and accuracy of what is left.

A head's update is what training added to the head's rows of one projection: W = W0 + dW, and with the head off these
rows are those of W0 again. So any update that lies in the weights of q, k or v can be taken apart by heads.

Legend: O/I features, e rows of a head, U updates of heads, N images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.network.backbone import Backbone
from headwise.network.suffix import Suffix
from headwise.report.headmap import layer_names
from headwise.updates.sites import QKV, Site

Batch = tuple[Tensor, Tensor]
"""Normalised images, (B, 3, S, S), and labels, (B,)."""


class HeadUpdate(NamedTuple):
    """The update of one head of one projection."""

    site: Site
    head: int

    @property
    def key(self) -> str:
        """Its name in tables: ``s0.b3.q.h5``."""
        return f"{self.site.key}.h{self.head}"


class Rows(NamedTuple):
    """Weight, (O, I), and bias, (O,), of a projection, or None where it has none."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Outcome:
    """What networks did on N images.

    Attributes:
        loss: cross-entropy of each image, (..., N), in float64.
        correct: whether its class was found, (..., N).
    """

    loss: Tensor
    correct: Tensor

    @property
    def mean_loss(self) -> Tensor:
        return self.loss.mean(-1)

    @property
    def accuracy(self) -> Tensor:
        """Percent, (...)."""
        return 100.0 * self.correct.double().mean(-1)


def rows_of(net: Backbone, site: Site) -> Rows:
    """What a projection computes with, copied; one without a dense weight, or with an update, is refused."""
    module: Any = net.linear(site)
    if type(module) is not nn.Linear:
        raise ConfigError(
            f"{site.key} is a {type(module).__name__}, whose rows cannot be set back to those before training; "
            "allowed: updates that merge into plain projections (not QLoRA, not libraries' own layers)"
        )
    bias = module.bias
    return Rows(module.weight.detach().clone(), None if bias is None else bias.detach().clone())


def with_heads(net: Backbone) -> list[Site]:
    """The projections whose rows divide into heads, in network order."""
    return [site for site in net.sites if site.proj in QKV and site.num_heads > 1]


class Switches:
    """A network whose heads' updates are switched on and off in place.

    Attributes:
        updates: of every head of the projections that changed, in network order.
        live: those that are not nothing; a head that a gate left off has none, unless another phase gave it one.
    """

    def __init__(self, net: Backbone, before: Mapping[Site, Rows]) -> None:
        """Compare the network with what it was.

        Args:
            net: trained, every update merged.
            before: rows of its projections before training.

        Raises:
            ConfigError: if no head of any projection changed.
        """
        self.net, self.suffix = net.eval(), Suffix(net)
        self._off, self._on = dict(before), {site: rows_of(net, site) for site in before}
        heads = {site: [HeadUpdate(site, head) for head in range(site.num_heads)] for site in before}
        self.live = frozenset(one for own in heads.values() for one in own if self.difference(*one).any())
        self.updates = tuple(one for own in heads.values() if self.live.intersection(own) for one in own)
        if not self.live:
            raise ConfigError(
                "training changed no weight of q, k or v, so its heads have no update to switch off; allowed: runs of "
                "methods that update these projections (lora, head_lora, hs_lora, heart_lora, ...)"
            )
        self._state = frozenset(self.updates)

    @property
    def is_on(self) -> frozenset[HeadUpdate]:
        return self._state

    def difference(self, site: Site, head: int) -> Tensor:
        """A head's update, its bias a last column: (e, I) or (e, I + 1)."""
        rows = slice(head * site.head_dim, (head + 1) * site.head_dim)
        on, off = self._on[site], self._off[site]
        parts = [on.weight[rows] - off.weight[rows]]
        if on.bias is not None and off.bias is not None:
            parts.append((on.bias[rows] - off.bias[rows]).unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def set(self, on: Collection[HeadUpdate]) -> int | None:
        """Switch these updates on and all others off; returns the first block that changed, by its place, or None."""
        wanted = frozenset(on)
        changed = (wanted ^ self._state) & self.live
        for update in changed:
            site, head = update
            rows = slice(head * site.head_dim, (head + 1) * site.head_dim)
            source = (self._on if update in wanted else self._off)[site]
            module: Any = self.net.linear(site)
            module.weight.data[rows] = source.weight[rows]
            if source.bias is not None:
                module.bias.data[rows] = source.bias[rows]
        self._state = wanted
        return min((self.block(update) for update in changed), default=None)

    def block(self, update: HeadUpdate) -> int:
        """Place of its block in the network."""
        return self.suffix.places.index((update.site.stage, update.site.block))

    def words(self, update: HeadUpdate) -> str:
        """Where an update lies: ``head 3 of q in layer 5``, of a network with stages ``layer 2.5``."""
        layer = layer_names(self.suffix.places)[self.block(update)]
        return f"head {update.head} of {update.site.proj} in layer {layer}"


@torch.no_grad()
def toggled(
    switches: Switches,
    batches: Iterable[Batch],
    background: Collection[HeadUpdate],
    candidates: Sequence[HeadUpdate],
) -> tuple[Outcome, Outcome]:
    """Change one update after another against a background, computing again only what follows its block.

    Args:
        switches: of the network; they are as before afterwards.
        background: updates that are on.
        candidates: those that are changed, one at a time: off where they are on, on where they are off.

    Returns:
        Of the background, (N,), and of every candidate, (U, N). To the last bit what whole forward passes give.
    """
    start, ground = switches.is_on, frozenset(background)
    bases, changed = [], []
    try:
        for images, labels in batches:
            switches.set(ground)
            inputs, logits = switches.suffix.inputs(images)
            bases.append(_judge(logits, labels))
            rows = []
            for update in candidates:
                if update not in switches.live:  # nothing to switch
                    rows.append(bases[-1])
                    continue
                switches.set(ground ^ {update})
                at = switches.block(update)
                rows.append(_judge(switches.suffix.resume(at, inputs[at]), labels))
            changed.append(tuple(torch.stack(part) for part in zip(*rows, strict=True)))
    finally:
        switches.set(start)
    return _joined(bases), _joined(changed)


@torch.no_grad()
def cumulative(
    switches: Switches, batches: Iterable[Batch], order: Sequence[HeadUpdate], counts: Sequence[int]
) -> Outcome:
    """Switch updates on one by one, all off at first.

    Args:
        switches: of the network; they are as before afterwards.
        order: of the updates.
        counts: how many of them are on, ascending.

    Returns:
        Of each count, (counts, N).
    """
    start = switches.is_on
    outcomes = []
    try:
        for images, labels in batches:
            switches.set(order[: counts[0]])
            inputs, logits = switches.suffix.inputs(images)
            rows = [_judge(logits, labels)]
            for count in counts[1:]:
                first = switches.set(order[:count])
                if first is not None:
                    for at in range(first, len(inputs) - 1):
                        inputs[at + 1] = switches.suffix.resume(at, inputs[at], at + 1)
                    logits = switches.suffix.resume(len(inputs) - 1, inputs[-1])
                rows.append(_judge(logits, labels))
            outcomes.append(tuple(torch.stack(part) for part in zip(*rows, strict=True)))
    finally:
        switches.set(start)
    return _joined(outcomes)


def greedy(switches: Switches, batches: Iterable[Batch], steps: int) -> list[tuple[HeadUpdate, float, float]]:
    """Switch off, step by step, the update without which the loss is least; those that are nothing are left out.

    Returns:
        Of every step the update, and mean loss and accuracy, percent, of what is left.
    """
    on, taken = [update for update in switches.updates if update in switches.live], []
    for _ in range(min(steps, len(on))):
        _, without = toggled(switches, batches, on, on)
        best = int(without.mean_loss.argmin())
        taken.append((on.pop(best), float(without.mean_loss[best]), float(without.accuracy[best])))
    return taken


def _judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and success of each image."""
    return F.cross_entropy(logits.double(), labels, reduction="none"), logits.argmax(-1) == labels


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> Outcome:
    if not parts:
        raise ConfigError("there is no image to measure the heads on")
    loss, correct = (torch.cat(pieces, dim=-1) for pieces in zip(*parts, strict=True))
    return Outcome(loss, correct)
