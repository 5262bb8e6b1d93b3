"""BOFT (Liu et al., ICLR 2024, arXiv:2311.06243): the weight behind rotations that mix all inputs, in few factors.

W' = diag(c) W M', M = M_m .. M_1, and M_i = P_i diag(R_1 .. R_n) P_i': n = I / b blocks (b, b), each a rotation
R = (E - Q) (E + Q)^-1 of a skew Q (Cayley). P_i takes the even halves of blocks first and then the odd ones, within
2^(i-1) neighbouring blocks, as the stages of a fast Fourier transform do; P_1 moves nothing. One factor is OFT
(Qiu et al., arXiv:2306.07280). peft has the same, but for several factors it compiles a CUDA extension.

Legend: O/I features, b size of a block, m factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count
from headwise.updates.adapted import Delta
from headwise.updates.fused import at_least_float32
from headwise.updates.sites import Site


class ButterflyDelta(Delta):
    """diag(c) W M' - W, the skew matrices zero and c one at the start. Parameters: m I (b - 1) / 2 + O."""

    undecayed = ("c",)
    order: Tensor

    def __init__(self, site: Site, base: Tensor, block: int, factors: int) -> None:
        """Skew matrices for `base`, (O, I); ConfigError if b 2^(m - 1) does not divide I, or b is odd and m > 1."""
        super().__init__()
        num_rows, num_inputs = base.shape
        widest = block * 2 ** (factors - 1)
        if num_inputs % widest or (factors > 1 and block % 2):
            raise ConfigError(
                f"block={block} and factors={factors} do not fit {site.key}: block * 2^(factors - 1) = {widest} must "
                f"divide its {num_inputs} inputs, and block be even where there are several factors"
            )
        self.block, dtype = block, at_least_float32(base)
        entries = factors, num_inputs // block, block * (block - 1) // 2
        self.Q = nn.Parameter(torch.zeros(entries, device=base.device, dtype=dtype))
        self.c = nn.Parameter(torch.ones(num_rows, device=base.device, dtype=dtype))
        order = torch.stack([_shuffled(num_inputs, block, index) for index in range(factors)])
        self.register_buffer("order", order.to(base.device), persistent=False)

    def rotations(self) -> Tensor:
        """R of every block, (m, I / b, b, b)."""
        upper = torch.triu_indices(self.block, self.block, offset=1, device=self.Q.device)
        places = upper[0] * self.block + upper[1]
        # the upper triangle trains; the lower one is its negative, so that Q stays skew
        flat = self.Q.new_zeros(*self.Q.shape[:2], self.block**2).index_copy(2, places, self.Q)
        skew = flat.unflatten(2, (self.block, self.block))
        skew = skew - skew.mT
        unit = torch.eye(self.block, device=skew.device, dtype=skew.dtype)
        # R (E + Q) = E - Q, solved without an inverse; E + Q has one, since all eigenvalues of a skew Q are imaginary
        return torch.linalg.solve(unit + skew, unit - skew, left=False)

    def weight(self, base: Tensor) -> Tensor:
        # in bf16 a rotation would be none, and the solver has no such type
        with torch.autocast(base.device.type, enabled=False):
            wide = base.to(self.Q.dtype)
            turned = wide
            for blocks, order in zip(self.rotations(), self.order, strict=True):
                # columns into the order of the blocks, (O, I / b, b), each turned, and back
                parts = turned[:, order.argsort()].unflatten(1, (-1, self.block))
                turned = torch.einsum("onj,nij->oni", parts, blocks).flatten(1)[:, order]
            return (self.c.unsqueeze(1) * turned - wide).to(base.dtype)


def _shuffled(num_inputs: int, block: int, index: int) -> Tensor:
    """P of factor `index`, (I,): within 2^index neighbouring blocks, the even halves of blocks first, then the odd."""
    if index == 0:
        return torch.arange(num_inputs)
    halves = torch.arange(num_inputs).view(-1, 2**index, 2, block // 2)
    return halves.transpose(1, 2).flatten()


@dataclass(frozen=True, kw_only=True)
class BOFT(Method):
    """Rotated inputs and scaled rows of each projection; no bias, head excluded. Starts at the identity; merges.

    Parameters: m I (b - 1) / 2 + O per projection, 147,456 at b = 8 and m = 2 on q and v of ViT-B/16. The authors'
    code trains all b^2 entries of each block, of which half change nothing.

    Licence: Apache-2.0, of huggingface/peft, where the authors' code is (wy1iu/butterfly-oft refers to it).
    Not for: Fast steps: a dense weight is formed in every one. Updates that change angles between rows: it only
    turns them.

    Attributes:
        block: b, size of a rotated block; b 2^(m - 1) must divide I.
        factors: m, stages of the butterfly; with m every input meets b 2^(m - 1) others. 1 is OFT.
    """

    block: Count = 8
    factors: Count = 2

    def count(self, net: Backbone) -> int:
        cost = self.factors * (self.block - 1)
        return per_projection(net, self.targets, lambda o, i, _: cost * i // 2 + o)

    def build(self, site: Site, base: Tensor) -> Delta:
        """One butterfly per projection."""
        return ButterflyDelta(site, base, self.block, self.factors)
