"""Batches in parts: the same step, and how a run gets there when the memory is full."""

from __future__ import annotations

import pytest
import torch

from headwise.network.portions import is_out_of_memory, more_parts, split
from headwise.results.store import ResultStore
from headwise.training import loop
from made_cases import each
from made_networks import compose_config
from made_words import TINY

LORA = [*TINY, "trainer=cpu"]
LORA += [
    "trainer.threads=1",
    "trainer.progress=false",
    "logger.pictures=false",
    "method=lora",
    "rank=r4",
    "protocol.drop_path=0",
]
CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@each(
    "error, is_it",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError(CPU), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error, is_it):
    assert is_out_of_memory(error) == is_it


def test_parts_double_up_to_single_images():
    full = MemoryError()
    assert [more_parts(full, parts, 6) for parts in (1, 2, 4)] == [2, 4, 6]
    with pytest.raises(MemoryError):
        more_parts(full, 6, 6)
    with pytest.raises(KeyError):
        more_parts(KeyError("x"), 1, 6)


@each("size, parts, sizes", [(8, 1, [8]), (8, 2, [4, 4]), (7, 2, [4, 3]), (3, 8, [1, 1, 1])])
def test_every_image_is_in_one_part(size, parts, sizes):
    images, labels = torch.arange(size * 2).view(size, 2), torch.arange(size)
    found = split((images, labels), parts)
    assert [len(some) for some, _, _ in found] == sizes
    assert torch.equal(torch.cat([some for some, _, _ in found]), images)
    assert torch.equal(torch.cat([theirs for _, theirs, _ in found]), labels)
    assert sum(share for _, _, share in found) == pytest.approx(1.0)


def losses(root, monkeypatch, most: int, kind: type[Exception] = torch.OutOfMemoryError):
    """Train where no more than `most` images fit; returns the record and the sizes that were tried."""
    tried = []
    loss = loop.PhaseModule._loss

    def limited(self, images, labels, share):
        tried.append(len(labels))
        if len(labels) > most:
            raise kind(CPU)
        return loss(self, images, labels, share)

    with monkeypatch.context() as patch:
        patch.setattr(loop.PhaseModule, "_loss", limited)
        from headwise.runs.experiment import run

        run(compose_config(*LORA, f"root={root}"))
    (result,) = ResultStore(root).all()
    return result.phases[0], tried


def test_a_run_that_is_out_of_memory_goes_on_with_half_the_images_at_a_time(tmp_path, monkeypatch, capsys):
    whole, sizes = losses(tmp_path / "whole", monkeypatch, 8)
    assert sizes == [8, 8]
    assert "batch_parts" not in whole.extra
    parts, sizes = losses(tmp_path / "parts", monkeypatch, 3, RuntimeError)
    assert sizes == [8, 4, *[2] * 8]
    assert parts.extra["batch_parts"] == 4
    assert parts.steps == whole.steps == 2
    assert parts.train_loss == pytest.approx(whole.train_loss, rel=1e-5)
    assert parts.accuracy == whole.accuracy
    said = capsys.readouterr().out
    assert "out of memory: going on with at most 4 images at a time, 8 a step as before" in said
    tensors = [loop.read_tensors(next((tmp_path / name).glob("phases/*/*.safetensors"))) for name in ("whole", "parts")]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_it_ends_when_one_image_does_not_fit(tmp_path, monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        losses(tmp_path, monkeypatch, 0)
    assert not list(tmp_path.glob("**/result.json"))
    (failure,) = tmp_path.glob("**/failure.txt")
    assert "OutOfMemoryError" in failure.read_text()


def test_a_result_says_that_batches_were_split(tmp_path, monkeypatch):
    losses(tmp_path, monkeypatch, 4)
    (result,) = ResultStore(tmp_path).all()
    assert "batches in parts" in result.labels
