"""What is minimised and what is measured, of images with one label each and of images with several.

Legend: B images, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from headwise.errors import DataError


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of a batch.

    Args:
        logits: (B, K).
        labels: (B,) classes: cross-entropy, the mean over images. (B, K) of 0 and 1, several labels an image: binary
            cross-entropy, the mean over images and classes.
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def average_precisions(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Average precision of each class in percent, by torchmetrics; None for a class that no image has.

    Of all images together: logits (B, K), of which only the order counts, and labels (B, K) of 0 and 1.
    """
    from torchmetrics.functional.classification import binary_average_precision  # as dear to load as torch

    # in float64 large logits stay apart where torchmetrics turns them into probabilities
    scores, truth = logits.detach().double().cpu(), labels.cpu()
    return [
        100.0 * float(binary_average_precision(scores[:, k], truth[:, k])) if truth[:, k].any() else None
        for k in range(truth.shape[1])
    ]


def mean_precision(precisions: list[float | None]) -> float:
    """mAP in percent: the mean over the classes that some image has; DataError if no image has any class."""
    found = [value for value in precisions if value is not None]
    if not found:
        raise DataError("no test image has a label: a mean average precision needs at least one")
    return sum(found) / len(found)


class Tally:
    """What is known after some batches of a test: images right, or logits and labels for mAP."""

    def __init__(self) -> None:
        self.right: int | Tensor = 0  # added up where the logits are: to read a number of a GPU is to wait for it
        self.total = 0
        self._several: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch; both on one device."""
        self.total += len(labels)
        if labels.ndim == 2:
            self._several.append((logits.detach().cpu(), labels.cpu()))
        else:
            self.right = self.right + (logits.argmax(1) == labels).sum()

    @property
    def precisions(self) -> list[float | None]:
        """Of images with several labels, see `average_precisions`; empty of others."""
        if not self._several:
            return []
        return average_precisions(*(torch.cat(parts) for parts in zip(*self._several, strict=True)))

    @property
    def share(self) -> float:
        """Images that are right, or mAP, as a fraction."""
        return mean_precision(self.precisions) / 100.0 if self._several else int(self.right) / self.total
