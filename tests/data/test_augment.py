"""Few-shot augmentation: what is drawn depends on seed, phase, epoch and step alone; test images are only cropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_trees import load_task

from headwise.data import augment
from headwise.data.sources import SyntheticSource
from headwise.data.vtab import TrainBatches, VTABDataModule
from headwise.errors import ConfigError
from made_cases import each

IMAGES = torch.randint(0, 256, (12, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def batches(epoch: int = 0, size: int | None = 24, **changes: int) -> list[torch.Tensor]:
    loader = TrainBatches(IMAGES, torch.arange(12), 5, **{"seed": 0} | changes, size=size)
    loader.set_epoch(epoch)
    return [images for images, _ in loader]


def module(**options: object) -> VTABDataModule:
    task = load_task("fewshot/pets", shots=1, draw=0)
    return VTABDataModule(task, SyntheticSource(), 48, **{"augment": "fewshot", "test_images": 6} | options)


def test_batches_repeat_and_epochs_differ() -> None:
    first = batches()
    assert [tuple(images.shape) for images in first] == [(5, 3, 24, 24)] * 2 and first[0].dtype == torch.uint8
    torch.manual_seed(5)
    np.random.seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(), strict=True))
    for other in (batches(epoch=1), batches(phase=1), batches(seed=1)):
        assert not torch.equal(first[0], other[0])


def test_an_epoch_does_not_depend_on_the_ones_before() -> None:
    loader = TrainBatches(IMAGES, torch.arange(12), 5, seed=0, size=24)
    for epoch in range(3):
        loader.set_epoch(epoch)
        last = [images for images, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(last, batches(epoch=2), strict=True))


def test_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    batches()
    assert torch.equal(before, torch.get_rng_state())


def test_the_stored_images_are_left_alone() -> None:
    copy = IMAGES.clone()
    batches()
    assert torch.equal(copy, IMAGES)


def test_a_loop_may_stop_early() -> None:
    loader = iter(TrainBatches(IMAGES, torch.arange(12), 5, seed=0, size=24))
    assert next(loader)[0].shape[0] == 5
    loader.close()  # type: ignore[attr-defined]


@each("number", range(len(augment.OPERATIONS)))
@each("strength", [0.0, 0.9, 1.0])
def test_every_operation_keeps_shape_and_type(number: int, strength: float) -> None:
    for sign in (-1.0, 1.0):
        image = augment.OPERATIONS[number](IMAGES[0], strength, sign)
        assert image.shape == IMAGES[0].shape and image.dtype == torch.uint8


def test_grey_images_become_three_channels() -> None:
    images = augment.augment(IMAGES[:, :1], 24, augment.generator(0, 0, 0, 0))
    assert images.shape == (12, 3, 24, 24)


def test_middle() -> None:
    image = torch.arange(16).view(1, 1, 4, 4)
    assert augment.middle(image, 2).flatten().tolist() == [5, 6, 9, 10]


def test_test_images_are_resized_and_cropped() -> None:
    data = module()
    assert data.stored_size == 55
    images, _ = next(iter(data.test_dataloader()))
    whole = module(augment="none")
    whole.img_size = whole.stored_size = 55
    expected = whole.preprocess(images)[..., 3:51, 3:51]
    assert torch.equal(data.preprocess(images), expected) and expected.shape == (6, 3, 48, 48)


def test_training_images_are_augmented_but_scores_are_not() -> None:
    data = module()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (37, 3, 48, 48) and len(labels) == 37, "one smaller batch is kept where it is the only one"
    plain, _ = next(iter(data.train_batches(shuffle=False)))
    assert plain.shape == (37, 3, 64, 64)
    assert data.preprocess(images).shape == data.preprocess(plain).shape == (37, 3, 48, 48)
    assert data.provenance()["augment"] == "fewshot"


def test_more_images_than_a_batch_drop_the_rest() -> None:
    loader = TrainBatches(torch.zeros(101, 3, 4, 4, dtype=torch.uint8), torch.zeros(101), 64, seed=0)
    assert len(loader) == 1 and loader.drop_last


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown augment 'fewshots' \(did you mean 'fewshot'\?\)"):
        module(augment="fewshots")
