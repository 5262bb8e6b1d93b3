"""The rest of a network after some block: what a change in that block needs to be computed again.

Legend: B batch, T tokens, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.network.backbone import Backbone


class Suffix:
    """A network in evaluation mode that can go on from the input of any block.

    `places` are (stage, block) of every block, in network order.
    """

    def __init__(self, net: Backbone) -> None:
        """Find the blocks; ConfigError for a network that is not a ViT or a Swin."""
        model: Any = net.model
        if not hasattr(model, "norm") or not hasattr(model, "forward_head"):
            raise ConfigError(
                f"{type(model).__name__} does not end in a norm and a head, so no part of it can be computed alone; "
                "allowed: timm's ViT and Swin-V1"
            )
        self.net = net
        self.places = [(stage, block) for stage, block, _ in net.blocks]
        self._blocks: list[nn.Module] = [model.get_submodule(path) for _, _, path in net.blocks]

    def inputs(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """What every block gets of normalised images, (B, 3, S, S), and the logits, (B, K).

        It is one tensor per block, (B, T, C) of a ViT and (B, height, width, C) of a Swin.
        """
        seen: list[Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])) for block in self._blocks
        ]
        try:
            logits: Tensor = self.net(images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen, logits

    def resume(self, index: int, x: Tensor, until: int | None = None) -> Tensor:
        """Go on from the input x of the block at `index` of `places`.

        It gives the logits, (B, K), or the input of a later block, `until`.
        """
        model: Any = self.net.model
        stop = len(self._blocks) if until is None else until
        for at in range(index, stop):
            if at > index:
                x = self._between(at, x)
            x = self._blocks[at](x)
        if until is not None:
            return self._between(until, x) if until > index else x
        return model.forward_head(model.norm(x))

    def _between(self, at: int, x: Tensor) -> Tensor:
        """What a Swin does where a block begins a stage: merge patches."""
        stage, block = self.places[at]
        if block or not stage:
            return x
        model: Any = self.net.model
        return model.layers[stage].downsample(x)

    @torch.no_grad()
    def check(self, images: Tensor) -> None:
        """Check that going on from a block gives the network's own logits, to the last bit.

        Raises:
            ConfigError: if it does not: something between the blocks is not known here.
        """
        seen, logits = self.inputs(images)
        if len(seen) != len(self._blocks):
            raise ConfigError(f"the network runs {len(seen)} blocks, it has {len(self._blocks)}")
        for index in {0, len(seen) // 2, len(seen) - 1}:
            if not torch.equal(self.resume(index, seen[index]), logits):
                raise ConfigError(
                    f"{type(self.net.model).__name__} computes more between block {index} and its end than its blocks; "
                    "allowed: timm's ViT and Swin-V1"
                )
