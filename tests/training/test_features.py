"""A linear probe on features that were computed once gives the numbers of one that looks at its images each time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.methods.base import Method
from headwise.methods.baselines import Linear
from headwise.methods.lora import LoRA
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult, PhaseStore
from headwise.training import features
from headwise.training.loop import TENSORS, Machine, hush, read_tensors, run_phases
from headwise.training.module import PhaseModule
from made_networks import network, toy_data

RECIPE = Protocol(name="test", epochs=6, batch_size=16, lr=1e-2, drop_path=0.2)
LINEAR = Linear(label="linear")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    hush()
    monkeypatch.setattr(features, "KEPT", features.KeptFeatures())


def train(
    root: Path,
    methods: tuple[Method, ...] = (LINEAR,),
    protocol: Protocol = RECIPE,
    kind: str = "vit",
    seed: int = 0,
    data: Any = None,
    parts: int = 1,
    compile: bool = False,
) -> tuple[PhaseResult, dict[str, torch.Tensor], int]:
    """The last phase, what it stored, and the images that passed the network's first block."""
    net, passed = network(kind), [0]
    first = net.model.get_submodule(net.blocks[0][2])
    first.register_forward_hook(lambda module, arguments, y: passed.__setitem__(0, passed[0] + len(arguments[0])))
    result = run_phases(
        net,
        methods,
        data or toy_data(seed),
        protocol,
        PhaseStore(root),
        {"seed": seed, "kind": kind, "name": root.name},
        seed=seed,
        machine=Machine(threads=1, progress=False, parts=parts, compile=compile),
        say=lambda line: None,
    )[-1]
    return result, read_tensors(PhaseStore(root).path(result.fingerprint) / TENSORS), passed[0]


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...], tolerance: float = 1e-5) -> None:
    assert one[0].train_loss == pytest.approx(other[0].train_loss, abs=tolerance)
    assert one[0].accuracy == other[0].accuracy
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("select", ["last", "best_test"])
def test_the_numbers_are_those_of_the_usual_loop(
    kind: str, select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = dataclasses.replace(RECIPE, select=select)
    fast = train(tmp_path / "fast", protocol=protocol, kind=kind)
    assert fast[0].extra["features"]["seconds"] > 0
    monkeypatch.setattr(Linear, "reads_features", False)
    slow = train(tmp_path / "slow", protocol=protocol, kind=kind)
    assert "features" not in slow[0].extra
    assert_same(fast, slow)


def test_every_image_passes_once(tmp_path: Path) -> None:
    data = toy_data()
    images = len(data.pixels(data.train_split).labels) + data.num_test
    first, second = train(tmp_path / "one")[2], train(tmp_path / "other", seed=1)[2]
    assert first - second == images, "the next run of the same network and images has them already"
    assert second < 16, "what the rehearsal of a phase takes"


def test_another_network_and_other_images_have_features_of_their_own(tmp_path: Path) -> None:
    train(tmp_path / "a")
    second = train(tmp_path / "b", (LoRA(label="lora", rank=2), LINEAR))
    assert second[0].extra["features"]["seconds"] > 0
    data = toy_data()
    data.mean = (0.4, 0.5, 0.5)
    assert train(tmp_path / "c", data=data)[2] > 0
    again = train(tmp_path / "d")
    features.KEPT.start("")
    assert_same(again, train(tmp_path / "e"), 0.0)


def test_a_batch_in_parts(tmp_path: Path) -> None:
    assert_same(train(tmp_path / "whole"), train(tmp_path / "parts", parts=2))


def test_what_looks_at_changing_images_or_trains_the_network_computes_each(tmp_path: Path) -> None:
    data = toy_data()
    data.augment, data.stored_size = "fewshot", round(data.img_size * 256 / 224)
    result, _, passed = train(tmp_path / "augmented", data=data)
    assert "features" not in result.extra
    assert passed > RECIPE.epochs * 16
    assert "features" not in train(tmp_path / "lora", (LoRA(label="lora", rank=2),))[0].extra


def test_larger_splits_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "held")
    monkeypatch.setattr(features, "LIMIT", 1)
    features.KEPT.start("")
    other = train(tmp_path / "streamed")
    assert "features" not in other[0].extra
    assert other[2] > RECIPE.epochs * 16
    assert_same(whole, other, 0.0)


@pytest.mark.parametrize("limit", [features.LIMIT, 0])
def test_no_block_is_compiled_where_features_are_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(features, "LIMIT", limit)
    usual = train(tmp_path / "usual" / "run")
    monkeypatch.setattr(Backbone, "compiled", lambda self: pytest.fail("compiled"))
    asked = train(tmp_path / "asked" / "run", compile=True)
    assert_same(usual, asked, 0.0)


def test_features_are_computed_where_the_network_is_and_know_what_multiplies() -> None:
    """Lightning tells its module the device when training begins, which is later; a CPU shows that only on meta."""
    net, data = network("vit"), toy_data(0)
    net.new_head(data.task.num_classes)
    installed = LINEAR.install(net)
    module = PhaseModule(
        net.to("meta"), installed, RECIPE, data.preprocess, epochs=1, steps_per_epoch=1, seed_parts=(0,)
    )
    assert module.device.type == "cpu"
    assert features._device(module).type == "meta"
    net.to_empty(device="cpu")
    keys = set()
    for precision in ("fp32", "tf32"):
        Machine().place(net, precision)
        keys.add(features._key(module, data, "32-true"))
    Machine().place(net, "fp32")
    assert len(keys) == 2
