"""Serial adapters: closed form in numpy, starts."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from made_native import X, array, build, step
from torch import nn

from headwise.errors import ConfigError
from headwise.wrappers.bottleneck import Bottleneck
from made_cases import each
from made_networks import distance, logits, network, perturb, spec

ERF = np.vectorize(math.erf)
PLUS = (
    "adapter_pre",
    "adapter_parallel",
    "adapter_intermediate",
    "adapter_pfeiffer",
    "adapter_houlsby",
    "adapter_post",
)


@each("place", ["attn", "mlp"])
def test_output_is_y_plus_bottleneck_of_y(place: str) -> None:
    net = network("vit")
    installed = build("houlsby_b8").install(net)
    perturb(list(installed.adapter().values()), 0.3)
    module, part = net.model.get_submodule(f"blocks.1.{place}"), installed.owners[f"s0.b1.adapter_{place}"]
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        y = array(module.inner(x))
        z = y @ array(part.down.weight).T + array(part.down.bias)
        hidden = z * 0.5 * (1.0 + ERF(z / math.sqrt(2.0)))
        expected = y + hidden @ array(part.up.weight).T + array(part.up.bias)
        np.testing.assert_allclose(array(module(x)), expected, atol=1e-5)


def block_by_hand(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves of the second block of a plain ViT: what goes into its MLP branch, and what that adds."""
    own = net.model.blocks[1]
    middle = x + own.attn(own.norm1(x))
    return middle, own.mlp(own.norm2(middle))


@each("name", ["pfeiffer", "adapter_post"])
def test_what_the_adapter_reads(name: str) -> None:
    """B11: ``pfeiffer`` the MLP's output (Adapter+'s "intermediate"), ``post`` the sum after the residual."""
    net = network("vit")
    installed = build(name).install(net)
    perturb(list(installed.adapter().values()), 0.3)
    x = torch.randn(2, 17, 48)
    with torch.no_grad():
        middle, y = block_by_hand(network("vit"), x)
        if name == "pfeiffer":
            expected = middle + y + installed.owners["s0.b1.adapter_mlp"](y)
        else:
            part = installed.owners["s0.b1.adapter_block"]
            hidden = torch.nn.functional.gelu(part.down(middle + y))
            expected = middle + y + part.channel_scale * part.up(hidden)
        assert distance(net.model.blocks[1](x), expected) <= 1e-5


def corrected(part: Any, x: torch.Tensor) -> torch.Tensor:
    """What an adapter gives for x, (..., C), by its definition, in numpy."""
    read = array(x)
    if part.norm is not None:
        centred = read - read.mean(-1, keepdims=True)
        read = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        read = read * array(part.norm.weight) + array(part.norm.bias)
    z = read @ array(part.down.weight).T + array(part.down.bias)
    y = 0.5 * z * (1.0 + ERF(z / math.sqrt(2.0))) @ array(part.up.weight).T + array(part.up.bias)
    scale = 1.0 if part.channel_scale is None else array(part.channel_scale)
    scale = scale if part.learned_scale is None else array(part.learned_scale)
    return torch.from_numpy(0.7 * scale * y).float()


def adapter_plus(name: str, own: Any, parts: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """A block's output with each of Adapter+'s placements, by the equations of its code."""
    attn, mlp, whole = (parts.get(place) for place in ("attn", "mlp", "block"))
    branch = own.drop_path1(own.ls1(own.attn(own.norm1(x))))
    if name == "adapter_houlsby":
        branch = branch + corrected(attn, branch)
    middle = x + branch
    if name == "adapter_pre":
        middle = middle + corrected(whole, middle)
    branch = own.drop_path2(own.ls2(own.mlp(own.norm2(middle))))
    if name in ("adapter_houlsby", "adapter_intermediate"):
        return middle + branch + corrected(mlp, branch)
    if name == "adapter_parallel":
        return middle + branch + corrected(whole, middle)
    return middle + branch + (0 if name == "adapter_pre" else corrected(whole, middle + branch))


@each("scaling", ["constant", "learned", "channel"])
@each("name", PLUS)
def test_adapter_plus_as_in_the_equations_of_its_code(name: str, scaling: str) -> None:
    """With a layer scale of 0.5 and a drop-path of 0.3 x, to tell which adapters stand behind them."""
    overrides = {**spec("vit").overrides, "init_values": 0.5}
    net = dataclasses.replace(spec("vit"), overrides=overrides).build()
    net.new_head(5)
    for block in net.eval().model.blocks:
        block.drop_path1, block.drop_path2 = Times(0.3), Times(0.3)
    plain = copy.deepcopy(net)
    flags = [f"+method.learned_scale={scaling == 'learned'}".lower(), f"++method.channel_scale={scaling == 'channel'}"]
    installed = build(name, "method.scale=0.7", *flags).install(net)
    perturb([t for key, t in installed.adapter().items() if ".adapter_" in key], 0.3)
    parts = {place: installed.owners.get(f"s0.b1.adapter_{place}") for place in ("attn", "mlp", "block")}
    x = torch.randn(2, 17, 48)
    with torch.no_grad():
        expected = adapter_plus(name, plain.model.blocks[1], parts, x)
        assert distance(net.model.blocks[1](x), expected) <= 1e-4


class Times(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_starts_of_adapter_plus() -> None:
    """Its ``lora`` draws the bias of D as torch's Linear does, +-1/sqrt(C); ``bert`` is a normal of std 0.02, uncut."""
    torch.manual_seed(0)
    parts = [Bottleneck(64, 32, bias=True, init="lora_bias") for _ in range(20)]
    biases, weights = (torch.cat([array_of(p.down).flatten() for p in parts]) for array_of in (bias_of, weight_of))
    for values in (biases, weights):
        assert float(values.abs().max()) <= 1 / 8
        assert float(values.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert not any(bool(t.any()) for p in parts for t in (p.up.weight, p.up.bias))
    parts = [Bottleneck(64, 32, bias=True, init="bert") for _ in range(20)]
    values = torch.cat([weight_of(layer).flatten() for p in parts for layer in (p.down, p.up)])
    assert float(values.std()) == pytest.approx(0.02, rel=0.02)
    assert float(values.abs().max()) > 0.06
    assert not any(bool(t.any()) for p in parts for t in (p.down.bias, p.up.bias))


def bias_of(layer: nn.Linear) -> torch.Tensor:
    return layer.bias.detach()


def weight_of(layer: nn.Linear) -> torch.Tensor:
    return layer.weight.detach()


def test_norms_and_scales_are_not_decayed() -> None:
    installed = build("adapter_pfeiffer", "+method.learned_scale=true").install(network("vit"))
    kept = [t for name, t in installed.adapter().items() if ".norm." in name or name.endswith("learned_scale")]
    assert len(kept) == 3 * 2
    _, rest = installed.param_groups(weight_decay=0.1)
    assert {id(t) for t in rest["params"]} == {id(t) for t in kept}


def test_channel_scales_are_not_decayed_and_start_at_one() -> None:
    installed = build("adapter_post").install(network("vit"))
    scales = [t for name, t in installed.adapter().items() if name.endswith("channel_scale")]
    assert all(bool((t == 1).all()) for t in scales)
    _, rest = installed.param_groups(weight_decay=0.1)
    assert {id(t) for t in rest["params"]} == {id(t) for t in scales}


def test_drop_path_leaves_out_the_correction_of_whole_samples() -> None:
    part = Bottleneck(6, 3, init="xavier", drop_path=0.4)
    x = torch.randn(4000, 2, 6)
    whole = part.eval()(x)
    dropped = part.train()(x)
    off = (dropped == 0).all(-1).all(-1)
    assert 0.36 < float(off.float().mean()) < 0.44
    torch.testing.assert_close(dropped[~off], whole[~off] / 0.6)


@each("second", ["adaptformer", "vpt_deep", "noah", "houlsby_b8", "repadapter"])
def test_other_wrappers_stand_around_an_adapter_behind_a_block(second: str) -> None:
    net = network("vit")
    below = build("adapter_post").install(net)
    perturb(list(below.adapter().values()), 0.2)
    before = logits(net, X)
    below.merge()
    above = build(second).install(net)
    for tensor in above.adapter().values():
        tensor.data.zero_()
    if second in ("adaptformer", "houlsby_b8", "repadapter"):
        assert distance(logits(net, X), before) <= 1e-5
    perturb(list(above.adapter().values()), 0.2)
    after = logits(net, X)
    assert distance(after, before) > 1e-3
    above.merge()
    assert distance(logits(net, X), after) <= 1e-4


@each("name", ["houlsby_b8", "adapter_post"])
def test_houlsbys_start_is_cut_at_two_deviations(name: str) -> None:
    """B9: a normal of std 0.01 that is cut at 0.02, so its values have the deviation 0.0088.

    In units of 0.01 such a value has the moments m2 = 1 - 4 p / z = 0.7737 and m4 = 3 m2 - 16 p / z = 1.4162, with the
    density p = 0.05399 at 2 and the mass z = 0.9545 within. The deviation of n draws then scatters around sqrt(m2) by
    sqrt((m4 - m2^2) / (4 m2 n)) = 0.514 / sqrt(n), of which five are allowed.
    """
    torch.manual_seed(0)
    installed = [build(name).install(network("vit")).adapter() for _ in range(16)]
    weights = [tensor for tensors in installed for key, tensor in tensors.items() if key.endswith(".weight")]
    values = torch.cat([tensor.detach().flatten() for tensor in weights])
    scatter = 0.01 * 0.514 / math.sqrt(len(values))
    assert 5 * scatter < 2e-4
    assert 0.0195 < float(values.abs().max()) <= 0.02
    assert float(values.std()) == pytest.approx(0.01 * math.sqrt(0.7737), abs=5 * scatter)


def test_parts_that_an_adapter_lacks_are_not_in_its_identity() -> None:
    assert not {"channel_scale", "drop_path", "learned_scale", "norm", "outside"} & set(build("pfeiffer").spec())
    assert "norm" in build("adapter_pfeiffer").spec()
    assert "outside" in build("adapter_intermediate").spec()
    spec = build("adapter_post").spec()
    assert (spec["channel_scale"], spec["drop_path"]) == (True, 0.1)


def test_layer_norms_train_when_asked() -> None:
    net = network("vit")
    before = net.model.blocks[0].norm1.weight.clone()
    installed = build("houlsby_b8", "method.train_ln=true").install(net)
    step(net, installed)
    assert not torch.equal(net.model.blocks[0].norm1.weight, before)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"unknown adapter placement 'houlsbi' .did you mean 'houlsby'"):
        build("houlsby_b8", "method.placement=houlsbi")
    with pytest.raises(ConfigError, match=r"unknown adapter init 'zero'.*allowed: bert, houlsby, lora"):
        build("houlsby_b8", "method.init=zero")
    with pytest.raises(ConfigError, match=r"drop_path of method 'adapter_post' must be in \[0, 1\), got 1"):
        build("adapter_post", "method.drop_path=1").install(network("vit"))
    with pytest.raises(ConfigError, match=r"has no bias to draw, got init=lora_bias; allowed: lora, bias=true"):
        build("pfeiffer", "method.init=lora_bias")
    with pytest.raises(ConfigError, match=r"scaled once, got learned_scale=true and channel_scale=true"):
        build("adapter_post", "+method.learned_scale=true")
    with pytest.raises(ConfigError, match=r"placement post of method 'adapter_post' is outside of any branch"):
        build("adapter_post", "+method.outside=true")
