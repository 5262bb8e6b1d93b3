"""Published values: the table, how they are chosen, the stamp on what is made with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from headwise.errors import ConfigError
from headwise.protocol.plan import plan_run
from headwise.protocol.presets import POSSIBLY_TUNED, fill_presets, presets, published_value
from headwise.results.store import ResultStore
from headwise.runs.experiment import run
from made_cases import each
from made_networks import CONF, compose_config

TINY = ["backbone=vit_tiny_random", "data=synthetic", "protocol=smoke", "trainer=cpu", "trainer.threads=1"]


LACKING = {
    "convpass": "caltech101 cifar100 clevr_dist eurosat pets resisc45 smallnorb_azi svhn",
    "convpass_attn": "caltech101 camelyon clevr_count clevr_dist dsprites_ori dtd eurosat kitti_dist pets svhn "
    "smallnorb_ele",
}
"""Tasks whose files were not in the copy of the source that was read: a refusal names those that have a value."""


def test_every_table_has_the_19_tasks_but_those_that_are_named_and_a_free_licence() -> None:
    tasks = {file.stem for file in (CONF / "dataset").glob("*.yaml")}
    fields: dict[tuple[str, str], set[str]] = {}
    for preset in presets():
        assert preset.licence in ("MIT", "Apache-2.0")
        assert preset.source.count("/") >= 2
        fields.setdefault((preset.method, preset.field), set()).add(preset.task)
    assert len(presets()) == sum(map(len, fields.values()))
    for (method, name), found in fields.items():
        assert found == tasks - set(LACKING.get(method, "").split()), (method, name)
        assert name in yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())


@each(
    "method, task, field, value",
    [
        ("fact_tt", "clevr_dist", "rank", 4),
        ("fact_tk", "pets", "scale", 10),
        ("cara", "cifar100", "mean", 1.5),
        ("cara", "eurosat", "std", 0.028),
        ("bi_lora", "retinopathy", "scale", 10),
        ("bi_adaptformer", "pets", "scale", 0.01),
        ("vpt_deep", "smallnorb_ele", "prompts", 200),
        ("convpass", "dsprites_loc", "scale", 100),
        ("convpass", "sun397", "conv", "identity"),
        ("convpass_attn", "cifar100", "scale", 0.1),
        ("convpass_attn", "dmlab", "conv", "xavier"),
    ],
)
def test_values_as_in_the_sources(method: str, task: str, field: str, value: float | str) -> None:
    assert published_value(method, task, field).value == value


def test_the_published_scales_of_released_files() -> None:
    """The two Bi-LoRA files whose scale their source states."""
    assert published_value("bi_lora", "svhn", "scale").value == 10
    assert published_value("bi_lora", "clevr_count", "scale").value == 1


def test_phases_are_filled_by_their_own_labels() -> None:
    first = {"label": "cara", "scale": "published", "mean": "published", "rank": 32}
    method = {"label": "hs_cara", "first": first, "heads": {"label": "head_lora", "scale": 1.0}}
    filled, found = fill_presets(method, "cifar100")
    assert filled["first"] == {"label": "cara", "scale": 0.1, "mean": 1.5, "rank": 32}
    assert filled["heads"] == method["heads"]
    assert [entry["key"] for entry in found] == ["method.first.scale", "method.first.mean"]
    assert found[0]["licence"] == "Apache-2.0"
    assert "seed 14" in found[0]["note"]
    assert first["scale"] == "published"


@each(
    "method, task, message",
    [
        ({"label": "repadapter", "scale": "published"}, "svhn", "method 'repadapter' has no published values.*fact_tk"),
        ({"label": "cara", "rank": "published"}, "svhn", "method 'cara' has no published 'rank'.*allowed: mean, scale"),
        (
            {"label": "cara", "scale": "published"},
            "food101",
            "no published 'scale' of task 'food101'.*caltech101, camel",
        ),
        (
            {"label": "convpass", "scale": "published"},
            "svhn",
            "method 'convpass' has no published 'scale' of task 'svhn'.*camelyon",
        ),
    ],
)
def test_what_has_no_value(method: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fill_presets(method, task)


def test_the_identity_holds_the_number() -> None:
    words = [*TINY, "method=fact_tt", "dataset=dsprites_loc"]
    chosen = plan_run(compose_config(*words, "method.scale=published", "method.rank=published"))
    given = plan_run(compose_config(*words, "method.scale=100", "method.rank=16"))
    assert chosen.identity == given.identity
    assert [entry["value"] for entry in chosen.config["published"]] == [16, 100]
    assert "published" not in given.config
    assert plan_run(compose_config(*words)).config["method"]["scale"] == 1


def test_a_word_is_published_too() -> None:
    words = [*TINY, "method=convpass", "dataset=dtd"]
    chosen = plan_run(compose_config(*words, "method.scale=published", "method.conv=published"))
    given = plan_run(compose_config(*words, "method.scale=0.01", "method.conv=xavier"))
    assert chosen.identity == given.identity


def test_a_result_is_stamped(tmp_path: Path) -> None:
    words = [
        *TINY,
        "trainer.progress=false",
        "logger.pictures=false",
        "method=bi_adaptformer",
        "dataset=dsprites_loc",
        f"root={tmp_path}",
    ]
    run(compose_config(*words, "method.scale=published", "protocol.test_images=64"))
    (result,) = ResultStore(tmp_path).all()
    assert POSSIBLY_TUNED in result.labels
    assert result.config["method"]["scale"] == 1
    assert result.config["published"][0]["source"].startswith("JieShibo/PETL-ViT")
