"""Weights files: layouts of other libraries give timm's numbers, and what is no such network is refused by name."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headwise.errors import WeightsError
from headwise.network.backbone import Backbone, BackboneSpec
from made_cases import each
from made_networks import images, logits, spec
from made_weights import google_file, masked_autoencoder, microsoft, trunk

X = images()
DINO = BackboneSpec(
    name="x",
    timm_name="vit_small_patch14_dinov2",
    img_size=32,
    overrides={"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4},
)


def loaded(recipe: BackboneSpec, file: Path) -> Backbone:
    return dataclasses.replace(recipe, weights=str(file)).build().eval()


def written(state: Any, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    return file


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def teacher_of_dino(state: dict[str, Tensor]) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.randn(4, 4), "head.last_layer.weight_g": torch.randn(4, 1)}
    teacher = {**prefixed("backbone.")(state), **head}
    return {"student": prefixed("module.")(teacher), "teacher": teacher, "epoch": 9, "args": argparse.Namespace(lr=1)}


LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], list[str]]] = {
    "model": (lambda state: {"model": state, "epoch": 300}, []),
    "state_dict": (lambda state: {"state_dict": state}, []),
    "model_ema": (lambda state: {"model_ema": state}, []),
    "teacher": (lambda state: {"teacher": state}, []),
    "nested": (lambda state: {"state_dict": {"model": state}}, []),
    "namespace": (lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, model="vit")}, []),
    "two wrappers": (lambda state: {"model": state, "model_ema": trunk(seed=6)}, ["took 'model', left model_ema"]),
    **{
        prefix: (prefixed(prefix), [f"took off the prefix '{prefix}'"])
        for prefix in ("module.", "model.", "backbone.", "encoder.", "module.backbone.", "network.model.")
    },
    "classifier beside a prefix": (
        lambda state: {**prefixed("backbone.")(state), "fc.weight": torch.ones(3, 3), "head.bias": torch.ones(3)},
        ["took off the prefix 'backbone.'"],
    ),
    "lightning": (
        lambda state: {"state_dict": prefixed("model.")(state), "pytorch-lightning_version": "2.4"},
        ["took off the prefix 'model.'"],
    ),
    "dino": (teacher_of_dino, ["took 'teacher', left student", "took off the prefix 'backbone.'"]),
    "mask token": (lambda state: {**state, "mask_token": torch.ones(1, 48)}, ["left out mask_token (1 tensors)"]),
    "mae": (
        lambda state: {"model": masked_autoencoder(state)},
        ["left out mask_token, decoder (4 tensors)"],
    ),
    "representation layer": (
        lambda state: {**state, "pre_logits.fc.weight": torch.ones(3, 3)},
        ["left out pre_logits (1 tensors)"],
    ),
}


@each("name", LAYOUTS)
def test_a_layout_gives_the_same_network(name: str, tmp_path: Path) -> None:
    layout, notes = LAYOUTS[name]
    plain = loaded(spec("vit"), written(trunk(), tmp_path / "plain.pth"))
    net = loaded(spec("vit"), written(layout(trunk()), tmp_path / "other.pth"))
    assert plain.notes == []
    assert net.notes == notes
    assert torch.equal(logits(net, X), logits(plain, X))


@each("prefix", ["", "module.", "backbone."])
def test_microsofts_swin(prefix: str, tmp_path: Path) -> None:
    plain = loaded(spec("swin"), written(trunk("swin"), tmp_path / "plain.pth"))
    state = microsoft(trunk("swin"))
    assert set(state) - set(trunk("swin"))
    net = loaded(spec("swin"), written({"model": prefixed(prefix)(state)}, tmp_path / "w.pth"))
    assert torch.equal(logits(net, X), logits(plain, X))


def hugging_face(kind: str) -> tuple[nn.Module, BackboneSpec]:
    """A random network of the transformers library, and the recipe of ours that is the same function."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    if kind.startswith("Dinov2"):
        config, recipe = getattr(transformers, f"{kind.removesuffix('Model')}Config")(**sizes), DINO
    else:
        config, recipe = transformers.ViTConfig(**sizes, intermediate_size=192, layer_norm_eps=1e-6), spec("vit")
    if kind == "Dinov2WithRegistersModel":
        recipe = dataclasses.replace(
            DINO, timm_name="vit_small_patch14_reg4_dinov2", overrides={**DINO.overrides, "reg_tokens": 4}
        )
    torch.manual_seed(3)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model, recipe


@each("saved", ["hub", "state"])
@each("kind", ["ViTModel", "ViTForImageClassification", "Dinov2Model", "Dinov2WithRegistersModel"])
def test_hugging_faces_names(kind: str, saved: str, tmp_path: Path) -> None:
    model, recipe = hugging_face(kind)
    if saved == "hub":
        model.save_pretrained(tmp_path)  # type: ignore[operator]
        file = tmp_path / "model.safetensors"
    else:
        file = written(model.state_dict(), tmp_path / "w.pth")
    net = loaded(recipe, file)
    with torch.no_grad():
        theirs = getattr(model, "vit", model)(X).last_hidden_state[:, 0]
    torch.testing.assert_close(logits(net, X), theirs, rtol=1e-4, atol=1e-5)
    assert "took Hugging Face's names for timm's" in net.notes


def test_what_was_left_out_of_a_hub_file_is_said(tmp_path: Path) -> None:
    model, recipe = hugging_face("ViTModel")
    net = loaded(recipe, written(model.state_dict(), tmp_path / "w.safetensors"))
    assert net.notes == ["left out pooler (2 tensors)", "took Hugging Face's names for timm's"]


@each(
    "change, message",
    [
        (prefixed("clip_model."), r"its names begin with 'clip_model\.'; allowed: no prefix, or one made of module, "),
        (
            lambda s: {**prefixed("model.")(s), "stranger.weight": torch.ones(2), "other": torch.ones(2)},
            r"beside its network 'model\.' it also holds stranger.weight, other",
        ),
        (
            lambda s: prefixed("student.")(s) | prefixed("teacher.")(s),
            r"holds several networks, under 'student\.', 'teacher\.'",
        ),
        (lambda s: {"weights": s}, r"holds no named tensors but the entries weights; allowed: tensors by name, or be"),
        (lambda s: list(s.values()), r"holds no named tensors but a list"),
        (lambda s: {}, r"holds no named tensors"),
        (lambda s: {**s, "dist_token": torch.ones(1, 1, 48)}, r"it also holds dist_token \(1, 1, 48\)"),
        (lambda s: {**s, "pos_embed": torch.ones(1, 19, 48)}, r"pos_embed is \(1, 19, 48\), .* only a square grid"),
        (lambda s: {**s, "pos_embed": torch.ones(1, 17, 64)}, r"pos_embed is \(1, 17, 64\)"),
        (lambda s: {**s, "patch_embed.proj.weight": torch.ones(48, 3, 16, 16)}, r"is \(48, 3, 16, 16\), the backbone"),
        (lambda s: {**s, "blocks.2.norm1.weight": torch.ones(48)}, r"it also holds blocks.2.norm1.weight \(48,\)"),
    ],
)
def test_another_network_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        loaded(spec("vit"), written(change(trunk()), tmp_path / "w.pth"))


def test_swin_with_other_heads_is_refused(tmp_path: Path) -> None:
    state = trunk("swin")
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[key] = torch.ones(state[key].shape[0], 2)
    with pytest.raises(WeightsError, match=r"relative_position_bias_table is \(49, 2\), the backbone has \(49, 4\)"):
        loaded(spec("swin"), written(state, tmp_path / "w.pth"))


class Stranger:
    """Something that only a pickle could hold."""


@each("held, named", [(Stranger(), "Stranger"), (argparse.Namespace(root=pathlib.PurePosixPath("/a")), "Path")])
def test_a_pickled_object_is_named_and_the_way_out(held: Any, named: str, tmp_path: Path) -> None:
    file = written({"model": trunk(), "args": held}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"also holds a \S*{named}\b.*could run code; .*torch.save\(state_dict, NEW"
    ):
        loaded(spec("vit"), file)


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(file, **arrays)
    return file


@each(
    "sizes, message",
    [
        ({"patch": 16}, r"embedding/kernel is \(16, 16, 3, 48\), the backbone has \(8, 8, 3, 48\)"),
        ({"depth": 3}, "it has 3 blocks, the backbone has 2"),
        ({"depth": 1}, "it has 1 blocks, the backbone has 2"),
        ({"heads": 3}, r"key/kernel is \(48, 3, 16\), the backbone has \(48, 4, 12\)"),
        ({"width": 64}, r"is \(1, 1, 64\), the backbone has \(1, 1, 48\)"),
        ({"tokens": 19}, r"pos_embedding is \(1, 19, 48\), .* only a square grid"),
    ],
)
def test_google_files_are_compared_before_anything_is_resampled(sizes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        loaded(spec("vit"), google_file(tmp_path / "w.npz", **sizes))


@each(
    "change, message",
    [
        (lambda a: a.pop("cls"), "it lacks cls"),
        (lambda a: a.pop("embedding/kernel"), "not in Google's ViT layout: it lacks embedding/kernel and holds cls, "),
        (
            lambda a: a.update({"Transformer/encoderblock_1/LayerNorm_0/scale": np.ones(1, np.float32)}),
            r"LayerNorm_0/scale is \(1,\), the backbone has \(48,\)",
        ),
        (lambda a: [a.pop(key) for key in list(a) if "MlpBlock" in key], r"it lacks Transformer/.*MlpBlock_N/Dense_0"),
    ],
)
def test_google_files_with_other_arrays(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        loaded(spec("vit"), changed(google_file(tmp_path / "w.npz"), change))


def test_google_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    net = loaded(spec("vit"), google_file(tmp_path / "w.npz", tokens=37))
    assert logits(net, X).isfinite().all()


VALUES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "integer": (lambda t: (100 * t).to(torch.int32), r"holds int32 values"),
    "bytes": (lambda t: t.to(torch.uint8), r"holds uint8 values"),
    "complex": (lambda t: t.to(torch.complex64), r"holds complex64 values"),
    "bool": (lambda t: t.bool(), r"holds bool values"),
    "zero": (torch.zeros_like, r"is zero throughout"),
    "nan": (lambda t: torch.full_like(t, torch.nan), r"holds values that are not finite"),
    "inf": (lambda t: torch.full_like(t, torch.inf), r"holds values that are not finite"),
}


@each("kind", VALUES)
@each("name", ["w.safetensors", "w.pth", "w.npz"])
@each("which", ["all", "one"])
def test_values_that_are_no_weights(kind: str, name: str, which: str, tmp_path: Path) -> None:
    change, message = VALUES[kind]
    if name == "w.npz":
        one = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"

        def spoil(arrays: dict[str, Any]) -> None:
            for key in arrays if which == "all" else [one]:
                arrays[key] = change(torch.from_numpy(arrays[key])).numpy()

        file = changed(google_file(tmp_path / name), spoil)
    else:
        state = trunk()
        for key in state if which == "all" else ["blocks.1.mlp.fc1.weight"]:
            state[key] = change(state[key])
        file = written(state, tmp_path / name)
    with pytest.raises(WeightsError, match=message):
        loaded(spec("vit"), file)


@each("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in trunk().items()}
    net = loaded(spec("vit"), written(state, tmp_path / "w.safetensors"))
    assert torch.equal(net.model.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"].float())
