"""PiSSA (Meng et al., arXiv:2404.02948): LoRA that starts from the leading singular directions of the weight.

Legend: I/O features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import Method, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor
from headwise.updates.adapted import Delta
from headwise.updates.fused import at_least_float32
from headwise.updates.lowrank import check_rank
from headwise.updates.sites import QKV, Site
from headwise.updates.started import StartedDelta


def pissa_delta(site: Site, base: Tensor, rank: int, scale: float = 1.0) -> StartedDelta:
    """s (B A - B0 A0), where s B0 A0 is the best rank-R approximation of the pretrained weight `base`, (O, I).

    With W = U S V': A0 = (S/s)^(1/2) V' and B0 = U (S/s)^(1/2), the R largest. `scale` changes the step size of
    training, not the start.

    Raises:
        ConfigError: for a rank out of range, or a scale that is not positive.
    """
    check_rank(site, base, rank)
    if not scale > 0.0:
        raise ConfigError(f"scale must be positive for {site.key}, got {scale}")
    left, values, right = torch.linalg.svd(base.detach().to(at_least_float32(base)), full_matrices=False)
    # (R,): the singular values are shared out evenly, so that A and B start with equal norms
    root = (values[:rank] / scale).sqrt()
    return StartedDelta(site, base, root.unsqueeze(1) * right[:rank], left[:, :rank] * root, scale)


@dataclass(frozen=True, kw_only=True)
class PiSSA(Method):
    """The leading singular directions of each projection, trained; no bias, head excluded.

    Each projection is decomposed on its own (an SVD of the fused qkv would share the rank out between q, k and v).
    Parameters: r * (I + O) per projection, 884,736 at r = 16 on q, k, v of ViT-B/16 (HS-LoRA prints 0.88 M).

    Licence: No licence file (GraphPKU/PiSSA), not read.
    Not for: Small files: A0 and B0 are stored too, twice the trained size.

    Attributes:
        rank: r, in 1 .. min(O, I).
        scale: s, constant; 1 is alpha = r.
    """

    targets: Sequence[str] = QKV
    rank: Count
    scale: Factor = 1.0

    gateable: ClassVar[bool] = True

    def count(self, net: Backbone) -> int:
        return per_projection(net, self.targets, lambda o, i, _: self.rank * (i + o))

    def build(self, site: Site, base: Tensor) -> Delta:
        """One SVD per projection."""
        return pissa_delta(site, base, self.rank, self.scale)
