"""Networks by timm's name: spelling, and what timm's record says of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm

import headwise
from headwise.errors import ConfigError
from headwise.network.backbone import BackboneSpec
from headwise.network.catalog import check_name, side_of
from made_cases import each
from made_networks import CONF


@each(
    "name, message",
    [
        (
            "vit_bas_patch16_224",
            r"^unknown timm network 'vit_bas_patch16_224' \(did you mean 'vit_base_patch16_224'\?\)",
        ),
        ("vit_smal_patch14_dinov2.lvd142m", r"\(did you mean 'vit_small_patch14_dinov2.lvd142m'\?\); timm.list_models"),
        ("timm/eva02_tiny_patch14_224.mim_in22k", r"\(did you mean 'eva02_tiny_patch14_224.mim_in22k'\?\)"),
        (
            "vit_base_patch16_224.orig_in21",
            r"no weights of the name .* \(did you mean 'vit_base_patch16_224.orig_in21k'",
        ),
        ("vit_base_patch16_224.", r"timm has no weights of the name 'vit_base_patch16_224.'"),
        ("#", r"^unknown timm network '#'; timm.list_models\(\) in Python names all$"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_name(name)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match=r"unknown timm network|no weights of the name"):
        headwise.adapt(name, num_classes=2, weights="none")


@each(
    "name, side",
    [
        ("vit_base_patch16_224.orig_in21k", 224),
        ("vit_small_patch14_dinov2", 518),
        ("vit_small_patch16_dinov3.lvd1689m", 256),
    ],
)
def test_the_side_is_timms(name: str, side: int) -> None:
    assert side_of(name) == side == BackboneSpec(name=name, timm_name=name, img_size=None).side


def test_images_that_are_not_square_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: SimpleNamespace(input_size=(3, 1024, 768)))
    with pytest.raises(ConfigError, match=r"takes images of 1024 x 768 pixels, and images are square here: give back"):
        side_of("vit_base_patch16_224")


def test_what_is_not_given_is_read_from_timm_and_told() -> None:
    small = {"embed_dim": 48, "depth": 1, "num_heads": 4}
    spec = BackboneSpec(
        name="x", timm_name="vit_base_patch16_clip_224.openai", img_size=None, weights="none", overrides=small
    )
    record = timm.get_pretrained_cfg(spec.timm_name)
    net = spec.build()
    assert net.facts == {
        "class": "VisionTransformer",
        "img_size": 224,
        "mean": list(record.mean),
        "std": list(record.std),
        "pooling": "token",
    }
    given = replace(spec, img_size=32, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)).build().facts
    assert (given["img_size"], given["mean"], given["std"]) == (32, [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])


def test_the_file_of_names_is_no_network_of_the_library(tmp_path: Path) -> None:
    assert (CONF / "backbone" / "timm.yaml").is_file()
    with pytest.raises(ConfigError, match="unknown timm network 'timm'"):
        headwise.adapt("timm", num_classes=2)
