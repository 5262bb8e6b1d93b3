"""A split of any source as one array: what `Bulk` asks to know of it, said once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from headwise.data.bulk import Bulk
from headwise.data.pixels import Pixels
from headwise.data.tasks import VTABTask


class Read(Protocol):
    """A source that reads images, at most `memory` GiB of a split at once, see `headwise.data.bulk`."""

    memory: float

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = ...) -> str:
        """Content of splits."""
        ...


def gathered(
    source: Read,
    task: VTABTask,
    split: str,
    how: tuple[int, str],
    count: int,
    chunks: Callable[[], Iterable[Pixels]],
    rule: str,
) -> Pixels:
    """The `count` images of a split that `chunks` gives.

    Args:
        source: where they lie.
        task, split: whose.
        how: the network's side, pixels, and how images are brought to it.
        count: of the images that were chosen.
        chunks: see `Bulk`.
        rule: what decides the chosen pixels beside the split's fingerprint.

    Raises:
        DataError: if there are fewer images, or the disk has no room for them.
    """
    return Bulk(
        title=f"task {task.name!r}, {split}",
        count=count,
        size=how[0],
        resize=how[1],
        channels=task.channels,
        chunks=chunks,
        # a hash over every image: asked for only where the pixels may be kept in a file
        content=lambda: f"{source.fingerprint(task, (split,))} {rule}",
        memory=source.memory,
    ).load()
