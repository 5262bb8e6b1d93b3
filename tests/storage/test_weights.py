"""What a network and its weights are called: the record follows what was built and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from headwise.comparison.printed import BACKBONES
from headwise.errors import ConfigError, WeightsError
from headwise.network.backbone import BackboneSpec
from headwise.protocol.plan import plan_run
from headwise.storage.weights import BY_NAME, NETWORKS, PAPERS, network_name, weights_labels
from made_cases import each
from made_networks import CONF, compose_config

OTHER = "backbone.timm_name=vit_base_patch16_224.augreg_in21k"


def backbone(*overrides: str) -> dict[str, Any]:
    composed: Any = OmegaConf.to_container(compose_config("backbone=vit_b16_in21k", *overrides).backbone, resolve=True)
    return composed


def test_our_names_stand_for_what_their_files_say() -> None:
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "backbone").glob("*.yaml")}
    assert files.pop(BY_NAME)["timm_name"] == "${.name}"
    assert {name: (content["timm_name"], content["overrides"]) for name, content in files.items()} == NETWORKS
    assert all(content["name"] == name == network_name(content) for name, content in files.items())
    assert set(PAPERS) == set(BACKBONES.values())


@each(
    "overrides, name, labels",
    [
        ([], "vit_b16_in21k", []),
        ([OTHER], "vit_base_patch16_224.augreg_in21k", ["network vit_base_patch16_224.augreg_in21k"]),
        (
            ["+backbone.overrides.qk_norm=true"],
            "vit_base_patch16_224.orig_in21k with qk_norm=True",
            ["changed network (qk_norm=True)"],
        ),
        (["backbone.weights=none"], "vit_b16_in21k", ["random weights"]),
        (["backbone.weights=ViT-B_16.npz"], "vit_b16_in21k", ["unverified weights"]),
        (["backbone.weights=ViT-B_16.npz", "backbone.weights_are=official"], "vit_b16_in21k", []),
        (["backbone.weights=a.npz", "backbone.weights_are=MAE"], "vit_b16_in21k", ["weights MAE"]),
        ([OTHER, "backbone.stand_in=true"], "vit_base_patch16_224.augreg_in21k", ["stand-in weights"]),
        ([OTHER, "backbone.name=mine"], "mine", ["network vit_base_patch16_224.augreg_in21k"]),
        (["backbone.img_size=384"], "vit_b16_in21k", []),
    ],
)
def test_names_and_labels_follow_what_is_built(overrides: list[str], name: str, labels: list[str]) -> None:
    recipe = backbone(*overrides)
    assert network_name(recipe) == name
    assert weights_labels(recipe) == labels == BackboneSpec(**recipe).labels


@each(
    "overrides, message",
    [
        (
            ["backbone.weights_are=official"],
            "weights_are=official says what a file holds, but backbone.weights is auto",
        ),
        (["backbone.weights_are=official", "backbone.weights=none"], "but backbone.weights is none"),
        (["backbone.weights_are=''", "backbone.weights=a.npz"], "is official or a name for the file's weights, got ''"),
        (
            ["backbone.weights_are=true", "backbone.weights=a.npz"],
            "official or a name for the file's weights, got True",
        ),
    ],
)
def test_statements_that_say_nothing(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights_labels(backbone(*overrides))


def plan(*overrides: str) -> Any:
    return plan_run(compose_config("dataset=dsprites_loc", "protocol=smoke", *overrides))


@each(
    "changes",
    [
        ["backbone.timm_name=vit_small_patch16_224"],
        ["backbone.overrides.depth=3"],
        ["+backbone.overrides.qk_norm=true"],
    ],
)
def test_a_record_never_bears_the_name_of_another_network(changes: list[str]) -> None:
    plain, other = plan("backbone=vit_tiny_random"), plan("backbone=vit_tiny_random", *changes)
    assert plain.identity["backbone"]["name"] == "vit_tiny_random"
    for place in (other.identity["backbone"], other.config["backbone"]):
        assert place["name"] == network_name(other.config["backbone"]) != "vit_tiny_random"


@each("field", ["img_size=64", "mean=[0,0,0]", "std=[1,1,1]", "seed=1", "overrides.depth=1"])
def test_whatever_changes_the_network_changes_the_identity(field: str) -> None:
    plain, other = plan("backbone=vit_tiny_random"), plan("backbone=vit_tiny_random", f"backbone.{field}")
    assert plain.identity != other.identity


def test_what_is_said_of_weights_is_recorded_and_changes_no_identity(tmp_path: Path) -> None:
    nano = Path(__file__).parents[2] / "src/headwise/assets/vit_nano.safetensors"
    options = ("backbone=vit_nano", f"backbone.weights={nano}")
    stated = plan(*options, "backbone.weights_are=official")
    assert stated.identity == plan(*options).identity
    assert "weights_are" not in stated.identity["backbone"]
    recipe = BackboneSpec(**stated.config["backbone"])
    assert recipe.build().provenance["stated"] == "official, stated by the user"
    assert "stated" not in dataclasses.replace(recipe, weights_are=None).build().provenance


def test_a_name_of_timms_is_a_network_and_no_mere_label() -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"
    planned = plan("backbone=timm", f"backbone.name={name}")
    assert (
        planned.identity["backbone"] | {"name": name, "timm_name": name, "img_size": None}
        == (planned.identity["backbone"])
    )
    assert planned.identity["backbone"]["weights"] == f"hub:{name}"
    assert weights_labels(planned.config["backbone"]) == [f"network {name}"]
    changed = {**planned.config["backbone"], "overrides": {"depth": 2}}
    assert network_name(changed) == f"{name} with depth=2"
    fields = backbone(f"backbone.name={name}")
    with pytest.raises(
        ConfigError, match=r"would be a mere label of vit_base_patch16_224.orig_in21k; a network of timm's is .*"
    ):
        network_name(fields, ["backbone.name"])
    assert network_name(fields, ["backbone.name", "backbone.timm_name"]) == network_name(fields) == name


def test_a_missing_file_is_named_whatever_is_said_of_it() -> None:
    with pytest.raises(WeightsError, match=r"weights file 'gone.npz' does not exist"):
        plan("backbone=vit_b16_in21k", "backbone.weights=gone.npz", "backbone.weights_are=official")


@each(
    "key, instead",
    [
        ("num_classes", "the run decides it"),
        ("img_size", "use backbone.img_size"),
        ("checkpoint_path", "weights are named by backbone.weights"),
        ("pretrained_cfg_overlay", "weights are named by backbone.weights"),
    ],
)
def test_overrides_change_the_architecture_only(key: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone.overrides cannot hold {key}: {instead}"):
        BackboneSpec(name="x", timm_name="vit_tiny_patch16_224", weights="none", overrides={key: 1}).build()


@each("size", [[32, 64], "32", 32.5, True])
def test_the_image_size_is_one_whole_number(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"backbone.img_size must be the side of a square in pixels, a whole .*, got"):
        BackboneSpec(name="x", timm_name="vit_tiny_patch16_224", weights="none", img_size=size).build()
