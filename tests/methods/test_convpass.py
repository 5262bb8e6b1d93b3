"""Convpass: the formula in numpy, draws of drop-path, tokens that are no patch, starts, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from made_native import X, array, build
from torch import nn

from headwise.errors import ConfigError
from headwise.network.backbone import Backbone
from headwise.wrappers.bypass import ConvBypass
from made_cases import each
from made_networks import CLASSES, composed_method, distance, logits, network, perturb, spec


def quick_gelu(x: Any) -> Any:
    return x / (1.0 + np.exp(-1.702 * x))


def convolved(part: Any, images: Any) -> Any:
    """3x3 convolution with a frame of zeros, output by output, of (B, R, K, h)."""
    kernel, bias = array(part.conv.weight), array(part.conv.bias)
    batch, rows, columns, _ = images.shape
    framed = np.zeros((batch, rows + 2, columns + 2, images.shape[-1]))
    framed[:, 1:-1, 1:-1] = images
    y = np.empty((*images.shape[:3], len(bias)))
    for row in range(rows):
        for column in range(columns):
            window = framed[:, row : row + 3, column : column + 3]
            y[:, row, column] = np.einsum("brch,ohrc->bo", window, kernel) + bias
    return y


def bypass(part: Any, x: Any, prefix: int, grid: tuple[int, int] | None) -> Any:
    """f(x), token by token: what is no patch is an image of one pixel."""
    hidden = quick_gelu(x @ array(part.down.weight).T + array(part.down.bias))
    if grid is None:
        mixed = convolved(part, hidden)
    else:
        alone = [convolved(part, hidden[:, [[token]]])[:, :, 0] for token in range(prefix)]
        patches = convolved(part, hidden[:, prefix:].reshape(len(x), *grid, -1))
        mixed = np.concatenate([*alone, patches.reshape(len(x), grid[0] * grid[1], -1)], axis=1)
    return part.scale * (quick_gelu(mixed) @ array(part.up.weight).T + array(part.up.bias))


def with_registers() -> Backbone:
    """Two registers beside the class token, a grid of 4 x 4, and a layer scale."""
    overrides = {**spec("vit").overrides, "reg_tokens": 2, "init_values": 0.5}
    net = dataclasses.replace(spec("vit"), overrides=overrides).build()
    net.new_head(CLASSES)
    return net.eval()


NETWORKS = {"vit": (lambda: network("vit"), 1), "registers": (with_registers, 3), "swin": (lambda: network("swin"), 0)}


@each("name", ["convpass", "convpass_attn"])
@each("family", NETWORKS)
def test_the_formula(family: str, name: str) -> None:
    made, prefix = NETWORKS[family]
    net = made()
    installed = build(name, "method.scale=0.7", "method.conv=xavier").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    stage, index, path = net.blocks[-1]
    block: Any = net.model.get_submodule(path)
    own, key = block.inner, f"s{stage}.b{index}.convpass"
    width = installed.owners[f"{key}_attn"].down.in_features
    swin = family == "swin"
    x = torch.randn(2, *own.input_resolution, width) if swin else torch.randn(2, prefix + 16, width)
    grid = None if swin else (4, 4)
    attention = own._attn if swin else own.attn
    scales = [getattr(own, f"ls{half}", nn.Identity()) for half in (1, 2)]
    with torch.no_grad():
        z = own.norm1(x)
        added = torch.from_numpy(bypass(installed.owners[f"{key}_attn"], array(z), prefix, grid))
        middle = (x + scales[0](attention(z)) + added).float()
        z = own.norm2(middle)
        expected = array(middle) + array(scales[1](own.mlp(z)))
        if name == "convpass":
            expected = expected + bypass(installed.owners[f"{key}_mlp"], array(z), prefix, grid)
        np.testing.assert_allclose(array(block(x)), expected, atol=2e-5)


class Numbered(nn.Module):
    """In place of drop-path: multiplies by 1, 10, 100, one draw after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 10.0 ** (self.calls - 1)


def test_each_branch_has_a_draw_of_drop_path_of_its_own() -> None:
    net = network("vit")
    installed = build("convpass", "method.dropout=0").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    block: Any = net.model.blocks[1]
    own = block.inner
    x = torch.randn(2, 17, 48)
    with torch.no_grad():
        first = own.attn(own.norm1(x)), installed.owners["s0.b1.convpass_attn"](own.norm1(x), 1)
        own.drop_path1 = Numbered()
        found = block.attend(x) - x
        assert own.drop_path1.calls == 2
        assert min(distance(found, a + 10 * b) for a, b in (first, first[::-1])) <= 1e-4
        second = own.mlp(own.norm2(x)), installed.owners["s0.b1.convpass_mlp"](own.norm2(x), 1)
        own.drop_path2 = Numbered()
        found = block.feed(x)
        assert own.drop_path2.calls == 2
        assert min(distance(found, a + 10 * b) for a, b in (second, second[::-1])) <= 1e-4


@each("conv", ["identity", "xavier"])
def test_start(conv: str) -> None:
    part = ConvBypass(48, 6, (4, 4), conv=conv)
    assert not any(bool(tensor.any()) for tensor in (part.down.bias, part.conv.bias, part.up.weight, part.up.bias))
    bound = (6.0 / (48 + 6)) ** 0.5
    assert 0.9 * bound < abs(array(part.down.weight)).max() <= bound
    kernel = part.conv.weight.detach()
    if conv == "identity":
        assert torch.equal(kernel[:, :, 1, 1], torch.eye(6))
        assert float(kernel.abs().sum()) == 6.0
    else:
        bound = (6.0 / (2 * 9 * 6)) ** 0.5
        assert 0.9 * bound < float(kernel.abs().max()) <= bound


def test_at_the_identity_a_patch_is_told_of_no_other_and_then_of_its_neighbours() -> None:
    part = ConvBypass(48, 6, (4, 4))
    nn.init.ones_(part.up.weight)
    x = torch.randn(1, 17, 48)
    other = x.clone()
    other[:, 1] += 1.0  # the patch in the corner
    changed = (part(other, 1) != part(x, 1)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1]
    perturb([part.conv.weight], 0.1)
    changed = (part(other, 1) != part(x, 1)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1, 2, 5, 6]


def places(net: Backbone, installed: Any) -> list[tuple[int, int]]:
    """Tokens and those before the first patch, as each bypass gets them."""
    seen: list[tuple[int, int]] = []
    hooks = [
        part.register_forward_pre_hook(lambda _, given: seen.append((given[0].shape[1], given[1])))
        for part in installed.owners.values()
        if isinstance(part, ConvBypass)
    ]
    logits(net, X)
    for hook in hooks:
        hook.remove()
    return seen


@each("first", [True, False])
@each("name", ["vpt_shallow", "vpt_deep"])
def test_prompts_before_the_patches_are_none(name: str, first: bool) -> None:
    net, prompts, kept = network("vit"), build(name, "method.prompts=3"), None
    for method in (prompts, build("convpass")) if first else (build("convpass"), prompts):
        installed = method.install(net)
        kept = installed if method is not prompts else kept
        perturb(list(installed.adapter().values()), 0.1)
        installed.merge()
    assert places(net, kept) == [(17 + 3, 1 + 3)] * 4


def test_nor_are_noahs_prompts_behind_them() -> None:
    noah = composed_method("noah").phases()[-1]
    for first in (True, False):
        net, kept = network("vit"), None
        for method in (noah, build("convpass")) if first else (build("convpass"), noah):
            installed = method.install(net)
            kept = installed if method is not noah else kept
            perturb(list(installed.adapter().values()), 0.1)
            installed.merge()
        assert {front for _, front in places(net, kept)} == {1}
        assert all(tokens >= 17 for tokens, _ in places(net, kept))


@each("other", ["adaptformer", "adapter_post", "houlsby_b8", "repadapter", "ssf"])
@each("first", [True, False])
def test_it_stands_with_other_parts_in_either_order(other: str, first: bool) -> None:
    net = network("vit")
    names = (other, "convpass") if first else ("convpass", other)
    for name in names:
        installed = build(name).install(net)
        perturb(list(installed.adapter().values()), 0.1)
        before = logits(net, X)
        installed.merge()
        assert distance(logits(net, X), before) <= 1e-4


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"bypass's hidden width must be in 1\.\.48, got 64"):
        build("convpass", "method.hidden=64").install(network("vit"))
    with pytest.raises(ConfigError, match=r"unknown conv 'identiti' of method 'convpass' .did you mean 'identity'"):
        build("convpass", "method.conv=identiti")
    with pytest.raises(ConfigError, match="does not choose projections"):
        build("convpass", "method.targets=[q]")


@each(
    "overrides, message",
    [
        ({"patch_drop_rate": 0.5}, r"drops some in training; allowed: backbone\.overrides\.patch_drop_rate=0"),
        ({"dynamic_img_pad": True}, r"over the grid of patches, which PatchEmbed does not state"),
    ],
)
def test_refuses_a_grid_that_it_does_not_know(overrides: dict[str, Any], message: str) -> None:
    net = dataclasses.replace(spec("vit"), overrides={**spec("vit").overrides, **overrides}).build()
    net.new_head(CLASSES)
    with pytest.raises(ConfigError, match=message):
        build("convpass").install(net)
