"""Prompts: trainable tokens that blocks see beside the image's own.

Legend: B batch, T tokens, C channels, p prompts, W windows x batch, N tokens of a window, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.schema.kinds import is_whole
from headwise.wrappers.wrapping import After, Wrapper, attend

LONGEST = 200
"""Most prompts of one block; the longest that the papers try."""


class Prompts(nn.Module):
    """p tokens, (p, C), uniform in +-bound, with dropout. Parameters: p C."""

    def __init__(self, count: int, width: int, bound: float, dropout: float) -> None:
        """Draw the tokens; ConfigError if `count` is not in 1 .. `LONGEST`."""
        super().__init__()
        if not is_whole(count, LONGEST):
            raise ConfigError(f"the number of a block's prompts must be in 1..{LONGEST}, got {count}")
        self.tokens = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """One copy for each sample of x (B, T, C): (B, p, C)."""
        return self.drop(self.tokens.expand(x.shape[0], -1, -1)).to(x.dtype)


class Prompted(Wrapper):
    """A block (or the final norm) whose input sequence gets prompts in place of earlier ones.

    Attributes:
        count: prompts put in; 0 only takes out.
        replaced: tokens taken out at their place.
        offset: tokens between the place and the front of the sequence, or its end with `at_end`.
    """

    disturbable = True

    def __init__(
        self, inner: nn.Module, prompts: Prompts | None, offset: int, replaced: int = 0, at_end: bool = False
    ) -> None:
        super().__init__(inner)
        self.prompts = prompts
        self.count = 0 if prompts is None else prompts.tokens.shape[0]
        self.offset, self.replaced, self.at_end = offset, replaced, at_end

    def enter(self, x: Tensor) -> Tensor:
        """The sequence with this block's prompts, (B, T', C), for x (B, T, C)."""
        first = x.shape[1] - self.offset - self.replaced if self.at_end else self.offset
        new = [] if self.prompts is None else [self.disturbed(self.prompts(x))]
        return torch.cat([x[:, :first], *new, x[:, first + self.replaced :]], dim=1)

    def attend(self, x: Tensor, **beside: Any) -> Tensor:
        """First half of the block, on the prompted sequence."""
        return attend(self.inner, self.enter(x), **beside)

    def forward(self, x: Tensor, **beside: Any) -> Tensor:
        """Output of the inner module for the prompted sequence, (B, T', C); `beside` is what it takes beside x."""
        return self.inner(self.enter(x), **beside)


class WindowPrompts(Wrapper):
    """Swin's window attention with prompts as further tokens of every window, at zero relative bias.

    They pass the block's first norm like the window's own tokens; what comes out at their places is dropped.
    """

    disturbable = True

    def __init__(self, inner: nn.Module, prompts: Prompts, norm: nn.Module) -> None:
        super().__init__(inner)
        self.prompts = prompts
        self._norm = (norm,)  # the block's own module, not a part of this one

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention output, (W, N, C), for windows x (W, N, C) and a shift mask (windows, N, N)."""
        return window_attention(self, x, mask, 0)

    def enter(self, x: Tensor) -> Tensor:
        """A window's tokens behind its prompts, (W, p + N, C), for x (W, N, C)."""
        return torch.cat([self._norm[0](self.disturbed(self.prompts(x))), x], dim=1)


def window_attention(module: nn.Module, x: Tensor, mask: Tensor | None, extra: int) -> Tensor:
    """Swin's window attention, or a wrapper's, on x, `extra` prompts before a window's tokens: (W, N, C) of these."""
    own: Any = module
    if isinstance(module, WindowPrompts):
        return window_attention(module.inner, module.enter(x), mask, extra + module.prompts.tokens.shape[0])
    if isinstance(module, After):
        y = window_attention(module.inner, x, mask, extra)
        return y + module.disturbed(module.part(y))
    windows, num_tokens, _ = x.shape
    q, k, v = own.qkv(x).reshape(windows, num_tokens, 3, own.num_heads, -1).permute(2, 0, 3, 1, 4)
    # timm's own forward has no place for further tokens: its steps stand here, with its modules
    bias = own._get_rel_pos_bias()
    if mask is not None:
        bias = bias + mask.repeat(windows // mask.shape[0], 1, 1).unsqueeze(1)
    # bias (1 or W, H, N, N) gets rows and columns of zeros for the prompts, which stand first in each window
    bias = F.pad(bias, (extra, 0, extra, 0))
    dropout = own.attn_drop.p if own.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)
    y = y[:, :, extra:].transpose(1, 2).reshape(windows, num_tokens - extra, -1)
    return own.proj_drop(own.proj(y))


def chain(module: nn.Module) -> list[Prompted]:
    """The `Prompted` wrappers around a module."""
    prompted = []
    while isinstance(module, Wrapper):
        if isinstance(module, Prompted):
            prompted.append(module)
        module = module.inner
    return prompted


def before_patches(model: nn.Module) -> int:
    """Tokens of a ViT before its first patch: its own, and prompts, which the final norm takes out."""
    own: Any = model
    return int(own.num_prefix_tokens) + sum(wrapper.replaced for wrapper in chain(own.norm) if not wrapper.at_end)
