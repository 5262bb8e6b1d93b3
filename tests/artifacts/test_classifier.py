"""Images of every kind in, classes out; folders; copies and pickles of networks with every method in them."""

from __future__ import annotations

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headwise.artifacts.classifier import Classifier, Guess, Prediction
from headwise.data.preparation import Preparation
from headwise.data.tasks import VTABTask
from headwise.errors import DataError
from headwise.methods._fitting import fitted
from made_cases import each
from made_networks import CLASSES, SIDE, composed_method, distance, images, logits, network, perturb

NAMES = ["red", "green", "blue", "grey", "brown"]
TASK = VTABTask(name="own", group="own", num_classes=CLASSES, folders=["."], class_names=NAMES)


def classifier() -> Classifier:
    return Classifier(network("vit"), TASK, Preparation(SIDE)).eval()


def scene(seed: int = 0, shape: tuple[int, ...] = (110, 100, 3)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@each("shape", [(110, 100, 3), (110, 100, 1), (110, 100), (110, 100, 4), (20, 30, 3)])
def test_an_array_is_the_image_that_it_holds(shape: tuple[int, ...]) -> None:
    net, array = classifier(), scene(shape=shape)
    image = Image.fromarray(array[..., 0] if shape[-1] == 1 else array)
    expected = net.preprocess(image)
    assert torch.equal(net.preprocess(array), expected)
    assert torch.equal(net.preprocess([array, image]), expected.repeat(2, 1, 1, 1))
    if array.ndim == 3:
        assert torch.equal(net.preprocess(np.stack([array, array])), expected.repeat(2, 1, 1, 1))


@each(
    "array",
    [
        scene().astype(np.float32) / 255,
        scene(shape=(9, 9, 2)),
        scene(shape=(0, 9, 3)),
        scene(shape=(5,)),
        scene(shape=(1, 1, 9, 9, 3)),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: Any) -> None:
    with pytest.raises(DataError, match=r"classify takes of arrays a uint8 array \(H, W\).*got"):
        classifier().classify(array)


def test_an_empty_batch_is_an_empty_answer() -> None:
    assert classifier().classify(np.zeros((0, 9, 9, 3), np.uint8)) == []
    assert classifier().classify([]) == []


@each("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_narrow_types_classify_alike(dtype: torch.dtype) -> None:
    net, batch = classifier(), [scene(seed) for seed in range(4)]
    expected = net.probabilities(batch)
    narrow = copy.deepcopy(net).to(dtype)
    assert narrow.preprocess(batch).dtype == dtype
    found = narrow.probabilities(batch)
    assert found.dtype == torch.float32 and distance(found, expected) < 0.02
    assert narrow.classify([]) == []


def test_classifying_changes_no_mode() -> None:
    net = classifier().train()
    net.net.model.blocks[0].eval()  # type: ignore[index, union-attr]
    before = [module.training for module in net.modules()]
    assert isinstance(net.classify(scene())[0], Guess)
    assert [module.training for module in net.modules()] == before and len(set(before)) == 2


def test_a_folder_is_answered_in_order_and_written_as_csv(tmp_path: Path) -> None:
    names = ["b/UPPER.JPG", "a b/\u00fcml,aut.png", "z.png", "b/cmyk.tiff"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.fromarray(scene(index))
        (image.convert("CMYK") if "cmyk" in name else image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    net = classifier()
    rows = net.predict_folder(tmp_path, csv_file=tmp_path / "out" / "found.csv")
    assert [row.path for row in rows] == sorted(names) and isinstance(rows[0], Prediction)
    guesses = net.classify([tmp_path / name for name in sorted(names)])
    assert [(row.index, row.name, row.probability) for row in rows] == [
        (g.index, g.name, g.probability) for g in guesses
    ]
    with (tmp_path / "out" / "found.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["path"] for row in read] == sorted(names)
    assert [float(row["probability"]) for row in read] == [row.probability for row in rows]
    assert {row["name"] for row in read} <= set(NAMES)


@each("there", [True, False])
def test_a_folder_without_images_is_refused(tmp_path: Path, there: bool) -> None:
    with pytest.raises(DataError, match=r"holds no image; looked for names that end in \.bmp"):
        classifier().predict_folder(tmp_path if there else tmp_path / "gone")


def test_a_broken_file_of_a_folder_is_named(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"b\.png.*cannot be decoded"):
        classifier().predict_folder(tmp_path)


COPIED = ("head_lora", "heart_lora", "dora", "cara", "peft_dora", "adaptformer", "vpt_deep")
"""One method of each mechanism: factors, a gate, a scale, shared factors, peft's layers, wrappers, prompts."""


@each("name", COPIED)
def test_a_network_with_a_method_can_be_copied_and_pickled(name: str) -> None:
    net = network("vit")
    installed = fitted(composed_method(name), net)
    perturb(list(installed.adapter().values()))
    x = images()
    expected = logits(net, x)
    other = pickle.loads(pickle.dumps(net))
    assert distance(logits(other, x), expected) == 0
    again = copy.deepcopy(installed)
    perturb(list(again.trainable().values()))
    assert distance(logits(again.net, x), expected) > 0 == distance(logits(net, x), expected)
    if installed.masking is not None:
        again.masking.bases(next(iter(again.masking.deltas))).zero_()  # type: ignore[union-attr]
    again.merge()
    assert distance(logits(net, x), expected) == 0, "the copy shares nothing"
