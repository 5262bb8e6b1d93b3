"""Methods side by side, from records made by hand, and the command that writes the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from headwise.comparison.lineup import lineups, markdown, plain
from headwise.results.records import Result
from headwise.results.store import ResultStore
from made_results import run
from made_scripts import loaded

PROBE = {"_target_": "headwise.methods.baselines.Linear"}


def made(method: str, *accuracy: float, **fields: Any) -> Result:
    """A run of 5 epochs and 75 steps of 0.2 s a phase."""
    result = run(method, "eurosat", accuracy=accuracy, epochs=5, **fields)
    phases = [
        dataclasses.replace(
            phase, steps=75, seconds=15.0, train_loss=0.5 - 0.1 * index, peak_memory=(3 - index) * 2**20
        )
        for index, phase in enumerate(result.phases)
    ]
    return dataclasses.replace(result, phases=phases)


def test_rows_are_sorted_and_those_below_the_probe_are_marked() -> None:
    results = [
        made("mora", 79.9),
        made("hs_lora", 90.0, 91.5, labels=["stand-in weights"]),
        made("linear", 80.0, spec=PROBE),
        made("mora", 85.0, variant="lr0.0003", protocol={"lr": 3e-4}),
    ]
    (lineup,) = lineups(results)
    rows = [(line.method, line.variant, line.accuracy, line.below_probe) for line in lineup.lines]
    assert rows == [
        ("hs_lora", "base", 91.5, False),
        ("mora", "lr0.0003", 85.0, False),
        ("linear", "base", 80.0, False),
        ("mora", "base", 79.9, True),
    ]
    first = lineup.lines[0]
    assert first.costs == {"parameters": 300, "head": 7690, "stored_bytes": 20, "epochs": 10}
    assert (first.train_loss, first.peak_memory) == (0.4, 3 * 2**20)
    assert first.ms_per_step == pytest.approx(200.0)
    text = markdown([lineup])
    assert "| hs_lora | 300 | 7,690 | 20 | 10 | 91.50 | 0.4000 | 200 | 3 |" in text
    assert "| mora (below the linear probe) | 100 |" in text
    assert "| mora (lr0.0003) | 100 |" in text
    assert text.endswith("| method | base | lr0.0003 |\n| --- | --: | --: |\n| mora | 79.90 (0.50) | 85.00 (0.50) |\n")
    assert "- Label: stand-in weights." in text
    assert "2 protocols are mixed" in text
    assert json.loads(json.dumps(plain([lineup])))[0]["lines"][0]["accuracy"] == 91.5


def test_other_images_stand_apart_and_a_missing_probe_is_told() -> None:
    first, second = lineups([made("lora", 90.0), made("lora", 91.0, data="other", variant="other")])
    assert [line.below_probe for line in (*first.lines, *second.lines)] == [None, None]
    assert "No linear probe" in markdown([first])


def test_a_choice_of_all_rows_is_said_once_and_hides_no_probe() -> None:
    results = [
        made("linear", 80.0, spec=PROBE, variant="vit_nano"),
        made("lora", 79.0, variant="vit_nano"),
        made("linear", 85.0, spec=PROBE, protocol={"lr": 1}, variant="lr1-vit_nano"),
    ]
    (lineup,) = lineups(results)
    assert [(line.method, line.variant, line.below_probe) for line in lineup.lines] == [
        ("linear", "lr1", False),
        ("linear", "base", False),
        ("lora", "base", True),
    ]
    assert "Every row: vit_nano." in lineup.notes


def test_what_was_not_measured_stays_empty() -> None:
    (lineup,) = lineups([run("lora", "eurosat", accuracy=(90.0,))])
    assert markdown([lineup]).splitlines()[-1].endswith("| 90.00 |  |  |  |")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = loaded("list_methods")
    assert script.main(["--runs", "methods", "--root", str(tmp_path)]) == 1
    assert "no finished run of 'methods' under" in capsys.readouterr().err
    probe = made("linear", 80.0, spec=PROBE, name="methods")
    ResultStore(tmp_path).put(probe.key, probe)
    out, data = tmp_path / "docs" / "table.md", tmp_path / "docs" / "table.json"
    asked = ["--runs", "methods", "--root", str(tmp_path), "--out", str(out), "--json", str(data)]
    assert script.main(asked) == 0
    assert out.read_text() == capsys.readouterr().out
    assert json.loads(data.read_text())[0]["lines"][0]["method"] == "linear"
    damaged = tmp_path / "methods" / "lora" / "eurosat" / "base" / "seed-0" / "result.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert script.main(asked) == 0
    assert "1 damaged record(s) count as missing: methods/lora/eurosat/base/seed-0/result.json." in out.read_text()
    assert script.main([*asked, "lora"]) == 1
    assert "give no methods, --papers or --set" in capsys.readouterr().err


def test_what_a_search_chose_is_a_column_where_one_was_made() -> None:
    searched, plainly = made("lora", 90.0, 91.0), made("mora", 80.0)
    tried = {"num_trials": 3, "searched": ["lr", "consistency", "score"], "edges": ["lr"]}
    chosen = {
        "scale": None,
        "score": None,
        "accuracy": 60.0,
        "fields": {"lr": 0.01, "consistency": {"mode": "fast", "lam": 1, "scaled": True}},
    }
    first = dataclasses.replace(searched.phases[0], extra={"search": {**tried, "chosen": chosen}})
    second = dataclasses.replace(searched.phases[1], extra={"search": {"num_trials": 2, "searched": ["lr"]}})
    second.method["lr"] = 0.003  # an older record tells it nowhere else
    text = markdown(lineups([dataclasses.replace(searched, phases=[first, second]), plainly]))
    assert "peak MiB | chosen |" in text
    assert "| consistency {mode: 'fast', lam: 1, scaled: true}, lr 0.01 (end), then lr 0.003 |" in text
    assert "| mora (older" not in text and "| 80.00 | 0.5000 | 200 | 3 |  |" in text
    assert "chosen" not in markdown(lineups([plainly]))
