"""A network that is kept for the next run is as it was built: tensors, layout, random state; and nobody else has it."""

from __future__ import annotations

import dataclasses
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from headwise.network import kept
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.kept import KeptNetwork, Networks
from headwise.updates.qkv import SplitQKV
from made_cases import each
from made_networks import CLASSES, composed_method, distance, images, logits, plain_timm, spec

FAMILIES = ["vit", "swin"]


def tensors_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def same(given: Backbone, built: Backbone) -> None:
    """Everything that a run could tell them apart by."""
    ours, theirs = tensors_of(given), tensors_of(built)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        other = theirs[name]
        assert type(tensor) is type(other), name
        assert torch.equal(tensor, other), name
        assert (tensor.dtype, tensor.stride(), tensor.device) == (other.dtype, other.stride(), other.device), name
        assert (tensor.requires_grad, tensor.grad) == (other.requires_grad, other.grad), name
    assert [(name, type(module), module.training) for name, module in given.named_modules()] == [
        (name, type(module), module.training) for name, module in built.named_modules()
    ]
    assert (given.sites, given.mean, given.std, given.img_size) == (built.sites, built.mean, built.std, built.img_size)
    assert (given.provenance, given.notes) == (built.provenance, built.notes)
    for module in given.modules():
        if isinstance(module, SplitQKV):
            assert module._is_joined()
            assert module._weight.is_contiguous()
    modules = {id(module) for module in given.modules()}
    assert all(id(owner) in modules for owner, _ in given._owners.values())


@each("family", FAMILIES)
def test_a_network_is_given_as_it_was_built(family: str) -> None:
    built = spec(family).build(0.1)
    keeping = KeptNetwork(built)
    for _ in range(2):
        given = keeping.give()
        same(given, built)
        for net in (given, built):
            torch.manual_seed(3)
            net.new_head(CLASSES)
        assert torch.equal(logits(given, images()), logits(built, images()))
        built = spec(family).build(0.1)


@each("family", FAMILIES)
def test_what_a_run_does_to_its_network_is_not_found_in_the_next(family: str) -> None:
    networks, calm = Networks(), spec(family).build()
    for name in ("lora", "full", "bitfit", "pfeiffer", "vpt_deep", "ssf"):
        net = networks.give(spec(family), 0.0)
        same(net, calm)
        net.new_head(CLASSES)
        net.set_attention("plain")
        installed = composed_method(name).install(net)
        for tensor in net.parameters():
            tensor.data.add_(1.0)
            tensor.grad = torch.ones_like(tensor)
        installed.merge()
        net.half().eval()
        net.provenance["note"], net.notes[:] = "mine", ["mine"]
    same(networks.give(spec(family), 0.0), calm)


@each("family", FAMILIES)
def test_no_random_state_is_another_for_it(family: str) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]

    networks = Networks()
    before = states()
    for _ in range(3):
        networks.give(spec(family), 0.0)
        assert states() == before


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    built: list[str] = []
    build = BackboneSpec.build

    def count(self: BackboneSpec, drop_path: float = 0.0) -> Backbone:
        built.append(self.name)
        return build(self, drop_path)

    monkeypatch.setattr(BackboneSpec, "build", count)
    return built


def test_it_is_built_once_and_dropped_when_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(monkeypatch)
    files: list[io.BufferedRandom] = []
    temporary = kept.tempfile.TemporaryFile
    monkeypatch.setattr(kept.tempfile, "TemporaryFile", lambda **_: files.append(temporary()) or files[-1])
    networks = Networks()
    assert not networks.has(spec("vit"), 0.0)
    for _ in range(3):
        networks.give(spec("vit"), 0.0)
    assert networks.has(spec("vit"), 0.0)
    assert built == ["vit_tiny_random"]
    for _ in range(2):
        networks.give(spec("swin"), 0.0)
    assert not networks.has(spec("vit"), 0.0)
    assert built == ["vit_tiny_random", "swin_tiny_random"]
    assert [file.closed for file in files] == [True, False]


OTHERS: list[Callable[[BackboneSpec], tuple[BackboneSpec, float]]] = [
    lambda s: (s, 0.1),
    lambda s: (dataclasses.replace(s, seed=1), 0.0),
    lambda s: (dataclasses.replace(s, img_size=64), 0.0),
    lambda s: (dataclasses.replace(s, overrides={**s.overrides, "depth": 3}), 0.0),
    lambda s: (dataclasses.replace(s, mean=(0.1, 0.2, 0.3)), 0.0),
    lambda s: (dataclasses.replace(s, name="mine"), 0.0),
]


@each("other", OTHERS)
def test_another_network_is_another(other: Callable[[BackboneSpec], tuple[BackboneSpec, float]]) -> None:
    networks = Networks()
    networks.give(spec("vit"), 0.0)
    asked, drop_path = other(spec("vit"))
    assert not networks.has(asked, drop_path)
    same(networks.give(asked, drop_path), asked.build(drop_path))
    same(networks.give(spec("vit"), 0.0), spec("vit").build())


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in plain_timm("vit").state_dict().items() if not name.startswith("head.")}
    for name, shift in (("a", 0.0), ("b", 1.0)):
        save_file(state | {"norm.bias": state["norm.bias"] + shift}, tmp_path / f"{name}.safetensors")
    file = tmp_path / "weights.safetensors"
    asked = dataclasses.replace(spec("vit"), weights=str(file))
    networks, norms = Networks(), []
    for name in "aabb":
        if not norms or len(norms) == 2:
            shutil.copy(tmp_path / f"{name}.safetensors", tmp_path / "new")
            (tmp_path / "new").replace(file)
        norms.append(tensors_of(networks.give(asked, 0.0))["model.norm.bias"].detach().clone())
    assert [distance(norm, norms[0]) for norm in norms] == [0.0, 0.0, 1.0, 1.0]


def test_a_network_that_cannot_be_kept_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.tempfile, "TemporaryFile", full)
    built = counted(monkeypatch)
    networks = Networks()
    for _ in range(2):
        same(networks.give(spec("vit"), 0.0), spec("vit").build())
    assert len(built) == 4


def test_tied_tensors_stay_tied() -> None:
    net = spec("vit").build()
    block: Any = net.model.blocks[0]  # type: ignore[index]
    block.norm2.weight = block.norm1.weight
    given: Any = KeptNetwork(net).give().model
    assert given.blocks[0].norm2.weight is given.blocks[0].norm1.weight


def test_a_network_lies_outside_of_the_process() -> None:
    """The most that a process has held, which a record says, is then that of one network."""
    keeping = KeptNetwork(spec("vit").build())
    assert all(tensor.device.type == "meta" for tensor in tensors_of(keeping._hollow).values())
    assert all(
        value.device.type == "meta"
        for module in keeping._hollow.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    )
