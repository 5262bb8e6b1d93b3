"""Tables as text, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from headwise.comparison.contrast import bootstrap
from headwise.comparison.tables import tables
from headwise.errors import ConfigError
from headwise.report.formats import FORMATS, render
from headwise.results.store import ResultStore
from made_cases import each
from made_results import run, suite

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tables.py"


def two_phase(seeds=(0, 1)):
    results = [run("hs_lora", seed=seed, accuracy=(70.0, 75.0 + seed)) for seed in seeds]
    return [
        *results,
        run("lora", dataset="dtd", accuracy=(60.0,)),
        run("lora", accuracy=(74.0,), epochs=200, variant="e"),
    ]


def test_markdown():
    text = render(tables(two_phase(), "T"), "md")
    lines = text.splitlines()
    assert lines[0] == "## T"
    head, rule, hs, lora, control = [line for line in lines if line.startswith("|")][:5]
    assert head == ("| method | parameters | head | stored bytes | epochs | dtd P1 | svhn P1 | svhn P2 |")
    assert rule == "| --- | --: | --: | --: | --: | --: | --: | --: |"
    assert hs == "| hs_lora | 300 | 7,690 | 20 | 200 |  | 70.00 \u00b1 0.00 (2) | 75.50 \u00b1 0.71 (2) |"
    assert lora == "| lora | 100 | 7,690 | 10 | 100 | 60.00 (1) |  |  |"
    assert control == "| lora (e) | 100 | 7,690 | 10 | 200 |  | 74.00 (1) |  |"
    assert "### T: paired differences" in lines
    assert "| method | difference | mean | 95 % interval | wins / ties / losses | tasks, pairs | svhn |" in lines
    assert "| hs_lora | P2 - longer P1 | +1.00 |  | 1 / 0 / 0 | 1, 1 | +1.00 (1) |" in lines
    assert "| hs_lora | P2 - P1 | +5.50 |  | 2 / 0 / 0 | 1, 2 | +5.50 \u00b1 0.71 (2) |" in lines
    assert any(
        line.startswith("- Is the second phase of hs_lora better than its controls? No control:") for line in lines
    )
    assert not any("second phase of lora" in line for line in lines)
    assert "Avg" not in text


def test_an_interval_from_six_pairs_on():
    low, high = bootstrap([[5.0, 6.0, 7.0, 8.0, 9.0, 10.0]])
    text = render(tables(two_phase(range(6)), "T"), "md")
    assert f"| hs_lora | P2 - P1 | +7.50 | {low:+.2f} to {high:+.2f} | 6 / 0 / 0 | 1, 6 |" in text
    rows = csv.DictReader(io.StringIO(render(tables(two_phase(range(6)), "T"), "csv")))
    (line,) = [row for row in rows if (row["kind"], row["method"], row["phase"]) == ("contrast", "hs_lora", "P2 - P1")]
    assert (float(line["low"]), float(line["high"])) == (low, high)


def test_one_phase_needs_no_phase_in_its_columns():
    text = render(tables([run()]), "md")
    assert "| method | parameters | head | stored bytes | epochs | svhn |" in text
    assert "paired" not in text


def test_latex_is_escaped_and_complete():
    text = render(tables(two_phase(), "A_B & 100%"), "latex")
    assert r"\caption{A\_B \& 100\%. " in text
    best, second = r"\textbf{74.00 (1)}", r"\underline{70.00 $\pm$ 0.00 (2)}"
    assert rf"hs\_lora & 300 & 7,690 & 20 & 200 &  & {second} & 75.50 $\pm$ 0.71 (2) \\" in text
    assert rf"lora (e) & 100 & 7,690 & 10 & 200 &  & {best} &  \\" in text
    assert r"\multicolumn{3}{c}{natural} \\ \cmidrule(lr){6-8}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert r"\begin{tabular}{lrrrrrrr}" in text


def test_latex_keeps_signs_and_options_apart():
    text = render(tables([*two_phase(), run("lora-x", seed=1)], "--published, n - 1, -3 of 4-8 in ne-1"), "latex")
    assert r"\caption{-{}-published, n $-$ 1, $-$3 of 4-8 in ne-1. " in text
    assert r"hs\_lora & P2 $-$ P1 & +5.50 & " in text
    assert "lora-x & " in text


def test_many_columns_make_phases_lines():
    results = [*suite(), *(two for one in suite() for two in [with_phase(one)])]
    head, *body = [line for line in render(tables(results, "T"), "md").splitlines() if line.startswith("| ")]
    assert head.startswith("| method | parameters | head | stored bytes | epochs | nat0 | nat1 |")
    assert head.endswith("| mean_natural | mean_specialized | mean_structured | mean_19 | mean_groups |")
    names = [line.split(" | ")[0].strip("| ") for line in body[1:4]]
    assert names == ["hs P1", "hs P2", "lora"]
    assert body[1].split(" | ")[1:5] == [""] * 4  # costs stand in the line of the last phase
    text = render(tables(results, "T"), "latex")
    (line,) = [line for line in text.splitlines() if line.startswith("hs P2 &")]
    assert line.count(r"\textbf") == 24
    (line,) = [line for line in text.splitlines() if line.startswith("lora &")]
    assert line.count(r"\underline") == 24  # equal to hs P1: both are second
    assert r"\textwidth\else\width\fi}{!}{%" in text
    assert text.count("{") == text.count("}")


def with_phase(one):
    accuracy = one.phases[0].accuracy
    return run("hs", one.key.dataset, one.key.seed, group=one.group, accuracy=(accuracy, accuracy + 1))


def test_best_is_decided_by_what_is_printed():
    results = [run(f"m{place}", accuracy=(value,)) for place, value in enumerate((90.001, 90.004, 89.0, 88.0))]
    text = render(tables(results, "T"), "latex")
    assert text.count(r"\textbf{90.00 (1)}") == 2
    assert text.count(r"\underline{89.00 (1)}") == 1
    assert r"\textbf" not in render(tables(results[:1]), "latex")


def test_csv_is_tidy_and_unrounded():
    rows = list(csv.DictReader(io.StringIO(render(tables(two_phase(), "T"), "csv"))))
    found = {(row["kind"], row["method"], row["phase"], row["column"]): row for row in rows}
    assert float(found["accuracy", "hs_lora", "P2", "svhn"]["std"]) == pytest.approx(0.5**0.5)
    assert found["accuracy", "lora", "P1", "dtd"]["std"] == ""
    assert found["paired", "hs_lora", "P2 - longer P1", "svhn"]["mean"] == "1.0"
    contrast = found["contrast", "hs_lora", "P2 - P1", ""]
    assert [contrast[name] for name in ("mean", "n", "low", "high", "wins", "ties", "losses")] == [
        *("5.5", "2", "", "", "2", "0", "0")
    ]
    cost = found["cost", "hs_lora", "", "parameters"]
    assert (cost["mean"], cost["low"], cost["high"]) == ("", "300", "300")


def where_it_pays():
    results = [
        run("hs", f"{group}{place}", seed, group=group, accuracy=(70.0, 71.0 + 3 * (group == "structured") + seed / 10))
        for group in ("natural", "structured")
        for place in (0, 1)
        for seed in range(3)
    ]
    return tables(results, "T")


def test_where_it_pays_is_in_every_format():
    made = where_it_pays()
    text = render(made, "md")
    assert "### T: where it pays" in text
    assert (
        "| method | difference | natural | structured | structured - natural | chance to be better "
        "| natural0 | natural1 | structured0 | structured1 |"
    ) in text
    assert "| hs | P2 - P1 | +1.10 (+1.0" in text and "| +3.00 (+2.9" in text and "| 1.00 (1.00 to 1.00) |" in text
    assert "| +1.10 (p 0.003, Holm 0.005) |" in text and "| +4.10 (p < 0.001, Holm < 0.001) |" in text
    assert "p of a two-sided paired t test" in text
    assert r"structured $-$ natural" in render(made, "latex")
    rows = {
        (row["kind"], row["column"]): row
        for row in csv.DictReader(io.StringIO(render(made, "csv")))
        if row["kind"].startswith("pays")
    }
    assert float(rows["pays, interaction", "structured - natural"]["mean"]) == pytest.approx(3.0)
    assert float(rows["pays, improvement", "all tasks"]["low"]) == 1.0
    task = rows["pays, task", "natural0"]
    assert 0 < float(task["p"]) <= float(task["holm"]) < 0.02 and task["low"] == "" and task["n"] == "3"
    (plain,) = json.loads(render(made, "json"))["tables"]
    assert [one["kind"] for one in plain["pays"]] == ["group", "group", "interaction", "improvement", *["task"] * 4]
    assert plain["pays"][0]["p"] is None


def test_csv_keeps_the_caption():
    made = tables([run(labels=["synthetic"]), run(seed=1, protocol={"name": "other"})], "T", published="never")
    rows = list(csv.DictReader(io.StringIO(render(made, "csv"))))
    said = [(row["table"], row["text"]) for row in rows if row["kind"] == "note"]
    assert (made[0].title, "Label: synthetic (all results).") in said
    assert [text for title, text in said if title == made[1].title] == made[1].notes
    assert {row["text"] for row in rows if row["kind"] != "note"} == {""}


def test_json_holds_everything():
    (table,) = json.loads(render(tables(suite(), "T"), "json"))["tables"]
    assert table.keys() == {
        *("title", "notes", "cells", "costs", "paired", "contrasts", "answers", "published", "apart")
    }
    assert {cell["column"] for cell in table["cells"]} >= {"mean_19", "mean_groups", "nat0"}
    assert table["costs"][0]["parameters"] == [100, 100]


@each("form", sorted(FORMATS))
def test_untested_results_can_be_rendered(form):
    assert render(tables([run(accuracy=(None,))]), form)


def test_unknown_format():
    with pytest.raises(ConfigError, match=r"unknown table format 'tex'.*allowed: csv, json, latex, md"):
        render([], "tex")


@pytest.fixture
def command(monkeypatch):
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["make_tables.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(stop.value.code or 0)

    return call


@pytest.fixture
def root(tmp_path):
    store = ResultStore(tmp_path / "outputs")
    for result in two_phase():
        store.put(result.key, result)
    return store.root


def test_command_writes_the_table_and_json(root, tmp_path, command):
    out = tmp_path / "docs" / "runs.md"
    assert command("runs", "--root", root, "--out", out, "--json", tmp_path / "runs.json") == 0
    assert out.read_text().startswith("## runs\n")
    assert json.loads((tmp_path / "runs.json").read_text())["tables"]


@pytest.mark.parametrize(("suffix", "start"), [(".tex", "% "), (".csv", "table,kind"), (".json", "{")])
def test_command_chooses_the_format_by_suffix(root, tmp_path, command, suffix, start):
    out = tmp_path / f"runs{suffix}"
    assert command("--root", root, "--out", out) == 0
    assert out.read_text().startswith(start)


def test_command_refuses_a_suffix_without_a_format(root, tmp_path, command, capsys):
    assert command("--root", root, "--out", tmp_path / "runs.xlsx") == 1
    assert "has none of the suffixes .md, .tex, .csv, .json" in capsys.readouterr().err
    assert command("--root", root, "--out", tmp_path / "runs.txt", "--format", "md") == 0


def test_command_compares_two_rows(root, command, capsys):
    assert command("runs", "--root", root, "--compare", "hs_lora", "lora (e)") == 0
    assert "| hs_lora | P2 - lora (e) P1 | +1.00 |  | 1 / 0 / 0 | 1, 1 | +1.00 (1) |" in capsys.readouterr().out
    assert command("runs", "--root", root, "--compare", "hs_lora", "lora_e") == 1
    assert (
        "'lora_e' has no finished run here (did you mean 'lora'?); allowed: hs_lora, lora, lora (e)"
        in capsys.readouterr().err
    )


def test_command_shows_published_rows_as_asked(root, command, capsys):
    assert command("runs", "--root", root, "--published", "never") == 0
    assert "ublished" not in capsys.readouterr().out
    assert command("runs", "--root", root, "--published", "always") == 0
    assert "### runs: published rows, apart" in capsys.readouterr().out


def test_command_prints_without_a_file(root, command, capsys):
    assert command("--name", "runs", "--root", root, "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("table,kind")


def test_command_names_the_runs_there_are(root, tmp_path, command, capsys):
    assert command("run", "--root", root, "--out", tmp_path / "x.md") == 1
    assert "no finished run of 'run' under" in (message := capsys.readouterr().err)
    assert "did you mean 'runs'?" in message
    assert not (tmp_path / "x.md").exists()


def test_command_reports_damaged_records(root, command, capsys):
    next(root.glob("*/hs_lora/*/*/seed-0/result.json")).write_text("{")
    assert command("--root", root) == 0
    captured = capsys.readouterr()
    assert "seed-0/result.json is not a usable record" in captured.err
    assert "1 damaged record(s) count as missing: runs/hs_lora/svhn/base/seed-0/result.json." in captured.out
    assert str(root) not in captured.out
