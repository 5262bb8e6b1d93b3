"""Compacter (Karimi Mahabadi et al., arXiv:2106.04647): adapters whose layers are sums of Kronecker products.

y <- y + U(gelu(D y)) after attention and after the MLP, before the residual. Each layer's weight, inputs by outputs, is
sum_i A_i (x) (s_i t_i^T), with A_i (n, n) shared by all layers, s_i (I / n) and t_i (O / n) of its own.

Legend: I/O features, b bottleneck, n Kronecker terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._structural import blocks, install_parts, per_block, place, width_of
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Positive
from headwise.wrappers.wrapping import After


class SharedRule(nn.Module):
    """A_1 .. A_n, (n, n, n), normal."""

    def __init__(self, terms: int, std: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(terms, terms, terms).normal_(0.0, std))


class KroneckerLinear(nn.Module):
    """x H (+ b), H = sum_i A_i (x) s_i t_i^T, (I, O). Parameters of its own: I + O, with bias + O."""

    def __init__(self, rule: SharedRule, num_inputs: int, num_outputs: int, bias: bool) -> None:
        super().__init__()
        terms = rule.A.shape[0]
        for name, size in (("inputs", num_inputs), ("outputs", num_outputs)):
            if size % terms:
                raise ConfigError(f"terms must divide the {size} {name} of a Compacter layer, got {terms}")
        self.rule = rule
        self.s = nn.Parameter(_xavier(terms, num_inputs // terms))
        self.t = nn.Parameter(_xavier(terms, num_outputs // terms))
        self.bias = nn.Parameter(torch.zeros(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., O) for x (..., I)."""
        # outputs (b, d) before inputs (a, c): the transpose of H, as a linear layer holds it
        weight = torch.einsum("nab,nc,nd->bdac", self.rule.A, self.s, self.t)
        return F.linear(x, weight.flatten(2).flatten(0, 1), self.bias)


def _xavier(terms: int, size: int) -> Tensor:
    """Xavier uniform with gain sqrt 2, each row drawn as a (size, 1) matrix: (terms, size)."""
    bound = math.sqrt(2.0) * math.sqrt(6.0 / (size + 1))
    return torch.empty(terms, size).uniform_(-bound, bound)


class KroneckerBottleneck(nn.Module):
    """U(gelu(D y)), gelu in its tanh form."""

    def __init__(self, rule: SharedRule, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.down = KroneckerLinear(rule, width, hidden, bias)
        self.up = KroneckerLinear(rule, hidden, width, bias)

    def forward(self, y: Tensor) -> Tensor:
        """Correction, same shape as y (..., C)."""
        return self.up(F.gelu(self.down(y), approximate="tanh"))


@dataclass(frozen=True, kw_only=True)
class Compacter(Method):
    """Kronecker adapters; stay in place. Start slightly off the identity.

    Parameters: 2 (C + b) per adapter, with biases + b + C, and n^3 shared; ViT-B/16, n = 4, b = 32, two per block:
    38,464 (the size that Heart-LoRA prints), with biases 57,664. The original (T5) has n in {4, 8, 12}, b = C / 32
    (24 here) and biases.

    Licence: MIT, by setup.py (rabeehk/compacter, which has no licence file).
    Not for: Networks that must stay plain timm models: it stays in place.

    Attributes:
        terms: n; divides C and b.
        hidden: b.
        bias: of both layers.
        std: of A_i at the start; larger than 0. The authors' configurations have 1e-4, their class 0.01.
        plus_plus: Compacter++, after the MLP only.
    """

    targets: Sequence[str] = ()
    terms: Count = 4
    hidden: Count = 32
    bias: bool = False
    std: Positive = 1e-4
    plus_plus: bool = False
    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 10.0

    def count(self, net: Backbone) -> int:
        places, biases = 1 if self.plus_plus else 2, self.bias
        return self.terms**3 + per_block(
            net, lambda c: places * (2 * (c + self.hidden) + (c + self.hidden if biases else 0))
        )

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Wrap attention and MLP of every block; ConfigError if n does not divide a width."""
        rule = SharedRule(self.terms, self.std)
        # first, so that the tensor which all layers share is stored under this name
        parts: dict[str, nn.Module] = {"shared": rule}
        for key, path, _ in blocks(net):
            for name in ("mlp",) if self.plus_plus else ("attn", "mlp"):
                part = KroneckerBottleneck(rule, width_of(net, key), self.hidden, self.bias)
                parts[f"{key}.compacter_{name}"] = part
                place(net, f"{path}.{name}", functools.partial(After, part=part))
        return install_parts(net, parts)
