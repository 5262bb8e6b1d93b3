"""Wrappers: tensor names stay the network's own, parts settle, paths lead through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwise.errors import CheckpointError, ConfigError
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.wrapping import After, check_block, pretrained_modules, through, wrappers
from made_cases import each
from made_networks import images, logits, network

X = images(2)


def wrapped(dropout: float = 0.0) -> tuple[nn.Module, After]:
    net = network("vit")
    after = net.wrap("blocks.0.mlp", lambda inner: After(inner, Bottleneck(48, 4, dropout=dropout)))
    return net.eval(), after  # type: ignore[return-value]


def test_names_of_the_network_stay() -> None:
    plain = network("vit").model.state_dict()
    net, _ = wrapped()
    names = set(net.model.state_dict())
    assert set(plain) <= names
    assert names - set(plain) == {f"blocks.0.mlp.part.{n}.weight" for n in ("down", "up")}


def test_pretrained_weights_still_load() -> None:
    net, _ = wrapped()
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in net.model.state_dict().items()}
    missing = net.model.load_state_dict(state, strict=True)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert bool((net.model.get_submodule("blocks.0.mlp.inner.fc1").weight == 0.5).all())
    plain = {name: tensor for name, tensor in state.items() if ".part." not in name}
    assert net.model.load_state_dict(plain, strict=False).unexpected_keys == []


def test_a_nested_wrapper_keeps_the_names_too() -> None:
    net, _ = wrapped()
    names = set(net.model.state_dict())
    net.wrap("blocks.0.mlp", lambda inner: After(inner, nn.Identity()))
    net.wrap(through(net.model, "blocks.0.mlp.fc1"), lambda inner: After(inner, nn.Identity()))
    assert {name.replace("part.part", "part") for name in net.model.state_dict()} == names
    assert [path for path, _ in wrappers(net.model)] == [
        "blocks.0.mlp.inner.inner.fc1",
        "blocks.0.mlp.inner",
        "blocks.0.mlp",
    ]


def test_settled_parts_drop_nothing() -> None:
    net, after = wrapped(dropout=0.9)
    nn.init.ones_(after.part.up.weight)
    net.train()
    assert not torch.equal(net(X), net(X))
    after.settle()
    net.train()
    assert after.inner.training
    assert not after.part.drop.training
    assert torch.equal(net(X), logits(net, X))


def test_own_modules_are_told_from_parts() -> None:
    net, _ = wrapped()
    paths = {path for _, path, _ in pretrained_modules(net.model)}
    assert "blocks.0.mlp.fc1" in paths
    assert paths == {path for _, path, _ in pretrained_modules(network("vit").model)}


def test_a_wrapped_network_is_not_exported() -> None:
    net, _ = wrapped()
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp is wrapped by After"):
        net.export_state_dict()


def test_nothing_to_wrap() -> None:
    with pytest.raises(ConfigError, match=r"no module at 'blocks\.0\.mpl' to wrap"):
        network("vit").wrap(through(network("vit").model, "blocks.0.mpl"), lambda inner: After(inner, nn.Identity()))
    with pytest.raises(ConfigError, match="blocks of class Linear have no known halves"):
        check_block(nn.Linear(1, 1))


@each(
    "options, message",
    [
        ({"hidden": 0}, r"hidden width must be in 1\.\.8, got 0"),
        ({"hidden": 9}, r"hidden width must be in 1\.\.8, got 9"),
        ({"hidden": 2, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"hidden": 2, "activation": "gellu"}, "unknown activation 'gellu' .did you mean 'gelu'"),
        ({"hidden": 2, "init": "zero"}, "unknown adapter init 'zero'"),
    ],
)
def test_bottleneck_refuses(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bottleneck(8, **options)


def test_bottleneck_is_never_zero_on_both_sides() -> None:
    for init in ("lora", "houlsby", "xavier"):
        part = Bottleneck(8, 2, init=init)
        assert part.down.weight.any() or part.up.weight.any()
