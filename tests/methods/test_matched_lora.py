"""LoRA of equal size has the size of the per-head updates that it stands against (issue 14, A4)."""

from __future__ import annotations

import itertools

import pytest

from headwise.errors import ConfigError
from headwise.methods.hs_lora import MatchedLoRA, matched_ranks
from headwise.updates.sites import Site
from made_cases import each
from made_networks import network


def shapes(blocks: int, width: int, heads: int, *targets: str, stage: int = 0) -> dict[Site, tuple[int, int]]:
    sites = [Site(stage, block, proj, heads, width // heads) for block in range(blocks) for proj in targets]
    return dict.fromkeys(sites, (width, width))


def sizes(head_rank: int, found: dict[Site, tuple[int, int]]) -> tuple[int, int]:
    """Parameters of the matched LoRA and of the per-head updates."""
    ranks = matched_ranks(head_rank, found)
    assert all(1 <= rank <= min(found[site]) for site, rank in ranks.items())
    matched = sum(rank * sum(found[site]) for site, rank in ranks.items())
    return matched, sum(head_rank * (site.num_heads * i + o) for site, (o, i) in found.items())


VIT_B, VIT_S = shapes(12, 768, 12, "q", "v"), shapes(12, 384, 6, "q", "v")
SWIN_B = {
    site: shape
    for stage, (blocks, width, heads) in enumerate([(2, 128, 4), (2, 256, 8), (18, 512, 16), (2, 1024, 32)])
    for site, shape in shapes(blocks, width, heads, "q", "v", stage=stage).items()
}


@each("head_rank", range(1, 17))
@each("net", [VIT_B, VIT_S, SWIN_B, shapes(12, 768, 12, "q", "k", "v"), shapes(12, 768, 12, "v")])
def test_the_sizes_are_equal(net: dict[Site, tuple[int, int]], head_rank: int) -> None:
    matched, wanted = sizes(head_rank, net)
    assert abs(matched / wanted - 1) <= 0.005


def test_layers_of_a_target_take_turns() -> None:
    ranks = matched_ranks(1, VIT_B)
    for proj in "qv":
        of = [rank for site, rank in ranks.items() if site.proj == proj]
        assert sorted(of) == [6] * 6 + [7] * 6
        assert all(first != second for first, second in itertools.pairwise(of))
    assert sizes(1, VIT_B) == (239_616, 239_616)
    assert sizes(3, VIT_B) == (718_848, 718_848)
    assert set(matched_ranks(2, VIT_B).values()) == {13}


def test_one_projection_is_as_near_as_a_whole_rank_can_be() -> None:
    matched, wanted = sizes(1, shapes(1, 768, 12, "q"))
    assert abs(matched - wanted) == 768


def test_a_size_that_whole_ranks_cannot_have_is_refused() -> None:
    net = network("vit")
    bases = dict(list(net.bases(["q"]).items())[:1])
    with pytest.raises(ConfigError, match=r"whole ranks have [+-]\d+\.\d % parameters.*can be matched: 2, 4, 6, 8"):
        MatchedLoRA(label="matched_lora", targets=["q"], head_rank=1).build_all(bases)
    assert MatchedLoRA(label="matched_lora", targets=["q"], head_rank=2).build_all(bases)
