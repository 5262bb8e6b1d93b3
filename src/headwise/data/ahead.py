"""Batches that are made while the one before them is used, on the device where they are used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; itself if it lies there. To a GPU through pinned memory, without waiting for the copy."""
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which batches are made: memory that one stream has freed serves no other."""
    return torch.cuda.Stream(device)


def ahead(make: Callable[[int], Batch], count: int, device: torch.device) -> Iterator[Batch]:
    """The batches 0 to `count` - 1, each made by `make` in a thread of its own while the one before it is used.

    On a GPU they are made on a stream of their own, beside what the network computes; only the thread waits for it.
    """
    stream = _stream(device) if device.type == "cuda" else None

    def made(step: int) -> Batch:
        if stream is None:
            return make(step)
        with torch.cuda.stream(stream):
            batch = make(step)
        stream.synchronize()
        return batch

    with ThreadPoolExecutor(1) as worker:
        jobs = (worker.submit(made, step) for step in range(count))
        upcoming = next(jobs, None)
        while upcoming is not None:
            batch = upcoming.result()
            upcoming = next(jobs, None)
            if stream is not None:
                # their memory belongs to the other stream, which takes it again only when this one is done with it
                for tensor in batch:
                    tensor.record_stream(torch.cuda.current_stream(device))
            yield batch
