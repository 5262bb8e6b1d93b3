"""The planted truths are what they are said to be, before any training."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import timm
import torch

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def planted():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        yield importlib.import_module("planted_truth")


@pytest.fixture(scope="module")
def state(planted):
    return planted.network(torch.Generator().manual_seed(0))


def outputs(planted, state, images, update):
    model = timm.create_model("vit_tiny_patch16_224", img_size=planted.SIZE, num_classes=0, **planted.SHAPE).eval()
    model.norm = torch.nn.Identity()
    weights = {name: tensor.clone() for name, tensor in state.items() if not name.startswith("norm.")}
    weights["blocks.0.attn.qkv.weight"][planted.V] += update
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(images)


def noise(planted, count=8):
    return torch.rand(count, 3, planted.SIZE, planted.SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_each_head_looks_at_its_own_field(planted, state):
    images = noise(planted)
    update = planted.alike(torch.Generator().manual_seed(2))
    before, side = outputs(planted, state, images, update), planted.PATCH
    for field in range(planted.HEADS):
        row, column = divmod(field, planted.SIDE)
        other = images.clone()
        other[..., row * side : (row + 1) * side, column * side : (column + 1) * side] *= -1
        change = (
            (outputs(planted, state, other, update) - before).abs().amax(0).view(planted.HEADS, planted.ROWS).amax(1)
        )
        assert change[field] > 0.1
        assert change[torch.arange(planted.HEADS) != field].max() < 0.02 * change[field]


def test_ranks_of_the_teachers(planted):
    generator = torch.Generator().manual_seed(0)
    each, alike, one = (planted.TRUTHS[name](generator) for name in ("each", "alike", "one"))
    heads = {name: update.view(planted.HEADS, planted.ROWS, -1) for name, update in (("each", each), ("one", one))}
    assert torch.linalg.matrix_rank(each) == 1 + planted.HEADS
    assert [int(torch.linalg.matrix_rank(head)) for head in heads["each"]] == [2] * planted.HEADS
    assert torch.linalg.matrix_rank(alike) == 6
    assert [int(torch.linalg.matrix_rank(head)) for head in heads["one"]] == [0, 0, 0, 0, 4, 0, 0, 0, 0]


def test_classes_are_balanced_and_those_of_one_depend_on_one_field(planted, state):
    images, side = noise(planted, 600), planted.PATCH
    classes = {
        name: planted.labels(state, update(generator := torch.Generator().manual_seed(3)), images, generator)
        for name, update in planted.TRUTHS.items()
    }
    for found in classes.values():
        assert torch.bincount(found, minlength=planted.CLASSES).min() > 600 / planted.CLASSES / 8, "none is rare"
    other = -images
    other[..., side : 2 * side, side : 2 * side] *= -1  # all but the fifth field
    generator = torch.Generator().manual_seed(3)
    again = planted.labels(state, planted.one(generator), other, generator)
    assert (again == classes["one"]).float().mean() > 0.9


def test_images_and_lists_are_written_once(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(planted, "TRAIN", dict.fromkeys(planted.TRUTHS, 12))
    monkeypatch.setattr(planted, "TEST", 8)
    weights = planted.plant(tmp_path)
    lists = {name: (tmp_path / "images" / name / "train.txt") for name in planted.TRUTHS}
    assert all(len(file.read_text().splitlines()) == 12 for file in lists.values())
    stamps = {file: file.stat().st_mtime_ns for file in [weights, *lists.values()]}
    planted.plant(tmp_path)
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
