"""Every configuration composes, builds its object through the real signature, and says how to run it."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from headwise.backbone import BackboneSpec
from headwise.data.tasks import VTABTask
from headwise.experiment import plan_run
from headwise.gate import fill_gates
from headwise.methods.base import Method
from headwise.protocol import Protocol
from made_networks import CONF, REPO, compose_config

FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml"))
OPTIONS = [name for name in FILES if name != "config"]
PLACEHOLDERS = {"PATH": "somewhere", "FILE": "some.safetensors", "N": "2", "VALUE": "1"}


def overrides_of(command: str) -> list[str]:
    """Overrides of a documented command: up to a comment, placeholders filled, the first choice of a sweep."""
    words = shlex.split(re.split(r"\s{2,}|\s#|\s\(", command.split("train.py", 1)[1].strip())[0])
    filled = [re.sub(r"=(\w+)$", lambda m: "=" + PLACEHOLDERS.get(m[1], m[1]), word) for word in words]
    if "-m" in filled:
        filled = [re.sub(r"=([^\[{(,]+),.*$", r"=\1", word) for word in filled if word != "-m"]
    return filled


def header_of(name: str) -> list[str]:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def build_all(cfg: DictConfig) -> dict[str, Any]:
    """Every object that a run would build from a configuration."""
    OmegaConf.set_struct(cfg, False)
    for group, key, value in (("backbone", "weights", "some.npz"), ("dataset", "num_classes", 2)):
        if OmegaConf.is_missing(cfg[group], key):
            cfg[group][key] = value
    if "root" in cfg.data and (OmegaConf.is_missing(cfg.data, "root") or cfg.data.root is not None):
        cfg.data.root = str(REPO)  # a folder that exists
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    plain["method"] = fill_gates(plain["method"], plain["ne"])
    built = {name: instantiate(plain[name], _convert_="all") for name in ("method", "dataset", "data")}
    assert isinstance(built["dataset"], VTABTask)
    assert all(callable(getattr(built["data"], name)) for name in ("fingerprint", "labels", "count", "load"))
    assert all(isinstance(phase, Method) for phase in built["method"].phases())
    built["backbone"] = BackboneSpec(**plain["backbone"])
    built["protocol"] = Protocol(**plain["protocol"])
    assert plain["trainer"].keys() == {"accelerator", "threads", "attention", "progress"}
    assert plain["logger"]["kind"] in ("csv", "wandb")
    return built


@pytest.mark.parametrize("name", FILES)
def test_it_opens_with_what_it_is_for_and_its_command(name: str) -> None:
    header = header_of(name)
    assert header, "the first line must be a comment"
    assert any("python train.py" in line for line in header)


@pytest.mark.parametrize("name", OPTIONS)
def test_its_command_builds_everything(name: str) -> None:
    group, _, option = name.partition("/")
    commands = [line for line in header_of(name) if "python train.py" in line]
    chosen = overrides_of(commands[0])
    cfg = compose_config(*chosen)
    named = any(re.search(rf"\b{group}(@[\w.]+)?={option}$", override) for override in chosen)
    assert named or cfg[group] == compose_config(f"{group}={option}")[group], f"{chosen} does not choose {name}"
    build_all(cfg)
    for command in commands[1:]:
        build_all(compose_config(*overrides_of(command)))


@pytest.mark.parametrize("group", ["method", "dataset", "backbone", "protocol"])
def test_names_tell_options_apart(group: str) -> None:
    names: dict[str, str] = {}
    for name in (name for name in OPTIONS if name.startswith(f"{group}/")):
        given = yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("label" if group == "method" else "name")
        if given is None or "${" in given:
            continue
        assert given not in names or group == "dataset", f"{name} and {names[given]} are both called {given}"
        assert name.count("/") > 1 or given == name.rpartition("/")[2]
        names[given] = name


def test_there_are_exactly_the_19_tasks() -> None:
    names = {file.stem for file in (CONF / "dataset").glob("*.yaml")}
    groups = [yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())["group"] for name in names]
    assert len(names) == 19
    assert sorted(groups) == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8


def test_a_method_states_every_field_it_has_a_value_for() -> None:
    """Command lines change what a YAML names; `key=value` on anything else would be refused."""
    for file in sorted((CONF / "method").glob("*.yaml")):
        plain = yaml.safe_load(file.read_text())
        assert "_target_" in plain or "defaults" in plain, file.name
        if "defaults" not in plain:
            assert {"label", "targets", "epochs"} <= plain.keys(), file.name


DOCUMENTED = {
    "method": "lora",
    "dataset": "svhn",
    "backbone": "vit_b16_in21k",
    "rank": "r16_h4",
    "ne": "ne3",
    "data": "folder",
    "protocol": "smoke",
    "trainer": "cpu",
    "logger": "wandb",
    "seed": "3",
    "root": "elsewhere",
    "name": "mine",
    "data.root": "somewhere",
    "backbone.weights": "some.npz",
    "backbone.img_size": "98",
    "protocol.epochs": "10",
    "protocol.precision": "bf16",
    "trainer.threads": "1",
    "trainer.attention": "plain",
}


def test_every_name_of_the_command_line_works() -> None:
    cfg = compose_config(*(f"{key}={value}" for key, value in DOCUMENTED.items()))
    built = build_all(cfg)
    assert built["backbone"].weights == "some.npz"
    assert built["backbone"].img_size == 98
    assert built["protocol"].name == "smoke"
    assert built["protocol"].epochs == 10
    assert (cfg.seed, cfg.root, cfg.name) == (3, "elsewhere", "mine")


@pytest.mark.parametrize("first", ["lora", "pissa", "dora", "cara"])
def test_phase_one_can_be_swapped(first: str) -> None:
    if not (CONF / "method" / f"{first}.yaml").is_file():
        pytest.skip(f"{first} is not there")
    cfg = compose_config("method=hs_lora", f"method@method.first={first}", "rank=r16_h4")
    built = build_all(cfg)["method"]
    assert built.label == f"hs_{first}"
    assert [phase.label for phase in built.phases()] == [first, "head_lora"]
    assert built.phases()[1].rank == 4


def test_an_experiment_keeps_what_the_command_line_says() -> None:
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        cfg = compose_config(f"experiment={file.stem}", "protocol=smoke", "data=synthetic", "backbone=vit_nano")
        assert (cfg.protocol.name, cfg.backbone.name) == ("smoke", "vit_nano")
        assert cfg.data._target_.endswith("SyntheticSource")
        assert cfg.name == file.stem or cfg.name != "runs"


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_choice_of_an_experiments_sweep_exists(file: Path) -> None:
    sweep = (yaml.safe_load(file.read_text()).get("hydra") or {}).get("sweeper", {}).get("params", {})
    for key, values in sweep.items():
        group = key.partition("@")[0]
        if not (CONF / group).is_dir():
            continue
        for value in re.sub(r"glob\([^)]*\)", "", str(values)).split(","):
            assert not value.strip() or (CONF / group / f"{value.strip()}.yaml").is_file(), f"{key}={value}"


def documented() -> list[str]:
    pages = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
    lines = [line for page in pages if page.is_file() for line in page.read_text(encoding="utf-8").splitlines()]
    return [line.strip() for line in lines if re.match(r"\s*(\$ )?python train\.py [^.]", line) and "--" not in line]


@pytest.mark.parametrize("command", documented())
def test_every_documented_command_composes(command: str) -> None:
    build_all(compose_config(*overrides_of(command)))


def test_a_run_is_planned_without_images_or_weights_of_the_papers() -> None:
    plan = plan_run(compose_config("backbone=vit_nano", "dataset=dsprites_loc", "data=synthetic", "root=elsewhere"))
    assert str(plan.key.path(plan.root)) == "elsewhere/runs/hs_lora/dsprites_loc/base/seed-0"
