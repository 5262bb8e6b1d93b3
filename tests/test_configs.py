"""Every configuration composes, builds its object through the real signature, and says how to run it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from headwise.commands.composition import KeptLoader
from headwise.comparison import printed
from headwise.data.tasks import VTABTask
from headwise.methods.base import Method
from headwise.network.backbone import BackboneSpec
from headwise.protocol.described import method_names
from headwise.protocol.filling import fill_gates
from headwise.protocol.pertask import fill_protocol, fill_tasks
from headwise.protocol.presets import fill_presets
from headwise.protocol.recipe import Protocol
from headwise.protocol.space import Space, check_choices, phase_names
from headwise.runs import jobs as asked_for
from headwise.runs.experiment import plan_run
from headwise.runs.jobs import requests_of
from made_cases import each
from made_networks import CONF, REPO, compose_config

FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml"))
OPTIONS = [name for name in FILES if name != "config"]
EXPERIMENTS = [name.removeprefix("experiment/") for name in OPTIONS if name.startswith("experiment/")]
PAPERS = [name for name in EXPERIMENTS if re.match("hs_|heart_(table|fig)", name)]
PLACEHOLDERS = {"PATH": "somewhere", "FILE": "some.safetensors", "N": "2", "VALUE": "1"}


def first_option(found: re.Match[str]) -> str:
    return f"{found[1]}={min(file.stem for file in (CONF / found[1]).glob('*.yaml'))}"


def overrides_of(command: str) -> list[str]:
    """Overrides of a documented command: up to a comment, placeholders filled, the first choice of a sweep."""
    words = shlex.split(re.split(r"\s{2,}|\s#|\s\(", command.split("train.py", 1)[1].strip())[0])
    words = [word for word in words if word != "--help"]
    filled = [re.sub(r"=(\w+)$", lambda m: "=" + PLACEHOLDERS.get(m[1], m[1]), word) for word in words]
    if "-m" in filled:
        filled = [re.sub(r"=([^\[{(,]+),.*$", r"=\1", word) for word in filled if word != "-m"]
        filled = [re.sub(r"^(\w+)=glob\(\*\)$", first_option, word) for word in filled]
    return filled


SIZES = ("rank", "ne")
"""Groups whose options are sizes: a line each, without a comment."""


def header_of(name: str) -> list[str]:
    group, _, option = name.partition("/")
    if group in SIZES:
        return [f"# Run: python train.py {group}={option}"]
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


MADE: dict[str, Any] = {}
"""What a node of a configuration builds, by all that it says: most data sets, say, are those of many configurations."""


def made(node: Any) -> Any:
    text = repr(node)
    if text not in MADE:
        MADE[text] = instantiate(node, _convert_="all")
    return MADE[text]


def build_all(cfg: DictConfig) -> dict[str, Any]:
    """Every object that a run would build from a configuration."""
    OmegaConf.set_struct(cfg, False)
    for group, key, value in (("backbone", "weights", "some.npz"), ("dataset", "num_classes", 2)):
        if OmegaConf.is_missing(cfg[group], key) or (group, cfg[group].get(key)) == ("dataset", None):
            cfg[group][key] = value
    if "root" in cfg.data.keys() and (OmegaConf.is_missing(cfg.data, "root") or cfg.data.root is not None):  # noqa: SIM118
        cfg.data.root = str(REPO)  # a folder that exists
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    plain["protocol"] = fill_protocol(plain)
    plain["method"] = fill_gates(fill_tasks(plain), plain["ne"])
    plain["method"], _ = fill_presets(plain["method"], plain["dataset"]["name"])
    built = {name: made(plain[name]) for name in ("method", "dataset", "data")}
    assert isinstance(built["dataset"], VTABTask)
    assert all(callable(getattr(built["data"], name)) for name in ("fingerprint", "labels", "count", "load"))
    assert all(isinstance(phase, Method) for phase in built["method"].phases())
    built["backbone"] = BackboneSpec(**plain["backbone"])
    built["protocol"] = Protocol(**plain["protocol"])
    assert plain["trainer"].keys() == {"accelerator", "threads", "attention", "checkpointing", "compile", "progress"}
    assert plain["logger"]["kind"] in ("csv", "wandb", "tensorboard")
    assert isinstance(plain["logger"]["pictures"], bool)
    return built


@each("name", FILES)
def test_it_opens_with_what_it_is_for_and_its_command(name: str) -> None:
    header = header_of(name)
    assert header, "the first line must be a comment"
    assert any("python train.py" in line for line in header)


@pytest.mark.parametrize("name", OPTIONS)
def test_its_command_builds_everything(name: str) -> None:
    group, _, option = name.partition("/")
    commands = [line for line in header_of(name) if "python train.py" in line]
    chosen = overrides_of(commands[0])
    if name.startswith("hydra/launcher/"):
        plugin = yaml.safe_load((CONF / f"{name}.yaml").read_text())["defaults"][0].partition("_")[0]
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    cfg = compose_config(*chosen)
    named = any(re.search(rf"\b{group}(@[\w.]+)?={option}$", override) for override in chosen)
    named |= "=".join(name.rsplit("/", 1)) in chosen
    assert named or cfg[group] == compose_config(f"{group}={option}")[group], f"{chosen} does not choose {name}"
    build_all(cfg)
    for command in commands[1:]:
        build_all(compose_config(*overrides_of(command)))


@each("group", ["method", "dataset", "backbone", "protocol"])
def test_names_tell_options_apart(group: str) -> None:
    names: dict[str, str] = {}
    for name in (name for name in OPTIONS if name.startswith(f"{group}/")):
        given = yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("label" if group == "method" else "name")
        if given is None or "${" in given:
            continue
        assert given not in names or group == "dataset", f"{name} and {names[given]} are both called {given}"
        assert name.count("/") > 1 or given in ("???", name.rpartition("/")[2])  # one that must be given
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


@each("first", ["lora", "pissa", "dora", "cara"])
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


@each("file", sorted((CONF / "experiment").glob("*.yaml")))
def test_every_choice_of_an_experiments_sweep_exists(file: Path) -> None:
    tried = (yaml.safe_load(file.read_text()).get("hydra") or {}).get("sweeper", {}).get("params", {})
    for key, values in tried.items():
        group = key.partition("@")[0]
        if not (CONF / group).is_dir():
            continue
        for value in re.sub(r"glob\([^)]*\)", "", str(values)).split(","):
            assert not value.strip() or (CONF / group / f"{value.strip()}.yaml").is_file(), f"{key}={value}"


@functools.cache
def loader(path: tuple[tuple[str, str], ...]) -> KeptLoader:
    return KeptLoader(GlobalHydra.instance().config_loader().get_search_path())


@functools.cache
def jobs_of(experiment: str) -> list[list[str]]:
    with pytest.MonkeyPatch.context() as patch:  # the loader of the experiment before has read most files
        patch.setattr(
            asked_for, "KeptLoader", lambda path: loader(tuple((e.provider, e.path) for e in path.get_path()))
        )
        return list(requests_of(CONF, [f"experiment={experiment}"])[1].values())


@each("name", EXPERIMENTS)
def test_an_experiment_says_how_many_runs_it_has(name: str) -> None:
    said = re.search(r"\b([\d,]+) (?:runs|jobs)\b|Runs: ([\d,]+)", " ".join(header_of(f"experiment/{name}")))
    assert said, "no '# Runs: N' in its header"
    assert int((said[1] or said[2]).replace(",", "")) == len(jobs_of(name))


@each("name", EXPERIMENTS)
def test_first_last_and_one_random_job_of_an_experiment_build(name: str) -> None:
    jobs = jobs_of(name)
    chosen = random.Random(name).randrange(len(jobs))
    for job in dict.fromkeys(map(tuple, (jobs[0], jobs[chosen], jobs[-1]))):
        build_all(compose_config(*job))


def search_of(cfg: DictConfig) -> Any:
    return fill_protocol(OmegaConf.to_container(cfg, resolve=True)).get("search")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_searches_fits_each_of_its_methods(name: str) -> None:
    """As it is, and where it has a search under the smallest protocol as well."""
    of_method = {word: job for job in jobs_of(name) for word in job if word.startswith("method=")}
    sweeps_protocols = any(word.startswith("protocol") for job in of_method.values() for word in job)
    if not sweeps_protocols and search_of(compose_config(*jobs_of(name)[0])) is None:
        return  # what a protocol holds for one method alone adds no search
    for job in of_method.values():
        cfg = compose_config(*job)
        if search_of(cfg) is None:
            continue
        small = compose_config(*(word for word in job if not word.startswith("protocol=")), "protocol=smoke")
        for built in map(build_all, (cfg, small)):
            if (given := built["protocol"].search) is not None:
                spaces = Space.of(given).by_phase(phase_names(built["method"]))
                for space, method in zip(spaces, built["method"].phases(), strict=True):
                    if (own := space.within(method)) is not None:
                        check_choices(own, method)


@each("name", PAPERS)
def test_an_experiment_of_the_papers_says_its_cost_and_what_to_expect(name: str) -> None:
    header = " ".join(line.lstrip("# ") for line in header_of(f"experiment/{name}"))
    cost = re.search(r"Cost: ([\d,.]+) GPU-hours \(docs/cost\.md\)", header)
    assert cost, "no '# Cost: N GPU-hours (docs/cost.md)' in its header"
    assert re.search(r"Expected(: none published|: curves only| \((HS|Heart)-LoRA Table \d)", header)
    record = json.loads((REPO / "benchmarks" / "results" / "paper_cost.json").read_text())
    counted = record["experiments"][name]
    assert counted["runs"] == len(jobs_of(name))
    assert float(cost[1].replace(",", "")) == pytest.approx(counted["gpu_hours"]["rtx3090"]["fp32"], rel=0.05, abs=0.06)


def test_every_figure_and_table_has_its_experiment() -> None:
    tables = (
        {f"heart_table{n}" for n in range(1, 7)} | {f"heart_fig{n}" for n in (2, 3, 4, 8)} | {"hs_table1", "hs_table2"}
    )
    assert {*tables, "hs_controls", "hs_fused", "hs_rank", "hs_head_only"} == set(PAPERS)


def test_the_command_line_beats_an_experiments_sweep() -> None:
    _, jobs, *_ = requests_of(CONF, ["experiment=heart_table1", "dataset=svhn,dtd", "method=lora", "seed=0"])
    assert sorted(jobs.values()) == [
        ["dataset=dtd", "method=lora", "seed=0", "experiment=heart_table1"],
        ["dataset=svhn", "method=lora", "seed=0", "experiment=heart_table1"],
    ]


PUBLISHED_PROTOCOLS = ("fixed", "heart_paper", "hs_paper", "cara_paper", "cara_paper_older")


@each("name", PUBLISHED_PROTOCOLS)
def test_a_published_protocol_states_every_field_with_its_source(name: str) -> None:
    text = (CONF / "protocol" / f"{name}.yaml").read_text()
    given = yaml.safe_load(text)
    optional = {"augment", "train_images", "eval_mode_after", "select_after", "per_task"}
    assert {field.name for field in dataclasses.fields(Protocol)} - given.keys() <= optional
    for line in text.splitlines():
        field = line.partition(":")[0]
        if line.startswith("#") or field in ("name", "test_images", "search", "select_every"):
            continue
        assert " # " in line, f"{field} has no source"


def test_papers_that_choose_on_the_test_set_are_stamped() -> None:
    stamped = {
        name for name in PUBLISHED_PROTOCOLS if compose_config(f"protocol={name}").protocol.select == "best_test"
    }
    assert stamped == {"heart_paper", "cara_paper", "cara_paper_older"}
    assert "TEST-SELECTED" in build_all(compose_config("protocol=cara_paper", "method=cara"))["protocol"].labels


@each("file", sorted((CONF / "protocol").glob("*.yaml")))
def test_a_protocol_names_the_commit_that_it_imitates(file: Path) -> None:
    """B10: or says that it imitates none."""
    opening = " ".join(line[1:] for line in file.read_text().splitlines() if line.startswith("#"))
    named = re.search(r"\bcommits? [0-9a-f]{7}\b", opening)
    assert named or re.search(r"imitates no code|no code is imitated", opening), file.name


ROWS_OF = {"cara_paper": "hs_t2_cara", "heart_paper": "heart_t1_heart_lora"}
FIELDS_OF = {"normalisation": "normalize", "resize": "resize", "selection": "select", "schedule": "schedule"}


@each("name, row", ROWS_OF.items())
def test_the_table_of_published_protocols_agrees_with_the_protocol(name: str, row: str) -> None:
    """B10: two places said how CaRA measures, and one of them was wrong."""
    protocol = yaml.safe_load((CONF / "protocol" / f"{name}.yaml").read_text())
    lines = {}
    for line in printed.read("protocols.csv"):
        if any(fnmatchcase(row, pattern) for pattern in line["rows"].split()):
            lines.setdefault(line["topic"], line)
    for topic, field in FIELDS_OF.items():
        assert lines[topic]["value"] == protocol[field], topic
    every = re.search(r"every (\d+) epochs", lines["selection"]["said"])
    assert every is not None
    assert int(every[1]) == protocol["select_every"]
    assert lines.get("epochs", {}).get("value", "100") == str(protocol["epochs"])


def test_caras_first_look_is_where_its_evaluation_mode_begins() -> None:
    """The code tests after epochs 11, 21, ... (zero-based 10, 20, ...) and never switches back to training mode."""
    for name, first, every in (("cara_paper", 11, 10), ("cara_paper_older", 51, 5)):
        protocol = Protocol(**compose_config(f"protocol={name}").protocol)
        assert (protocol.eval_mode_after, protocol.select_after, protocol.select_every) == (first, first - 1, every)


def test_the_fixed_protocol_takes_nothing_per_task() -> None:
    config = ["experiment=hs_table2", "method=cara", "dataset=svhn"]
    assert build_all(compose_config(*config))["method"].scale == 100
    assert build_all(compose_config(*config, "protocol=fixed"))["method"].scale == 1


def documented() -> list[str]:
    pages = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
    texts = [re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8")) for page in pages if page.is_file()]
    lines = [line for text in texts for line in text.splitlines()]
    return [line.strip() for line in lines if re.match(r"\s*(\$ )?python train\.py [^.]", line) and "--" not in line]


@each("command", documented())
def test_every_documented_command_composes(command: str) -> None:
    build_all(compose_config(*overrides_of(command)))


def test_a_run_is_planned_without_images_or_weights_of_the_papers() -> None:
    plan = plan_run(compose_config("backbone=vit_nano", "dataset=dsprites_loc", "data=synthetic", "root=elsewhere"))
    assert str(plan.key.path(plan.root)) == "elsewhere/runs/hs_lora/dsprites_loc/base/seed-0"


def test_methods_standins_has_every_method_but_variants_and_parts() -> None:
    words = yaml.safe_load((CONF / "experiment" / "methods_standins.yaml").read_text(encoding="utf-8"))
    listed = [name.strip() for name in words["hydra"]["sweeper"]["params"]["method"].split(",")]
    left = set(method_names()) - set(listed)
    variants = {name for name in left if name.startswith(("head/", "heart/", "hs/", "qkv/", "hs_control_"))}
    second = {"joint_lora", "matched_lora", "permuted_lora", "scaled_head_lora"}  # of the controls of a second phase
    peft = {"peft", "peft/vblora", "peft_dora", "peft_lora", "peft_pissa"}  # any, one of another width, three checks
    assert left >= variants | second | peft
    assert len(set(listed)) == len(listed) == 70  # with kept records; a method added since may stand apart
