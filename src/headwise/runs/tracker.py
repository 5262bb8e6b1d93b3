"""The tracker of a run, which is optional: opened before training, told of every epoch, closed with a true exit code.

One run of ours is one run of the tracker's: phase after phase on one axis of steps, whether a phase is trained or taken
from the store. What a number is called, and what is said at the end, is the same in all of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.comparison.controls import KINDS, matches
from headwise.errors import ConfigError
from headwise.protocol.plan import Plan
from headwise.results.fingerprint import fingerprint
from headwise.results.records import Result

TENSORBOARD = "tensorboard"
"""Folder of a run with its event files."""
STEP = "step"
SHOWN = ("train_loss", "lr")
"""Columns of `headwise.training.progress.History` that are tracked."""


class Tracker:
    """Told of epochs and of the result; subclasses say where both go."""

    def __init__(self) -> None:
        self._phase, self._before, self._last = 0, 0, 0

    def epoch(self, phase: int, row: Mapping[str, Any]) -> None:
        """Track an epoch.

        Args:
            phase: its number, from 1; phases come in order.
            row: of `headwise.training.progress.History`; its step counts from the beginning of the phase.
        """
        if phase < self._phase:  # the phases begin again, in smaller parts
            self._last = 0
        if phase != self._phase:
            self._phase, self._before = phase, self._last
        # a phase that goes on from a checkpoint tells its earlier epochs again
        self._last = self._before + int(row["step"])
        self.write({f"phase{phase}/{name}": float(row[name]) for name in SHOWN}, self._last)

    def finish(self, result: Result, others: Sequence[Result], pictures: Sequence[Path]) -> None:
        """Track what was reached, and show the run's pictures."""
        self.close(summary(result, others), tags(result), pictures)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of one step."""
        raise NotImplementedError

    def close(self, facts: Mapping[str, float], labels: Sequence[str], pictures: Sequence[Path]) -> None:
        """Write what stands at the end."""
        raise NotImplementedError


class Wandb(Tracker):
    """Weights and Biases, by its own library. All numbers are drawn over our step, which may be told twice."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        run.define_metric("*", step_metric=STEP)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({STEP: step, **values})

    def close(self, facts: Mapping[str, float], labels: Sequence[str], pictures: Sequence[Path]) -> None:
        import wandb

        self.run.log({STEP: self._last, **{file.stem: wandb.Image(str(file)) for file in pictures}})
        self.run.summary.update(dict(facts))
        # wandb refuses a tag of more than 64 characters
        self.run.tags = tuple(dict.fromkeys([*(self.run.tags or ()), *(label[:64] for label in labels)]))


class Tensorboard(Tracker):
    """Event files in the run's folder, for ``tensorboard --logdir outputs``."""

    def __init__(self, writer: Any) -> None:
        super().__init__()
        self.writer = writer

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, facts: Mapping[str, float], labels: Sequence[str], pictures: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        self.write(facts, self._last)
        self.writer.add_text("labels", ", ".join(labels) or "none")
        for file in pictures:
            with Image.open(file) as image:
                self.writer.add_image(file.stem, np.asarray(image.convert("RGB")), self._last, dataformats="HWC")


def summary(result: Result, others: Sequence[Result]) -> dict[str, float]:
    """What a tracker shows of a result: accuracy, cost and gain of each phase, and what its controls leave of it."""
    facts: dict[str, float | None] = {}
    before: float | None = None
    for number, phase in enumerate(result.phases, start=1):
        where = f"phase{number}"
        facts |= {
            f"{where}/{phase.metric}": phase.accuracy,
            f"{where}/parameters": phase.num_tunable,
            f"{where}/stored_bytes": phase.stored_bytes,
            f"{where}/seconds": phase.seconds,
            f"{where}/peak_memory": phase.peak_memory,
            **{f"{where}/{name}": value for name, value in phase.extra.get("classes", {}).items()},
        }
        if before is not None and phase.accuracy is not None:
            facts[f"{where}/gain"] = phase.accuracy - before
        before = phase.accuracy if phase.accuracy is not None else before
    facts |= {result.metric: before, "parameters": sum(phase.num_tunable for phase in result.phases)}
    for match in matches([result], others):
        facts[f"gain over {KINDS[match.against].full}"] = match.value
    return {name: float(value) for name, value in facts.items() if value is not None}


def tags(result: Result) -> list[str]:
    """The method, the task, and the stamps that every table repeats."""
    return [result.key.method, result.key.dataset, *result.labels]


@contextlib.contextmanager
def tracked(plan: Plan) -> Iterator[Tracker | None]:
    """The tracker that a run asks for, closed with a true exit code; None where curves stay in local files only.

    Raises:
        ConfigError: for one that is not installed, or is online and knows no key.
    """
    kind = plan.config["logger"].get("kind", "csv")
    if kind == "wandb":
        with _wandb(plan) as run:
            yield Wandb(run)
    elif kind == "tensorboard":
        with _tensorboard(plan.folder / TENSORBOARD) as writer:
            yield Tensorboard(writer)
    else:
        yield None


@contextlib.contextmanager
def _wandb(plan: Plan) -> Iterator[Any]:
    import wandb

    options = {name: value for name, value in plan.config["logger"].items() if name not in ("kind", "pictures")}
    if not (offline := options.pop("offline", True)):
        _check_tracker()
    key = plan.key
    run = wandb.init(
        **{
            "group": key.name,
            # the same run, of whatever process, is the same one there
            "id": fingerprint({"key": str(key), "identity": plan.identity}),
            "resume": "allow",
            **{name: value for name, value in options.items() if value is not None},
        },
        mode="offline" if offline else None,
        name=f"{key.method}/{key.dataset}/{key.variant}/{key.seed}",
        dir=str(plan.root),
        config=dict(plan.config),
        settings=wandb.Settings(console="off"),
    )
    # whatever leaves the block early, an interrupt too, is a failure to the tracker
    code = 1
    try:
        yield run
        code = 0
    finally:
        run.finish(exit_code=code)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"logger=tensorboard needs the package tensorboard ({error}): pip install -e '.[tensorboard]' "
            "-c constraints.txt"
        ) from error
    # a run that goes on tells its earlier epochs again
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def _check_tracker() -> None:
    """Refuse an online tracker that would ask for a key, or wait for a host, in the middle of a sweep."""
    import wandb

    why = "wandb knows no key"
    try:
        if os.environ.get("WANDB_MODE", "online") != "online" or wandb.login(prompt=False):
            return
    except wandb.errors.Error as error:
        why = " ".join(str(error).split())
    raise ConfigError(
        f"logger.offline=false: {why}; run `wandb login`, set WANDB_API_KEY, or take logger.offline=true and "
        "`wandb sync` afterwards"
    )
