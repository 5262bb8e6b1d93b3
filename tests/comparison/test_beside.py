"""Published rows stand beside comparable results, apart only on request, and never as if they were comparable."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from headwise.comparison.tables import Table, tables
from headwise.errors import ConfigError
from headwise.report.formats import render
from made_cases import each
from made_results import published_run, run

TASKS = [yaml.safe_load(f.read_text()) for f in sorted((Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"))]
QKV = {"rank": 8, "fused": True}


def one(results, **options) -> Table:
    (table,) = tables(results, "T", **options)
    return table


def texts(table: Table) -> dict[tuple[str, str, str], str]:
    lines = table.published[["row_id", "phase", "column", "text"]].itertuples(index=False, name=None)
    return {(row_id, phase, column): text for row_id, phase, column, text in lines}


def test_rows_of_a_method_that_fit_stand_below_ours():
    table = one([published_run(), published_run("linear")])
    assert texts(table) == {
        ("heart_t1_linear", "P1", "svhn"): "36.6",
        ("hs_t2_linear_completed", "P1", "svhn"): "36.6",
        ("heart_t1_lora", "P1", "svhn"): "88.9",
    }
    assert table.published["comparable"].all()
    assert any("Published rows are copied" in note for note in table.notes)
    assert any("hs_t2_linear_completed" in note for note in table.notes)
    lines = render([table], "md").splitlines()
    ours = next(place for place, line in enumerate(lines) if line.startswith("| lora |"))
    assert lines[ours + 1] == "| published: LoRA, Heart-LoRA Table 1 | 1.13 MiB |  |  |  | 88.9 |"
    assert "apart" not in lines


def test_columns_are_found_through_the_tasks_aliases():
    results = [published_run(dataset=task) for task in TASKS]
    table = one(results)
    found = {column: text for (row_id, _, column), text in texts(table).items() if row_id == "heart_t1_lora"}
    assert len(found) == 19 + 5
    assert found["smallnorb_azi"]
    assert (found["mean_groups"], found["mean_19"]) == ("76.4", "74.31*")


def test_tasks_stand_in_the_papers_order():
    table = one([published_run(dataset=task) for task in reversed(TASKS)])
    ours = [name for name in dict.fromkeys(table.cells["column"]) if not name.startswith("mean_")]
    assert ours[:5] == ["cifar100", "caltech101", "dtd", "flowers102", "pets"]
    assert ours[-4:] == ["dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"]
    assert len(ours) == 19


def test_a_lost_cell_stays_empty_beside_ours():
    results = [published_run("cara", dataset=task) for task in TASKS]
    table = one(results)
    found = {column for _, _, column in texts(table)}
    assert found == {task["name"] for task in TASKS} - {"dsprites_loc", "smallnorb_ele"} | {
        "mean_groups",
        "mean_natural",
        "mean_specialized",
    }
    (line,) = [line for line in render([table], "md").splitlines() if line.startswith("| published: CaRA")]
    head = next(line for line in render([table], "md").splitlines() if line.startswith("| method"))
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["dsprites_loc"] == cells["mean_19"] == ""


def test_phases_are_different_rows():
    heads = {"_target_": "m.HeadLoRA", "rank": 4}
    result = published_run("hs_pissa", accuracy=(88.0, 90.0), spec={"rank": 16})
    result.phases[1].method.clear()
    result.phases[1].method.update(heads)
    table = one([result])
    assert texts(table) == {
        ("hs_t1_pissa_p1", "P1", "svhn"): "88.12",
        ("hs_t1_pissa_p2", "P2", "svhn"): "90.39",
    }
    lines = [line for line in render([table], "md").splitlines() if line.startswith("| published")]
    assert lines[0].endswith("| 88.12 |  |")
    assert lines[1].endswith("|  | 90.39 |")


@each("label", ["stand-in weights", "synthetic", "unofficial split", "unverified weights"])
def test_nothing_published_stands_beside_what_may_not_be_compared(label):
    table = one([published_run(labels=[label])])
    assert table.published.empty
    assert any(f"No published row stands beside lora: {label}; " in note for note in table.notes)
    assert "88.9" not in render([table], "md")
    table = one([published_run(labels=[label])], published="always")
    assert not table.published["comparable"].any()
    text = render([table], "md")
    main, apart = text.split("### T: published rows, apart")
    assert "88.9" not in main
    assert f"- NOT COMPARABLE with the results above, shown because it was asked for: {label}; " in apart
    assert "| LoRA, Heart-LoRA Table 1 | P1 | 1.13 MiB | 88.9 |" in apart.splitlines()


def test_a_reason_names_its_rows_where_it_is_not_that_of_all():
    results = [published_run("linear", labels=["synthetic"]), published_run(labels=["synthetic"], spec={"rank": 4})]
    (note,) = [note for note in one(results).notes if note.startswith("No published row")]
    assert note.startswith("No published row stands beside linear, lora: synthetic; rank 4, there 8 (lora); ")


def test_one_task_that_does_not_fit_spoils_its_cell_and_the_means():
    results = [published_run(dataset=task, labels=["subset"] if task["name"] == "cifar100" else []) for task in TASKS]
    table = one(results)
    found = {column for row_id, _, column in texts(table) if row_id == "heart_t1_lora"}
    assert {"svhn", "mean_specialized", "mean_structured"} <= found
    assert not {"cifar100", "mean_natural", "mean_19", "mean_groups"} & found


def test_other_settings_of_the_method_are_not_the_published_one():
    table = one([published_run(spec={"rank": 16, "fused": False})])
    assert set(table.published["row_id"]) == {"hs_t1_lora_p1"}
    table = one([published_run(spec=QKV)])
    assert set(table.published["row_id"]) == {"hs_t2_lora_completed"}


def test_never_and_unknown():
    assert one([published_run()], published="never").published.empty
    with pytest.raises(ConfigError, match=r"unknown choice of published rows 'all'.*always, auto, never"):
        tables([run()], published="all")


def test_methods_of_no_paper_need_nothing():
    table = one([published_run("mine"), run(dataset="food", group="fewshot")][:1])
    assert table.published.empty
    assert not any("ublished" in note for note in table.notes)


@each("form", ["latex", "csv", "json"])
def test_every_format_has_them(form):
    text = render(tables([published_run(), published_run("linear", labels=["lossy"])], "T", published="always"), form)
    assert "88.9" in text
    assert "36.6" in text
    if form == "csv":
        assert "T,published,heart_t1_lora,P1,svhn,,88.9,,,,,,,,,,88.9" in text.splitlines()
        assert 'T,"published, apart",heart_t1_linear,P1,svhn,,36.6,,,,,,,,,,36.6' in text.splitlines()


COPIES = "Measured on JPEG copies of lossless images (lineage): "


def test_lossy_results_stand_beside_rows_that_were_measured_on_such_images():
    table = one([published_run(labels=["lossy"]), published_run("linear", labels=["lossy"])])
    assert set(texts(table)) == {("heart_t1_lora", "P1", "svhn")}
    assert f"{COPIES}heart_t1_lora; the results beside them: lossy." in table.notes
    (why,) = [note for note in table.notes if note.startswith("No published row")]
    assert why.startswith("No published row stands beside linear: lossy, there lossless. ")


def test_the_caption_says_whose_images_were_copies():
    results = [published_run(dataset=task, labels=["lossy"] if task["name"] == "cifar100" else []) for task in TASKS]
    (note,) = [note for note in one(results).notes if note.startswith(COPIES)]
    assert note.endswith("; the results beside them: lossless and lossy.")
    assert f"{COPIES}heart_t1_lora; the results beside them: lossless." in one([published_run()]).notes
    assert not [note for note in one([published_run("linear")]).notes if note.startswith(COPIES)]


def test_what_the_user_says_of_the_weights_stands_in_the_caption():
    result = published_run()
    assert not [note for note in one([result]).notes if "not verified" in note]
    result.provenance["weights"]["stated"] = "official, stated by the user"
    note = "That the weights are the papers' is not verified but said: official, stated by the user."
    assert note in one([result]).notes
