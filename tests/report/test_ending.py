"""What a run says when it ends, and what a sweep says once for all of its runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from headwise.report.ending import missing_controls, summary
from headwise.results.records import Result
from headwise.results.store import ResultStore
from made_results import gated, masked_suite, run

HEAD = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "rank": 2}


def second_phase(seed: int) -> Result:
    made = run("hs_lora", seed=seed, accuracy=(80.0, 85.0))
    return dataclasses.replace(made, phases=[made.phases[0], dataclasses.replace(made.phases[1], method=HEAD)])


def test_a_run_of_a_sweep_leaves_its_missing_controls_to_the_sweep() -> None:
    alone, swept = summary(second_phase(0)), summary(second_phase(0), suggest=False)
    assert alone.count("       ?  ") == 3 and "method=hs_control_long" in alone
    assert "       ?  " not in swept
    assert set(swept.splitlines()) < set(alone.splitlines())


def test_a_sweep_names_each_missing_control_once(tmp_path: Path) -> None:
    said = missing_controls([second_phase(seed) for seed in range(4)], ResultStore(tmp_path))
    assert said[0] == "Controls that runs of this sweep lack:"
    assert [line.split()[0] for line in said[1:]] == ["?"] * 3
    assert "4 of hs_lora lack it: method=hs_control_long" in said[1]


def test_a_control_that_lies_elsewhere_in_the_root_is_not_missing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for seed in range(3):
        longer = run("lora_long", seed=seed, accuracy=(83.0,), epochs=200, name="other")
        store.put(longer.key, longer)
    said = missing_controls([second_phase(seed) for seed in range(4)], store)
    assert "1 of hs_lora lack it: method=hs_control_long" in said[1]
    assert "4 of hs_lora lack it: method=hs_control_lora" in said[2]


def test_a_sweep_with_its_controls_or_without_heads_says_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    assert missing_controls(masked_suite(), store) == missing_controls([run()], store) == []
    assert len(missing_controls([gated("heart_lora", 0, 90.0, 1)], store)) == 3
