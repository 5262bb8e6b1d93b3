"""Linear probe, full fine-tuning and BitFit: what trains, what is stored, and that nothing is left to merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_native import vit_b16
from torch import nn

from headwise.errors import ConfigError
from headwise.methods.base import Method, build_method
from headwise.methods.baselines import BitFit, Full, Linear
from made_cases import each
from made_networks import batches, compose_config, composed_method, distance, images, network
from made_runs import train


def test_names_are_module_paths_without_the_head() -> None:
    names = BitFit(label="bitfit").install(vit_b16()).adapter()
    assert {"blocks.3.attn.qkv.q.bias", "patch_embed.proj.bias", "norm.bias"} <= set(names)
    assert not any(name.startswith("head") for name in names)


def test_bitfit_trains_every_bias_and_nothing_else() -> None:
    net = network("swin")
    installed = BitFit(label="bitfit").install(net)
    for name, parameter in net.named_parameters():
        is_head = any(parameter is tensor for tensor in installed.head().values())
        assert parameter.requires_grad == (name.rpartition(".")[2] == "bias" or is_head), name


def test_a_probe_keeps_the_network_in_evaluation_mode_and_trains_the_head() -> None:
    net = network("vit")
    net.model.blocks[0].drop_path1 = nn.Dropout(0.9)  # type: ignore[index]
    installed = Linear(label="linear").install(net)
    net.train()
    installed.set_mode()
    with torch.no_grad():
        assert distance(net(images()), net(images())) == 0.0
    assert set(installed.trainable()) == {"head.weight", "head.bias"}
    assert installed.stored_bytes() == 0


def test_a_probe_stays_in_evaluation_mode_under_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("vit")
    modes = []
    forward = net.model.forward
    monkeypatch.setattr(net.model, "forward", lambda x: (modes.append(net.model.training), forward(x))[1])
    (phase,), _ = train(net, [composed_method("linear")], tmp_path, epochs=2)
    assert modes and not any(modes)
    assert phase.num_tunable == 0 and phase.num_head == 5 * 48 + 5 and phase.stored_bytes == 0


@each("name, lr", [("linear", 1e-2), ("full", 1e-4), ("bitfit", None)])
def test_learning_rates_of_the_configurations(name: str, lr: float | None) -> None:
    method = composed_method(name)
    assert method.lr == lr
    assert build_method(method.spec(), name) == method
    assert compose_config(f"method={name}").method.epochs is None


@each("kind", [Linear, Full, BitFit])
def test_a_gate_is_refused(kind: type[Method]) -> None:
    with pytest.raises(ConfigError, match="has no gate on its heads, got gate=heart"):
        kind(label="x", gate={"count": 1})


def test_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'full' does not choose projections, got targets=\['q'\]"):
        Full(label="full", targets=["q"])


@each("first", ["houlsby_b8", "vpt_deep", "adaptformer"])
@each("name", ["bitfit", "full", "spt_lora"])
def test_what_an_earlier_phase_left_in_place_stays_frozen(first: str, name: str) -> None:
    plain, net = network("vit"), network("vit")
    torch.manual_seed(0)
    installed = composed_method(first).install(net)
    brought = {id(tensor) for tensor in installed.adapter().values()}
    installed.merge()
    second = composed_method(name)
    alone = second.install(plain, second.prepare(plain, batches(), 10)).adapter()
    found = second.install(net, second.prepare(net, batches(), 10)).adapter()
    assert not brought & {id(tensor) for tensor in found.values()}
    assert not [name for name, p in net.named_parameters() if p.requires_grad and id(p) in brought]
    if name != "spt_lora":  # its choice depends on the gradients
        assert len(found) == len(alone)


def test_biases_beside_4_bits_are_the_networks_own() -> None:
    net = network("vit")
    composed_method("qlora").install(net).merge()
    assert len(BitFit(label="bitfit").install(net).adapter()) == len(
        BitFit(label="bitfit").install(network("vit")).adapter()
    )
