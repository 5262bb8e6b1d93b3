"""Heads from one generator: its formula, what its heads share, and where it has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_native import array

from headwise.errors import ConfigError
from headwise.methods.shared_heads import GeneratedDelta, SharedHeads
from headwise.updates.sites import Site
from made_cases import each
from made_networks import network, perturb

SITE = Site(0, 0, "q", 4, 3, 12)


def moved(num_shared: int) -> GeneratedDelta:
    torch.manual_seed(0)
    delta = GeneratedDelta(SITE, torch.zeros(12, 6), 2, num_shared, 5, scale=1.5)
    assert not delta.weight(torch.zeros(12, 6)).any()
    perturb(list(delta.parameters()), 0.5)
    return delta


def test_every_head_mixes_the_shared_matrices_by_its_code() -> None:
    delta = moved(3)
    codes = array(F.gelu(delta.embeddings @ delta.encoder.T))
    found = array(delta.weight(torch.zeros(12, 6))).reshape(4, 3, 6)
    for head in range(4):
        down = sum(codes[head, j] * array(delta.U[j]) for j in range(3))
        up = sum(codes[head, j] * array(delta.V[j]) for j in range(3))
        np.testing.assert_allclose(found[head], 1.5 * up @ down, atol=1e-5)


def test_with_one_shared_matrix_all_heads_move_alike() -> None:
    update = moved(1).weight(torch.zeros(12, 6)).detach().view(4, 18)
    assert int(torch.linalg.matrix_rank(update)) == 1
    assert int(torch.linalg.matrix_rank(moved(4).weight(torch.zeros(12, 6)).detach().view(4, 18))) == 4


def test_a_head_that_is_off_keeps_its_rows() -> None:
    delta = moved(3)
    delta.switch(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    rows = delta.weight(torch.zeros(12, 6)).detach().view(4, 3, 6)
    assert not rows[1].any()
    assert all(rows[head].any() for head in (0, 2, 3))


@each("target, said", [("o", "allowed: q, k, v"), ("fc1", "has no heads")])
def test_where_heads_have_no_rows_it_is_refused(target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SharedHeads(label="shared", rank=2, targets=[target]).install(network("vit"))
