"""Published Bi-LoRA files: a made one bit for bit, the real ones against values read with the authors' loader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headwise.artifacts.released import Layout, read_bi_lora
from headwise.errors import CheckpointError, ConfigError
from headwise.methods.bi_lora import BiLoRA
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import Site
from made_cases import each
from made_networks import CLASSES, REPO, distance, images, logits, network, perturb
from made_scripts import loaded

SHARED = Path(os.environ.get("HEADWISE_SHARED", REPO.parent / "shared")) / "data" / "bilora"
TINY = Layout(blocks=2, width=48, rank=4)


def as_published(stored: dict[str, Tensor], head: list[str]) -> bytes:
    """The authors' byte order, from what this project stores."""
    parts = [f"s0.b{b}.{p}.{f}.{part}" for b in (0, 1) for p in "qv" for f in "AB" for part in ("codes", "stats")]
    return b"".join(np.ascontiguousarray(stored[name].numpy()).tobytes() for name in [*parts, *head])


@each("head_bits", [None, 1])
def test_round_trip(head_bits: int | None, tmp_path: Path) -> None:
    method = BiLoRA(label="bi", rank=4, scale=10.0, head_bits=head_bits)
    net = network("vit")
    torch.manual_seed(0)
    installed = method.install(net)
    perturb(list(installed.trainable().values()))
    names = ["head.weight", "head.bias"] if head_bits is None else ["head.codes", "head.stats"]
    file = tmp_path / "svhn-bit1-dim4.bin"
    file.write_bytes(as_published(installed.packed(), names))
    out = tmp_path / "out.safetensors"
    flags = ["--width", "48", "--blocks", "2", "--head-bits", str(head_bits or 32)]
    assert loaded("import_bilora").main([str(file), str(out), *flags]) == 0
    fresh = network("vit")
    again = method.install(fresh)
    again.unpack(load_file(out))
    assert torch.equal(logits(fresh.eval(), images()), logits(net.eval(), images()))


def test_wrong_length(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    for size in (0, 100, TINY.adapter_bytes, TINY.adapter_bytes + TINY.head_bytes(CLASSES) - 1):
        file.write_bytes(b"\0" * size)
        with pytest.raises(CheckpointError, match=rf"{size} bytes are no checkpoint of rank 4 and 1 bit"):
            read_bi_lora(file, TINY)
    file.write_bytes(b"\0" * (TINY.adapter_bytes + TINY.head_bytes(CLASSES)))
    with pytest.raises(CheckpointError, match=r"a file of 7 classes has 1628 bytes \(256 of adapter\), got 1236"):
        read_bi_lora(file, Layout(blocks=2, width=48, rank=4, num_classes=7))
    with pytest.raises(CheckpointError, match=r"none\.bin cannot be read"):
        read_bi_lora(tmp_path / "none.bin", TINY)
    with pytest.raises(ConfigError, match="bits must be 1, 2, 4 or 8"):
        Layout(bits=3)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"\xff" * (TINY.adapter_bytes + TINY.head_bytes(CLASSES)))
    with pytest.raises(CheckpointError, match=r"s0\.b0\.q\.A\.stats holds values that are not finite"):
        read_bi_lora(file, TINY)


def expected(task: str) -> dict[str, Any]:
    text = (SHARED / "SOURCE.md").read_text()
    return json.loads(text.split("```json")[1].split("```")[0])[task]


@pytest.mark.data
@pytest.mark.parametrize(("task", "scale", "classes"), [("svhn", 10.0, 10), ("clevr_count", 1.0, 8)])
def test_published_files(task: str, scale: float, classes: int) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    file = SHARED / f"{task}-bit1-dim32.bin"
    layout = Layout()
    assert layout.adapter_bytes == 147_840
    assert layout.classes(file.stat().st_size) == classes
    tensors = read_bi_lora(file, layout)
    values = expected(task)
    assert float(tensors["head.weight"].sum()) == pytest.approx(values["head.weight_sum"], abs=2e-4)
    assert tensors["head.bias"].tolist() == pytest.approx(values["head.bias"], abs=1e-6)
    for key in (key for key in values if key.startswith("block")):
        block, proj = key.removeprefix("block").split(".")
        site = Site(0, int(block), proj, 12, 64)
        delta = BiLoRA(label="bi", scale=scale).build(site, torch.zeros(768, 768))
        assert isinstance(delta, LowRank)
        prefix = f"{site.key}."
        delta.unpack({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        down, up = (tensor.detach() for tensor in delta.values())
        assert torch.unique(down).tolist() == pytest.approx(values[key]["down_values"], abs=1e-6)
        assert torch.unique(up).tolist() == pytest.approx(values[key]["up_values"], abs=1e-6)
        dense = delta.weight(torch.zeros(768, 768)).detach()
        assert float(dense.norm()) == pytest.approx(values[key]["delta_fro"], abs=2e-4)
        assert dense[0, :3].tolist() == pytest.approx(values[key]["delta[0,:3]"], abs=1e-6)
        assert dense.view(12, -1).norm(dim=1).tolist() == pytest.approx(values[key]["head_fro"], abs=2e-4)
        assert distance(dense, scale * up[0] @ down[0]) <= 1e-4
