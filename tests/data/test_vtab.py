from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from made_trees import load_task, write_tree
from PIL import Image
from torch import Tensor, nn

from headwise.data.sources import FolderSource, SyntheticSource
from headwise.data.tasks import VTABTask
from headwise.data.vtab import EvalBatches, TrainBatches, VTABDataModule, to_tensor
from headwise.errors import ConfigError
from made_cases import each

N = 20


def numbered(batch_size: int = 6, **options: Any) -> TrainBatches:
    """Batches over N one-pixel images whose value is their position."""
    positions = torch.arange(N)
    return TrainBatches(positions.to(torch.uint8).view(N, 1, 1, 1), positions, batch_size, **{"seed": 0} | options)


def seen(batches: TrainBatches) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


def joined(batches: TrainBatches) -> list[int]:
    return [label for batch in seen(batches) for label in batch]


def sprites(**options: Any) -> VTABDataModule:
    return VTABDataModule(load_task("dsprites_loc"), SyntheticSource(), 32, **{"test_images": 20} | options)


def test_every_epoch_is_another_order_of_the_same_images() -> None:
    batches = numbered(batch_size=5)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append(joined(batches))
    assert all(sorted(order) == list(range(N)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    for images, labels in batches:
        assert images.dtype == torch.uint8 and images.flatten().tolist() == labels.tolist()


def test_order_is_a_function_of_seed_phase_and_epoch() -> None:
    def order(seed: int, phase: int, epoch: int) -> tuple[int, ...]:
        return tuple(numbered(seed=seed, phase=phase).order(epoch).tolist())

    before = torch.get_rng_state()
    cases = [(seed, phase, epoch) for seed in (0, 1) for phase in (0, 1) for epoch in (0, 1)]
    orders = [order(*case) for case in cases]
    assert len(set(orders)) == len(cases)
    torch.manual_seed(123)
    assert orders == [order(*case) for case in cases]
    torch.set_rng_state(before)
    assert orders[0][:6] == (14, 17, 8, 15, 3, 6), "pinned: results of earlier versions stay reproducible"


def test_the_last_smaller_batch() -> None:
    assert [len(batch) for batch in seen(numbered(6))] == [6, 6, 6] and len(numbered(6)) == 3
    assert [len(batch) for batch in seen(numbered(6, drop_last=False))] == [6, 6, 6, 2]
    assert [len(batch) for batch in seen(numbered(64))] == [20] and len(numbered(64)) == 1
    assert len(numbered(20)) == 1 and len(numbered(10)) == 2
    with pytest.raises(ConfigError, match="drop_last leaves no batch: 20 images, batch_size=64"):
        numbered(64, drop_last=True)


def test_unshuffled_batches_cover_everything_in_order() -> None:
    batches = numbered(6, shuffle=False, drop_last=False)
    assert joined(batches) == list(range(N))


def test_eval_batches_are_writable_copies_in_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    images.flags.writeable = False
    batches = EvalBatches(images, np.arange(5), 2)
    parts = list(batches)
    assert len(batches) == 3 == len(parts)
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(5))
    assert torch.equal(torch.cat([part for part, _ in parts]), torch.from_numpy(images.copy()).permute(0, 3, 1, 2))
    parts[0][0].zero_()
    assert images.any()


def test_to_tensor_has_its_own_contiguous_memory() -> None:
    images = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    tensor = to_tensor(images)
    tensor += 1
    assert tensor.shape == (2, 3, 4, 5) and tensor.is_contiguous() and not images.any()


def test_module_gives_native_uint8_batches() -> None:
    data = sprites(batch_size=64)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 64, 64) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and len(data.train_dataloader()) == 15
    assert [len(labels) for _, labels in data.test_dataloader()] == [20] and data.num_test == 20
    assert data.val_dataloader() == []
    assert sum(len(labels) for _, labels in data.train_batches(shuffle=False)) == 1000


def test_search_uses_its_own_splits() -> None:
    data = sprites(train_split="train800", eval_split="val200", test_images=None, select_split="val200")
    assert (len(data.train_dataloader()), data.num_test) == (12, 200)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 200
    assert data.fingerprint() == SyntheticSource().fingerprint(data.task, ("train800", "val200"))


def test_phases_have_their_own_order() -> None:
    data = sprites()
    first = next(iter(data.train_dataloader()))[1]
    data.start_phase(1)
    assert not torch.equal(next(iter(data.train_dataloader()))[1], first)
    data.start_phase(0)
    assert torch.equal(next(iter(data.train_dataloader()))[1], first)


def test_images_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sprites()
    calls: list[str] = []
    load = data.source.load
    monkeypatch.setattr(data.source, "load", lambda task, split, *rest: calls.append(split) or load(task, split, *rest))
    for _ in range(2):
        list(data.train_dataloader())
        list(data.test_dataloader())
    assert calls == ["train800val200", "test"]


def test_preprocess_normalises_out_of_place() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    data = sprites(mean=mean, std=std)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    kept = images.clone()
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for _ in range(2):
        result = data.preprocess(images)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert torch.equal(images, kept)


def test_preprocess_repeats_grey_and_resizes() -> None:
    data = sprites()
    result = data.preprocess(next(iter(data.train_dataloader()))[0])
    assert result.shape == (64, 3, 32, 32)
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])
    assert (result.min(), result.max()) == (pytest.approx(-1), pytest.approx(1))


@each("resize, method", [("pil_bicubic", Image.Resampling.BICUBIC), ("pil_bilinear", Image.Resampling.BILINEAR)])
@each("size", [224, 32])
def test_resizing_on_the_device_is_close_to_pil(resize: str, method: Image.Resampling, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = VTABDataModule(load_task("eurosat"), SyntheticSource(), size, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    got = data.preprocess(to_tensor(image[None]))[0].permute(1, 2, 0).numpy() * 255
    difference = np.abs(got - np.asarray(Image.fromarray(image).resize((size, size), method)))
    assert difference.max() <= 2.001 and difference.mean() < {"pil_bicubic": 0.02, "pil_bilinear": 0.2}[resize]


def test_tf_bilinear_on_the_device() -> None:
    data = sprites(resize="tf_bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255
    row = data.preprocess(images)[0, 0, 5]
    expected = ((torch.arange(32) + 0.5) / 16 - 0.5).clamp(0, 1)
    torch.testing.assert_close(row, expected)


def test_preprocess_refuses_what_is_preprocessed() -> None:
    with pytest.raises(ConfigError, match=r"preprocess takes uint8 images, got torch.float32"):
        sprites().preprocess(torch.zeros(1, 3, 32, 32))


def test_options_out_of_range() -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_split": "tset"}, r"unknown split 'tset' \(did you mean 'test'\?\)"),
        ({"resize": "bicubic"}, "unknown resize 'bicubic'"),
        ({"std": (1, 1)}, "mean and std need 3 values"),
        ({"std": (0, 1, 1)}, "std above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            sprites(**options)


def test_provenance(tree: Path, toy: VTABTask) -> None:
    data = VTABDataModule(toy, FolderSource(tree), 32, batch_size=2, test_images=3)
    list(data.train_dataloader())
    list(data.test_dataloader())
    found = data.provenance()
    assert found["source"] == "folder"
    assert found["splits"] == {"train800val200": 6, "test": 3}
    assert found["resize"] == {"train800val200": "pil_bicubic", "test": "pil_bicubic"}
    assert found["fingerprint"] == FolderSource(tree).fingerprint(toy)
    assert found["labels"] == ["unofficial split", "subset"]


def test_subset_label_only_for_a_part(tree: Path, toy: VTABTask) -> None:
    assert VTABDataModule(toy, FolderSource(tree), 32, test_images=5).labels() == ["unofficial split"]
    assert "subset" in VTABDataModule(toy, FolderSource(tree), 32, train_images=5).labels()


class Recorder(L.LightningModule):
    """A linear classifier that notes which images it saw."""

    def __init__(self, data: VTABDataModule) -> None:
        super().__init__()
        self.net, self.data = nn.Linear(3, 3), data
        self.batches: list[list[float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        self.batches.append(images.float().mean(dim=(1, 2, 3)).tolist())
        return nn.functional.cross_entropy(self.net(self.data.preprocess(images).mean(dim=(2, 3))), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("seen", float(len(batch[1])), reduce_fx="sum", batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def trainer(epochs: int, folder: Path) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")
def test_a_resumed_run_sees_the_same_batches(tmp_path: Path, toy: VTABTask) -> None:
    write_tree(tmp_path / "toy", {"train800": 20, "val200": 2, "test": 5}, size=(16, 16))

    def fresh() -> Recorder:
        torch.manual_seed(0)
        return Recorder(VTABDataModule(toy, FolderSource(tmp_path), 8, batch_size=4, seed=3))

    whole, first, second = fresh(), fresh(), fresh()
    trainer(3, tmp_path).fit(whole, whole.data.train_dataloader())
    stopped = trainer(1, tmp_path)
    stopped.fit(first, first.data.train_dataloader())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(3, tmp_path).fit(
        second, second.data.train_dataloader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert len(whole.batches) == 15
    assert whole.batches[:5] == first.batches and whole.batches[5:] == second.batches
    assert torch.equal(whole.net.weight, second.net.weight)
    (outcome,) = trainer(1, tmp_path).test(whole, whole.data.test_dataloader(), verbose=False)
    assert outcome["seen"] == 5
