"""Runs of a user's own images, whole: several labels, crops, and a test on other images of the same classes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headwise
from headwise.artifacts.elsewhere import evaluate_on
from headwise.artifacts.export import evaluate, export_merged
from headwise.comparison.tables import tables
from headwise.errors import ConfigError, DataError
from headwise.report.ending import summary
from headwise.results.reading import read_result
from made_networks import compose_config, run
from made_scripts import loaded

NAMES = ("red", "green", "blue")


def draw(file: Path, bright: list[int], seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 120, (110, 140, 3), dtype=np.uint8)
    pixels[..., bright] += 130
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file.name


def train(root: Path, images: Path, *overrides: str) -> Path:
    run(
        compose_config(
            "method=lora", "backbone=vit_tiny_random", "dataset=own/folder", "data=folder", f"data.root={images}",
            "trainer=cpu", "trainer.threads=1", "trainer.progress=false", "protocol.epochs=2", "protocol.batch_size=8",
            "logger.pictures=false", f"root={root}", *overrides,
        )
    )  # fmt: skip
    (folder,) = (file.parent for file in (root / "runs").glob("**/result.json"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of images that are bright in any number of colours."""
    images = tmp_path_factory.mktemp("several")
    for part, count in (("train", 24), ("val", 8), ("test", 16)):
        rows = []
        for i in range(count):
            bright = [color for color in range(3) if (i >> color) & 1]
            name = draw(images / f"{part}{i}.png", bright, hash((part == "test", part == "val", i)) % 1000)
            rows.append([name, *(int(color in bright) for color in range(3))])
        with (images / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", *NAMES], *rows])
    return train(tmp_path_factory.mktemp("out"), images, "dataset.multi_label=true")


def test_several_labels_are_trained_measured_and_named_honestly(several: Path) -> None:
    result = read_result(several)
    (phase,) = result.phases
    assert result.metric == phase.metric == "mAP" and 0 < result.accuracy <= 100
    found = phase.extra["average_precision"]
    assert found["mean"] == phase.accuracy == pytest.approx(np.mean(found["classes"]), abs=1e-3)
    assert "classes" not in phase.extra and not (several / "confusion.csv").exists()
    rows = list(csv.reader((several / "average_precision.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["class", *NAMES]
    assert result.identity["dataset"]["multi_label"] is True
    said = summary(result)
    assert "mAP" in said.splitlines()[1] and "accuracy" not in said.splitlines()[1] and "multi-label" in said
    (table,) = tables([result])
    assert set(table.cells["column"]) == {"folder (mAP)"} and any("(mAP) hold the mean" in note for note in table.notes)


def test_several_labels_are_used_again(several: Path, tmp_path: Path) -> None:
    (retest,) = evaluate(several)
    assert retest.is_same and retest.metric == "mAP"
    net = headwise.load(several)
    images = Path(read_result(several).config["data"]["root"])
    probabilities = net.probabilities(images / "test7.png")
    assert probabilities.shape == (1, 3) and ((probabilities > 0) & (probabilities < 1)).all()
    (guess,) = net.classify(images / "test7.png")
    likely = sorted(probabilities[0].tolist(), reverse=True)
    assert guess.probability == pytest.approx(likely[0])
    assert [one.probability for one in guess.also] == pytest.approx([p for p in likely[1:] if p >= 0.5])
    predictions = net.predict_folder(images, tmp_path / "p.csv")
    assert len(predictions) == 48 and len((tmp_path / "p.csv").read_text().splitlines()) == 1 + sum(
        1 + len(one.also) for one in predictions
    )
    with pytest.raises(ConfigError, match="expect one label an image"):
        export_merged(several, hub=tmp_path / "hub")
    again = evaluate_on(several, images, "test")
    assert again.measured["mAP"] == pytest.approx(retest.measured, abs=1e-2) and again.num_images == 16


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of class folders, of whose images the middle is seen."""
    images = tmp_path_factory.mktemp("cropped")
    for color, name in enumerate(NAMES):
        for i in range(10):
            draw(images / name / f"{i}.png", [color], 10 * color + i)
    return train(tmp_path_factory.mktemp("out"), images, "data.resize=crop")


def test_a_crop_is_seen_in_training_and_after(cropped: Path) -> None:
    assert evaluate(cropped)[0].is_same
    net, images = headwise.load(cropped), Path(read_result(cropped).config["data"]["root"])
    assert net.preparation.shape == "crop"
    with Image.open(images / "red" / "0.png") as image:
        whole = np.asarray(image)
    middle = Image.fromarray(whole[:, 15:125])
    assert (net.preprocess(images / "red" / "0.png") == net.preprocess(middle)).all()


def test_other_images_are_a_number_and_no_record(
    cropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for color, name in enumerate(NAMES[:2]):
        for i in range(5):
            draw(tmp_path / "other" / name / f"{i}.png", [color], 100 + 10 * color + i)
    main, before = loaded("evaluate").main, (cropped / "result.json").read_bytes()
    given = [str(cropped), "--data-root", str(tmp_path / "other")]
    assert main([*given, "--split", "all", "--out", str(tmp_path / "o.json")]) == 0
    said = capsys.readouterr().out
    assert (
        "10 images of the same classes" in said
        and "trained on" not in said
        and "balanced accuracy: " in said
        and "macro f1: " in said
    )
    assert "classes without an image there, which count nowhere: blue" in said
    written = json.loads((tmp_path / "o.json").read_text())
    assert "no record of the run" in written["kind"] and sum(row[2] for row in written["confusion"]) == 10
    assert (cropped / "result.json").read_bytes() == before
    assert main([*given, "--split", "test"]) == 1
    assert "is not divided into train and test; --split all" in capsys.readouterr().err
    shutil.copytree(tmp_path / "other" / "red", tmp_path / "other" / "gren")
    with pytest.raises(DataError, match=r"'gren' is no class \(did you mean 'green'\?\)"):
        evaluate_on(cropped, tmp_path / "other")
    (tmp_path / "parquet").mkdir()
    with pytest.raises(DataError, match=r"nor list files; Parquet is not read here"):
        evaluate_on(cropped, tmp_path / "parquet")
    (tmp_path / "some.csv").write_text("path,label\nother/red/0.png,red\nother/green/1.png,green\n")
    assert main([str(cropped), "--data-root", str(tmp_path / "some.csv")]) == 0
    assert "2 images of the same classes" in capsys.readouterr().out
    own = read_result(cropped).config["data"]["root"]
    shutil.copytree(own, tmp_path / "copied")
    assert main([str(cropped), "--data-root", str(tmp_path / "copied"), "--split", "all"]) == 0
    said = capsys.readouterr().out
    assert "30 images of the same classes" in said and "WARNING: the run was trained on " in said
    assert main([str(cropped), "--data-root", str(tmp_path / "some.csv"), "--split", "test"]) == 1
    assert main([str(cropped), "--split", "test"]) == 1
    assert "give --data-root" in capsys.readouterr().err
