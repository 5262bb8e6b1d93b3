"""Released CaRA files: one made here from tensorly's CP tensors, as a first phase of a run, and broken ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorly as tl
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from headwise.artifacts.released import CARA_NAMES, read_cara
from headwise.errors import CheckpointError, ConfigError
from headwise.methods.cara import CaRA
from headwise.network.backbone import BackboneSpec
from headwise.results.store import ResultStore
from headwise.runs.experiment import plan_run, run
from headwise.storage.hashes import file_sha256
from made_cases import each
from made_networks import CLASSES, compose_config, distance, images, logits, network
from made_scripts import loaded

BLOCKS, WIDTH, HEADS, PARTS, RANK, SCALE = 2, 48, 4, 4, 3, 0.5


def released(num_classes: int = CLASSES, rank: int = RANK) -> dict[str, Tensor]:
    """A state dict as the authors save it: timm's own tensors, and the model's factors in their order."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=generator)

    state = dict(network("vit").export_state_dict())
    state |= {"CP_A1": draw(3 * BLOCKS, rank), "CP_A2": draw(WIDTH, rank), "CP_A3": draw(HEADS, rank)}
    state |= {"CP_A4": draw(WIDTH // HEADS, rank), "CP_P1": draw((1 + 2 * PARTS) * BLOCKS, rank)}
    state |= {"CP_P2": draw(WIDTH, rank), "CP_P3": draw(WIDTH, rank), "CP_R1": draw(rank), "CP_R2": draw(rank)}
    state |= {"CP_bias1": draw(WIDTH), "CP_bias2": draw(PARTS * WIDTH), "CP_bias3": draw(WIDTH)}
    return state | {"head.weight": draw(num_classes, WIDTH), "head.bias": draw(num_classes)}


def dense(state: dict[str, Tensor]) -> dict[str, Any]:
    """timm's tensors with every update added, contracted by tensorly in double precision."""
    tl.set_backend("numpy")
    found = {name: tensor.double().numpy() for name, tensor in state.items()}
    T = tl.cp_to_tensor((found["CP_R1"], [found[f"CP_A{i}"] for i in (1, 2, 3, 4)]))  # (3 L, in, heads, channels)
    S = tl.cp_to_tensor((found["CP_R2"], [found[f"CP_P{i}"] for i in (1, 2, 3)]))
    for block in range(BLOCKS):
        path = f"blocks.{block}"
        qkv = T[3 * block : 3 * block + 3].reshape(3, WIDTH, WIDTH).swapaxes(1, 2).reshape(3 * WIDTH, WIDTH)
        out, *mlp = S[9 * block : 9 * block + 9]
        down = np.concatenate(mlp[PARTS:])
        found[f"{path}.attn.qkv.weight"] += SCALE * qkv
        found[f"{path}.attn.proj.weight"] += SCALE * out
        found[f"{path}.mlp.fc1.weight"] += SCALE * np.concatenate(mlp[:PARTS])
        found[f"{path}.mlp.fc2.weight"] += SCALE * down.T
        for index, name in ((1, "attn.proj"), (2, "mlp.fc1"), (3, "mlp.fc2")):
            found[f"{path}.{name}.bias"] += SCALE * found[f"CP_bias{index}"]
    return {name: array for name, array in found.items() if not name.startswith("CP_")}


def saved(folder: Path, state: Any) -> Path:
    file = folder / "vit_svhn_0.9_seed_14.pt"
    torch.save(state, file)
    return file


def test_merged_weights_are_those_of_the_dense_tensors(tmp_path: Path) -> None:
    state = released()
    out = tmp_path / "svhn.safetensors"
    assert loaded("import_cara").main([str(saved(tmp_path, state)), str(out)]) == 0
    net = network("vit")
    installed = CaRA(label="cara", rank=RANK, scale=SCALE).install(net)
    installed.unpack(load_file(out))
    before = logits(net.eval(), images())
    installed.merge()
    merged, expected = net.export_state_dict(), dense(state)
    assert merged.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(merged[name].double().numpy(), array, atol=1e-6, err_msg=name)
    assert distance(logits(net, images()), before) <= 1e-5


def test_the_released_sizes_are_those_of_vit_b16(tmp_path: Path) -> None:
    """As set_CP of the authors' vit_cp.py makes them at its default rank."""
    shapes = {"CP_A1": (36, 32), "CP_A2": (768, 32), "CP_A3": (12, 32), "CP_A4": (64, 32), "CP_P1": (108, 32)}
    shapes |= {"CP_P2": (768, 32), "CP_P3": (768, 32), "CP_R1": (32,), "CP_R2": (32,)}
    shapes |= {
        "CP_bias1": (768,),
        "CP_bias2": (3072,),
        "CP_bias3": (768,),
        "head.weight": (10, 768),
        "head.bias": (10,),
    }
    found = read_cara(saved(tmp_path, {name: torch.ones(shape) for name, shape in shapes.items()}))
    assert (found.rank, found.blocks, found.width, found.heads, found.num_classes) == (32, 12, 768, 12, 10)
    plain: Any = OmegaConf.to_container(compose_config("backbone=vit_b16_in21k", "backbone.weights=none").backbone)
    with torch.device("meta"):
        net = BackboneSpec(**plain).build()
        net.new_head(10)
        installed = CaRA(label="cara", rank=32).install(net)
    own = {name: tensor.shape for name, tensor in installed.trainable().items()}
    assert own == {name: tensor.shape for name, tensor in found.tensors.items()}
    assert sum(tensor.numel() for name, tensor in found.tensors.items() if not name.startswith("head")) == 85_440


TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]
TINY += [
    "trainer.threads=1",
    "trainer.progress=false",
    "logger.pictures=false",
    "method=hs_lora",
    "method@method.first=cara",
    "rank=r4_h2",
]


def test_it_is_a_first_phase_that_is_tested_and_merged(tmp_path: Path) -> None:
    out, backbone = tmp_path / "phase.safetensors", tmp_path / "backbone.safetensors"
    file = saved(tmp_path, released(num_classes=16))
    assert loaded("import_cara").main([str(file), str(out), "--backbone", str(backbone)]) == 0
    words = [f"method.first.checkpoint={out}", "method.first.rank=3", "method.first.scale=0.5", f"root={tmp_path}"]
    cfg = compose_config(*[word for word in TINY if "rank=" not in word], *words, f"backbone.weights={backbone}")
    assert plan_run(cfg).identity["method"]["first"]["checkpoint"] == file_sha256(out)
    run(cfg)
    (result,) = ResultStore(tmp_path).all()
    first, second = result.phases
    assert (first.label, first.epochs, first.steps) == ("cara", 0, 0)
    assert first.num_test == second.num_test == cfg.protocol.test_images
    assert first.num_tunable == sum(t.numel() for n, t in load_file(out).items() if not n.startswith("head"))
    assert second.label == "head_lora"
    assert second.steps > 0
    (kept,) = tmp_path.glob("runs/**/phase-1.safetensors")
    assert all(torch.equal(tensor, load_file(out)[name]) for name, tensor in load_file(kept).items())


def test_another_rank_is_refused_by_name(tmp_path: Path) -> None:
    tensors = read_cara(saved(tmp_path, released())).tensors
    installed = CaRA(label="cara", rank=4).install(network("vit"))
    with pytest.raises(CheckpointError, match=r"s0\.b0\.q: shared\.A1 is \(6, 3\) in the file, \(6, 4\) here"):
        installed.unpack(tensors)


@each(
    "name, value, message",
    [
        ("CP_A2", torch.zeros(48, 4), "CP_A2 is (48, 4), expected (48, 3): rank 3 (CP_R1), 2 blocks (CP_A1)"),
        ("CP_A1", torch.zeros(7, 3), "CP_A1 is (7, 3), its rows must be 3 a block"),
        ("CP_A1", torch.zeros(9, 3), "CP_P1 is (18, 3), expected (27, 3): rank 3 (CP_R1), 3 blocks (CP_A1)"),
        ("CP_bias2", torch.zeros(50), "CP_bias2 is (50,), its length must be a multiple of the width 48"),
        ("CP_bias3", torch.zeros(47), "CP_bias3 is (47,), expected (48,)"),
        ("CP_A3", torch.zeros(4), "CP_A3 is (4,), it must have 2 dimension(s)"),
        ("head.weight", torch.zeros(5, 47), "head.weight is (5, 47), expected (5, 48)"),
        ("CP_P3", torch.full((48, 3), torch.nan), "CP_P3 holds values that are not finite"),
        ("head.bias", None, "is no released CaRA checkpoint: it lacks head.bias (1 in all)"),
        ("CP_R2", None, "is no released CaRA checkpoint: it lacks CP_R2 (1 in all)"),
        ("CP_R2", "text", "is no state dict: it must map names to tensors"),
    ],
)
def test_broken_files(name: str, value: Any, message: str, tmp_path: Path) -> None:
    state: dict[str, Any] = released()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_cara(saved(tmp_path, state))


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_nothing_but_tensors_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, {**released(), "x": Evil()})
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        read_cara(file)
    assert capsys.readouterr().out == ""
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot be read as tensors .*is the download complete"):
        read_cara(file)
    with pytest.raises(CheckpointError, match=r"none\.pt cannot be read: No such file"):
        read_cara(tmp_path / "none.pt")


def test_the_command_names_the_scale_of_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = saved(tmp_path, {n: t for n, t in released().items() if n in CARA_NAMES}), tmp_path / "x.safetensors"
    assert loaded("import_cara").main([str(file), str(out), "--task", "svhn"]) == 0
    said = capsys.readouterr().out
    assert "3 components, 2 blocks of width 48 with 4 heads, 5 classes" in said
    assert "method.first.rank=3 method.first.scale=100" in said
    assert loaded("import_cara").main([str(file), str(out), "--task", "shvn"]) == 1
    assert "of task 'shvn' (did you mean 'svhn'?)" in capsys.readouterr().err
    assert loaded("import_cara").main([str(file), str(out), "--backbone", str(tmp_path / "b.safetensors")]) == 1
    assert "holds no backbone" in capsys.readouterr().err


def test_the_yaml_takes_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match="cannot hash nowhere"):
        plan_run(compose_config(*TINY[:-1], "method.first.checkpoint=nowhere"))


def test_a_released_file_itself_is_no_checkpoint(tmp_path: Path) -> None:
    file = saved(tmp_path, released(num_classes=16))
    words = [word for word in TINY if "rank=" not in word]
    with pytest.raises(
        CheckpointError, match=r"cannot be read .*a checkpoint is a saved phase; scripts/import_cara\.py"
    ):
        run(compose_config(*words, f"method.first.checkpoint={file}", f"root={tmp_path}"))
