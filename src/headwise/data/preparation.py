"""From stored pixels to what a network takes: resized, the middle where images were augmented, normalised.

Legend: B batch, C channels (3, or 1 for grey tasks), H/W stored size, S the side of the square that the network sees.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.data import augment
from headwise.errors import ConfigError


@dataclass(frozen=True)
class Preparation:
    """How uint8 images become input.

    Attributes:
        img_size: S.
        resize: pil_bicubic, pil_bilinear or tf_bilinear.
        mean, std: normalisation of pixels in [0, 1], per channel.
        stored_size: side to which images are resized before the middle is taken; None: S.
        shape: what became of images that are no squares before they were stored, see `headwise.data.decode.squared`.
    """

    img_size: int
    resize: str = "pil_bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    stored_size: int | None = None
    shape: str = "squash"

    @property
    def side(self) -> int:
        """Of the square to which images are resized."""
        return self.stored_size or self.img_size

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and normalise a batch where it lies; ``images`` itself is left as it is.

        Native images are resized by ``interpolate``. For tf_bilinear this is TensorFlow's default resize. For the two
        of PIL it is their antialiased kernel, cut off and rounded after each axis as PIL does; where that falls on a
        tie the two differ, by at most two levels of 255.

        Args:
            images: (B, C, H, W) uint8.
        Returns:
            (B, 3, S, S) float32.
        Raises:
            ConfigError: if the images are no uint8, since they would be normalised twice.
        """
        if images.dtype != torch.uint8:
            raise ConfigError(f"preprocess takes uint8 images, got {images.dtype}: are they preprocessed already?")
        pixels = images.to(torch.float32)
        if images.shape[-2:] != (self.img_size, self.img_size):
            if images.shape[-2:] != (self.side, self.side):
                pixels = _resize(pixels, self.side, self.resize)
            pixels = augment.middle(pixels, self.img_size)
        pixels = pixels.expand(-1, 3, -1, -1)
        shift, scale = _normalisation(self.mean, self.std, pixels.device)
        return torch.addcmul(shift, pixels, scale)


@functools.lru_cache(maxsize=64)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) shift and scale with which pixels of 0..255 become normalised, kept per device."""
    # in float64, rounded once at the end
    shift, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    return (-shift / scale).float().to(device), (1 / (255 * scale)).float().to(device)


def _resize(pixels: Tensor, size: int, method: str) -> Tensor:
    """(B, C, H, W) in 0..255 -> (B, C, size, size)."""
    if method == "tf_bilinear":
        return F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=False)
    for shape in ((pixels.shape[-2], size), (size, size)):
        mode = {"pil_bicubic": "bicubic", "pil_bilinear": "bilinear"}[method]
        pixels = F.interpolate(pixels, shape, mode=mode, align_corners=False, antialias=True)
        pixels = (pixels + 0.5).floor().clamp(0, 255)  # halves go up, as in PIL
    return pixels
