"""Augmentation of few-shot training images: random crop, flip, colour jitter, RandAugment. On whatever device they lie.

Random numbers come from one generator per batch, seeded by (seed, phase, epoch, step) and by nothing else, so a resumed
run sees the same images; the operations themselves draw none. The lineage of NOAH also erases a random box and mixes
images and labels; those are left out. It crops images of their own proportions, here they are squeezed to a square of
`TEST_RESIZE` times S first.

Legend: B batch, C channels, S the side of the square that the network sees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

AUGMENTS = ("none", "fewshot")
TEST_RESIZE = 256 / 224
"""Images are resized to this multiple of S before training crops are taken, or the middle of test images is kept."""

CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
JITTER = 0.4
NUM_OPS, MAGNITUDE, MAGNITUDE_STD, CHANCE = 2, 9.0, 0.5, 0.5
"""RandAugment: operations per image, their strength of 10 and its deviation, and how likely each is carried out."""
# timm's grey for what a moved image leaves empty
FILL = 128.0

Operation = Callable[[Tensor, float, float], Tensor]


def _affine(
    image: Tensor, angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    moved = [round(shift[0] * image.shape[-1]), round(shift[1] * image.shape[-2])]
    fill = [FILL] * image.shape[-3]
    return V.affine(image, angle, moved, 1.0, list(shear), InterpolationMode.BILINEAR, fill=fill)


OPERATIONS: tuple[Operation, ...] = (
    lambda image, m, sign: V.autocontrast(image),
    lambda image, m, sign: V.equalize(image),
    lambda image, m, sign: V.invert(image),
    lambda image, m, sign: _affine(image, angle=sign * 30 * m),
    # inc1: more strength leaves fewer bits
    lambda image, m, sign: V.posterize(image, 4 - int(4 * m)),
    lambda image, m, sign: torch.where(image >= 256 - int(256 * m), 255 - image, image),
    lambda image, m, sign: _solarize_add(image, int(110 * m)),
    lambda image, m, sign: V.adjust_saturation(image, max(0.1, 1 + sign * 0.9 * m)),
    lambda image, m, sign: V.adjust_contrast(image, max(0.1, 1 + sign * 0.9 * m)),
    lambda image, m, sign: V.adjust_brightness(image, max(0.1, 1 + sign * 0.9 * m)),
    lambda image, m, sign: V.adjust_sharpness(image, max(0.1, 1 + sign * 0.9 * m)),
    lambda image, m, sign: _affine(image, shear=(math.degrees(math.atan(sign * 0.3 * m)), 0)),
    lambda image, m, sign: _affine(image, shear=(0, math.degrees(math.atan(sign * 0.3 * m)))),
    lambda image, m, sign: _affine(image, shift=(sign * 0.45 * m, 0)),
    lambda image, m, sign: _affine(image, shift=(0, sign * 0.45 * m)),
)
"""The fifteen of the ``rand-m9-mstd0.5-inc1`` policy; ``m`` is the strength in 0..1, ``sign`` -1 or 1."""


def _solarize_add(image: Tensor, amount: int) -> Tensor:
    # a byte would begin again at 0 where the sum is above 255
    brighter = (image.to(torch.int16) + amount).clamp(0, 255).to(torch.uint8)
    return torch.where(image < 128, brighter, image)


def generator(seed: int, phase: int, epoch: int, step: int) -> np.random.Generator:
    """The random numbers of one batch."""
    # a hash of the parts, since sums of seeds would let (seed 1, phase 2) meet (seed 2, phase 1)
    digest = hashlib.sha256(f"augment/{seed}/{phase}/{epoch}/{step}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


class Drawn(NamedTuple):
    """What was drawn for one image.

    Attributes:
        crop: top, left, height and width, pixels.
        is_flipped: whether left and right change places.
        operations: number in `OPERATIONS`, strength in 0..1 and sign of each; None where it is not carried out.
        jitter: factors of brightness, contrast and saturation.
    """

    crop: tuple[int, int, int, int]
    is_flipped: bool
    operations: tuple[tuple[int, float, float] | None, ...]
    jitter: tuple[float, float, float]


def draw(height: int, width: int, random: np.random.Generator) -> Drawn:
    """Draw for the next image of a batch, `height` times `width` pixels."""
    crop, is_flipped = _crop(height, width, random), random.random() < 0.5
    operations = []
    for _ in range(NUM_OPS):
        number = int(random.integers(len(OPERATIONS)))
        strength = min(max(random.normal(MAGNITUDE, MAGNITUDE_STD), 0.0), 10.0) / 10
        sign, chance = (1.0 if random.random() < 0.5 else -1.0), random.random()
        operations.append((number, strength, sign) if chance < CHANCE else None)
    brightness, contrast, saturation = random.uniform(1 - JITTER, 1 + JITTER, 3).tolist()
    return Drawn(crop, is_flipped, tuple(operations), (brightness, contrast, saturation))


def augment(images: Tensor, size: int, random: np.random.Generator) -> Tensor:
    """Augment a batch, (B, C, H, W) uint8, for training: (B, 3, S, S) uint8, S its `size`; one channel is repeated."""
    images = images.expand(-1, 3, -1, -1)
    drawn = [draw(images.shape[-2], images.shape[-1], random) for _ in images]
    return torch.stack([_one(image, size, its) for image, its in zip(images, drawn, strict=True)])


def _one(image: Tensor, size: int, drawn: Drawn) -> Tensor:
    image = V.resized_crop(image, *drawn.crop, [size, size], InterpolationMode.BICUBIC, antialias=True)
    if drawn.is_flipped:
        image = V.horizontal_flip(image)
    for number, strength, sign in filter(None, drawn.operations):
        image = OPERATIONS[number](image, strength, sign)
    brightness, contrast, saturation = drawn.jitter
    image = V.adjust_brightness(image, brightness)
    image = V.adjust_contrast(image, contrast)
    return V.adjust_saturation(image, saturation)


def _crop(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of 8 to 100 % of the image, between 3:4 and 4:3."""
    for _ in range(10):
        area = height * width * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    # a long image may have no crop of these proportions: the largest square in its middle
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def middle(images: Tensor, size: int) -> Tensor:
    """The middle (B, C, size, size) of larger images."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]
