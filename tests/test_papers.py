"""Every experiment of the papers shows what their table or figure shows: rows, columns, settings (issue line 29).

Rows of tables are those of ``paper/published_results.csv``; what figures and appendix tables show stands here.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from headwise.protocol.pertask import OTHERS, fill_protocol, fill_tasks
from headwise.protocol.plan import plan_run
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import Space
from headwise.runs.jobs import requests_of
from made_cases import each
from made_networks import CONF, REPO, compose_config

PAPER = REPO / "src" / "headwise" / "paper"
EXPERIMENTS = sorted(f.stem for f in (CONF / "experiment").glob("*.yaml") if re.match("hs_|heart_", f.stem))
OWN = {"heart_twins", "heart_variants"}
"""Our own weights and images: no paper shows them."""
TASKS = sorted(file.stem for file in (CONF / "dataset").glob("*.yaml"))
SEEDS = {"0", "1", "2"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a paper shows.

    Attributes:
        table: paper and number, of which the rows are looked up; empty for a figure or a claim without a table.
        rows: labels of methods, where there is no table.
        tasks: its columns.
        axes: any other key of the sweep, with its values.
        extra: rows that the paper lacks.
    """

    table: tuple[str, str] = ("", "")
    rows: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = tuple(TASKS)
    axes: dict[str, set[str]] = dataclasses.field(default_factory=lambda: {"seed": SEEDS})
    extra: frozenset[str] = frozenset()


def heart(number: int, **fields: Any) -> Shown:
    return Shown(table=("Heart-LoRA", f"Table {number}"), **fields)


GROUPS = ("svhn", "camelyon", "clevr_count")
CURVE = {f"ne{number}" for number in (1, 3, 5, 7, 9, 11)}
SETS = tuple(f"fewshot/{name}" for name in ("aircraft", "cars196", "flowers102", "food101", "pets"))
FIG2 = frozenset(("noah", "bi_lora", "vpt_deep", "lora", "adaptformer", "heart_lora"))
RANKS = {"r16_h1", "r16_h2", "r16", "r16_h4", "r16_h8"}
FIRST = ("lora", "adalora", "dora", "pissa", "cara")
SHOWN = {
    **{f"heart_table{number}": heart(number) for number in range(1, 6)},
    "heart_table6": heart(6, extra=frozenset(["heart_random"])),
    "heart_fig2": Shown(rows=FIG2, tasks=SETS, axes={"shots": {"1", "2", "4", "8", "16"}, "draw": {"0", "1", "2"}}),
    "heart_fig3": Shown(rows=frozenset(["heart_front"]), axes={"ne": {"ne0", "ne1", "ne3", "ne6"}, "seed": SEEDS}),
    "heart_fig4": Shown(
        rows=frozenset(["heart_lora"]), tasks=("cifar100", "dsprites_loc"), axes={"ne": CURVE, "seed": SEEDS}
    ),
    "heart_fig8": Shown(rows=frozenset(["heart_lora"]), axes={"ne": CURVE, "seed": SEEDS}),
    "hs_table1": Shown(table=("HS-LoRA", "Table 1"), tasks=("svhn",)),
    "hs_table2": Shown(table=("HS-LoRA", "Table 2")),
    "hs_controls": Shown(
        rows=frozenset(row for first in FIRST for row in (f"hs_{first}", f"{first}_long", f"{first}_then_lora"))
    ),
    "hs_head_only": Shown(rows=frozenset(["head_lora", "head_lora_long", "matched_lora", "hs_pissa"])),
    "hs_fused": Shown(rows=frozenset(["qkv_fused", "qkv_fused_matched", "qkv_split", "qkv_peft"]), tasks=GROUPS),
    "hs_rank": Shown(
        rows=frozenset(["matched_lora", "head_lora", "hs_pissa"]), tasks=GROUPS, axes={"rank": RANKS, "seed": SEEDS}
    ),
}
SAME_RUN = {"heart": "heart_t2_heart", "full": "heart_t1_full", "lora": "heart_t1_lora"}
"""Rows that Heart-LoRA's later tables repeat, by the end of their names."""


@functools.cache
def jobs_of(name: str) -> list[dict[str, str]]:
    jobs = requests_of(CONF, [f"experiment={name}"])[1].values()
    return [dict(part.split("=", 1) for part in job) for job in jobs]


@functools.cache
def configs_of(name: str) -> dict[str, dict[str, Any]]:
    """Of each row of an experiment, by its label, the resolved configuration of its first job."""
    found: dict[str, dict[str, Any]] = {}
    varied = ("dataset", "seed", "shots", "draw", "ne", "rank")
    for chosen in {
        tuple((key, value) for key, value in job.items() if key not in varied): job for job in reversed(jobs_of(name))
    }.values():
        cfg = compose_config(*(f"{key}={value}" for key, value in chosen.items()), "data.root=unused")
        OmegaConf.set_struct(cfg, False)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        config["protocol"], config["method"] = fill_protocol(config), fill_tasks(config)
        found[config["method"]["label"]] = config
    return found


def read(name: str) -> list[dict[str, str]]:
    with (PAPER / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def rows_of(table: tuple[str, str]) -> dict[str, tuple[list[str], str]]:
    """Of a paper's table: row -> labels with their phases, and the settings that must hold."""
    ours = {row["row_id"]: (row["ours"].split(), row["where"]) for row in read("rows.csv")}
    printed = [
        row["row_id"]
        for row in read("published_results.csv")
        if (row["source_paper"].partition(" (")[0], row["source_table"]) == table and row["row_status"] == "as_printed"
    ]
    return {row: ours.get(row) or ours[SAME_RUN[row.rpartition("_")[2]]] for row in printed}


def phase_of(config: dict[str, Any], phase: str) -> dict[str, Any]:
    method: dict[str, Any] = config["method"]
    parts = [method[key] for key in ("first", "heads") if isinstance(method.get(key), dict)] or [method]
    return parts[min(int(phase[1:]), len(parts)) - 1]


def holds(method: dict[str, Any], where: str) -> bool:
    for text in where.split():
        name, _, wanted = text.partition("=")
        value: Any = method
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if str(value).lower() not in wanted.split("|"):
            return False
    return True


def test_no_experiment_of_the_papers_escapes() -> None:
    assert set(SHOWN) | OWN == set(EXPERIMENTS)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_rows_are_the_papers(name: str) -> None:
    shown, configs = SHOWN[name], configs_of(name)
    if not shown.table[0]:
        assert set(configs) == shown.rows
        return
    rows = rows_of(shown.table)
    assert rows, f"no row of {shown.table} is known"
    used = set()
    for row, (ours, where) in rows.items():
        found = [text.split(":") for text in ours if text.split(":")[0] in configs]
        assert found, f"{row} has no row here: {ours}"
        for label, phase in found:
            assert holds(phase_of(configs[label], phase), where), f"{row}: {label} is not {where}"
            used.add(label)
    assert set(configs) - used == shown.extra


@each("name", sorted(SHOWN))
def test_columns_and_axes_are_the_papers(name: str) -> None:
    shown, jobs = SHOWN[name], jobs_of(name)
    base = compose_config(f"experiment={name}")
    assert {job.get("dataset", base.dataset.name) for job in jobs} == set(shown.tasks)
    for key, values in shown.axes.items():
        assert {job[key] for job in jobs} == values
    swept = set().union(*jobs) - {"dataset", "method", "method@method.first", "experiment"}
    assert swept == set(shown.axes)


SCALES, LENGTHS = [0.01, 0.1, 1, 10, 100], [1, 5, 10, 50, 100, 200]
SCORES = ["taylor_pos", "taylor_neg", "taylor_abs"]
PETL = {"epochs": 100, "batch_size": 64, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "warmup": 0.1}
CARA = ("hs_cara", "cara_long", "cara_then_lora")
"""Rows over CaRA, in the experiment that asks whether its second phase pays."""
SETTINGS = {
    ("heart_table1", "lora"): {
        "rank": 8,
        "dropout": 0.1,
        "protocol.normalize": "none",
        "protocol.search.scale": SCALES,
    },
    ("heart_table1", "adaptformer"): {"hidden": 8},
    ("heart_table1", "pfeiffer"): {"hidden": 8},
    ("heart_table1", "ssf"): {"lr": 0.005},
    ("heart_table1", "noah"): {"protocol.normalize": "imagenet"},
    ("heart_table1", "fact_tt"): {"protocol.search.fields": {"rank": [8, 16, 32]}, "protocol.search.scale": SCALES},
    ("heart_table1", "vpt_shallow"): {"protocol.search.fields": {"prompts": LENGTHS}},
    ("heart_table1", "heart_lora"): {
        "bits": 1,
        "rank": 32,
        "gate.scope": "global",
        "protocol.search.ne": [1, 3, 6],
        "protocol.search.score": SCORES,
        **{f"protocol.{key}": value for key, value in PETL.items()},
    },
    ("heart_table2", "heart_fp32"): {"bits": 32},
    ("heart_table3", "heart_layer"): {"gate.scope": "layer", "protocol.search.score": SCORES},
    ("heart_table4", "heart_lora"): {"protocol.search.ne": [0.25], "backbone": "swin_b_in22k"},
    ("heart_table4", "vpt_deep"): {"prompts": 10, "protocol.search.fields": {"prompts": [1, 5, 10, 50]}},
    ("heart_table5", "heart_weight"): {
        "gate.scope": "layer",
        "protocol.search.ne": [1, 3],
        "protocol.search.score": [],
    },
    ("heart_table5", "heart_grad"): {
        "gate.score": "grad_l2",
        "protocol.search.ne": [1, 3],
        "protocol.search.score": [],
    },
    ("heart_table6", "heart_front"): {"gate.mode": "front", "protocol.search.ne": [1, 3, 6]},
    ("heart_fig2", "lora"): {"rank": 8, "dropout": 0.1, "protocol.lr": 0.005, "protocol.normalize": "imagenet"},
    ("heart_fig2", "adaptformer"): {"hidden": 8},
    ("heart_fig2", "noah"): {"search": "evolution"},
    ("heart_fig2", "heart_lora"): {
        "protocol.search.ne": [1, 3],
        "protocol.search.score": ["taylor_pos", "taylor_neg"],
        **{f"protocol.{key}": value for key, value in {**PETL, "lr": 0.005}.items()},
    },
    ("heart_fig3", "heart_front"): {"protocol.search": None, "protocol.normalize": "none"},
    ("heart_fig4", "heart_lora"): {"protocol.search": None},
    ("heart_fig8", "heart_lora"): {"protocol.search": None},
    ("hs_table1", "hs_lora"): {"first.rank": 16, "heads.rank": 4},
    ("hs_table2", "hs_pissa"): {"first.rank": 16, "heads.rank": 3, "heads.targets": ["q", "v"]},
    ("hs_table2", "hs_cara"): {"heads.rank": 3, "heads.targets": ["q", "k", "v"]},
    **{
        ("hs_controls", label): dict.fromkeys(("first.scale", "first.mean", "first.std"), "published") for label in CARA
    },
    ("hs_table2", "adaptformer"): {"bias": True},
    ("hs_table2", "ssf"): {"lr": 0.005},
    ("hs_table2", "vpt_shallow"): {"protocol.search": {"fields": {"prompts": LENGTHS}}},
}


@each("name, label", sorted(SETTINGS))
def test_settings_are_the_papers(name: str, label: str) -> None:
    config = configs_of(name)[label]
    plain = {**config["method"], "protocol": config["protocol"], "backbone": config["backbone"]["name"]}
    for key, wanted in SETTINGS[name, label].items():
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        assert value == wanted, f"{key} of {label}"


@each("name", [name for name in sorted(SHOWN) if name.startswith("heart_")])
def test_low_rank_rows_that_are_compared_have_one_dropout(name: str) -> None:
    rates = {
        label: config["method"]["dropout"]
        for label, config in configs_of(name).items()
        if label in ("lora", "bi_lora", "fact_tt") or label.startswith("heart_")
    }
    assert set(rates.values()) == {0.1}, rates


@each("name", sorted(SHOWN))
def test_what_is_searched_can_be_built_and_applies(name: str) -> None:
    for label, config in configs_of(name).items():
        protocol = Protocol(**config["protocol"])
        if protocol.search is not None:
            fields = Space.of(protocol.search).fields
            assert set(fields) <= set(config["method"]), f"{label} has none of {list(fields)}"


CLASSES = {  # Heart-LoRA Table 8: classes, test images
    "cifar100": (100, 10_000),
    "caltech101": (102, 6_084),
    "dtd": (47, 1_880),
    "flowers102": (102, 6_149),
    "pets": (37, 3_669),
    "svhn": (10, 26_032),
    "sun397": (397, 21_750),
    "camelyon": (2, 32_768),
    "eurosat": (10, 5_400),
    "resisc45": (45, 6_300),
    "retinopathy": (5, 42_670),
    "clevr_count": (8, 15_000),
    "clevr_dist": (6, 15_000),
    "dmlab": (6, 22_735),
    "kitti_dist": (4, 711),
    "dsprites_loc": (16, 73_728),
    "dsprites_ori": (16, 73_728),
    "smallnorb_azi": (18, 12_150),
    "smallnorb_ele": (18, 12_150),
    "fewshot/food101": (101, 30_300),
    "fewshot/cars196": (196, 8_041),
    "fewshot/flowers102": (102, 2_463),
    "fewshot/aircraft": (100, 3_333),
    "fewshot/pets": (37, 3_669),
}
MISPRINTS = {"smallnorb_ele": (9, 12_150)}
"""What VTAB-1k has, where the table prints something else."""


def test_data_sets_are_those_of_the_papers_table() -> None:
    found = {}
    for name in [*TASKS, *SETS]:
        plain = yaml.safe_load((CONF / "dataset" / f"{name}.yaml").read_text())
        found[name] = (plain["num_classes"], plain["num_test"])
    assert found == {**CLASSES, **MISPRINTS}
    assert "18 classes for smallNORB's elevation, VTAB has 9" in " ".join(
        (REPO / "docs" / "data.md").read_text().split()
    )


def test_the_cost_page_knows_the_lists_that_few_shot_searches_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    from paper_cost import SEARCH_LISTS

    assert set(SEARCH_LISTS) == {name.replace("/", "_") for name in SETS}


def test_a_run_of_such_a_row_is_planned_with_its_own_protocol() -> None:
    common = ["experiment=heart_table1", "data=synthetic", "backbone=vit_nano", "dataset=svhn"]
    noah, lora = (plan_run(compose_config(*common, f"method={name}")) for name in ("noah", "lora"))
    assert noah.protocol.normalize == noah.identity["protocol"]["normalize"] == "imagenet"
    assert noah.config[OTHERS] == lora.config["protocol"]
    assert OTHERS not in lora.config
    fact = plan_run(compose_config(*common, "method=fact_tt"))
    assert fact.protocol.search is not None
    assert fact.protocol.search["fields"] == {"rank": [8, 16, 32]}
    assert lora.protocol.search is not None
    assert "fields" not in lora.protocol.search
