"""Where the updates of a run's phases lie, head by head: recorded beside what they gain. `analysis.overlap` draws it.

Legend: O/I features, H heads, e rows of a head.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from headwise.network.backbone import Backbone
from headwise.results.records import PhaseResult
from headwise.updates.directions import rounding_of
from headwise.updates.shares import between, between_heads, spanned
from headwise.updates.sites import QKV, Site

MECHANISM = "mechanism"
"""What it is called in `PhaseResult.extra`."""
LEAST = 1e-6
"""A change below this share of the weight is rounding."""


class Follower:
    """Follows a network through the phases that are merged into it.

    Attributes:
        weights: of the projections with heads, (O, I), float32 on the CPU, as the last phase left them.
        update: what that phase added to those that it changed.
    """

    def __init__(self, net: Backbone) -> None:
        self.weights = _weights(net)
        self.update: dict[Site, Tensor] = {}

    def noted(self, net: Backbone, result: PhaseResult) -> PhaseResult:
        """The record of the phase that was just merged into `net`, with what `measures` gives, if anything.

        A network whose projections are no plain matrices (held in 4 bits) has none.
        """
        before, last = self.weights, self.update
        self.weights = _weights(net)
        self.update = {
            site: change
            for site, after in self.weights.items()
            if site in before and (change := after - before[site]).norm() > LEAST * before[site].norm()
        }
        found = measures(before, self.update, last)
        return replace(result, extra={**result.extra, MECHANISM: found}) if found else result


@torch.no_grad()
def _weights(net: Backbone) -> dict[Site, Tensor]:
    sites = (site for site in net.sites if site.proj in QKV and site.num_heads > 1)
    plain = ((site, module) for site in sites if isinstance(module := net.linear(site), nn.Linear))
    return {site: module.weight.detach().to("cpu", torch.float32, copy=True) for site, module in plain}


def measures(before: dict[Site, Tensor], update: dict[Site, Tensor], last: dict[Site, Tensor]) -> dict[str, float]:
    """Means over all heads of all projections, shares of the energy of a head's update, 0 .. 1.

    Args:
        before: weights, (O, I).
        update: what a phase added to them, (O, I).
        last: what the phase before it did; empty of a first one.

    Returns:
        ``shared``, the share in the row space of another head's update (mean of the others); ``own``, outside of what
        all others' span; ``rows`` and ``columns``, in those spaces of the head's own update of the phase before.
        What nothing was measured of is left out.
    """
    found: dict[str, list[Tensor]] = {"shared": [], "own": [], "rows": [], "columns": []}
    for site, change in update.items():
        start, cut = before[site].unflatten(0, (site.num_heads, -1)), change.unflatten(0, (site.num_heads, -1))
        cut = _live(start, cut)
        rounding = rounding_of(start)  # (H,)
        heads = between_heads(cut, rounding)
        found["shared"].append(heads.shared)
        found["own"].append(heads.own)
        if site in last:
            # the weight less what the phase before added is what that phase found
            first = last[site].unflatten(0, (site.num_heads, -1))
            over = between(spanned(_live(start - first, first), rounding), cut)
            found["rows"].append(over.rows)
            found["columns"].append(over.columns)
    means = {name: float(torch.cat(values).nanmean()) for name, values in found.items() if values}
    return {name: min(max(mean, 0.0), 1.0) for name, mean in means.items() if mean == mean}


def _live(start: Tensor, cut: Tensor) -> Tensor:
    """Updates of heads, (H, e, I), with those set to zero that are rounding: a head that a gate left off has none."""
    live = cut.norm(dim=(-2, -1)) > LEAST * start.norm(dim=(-2, -1))
    return cut.where(live[:, None, None], torch.zeros(()))
