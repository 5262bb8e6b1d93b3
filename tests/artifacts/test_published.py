"""A network for others: the hub's folder read by timm and by transformers, ONNX by onnxruntime, with equal logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import headwise
from headwise.artifacts import published
from headwise.artifacts.export import export_merged
from headwise.artifacts.published import write_hub, write_onnx
from headwise.errors import CheckpointError, ConfigError
from made_cases import each
from made_networks import compose_config, distance, images, logits, perturb, plain_timm, run
from made_scripts import loaded, started

X = images(3)
FAST = ["dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1"]


def trained(root: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(root / "cache"))
        run(compose_config(*FAST, "trainer.progress=false", "logger.pictures=false", f"root={root}", *overrides))
    (folder,) = (file.parent for file in (root / "runs").glob("**/result.json"))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two phases."""
    return trained(tmp_path_factory.mktemp("outputs"), "method=hs_lora", "backbone=vit_tiny_random")


def adapted(network: str = "vit_tiny_random", method: str = "head_lora", **fields: Any) -> headwise.Adapted:
    torch.manual_seed(0)
    net = headwise.adapt(network, method, class_names=["a|b", "c\nd", "<e>"], weights="none", **fields)
    perturb(net.trainable_parameters(), 0.1)
    return net.eval()


def by_onnxruntime(file: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def test_a_run_is_a_folder_that_timm_loads(finished: Path, tmp_path: Path) -> None:
    net = headwise.load(finished)
    assert write_hub(net, tmp_path / "my hub") < 1e-5
    folder = tmp_path / "my hub"
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert distance(logits(model, X), logits(net, X)) < 1e-5
    slope = np.add.outer(np.arange(60) * 2, np.arange(40) * 3).astype(np.uint8)
    image = Image.fromarray(slope).convert("RGB")  # dSprites is grey
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert distance(transform(image)[None], net.preprocess(image)) < 0.02
    card = (folder / "README.md").read_text()
    words = "license: unknown", "dsprites_loc", "hs_lora", "| head_lora |", "train800val200", "Images were grey"
    for said in words:
        assert said in card, card
    assert f"{net.result.accuracy:.2f} %" in card and net.result.fingerprint in card  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == [folder]


def classifier(folder: Path) -> Any:
    from transformers import pipeline  # takes seconds, which a process that collects this file need not spend

    return pipeline("image-classification", str(folder), device="cpu")


def test_an_adapted_network_is_a_transformers_pipeline(tmp_path: Path) -> None:
    net = adapted()
    write_hub(net, tmp_path / "hub")
    classify = classifier(tmp_path / "hub")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    answers = {answer["label"]: answer["score"] for answer in classify(image, top_k=3)}
    assert set(answers) == {"a|b", "c\nd", "<e>"}
    expected = dict(zip(net.task.class_names, net.probabilities(image)[0].tolist(), strict=True))
    assert answers == pytest.approx(expected, abs=1e-4)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert r"0. a\|b" in card and "1. c d" in card and r"2. \<e>" in card and "not measured" in card


@each("network", ["swin", "vit"])
def test_a_module_is_published_as_timm_made_it(network: str, tmp_path: Path) -> None:
    net = headwise.adapt(plain_timm(network), "lora", rank=2).eval()
    perturb(net.trainable_parameters(), 0.1)
    write_hub(net, tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert distance(logits(model, X), logits(net, X)) < 1e-5
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == list("01234")
    classify = classifier(tmp_path / "hub")
    assert distance(logits(classify.model.timm_model, X), logits(net, X)) < 1e-5
    assert write_onnx(net, tmp_path / "net.onnx") < 1e-4


@each("stored", [None, 37, 256 * 32 // 224 + 1])
def test_what_timm_resizes_to_is_what_was_trained_on(stored: int | None) -> None:
    net = adapted()
    object.__setattr__(net.preparation, "stored_size", stored)
    described = published.described(net)["transform"]
    assert int(described["input_size"][-1] / described["crop_pct"]) == net.preparation.side


@each("method", ["head_lora", "adaptformer"])
def test_onnx_answers_any_batch(method: str, tmp_path: Path) -> None:
    net = adapted(method=method)
    assert write_onnx(net, tmp_path / "net.onnx") < 1e-4
    for count in (1, 2, 7):
        x = images(count, seed=count)
        assert distance(by_onnxruntime(tmp_path / "net.onnx", x), logits(net, x)) < 1e-4
    record = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(record["timm"])["class_names"] == list(net.task.class_names)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_narrow_networks_are_written_in_float32(tmp_path: Path) -> None:
    net = adapted().to(torch.bfloat16)
    write_hub(net, tmp_path / "hub")
    write_onnx(net, tmp_path / "net.onnx")
    assert distance(by_onnxruntime(tmp_path / "net.onnx", X), logits(net, X.bfloat16()).float()) < 0.05


def test_the_script_writes_all_three(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, words = loaded("export_merged"), [str(finished), "--json", str(tmp_path / "said.json")]
    names = {"--out": "net.safetensors", "--hub": "hub", "--onnx": "net.onnx"}
    words += [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    assert started(script, words) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert max(said["hub_difference"], said["onnx_difference"], said["random_difference"]) < 1e-4
    net = headwise.load(finished)
    assert distance(by_onnxruntime(tmp_path / "net.onnx", X), logits(net, X)) < 1e-4
    words = words[: words.index("--onnx")]  # the quick ones
    assert started(script, words) == 0, "what it wrote itself it replaces"
    (tmp_path / "hub" / "README.md").write_text("my own")
    capsys.readouterr()
    assert started(script, words) == 1
    assert "README.md was not written by this tool" in capsys.readouterr().err
    assert started(script, [*words, "--force"]) == 0
    assert started(script, [str(finished)]) == 1
    assert "nothing is to be written; give --out FILE, --hub FOLDER or --onnx FILE" in capsys.readouterr().err


def test_a_method_that_stays_in_place_has_onnx_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path, "method=adaptformer", "backbone=vit_tiny_random")
    with pytest.raises(CheckpointError, match="is wrapped"):
        export_merged(folder, hub=tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
    assert export_merged(folder, onnx=tmp_path / "net.onnx").onnx_difference < 1e-4  # type: ignore[operator]


def test_what_differs_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = adapted()
    write_hub(net, tmp_path / "hub")
    before = {file: file.read_bytes() for file in (tmp_path / "hub").iterdir()}
    monkeypatch.setattr(published, "read_back", lambda folder: lambda x: torch.full((len(x), 3), torch.nan))
    monkeypatch.setattr(published, "_running", lambda file: lambda x: torch.zeros(len(x), 3))
    for write, place in ((write_hub, "hub"), (write_onnx, "net.onnx")):
        with pytest.raises(CheckpointError, match="nothing was written"):
            write(net, tmp_path / place)
    assert {file: file.read_bytes() for file in (tmp_path / "hub").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_network_that_timm_cannot_make_is_refused(tmp_path: Path) -> None:
    model = plain_timm("vit")
    model._model_args = {}  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"timm cannot make the network .*headwise\.adapt\(NAME"):
        write_hub(headwise.adapt(model, rank=1), tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        write_onnx(adapted(), tmp_path / "net.bin")


def test_a_missing_package_is_named_in_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert started(loaded("export_merged"), [str(finished), "--onnx", str(tmp_path / "x.onnx")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ONNX needs the package onnxscript") and "pip install 'headwise[onnx]'" in line
    assert not (tmp_path / "x.onnx").exists()


def test_a_card_names_a_file_of_weights_and_not_its_place(tmp_path: Path) -> None:
    model = plain_timm("vit")
    save_file({n: t for n, t in model.state_dict().items() if not n.startswith("head.")}, tmp_path / "own.safetensors")
    net = headwise.adapt("vit_tiny_random", "lora", rank=2, num_classes=3, weights=tmp_path / "own.safetensors")
    write_hub(net, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "own.safetensors" in card and str(tmp_path) not in card
