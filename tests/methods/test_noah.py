"""NOAH: the published subnets, counts, one block by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_native import X, build, count, step
from torch import nn

from headwise.errors import ConfigError
from headwise.methods.noah import KINDS, published_subnets
from made_networks import CONF, distance, logits, network, perturb


def test_the_published_subnets_are_of_the_19_tasks() -> None:
    subnets = published_subnets()
    assert set(subnets) == {file.stem for file in (CONF / "dataset").glob("*.yaml")}
    for subnet in subnets.values():
        assert set(subnet) == set(KINDS)
        assert all(len(sizes) == 12 and set(sizes) <= {1, 5, 10} for sizes in subnet.values())


def test_mean_count_on_vit_b16() -> None:
    subnets = published_subnets()
    totals = {
        task: sum(
            768 * p + 3072 * r + (1536 * w + w + 768) for p, r, w in zip(*(subnet[k] for k in KINDS), strict=True)
        )
        for task, subnet in subnets.items()
    }
    assert round(sum(totals.values()) / 19) == 360_134
    assert count(build("noah", "dataset=svhn")) == totals["svhn"]
    assert count(build("noah", "dataset=clevr_count")) == totals["clevr_count"]


def test_a_task_without_a_subnet_takes_the_default_and_says_so() -> None:
    installed = build("noah", "method.task=aircraft").install(network("vit"))
    assert installed.report()["subnet"] == {**{kind: [5, 5] for kind in KINDS}, "source": "default"}
    installed = build("noah", "method.task=svhn").install(network("vit"))
    assert installed.report()["subnet"]["prompt_tokens"] == [10, 5]  # of blocks 0 and 6
    assert installed.report()["subnet"]["source"] == "published for svhn"


SUBNET = "method.subnet={prompt_tokens: [2, 3], lora_rank: [1, 4], adapter_width: [3, 2]}"


def test_forward_by_hand() -> None:
    net = network("vit")
    installed = build("noah", SUBNET).install(net)
    perturb(list(installed.adapter().values()), 0.2)
    model: Any = network("vit").model
    own: Any = net.model
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(X)))
        for index, block in enumerate(model.blocks):
            tokens = installed.owners[f"s0.b{index}.prompts"].tokens
            x = torch.cat([x[:, :17], tokens.expand(len(x), -1, -1)], dim=1)
            for site in (site for site in net.sites if site.block == index and site.proj in "qkv"):
                linear = getattr(block.attn.qkv, site.proj)
                delta: Any = installed.owners[site.key]
                linear.weight += delta.B[0] @ delta.A[0]
            block.attn.qkv.join()
            x = x + block.attn(block.norm1(x))
            m = block.mlp(block.norm2(x))
            part = installed.owners[f"s0.b{index}.adapter"]
            z = part.down(m)
            x = x + m + part.up(z * torch.sigmoid(1.702 * z))
        expected = model.forward_head(model.norm(x[:, :17]))
    assert distance(logits(net, X), expected) <= 1e-5
    own.blocks[1].inner.drop_path2.inner = nn.Threshold(1e9, 0.0)  # the adapter stands behind drop-path
    assert torch.isfinite(logits(net, X)).all()


def test_lora_merges_and_the_rest_stays() -> None:
    net = network("vit")
    installed = build("noah", SUBNET).install(net)
    step(net, installed)
    assert all(tensor.grad.any() for name, tensor in installed.adapter().items() if not name.endswith(".A"))
    before = logits(net, X)
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5
    assert all(type(net.linear(site)) is nn.Linear for site in net.sites)


def test_one_a_for_q_k_and_v() -> None:
    deltas: Any = build("noah", SUBNET).install(network("vit")).owners
    assert deltas["s0.b0.q"].A is deltas["s0.b0.k"].A is deltas["s0.b0.v"].A
    assert deltas["s0.b0.q"].A is not deltas["s0.b1.q"].A


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="'noah' is defined for networks with one token sequence"):
        build("noah").install(network("swin"))
    with pytest.raises(ConfigError, match=r"subnet.lora_rank of NOAH must be 2 sizes of at least 1, got \[1\]"):
        build("noah", SUBNET.replace("[1, 4]", "[1]")).install(network("vit"))
    with pytest.raises(ConfigError, match="adapts q, k and v together"):
        build("noah", "method.targets=[q]")
