"""Our run beside a published row, and what can explain the gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from headwise.comparison.gaps import DIFFERS, SAME, UNKNOWN, Comparison, comparisons, text
from headwise.errors import ConfigError
from headwise.protocol.presets import POSSIBLY_TUNED
from headwise.results.store import ResultStore
from made_cases import each
from made_results import published_run, run
from made_scripts import loaded

REPO = Path(__file__).parents[2]
TASKS = [yaml.safe_load(f.read_text()) for f in sorted((REPO / "conf" / "dataset").glob("*.yaml"))]


def only(results: Any, row_id: str | None = None) -> Comparison:
    (found,) = comparisons(results, row_id)
    return found


def gap(found: Comparison, topic: str) -> Any:
    return next(gap for gap in found.gaps if gap.topic == topic)


def test_numbers_and_differences() -> None:
    found = only([published_run(seed=seed, accuracy=(88.0 + seed,)) for seed in (0, 1, 2)])
    assert (found.method, found.phase, found.row.id, found.size) == ("lora", "P1", "heart_t1_lora", (100, 100))
    (cell,) = found.cells
    assert (cell.column, cell.mean, cell.std, cell.n, cell.published) == ("svhn", 89.0, 1.0, 3, "88.9")
    assert cell.difference == pytest.approx(0.1)
    assert found.obstacles == []
    assert "| svhn | 89.00 \u00b1 1.00 (3) | 88.9 | +0.10 |" in text([found]).splitlines()


def test_averages_are_compared_like_with_like() -> None:
    found = only([published_run(dataset=task, accuracy=(75.0,)) for task in TASKS], "heart_t1_lora")
    cells = {cell.column: cell for cell in found.cells}
    assert len(cells) == 24
    assert (cells["mean_groups"].published, cells["mean_19"].published) == ("76.4", "74.31*")
    assert cells["mean_19"].difference == pytest.approx(75 - 74.31)
    assert gap(found, "average").theirs == "mean of the three group means"
    assert (gap(found, "average").low, gap(found, "average").high) == (2.1, 4.7)
    assert "* computed from the printed cells." in text([found])


def test_one_task_has_no_average_to_explain() -> None:
    assert "average" not in {gap.topic for gap in only([published_run()], "heart_t1_lora").gaps}


def test_the_protocol_part_by_part() -> None:
    found = only([published_run()], "heart_t1_lora")
    verdicts = {gap.topic: gap.verdict for gap in found.gaps}
    assert verdicts == {
        "data": DIFFERS,
        "weights": SAME,
        "normalisation": DIFFERS,
        "resize": SAME,
        "selection": DIFFERS,
        "search": DIFFERS,
        "seeds": SAME,
        "epochs": SAME,
        "schedule": DIFFERS,
    }
    assert gap(found, "normalisation").ours == "inception (protocol.normalize=model)"
    assert gap(found, "normalisation").basis == "stated"
    assert gap(found, "selection").basis == "lineage"
    assert all(gap.typical and gap.source for gap in found.gaps)
    page = text([found])
    assert "What differs, and what that is worth" in page
    assert "The same as far as known: weights, resize, seeds, epochs." in page


def test_adapted_projections_are_part_of_what_differs() -> None:
    spec = {"rank": 8, "fused": False, "targets": ["q", "k", "v"]}
    found = only([published_run(spec=spec)], "heart_t1_lora")
    assert (gap(found, "targets").ours, gap(found, "targets").theirs) == ("q, k, v", "q and v")
    assert (gap(found, "targets").verdict, gap(found, "targets").basis) == (DIFFERS, "derived")
    assert "| targets | q, k, v | q and v [derived: " in text([found])
    assert gap(only([published_run(spec={**spec, "targets": ["q", "v"]})], "heart_t1_lora"), "targets").verdict == SAME
    assert gap(only([published_run("hs_pissa", spec=spec)], "hs_t1_pissa_p1"), "targets").verdict == UNKNOWN


@each("row", ["heart_t1_lora", "hs_t1_pissa_p1", "heart_t1_linear"])
def test_drawn_images_are_no_papers_images(row: str) -> None:
    found = only([published_run(labels=["synthetic"])], row)
    assert gap(found, "data").verdict == DIFFERS
    assert gap(found, "data").ours.startswith("drawn images, not the task's; ")
    assert gap(found, "data").low is None and "drawn images" in gap(found, "data").typical
    assert "synthetic" in found.obstacles


def test_a_run_in_the_papers_way_leaves_little_to_explain() -> None:
    protocol = {"normalize": "none", "select": "best_test", "schedule": "r0_legacy", "search": {"scale": [1, 10]}}
    result = published_run(protocol=protocol, labels=["TEST-SELECTED"])
    result.provenance["data"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    found = only([result], "heart_t1_lora")
    assert {gap.topic for gap in found.gaps if gap.verdict == DIFFERS} == {"data"}
    assert found.obstacles == []


def test_the_authors_values_are_values_per_task() -> None:
    found = only([published_run(labels=[POSSIBLY_TUNED])], "heart_t1_lora")
    assert (gap(found, "search").ours, gap(found, "search").verdict) == ("the authors' values per task", SAME)
    assert found.obstacles == []


def test_what_a_paper_does_not_state_is_not_known() -> None:
    result = published_run("hs_pissa", accuracy=(88.0, 90.0), epochs=100, spec={"rank": 16})
    found = comparisons([result])
    assert [(one.phase, one.row.id) for one in found][:2] == [("P1", "hs_t1_pissa_p1"), ("P2", "hs_t1_pissa_p2")]
    unknown = {gap.topic for gap in found[1].gaps if gap.verdict == UNKNOWN}
    assert {"data", "normalisation", "selection", "seeds", "search"} <= unknown
    assert gap(found[1], "epochs").ours == "200, of all phases up to this one"
    assert gap(found[0], "epochs").ours == "100, of all phases up to this one"
    assert found[1].size == (300, 300)
    assert "What is not known of the published row" in text(found)


def test_the_particular_row_overrules_its_table() -> None:
    found = only([published_run("noah")], "heart_t1_noah")
    assert gap(found, "normalisation").theirs.startswith("ImageNet mean")
    found = only([published_run("linear")], "heart_t1_linear")
    assert gap(found, "seeds").theirs.startswith("five")
    assert gap(found, "data").verdict == SAME
    assert gap(found, "epochs").verdict == SAME


def test_what_forbids_the_comparison_is_said_first() -> None:
    found = only([published_run(labels=["stand-in weights"], spec={"rank": 4})], "heart_t1_lora")
    assert found.obstacles == ["stand-in weights", "rank 4, there 8", "fused not recorded, there false"]
    assert "NOT COMPARABLE as they stand: stand-in weights; rank 4" in text([found])
    assert found.plain()["comparable"] is False


def test_rows_that_fit_best_are_taken() -> None:
    assert only([published_run(spec={"rank": 16})]).row.id == "hs_t1_lora_p1"
    assert only([published_run(spec={"rank": 8, "fused": True}, labels=["lossy"])]).row.id == "hs_t2_lora_completed"


def test_other_images_of_a_task_are_compared_apart() -> None:
    results = [published_run(), published_run(seed=1, data="jpeg", labels=["lossy"], accuracy=(60.0,))]
    found = comparisons(results, "heart_t1_lora")
    assert sorted((one.cells[0].mean, one.cells[0].n, len(one.obstacles)) for one in found) == [
        (60.0, 1, 0),
        (90.0, 1, 0),
    ]


def test_any_row_may_be_chosen_and_takes_the_last_phase() -> None:
    found = only([published_run("mine", accuracy=(70.0, 80.0))], "heart_t1_full")
    assert (found.phase, found.cells[0].mean) == ("P2", 80.0)


def test_nothing_to_compare() -> None:
    with pytest.raises(
        ConfigError, match=r"no published row is mine; choose any with --row. Methods that have one: ada"
    ):
        comparisons([published_run("mine")])
    with pytest.raises(ConfigError, match=r"published rows hs_t1_lora_p1, hs_t1_lora_p2 have no cell .*\(eurosat\)"):
        comparisons([published_run("hs_lora", "eurosat", group="specialized", accuracy=(1.0, 2.0))])
    with pytest.raises(ConfigError, match="have no cell for what was tested here"):
        comparisons([run(dataset="pets", group="fewshot")])


def test_records_without_provenance_can_be_compared() -> None:
    result = published_run()
    result.provenance.clear()
    found = only([result], "heart_t1_lora")
    assert gap(found, "normalisation").ours.startswith("not recorded")
    assert gap(found, "weights").verdict == DIFFERS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path / "outputs")
    for result in (published_run(), published_run(seed=1), published_run("linear", "dtd")):
        store.put(result.key, result)
    return store.root


def test_command_with_a_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gap.json"
    assert loaded("compare").main([str(root / "runs/lora/svhn/base/seed-1"), "--json", str(file)]) == 0
    assert "## lora P1 beside LoRA, Heart-LoRA Table 1 (heart_t1_lora)" in capsys.readouterr().out
    (first, *_) = json.loads(file.read_text())["comparisons"]
    assert first["published"]["id"] == "heart_t1_lora"
    assert first["cells"] == [
        {
            "column": "svhn",
            "mean": 90.0,
            "std": None,
            "n": 1,
            "published": "88.9",
            "difference": first["cells"][0]["difference"],
        }
    ]
    assert first["comparable"] is True


def test_command_with_a_method(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(root.glob("runs/lora/*/*/seed-0/result.json")).write_text("{")
    assert loaded("compare").main(["lora", "svhn", "--root", str(root), "--row", "hs_t2_lora_completed"]) == 0
    captured = capsys.readouterr()
    assert "| svhn | 90.00 (1) | 85.3 | +4.70 |" in captured.out
    assert "seed-0/result.json is not a usable record" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lara"], "no finished run with method 'lara' (did you mean 'lora'?); allowed: linear, lora"),
        (["lora", "dtd"], "no finished run with dataset 'dtd'; allowed: svhn"),
        (["lora", "--variant", "bse"], "no finished run with variant 'bse' (did you mean 'base'?)"),
        (["lora", "--row", "heart_t1_lira"], "unknown published row 'heart_t1_lira' (did you mean 'heart_t1_lora'?)"),
        (["lora", "--name", "rums"], "no such name (did you mean 'runs'?)"),
        (["somewhere/else"], "no finished run in somewhere/else: it holds no result.json"),
    ],
)
def test_command_refuses(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert loaded("compare").main([*arguments, "--root", str(root)]) == 1
    assert message in capsys.readouterr().err
