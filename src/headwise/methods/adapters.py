"""Adapters: Houlsby et al. (arXiv:1902.00751), Pfeiffer et al. (arXiv:2005.00247), VPT's, and Adapter+.

y <- y + s U drop(act(D y)), y the output of attention or MLP before its residual and drop-path (houlsby, pfeiffer) or
behind its drop-path; or those of Adapter+ (Steitz and Roth, arXiv:2406.06820) on the residual stream: y the sum after
the block's last residual (post) or after attention's (pre), or what is added there read from before the MLP (parallel).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._structural import blocks, install_parts, per_block, place, width_of
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.wrapping import After, AfterBlock, Beside, Between, Wrapper, check_block, unwrapped

BRANCHES = {"houlsby": ("attn", "mlp"), "pfeiffer": ("mlp",)}
"""Placements in the branches of a block, with what an adapter stands behind."""
STREAM: dict[str, Callable[[nn.Module, nn.Module], Wrapper]] = {"post": AfterBlock, "pre": Between, "parallel": Beside}
"""Placements on the residual stream, with what is put around the block."""
PLACES = (*BRANCHES, *STREAM)
DROP_PATHS = {"attn": "drop_path1", "mlp": "drop_path2"}
"""The last module of the branch that ends attention or MLP."""
INITS = ("houlsby", "lora", "lora_bias", "bert")


@dataclass(frozen=True, kw_only=True)
class Adapters(Method):
    """A bottleneck in the branches of each block (houlsby, pfeiffer) or on its residual stream (post, pre, parallel).

    It stays in place. Parameters per adapter: 2 C h, with biases + h + C, with channel scales + C, with a learned scale
    + 1, with a norm + 2 C. ViT-B/16: houlsby h = 8 with biases 313,536; pfeiffer h = 8 without 147,456; h = 3 with
    biases 64,548; h = 12 with biases 230,544; one per block, h = 8 with biases 156,768, with channel scales 165,984,
    with a norm 175,200.

    What is called ``pfeiffer`` differs between codes. Here it reads the MLP's output before the residual; with
    ``outside`` that is Adapter+'s "intermediate". The adapter that Adapter+ calls "pfeiffer" reads the sum after the
    residual through a LayerNorm of its own: ``post`` with ``norm``.

    Licence: Apache-2.0 (adapter-hub/adapters, visinf/adapter_plus), CC-BY-NC-4.0 (KMnP/vpt).
    Not for: Networks that must stay plain timm models, or run as fast as one: adapters stay in place.

    Attributes:
        placement: houlsby (behind attention and MLP), pfeiffer (behind the MLP), post (behind the block), pre (between
            its halves) or parallel (beside the MLP, on what goes into its LayerNorm).
        hidden: h, in 1 .. C.
        bias: of both layers.
        init: lora (D Kaiming uniform, U zero: the identity), lora_bias (the same, D's bias uniform in +-1/sqrt(C) as
            torch's Linear has it), houlsby (both normal with std 0.01, cut at 0.02) or bert (both normal with std
            0.02). Both sides zero, as in VPT's own code, could never learn and cannot be asked for.
        activation: relu, gelu or quick_gelu.
        scale: s, constant.
        dropout: of the hidden, in [0, 1).
        train_ln: whether the blocks' LayerNorms train too (the original adapters), + 4 C per block.
        channel_scale: whether a trained factor per channel, 1 at the start and not decayed, multiplies the correction.
        drop_path: probability with which an adapter leaves out the correction of a whole sample in training, in [0, 1).
        learned_scale: whether one trained factor does, in place of one per channel.
        norm: whether it reads through a LayerNorm of its own, which is not decayed.
        outside: whether houlsby and pfeiffer stand behind the layer scale and drop-path of their branch (Adapter+).
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
    learned_scale: bool = False
    norm: bool = False
    outside: bool = False
    merges: ClassVar[bool] = False
    later: ClassVar[Mapping[str, Any]] = {
        "channel_scale": False,
        "drop_path": 0.0,
        "learned_scale": False,
        "norm": False,
        "outside": False,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("adapter placement", self.placement, PLACES)
        check_choice("adapter init", self.init, INITS)
        if self.init == "lora_bias" and not self.bias:
            raise ConfigError(
                f"method {self.label!r} has no bias to draw, got init=lora_bias; allowed: lora, bias=true"
            )
        if self.learned_scale and self.channel_scale:
            raise ConfigError(
                f"method {self.label!r} is scaled once, got learned_scale=true and channel_scale=true; allowed: one"
            )
        if self.outside and self.placement not in BRANCHES:
            raise ConfigError(
                f"placement {self.placement} of method {self.label!r} is outside of any branch, got outside=true; "
                f"allowed: with {', '.join(BRANCHES)}"
            )

    @property
    def identity_tolerance(self) -> float:  # type: ignore[override]
        """Wide where both matrices start off zero."""
        return Method.identity_tolerance if self.init in ("lora", "lora_bias") else 1.0

    def count(self, net: Backbone) -> int:
        """2 C h per adapter, with biases + h + C, with scales + C or 1, with a norm + 2 C; norms 4 C per block."""
        hidden, places = self.hidden, len(BRANCHES.get(self.placement, ("",)))

        def cost(c: int) -> int:
            adapter = 2 * c * hidden + (hidden + c if self.bias else 0) + (2 * c if self.norm else 0)
            scales = (c if self.channel_scale else 0) + int(self.learned_scale)
            return places * (adapter + scales) + (4 * c if self.train_ln else 0)

        return per_block(net, cost)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap attention and MLP of every block, the ends of their branches, or the block.

        Raises:
            ConfigError: for a hidden width out of range, or blocks whose halves must be known and are not.
        """
        parts: dict[str, nn.Module] = {}
        for key, path, block in blocks(net):
            if self.outside or self.placement in ("pre", "parallel"):
                check_block(block)
            for name in BRANCHES.get(self.placement, ("block",)):
                part = self._part(width_of(net, key))
                parts[f"{key}.adapter_{name}"] = part
                where = DROP_PATHS[name] if self.outside else name
                around: Callable[..., Wrapper] = STREAM.get(self.placement, After)
                place(net, path if name == "block" else f"{path}.{where}", functools.partial(around, part=part))
            if self.train_ln:
                own: Any = unwrapped(block)
                # the norms themselves: parts that earlier phases put around them stay frozen
                parts[f"{key}.norm1"], parts[f"{key}.norm2"] = unwrapped(own.norm1), unwrapped(own.norm2)
        return install_parts(net, parts)

    def _part(self, width: int) -> Bottleneck:
        return Bottleneck(
            width,
            self.hidden,
            activation=self.activation,
            bias=self.bias,
            dropout=self.dropout,
            scale=self.scale,
            init=self.init,
            channel_scale=self.channel_scale,
            drop_path=self.drop_path,
            learned_scale=self.learned_scale,
            norm=self.norm,
        )
