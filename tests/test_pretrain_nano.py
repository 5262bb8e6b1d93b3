"""The pre-training script of vit_nano and the file it made."""

from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from made_scripts import loaded

SHIPPED = Path(str(files("headwise"))) / "assets" / "vit_nano.safetensors"


@pytest.fixture(scope="module")
def nano() -> ModuleType:
    return loaded("pretrain_nano")


@pytest.fixture(scope="module")
def scenes(nano):
    return nano.Painter(0).draw(96)


def test_same_seed_draws_the_same_scenes(nano):
    first, second = nano.Painter(7), nano.Painter(7)
    for _ in range(2):
        one, two = first.draw(8), second.draw(8)
        assert torch.equal(one.images, two.images)
        assert all(torch.equal(one.targets[name], two.targets[name]) for name in one.targets)
    assert not torch.equal(first.draw(8).images, nano.Painter(8).draw(8).images)


def test_every_head_has_a_target_in_range(nano, scenes):
    assert scenes.images.shape == (96, 3, nano.SIZE, nano.SIZE)
    assert scenes.images.abs().max() <= 1
    heads = nano.CLASS_HEADS | nano.PATCH_HEADS
    assert scenes.targets.keys() == heads.keys()
    for name, (outputs, _) in heads.items():
        target = scenes.targets[name]
        assert torch.isfinite(target.float()).all(), name
        if target.dtype == torch.long:
            asked = target[target != -100]
            assert asked.min() >= 0, name
            assert asked.max() < outputs, name
        else:
            assert target.shape[-1] == outputs, name
            assert target.shape[:-1] == ((96, 64) if name in nano.PATCH_HEADS else (96,)), name
    for name in ("mask", "cover"):
        assert 0 <= scenes.targets[name].min() <= scenes.targets[name].max() <= 1
    for name, weight in scenes.weights.items():
        assert 0 <= weight.min() <= weight.max() <= 1, name
        torch.broadcast_shapes(weight.shape, scenes.targets[name].shape)


def test_one_object_is_what_the_class_token_is_asked_about(scenes):
    single = scenes.targets["count"] == 1
    assert torch.equal(scenes.targets["shape"] >= 0, single)
    assert torch.equal(scenes.weights["centre"][:, 0] > 0, single)
    empty = scenes.targets["count"] == 0
    assert scenes.targets["mask"][empty].max() == 0
    assert scenes.targets["mask"][single].flatten(1).max(dim=1).values.min() > 0.2


def test_the_centre_is_where_the_mask_is(nano, scenes):
    (rows,) = torch.nonzero(scenes.targets["count"] == 1, as_tuple=True)
    mask = scenes.targets["mask"][rows].view(-1, 16, 16)
    line = (torch.arange(16) + 0.5) * 4
    mass = mask.sum(dim=(1, 2))
    centroid = (
        torch.stack([(mask.sum(dim=1) * line).sum(dim=1), (mask.sum(dim=2) * line).sum(dim=1)], dim=1) / mass[:, None]
    )
    waves = scenes.targets["centre"][rows].view(-1, 2, 2, len(nano.WAVELENGTHS))  # axis, cosine or sine, wavelength
    slowest = torch.atan2(waves[:, :, 1, 0], waves[:, :, 0, 0]) * nano.WAVELENGTHS[0] / torch.tensor(2 * torch.pi)
    inner = ((slowest > 20) & (slowest < nano.SIZE - 20)).all(dim=1)  # not cut by the border
    assert inner.sum() > 10
    assert (centroid - slowest)[inner].abs().median() < 0.5


def test_the_pose_turns_with_the_outline(nano):
    painter, shape = nano.Painter(3), torch.arange(len(nano.SHAPES))
    table = painter.outlines(shape, torch.zeros(len(shape)))
    assert table.amax(dim=1).allclose(torch.ones(len(shape)))
    centroid, pose, size = nano.describe(10 * table)
    turned_centroid, turned_pose, turned_size = nano.describe(10 * table.roll(nano.TABLE // 8, dims=1))
    turn = torch.polar(torch.tensor(1.0), torch.tensor(torch.pi / 4))
    order = torch.arange(1, nano.HARMONICS + 1)
    torch.testing.assert_close(turned_pose, pose * turn**order, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned_centroid, centroid * turn, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned_size, size)


def test_the_painter_draws_no_square_and_no_ellipse(nano):
    assert not {"square", "rectangle", "ellipse", "circle", "heart"} & set(nano.SHAPES)
    regular = [count for name, count in zip(nano.SHAPES, nano.VERTICES.tolist(), strict=True) if name.endswith("gon")]
    assert 4 not in regular


def test_two_steps_write_a_file_that_timm_loads(nano, tmp_path, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "nested" / "nano.safetensors"
    try:
        scores = nano.main(
            ["--out", str(path), "--steps", "2", "--batch", "4", "--threads", "1", "--eval-batches", "1"]
        )
    finally:
        torch.set_num_threads(threads)
    assert "step 2/2" in capsys.readouterr().out
    assert scores.keys() == (nano.CLASS_HEADS | nano.PATCH_HEADS).keys()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    VisionTransformer(**nano.ARCHITECTURE).load_state_dict(load_file(path), strict=True)


def test_the_shipped_file_is_small_and_loads_strictly(nano):
    assert SHIPPED.stat().st_size <= 8_000_000
    tensors = load_file(SHIPPED)
    assert all(value.dtype == torch.float16 and torch.isfinite(value).all() for value in tensors.values())
    model = VisionTransformer(**nano.ARCHITECTURE)
    model.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True)
    assert model.eval()(torch.zeros(1, 3, nano.SIZE, nano.SIZE)).isfinite().all()


def test_the_shipped_file_was_made_by_the_default_recipe(nano):
    with safe_open(SHIPPED, framework="pt") as file:
        metadata = file.metadata()
    recipe = nano.json.loads(metadata["recipe"])
    assert recipe == {"steps": 2600, "batch": 64, "lr": 2e-3, "seed": 0, "threads": 2}
    assert nano.json.loads(metadata["architecture"]) == nano.ARCHITECTURE
    assert nano.json.loads(metadata["scores"])["count"] > 60
