"""How a number is measured: recipe, schedule, data handling and selection, from conf/protocol/<name>.yaml."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from headwise.errors import ConfigError
from headwise.protocol.space import EVAL_SPLIT, TRAIN_SPLIT, Space
from headwise.schema.check import check_fields
from headwise.schema.kinds import AtLeast0, Count, Positive, Rate, Split, Text

Schedule = Literal["cosine", "r0_legacy", "cara_legacy", "constant"]
Optimizer = Literal["adamw", "sgd"]
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}
"""(mean, deviation) per channel of inputs in [0, 1], by name; `Protocol.normalize` may be any, or ``model``."""
Normalize = Literal["model", "imagenet", "inception", "none"]
Augment = Literal["none", "fewshot"]
Resize = Literal["pil_bicubic", "pil_bilinear", "tf_bilinear"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "auto"]
PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What Lightning calls them; ``auto`` is one of them by then (`precision_on`)."""
SMOKE = "smoke"
"""Name of the protocol in miniature, and the label of what it measures: such numbers mean nothing."""
MEANINGLESS = (SMOKE,)
"""Labels which say that a number means nothing: no verdict rests on it."""


def precision_on(accelerator: str, asked: Any) -> Any:
    """What a precision means on ``cpu`` or ``gpu``: only GPUs have TF32; ``auto`` is bf16 there, fp32 elsewhere."""
    meant = {"cpu": {"auto": "fp32", "tf32": "fp32"}, "gpu": {"auto": "bf16"}}[accelerator]
    return meant.get(asked, asked) if isinstance(asked, str) else asked


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything but method, network and task that decides a number.

    Attributes:
        name: of the protocol, as in conf/protocol.
        epochs: per phase.
        batch_size, eval_batch_size: images.
        drop_last: leave out the last, smaller batch of an epoch (never where it would be the only one).
        optimizer: adamw or sgd (momentum 0.9).
        lr: peak learning rate.
        lr_min: at the end of the cosine.
        lr_start: at the start of the warm-up.
        weight_decay: on all tunable tensors that their method does not exempt.
        schedule: ``cosine`` by step, reaching its peak; ``r0_legacy`` the published trace, by epoch and delayed by one
            (methods of the Jie lineage; the peak is never reached); ``cara_legacy`` the same stepped after every batch,
            so delayed by one step, and held from the middle of the run on (CaRA); ``constant`` after warm-up.
        warmup: fraction of the run, rounded to whole steps, at least one; 0 is none.
        drop_path: rate at the last block, rising linearly from 0.
        clip: gradient norm, None for no clipping.
        normalize: ``model`` (what the weights expect), or a name in `NORMALIZATIONS`.
        resize: how images are brought to the network's size.
        augment: ``none``, or ``fewshot`` (see ``headwise.data.augment``).
        precision: fp32; tf32, in which a GPU multiplies with 10 bits of mantissa, merging too; bf16 or fp16 (autocast;
            weights and updates stay float32); or auto, see `precision_on`.
        eval_mode_after: epochs after which training goes on in evaluation mode, without dropout and drop-path, to
            imitate a code that forgot to switch back after its first test; None: never.
        train_split, eval_split: what is trained on and what is tested once after the last epoch.
        train_images, test_images: train or test on a fixed subset of this size and say so, None for all.
        per_task: whether an experiment's table of values per task applies (`headwise.protocol.pertask`).
        select: ``last`` epoch, or ``best_test``, which chooses on the test set and stamps the result.
        select_every: with best_test, epochs between looks.
        select_after: with best_test, epochs before the looks begin (with one right after the next epoch); None: from
            the start.
        search: values of scale, ne, score and other fields of the phases to choose from on train800 and val200 first
            (`headwise.protocol.space.Space`), or None. The phases are then trained as the rest says.
    """

    name: Text = "strict"
    epochs: Count = 100
    batch_size: Count = 64
    eval_batch_size: Count = 256
    drop_last: bool = True
    optimizer: Optimizer = "adamw"
    lr: Positive = 1e-3
    lr_min: AtLeast0 = 1e-5
    lr_start: AtLeast0 = 1e-6
    weight_decay: AtLeast0 = 1e-4
    schedule: Schedule = "cosine"
    warmup: Rate = 0.1
    drop_path: Rate = 0.1
    clip: Positive | None = None
    normalize: Normalize = "model"
    resize: Resize = "pil_bicubic"
    augment: Augment = "none"
    precision: Precision = "fp32"
    eval_mode_after: Count | None = None
    train_split: Split = "train800val200"
    eval_split: Split = "test"
    train_images: Count | None = None
    test_images: Count | None = None
    per_task: bool = True
    select: Literal["last", "best_test"] = "last"
    select_every: Count = 10
    select_after: Count | None = None
    search: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"protocol.{name}")
        if self.lr_min > self.lr and self.schedule != "constant":
            raise ConfigError(f"protocol.lr_min must be at most protocol.lr={self.lr}, got {self.lr_min}")
        if self.search is not None:
            Space.of(self.search)

    @property
    def labels(self) -> list[str]:
        """What must be said beside every number measured this way."""
        stamps = [SMOKE] if self.name == SMOKE else []
        if self.test_images is not None or self.train_images is not None:
            stamps.append("subset")
        if self.eval_split != "test":
            stamps.append("validation")
        if self.select == "best_test":
            stamps.append("TEST-SELECTED")
        return stamps

    def normalization(
        self, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) per channel for inputs in [0, 1]; `mean` and `std` are what the weights expect."""
        return {"model": (mean, std), **NORMALIZATIONS}[self.normalize]

    def for_search(self) -> Protocol:
        """The same recipe on the search's splits: nothing of the test set, no epoch chosen, no search within."""
        splits = {"train_split": TRAIN_SPLIT, "eval_split": EVAL_SPLIT}
        images = None if self.search is None else Space.of(self.search).images
        return replace(self, **splits, test_images=images, select="last", search=None)  # type: ignore[arg-type]

    def data_options(self, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
        """Keyword arguments of `headwise.data.vtab.VTABDataModule`; `mean` and `std` are what the weights expect."""
        shift, scale = self.normalization(mean, std)
        return {
            "batch_size": self.batch_size,
            "eval_batch_size": self.eval_batch_size,
            "train_split": self.train_split,
            "eval_split": self.eval_split,
            "resize": self.resize,
            "augment": self.augment,
            "mean": shift,
            "std": scale,
            "drop_last": None if self.drop_last else False,
            "train_images": self.train_images,
            "test_images": self.test_images,
        }

    def warmup_count(self, total: int) -> int:
        """Warm-up of a run of `total` units, whole, at least one unless the fraction is 0."""
        return 0 if self.warmup == 0 else max(1, min(total - 1, round(self.warmup * total)))

    def learning_rate(self, epochs: int, steps_per_epoch: int, peak: float | None = None) -> Callable[[int], float]:
        """The learning rate as a function of the step, 0-based."""
        top = self.lr if peak is None else peak
        total = epochs * steps_per_epoch
        warm = self.warmup_count(total)
        warm_epochs = self.warmup_count(epochs)

        def cosine(step: int) -> float:
            if step < warm:
                # counted from one: the last step of the warm-up has the peak itself
                return self.lr_start + (top - self.lr_start) * (step + 1) / warm
            # the schedule is asked once more after the last step
            progress = min(1.0, (step - warm) / max(1, total - warm))
            return self.lr_min + 0.5 * (top - self.lr_min) * (1 + math.cos(math.pi * progress))

        def by_epoch(time: int) -> float:
            if time < warm_epochs:
                return self.lr_start + time * (top - self.lr_start) / warm_epochs
            return self.lr_min + 0.5 * (top - self.lr_min) * (1 + math.cos(math.pi * min(1.0, time / epochs)))

        def r0_legacy(step: int) -> float:
            return by_epoch(max(0, step // steps_per_epoch - 1))

        def cara_legacy(step: int) -> float:
            return by_epoch(min(max(0, step - 1) // steps_per_epoch, epochs // 2))

        def constant(step: int) -> float:
            return top * min(1.0, (step + 1) / warm) if warm else top

        schedules = {"cosine": cosine, "r0_legacy": r0_legacy, "cara_legacy": cara_legacy, "constant": constant}
        return schedules[self.schedule]
