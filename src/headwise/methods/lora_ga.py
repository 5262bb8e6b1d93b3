"""LoRA-GA (Wang et al., NeurIPS 2024, arXiv:2407.05000): LoRA that starts along the singular vectors of the gradient.

Legend: O/I features, R rank.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods._passes import Counted, leave, mean_gradients, taken
from headwise.methods._structural import plain_linear, refuse_four_bits
from headwise.methods.base import Batches, Installed, Method, Plan, as_asked, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Positive
from headwise.updates.fused import at_least_float32
from headwise.updates.sites import Site
from headwise.updates.started import StartedDelta


@dataclass(frozen=True, kw_only=True)
class LoRAGA(Method):
    """W + s (B A - B0 A0), A and B starting at A0 and B0, so that the first step goes along the full gradient; merges.

    With U S V' the mean gradient of the loss over training batches: A0 = c V'[:r] and B0 = c U[:, r:2r], where
    c = O^(1/4) / gamma^(1/2) (the authors' ``ArB2r`` and ``stable``). peft 0.21 scales B0 alone, by c and by the
    singular values, which vanish with the gradient: method=peft with init_lora_weights=lora_ga.

    Parameters: r (I + O) per projection, as LoRA.

    Licence: No licence file found (Outsider565/LoRA-GA), not copied; peft's is Apache-2.0.
    Not for: Runs that may not look at the training images before they train. Small files: A0 and B0 are stored too.

    Attributes:
        rank: r, in 1 .. min(O, I) / 2.
        gamma: above 0; larger starts smaller.
        num_batches: of the training set, at most, that give the gradient; 16 of 64 are all of 1000 images.
        scale: s, constant.
    """

    rank: Count
    gamma: Positive = 16.0
    num_batches: Count = 16
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone, plan: Plan | None = None) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def rehearse(self, net: Backbone) -> None:
        """There is no gradient yet; everything else is as it will be."""
        as_asked(self, self.install(net, {}))

    def prepare(self, net: Backbone, batches: Batches, num_steps: int) -> Plan:
        """The starts, which are left with the projections.

        Returns:
            ``batches`` and ``images`` that gave the gradient.

        Raises:
            ConfigError: for a rank out of range, or a network in 4 bits.
        """
        refuse_four_bits(net, self)
        sites = list(net.bases(self.targets))
        weights = [plain_linear(net, site).weight for site in sites]
        for site, weight in zip(sites, weights, strict=True):
            self._check(site, weight)
        seen = Counted(itertools.islice(batches(), self.num_batches))
        for site, gradient in zip(sites, mean_gradients(net, weights, seen), strict=True):
            leave(net, site, gradient_start(gradient, self.rank, self.gamma))
        return {"batches": seen.num_batches, "images": seen.num_images}

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put the update at each projection; ConfigError without a plan, or for a rank out of range."""
        if plan is None:
            raise ConfigError(f"method {self.label!r} needs the plan that its prepare() makes from the training data")
        deltas = {}
        for site, base in net.bases(self.targets).items():
            self._check(site, base)
            start: tuple[Tensor, Tensor] | None = taken(net, site)
            num_rows, num_inputs = base.shape
            # of a finished phase the stored start follows
            down, up = start or (base.new_zeros(self.rank, num_inputs), base.new_zeros(num_rows, self.rank))
            deltas[site] = StartedDelta(site, base, down, up, self.scale)
        return self.put(net, deltas)

    def _check(self, site: Site, base: Tensor) -> None:
        largest = min(base.shape) // 2
        if self.rank > largest:
            raise ConfigError(
                f"rank must be in 1..{largest} for {site.key}: LoRA-GA starts from 2 r directions, got {self.rank}"
            )


def gradient_start(gradient: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """A0, (R, I), and B0, (O, R), of a gradient, (O, I)."""
    left, _, right = torch.linalg.svd(gradient.to(at_least_float32(gradient)), full_matrices=False)
    factor = len(gradient) ** 0.25 / gamma**0.5
    return factor * right[:rank], factor * left[:, rank : 2 * rank]
