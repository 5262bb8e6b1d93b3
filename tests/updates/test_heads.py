from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from headwise.errors import ConfigError
from headwise.updates.gate import Gate
from headwise.updates.heads import Evidence, check, choose, fixed, head_norms, least_responsive, responsiveness
from headwise.updates.sites import Site
from made_cases import each


def site(block: int, proj: str = "q", stage: int = 0, heads: int = 3) -> Site:
    return Site(stage, block, proj, heads, 2)


def masks(gate: Gate, scores: dict[Site, list[float]]) -> dict[str, list[int]]:
    chosen = choose(gate, {key: torch.tensor(value) for key, value in scores.items()})
    return {key.key: mask.int().tolist() for key, mask in chosen.items()}


def test_scores() -> None:
    evidence = Evidence(torch.tensor([0.5, -2.0]), torch.tensor([1.0, 3.0]), torch.tensor([4.0, 2.0]))
    expected: dict[str, list[float]] = {
        "taylor_pos": [0.5, -2.0],
        "taylor_neg": [-0.5, 2.0],
        "taylor_abs": [0.5, 2.0],
        "weight_l2": [1.0, 3.0],
        "grad_l2": [4.0, 2.0],
    }
    for name, values in expected.items():
        assert responsiveness(evidence, name).tolist() == values
    with pytest.raises(ConfigError, match="grad_l2 needs an update with an up-projection B"):
        responsiveness(Evidence(torch.ones(2), torch.ones(2)), "grad_l2")


def test_least_responsive_takes_the_first_of_equals() -> None:
    assert least_responsive(torch.tensor([1.0, 0.0, 0.0, -1.0]), 2).tolist() == [3, 1]
    assert least_responsive(torch.zeros(4), 3).tolist() == [0, 1, 2]
    assert least_responsive(torch.zeros(4), 0).tolist() == []


def test_head_norms() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    assert head_norms(rows, 2).tolist() == [5.0, 1.0]
    assert head_norms(rows.view(1, 4, 2), 2).tolist() == [5.0, 1.0]
    with pytest.raises(ConfigError, match=r"\(4, 2\) does not divide into 3 heads"):
        head_norms(rows, 3)


SCORES = {site(0): [9.0, 1.0, 2.0], site(1): [0.0, 3.0, 1.0], site(0, "v"): [0.0, 5.0, 5.0], site(1, "v"): [1.0, 9, 0]}


def test_global_and_layer_differ_as_they_should() -> None:
    assert masks(Gate(count=1), SCORES) == {
        "s0.b0.q": [1, 1, 0],  # 9, 4, 3
        "s0.b1.q": [1, 1, 0],
        "s0.b0.v": [0, 1, 1],  # 1, 14, 5
        "s0.b1.v": [0, 1, 1],
    }
    assert masks(Gate(count=1, scope="layer"), SCORES) == {
        "s0.b0.q": [1, 0, 1],
        "s0.b1.q": [0, 1, 1],
        "s0.b0.v": [0, 1, 1],
        "s0.b1.v": [1, 1, 0],
    }


def test_pooled_projections_share_a_choice() -> None:
    pooled = masks(Gate(count=1, pooled=True), SCORES)  # 10, 18, 8
    assert set(map(tuple, pooled.values())) == {(1, 1, 0)}


def test_stages_never_mix() -> None:
    scores = {site(0, heads=4): torch.tensor([0.0, 1, 2, 3]), site(0, stage=1, heads=8): torch.arange(8.0).flip(0)}
    for scope in ("global", "stage", "layer"):
        chosen = choose(Gate(ratio=0.25, scope=scope), scores)
        assert [mask.tolist() for mask in chosen.values()] == [[0, 1, 1, 1], [1] * 6 + [0, 0]]


def test_budget_keeps_the_best_of_all_layers() -> None:
    assert masks(Gate(budget=2), SCORES) == {
        "s0.b0.q": [1, 0, 0],
        "s0.b1.q": [0, 1, 0],
        "s0.b0.v": [0, 1, 0],
        "s0.b1.v": [0, 1, 0],
    }
    pooled = masks(Gate(budget=2, pooled=True), SCORES)
    assert pooled["s0.b0.q"] == pooled["s0.b0.v"] == [1, 0, 0]
    assert pooled["s0.b1.q"] == pooled["s0.b1.v"] == [0, 1, 0]


def sites(*given: Site) -> dict[Site, Tensor]:
    return dict.fromkeys(given, torch.ones(1))


def test_front_and_random() -> None:
    given = sites(*(Site(0, block, proj, 6, 2) for block in range(4) for proj in "qv"))
    assert all(mask.tolist() == [0, 0, 1, 1, 1, 1] for mask in fixed(Gate(mode="front", count=2), given).values())
    torch.manual_seed(0)
    chosen = fixed(Gate(mode="random", count=2), given)
    assert all(int(mask.sum()) == 4 for mask in chosen.values())
    assert len({tuple(mask.tolist()) for key, mask in chosen.items() if key.proj == "q"}) == 1
    by_layer = fixed(Gate(mode="random", count=2, scope="layer"), given)
    assert len({tuple(mask.tolist()) for mask in by_layer.values()}) > 1
    torch.manual_seed(0)
    assert all(torch.equal(mask, chosen[key]) for key, mask in fixed(Gate(mode="random", count=2), given).items())


@each(
    "gate, given, message",
    [
        (Gate(count=3), sites(site(0)), "gate.count must leave a head on: 0..2 for 3 heads, got 3"),
        (
            Gate(count=1),
            sites(site(0, heads=4), site(0, stage=1, heads=8)),
            "gate.count=1 on layers of 4, 8 heads: give the share of heads instead, ne=quarter",
        ),
        (Gate(ratio=0.2), sites(site(0, heads=4)), "gate.ratio=0.2 of 4 heads rounds to nothing; the least is 0.25"),
        (Gate(count=0), sites(Site(0, 0, "fc1", 1, 8, None)), "fc1 has no heads to gate; allowed targets: q, k, v, o"),
        (Gate(budget=7), sites(site(0), site(1)), "gate.budget=7 heads are to stay on, there are 6"),
        (Gate(budget=7), sites(site(0), site(0, stage=1)), "stages are never compared; use gate.ratio"),
    ],
)
def test_a_gate_that_does_not_fit(gate: Gate, given: dict[Site, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(gate, given)
