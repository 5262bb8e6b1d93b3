from __future__ import annotations

import csv

import pytest
import yaml
from made_trees import REPO, SHARED, load_task

from headwise.data import labels
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError
from made_cases import each

NAMES = [
    "cifar100",
    "caltech101",
    "dtd",
    "flowers102",
    "pets",
    "svhn",
    "sun397",
    "camelyon",
    "eurosat",
    "resisc45",
    "retinopathy",
    "clevr_count",
    "clevr_dist",
    "dmlab",
    "kitti_dist",
    "dsprites_loc",
    "dsprites_ori",
    "smallnorb_azi",
    "smallnorb_ele",
]
FILES = sorted((REPO / "conf" / "dataset").glob("*.yaml"))
TASKS = [load_task(name) for name in NAMES]


def test_the_folder_holds_exactly_the_19_tasks() -> None:
    assert sorted(path.stem for path in FILES) == sorted(NAMES)
    assert [task.name for task in TASKS] == NAMES
    assert sum(task.num_classes for task in TASKS) == 940


@each("group, tasks, images", [("natural", 7, 75_564), ("specialized", 4, 87_138), ("structured", 8, 225_202)])
def test_groups(group: str, tasks: int, images: int) -> None:
    members = [task for task in TASKS if task.group == group]
    assert (len(members), sum(task.num_test or 0 for task in members)) == (tasks, images)
    assert sum(task.num_test or 0 for task in TASKS) == 387_904


@each("task", TASKS)
def test_each_task_is_complete(task: VTABTask) -> None:
    assert task.is_official and task.builder and task.versions and set(task.splits) == {"train", "val", "test"}
    assert (task.label_key is None) != (task.label_rule is None)
    assert task.label_rule is None or callable(labels.rule(task.label_rule))
    assert [task.official_count(split) for split in ("train800", "val200", "train800val200")] == [800, 200, 1000]
    assert not task.class_names or len(set(task.class_names)) == task.num_classes


def test_names_are_unambiguous() -> None:
    for key in ("folders", "aliases"):
        names = [name for task in TASKS for name in {*getattr(task, key), task.name}]
        assert len(names) == len(set(names)), key


@pytest.mark.data
def test_every_column_of_the_published_results_is_a_task() -> None:
    file = SHARED / "published" / "published_results.csv"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    columns = next(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    wanted = columns[columns.index("cifar100") : columns.index("mean_natural")]
    known = {name: task.name for task in TASKS for name in (task.name, *task.aliases)}
    assert [known[column] for column in wanted] == NAMES


@each("file", [*FILES, *(REPO / "conf" / "data").glob("*.yaml")])
def test_each_file_says_what_it_is_for_and_how_to_run_it(file: object) -> None:
    first, second, *_ = file.read_text().splitlines()  # type: ignore[attr-defined]
    assert first.startswith("# ") and second.startswith("# Run: python train.py ")


def test_own_folder_leaves_the_number_of_classes_to_what_is_found() -> None:
    plain = yaml.safe_load((REPO / "conf" / "dataset" / "own" / "folder.yaml").read_text())
    assert plain["num_classes"] is None
    task = load_task("own/folder", num_classes=5)
    assert not task.is_official and task.folders == (".",) and task.official_count("test") is None


@each(
    "changes, message",
    [
        ({"group": "special"}, r"task 'toy': unknown group 'special' \(did you mean 'specialized'\?\)"),
        ({"encoding": "png"}, r"task 'toy': unknown encoding 'png'.*allowed: jpeg, lossless"),
        ({"num_classes": 1}, r"task 'toy': num_classes must be a whole number of at least 2, got 1"),
        ({"channels": 4}, r"task 'toy': channels must be 1 or 3, got 4"),
        ({"folders": []}, r"task 'toy': folders must name at least one folder"),
        ({"class_names": ["a"]}, r"task 'toy': 1 class_names for num_classes=2"),
        ({"name": "../x"}, r"a task's name may hold .* got '../x'"),
    ],
)
def test_values_out_of_range(changes: dict[str, object], message: str) -> None:
    values = {"name": "toy", "group": "natural", "num_classes": 2, "folders": ["toy"]} | changes
    with pytest.raises(ConfigError, match=message):
        VTABTask(**values)  # type: ignore[arg-type]
