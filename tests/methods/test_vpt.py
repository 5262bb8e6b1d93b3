"""VPT: places of the prompts, Swin's windows against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from made_native import X, array, build, step
from torch import Tensor, nn

from headwise.errors import ConfigError
from made_cases import each
from made_networks import distance, logits, network, perturb


def by_hand(prompts: list[Tensor], deep: bool) -> Tensor:
    """Logits of the plain network with prompts put in token by token."""
    model: Any = network("vit").model
    x = model.norm_pre(model._pos_embed(model.patch_embed(X)))
    count = len(prompts[0])
    for index, block in enumerate(model.blocks):
        if index == 0 or deep:
            rest = x[:, 1:] if index == 0 else x[:, 1 + count :]
            x = torch.cat([x[:, :1], prompts[index].expand(len(x), -1, -1), rest], dim=1)
        x = block(x)
    assert x.shape[1] == 17 + count
    return model.forward_head(model.norm(x))


@each("deep", [False, True])
def test_prompts_stand_after_cls(deep: bool) -> None:
    net = network("vit")
    installed = build("vpt_deep" if deep else "vpt_shallow", "method.prompts=3").install(net)
    prompts = [part.tokens for part in installed.owners.values()]
    assert len(prompts) == (2 if deep else 1)
    with torch.no_grad():
        assert distance(logits(net, X), by_hand(prompts, deep)) <= 1e-5


def test_average_pooling_never_sees_them() -> None:
    net = network("vit")
    net.model.global_pool = "avg"
    seen: list[int] = []
    pool = net.model.pool
    net.model.pool = lambda x, *args: seen.append(x.shape[1]) or pool(x, *args)
    build("vpt_deep", "method.prompts=3").install(net)
    logits(net, X)
    assert seen == [17]


def test_start_is_uniform_in_the_papers_bound() -> None:
    net = network("vit")
    torch.manual_seed(0)
    tokens = build("vpt_deep", "method.prompts=100").install(net).owners["s0.b0.prompts"].tokens
    bound = math.sqrt(6 / (3 * 8 * 8 + 48))
    assert 0.99 * bound < tokens.abs().max() <= bound


def test_two_sets_of_prompts_stand_beside_each_other() -> None:
    net = network("vit")
    first = build("vpt_deep", "method.prompts=3").install(net)
    first.merge()
    second = build("vpt_deep", "method.prompts=2").install(net)
    inner = [part.tokens for part in first.owners.values()]
    outer = [part.tokens for part in second.owners.values()]
    both = [torch.cat([a, b]) for a, b in zip(inner, outer, strict=True)]
    with torch.no_grad():
        assert distance(logits(net, X), by_hand(both, True)) <= 1e-5


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@each("index", [0, -1])
def test_swin_prompts_join_every_window_at_zero_bias(index: int) -> None:
    net = network("swin")
    installed = build("vpt_deep", "method.prompts=3").install(net)
    perturb(list(installed.adapter().values()), 0.5)
    stage, number, path = net.blocks[index]
    block: Any = net.model.get_submodule(path)
    wrapper, inner = block.attn, block.attn.inner
    tokens = installed.owners[f"s{stage}.b{number}.prompts"].tokens
    windows, heads, width = 8, inner.num_heads, tokens.shape[1]
    x = torch.randn(windows, inner.window_area, width)
    mask = torch.zeros(2, inner.window_area, inner.window_area)
    mask[1, :, 1:] = -100.0
    with torch.no_grad():
        full = np.concatenate([np.tile(array(block.norm1(tokens)), (windows, 1, 1)), array(x)], axis=1)
        bias = np.pad(array(inner._get_rel_pos_bias()), ((0, 0), (0, 0), (3, 0), (3, 0)))
        shift = np.pad(np.tile(array(mask), (4, 1, 1)), ((0, 0), (3, 0), (3, 0)))[:, None]
        parts = []
        for linear in inner.qkv.parts:
            y = full @ array(linear.weight).T + array(linear.bias)
            parts.append(y.reshape(windows, -1, heads, width // heads).swapaxes(1, 2))
        q, k, v = parts
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(width // heads) + bias + shift
        mixed = (softmax(scores) @ v).swapaxes(1, 2).reshape(windows, -1, width)[:, 3:]
        expected = mixed @ array(inner.proj.weight).T + array(inner.proj.bias)
        np.testing.assert_allclose(array(wrapper(x, mask=mask)), expected, atol=1e-5)


def test_swin_prompts_stand_over_adapters_and_prompts() -> None:
    net = network("swin")
    for name in ("houlsby_b8", "vpt_deep", "vpt_deep"):
        installed = build(name).install(net)
        step(net, installed)
        assert all(tensor.grad.any() for tensor in installed.adapter().values() if tensor.ndim > 1)
        before = logits(net, X)
        installed.merge()
        assert torch.equal(logits(net, X), before)


def test_they_survive_blocks_with_adaptformer() -> None:
    net = network("vit")
    build("vpt_deep", "method.prompts=3").install(net).merge()
    before = logits(net, X)
    build("adaptformer").install(net)
    assert distance(logits(net, X), before) <= 1e-6


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"prompts of method 'vpt_deep' must be in 1\.\.200, got 201"):
        build("vpt_deep", "method.prompts=201")
    with pytest.raises(ConfigError, match=r"'vpt_shallow' is defined for networks with one token sequence .*Swin"):
        build("vpt_shallow").install(network("swin"))
    net = network("swin")
    block: Any = net.model.get_submodule(net.blocks[0][2])
    block.attn = nn.Identity()
    with pytest.raises(ConfigError, match="windows of Swin-V1 or one token sequence, got attention Identity"):
        build("vpt_deep").install(net)


def test_the_bound_of_adapter_plus_counts_prompts_in_place_of_channels() -> None:
    for family in ("vit", "swin"):
        torch.manual_seed(0)
        net = network(family)
        installed = build("vpt_deep", "method.prompts=100", "+method.bound=prompts").install(net)
        rows, columns = net.model.patch_embed.patch_size
        bound = math.sqrt(6 / (3 * rows * columns + 100))
        for part in installed.owners.values():
            assert 0.99 * bound < part.tokens.abs().max() <= bound
    assert build("vpt_deep", "+method.bound=width").spec() == build("vpt_deep").spec()
    with pytest.raises(ConfigError, match=r"unknown bound 'prompt' of method 'vpt_deep' .did you mean 'prompts'"):
        build("vpt_deep", "+method.bound=prompt")
