"""Steps that a GPU need not wait for: AdamW in one pass, and no number read; a CPU shows both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseStore
from headwise.training.loop import Machine, PhaseModule, hush, run_phases
from made_cases import each
from made_networks import composed_method, network, toy_data

RECIPE = Protocol(name="test", epochs=2, lr=1e-2, drop_path=0.2)


class Reads(TorchDispatchMode):
    """Counts numbers of tensors that become Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def train(root: Path, name: str, batch_size: int) -> tuple[int, float]:
    """Numbers that training a method reads, and the loss that it reaches."""
    method = composed_method(name)
    machine = Machine(threads=1, progress=False)
    with Reads() as reads:
        (result,) = run_phases(
            network("vit"),
            [method],
            toy_data(0, batch_size),
            RECIPE,
            PhaseStore(root),
            {"size": batch_size},
            seed=0,
            machine=machine,
            say=lambda line: None,
        )
    assert result.train_loss is not None
    return reads.count, result.train_loss


def test_which_adamw_is_taken() -> None:
    def fuses(device: str, **recipe: Any) -> bool | None:
        module: Any = SimpleNamespace(
            net=SimpleNamespace(parameters=lambda: [SimpleNamespace(device=torch.device(device))]),
            protocol=Protocol(name="test", **recipe),
        )
        return PhaseModule._fuses(module)

    assert (fuses("cpu"), fuses("cuda"), fuses("cuda", precision="bf16")) == (None, True, True)
    assert fuses("cuda", clip=1.0) is None and fuses("cuda", precision="fp16") is None


def test_it_makes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hush()
    many, usual = train(tmp_path / "usual", "lora", 16)
    monkeypatch.setattr(PhaseModule, "_fuses", lambda self: True)
    few, fused = train(tmp_path / "fused", "lora", 16)
    assert many > few, "torch's own choice on a CPU reads the number of steps from each tensor"
    assert fused == pytest.approx(usual, abs=1e-5)


@each("name", ["lora", "head_lora", "dora", "bi_lora", "cara", "bitfit", "adaptformer", "vpt_deep", "full"])
def test_more_steps_read_no_more_numbers(name: str, tmp_path: Path) -> None:
    hush()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseModule, "_fuses", lambda self: True)
        patch.setattr(PhaseModule, "_watch", lambda *_: None)  # on a CPU it reads at once
        few, many = (train(tmp_path / str(size), name, size)[0] for size in (16, 4))
    assert many == few
