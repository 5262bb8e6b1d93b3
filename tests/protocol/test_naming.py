"""Variants of jobs: named from what differs from the composed default, and from what files hold."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from safetensors.torch import save_file

from headwise.commands import composition
from headwise.comparison.comparable import ordered, places, shared_choices
from headwise.errors import ConfigError
from headwise.protocol import naming
from headwise.protocol.plan import Plan, plan_run
from headwise.protocol.variants import beside_common
from headwise.results.records import Result
from headwise.results.store import ResultStore
from made_cases import each
from made_loaders import hydras_own
from made_networks import CONF, plain_timm
from made_results import phase

TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic")


@pytest.fixture(autouse=True)
def no_job() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


@functools.cache
def loader() -> composition.KeptLoader:
    return composition.KeptLoader(GlobalHydra.instance().config_loader().get_search_path())


def planned(*overrides: str) -> Plan:
    """The plan of a job that hydra runs."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg: Any = loader().load_configuration("config", list(overrides), RunMode.RUN)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.set_readonly(cfg, False)
    return plan_run(cfg)


def variant(*overrides: str) -> str:
    return planned(*overrides).key.variant


@each(
    "typed",
    [
        ("method=lora", "rank=r16"),
        ("method=lora", "method.scale=1.0"),
        ("method=lora", "method.scale=1"),
        ("method=lora", "seed=2", "method.scale=1.0", "rank=r16", "ne=ne3", "backbone.weights=none"),
        ("method=lora", "trainer=auto"),
        ("method=lora", "trainer.threads=2", "protocol=strict", "protocol.epochs=100"),
        ("method=lora", "ne=ne5"),  # no gate reads it
        ("method=linear", "rank=r8"),  # no update has it
        ("method=heart_lora", "ne=ne3"),
        ("method=lora", "draw=0", "shots=null", "trainer.progress=false"),
        ("experiment=heart_fig3", "method=heart/front", "rank=r8", "protocol=heart_last", "protocol.search=null"),
    ],
)
def test_a_default_that_is_typed_names_nothing(typed: tuple[str, ...]) -> None:
    """C16: what is default anyway, or cannot change a number, is no variant."""
    assert variant(*TINY, *typed) == "vit_tiny_random"


@each(
    "trainer, asked, meant",
    [
        ("cpu", "auto", "fp32"),
        ("cpu", "tf32", "fp32"),
        ("cpu", "bf16", "bf16"),
        ("gpu", "auto", "bf16"),
        ("gpu", "tf32", "tf32"),
        ("gpu", "fp32", "fp32"),
    ],
)
def test_a_precision_is_named_by_what_the_device_computes(trainer: str, asked: str, meant: str) -> None:
    plans = [planned(*TINY, "method=lora", f"trainer={trainer}", f"protocol.precision={one}") for one in (asked, meant)]
    assert [plan.protocol.precision for plan in plans] == [meant] * 2
    assert plans[0].identity == plans[1].identity
    assert plans[0].identity["protocol"]["precision"] == meant
    assert plans[0].identity["trainer"]["attention"] == ("plain" if (trainer, meant) == ("cpu", "bf16") else "timm")


def test_compiled_blocks_make_another_run_and_uncompiled_ones_the_same_as_ever() -> None:
    usual, off, on = (
        planned(*TINY, "method=lora", *typed) for typed in ((), ("trainer.compile=false",), ("trainer.compile=true",))
    )
    assert off.identity == usual.identity and "compile" not in usual.identity["trainer"]
    assert on.identity == {**usual.identity, "trainer": {**usual.identity["trainer"], "compile": True}}


@each(
    "words, is_one",
    [("method=linear", True), ("method=linear +protocol.augment=fewshot", False), ("method=full", False)],
)
def test_a_probe_on_fixed_features_is_the_same_run_compiled(words: str, is_one: bool) -> None:
    off, on = (planned(*TINY, *words.split(), f"trainer.compile={typed}") for typed in ("false", "true"))
    assert (off.identity == on.identity) == is_one


@each(
    "typed, name",
    [
        (("rank=r8",), "r8"),
        (("rank=r16_h4", "method=hs_lora"), "r16_h4"),
        (("ne=ne5", "method.scale=10", "method=heart_lora"), "scale10-ne5"),
        (("ne=ne3", "method.scale=10", "method=heart_lora"), "scale10"),
        (("protocol=smoke", "protocol.epochs=2"), "smoke"),
        (("protocol=smoke", "protocol.epochs=3"), "smoke-epochs3"),
        (("rank=r8", "method.rank=8"), "r8"),
        (("protocol.clip=1", "protocol.lr=0.001"), "clip1"),
        (("+protocol.search.scale=[1,10]",), "search_scale1_10"),
        (("experiment=hs_table1", "method=hs_lora", "rank=r16_h4"), "base"),
        (("experiment=hs_table1", "method=hs_lora", "rank=r16"), "r16"),
        (("+gate@method.gate=heart", "method.gate.scope=layer", "ne=ne3"), "gateheart-gate_scopelayer"),
        (("+method.consistency=pace",), "consistencypace"),
        (
            ("+consistency@method.consistency=pace", "method.consistency.sigma=0.5"),
            "consistencypace-consistency_sigma0.5",
        ),
        (("data.lossy=true",), "lossytrue"),
        (("rank.global=8",), "r8"),
        (("rank={global:8,head:3}",), "r8"),
        (("rank={global:16,head:3}",), "base"),
        (("method=hs_lora", "rank.head=4"), "r16_h4"),
        (("rank=r8", "rank.head=4", "method=hs_lora"), "r8_h4"),
        (("method=heart_lora", "ne.count=null", "ne.ratio=0.25"), "quarter"),
        (("method=heart_lora", "ne=ne5", "ne.warmup=4"), "ne5-warmup4"),
        (("rank.global=7",), "global7"),
        (("variant=mine", "rank=r8"), "mine"),
    ],
)
def test_what_differs_from_the_default_names_as_ever(typed: tuple[str, ...], name: str) -> None:
    assert beside_common(variant(*TINY, "method=lora", *typed), ["vit_tiny_random"]) == name


def test_seeds_of_one_configuration_share_a_folder() -> None:
    """C16: the three spellings of the issue are one row of three seeds."""
    typed = [("seed=0",), ("seed=1", "rank=r16"), ("seed=2", "method.scale=1.0")]
    keys = [planned(*TINY, "method=lora", *words).key for words in typed]
    assert len({key.variant for key in keys}) == 1
    assert [key.seed for key in keys] == [0, 1, 2]


def test_a_sweep_composes_its_defaults_once(monkeypatch: pytest.MonkeyPatch) -> None:
    naming._composer.cache_clear()
    made: list[tuple[str, ...]] = []
    compose_groups = naming.Composer._compose

    def counted(self: naming.Composer, groups: tuple[str, ...]) -> composition.Whole:
        made.append(groups)
        return compose_groups(self, groups)

    monkeypatch.setattr(naming.Composer, "_compose", counted)
    for seed in range(3):
        for scale in (1, 2, 3):
            planned("method=lora", "dataset=dsprites_loc", f"method.scale={scale}", f"seed={seed}")
    assert len(made) == 1
    naming._composer.cache_clear()


def test_a_row_per_task_that_no_task_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"per_task.svnh: unknown task 'svnh' \(did you mean 'svhn'\?\)"):
        planned(*TINY, "method=lora", "+per_task.svnh.lora.scale=3")
    assert planned(*TINY, "method=lora", "+per_task.svhn.lora.scale=3").config["method"]["scale"] == 1
    assert planned(*TINY, "method=lora", "+per_task.fewshot_pets.lora.scale=3")


def test_a_set_of_vtab_is_never_called_by_another_name() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name may not be set"):
        planned("backbone=vit_tiny_random", "dataset=dtd", "data=synthetic", "dataset.name=svhn")


def test_files_that_are_read_once_compose_the_same() -> None:
    sources = (("hydra", "pkg://hydra.conf"), ("main", CONF.as_uri()), ("schema", "structured://"))
    kept = naming.Composer(sources, "config")
    loader = hydras_own(kept.loader.config_search_path)
    wordings = [
        (f"experiment={file.stem}", f"method={method}", "dataset=dtd", "rank=r8")
        for file, method in zip(sorted((CONF / "experiment").glob("*.yaml")), cycle(("hs_lora", "noah")), strict=False)
    ]
    plain = [loader.load_configuration("config", list(words), RunMode.RUN) for words in wordings]
    for words, expected in [*zip(wordings, plain, strict=True)] * 2:
        with open_dict(expected):
            expected.pop("hydra", None)
        assert kept.compose(words) == expected
        kept._parts._whole.cache_clear()
    before = {
        path: None if read is None else OmegaConf.to_yaml(read.config) for path, read in kept_by(kept).read.items()
    }
    kept_by(kept).read.clear()
    for path, content in before.items():
        again = kept_by(kept).load_config(path)
        assert content == (None if again is None else OmegaConf.to_yaml(again.config)), path


def test_files_of_other_folders_are_read_again(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"value: {name}\n")
    repository = composition.KeptFiles(_search(tmp_path / "a"))
    assert repository.load_config("config").config.value == "a"  # type: ignore[union-attr]
    (tmp_path / "a" / "config.yaml").write_text("value: c\n")
    repository.initialize_sources(_search(tmp_path / "a"))
    assert repository.load_config("config").config.value == "a"  # type: ignore[union-attr]
    repository.initialize_sources(_search(tmp_path / "b"))
    assert repository.load_config("config").config.value == "b"  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def plugins() -> None:
    """Hydra knows where files may lie only once its plugins are loaded."""
    Plugins.instance()


def _search(folder: Path) -> ConfigSearchPathImpl:
    path = ConfigSearchPathImpl()
    path.append("main", folder.as_uri())
    path.append("schema", "structured://")
    return path


def kept_by(composer: naming.Composer) -> composition.KeptFiles:
    return composer.loader.files


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Weights a and b of one stem in two folders, and a copy of a under another name."""
    state = {name: tensor for name, tensor in plain_timm("vit").state_dict().items() if not name.startswith("head.")}
    for folder, shift in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        save_file(state | {"norm.bias": state["norm.bias"] + shift}, tmp_path / folder / "weights.safetensors")
    shutil.copy(tmp_path / "a" / "weights.safetensors", tmp_path / "copy.safetensors")
    return {
        "a": f"{tmp_path}/a/weights.safetensors",
        "b": f"{tmp_path}/b/weights.safetensors",
        "copy": f"{tmp_path}/copy.safetensors",
    }


def test_weights_name_a_run_by_what_they_are(files: dict[str, str]) -> None:
    """D21: two files are two folders, wherever they lie; one content at two places is one identity."""
    plans = {
        name: planned("dataset=dsprites_loc", "method=lora", "backbone=vit_tiny_random", f"backbone.weights={file}")
        for name, file in files.items()
    }
    assert plans["a"].key != plans["b"].key
    assert plans["a"].key.variant.startswith("vit_tiny_random-weightsweights_")
    assert plans["a"].identity == plans["copy"].identity
    assert plans["a"].key.variant[-8:] != plans["b"].key.variant[-8:]
    assert "/" not in plans["a"].key.variant


def test_the_weights_that_are_default_name_nothing() -> None:
    place = Path(naming.__file__).parents[1] / "assets" / "vit_nano.safetensors"
    names = {
        given: variant("dataset=dsprites_loc", "method=lora", "backbone=vit_nano", *given)
        for given in [(), ("backbone.weights=package:vit_nano.safetensors",), (f"backbone.weights={place}",)]
    }
    assert set(names.values()) == {"vit_nano"}
    assert variant("dataset=dsprites_loc", "method=lora", "backbone=vit_nano", "backbone.weights=none") == (
        "vit_nano-weightsnone"
    )


def stored(plan: Plan, root: Path, variant: str, seed: int) -> Result:
    """A result of that configuration, under a name of older rules."""
    key = replace(plan.key, variant=variant, seed=seed)
    result = Result(key=key, identity={**plan.identity, "seed": seed}, phases=[phase()])
    ResultStore(root).put(key, result)
    return result


def test_a_run_is_found_under_its_old_name_and_further_seeds_join_it(tmp_path: Path) -> None:
    plan = planned(*TINY, "method=lora")
    store = ResultStore(tmp_path)
    assert store.place(plan.key, plan.identity) == plan.key
    stored(plan, tmp_path, "r16-vit_tiny_random", 0)
    assert store.place(plan.key, plan.identity).variant == "r16-vit_tiny_random"
    assert store.get(store.place(plan.key, plan.identity), plan.identity) is not None
    more = planned(*TINY, "method=lora", "seed=5")
    assert store.place(more.key, more.identity).variant == "r16-vit_tiny_random"
    other = planned(*TINY, "method=lora", "protocol.lr=0.1")
    assert store.place(other.key, other.identity) == other.key
    stored(plan, tmp_path, plan.key.variant, 0)
    assert store.place(plan.key, plan.identity) == plan.key


def test_one_configuration_is_one_row_whatever_its_folders(tmp_path: Path) -> None:
    """C16 for records that are there: equal but for the seed is one row; the same run twice counts once."""
    plan = planned(*TINY, "method=lora")
    other = planned(*TINY, "method=lora", "rank=r8")
    made = [
        *(stored(plan, tmp_path, name, seed) for name, seed in (("base", 0), ("r16", 1), ("scale1.0", 2), ("r16", 0))),
        *(stored(other, tmp_path, "r8", seed) for seed in (0, 1)),
    ]
    results = ordered(made)
    where, notes = places(results, common=shared_choices(results))
    rows: dict[str, list[int]] = {}
    for key, (row, _) in where.items():
        rows.setdefault(row, []).append(key.seed)
    assert rows == {"lora": [0, 1, 2], "lora (r8)": [0, 1]}
    assert notes == []
