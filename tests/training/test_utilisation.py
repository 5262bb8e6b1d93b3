"""Utilisation of a GPU: its stated peak, the arithmetic of a step, and that counting changes no number."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.methods.base import Method
from headwise.protocol.recipe import PRECISIONS, Protocol
from headwise.report.ending import summary
from headwise.results.records import PhaseResult
from headwise.results.store import PhaseStore
from headwise.training import phase, utilisation
from headwise.training.loop import TENSORS, Machine, PhaseModule, hush, read_tensors, run_phases
from headwise.training.utilisation import PEAKS, flops_per_image, peak_of
from made_cases import each
from made_networks import composed_method, network, toy_data
from made_results import run as made_run

RECIPE = Protocol(name="test", epochs=2, lr=1e-2, drop_path=0.2)
GPU = torch.device("cuda", 0)


def train(root: Path, method: Method) -> tuple[PhaseResult, dict[str, torch.Tensor]]:
    (result,) = run_phases(
        network("vit"),
        [method],
        toy_data(),
        RECIPE,
        PhaseStore(root),
        {"seed": 0},
        seed=0,
        machine=Machine(threads=1, progress=False),
        say=lambda line: None,
    )
    return result, read_tensors(PhaseStore(root).path(result.fingerprint) / TENSORS)


def counted(name: str, parts: int = 1) -> float:
    net, data = network("vit"), toy_data()
    net.new_head(data.task.num_classes)
    steps: dict[str, Any] = {"epochs": 1, "steps_per_epoch": 2, "seed_parts": (0,), "parts": parts}
    module = PhaseModule(net, composed_method(name).install(net), RECIPE, data.preprocess, **steps)
    flops = flops_per_image(module, data.train_dataloader(), contextlib.nullcontext())
    assert flops is not None
    assert all(parameter.grad is None for parameter in net.parameters())
    return flops


def test_only_a_known_gpu_has_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_of(torch.device("cpu"), "bf16") is None
    for name, known in (("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_of(GPU, "bf16") == known
    assert all(peaks.keys() == PRECISIONS.keys() for peaks in PEAKS.values())
    assert all(peaks["bf16"] > peaks["tf32"] >= peaks["fp32"] for peaks in PEAKS.values())


def test_arithmetic_is_that_of_the_passes() -> None:
    """Forward once; backward the inputs of what lies above the first trained tensor, and the trained tensors."""
    probe, lora, full = map(counted, ("linear", "lora", "full"))
    assert probe < lora < full
    # the forward pass, and nearly as much for the inputs of the layers
    assert 1.7 * probe < lora < 2.3 * probe and 2.7 * probe < full < 3.1 * probe


def test_parts_of_a_batch_have_their_share() -> None:
    assert counted("full", parts=4) == pytest.approx(counted("full"))


@each("name", ["lora", "bi_lora", "adalora", "dylora", "mlae", "head_lora"])
def test_counting_changes_no_number(name: str, tmp_path: Path) -> None:
    hush()
    method = composed_method(name)
    plain, tensors = train(tmp_path / "plain", method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase, "peak_of", lambda *_: 1e15)
        told, same = train(tmp_path / "told", method)
    assert told.train_loss == plain.train_loss and told.accuracy == plain.accuracy
    assert all(torch.equal(tensor, same[key]) for key, tensor in tensors.items())
    assert told.fingerprint == plain.fingerprint and "mfu" not in plain.extra
    assert 0 < told.extra["mfu"]["share"] < 1 and told.extra["mfu"]["peak"] == 1e15


def test_a_cpu_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hush()
    monkeypatch.setattr(utilisation, "counter", lambda: pytest.fail("counted"))
    assert "mfu" not in train(tmp_path, composed_method("lora"))[0].extra


def test_a_run_says_how_fast_it_was() -> None:
    result = made_run("lora")
    assert "Images/s" not in summary(result)
    mfu = {"flops_per_image": 1e11, "peak": 989e12, "share": 0.312}
    quick = dataclasses.replace(result.phases[0], images_per_second=1234.5, extra={"mfu": mfu})
    said = summary(dataclasses.replace(result, phases=[quick]))
    assert "Images/s in training: 1,234 (31.2% of the GPU's 989 TFLOP/s)" in said
