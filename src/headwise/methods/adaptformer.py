"""AdaptFormer (Chen et al., arXiv:2205.13535): a bottleneck beside the MLP.

x <- x + DropPath(MLP(LN2 x)) + s U drop(relu(D x)), x after the attention residual and without LayerNorm.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headwise.methods._structural import beside_mlps, install_parts, per_block
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.wrappers.bottleneck import Bottleneck


@dataclass(frozen=True, kw_only=True)
class AdaptFormer(Method):
    """One bottleneck per block, parallel to the MLP and outside drop-path; stays in place.

    D is Kaiming uniform, U zero, biases zero: the start is the identity.
    Parameters: 2 C h per block, with biases + h + C; ViT-B/16, h = 8: 147,456, with biases 156,768.

    Licence: MIT (ShoufaChen/AdaptFormer).
    Not for: Networks that must stay plain timm models: it stays in place. One scale for every task: the authors
    search it.

    Attributes:
        hidden: h, in 1 .. C.
        scale: s, constant; 0.1 in the original, searched in {0.01 .. 100} by later work.
        dropout: of the hidden, in [0, 1).
        bias: of both layers.
        activation: relu, gelu or quick_gelu.
    """

    targets: Sequence[str] = ()
    hidden: Count
    scale: Factor = 0.1
    dropout: Rate = 0.1
    bias: bool = False
    activation: str = "relu"
    merges: ClassVar[bool] = False

    def count(self, net: Backbone) -> int:
        return per_block(net, lambda c: 2 * c * self.hidden + (self.hidden + c if self.bias else 0))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap every block; ConfigError for a hidden width out of range, or blocks whose halves are unknown."""
        make = functools.partial(
            Bottleneck,
            hidden=self.hidden,
            activation=self.activation,
            bias=self.bias,
            dropout=self.dropout,
            scale=self.scale,
        )
        return install_parts(net, beside_mlps(net, "adaptformer", make))
