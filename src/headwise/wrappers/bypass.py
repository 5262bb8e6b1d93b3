"""Convolutional bypasses: a 3x3 convolution between the two layers of a bottleneck, over the grid of patches.

Legend: B batch, T tokens, C channels, h hidden, R x K the grid (rows, columns).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.schema.kinds import is_whole
from headwise.wrappers.bottleneck import quick_gelu
from headwise.wrappers.prompting import before_patches
from headwise.wrappers.wrapping import Wrapper, attend, entered, feed, read_by_attention, read_by_mlp, unwrapped

CONVS = ("identity", "xavier")


class ConvBypass(nn.Module):
    """s U drop(g(conv(g(D x)))), g quick_gelu, D (h, C), conv 3x3 from h to h channels, U (C, h), all with biases.

    D starts Xavier uniform, the convolution as the identity or Xavier uniform, U and every bias zero: the start is the
    identity. Parameters: 2 C h + 9 h^2 + 2 h + C.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        grid: tuple[int, int] | None,
        *,
        conv: str = "identity",
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        """Build one bypass of `width` C; other options are those of `headwise.methods.convpass.Convpass`.

        `grid` is (R, K) of the patches in a sequence of tokens, None where inputs are grids themselves. ConfigError for
        a hidden width out of range.
        """
        super().__init__()
        if not is_whole(hidden, width):
            raise ConfigError(f"the bypass's hidden width must be in 1..{width}, got {hidden}")
        self.grid, self.scale = grid, float(scale)
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1)
        self.up = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down.weight)
        # Dirac: the middle of each channel's own kernel is 1, everything else 0
        (nn.init.dirac_ if conv == "identity" else nn.init.xavier_uniform_)(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, front: int = 0) -> Tensor:
        """Correction, same shape as x, which is tokens or a grid.

        Tokens are (B, T, C), the patches row by row behind `front` others; a grid is (B, R, K, C).
        """
        hidden = quick_gelu(self.down(x))
        mixed = self._over_grid(hidden) if self.grid is None else self._over_tokens(hidden, front)
        return self.scale * self.up(self.drop(quick_gelu(mixed)))

    def _over_tokens(self, hidden: Tensor, front: int) -> Tensor:
        rows, columns = self.grid  # type: ignore[misc]
        before, patches, after = hidden.tensor_split((front, front + rows * columns), dim=1)
        grid = self._over_grid(patches.unflatten(1, (rows, columns))).flatten(1, 2)
        return torch.cat([self._alone(before), grid, self._alone(after)], dim=1)

    def _over_grid(self, grid: Tensor) -> Tensor:
        y: Tensor = self.conv(grid.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)

    def _alone(self, tokens: Tensor) -> Tensor:
        """Tokens that are no patch, each an image of one pixel: only the middle of a kernel meets more than zeros."""
        return F.linear(tokens, self.conv.weight[:, :, 1, 1], self.conv.bias)


class Bypassed(Wrapper):
    """A block with bypasses beside its attention and its MLP.

    Each reads what attention and MLP read (of the LayerNorm before them, in most blocks), and has a draw of its own of
    the block's drop-path; a layer scale of the block does not reach it.

    Attributes:
        beside_attn, beside_mlp: the bypasses; None for none.
    """

    disturbable = True

    def __init__(
        self, inner: nn.Module, model: nn.Module, beside_attn: ConvBypass, beside_mlp: ConvBypass | None
    ) -> None:
        """Put bypasses beside the halves of a block of `model`."""
        super().__init__(inner)
        self.beside_attn = beside_attn
        self.beside_mlp = beside_mlp
        self._model = (model,)  # no part of this module

    def attend(self, x: Tensor, **beside: Any) -> Tensor:
        """The block's first half, and the bypass beside its attention."""
        own: Any = unwrapped(self.inner)
        correction = self.beside_attn(read_by_attention(own, entered(self.inner, x)), self._front())
        return attend(self.inner, x, **beside) + unwrapped(own.drop_path1)(self.disturbed(correction))

    def feed(self, x: Tensor) -> Tensor:
        """What the second half adds, and the bypass beside its MLP."""
        y = feed(self.inner, x)
        if self.beside_mlp is None:
            return y
        own: Any = unwrapped(self.inner)
        correction = self.disturbed(self.beside_mlp(read_by_mlp(own, x), self._front()))
        return y + unwrapped(own.drop_path2)(correction)

    def _front(self) -> int:
        """Tokens before the first patch at this moment: prompts of a later phase move it."""
        return 0 if self.beside_attn.grid is None else before_patches(self._model[0])
