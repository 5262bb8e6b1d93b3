"""Serial adapters: counts, closed form in numpy, starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from made_native import X, array, build, count, step

from headwise.errors import ConfigError
from headwise.methods.hs_lora import HeadLoRA
from headwise.wrappers.bottleneck import Bottleneck
from made_networks import distance, logits, network, perturb

ERF = np.vectorize(math.erf)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("houlsby_b8", (), 313_536),
        ("houlsby_b8", ("method.train_ln=true",), 313_536 + 12 * 4 * 768),
        ("pfeiffer", (), 147_456),
        ("pfeiffer", ("method.bias=true",), 156_768),
        ("adapter_post", (), 165_984),
        ("vpt_adapter_rf256", (), 64_548),
        ("vpt_adapter_rf64", (), 230_544),
    ],
)
def test_count_on_vit_b16(name: str, overrides: tuple[str, ...], expected: int) -> None:
    assert count(build(name, *overrides)) == expected


@pytest.mark.parametrize("place", ["attn", "mlp"])
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


@pytest.mark.parametrize("name", ["houlsby_b8", "pfeiffer", "adapter_post", "vpt_adapter_rf256"])
def test_every_matrix_learns_after_one_step(name: str) -> None:
    net = network("vit")
    installed = build(name).install(net)
    step(net, installed)
    net.zero_grad()
    step(net, installed)
    assert all(tensor.grad.any() for tensor in installed.adapter().values())


def block_by_hand(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The halves of the second block of a plain ViT: what goes into its MLP branch, and what that adds."""
    own = net.model.blocks[1]
    middle = x + own.attn(own.norm1(x))
    return middle, own.mlp(own.norm2(middle))


@pytest.mark.parametrize("name", ["pfeiffer", "adapter_post"])
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


@pytest.mark.parametrize("second", ["adaptformer", "vpt_deep", "noah", "houlsby_b8", "repadapter"])
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


@pytest.mark.parametrize("name", ["houlsby_b8", "adapter_post"])
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
    assert not {"channel_scale", "drop_path"} & set(build("pfeiffer").spec())
    spec = build("adapter_post").spec()
    assert (spec["channel_scale"], spec["drop_path"]) == (True, 0.1)


def test_layer_norms_train_when_asked() -> None:
    net = network("vit")
    before = net.model.blocks[0].norm1.weight.clone()
    installed = build("houlsby_b8", "method.train_ln=true").install(net)
    step(net, installed)
    assert not torch.equal(net.model.blocks[0].norm1.weight, before)


def test_heads_train_over_frozen_adapters() -> None:
    net = network("vit")
    installed = build("houlsby_b8").install(net)
    step(net, installed)
    before = logits(net, X)
    installed.merge()
    heads = HeadLoRA(label="heads", rank=2).install(net)
    assert distance(logits(net, X), before) <= 1e-6
    step(net, heads)
    assert not any(tensor.requires_grad for tensor in installed.adapter().values())
    after = logits(net, X)
    heads.merge()
    assert distance(logits(net, X), after) <= 1e-5


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"unknown adapter placement 'houlsbi' .did you mean 'houlsby'"):
        build("houlsby_b8", "method.placement=houlsbi")
    with pytest.raises(ConfigError, match=r"unknown adapter init 'zero'.*allowed: houlsby, lora"):
        build("houlsby_b8", "method.init=zero")
    with pytest.raises(ConfigError, match=r"drop_path of method 'adapter_post' must be in \[0, 1\), got 1"):
        build("adapter_post", "method.drop_path=1").install(network("vit"))
