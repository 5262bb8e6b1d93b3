"""What to do when a batch does not fit the memory: the same batch in parts, whose gradients add up to its own."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no room for a tensor, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_oom_error(error)


def more_parts(error: Exception, parts: int, batch_size: int) -> int:
    """Twice as many parts of a batch as before, after `error`; at most as many as images.

    Raises:
        Exception: `error` itself, if it is about something else, or the parts cannot get smaller.
    """
    if not is_out_of_memory(error) or parts >= batch_size:
        raise error
    # the failed attempt's activations are still cached; without this the smaller parts may fail as well
    garbage_collection_cuda()
    return min(2 * parts, batch_size)


def split(batch: tuple[Tensor, Tensor], parts: int) -> list[tuple[Tensor, Tensor, float]]:
    """A batch, images (B, ...) and labels (B,) or (B, K), in at most `parts` parts, each with its share of them."""
    images, labels = batch
    count = min(parts, len(labels))
    if count <= 1:
        return [(images, labels, 1.0)]
    pairs = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
    return [(some, theirs, len(theirs) / len(labels)) for some, theirs in pairs]
