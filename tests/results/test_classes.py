"""Class by class: measures against torchmetrics, the matrix on disk, and what a run writes of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from headwise.report import pictures
from headwise.results import shapes
from headwise.results.classes import measures, read_confusion, write_confusion
from headwise.results.store import Result
from headwise.runs.experiment import obtained
from made_cases import each
from made_networks import compose_config
from made_words import TINY


@each("seed", range(3))
def test_measures_are_those_of_torchmetrics(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    labels, predicted = (torch.randint(0, 7, (90,), generator=draws) for _ in range(2))
    predicted = torch.where(torch.rand(90, generator=draws) < 0.5, labels, predicted)
    matrix = multiclass_confusion_matrix(predicted, labels, 7).numpy()
    found = measures(matrix)
    assert found["balanced_accuracy"] == pytest.approx(100 * float(multiclass_accuracy(predicted, labels, 7)), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(100 * float(multiclass_f1_score(predicted, labels, 7)), abs=1e-4)


def test_classes_without_test_images_do_not_count() -> None:
    matrix = np.zeros((4, 4), dtype=np.int64)
    matrix[0, 0], matrix[0, 1], matrix[1, 1] = 3, 1, 4  # the classes 2 and 3 are nowhere
    assert measures(matrix)["balanced_accuracy"] == pytest.approx(100 * (0.75 + 1.0) / 2)
    assert measures(matrix)["macro_f1"] == pytest.approx(100 * (6 / 7 + 8 / 9) / 2)
    matrix[1, 2] = 4  # the class 2 is predicted alone: its F1 is 0
    assert measures(matrix)["macro_f1"] == pytest.approx(100 * (6 / 7 + 8 / 13 + 0) / 3)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    matrix = np.arange(9).reshape(3, 3)
    write_confusion(tmp_path / "a.csv", matrix)
    read = read_confusion(tmp_path / "a.csv", 3)
    assert read is not None and (read == matrix).all()
    assert read_confusion(tmp_path / "a.csv", 3, 36) is not None
    cut = (tmp_path / "a.csv").read_text().splitlines(keepends=True)[:-1]
    (tmp_path / "a.csv").write_text("".join(cut))
    assert read_confusion(tmp_path / "a.csv", 3, 36) is None, "cut at the end of a line"


@each("text", ["true,predicted\n0,0\n", "true,predicted,images\n0,9,1\n", "x", "true,predicted,images\n0,0,-1\n"])
def test_a_damaged_matrix_is_left_out(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(text)
    pictures.confusion(tmp_path / "a.csv", ["a", "b"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert read_confusion(tmp_path / "a.csv", 2) is None and "damaged" in caplog.text


def test_a_run_writes_its_matrix_with_the_names_of_classes(tmp_path: Path) -> None:
    words = [*TINY, "trainer=cpu"]
    result = obtained(compose_config(*words, "trainer.progress=false", "method=lora", "rank=r4", f"root={tmp_path}"))
    assert isinstance(result, Result)
    folder = result.key.path(tmp_path)
    with (folder / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in rows) == result.phases[0].num_test
    right = sum(int(row["images"]) for row in rows if row["true"] == row["predicted"])
    assert 100 * right / result.phases[0].num_test == pytest.approx(result.phases[0].accuracy)  # type: ignore[operator]
    assert {row["true"] for row in rows} <= set(result.config["dataset"]["class_names"])
    assert (folder / "confusion.png").is_file()
    classes = result.phases[0].extra["classes"]
    assert 0 <= classes["macro_f1"] <= 100 and 0 <= classes["balanced_accuracy"] <= 100


@each("value", [0.0, 100.0])
def test_all_right_and_all_wrong_are_records(value: float) -> None:
    shapes.EXTRA({"classes": {"balanced_accuracy": value, "macro_f1": value}}, "extra")
