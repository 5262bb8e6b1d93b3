"""The command and the functions: what they write, and how mistakes are answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest

from headwise import analysis
from headwise.analysis.kinds import KINDS, Options, analyse
from headwise.analysis.made import Analysis, check_place
from headwise.errors import CheckpointError, ConfigError, WeightsError
from made_cases import each
from made_networks import REPO
from made_scripts import loaded, started

Finished = Callable[..., Path]
RECORDS = REPO / "docs" / "results" / "records"


def a_figure() -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2], label="a line")
    return figure


def made(**changed: object) -> Analysis:
    plain = {"tables": {"numbers": pd.DataFrame({"x": [1 / 3]})}, "figures": {"lines": a_figure()}}
    return Analysis(**{"kind": "subspaces", "title": "A title", "sentences": ["It is so."], **plain, **changed})


@each("kind", KINDS)
def test_a_kind_has_a_function_that_no_module_hides(kind: str) -> None:
    assert callable(getattr(analysis, kind))
    assert not (REPO / "src" / "headwise" / "analysis" / f"{kind}.py").exists()
    assert "\n" not in KINDS[kind].shows


def test_everything_is_written_and_the_same_again(tmp_path: Path) -> None:
    files = made().write(tmp_path / "a")
    assert {file.name for file in files} == {"README.md", "numbers.csv", "lines.png", "lines.svg"}
    assert (tmp_path / "a" / "numbers.csv").read_text() == f"x\n{1 / 3!r}\n", "unrounded"
    made().write(tmp_path / "b")
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    made(title="Another").write(tmp_path / "a")
    assert (tmp_path / "a" / "README.md").read_text().startswith("# Another\n")


def test_nothing_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "lines.svg").write_text("mine")
    with pytest.raises(ConfigError, match=r"lines\.svg was not written by this tool.*--force"):
        made().write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["lines.svg"]
    made().write(tmp_path, force=True)
    assert (tmp_path / "lines.svg").read_text() != "mine"


@each("name", ["../x", "X", "", "a b", ".a"])
def test_names_are_those_of_files(name: str) -> None:
    with pytest.raises(ConfigError, match="named by small letters"):
        made(tables={name: pd.DataFrame()})


@each(
    "options, said",
    [
        ({"seed": -1}, "seed of an analysis must be a whole number from 0, got -1"),
        ({"draws": 1}, "draws of an analysis must be a whole number from 2, got 1"),
        ({"images": True}, "images of an analysis must be"),
        ({"batch_size": 0}, "batch_size of an analysis must be"),
        ({"split": "tset"}, "unknown split 'tset' of an analysis (did you mean 'test'?)"),
    ],
)
def test_options_are_checked(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**options)
    assert said in str(caught.value)


@each("kind", KINDS)
def test_what_a_kind_does_not_read_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"greedy": 3, "draws": 4, "images": 5, "split": "val", "batch_size": 6, "seed": 7, "weights": "auto"}
    run = next(RECORDS.glob("methods/lora/**/result.json")).parent
    unread = {name: value for name, value in values.items() if name not in KINDS[kind].reads}
    assert unread
    for name, value in unread.items():
        with pytest.raises(ConfigError, match=f"{kind} does not read {name}, got {value!r}; it reads "):
            getattr(analysis, kind)(run, **{name: value})
        assert loaded("analyse").main([kind, str(run), f"--{name.replace('_', '-')}", str(value)]) == 1
        assert f"{kind} does not read {name}" in capsys.readouterr().err


@each("name", ["truth.csv", "old.png", "old.svg"])
def test_a_folder_of_somebody_else_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("in nobody's way")
    with pytest.raises(ConfigError, match=rf"{name}.*was not written by this tool"):
        check_place(tmp_path, force=False)
    check_place(tmp_path, force=True)


def test_mistakes_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(next(RECORDS.glob("methods/lora/**/result.json")).parent)
    (tmp_path / "README.md").write_text("mine")
    for words, said in (
        (["subspace", run], "unknown kind of analysis 'subspace' (did you mean 'subspaces'?)"),
        (["subspaces", str(tmp_path)], "no finished run in"),
        (["subspaces", run, "--out", str(tmp_path)], "was not written by this tool"),
        (["subspaces", run, "--out", str(tmp_path / "README.md")], "is no folder"),
    ):
        assert started(loaded("analyse"), words) in (1, 2)
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="needs at least one run"):
        analyse("subspaces", [])
    with pytest.raises(ConfigError, match=r"unknown option 'sed' of an analysis \(did you mean 'seed'\?\)"):
        analysis.subspaces(tmp_path, sed=3)


def test_runs_that_cannot_be_analysed(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="changed no weight of q, k or v"):
        analysis.subspaces(finished("method=linear"))
    run = finished("method=lora")
    with pytest.raises(ConfigError, match="is given twice"):
        analyse("subspaces", [run, run])
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"holds the same run as .* give each run once"):
            analyse(kind, [run, broken])
    (broken / "phase-1.safetensors").unlink()
    with pytest.raises(CheckpointError):
        analysis.subspaces(broken)
    record = json.loads((run / "result.json").read_text())
    record["config"]["backbone"]["weights"] = str(tmp_path / "gone.safetensors")
    (broken / "result.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="give an existing file with weights=FILE"):
        analysis.subspaces(broken)


def test_all_runs_of_a_name(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, runs = loaded("analyse"), [finished("method=lora", f"seed={seed}") for seed in (0, 1)]
    for run in runs:
        shutil.copytree(run, tmp_path / "results" / run.relative_to(run.parents[4]))
    damaged = tmp_path / "results" / runs[0].relative_to(runs[0].parents[4]).with_name("seed-7")
    damaged.mkdir()
    (damaged / "result.json").write_text("{")
    given = ["curves", "--root", str(tmp_path / "results"), "--name", "runs", "--out", str(tmp_path / "out")]
    assert script.main(given) == 0
    assert "seed-7/result.json is not a usable record; it is left out" in capsys.readouterr().err
    assert "2 runs" in (tmp_path / "out" / "README.md").read_text()
    for wrong, said in (
        ([*given, str(runs[0])], "means nothing beside --name"),
        (["curves", "--root", str(tmp_path)], "means nothing without --name"),
        (["curves"], "needs at least one run, got none"),
        (["curves", "--root", str(tmp_path), "--name", "rums"], "no finished run of 'rums'"),
    ):
        assert script.main([*wrong, "--out", str(tmp_path / "other")]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_command_writes_what_the_function_gives(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    run = finished("method=lora", backbone="vit_tiny_random")
    assert loaded("analyse").main(["subspaces", str(run), "--out", str(tmp_path / "made"), "--draws", "2"]) == 0
    request.getfixturevalue("sketched")  # the same numbers, and no second drawing
    given = analysis.subspaces(str(run), draws=2)
    for name, table in given.tables.items():
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "made" / f"{name}.csv", dtype=table.dtypes.to_dict()), table
        )
    page = (tmp_path / "made" / "README.md").read_text()
    assert page.startswith(f"# {given.title}\n")
    assert "1 run; seed 0, draws 2\n" in page and "synthetic" in page
    assert "written:" in capsys.readouterr().out
