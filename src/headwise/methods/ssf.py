"""SSF (Lian et al., arXiv:2210.08823): a scale and a shift after every linear operation of the network.

y <- gamma * y + beta per channel, after the patch convolution, every projection and every LayerNorm. Both fold into the
weights: W <- diag(gamma) W, b <- gamma b + beta.

Legend: O output channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._structural import install_parts, place, refuse_four_bits
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import AtLeast0
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import QKV
from headwise.wrappers.wrapping import Corrected, pretrained_modules, with_affine


class ScaleShift(nn.Module):
    """gamma * y + beta over the channels; without a shift where a layer has no bias to fold it into."""

    undecayed = ("scale", "shift")

    def __init__(self, layers: Sequence[Any], std: float) -> None:
        """Draw both for layers that lie side by side."""
        super().__init__()
        self.sizes = [layer.weight.shape[0] for layer in layers]
        self.shifted = [layer.bias is not None for layer in layers]
        self.scale = nn.Parameter(torch.empty(sum(self.sizes)).normal_(1.0, std))
        num_shifts = sum(size for size, shifts in zip(self.sizes, self.shifted, strict=True) if shifts)
        self.shift = nn.Parameter(torch.empty(num_shifts).normal_(0.0, std)) if num_shifts else None

    def shifts(self) -> list[Tensor | None]:
        """The shift of each layer, (O',), None where it has none."""
        if self.shift is None:
            return [None] * len(self.sizes)
        pieces = iter(self.shift.split([size for size, has in zip(self.sizes, self.shifted, strict=True) if has]))
        return [next(pieces) if has else None for has in self.shifted]

    def forward(self, y: Tensor) -> Tensor:
        """Scaled and shifted y, (..., O)."""
        y = y * self.scale
        if self.shift is None or all(self.shifted):
            return y if self.shift is None else y + self.shift
        whole = zip(self.shifts(), self.sizes, strict=True)
        return y + torch.cat([self.shift.new_zeros(size) if shift is None else shift for shift, size in whole])


class Rescaled(Corrected):
    """A linear, a split qkv, a LayerNorm or a convolution (channels in axis 1) followed by `ScaleShift`."""

    part: ScaleShift

    def forward(self, x: Tensor) -> Tensor:
        """Output of the inner module, rescaled."""
        y: Tensor = self.inner(x)
        return self._scaled(y.movedim(1, -1)).movedim(-1, 1) if isinstance(self.inner, nn.Conv2d) else self._scaled(y)

    def _scaled(self, y: Tensor) -> Tensor:
        """Rescaled y, (..., O); under noise what that changes in y is disturbed."""
        scaled: Tensor = self.part(y)
        return scaled if self.noise is None else y + self.disturbed(scaled - y)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The inner module with both folded into its weight and bias."""
        scale, shifts = self.part.scale, self.part.shifts()
        if not isinstance(self.inner, SplitQKV):
            return _folded(self.inner, scale, shifts[0])
        for proj, part, gamma, beta in zip(QKV, self.inner.parts, scale.chunk(len(QKV)), shifts, strict=True):
            setattr(self.inner, proj, _folded(part, gamma, beta))
        self.inner.join()
        return self.inner


def _folded(module: Any, scale: Tensor, shift: Tensor | None) -> nn.Module:
    # gamma scales output channels, the first axis of linear, norm and convolution weights alike
    weight = module.weight * scale.view(-1, *[1] * (module.weight.ndim - 1))
    return with_affine(module, weight, None if shift is None else module.bias * scale + shift)


@dataclass(frozen=True, kw_only=True)
class SSF(Method):
    """Scale and shift after every linear operation outside the head; folds into the weights.

    On ViT: patch convolution, norm1, qkv, proj, norm2, fc1, fc2 of each block, final norm; on Swin also the norms and
    reductions of patch merging (no bias there, hence no shift). Neither is decayed: decay would pull gamma to 0.
    Parameters: 2 per output channel, 205,824 on ViT-B/16. Starts off the identity: gamma ~ N(1, std^2),
    beta ~ N(0, std^2).

    Licence: No licence (dongzelian/SSF), not read.
    Not for: Tight memory: it keeps the activations of every layer.

    Attributes:
        std: of both draws at the start, at least 0.
    """

    targets: Sequence[str] = ()
    std: AtLeast0 = 0.02
    identity_tolerance: ClassVar[float] = 10.0

    def count(self, net: Backbone) -> int:
        """A scale per output channel outside the head, and a shift where there is a bias."""
        sizes = (
            module.weight.shape[0] * (1 if module.bias is None else 2)
            for _, path, module in pretrained_modules(net.model)
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d) and path.partition(".")[0] != "head"
        )
        return sum(sizes)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap every linear operation; ConfigError if a projection carries another update, or is held in 4 bits."""
        refuse_four_bits(net, self)
        keys = {path: f"s{stage}.b{block}" for stage, block, path in net.blocks}
        heads = set(map(id, net.head.modules()))
        # collected before the first is wrapped, which changes the tree that is walked here
        operations = []
        for _, path, module in pretrained_modules(net.model):
            if isinstance(module, AdaptedLinear):
                raise ConfigError(f"{path} already carries a delta; merge it before installing another")
            kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d, SplitQKV)
            # q, k and v are one operation: the fused projection's scale, (3 d,), stands behind all three
            in_qkv = path.rpartition(".")[0].endswith(".qkv")
            if isinstance(module, kinds) and id(module) not in heads and not in_qkv:
                operations.append((path, module))
        parts: dict[str, nn.Module] = {}
        for path, module in operations:
            block = next((name for name in keys if path.startswith(f"{name}.")), None)
            name = path if block is None else keys[block] + path[len(block) :]
            layers = module.parts if isinstance(module, SplitQKV) else (module,)
            part = ScaleShift(layers, self.std)
            parts[name] = part
            place(net, path, functools.partial(Rescaled, part=part))
        return install_parts(net, parts)
