"""The augmentation of a whole batch, as GPUs make it, on the CPU: what `headwise.data.augment` makes image by image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.data import augment, augmented
from made_cases import each

SIDE = 40


def smooth(count: int, side: int = SIDE, channels: int = 3) -> Tensor:
    """Images like photographs: neighbours are alike, so that a pixel's place counts for little."""
    random = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(random, side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def difference(one: Tensor, other: Tensor) -> Tensor:
    assert one.shape == other.shape and one.dtype == other.dtype == torch.uint8
    return (one.int() - other.int()).abs()


@each("number", range(len(augment.OPERATIONS)))
def test_an_operation_gives_every_image_what_it_gets_alone(number: int) -> None:
    chosen = [(number, strength, sign) for strength in (0.1, 0.31, 0.9, 1.0) for sign in (-1.0, 1.0)]
    images = smooth(len(chosen) + 1)
    alone = [augment.OPERATIONS[number](image, m, sign) for image, (_, m, sign) in zip(images, chosen, strict=False)]
    together = images.clone()
    augmented._carry_out(together, [*chosen, None])
    assert torch.equal(together[-1], images[-1])
    assert difference(together[:-1], torch.stack(alone)).max() <= 1


@each("channels", [1, 3])
@each("side, size", [(40, 24), (40, 40), (64, 56), (24, 32)])
def test_a_batch_is_that_of_its_images(side: int, size: int, channels: int) -> None:
    images = smooth(32, side, channels)
    random = [augment.generator(0, 1, 2, 3) for _ in range(2)]
    alone, together = augment.augment(images, size, random[0]), augmented.augment_batch(images, size, random[1])
    assert random[0].random() == random[1].random(), "the same numbers were drawn"
    # equalising and solarising enlarge a level of the resize; those are few pixels
    apart = difference(together, alone).float()
    assert apart.mean() < 0.6 and (apart <= 3).float().mean() > 0.97


def test_crops_are_resized_as_pil_does() -> None:
    images, drawn = smooth(1, 64), augment.Drawn((5, 9, 41, 33), False, (None, None), (1.0, 1.0, 1.0))
    together = augmented._resized_crops(images, [drawn.crop], 24)
    assert difference(together[0], augment._one(images[0], 24, drawn)).max() <= 1


def test_hard_edges_are_resized_as_on_a_cpu() -> None:
    """A bicubic kernel leaves 0..255 at an edge, and the CPU cuts that off after each axis."""
    noise = torch.randint(0, 2, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) * 255
    for crop in ((5, 9, 41, 33), (0, 0, 64, 64), (20, 30, 10, 12)):
        drawn = augment.Drawn(crop, False, (None, None), (1.0, 1.0, 1.0))
        together = augmented._resized_crops(noise, [crop] * len(noise), 24)
        apart = difference(together, torch.stack([augment._one(image, 24, drawn) for image in noise]))
        assert apart.max() <= 1 and apart.float().mean() < 0.05


def test_the_stored_images_are_left_alone() -> None:
    images = smooth(12)
    copy = images.clone()
    augmented.augment_batch(images, 24, augment.generator(0, 0, 0, 0))
    assert torch.equal(images, copy)
