"""Serial adapters: Houlsby et al. (arXiv:1902.00751), Pfeiffer et al. (arXiv:2005.00247), VPT's, and Adapter+.

y <- y + s U drop(act(D y)), y the output of attention or MLP before its residual and drop-path (houlsby, pfeiffer), or
of the whole block after its last residual (post: Steitz and Roth, arXiv:2406.06820).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from headwise.errors import ConfigError, suggest
from headwise.methods._structural import blocks, install_parts, per_block, place, refuse_targets, width_of
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.wrapping import After, AfterBlock, unwrapped

PLACES = {"houlsby": ("attn", "mlp"), "pfeiffer": ("mlp",), "post": ("",)}
"""What an adapter stands behind, by its path within the block."""
INITS = ("houlsby", "lora")


@dataclass(frozen=True, kw_only=True)
class Adapters(Method):
    """A bottleneck after each MLP (pfeiffer), each attention and each MLP (houlsby), or each block (post); stays.

    Parameters per adapter: 2 C h, with biases + h + C, with channel scales + C. ViT-B/16: houlsby h = 8 with biases
    313,536; pfeiffer h = 8 without 147,456; h = 3 with biases 64,548; h = 12 with biases 230,544; post h = 8 with
    biases and channel scales 165,984.

    What is called ``pfeiffer`` differs between codes. Here it reads the MLP's output before the residual, which
    Adapter+ calls "intermediate"; the adapter that Adapter+ calls "pfeiffer" reads the sum after the residual, through
    a LayerNorm of its own. ``post`` reads that sum without one.

    Attributes:
        placement: houlsby, pfeiffer or post.
        hidden: h, in 1 .. C.
        bias: of both layers.
        init: lora (D Kaiming uniform, U zero: the identity) or houlsby (both normal with std 0.01, cut at 0.02). Both
            sides zero, as in VPT's own code, could never learn and cannot be asked for.
        activation: relu, gelu or quick_gelu.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
        train_ln: whether the blocks' LayerNorms train too (the original adapters), + 4 C per block.
        channel_scale: whether a trained factor per channel, 1 at the start and not decayed, multiplies the correction.
        drop_path: probability with which an adapter leaves out the correction of a whole sample in training, in [0, 1).
    """

    targets: Sequence[str] = ()
    placement: str
    hidden: Count
    bias: bool = True
    init: str = "lora"
    activation: str = "gelu"
    scale: Factor = 1.0
    dropout: Rate = 0.0
    train_ln: bool = False
    channel_scale: bool = False
    drop_path: Rate = 0.0
    merges: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_targets(self)
        if self.placement not in PLACES:
            raise ConfigError(f"unknown adapter placement {self.placement!r}{suggest(self.placement, PLACES)}")
        if self.init not in INITS:
            raise ConfigError(f"unknown adapter init {self.init!r}{suggest(self.init, INITS)}")

    @property
    def identity_tolerance(self) -> float:  # type: ignore[override]
        """Wide where both matrices start off zero."""
        return Method.identity_tolerance if self.init == "lora" else 1.0

    def spec(self) -> dict[str, Any]:
        """As `Method.spec`, without the parts that these adapters do not have."""
        values = super().spec()
        return {name: v for name, v in values.items() if v or name not in ("channel_scale", "drop_path")}

    def count(self, net: Backbone) -> int:
        """2 C h per adapter, with biases + h + C, with channel scales + C; norms 4 C per block."""
        hidden = self.hidden

        def cost(c: int) -> int:
            adapter = 2 * c * hidden + (hidden + c if self.bias else 0) + (c if self.channel_scale else 0)
            return len(PLACES[self.placement]) * adapter + (4 * c if self.train_ln else 0)

        return per_block(net, cost)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap attention and MLP of every block, or the block.

        Raises:
            ConfigError: for a hidden width out of range.
        """
        parts: dict[str, nn.Module] = {}
        for key, path, block in blocks(net):
            for name in PLACES[self.placement]:
                part = Bottleneck(
                    width_of(net, key),
                    self.hidden,
                    activation=self.activation,
                    bias=self.bias,
                    dropout=self.dropout,
                    scale=self.scale,
                    init=self.init,
                    channel_scale=self.channel_scale,
                    drop_path=self.drop_path,
                )
                parts[f"{key}.adapter_{name or 'block'}"] = part
                place(net, f"{path}.{name}".rstrip("."), functools.partial(After if name else AfterBlock, part=part))
            if self.train_ln:
                own: Any = unwrapped(block)
                parts[f"{key}.norm1"], parts[f"{key}.norm2"] = unwrapped(own.norm1), unwrapped(own.norm2)
        return install_parts(net, parts)
