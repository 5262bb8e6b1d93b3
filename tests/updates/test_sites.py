"""Sites: names, rows, and the choice of targets."""

from __future__ import annotations

import pytest
import torch

from headwise.errors import ConfigError
from headwise.updates.sites import Site, select

SITES = [Site(0, block, proj, 4, 12) for block in range(2) for proj in ("q", "k", "v")]


def test_a_head_is_consecutive_rows() -> None:
    site = Site(0, 3, "q", 4, 3)
    assert site.key == "s0.b3.q"
    assert site.num_rows == 12
    assert site.rows(torch.tensor([1.0, 0.0, 2.0, 0.0])).tolist() == [1, 1, 1, 0, 0, 0, 2, 2, 2, 0, 0, 0]


def test_a_head_of_o_is_consecutive_columns() -> None:
    weight = torch.arange(8 * 6.0).view(8, 6)
    rows, columns = Site(0, 3, "q", 4, 2), Site(0, 3, "o", 3, 2, "input")
    assert torch.equal(rows.head_parts(weight)[1], weight[2:4])
    assert torch.equal(columns.head_parts(weight)[1], weight[:, 2:4].T)
    assert rows.per_head_size(weight.shape) == 4 * 6 + 8
    assert columns.per_head_size(weight.shape) == 3 * 8 + 6
    assert columns.key == "s0.b3.o"  # names in files are what they were


def test_sites_sort_by_stage_then_block() -> None:
    assert sorted([Site(1, 0, "q", 4, 8), Site(0, 1, "q", 4, 8)])[0].stage == 0


def test_select_keeps_the_order_of_the_network() -> None:
    assert [site.key for site in select(SITES, ["v", "q"])] == ["s0.b0.q", "s0.b0.v", "s0.b1.q", "s0.b1.v"]


def test_select_refuses_what_matches_nothing() -> None:
    with pytest.raises(ConfigError, match=r"target 'qq' matches no projection .*did you mean 'q'.*allowed: k, q, v"):
        select(SITES, ["v", "qq"])
    with pytest.raises(ConfigError, match="targets is empty; allowed: k, q, v"):
        select(SITES, [])
