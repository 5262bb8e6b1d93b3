"""Kind curves: the numbers are those of tables and report, and a picture appears where there is something to show."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from made_pictures import check_readable, panels_of

from headwise.analysis import style
from headwise.analysis.accuracies import analyse, pooled, size_of
from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.artifacts.saved import SavedRun
from headwise.comparison.tables import tables
from headwise.errors import ConfigError
from headwise.results.records import Result
from made_cases import each
from made_networks import REPO
from made_results import FEWSHOT, few, masked_suite, published_run, run, suite


def drawn(results: list[Result]) -> Analysis:
    return analyse([SavedRun(Path(f"run-{number}"), result) for number, result in enumerate(results)], Options())


@pytest.mark.usefixtures("sketched")
def test_heads_off_and_ratios() -> None:
    made = drawn(masked_suite())
    assert set(made.figures) == set(made.tables) == {"heads_off", "ratios", "parameters", "seeds"}
    lines = made.tables["heads_off"].set_index(["gate", "heads off"])["mean"]
    assert lines["heart_lora: taylor_neg, global", 2.0] == pytest.approx(88.5)
    assert lines["no head off", 0.0] == pytest.approx(90.0)
    (table,) = tables(masked_suite())
    pd.testing.assert_frame_equal(made.tables["ratios"], table.ratios)
    assert any("Accuracy over that with no head off" in sentence for sentence in made.sentences)


def test_shots() -> None:
    results = [
        few(method, dataset, number, draw, accuracy=50.0 + number + draw)
        for method in ("lora", "bi_lora")
        for dataset in FEWSHOT
        for number in (1, 2)
        for draw in (0, 1)
    ]
    made = drawn(results)
    shots = made.tables["shots"]
    assert shots["task"].nunique() == 6, "five sets and their mean"
    assert set(shots["mean"]) == {51.5, 52.5}
    assert len(panels_of(made.figures["shots"])) == 6
    check_readable(made.figures["shots"])


@pytest.mark.usefixtures("sketched")
def test_published_points_stand_where_they_belong() -> None:
    made = drawn([published_run("lora", "svhn"), published_run("bi_lora", "svhn")])
    table = made.tables["parameters"]
    theirs = table[table["source"] == "published"]
    assert len(theirs) and (theirs["parameters"] > 1000).all()
    assert set(table[table["source"] == "run"]["mean"]) == {90.0}


@each(
    "printed, number",
    [("0.29 M parameters", 290_000), ("1 MiB fp32-equivalent storage", 262_144), ("", None), ("x", None)],
)
def test_sizes_as_papers_print_them(printed: str, number: float | None) -> None:
    assert size_of(printed) == number


@pytest.mark.usefixtures("sketched")
def test_what_seeds_do_is_said() -> None:
    lines = pd.DataFrame({"row": list("aabbc"), "phase": "P1", "column": "t", "value": [1.0, 3.0, 5.0, 5.0, 9.0]})
    assert pooled(lines) == pytest.approx(1.0), "two degrees of freedom, squares of 2 and 0"
    made = drawn([run(seed=seed, accuracy=(90.0 + seed,)) for seed in range(3)])
    assert "deviate by 1.00 points (2 degrees of freedom)" in " ".join(made.sentences)
    assert "what chance does is not known" in " ".join(drawn([run(), run("bi_lora")]).sentences)


def of_phases(method: str, seed: int, *phases: tuple[str, float]) -> Result:
    """A run of tested phases, each with its fingerprint and accuracy."""
    made = run(method, seed=seed, accuracy=tuple(accuracy for _, accuracy in phases))
    named = [dataclasses.replace(p, fingerprint=name) for p, (name, _) in zip(made.phases, phases, strict=True)]
    return dataclasses.replace(made, phases=named)


@pytest.mark.usefixtures("sketched")
def test_a_phase_that_runs_share_counts_once() -> None:
    first = {0: ("one", 80.0), 1: ("two", 84.0), 2: ("three", 82.0)}
    results = [of_phases("hs_lora", seed, first[seed], (f"heads {seed}", 85.0 + seed)) for seed in (0, 1)]
    results += [of_phases("lora_then_lora", seed, first[seed], (f"lora {seed}", 85.0 + seed)) for seed in (0, 1)]
    results += [of_phases("lora", seed, first[seed]) for seed in (0, 1, 2)]
    made = drawn(results)
    seeds = made.tables["seeds"]
    # the first phase's three seeds have 2 degrees of freedom and squares of 8, two second phases 1 and 0.5 each
    assert sorted(seeds[seeds["phase"] == "P1"]["value"]) == [80.0, 82.0, 84.0]
    assert seeds[seeds["phase"] == "P1"]["row"].nunique() == 1
    assert "7 runs of 3 methods on 1 tasks" in made.sentences[0]
    assert "deviate by 1.50 points (4 degrees of freedom)" in " ".join(made.sentences)
    nameless = [of_phases(method, seed, ("", 80.0 + seed)) for method in "ab" for seed in (0, 2)]
    assert "(2 degrees of freedom)" in " ".join(drawn(nameless).sentences), "of records without fingerprints all count"


@pytest.mark.usefixtures("sketched")
def test_spread_of_the_stored_records() -> None:
    records = (REPO / "docs" / "results" / "records" / "standins").rglob("result.json")
    made = analyse([Recorded.read(file.parent) for file in records], Options())
    assert any("deviate by 1.67 points (18 degrees of freedom)" in sentence for sentence in made.sentences)


@pytest.mark.usefixtures("sketched")
def test_settings_are_drawn_apart() -> None:
    results = [run("a"), run("b"), run("a", weights={"name": "other"}), run("b", weights={"name": "other"})]
    results = [dataclasses.replace(r, key=dataclasses.replace(r.key, name=f"n{i // 2}")) for i, r in enumerate(results)]
    assert set(drawn(results).figures) == {"parameters_1", "parameters_2"}


def test_many_tasks_and_rows() -> None:
    made = drawn([result for method in "abcdefgh" for result in suite(method)])
    assert "seeds" in made.figures
    for figure in made.figures.values():
        check_readable(figure)


def test_every_method_is_in_the_legend_however_many() -> None:
    methods = [f"method_of_a_long_name_{number:02}" for number in range(30)]
    figure = drawn([run(method, accuracy=(60.0 + place,)) for place, method in enumerate(methods)]).figures[
        "parameters"
    ]
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == methods
    check_readable(figure)
    kinds = {(line.get_color(), line.get_marker()) for axis in panels_of(figure) for line in axis.lines}
    assert len({kind for kind in kinds if kind[1] in style.MARKERS}) == 30, "shape or colour is another"


@pytest.mark.usefixtures("sketched")
def test_tasks_beyond_a_picture_are_in_the_next() -> None:
    tasks = [f"task{number}" for number in range(style.MOST_PANELS + 2)]
    made = drawn([run(method, task) for method in ("lora", "bi_lora") for task in tasks])
    assert [name for name in made.figures if name.startswith("parameters")] == ["parameters-1", "parameters-2"]


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigError, match="none of the 1 runs has one"):
        drawn([run(accuracy=(None,))])
