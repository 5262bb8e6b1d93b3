"""Tables as text, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.render import FORMATS, render
from headwise.results import ResultStore
from headwise.tables import tables
from made_results import run, suite

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_tables.py"


def two_phase():
    results = [run("hs_lora", seed=seed, accuracy=(70.0, 75.0 + seed)) for seed in (0, 1)]
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
    assert "| hs_lora | P2 - longer P1 | +1.00 (1) |" in lines
    assert "| hs_lora | P2 - P1 | +5.50 \u00b1 0.71 (2) |" in lines
    assert "Avg" not in text


def test_one_phase_needs_no_phase_in_its_columns():
    text = render(tables([run()]), "md")
    assert "| method | parameters | head | stored bytes | epochs | svhn |" in text
    assert "paired" not in text


def test_latex_is_escaped_and_complete():
    text = render(tables(two_phase(), "A_B & 100%"), "latex")
    assert r"\caption{A\_B \& 100\%. " in text
    assert r"hs\_lora & 300 & 7,690 & 20 & 200 &  & 70.00 $\pm$ 0.00 (2) & 75.50 $\pm$ 0.71 (2) \\" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"\begin{tabular}{lrrrrrrr}" in text


def test_csv_is_tidy_and_unrounded():
    rows = list(csv.DictReader(io.StringIO(render(tables(two_phase(), "T"), "csv"))))
    found = {(row["kind"], row["method"], row["phase"], row["column"]): row for row in rows}
    assert float(found["accuracy", "hs_lora", "P2", "svhn"]["std"]) == pytest.approx(0.5**0.5)
    assert found["accuracy", "lora", "P1", "dtd"]["std"] == ""
    assert found["paired", "hs_lora", "P2 - longer P1", "svhn"]["mean"] == "1.0"


def test_json_holds_everything():
    (table,) = json.loads(render(tables(suite(), "T"), "json"))["tables"]
    assert table.keys() == {"title", "notes", "cells", "costs", "paired"}
    assert {cell["column"] for cell in table["cells"]} >= {"mean_19", "mean_groups", "nat0"}
    assert table["costs"][0]["parameters"] == [100, 100]


@pytest.mark.parametrize("form", sorted(FORMATS))
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


@pytest.mark.parametrize(("suffix", "start"), [(".tex", r"\begin{table}"), (".csv", "table,kind"), (".json", "{")])
def test_command_chooses_the_format_by_suffix(root, tmp_path, command, suffix, start):
    out = tmp_path / f"runs{suffix}"
    assert command("--root", root, "--out", out) == 0
    assert out.read_text().startswith(start)


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
    assert "1 damaged record(s) count as missing" in captured.out
    assert str(root) not in captured.out
