"""Convpass (Jie and Deng, arXiv:2207.07039): convolutional bypasses beside attention and MLP.

x <- x + DropPath(Attn(LN1 x)) + DropPath(f(LN1 x)), then the same with MLP and LN2, the two draws of drop-path
independent; f(z) = s U drop(g(conv(g(D z)))) with g quick_gelu and a 3x3 convolution over the grid of patches. The
class token, and any other token that is no patch, passes through the convolution alone, as an image of one pixel.
As in the authors' code (JieShibo/PETL-ViT, MIT: convpass/vtab/convpass.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._structural import blocks, install_parts, is_vit, per_block, place, width_of
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Rate
from headwise.wrappers.bypass import CONVS, Bypassed, ConvBypass
from headwise.wrappers.wrapping import check_block


@dataclass(frozen=True, kw_only=True)
class Convpass(Method):
    """A bypass beside each attention and each MLP, or beside attention only; stays in place. Starts at the identity.

    D is Xavier uniform, U zero, biases zero. Parameters per bypass: 2 C h + 9 h^2 + 2 h + C, 13,648 at h = 8 on
    ViT-B/16: 327,552 for two per block, 163,776 beside attention only. On Swin the grid is the stage's, not a window's.

    Licence: MIT (JieShibo/PETL-ViT).
    Not for: Tokens without a grid. Networks that must stay plain timm models: it stays in place.

    Attributes:
        hidden: h, in 1 .. C.
        scale: s, constant; the authors choose among {0.01 .. 100} per task.
        dropout: of the hidden, in [0, 1).
        conv: how the convolution starts: identity, or xavier (uniform); the authors choose per task.
        mlp: whether there are bypasses beside the MLPs too (convpass), or beside attention only (convpass_attn).
    """

    targets: Sequence[str] = ()
    hidden: Count = 8
    scale: Factor = 1.0
    dropout: Rate = 0.1
    conv: str = "identity"
    mlp: bool = True
    merges: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("conv", self.conv, CONVS, f" of method {self.label!r}")

    def count(self, net: Backbone) -> int:
        """2 C h + 9 h^2 + 2 h + C per bypass."""
        h = self.hidden
        return (2 if self.mlp else 1) * per_block(net, lambda c: 2 * c * h + 9 * h**2 + 2 * h + c)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap every block; ConfigError for a hidden width out of range, unknown halves, or patches on no grid."""
        members = list(blocks(net))
        # all of them before the first is wrapped: a network that is refused stays as it was
        for _, _, block in members:
            check_block(block)
        grid = patch_grid(net, self)
        parts: dict[str, nn.Module] = {}
        for key, path, _ in members:
            made = [
                ConvBypass(
                    width_of(net, key), self.hidden, grid, conv=self.conv, dropout=self.dropout, scale=self.scale
                )
                for _ in range(2 if self.mlp else 1)
            ]
            attn, mlp = made[0], made[1] if self.mlp else None
            parts |= {f"{key}.convpass_{name}": part for name, part in zip(("attn", "mlp"), made, strict=False)}
            place(net, path, functools.partial(Bypassed, model=net.model, beside_attn=attn, beside_mlp=mlp))
        return install_parts(net, parts)


def patch_grid(net: Backbone, method: Method) -> tuple[int, int] | None:
    """(rows, columns) of a ViT's patches; None on Swin, whose blocks get grids.

    Raises:
        ConfigError: where no such grid is known, or patches are dropped from it in training.
    """
    if not is_vit(net):
        return None
    model: Any = net.model
    grid = getattr(model.patch_embed, "grid_size", None)
    if grid is None or getattr(model.patch_embed, "dynamic_img_pad", False):
        raise ConfigError(
            f"method {method.label!r} convolves over the grid of patches, which {type(model.patch_embed).__name__} "
            "does not state; allowed: timm's ViT, EVA and BEiT with one size of images, and Swin"
        )
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
        raise ConfigError(
            f"method {method.label!r} convolves over the whole grid of patches, of which this network drops some in "
            "training; allowed: backbone.overrides.patch_drop_rate=0"
        )
    rows, columns = grid
    return int(rows), int(columns)
