"""Kind ranking: its picture, its numbers, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_pictures import check_readable

from headwise.analysis.kinds import Options, Recorded
from headwise.analysis.made import Analysis
from headwise.analysis.ranks import analyse
from headwise.errors import ConfigError
from headwise.results.records import Result
from made_results import PROTOCOL, run

GAINS = {"lora": 0.0, "a_method_with_a_rather_long_name (heads.rank=8-lr0.003)": 2.0, "pissa": 4.0, "hs_lora": 6.0}


def results(tasks: int, seeds: tuple[int, ...] = (0, 1)) -> list[Result]:
    return [
        run(name, f"t{task}", seed, accuracy=(60.0 + task + gain + (task * 7 + seed) % 3,))
        for name, gain in GAINS.items()
        for task in range(tasks)
        for seed in seeds
    ]


def drawn(made: list[Result]) -> Analysis:
    return analyse([Recorded(Path(f"run-{number}"), result) for number, result in enumerate(made)], Options())


def test_a_ranking_has_a_picture_and_its_numbers() -> None:
    made = drawn(results(8))
    ranks = made.tables["ranks"].set_index("method")
    assert ranks["mean rank"].tolist() == [1.0, 2.0, 3.0, 4.0] and ranks.index[0] == "hs_lora"
    assert ranks["p"].iloc[0] < 0.001 and ranks["tasks"].iloc[0] == 8
    assert ranks.loc["lora", "mean accuracy"] + 6 == pytest.approx(ranks.loc["hs_lora", "mean accuracy"])
    assert made.tables["accuracies"].shape == (8, 5)
    assert made.sentences[0].startswith("Mean ranks over 8 tasks, 1 is best: hs_lora 1.00, pissa 2.00")
    assert made.sentences[-1].startswith("Tested by autorank 1.")
    (figure,) = made.figures.values()
    check_readable(figure)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"not told apart", "critical difference"}


def test_few_tasks_are_drawn_without_a_test() -> None:
    made = drawn(results(2))
    assert made.sentences[-1] == "Nothing is tested: fewer than 5 tasks."
    assert not made.figures["ranking"].legends
    check_readable(made.figures["ranking"])


def test_unequal_seeds_are_said_beside_the_ranks() -> None:
    (said,) = [line for line in drawn([*results(2), run("lora", "t1", 2)]).sentences if "SEEDS" in line]
    assert said.endswith("hs_lora 2, lora 2 to 3, pissa 2.")


def test_many_methods_on_one_task_can_be_read() -> None:
    made = drawn([run(f"method_{number}", "t0", accuracy=(50.0 + number,)) for number in range(40)])
    assert made.sentences[0].startswith("Mean ranks over 1 task, 1 is best: method_39 1.00")
    check_readable(made.figures["ranking"])


def test_what_cannot_be_ranked_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runs of one setting, got 2: .*protocol\.lr: 0\.001 vs 1"):
        drawn([*results(5), run("ssf", protocol={**PROTOCOL, "lr": 1})])
    with pytest.raises(ConfigError, match="none of the 1 runs has one"):
        drawn([run(accuracy=(None,))])
    with pytest.raises(ConfigError, match="ssf lacks t1; t2; t3; t4"):
        drawn([*results(5), run("ssf", "t0")])


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    for name, given in (("a", results(6)), ("b", results(6)[::-1])):
        drawn(given).write(tmp_path / name)
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert names == {"README.md", "ranks.csv", "accuracies.csv", "ranking.png", "ranking.svg"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
