"""VPT (Jia et al., arXiv:2203.12119): trainable tokens after CLS, at the input or at every block.

Shallow: [CLS; P; patches] enters the first block, position embeddings being added before. Deep: block l sees its own
P_l in place of what block l - 1 made of P_(l-1). Prompts leave before the final norm, so pooling never sees them. On
Swin (deep only) the prompts of a block join each of its windows with zero relative bias, and are gone after its
attention.

Legend: p prompts, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._structural import (
    blocks,
    install_parts,
    is_vit,
    place,
    require_plain_positions,
    require_vit,
    width_of,
)
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import NumPrompts, Rate
from headwise.wrappers.prompting import Prompted, Prompts, WindowPrompts, before_patches
from headwise.wrappers.wrapping import unwrapped

BOUNDS = ("width", "prompts")


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Prompts at the input, or of its own for every block (deep); stays in place. Starts off the identity.

    Parameters: p C, 768 p on ViT-B/16; deep per block, 9,216 p. The papers choose p from {1, 5, 10, 50, 100, 200} per
    task. Uniform in +-sqrt(6 / (3 P^2 + C)) with P the side of a patch. Shallow is defined on ViT only.

    Licence: CC-BY-NC-4.0 (KMnP/vpt), not read; values per task from visinf/adapter_plus, Apache-2.0.
    Not for: Short steps: attention grows with the prompts. Networks that must stay plain timm models. One number of
    prompts for every task: the papers choose it.

    Attributes:
        deep: whether every block has prompts.
        prompts: p, in 1 .. 200.
        dropout: of prompt entries, in [0, 1).
        bound: what stands for C in the bound of the start: width, or prompts (p, as in Adapter+'s code).
    """

    targets: Sequence[str] = ()
    deep: bool
    prompts: NumPrompts
    dropout: Rate = 0.0
    bound: str = "width"
    merges: ClassVar[bool] = False
    later: ClassVar[Mapping[str, Any]] = {"bound": "width"}
    identity_tolerance: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("bound", self.bound, BOUNDS, f" of method {self.label!r}")

    @property
    def networks(self) -> tuple[str, ...]:  # type: ignore[override]
        """Swin's windows have no common input."""
        return ("vit", "swin") if self.deep else ("vit",)

    def count(self, net: Backbone) -> int:
        """p C at the input, or in every block."""
        widths = [width_of(net, key) for key, _, _ in blocks(net)]
        return self.prompts * sum(widths if self.deep else widths[:1])

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap every block, on Swin its attention; or the first block alone. And the final norm of a ViT.

        Raises:
            ConfigError: for shallow prompts on a network that is no ViT, or attention without Swin's windows.
        """
        if self.deep and not is_vit(net):
            return self._install_swin(net)
        require_vit(net, self)
        require_plain_positions(net, self)
        return self._install_vit(net)

    def _prompts(self, net: Backbone, width: int) -> Prompts:
        """The prompts of one block."""
        model: Any = net.model
        rows, columns = model.patch_embed.patch_size
        beside = self.prompts if self.bound == "prompts" else width
        return Prompts(self.prompts, width, math.sqrt(6.0 / (3 * rows * columns + beside)), self.dropout)

    def _install_vit(self, net: Backbone) -> Installed:
        """Put prompts behind the tokens before the patches, at the first block or all, and out before the norm."""
        model: Any = net.model
        front = before_patches(model)
        parts: dict[str, nn.Module] = {}
        for index, (key, path, _) in enumerate(blocks(net)):
            if index and not self.deep:
                break
            part = self._prompts(net, width_of(net, key))
            parts[f"{key}.prompts"] = part
            # prompts of an earlier phase are not there yet at the first block, which puts them before these; deep: from
            # the second block on, p tokens at this place are the block's before and give way
            offset, replaced = (front, self.prompts) if index else (int(model.num_prefix_tokens), 0)
            place(net, path, functools.partial(Prompted, prompts=part, offset=offset, replaced=replaced))
        place(net, "norm", lambda inner: Prompted(inner, None, front, self.prompts))
        return install_parts(net, parts)

    def _install_swin(self, net: Backbone) -> Installed:
        parts: dict[str, nn.Module] = {}
        for key, path, block in blocks(net):
            own: Any = unwrapped(block)
            if not hasattr(unwrapped(own.attn), "_get_rel_pos_bias"):
                raise ConfigError(
                    f"method {self.label!r} is defined for networks with windows of Swin-V1 or one token sequence, got "
                    f"attention {type(unwrapped(own.attn)).__name__}; allowed: timm's ViT and Swin-V1"
                )
            part = self._prompts(net, width_of(net, key))
            parts[f"{key}.prompts"] = part
            norm = own.norm1
            place(net, f"{path}.attn", functools.partial(WindowPrompts, prompts=part, norm=norm))
        return install_parts(net, parts)
