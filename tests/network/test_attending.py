"""Attention read off beside the fused kernel: the network computes the same, and the weights are what it used."""

import pytest
import torch
from torch import nn

from headwise.errors import ConfigError
from headwise.methods.lora import LoRA
from headwise.methods.vpt import VPT
from headwise.network.attending import Attention, Windows, attentions, rollout
from made_cases import each
from made_networks import FURTHER, images, network, perturb


@each("name", ["vit", "swin", *FURTHER])
def test_the_output_is_the_same_to_the_last_bit(name):
    net = network(name)
    with torch.no_grad():
        before = net(images())
    found, logits = attentions(net, images())
    assert torch.equal(logits, before)
    assert [(seen.stage, seen.block) for seen in found] == [(stage, block) for stage, block, _ in net.blocks]
    with torch.no_grad():
        assert torch.equal(net(images()), before)
    assert not any(module._forward_pre_hooks for module in net.modules())


@each("name", ["vit", "swin", *FURTHER])
def test_the_weights_are_those_that_were_used(name):
    net = network(name)
    installed = LoRA(label="lora", rank=2).install(net)
    perturb(list(installed.adapter().values()), 0.2)
    kept = {}
    for place in [(stage, block, net.model.get_submodule(path).attn) for stage, block, path in net.blocks]:
        stage, block, module = place
        module.register_forward_hook(
            lambda m, arguments, y, key=(stage, block): kept.update({key: (m, arguments[0], y)})
        )
    found, _ = attentions(net.eval(), images())
    for seen in found:
        module, x, y = kept[seen.stage, seen.block]
        weights = seen.weights.reshape(-1, *seen.weights.shape[-3:])  # (B or B W, H, N, N)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        with torch.no_grad():
            v = module.qkv(x).reshape(*x.shape[:2], 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)[2]
            again = module.proj((weights @ v).transpose(1, 2).reshape(x.shape))
        assert torch.allclose(again, y, atol=1e-5)


@each("shift", [(0, 0), (2, 1)])
@each("grid", [(8, 8), (7, 5), (4, 12)])
def test_stitching_undoes_the_cut(grid, shift):
    windows = Windows(grid, (4, 4), shift)
    field = torch.randn(2, grid[0] * grid[1], 3)
    assert torch.equal(windows.join(windows.split(field)), field)


def test_windows_are_cut_as_timm_does():
    net = network("swin")
    cut = []
    for _, _, path in net.blocks:
        block = net.model.get_submodule(path)
        block.attn.register_forward_pre_hook(lambda m, a, k: cut.append(a[0]), with_kwargs=True)
        block.norm1.register_forward_hook(lambda m, a, y: cut.append(y))
    found, _ = attentions(net, images(2))
    for index, seen in enumerate(found):
        tokens, windows = cut[2 * index], cut[2 * index + 1]
        assert torch.equal(seen.windows.split(tokens.flatten(1, 2)).flatten(0, 1), windows)


def one_window(grid, size, shift, query, key):
    """Attention of one image in which token `query` looks at `key` alone and all others evenly at their window."""
    windows = Windows(grid, size, shift)
    number = torch.arange(grid[0] * grid[1], dtype=torch.float).view(1, -1, 1)
    place = windows.split(number)[0, :, :, 0]  # (W, N): the token at each place
    weights = torch.full((1, *place.shape, place.shape[1]), 1.0 / place.shape[1]).unsqueeze(2)
    window, row = (place == query).nonzero()[0]
    column = (place[window] == key).nonzero()[0, 0]
    weights[0, window, 0, row] = 0.0
    weights[0, window, 0, row, column] = 1.0
    return Attention(0, 0, weights, windows)


def test_a_planted_look_is_found_at_its_place():
    seen = one_window((4, 4), (2, 2), (1, 1), query=5, key=10)
    field = torch.eye(16)[None]
    mixed = seen.mix(field)[0]
    assert torch.equal(mixed[5], torch.eye(16)[10])
    assert torch.allclose(mixed.sum(1), torch.ones(16))
    received = seen.received()[0]
    assert received.argmax() == 10
    assert received[10] == pytest.approx((1 + 3 / 4) / 4)


def test_rollout_of_attention_that_stays_at_home_stays_at_home():
    stay = Attention(0, 0, torch.eye(5).expand(2, 3, 5, 5))
    assert torch.equal(rollout([stay, stay]), torch.eye(5).expand(2, 5, 5))


def test_rollout_of_one_block_is_attention_and_its_skip():
    weights = torch.rand(1, 2, 4, 4).softmax(-1)
    assert torch.allclose(rollout([Attention(0, 0, weights)]), (weights.mean(1) + torch.eye(4)) / 2)


@each("name", ["vit", "swin", "eva02", "swinv2"])
def test_rollout_adds_up_to_one(name):
    found, _ = attentions(network(name), images(2))
    shares = rollout(found)
    assert shares.shape == (2, found[-1].num_tokens, found[0].num_tokens)
    assert torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-5)
    assert bool((shares >= 0).all())


def test_prompts_change_the_tokens():
    net = network("vit")
    VPT(label="vpt", deep=False, prompts=3).install(net)
    found, _ = attentions(net.eval(), images())
    assert found[0].num_tokens == attentions(network("vit"), images())[0][0].num_tokens + 3
    swin = network("swin")
    VPT(label="vpt", deep=True, prompts=3).install(swin)
    with pytest.raises(ConfigError, match="prompts in its windows"):
        attentions(swin.eval(), images())
    assert not any(isinstance(m, nn.Module) and m._forward_pre_hooks for m in swin.modules())
