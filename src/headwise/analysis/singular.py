"""Kind ``subspaces``: which heads an update moved, and in how many directions."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from headwise.analysis import style
from headwise.analysis.changes import Change, by_head, changes, layer_of
from headwise.analysis.kinds import Options
from headwise.analysis.made import Analysis
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError


def effective_rank(values: Tensor) -> Tensor:
    """exp of the entropy of the shares of energy, (...,) of singular values (..., R): between 1 and R; 0 of nothing."""
    energy = values.double().square()
    total = energy.sum(-1, keepdim=True)
    shares = energy / total.clamp(min=torch.finfo(torch.float64).tiny)
    entropy = -(shares * shares.clamp(min=torch.finfo(torch.float64).tiny).log()).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), torch.zeros_like(entropy))


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Make the analysis of one run."""
    if len(runs) != 1:
        raise ConfigError(f"subspaces analyses one run, got {len(runs)}; give one folder")
    change = changes(runs[0], options.weights)[-1]
    table = _heads(change)
    with style.styled():
        groups = change.groups()
        figure, axes = style.figure(1, len(groups), size=(1.2 + 3.2 * len(groups), 3.4))
        for axis, (proj, sites) in zip(axes[0], groups, strict=True):
            values = torch.stack([by_head(change.update(site), site.num_heads).norm(dim=(-2, -1)) for site in sites])
            image = style.head_map(axis, values, layers=[layer_of(site) for site in sites])
            axis.set(title=proj, xlabel="head", ylabel="layer")
            figure.colorbar(image, ax=axis, label="size of the update")
    return Analysis("subspaces", f"Update of {runs[0].result.key.method}", {"heads": table}, {"heads": figure}, [])


def _heads(change: Change) -> pd.DataFrame:
    rows = []
    for proj, sites in change.groups():
        for site in sites:
            values = torch.linalg.svdvals(by_head(change.update(site), site.num_heads))
            for head, rank in enumerate(effective_rank(values).tolist()):
                size = float(values[head].norm())
                rows.append({"projection": proj, "layer": layer_of(site), "head": head, "size": size, "rank": rank})
    return pd.DataFrame(rows)
