"""QLoRA (Dettmers et al., arXiv:2305.14314): LoRA beside projections that are held in 4 bits per weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method, Plan, per_projection
from headwise.network.backbone import Backbone
from headwise.network.nf4 import FourBit, four_bit
from headwise.schema.kinds import Count, Factor, Rate
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from headwise.wrappers.settling import BesideLinear


@dataclass(frozen=True, kw_only=True)
class QLoRA(Method):
    """y = dequantised(W) x + b + s B A x; every projection of every block is held in 4 bits, the targets are adapted.

    Quantising moves the logits, so the start is not the pretrained network. Nothing is folded into 4-bit weights, which
    would lose it: the update stays beside them, and a later phase stands beside both. Patch embedding, norms, biases
    and the head keep their precision. Parameters: r * (I + O) per target, as LoRA.

    NF4: blocks of 64 weights are divided by their largest magnitude, and each entry becomes the nearest of 16
    published values; the magnitudes take 8 bits. ViT-B/16 takes 43.8 MB so instead of 339.7 MB. Weights are
    dequantised where they are used, forward and backward: no dense weight stays alive. A second phase that needs
    dense weights (such as PiSSA, DoRA, LoRA-GA, LoRA-XS, BOFT, CaRA, RepAdapter, SPT, SSF, peft's, full) is refused
    before the first one trains.

    Licence: MIT (artidoro/qlora).
    Not for: Networks that fit in memory as they are: 4 bits move the logits. Exporting a plain timm model.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant (peft's alpha / r).
        dropout: of the hidden A x, in [0, 1).
        double: whether the magnitudes of the blocks of 64 are quantised as well (4.13 instead of 4.5 bits per weight).
        base: who holds the 4-bit weights: ``nf4`` (here) or ``bitsandbytes`` (that library, if it is installed).
    """

    rank: Count
    scale: Factor = 1.0
    dropout: Rate = 0.0
    double: bool = True
    base: str = "nf4"

    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 10.0

    def count(self, net: Backbone) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def build(self, site: Site, base: Tensor) -> Delta:
        """One group of rows: the update is shared by all heads."""
        return LowRank(site, base, self.rank, groups=1, scale=self.scale, dropout=self.dropout)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Quantise every projection that is not yet, and put the updates beside.

        Raises:
            ConfigError: if a projection still carries another update, or has no weight to quantise.
        """
        for site in net.sites:
            module = net.linear(site)
            if isinstance(module, AdaptedLinear):
                raise ConfigError(f"{site.key} already carries a delta; merge it before installing another")
            if isinstance(module, nn.Linear):
                net.replace(site, four_bit(module, self.base, self.double))
            elif not isinstance(module, FourBit | BesideLinear):
                raise ConfigError(f"{site.key} is a {type(module).__name__} without a dense weight to quantise")
        installed = super().install(net, plan)
        layers = [module for module in net.model.modules() if isinstance(module, FourBit)]
        count = sum(layer.in_features * layer.out_features for layer in layers)
        size = sum(layer.num_bytes for layer in layers)
        # what the 4-bit weights take, beside as many of float32
        installed.facts = {"base": {"weights": count, "bytes": size, "float32_bytes": 4 * count}}
        return installed
