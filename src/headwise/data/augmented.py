"""The augmentation of `headwise.data.augment` for all images of a batch together: some hundred kernels of a GPU.

Each image gets what was drawn for it. Pixels differ from those of the CPU by the rounding of its resize and of single
levels, as sums are in another order.

Legend: B batch, n images that get one operation, S the side of the square that the network sees, H, W stored size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from headwise.data.augment import FILL, NUM_OPS, draw

Values = Callable[[float, float, int], Sequence[float]]
Operation = Callable[[Tensor, Tensor], Tensor]


def augment_batch(images: Tensor, size: int, random: np.random.Generator) -> Tensor:
    """As `headwise.data.augment.augment`, on the device of the images: (B, C, H, W) to (B, 3, S, S), both uint8."""
    height, width = images.shape[-2:]
    drawn = [draw(height, width, random) for _ in images]
    images = _resized_crops(images.expand(-1, 3, -1, -1), [its.crop for its in drawn], size)
    flipped = torch.tensor([its.is_flipped for its in drawn], device=images.device).view(-1, 1, 1, 1)
    images = torch.where(flipped, images.flip(-1), images)
    for slot in range(NUM_OPS):
        _carry_out(images, [its.operations[slot] for its in drawn])
    jitter = torch.tensor([its.jitter for its in drawn], device=images.device).view(-1, 3, 1, 1, 1)
    return _saturation(_contrast(_brightness(images, jitter[:, 0]), jitter[:, 1]), jitter[:, 2])


def _carry_out(images: Tensor, chosen: Sequence[tuple[int, float, float] | None]) -> None:
    """Replace, (B, 3, S, S), those images for which an operation was chosen, all with the same one together."""
    for number, (values, operation) in enumerate(OPERATIONS):
        mine = [(place, its) for place, its in enumerate(chosen) if its is not None and its[0] == number]
        if not mine:
            continue
        rows = torch.tensor([place for place, _ in mine], device=images.device)
        given = [values(strength, sign, images.shape[-1]) for _, (_, strength, sign) in mine]
        images[rows] = operation(images[rows], torch.tensor(given, device=images.device).view(len(mine), -1, 1, 1))


def _resized_crops(images: Tensor, crops: Sequence[tuple[int, int, int, int]], size: int) -> Tensor:
    """A crop of each image, (B, 3, H, W), as bicubic and antialiased resizing makes it, (B, 3, S, S), uint8."""
    top, left, height, width = torch.tensor(crops, device=images.device, dtype=torch.float64).unbind(1)
    rows = _weights(top, height, size, images.shape[-2])
    columns = _weights(left, width, size, images.shape[-1])
    # whole levels are exact in TF32 as well, its weights cost a fraction of a level; a CPU rounds after each axis too
    wide = (images.float() @ columns.mT.unsqueeze(1)).round_().clamp_(0, 255)
    pixels = rows.unsqueeze(1) @ wide
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """What each pixel of an axis, `side` of them, adds to each of a crop's resized ones: (B, size, side)."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    places = torch.arange(side, device=start.device, dtype=torch.float64)
    centers = start + scale * (torch.arange(size, device=start.device, dtype=torch.float64).view(-1, 1) + 0.5)
    distance = ((places + 0.5 - centers) / scale.clamp(min=1.0)).abs()
    # Keys' cubic with a = -0.5, which PIL and torch take where they antialias
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    weights = weights * ((places >= start) & (places < start + length))
    return (weights / weights.sum(-1, keepdim=True)).float()


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """`factors` of the images and the rest of the others."""
    return (images * factors + other * (1 - factors)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Brightness of pixels, (n, 1, S, S), whole levels in float32."""
    red, green, blue = images.float().split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp_(0, 255).to(torch.uint8)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _grey(images), factors)


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images whose places are taken from where the matrices, (n, 6, 1, 1), point; grey from outside. Bilinear."""
    pixels = images.float()
    grid = F.affine_grid(matrices.view(-1, 2, 3), list(images.shape), align_corners=False)
    # a channel of ones tells how much of each pixel comes from within the image
    with_mask = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    moved = F.grid_sample(with_mask, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    colours, mask = moved.split((3, 1), dim=1)
    return (colours * mask + FILL * (1 - mask)).round_().clamp_(0, 255).to(torch.uint8)


def _factor(strength: float, sign: float, size: int) -> Sequence[float]:
    return (max(0.1, 1 + sign * 0.9 * strength),)


def _nothing(strength: float, sign: float, size: int) -> Sequence[float]:
    return (0.0,)


def _turned(strength: float, sign: float, size: int) -> Sequence[float]:
    angle = math.radians(sign * 30 * strength)
    return math.cos(angle), math.sin(angle), 0.0, -math.sin(angle), math.cos(angle), 0.0


def _shift(strength: float, sign: float, size: int) -> float:
    """Whole pixels, in halves of the side, as `affine_grid` counts."""
    return round(sign * 0.45 * strength * size) / (size / 2)


OPERATIONS: tuple[tuple[Values, Operation], ...] = (
    (_nothing, lambda images, _: V.autocontrast(images)),
    (_nothing, lambda images, _: V.equalize(images)),
    (_nothing, lambda images, _: V.invert(images)),
    (_turned, _moved),
    (
        lambda m, sign, size: (float(256 - 2 ** (4 + int(4 * m))),),
        lambda images, mask: images & mask.to(torch.uint8),
    ),
    (
        lambda m, sign, size: (float(256 - int(256 * m)),),
        lambda images, threshold: torch.where(images >= threshold, 255 - images, images),
    ),
    (
        lambda m, sign, size: (float(int(110 * m)),),
        lambda images, amount: torch.where(images < 128, (images + amount).clamp_(0, 255).to(torch.uint8), images),
    ),
    (_factor, _saturation),
    (_factor, _contrast),
    (_factor, _brightness),
    (_factor, lambda images, factors: _blend(images, V.adjust_sharpness(images, 0.0), factors)),
    (lambda m, sign, size: (1.0, sign * 0.3 * m, 0.0, 0.0, 1.0, 0.0), _moved),
    (lambda m, sign, size: (1.0, 0.0, 0.0, sign * 0.3 * m, 1.0, 0.0), _moved),
    (lambda m, sign, size: (1.0, 0.0, -_shift(m, sign, size), 0.0, 1.0, 0.0), _moved),
    (lambda m, sign, size: (1.0, 0.0, 0.0, 0.0, 1.0, -_shift(m, sign, size)), _moved),
)
"""As `headwise.data.augment.OPERATIONS`: from strength, sign and S the numbers of one image, and what they do."""
