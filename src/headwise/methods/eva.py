"""EVA (Paischer et al., arXiv:2410.07170): LoRA whose A spans where the task's activations vary, its ranks shared out.

Legend: O/I features, r rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods._passes import Counted, leave, scatters, taken
from headwise.methods.base import Batches, Installed, Method, Plan, as_asked
from headwise.network.backbone import Backbone
from headwise.schema.kinds import AtLeast1, Count, Factor
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site


@dataclass(frozen=True, kw_only=True)
class EVA(Method):
    """W + s B A; A's rows are the leading right singular vectors of the projection's inputs, B is zero; merges.

    One pass over training images gives each projection the principal directions of its inputs (all tokens, around
    their mean) and the share of their variance that each explains. Of all directions of all projections, those with the
    largest shares get the ranks, `rank` times the number of projections in all; a projection that gets none is left as
    it is. Singular vectors are exact here; the authors and peft update them batch by batch until they settle.

    Parameters: the sum of r_i (I + O); with targets of equal size that of LoRA.

    Licence: No licence file found (ml-jku/EVA, BenediktAlkin/vtab1k-pytorch), not copied; peft's is Apache-2.0.
    Not for: Runs that may not look at the training images before they train.

    Attributes:
        rank: mean of the ranks, in 1 .. min(O, I).
        rho: no projection gets more than rho times `rank`; 1 gives all the same.
        num_batches: of the training set, at most, that are looked at; 16 of 64 are all of 1000 images.
        scale: s, constant, whatever the rank.
    """

    rank: Count
    rho: AtLeast1 = 2.0
    num_batches: Count = 16
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone, plan: Plan | None = None) -> int:
        """r_i (I + O) of each projection."""
        if plan is None:
            raise ConfigError(f"method {self.label!r} has no size before its prepare() has seen the training data")
        return sum(plan["ranks"].get(site.key, 0) * sum(base.shape) for site, base in net.bases(self.targets).items())

    def rehearse(self, net: Backbone) -> None:
        """There are no directions yet; everything else is as it will be with equal ranks."""
        as_asked(self, self.install(net, {"ranks": {site.key: self.rank for site in net.bases(self.targets)}}))

    def prepare(self, net: Backbone, batches: Batches, num_steps: int) -> Plan:
        """The directions, which are left with the projections, and how the ranks are shared out.

        Returns:
            ``ranks`` (site key to rank), ``batches`` and ``images`` that were looked at.
        """
        bases = net.bases(self.targets)
        seen = Counted(itertools.islice(batches(), self.num_batches))
        found = scatters(net, list(bases), seen)
        # projections with the same inputs share one decomposition
        spectra = {scatter: scatter.directions() for scatter in dict.fromkeys(found.values())}
        largest = {site: min(round(self.rho * self.rank), *base.shape) for site, base in bases.items()}
        shares = {site: spectra[scatter][1][: largest[site]].tolist() for site, scatter in found.items()}
        ranks = distribute(shares, self.rank * len(bases))
        for site, scatter in found.items():
            leave(net, site, spectra[scatter][0][: ranks[site]])
        return {
            "ranks": {site.key: rank for site, rank in ranks.items()},
            "batches": seen.num_batches,
            "images": seen.num_images,
        }

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put a low-rank update at each projection; ConfigError for no plan, another network's, or a wrong rank."""
        if plan is None:
            raise ConfigError(f"method {self.label!r} needs the plan that its prepare() makes from the training data")
        bases, ranks = net.bases(self.targets), plan["ranks"]
        if not ranks.keys() <= {site.key for site in bases}:
            raise ConfigError(f"the plan of method {self.label!r} names projections that this network does not have")
        deltas = {}
        for site, base in bases.items():
            directions: Tensor | None = taken(net, site)
            if rank := ranks.get(site.key, 0):
                delta = deltas[site] = LowRank(site, base, rank, scale=self.scale)
                # of a finished phase there are none: the stored A follows
                if directions is not None:
                    delta.A.data.copy_(directions)
        return self.put(net, deltas)


def distribute(shares: Mapping[Site, list[float]], budget: int) -> dict[Site, int]:
    """How many of each projection's directions are among the `budget` that explain the most.

    Args:
        shares: of the variance of each projection's inputs, largest first, as many as it may get.
        budget: directions in all. Where shares are equal, the earlier direction, then the earlier projection gets it.
    """
    order = [(-share, index, site) for site, own in shares.items() for index, share in enumerate(own)]
    order.sort(key=lambda entry: entry[:2])  # stable: sites stay in network order
    chosen = [site for *_, site in order[:budget]]
    return {site: chosen.count(site) for site in shares}
