"""Runs on networks by timm's name: two phases, what the record says of the network, read back and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

import headwise
from headwise.artifacts.export import export_merged
from headwise.errors import ConfigError
from headwise.results.reading import read_result
from headwise.runs.experiment import run
from made_cases import each
from made_networks import compose_config

FAST = ["dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1"]
QUIET = ["trainer.progress=false", "logger.pictures=false"]
SMALL = ["+backbone.overrides={patch_size: 8, embed_dim: 48, depth: 1, num_heads: 4}", "backbone.weights=none"]


@each("name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3.lvd1689m"])
def test_two_phases_on_a_network_by_its_name(name: str, tmp_path: Path) -> None:
    by_name = ["backbone=timm", f"backbone.name={name}", *SMALL, "backbone.img_size=32"]
    run(compose_config(*FAST, *QUIET, *by_name, "method=hs_lora", "rank=r4", f"root={tmp_path}"))
    (file,) = tmp_path.glob("runs/**/result.json")
    result, folder = read_result(file.parent), file.parent
    assert len(result.phases) == 2
    assert result.identity["backbone"]["timm_name"] == name
    assert result.identity["backbone"]["name"].startswith(f"{name} with depth=1, ")
    record = timm.get_pretrained_cfg(name)
    network = {"class": "Eva", "img_size": 32, "mean": list(record.mean), "std": list(record.std), "pooling": "avg"}
    assert result.provenance["network"] == network
    assert headwise.load(folder).classify([]) == []
    exported = export_merged(folder, tmp_path / "plain.safetensors")
    assert exported.random_difference < 1e-5


def test_a_wrong_name_leaves_nothing(tmp_path: Path) -> None:
    by_name = ["backbone=timm", "backbone.name=eva02_tny_patch14_224", "backbone.weights=none"]
    with pytest.raises(ConfigError, match=r"unknown timm network .* \(did you mean 'eva02_tiny_patch14_224'\?\)"):
        run(compose_config(*FAST, *QUIET, *by_name, "method=lora", f"root={tmp_path}"))
    assert not list(tmp_path.iterdir())
