"""MoRA: both types against the steps of compressing, mapping and expanding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_native import array, build

from headwise.errors import ConfigError
from headwise.methods.mora import MoRADelta
from headwise.updates.sites import Site
from made_cases import each
from made_networks import network, perturb


def by_steps(x: np.ndarray, matrix: np.ndarray, kind: int, num_outputs: int) -> np.ndarray:
    side = len(matrix)
    missing = -x.shape[-1] % side
    chunks = np.concatenate([x, x[..., :missing]], -1).reshape(*x.shape[:-1], -1, side)
    if kind == 1:
        out = chunks.sum(-2) @ matrix.T
    else:
        speed = 1.0 / 10000 ** (np.arange(0, side, 2) / side)
        angle = np.outer(np.arange(chunks.shape[-2]), speed)
        cos, sin = (np.concatenate([f(angle), f(angle)], -1) for f in (np.cos, np.sin))
        turned = np.concatenate([-chunks[..., side // 2 :], chunks[..., : side // 2]], -1)
        out = ((chunks * cos + turned * sin) @ matrix.T).reshape(*x.shape[:-1], -1)
    times = -(-num_outputs // out.shape[-1])
    return np.concatenate([out] * times, -1)[..., :num_outputs]


@each("kind", [1, 6])
@each("shape", [(48, 48), (192, 48), (48, 192)])
def test_weight_is_the_linear_map_of_the_steps(kind: int, shape: tuple[int, int]) -> None:
    base = torch.zeros(shape)
    delta = MoRADelta(Site(0, 0, "q", 1, shape[0]), base, 2, kind)
    perturb(list(delta.parameters()), 1.0)
    x = np.random.default_rng(0).normal(size=(3, shape[1]))
    expected = by_steps(x, array(delta.M), kind, shape[0])
    np.testing.assert_allclose(x @ array(delta.weight(base)).T, expected, atol=1e-5)
    direct = delta(torch.from_numpy(x).float().view(1, 3, -1), base)
    np.testing.assert_allclose(array(direct)[0], expected, atol=1e-5)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"must give a matrix of side 2\.\.48 .* got rank 100"):
        build("mora", "method.rank=100").install(network("vit"))
    with pytest.raises(ConfigError, match=r"rank of method 'mora' must be a whole number of at least 1, got 2\.5"):
        build("mora", "method.rank=2.5").install(network("vit"))
    with pytest.raises(ConfigError, match=r"type must be one of \(1, 6\), got 2"):
        build("mora", "method.type=2", "method.rank=2").install(network("vit"))
