"""Parts of a task's images that a protocol asks for. Torch is not needed."""

from __future__ import annotations

from headwise.data.sources import Source
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError
from headwise.protocol.recipe import SMOKE, Protocol

MINIATURE = {"train_images": 8, "test_images": 32}
"""What protocol=smoke takes of a set, or all of it: its numbers mean nothing."""


def check_subsets(task: VTABTask, source: Source, protocol: Protocol) -> None:
    """Refuse a subset that is none. The limits of protocol=smoke are upper bounds."""
    for key, split in (("train_images", protocol.train_split), ("test_images", protocol.eval_split)):
        limit = getattr(protocol, key)
        if limit is None or (protocol.name == SMOKE and limit <= MINIATURE[key]):
            continue
        total = source.count(task, split) if task.is_own else task.official_count(split)
        if total is not None and limit >= total:
            kind = "test" if split == "test" else "training" if split.startswith("train") else "validation"
            raise ConfigError(
                f"protocol.{key}={limit} is not a subset of the {total} {kind} images of {task.name}; use null for all"
            )
