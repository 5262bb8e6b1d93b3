"""Noise on the change that an update makes: one factor for each sample and channel (`headwise.updates.consistency`).

Legend: B samples, C channels, W windows of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """Multiplies a change by 1 + sigma n, n standard normal, equal for all tokens of a sample.

    n is drawn anew from the generator at each call, for each of `num_samples`, B.
    """

    sigma: float
    generator: torch.Generator
    num_samples: int

    def __call__(self, change: Tensor) -> Tensor:
        """The disturbed change, same shape as `change`, (B W, ..., C): the windows of a sample stand side by side."""
        # in float32 at any precision, so that a run's random numbers do not depend on it
        draws = torch.randn(
            self.num_samples, change.shape[-1], generator=self.generator, device=change.device, dtype=torch.float32
        )
        factor = (1.0 + self.sigma * draws).to(change.dtype)
        factor = factor.repeat_interleave(change.shape[0] // self.num_samples, dim=0)
        return change * factor.view(factor.shape[0], *[1] * (change.ndim - 2), factor.shape[1])
