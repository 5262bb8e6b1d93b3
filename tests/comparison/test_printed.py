"""The papers' rows as data: complete, unaltered, and mapped to methods in one place."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from headwise.comparison import printed
from headwise.comparison.gaps import comparisons
from headwise.errors import ConfigError
from headwise.results.records import GROUP_SIZES
from made_cases import each
from made_results import published_run, run

REPO = Path(__file__).parents[2]
PAPER = REPO / "src" / "headwise" / "paper"
SHARED = Path(os.environ.get("HEADWISE_SHARED", REPO.parent / "shared"))
REPEATED = {"heart_t3_full", "heart_t3_lora", "heart_t5_full", "heart_t5_lora", "heart_t6_full", "heart_t6_lora"}
"""Rows that print again what Table 1 has."""


@pytest.mark.data
def test_the_rows_are_those_that_were_transcribed() -> None:
    source = SHARED / "published" / "published_results.csv"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    assert (PAPER / "published_results.csv").read_bytes() == source.read_bytes()


NUMBERS = r"\d+(?:\.\d+)?"


@pytest.mark.data
def test_the_notes_say_all_that_was_noted() -> None:
    source = SHARED / "published" / "NOTES.md"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    there, here = (re.sub(r"methods\.md[^)]*", "", file.read_text()) for file in (source, PAPER / "NOTES.md"))
    assert Counter(re.findall(NUMBERS, there)) - Counter(re.findall(NUMBERS, here)) == Counter()


@pytest.mark.data
def test_the_subnets_are_those_that_were_read() -> None:
    source = SHARED / "published" / "noah_subnets.csv"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    text = source.read_text()
    for file in (REPO / "conf" / "dataset").glob("*.yaml"):
        task = yaml.safe_load(file.read_text())
        for alias in task["aliases"]:
            text = re.sub(rf"^{alias},", f"{task['name']},", text, flags=re.MULTILINE)
    assert (PAPER / "noah_subnets.csv").read_text().splitlines() == text.splitlines()


def test_the_package_ships_them() -> None:
    shipped = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["headwise"]
    assert {"assets/*", "paper/*"} <= set(shipped)
    assert {file.suffix for file in PAPER.iterdir()} == {".csv", ".md"}


def test_all_rows_are_read() -> None:
    assert len(printed.rows()) == 71
    assert {row.backbone for row in printed.rows().values()} == set(printed.BACKBONES)
    assert {row.paper for row in printed.rows().values()} == {"Heart-LoRA", "HS-LoRA"}


def test_columns_are_the_tasks_and_groups_of_the_configuration() -> None:
    for file in (REPO / "conf" / "dataset").glob("*.yaml"):
        task = yaml.safe_load(file.read_text())
        (column,) = {task["name"], *task["aliases"]} & set(printed.tasks())
        assert printed.tasks()[column] == task["group"]
        assert printed.column_of(published_run(dataset=task)) == column
    assert len(printed.tasks()) == 19


def test_rows_belong_to_methods_that_exist() -> None:
    files = [yaml.safe_load(file.read_text()) for file in (REPO / "conf" / "method").rglob("*.yaml")]
    labels = {file["label"] for file in files if "${" not in file["label"]}
    lines = list(csv.DictReader((PAPER / "rows.csv").read_text().splitlines()))
    assert {line["row_id"] for line in lines} <= set(printed.rows())
    for line in lines:
        for label, phase in (place.split(":") for place in line["ours"].split()):
            assert label.removeprefix("hs_") in labels, line["row_id"]
            assert phase == ("P2" if line["row_id"].endswith("_p2") else "P1")
        assert all(re.fullmatch(r"[\w.]+=[\w.|]+", term) for term in line["where"].split())
    unmapped = {row.id for row in printed.rows().values() if not row.ours}
    assert unmapped == REPEATED | {"heart_t6_heart"}


def test_a_lost_cell_stays_empty() -> None:
    cara = printed.find("hs_t2_cara")
    assert cara.text("dspr_loc") == cara.text("snorb_elev") == cara.text("mean_19") == ""
    assert cara.text("mean_groups") == "76.46"
    assert printed.find("hs_t2_full").size == ""
    assert list(printed.find("hs_t2_pissa_p1").cells) == ["pets", "snorb_azim"]


def test_means_are_printed_or_computed_and_marked() -> None:
    for row in printed.rows().values():
        assert set(row.computed) <= set(printed.MEANS)
    lines = {line["row_id"]: line for line in printed.read("published_results.csv")}
    for row_id, line in lines.items():
        row = printed.find(row_id)
        for mean, name in (("mean_groups", "group"), ("mean_19", "overall")):
            given, again = line[f"{name}_mean"], line[f"recomputed_{name}_mean"]
            if given:
                assert row.text(mean) == given
            elif again:
                assert row.text(mean).endswith("*")
                assert float(row.cells[mean]) == pytest.approx(float(again), abs=0.0051)
            else:
                assert row.text(mean) == ""
    heart = printed.find("heart_t1_heart_lora")
    assert (heart.text("mean_groups"), heart.text("mean_19")) == ("77.2", "75.06*")
    assert printed.find("heart_t2_heart").text("mean_natural") == "81.87"


def test_the_completed_row_is_taken_where_there_is_one() -> None:
    assert [row.id for row in printed.of_method("hs_pissa")] == [
        "hs_t1_pissa_p1",
        "hs_t1_pissa_p2",
        "hs_t2_pissa_p1",
        "hs_t2_hs_pissa_p2_completed",
    ]
    assert printed.find("hs_t2_hs_pissa_p2_completed").filled
    assert printed.of_method("dylora") == ()


def test_an_unknown_row() -> None:
    with pytest.raises(ConfigError, match=r"unknown published row 'hs_t2_lora_p1' \(did you mean 'hs_t"):
        printed.find("hs_t2_lora_p1")


def test_nothing_forbids_a_faithful_run() -> None:
    result = published_run()
    row = printed.find("heart_t1_lora")
    assert printed.obstacles(result, row, result.phases[0]) == []
    stamped = published_run(labels=["TEST-SELECTED"])
    assert printed.obstacles(stamped, row, stamped.phases[0]) == []


@each(
    "fields, reason",
    [
        *(
            ({"labels": [label]}, label)
            for label in ("stand-in weights", "synthetic", "unofficial split", "subset", "unverified weights")
        ),
        ({"backbone": {"timm_name": "vit_small"}}, "weights vit_small, there vit_base_patch16_224.orig_in21k"),
        ({"backbone": {}}, "weights not recorded, there vit_base_patch16_224.orig_in21k"),
        ({"backbone": {"timm_name": "vit_base_patch16_224.orig_in21k", "img_size": 98}}, "images of 98 px, there 224"),
        ({"spec": {"rank": 16, "fused": False}}, "rank 16, there 8"),
        ({"spec": {"rank": 8.0}}, "fused not recorded, there false"),
    ],
)
def test_what_forbids_a_comparison(fields: dict, reason: str) -> None:
    result = published_run(**fields)
    assert printed.obstacles(result, printed.find("heart_t1_lora"), result.phases[0]) == [reason]


@each(
    "method, row_id, reasons",
    [
        ("lora", "heart_t1_lora", []),
        ("linear", "heart_t1_linear", ["lossy, there lossless"]),
        ("linear", "hs_t2_linear_completed", ["lossy, there lossless"]),
        ("pissa", "hs_t1_pissa_p1", ["lossy, there not known"]),
    ],
)
def test_like_is_compared_with_like(method: str, row_id: str, reasons: list[str]) -> None:
    row, result = printed.find(row_id), published_run(method, labels=["lossy"])
    where = {key: values[0] for key, values in row.where.items()}
    found = printed.obstacles(result, row, dataclasses.replace(result.phases[0], method=where))
    assert found == reasons


def test_either_of_two_values_and_nested_fields() -> None:
    row = printed.find("hs_t2_hs_pissa_p2")
    phase = published_run(spec={"rank": 2}).phases[0]
    assert printed.obstacles(published_run(), row, phase) == []
    scored = published_run(spec={"gate": {"score": "grad_l2"}})
    assert printed.obstacles(scored, printed.find("heart_t5_grad"), scored.phases[0]) == []
    assert printed.obstacles(scored, printed.find("heart_t5_weight"), scored.phases[0]) == [
        "gate.score grad_l2, there weight_l2"
    ]


def test_few_shot_pets_are_not_the_papers_pets() -> None:
    assert printed.column_of(run(dataset="pets")) == "pets"
    assert printed.column_of(run(dataset="pets", group="fewshot")) is None
    assert printed.column_of(run(dataset="elsewhere")) is None


def test_every_part_of_a_protocol_has_a_size_and_a_source() -> None:
    topics = [line["topic"] for line in printed.read("gaps.csv")]
    assert len(set(topics)) == len(topics)
    assert {"average", "data", "weights", "normalisation", "resize", "selection", "seeds", "epochs"} <= set(topics)
    assert all(line["typical"] and line["source"] for line in printed.read("gaps.csv"))
    for line in printed.read("protocols.csv"):
        assert line["topic"] in topics
        assert line["said"]
        assert line["source"]
        assert line["basis"] in ("stated", "lineage", "derived")


def test_the_spread_between_averages_is_that_of_the_rows() -> None:
    complete = [line for line in printed.read("published_results.csv") if line["recomputed_group_mean"]]
    gaps = [float(line["recomputed_group_mean"]) - float(line["recomputed_overall_mean"]) for line in complete]
    (line,) = [line for line in printed.read("gaps.csv") if line["topic"] == "average"]
    assert (round(min(gaps), 1), round(max(gaps), 1)) == (float(line["low"]), float(line["high"]))
    assert sum(GROUP_SIZES.values()) == 19


def test_every_mapped_row_can_be_compared() -> None:
    for row in printed.rows().values():
        columns = [column for column in row.cells if column in printed.tasks()]
        if columns:
            (found, *_) = comparisons([published_run("any", dataset=columns[0])], row.id)
            assert found.cells[0].published == row.cells[columns[0]]
