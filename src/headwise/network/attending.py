"""What every head of every block attends to, read off a network without changing what it computes.

torch's fused attention gives no weights, so timm's plain one computes them beside it, from the same input, in a hook.

Legend: B batch, T tokens, H heads, W windows of an image, N tokens of a window, F fields.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.network.backbone import Backbone
from headwise.wrappers.prompting import WindowPrompts
from headwise.wrappers.wrapping import unwrapped


@dataclass(frozen=True)
class Windows:
    """How a Swin block cuts its tokens, a grid, into windows of a size, with a shift: (height, width) each."""

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]

    def split(self, field: Tensor) -> Tensor:
        """A field over the tokens, (B, T, F), as windows, (B, W, N, F), padded with zeros."""
        (height, width), (high, wide) = self.grid, self.size
        x = field.reshape(field.shape[0], height, width, -1)
        x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
        x = x.unflatten(2, (-1, wide)).unflatten(1, (-1, high))  # (B, rows, high, columns, wide, F)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """The opposite of `split`: windows, (B, W, N, F), stitched, (B, T, F)."""
        (height, width), (high, wide) = self.grid, self.size
        x = windows.unflatten(1, (-1, -(-width // wide))).unflatten(3, (high, wide)).transpose(2, 3)
        x = x.flatten(1, 2).flatten(2, 3)[:, :height, :width]
        return torch.roll(x, self.shift, (1, 2)).flatten(1, 2)


@dataclass(frozen=True)
class Attention:
    """The attention of one block on some images.

    Attributes:
        stage, block: of it.
        weights: (B, H, T, T), or of windows (B, W, H, N, N): every query's row adds up to one, prompts left aside.
        windows: how the tokens are cut; None where they all see each other.
    """

    stage: int
    block: int
    weights: Tensor
    windows: Windows | None = None

    @property
    def num_tokens(self) -> int:
        """T, of the whole image."""
        return self.weights.shape[-1] if self.windows is None else self.windows.grid[0] * self.windows.grid[1]

    def mix(self, field: Tensor) -> Tensor:
        """What attention makes of a field over the tokens, (B, T, F), the mean over the heads: (B, T, F)."""
        if self.windows is None:
            return self.weights.mean(1) @ field
        return self.windows.join(self.weights.mean(2) @ self.windows.split(field))

    def received(self) -> Tensor:
        """How much each token is attended to by all that see it, the mean over the heads: (B, T)."""
        if self.windows is None:
            return self.weights.mean((1, 2))
        return self.windows.join(self.weights.mean((2, 3)).unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def attentions(net: Backbone, images: Tensor) -> tuple[list[Attention], Tensor]:
    """The attention of every block of a ViT or a Swin for normalised images, (B, 3, S, S), and the logits.

    Updates that the network carries take part. ConfigError for attention of another kind.
    """
    seen: list[Attention] = []
    hooks = []
    try:
        for stage, index, path in net.blocks:
            block: Any = unwrapped(net.model.get_submodule(path))
            attention = unwrapped(block.attn)
            keep = functools.partial(_keep, seen, stage, index, block, images.shape[0])
            hooks.append(attention.register_forward_pre_hook(keep, with_kwargs=True))
            if isinstance(block.attn, WindowPrompts):
                raise ConfigError(
                    f"block {index} of stage {stage} has prompts in its windows, which change the token count: they "
                    "have no place in a map; allowed: methods without prompts"
                )
        logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, logits


def _keep(
    seen: list[Attention],
    stage: int,
    index: int,
    block: Any,
    num_images: int,
    module: nn.Module,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Keep the weights that the module is about to use: its own plain products give them, the fused kernel does not."""
    own: Any = module
    kept: list[Tensor] = []
    fused = getattr(own, "fused_attn", None)
    # the dropout of the weights is where every family of timm's has them in hand
    hook = own.attn_drop.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        if fused is not None:
            own.fused_attn = False
        type(own).forward(own, *arguments, **options)
    finally:
        hook.remove()
        if fused is not None:
            own.fused_attn = fused
    weights, windows = kept[0], None
    if hasattr(block, "window_size"):
        weights = weights.unflatten(0, (num_images, -1))
        windows = Windows(tuple(block.input_resolution), tuple(block.window_size), tuple(block.shift_size))
    seen.append(Attention(stage, index, weights, windows))


def rollout(blocks: list[Attention]) -> Tensor:
    """How much of each first token reaches each last one through attention and the skips around it.

    Abnar and Zuidema (2020): R = (A + 1) R / 2 block after block, A the mean over the heads. Where a Swin merges
    patches, four tokens' shares are averaged.

    Returns:
        (B, T, T0): rows are the last block's tokens and add up to one, columns the first block's.
    """
    first = blocks[0]
    num_images = first.weights.shape[0]
    field = torch.eye(first.num_tokens).expand(num_images, -1, -1).to(first.weights)
    before = first
    for at in blocks:
        if at.num_tokens != before.num_tokens:
            field = _merged(field, before, at)
        field = (at.mix(field) + field) / 2
        before = at
    return field


def _merged(field: Tensor, before: Attention, at: Attention) -> Tensor:
    """Shares of four neighbours averaged, where patches are merged: (B, T, F) to (B, T / 4, F)."""
    if before.windows is None or at.windows is None:
        raise ConfigError(f"tokens change from {before.num_tokens} to {at.num_tokens} between blocks; prompts do that")
    height, width = before.windows.grid
    # on an odd side the last patch has fewer neighbours, which timm pads with zeros
    x = field.transpose(1, 2).unflatten(2, (height, width))
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)
