"""DyLoRA: truncation against numpy, the draws."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_native import X, array, build, step

from headwise.errors import ConfigError
from made_cases import each
from made_networks import distance, logits, network, perturb


def begin(installed: Any, number: int) -> int:
    (callback,) = installed.callbacks()
    callback.on_train_batch_start(SimpleNamespace(global_step=number), None, None, 0)
    return callback.drawn.rank


def test_a_step_uses_one_truncation_everywhere() -> None:
    net = network("vit")
    installed = build("dylora", "method.alpha=4").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    net.train()
    rank = begin(installed, 5)
    assert all(delta.drawn.rank == rank for delta in installed.owners.values())
    linear: Any = net.linear(net.sites[0])
    x = torch.randn(3, 48)
    A, B = array(linear.delta.A)[0], array(linear.delta.B)[0]
    expected = array(F.linear(x, linear.weight, linear.bias)) + (4 / rank) * array(x) @ A[:rank].T @ B[:, :rank].T
    np.testing.assert_allclose(array(linear(x)), expected, atol=1e-5)


@each("chosen", [1, 3, 8])
def test_evaluated_and_merged_at_the_chosen_rank(chosen: int) -> None:
    net, plain = network("vit"), network("vit")
    installed = build("dylora", f"method.inference_rank={chosen}").install(net)
    perturb(list(installed.adapter().values()), 0.1)
    begin(installed, 0)
    delta: Any = installed.owners["s0.b0.q"]
    A, B = array(delta.A)[0, :chosen], array(delta.B)[0][:, :chosen]
    before = logits(net, X)
    net.train()
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5
    weight = array(plain.linear(plain.sites[0]).weight) + (8 / chosen) * B @ A
    np.testing.assert_allclose(array(net.linear(net.sites[0]).weight), weight, atol=1e-5)
    assert installed.report()["inference_rank"] == chosen


def test_draws_are_uniform_repeat_and_touch_no_other_randomness() -> None:
    first = build("dylora").install(network("vit"))
    again = build("dylora").install(network("vit"))
    other = build("dylora", "method.seed=1").install(network("vit"))
    state = torch.get_rng_state()
    draws = [begin(first, number) for number in range(1600)]
    assert torch.equal(torch.get_rng_state(), state)
    assert draws[700:720] == [begin(again, number) for number in range(700, 720)]
    assert draws[:20] != [begin(other, number) for number in range(20)]
    counts = Counter(draws)
    assert sorted(counts) == list(range(1, 9))
    assert all(150 < found < 250 for found in counts.values())


@each("frozen, moved", [("true", [3]), ("false", [0, 1, 2, 3])])
def test_frozen_trains_one_row_and_column_and_else_all_below_the_rank(frozen: str, moved: list[int]) -> None:
    net = network("vit")
    installed = build("dylora", f"method.frozen={frozen}").install(net)
    perturb(list(installed.adapter().values()), 0.1)
    number = next(number for number in range(100) if begin(installed, number) == 4)
    begin(installed, number)
    step(net, installed)
    delta: Any = installed.owners["s0.b0.v"]
    assert delta.A.grad[0].any(1).nonzero().flatten().tolist() == moved
    assert delta.B.grad[0].any(0).nonzero().flatten().tolist() == moved


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"inference_rank of method 'dylora' must be in 1\.\.8, got 9"):
        build("dylora", "method.inference_rank=9")
    with pytest.raises(ConfigError, match="alpha of method 'dylora' must be a finite number other than 0, got 0"):
        build("dylora", "method.alpha=0")
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.48 for s0\.b0\.q, got 64"):
        build("dylora", "method.rank=64").install(network("vit"))
