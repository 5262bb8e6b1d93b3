"""Where batches are made: on a GPU beside the network's work, without a CPU waiting; stand-ins take the GPU's place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from made_trees import load_task
from torch import Tensor

from headwise.data import vtab
from headwise.data.ahead import Batch, ahead, brought
from headwise.data.sources import SyntheticSource
from headwise.data.vtab import VTABDataModule
from made_cases import each

CPU, META = torch.device("cpu"), torch.device("meta")
"""Meta stands for a GPU: another device than the CPU, on which nothing is computed."""


def numbers(step: int) -> Batch:
    return torch.tensor([step]), torch.tensor([-step])


def module(augment: str = "none") -> VTABDataModule:
    return VTABDataModule(load_task("dsprites_loc"), SyntheticSource(), 32, 64, augment=augment, test_images=20)


@each("count", [0, 1, 5])
def test_all_come_in_order(count: int) -> None:
    assert [int(images) for images, _ in ahead(numbers, count, CPU)] == list(range(count))


def test_the_next_is_made_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def make(step: int) -> Batch:
        begun[step].set()
        return numbers(step)

    batches = ahead(make, 3, CPU)
    next(batches)
    assert begun[1].wait(10) and not begun[2].is_set()
    batches.close()  # type: ignore[attr-defined]
    assert not begun[2].is_set(), "of those that nobody asks for, no more is made"


def test_what_fails_is_told_where_it_is_asked_for() -> None:
    def make(step: int) -> Batch:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(ahead(make, 2, CPU))


class Stream:
    """Notes what would be done on a GPU."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def synchronize(self) -> None:
        self.done.append("waited")


def test_on_a_gpu_a_stream_makes_them_and_memory_is_kept_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        done.append(f"on its stream: {threading.current_thread() is not threading.main_thread()}")
        yield

    def record(tensor: Tensor, stream: Any) -> None:
        done.append(f"kept for {stream}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(done))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"that of {device}")
    monkeypatch.setattr(Tensor, "record_stream", record)
    assert len(list(ahead(numbers, 1, torch.device("cuda", 1)))) == 1
    assert done == ["on its stream: True", "waited", "kept for that of cuda:1", "kept for that of cuda:1"]


def test_copies_to_a_gpu_are_pinned_and_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: asked.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, device, **how: asked.append((str(device), how)) or tensor)
    brought(torch.zeros(1), torch.device("cuda"))
    assert asked == ["pinned", ("cuda", {"non_blocking": True})]


def test_on_a_cpu_nothing_is_copied_and_no_thread_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtab, "ahead", lambda *_: pytest.fail("a thread"))
    data = module()
    data.place(CPU)
    assert len(list(data.train_dataloader())) == 15 and len(list(data.test_dataloader())) == 1
    labels = data.train_dataloader().labels
    data.place(CPU)
    assert data.train_dataloader().labels is labels and not isinstance(data.train_dataloader().images, Tensor)


def test_the_training_set_lies_on_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module()
    data.place(META)
    first, second = data.train_dataloader(), data.train_batches(shuffle=False)
    assert isinstance(first.images, Tensor) and first.images is second.images
    assert {tensor.device for batch in first for tensor in batch} == {META}
    monkeypatch.setattr(vtab, "RESIDENT", 1000)
    large = module()
    large.place(META)
    batches = large.train_dataloader()
    assert not isinstance(batches.images, Tensor), "what is too large comes batch by batch"
    assert {tensor.device for batch in batches for tensor in batch} == {META}


def test_test_images_come_as_bytes_and_are_normalised_there() -> None:
    data = module()
    data.place(META)
    ((images, labels),) = data.test_dataloader()
    assert images.device == labels.device == META and images.dtype == torch.uint8
    assert data.preprocess(images).device == META


def test_a_batch_is_augmented_as_a_whole_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []

    def note(images: Tensor, size: int, random: Any) -> Tensor:
        places.append(images.device.type)
        return images

    monkeypatch.setattr(vtab, "augment_batch", note)
    data = module("fewshot")
    data.place(META)
    list(data.train_dataloader())
    assert places == ["meta"] * 15
