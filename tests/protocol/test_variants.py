"""Variants: folder names from what was chosen."""

from __future__ import annotations

from headwise.protocol.variants import beside_common, choices_of, common_choices, variant_of
from made_cases import each


@each(
    "overrides, variant",
    [
        ([], "base"),
        (["method=lora", "dataset=svhn", "seed=3", "method@method.first=pissa"], "base"),
        (["root=/a/b", "name=x", "data.root=/c", "backbone.weights=/d.npz", "experiment=e", "logger=wandb"], "base"),
        (["hydra.verbose=true", "logger.offline=false", "data=folder"], "base"),
        (["backbone.weights=none"], "weightsnone"),
        (["backbone.weights=package:vit_nano.safetensors"], "base"),
        (["rank=r8"], "r8"),
        (["ne=ne3", "rank=r16_h2"], "ne3-r16_h2"),
        (["protocol.epochs=10"], "epochs10"),
        (["method.first.rank=4"], "first_rank4"),
        (["method.scale=0.1"], "scale0.1"),
        (["+method.scale=-1"], "scale-1"),
        (["method.rank=4", "method.rank=8"], "rank8"),
        (["protocol=smoke", "backbone=vit_nano"], "vit_nano-smoke"),
        (["backbone=timm", "backbone.name=vit_base.mae", "protocol=smoke"], "vit_base.mae-smoke"),
        (["backbone=timm", "backbone.name=timm/../vit", "rank=r8"], "timm___vit-r8"),
        (["backbone.name=mine"], "namemine"),
    ],
)
def test_variant(overrides: list[str], variant: str) -> None:
    assert variant_of(overrides) == variant


@each(
    "overrides", [[], ["rank=r8"], ["method.scale=-1", "rank=r8"], ["method.scale=-.5", "protocol.lr=1e-3", "ne=ne3"]]
)
def test_choices_of_a_variant(overrides: list[str]) -> None:
    alone = sorted(variant_of([override]) for override in overrides)
    assert sorted(choices_of(variant_of(overrides))) == alone


def test_choices_that_all_share_name_no_row() -> None:
    variants = ["ne3-scale-1-vit_nano", "ne6-scale-1-vit_nano", "ne3-scale-1-vit_nano"]
    common = common_choices(variants)
    assert common == ["scale-1", "vit_nano"]
    assert [beside_common(variant, common) for variant in variants] == ["ne3", "ne6", "ne3"]
    assert beside_common("scale-1-vit_nano", common) == "base"
    assert common_choices([*variants, "base"]) == []
    assert common_choices([]) == []


def test_the_order_of_overrides_does_not_matter() -> None:
    assert variant_of(["rank=r8", "ne=ne1"]) == variant_of(["ne=ne1", "rank=r8"])


def test_different_choices_never_share_a_folder() -> None:
    choices = [
        ["method.scale=-1"],
        ["method.scale=1"],
        ["method.targets=[q,v]"],
        ["method.targets=[q,k,v]"],
        ["method.first.rank=4"],
        ["method.heads.rank=4"],
        ["method.rank=4"],
        ["protocol.clip=null"],
        ["protocol.clip=1"],
    ]
    assert len({variant_of(choice) for choice in choices}) == len(choices)


def test_no_variant_leaves_its_folder() -> None:
    for value in ("../../x", "/etc/x", "..", ".", "a/../b", "a\\b"):
        text = variant_of([f"method.checkpoint={value}"])
        assert "/" not in text
        assert ".." not in text
        assert "\\" not in text


def test_long_choices_stay_apart() -> None:
    long = [f"method.field_{index}=value_{index}" for index in range(40)]
    one, other = variant_of([*long, "rank=r4"]), variant_of([*long, "rank=r8"])
    assert len(one) == len(other) == 120
    assert one != other
