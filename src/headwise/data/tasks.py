"""VTABTask: what is known about one task before any image is read. Torch is never imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from headwise.errors import ConfigError, check_choice
from headwise.schema import targets
from headwise.schema.check import check_fields
from headwise.schema.kinds import DRAWS, SHOTS, AtLeast2, Channels, Count, PixelScale, Slices, Split, Words

Group = Literal["natural", "specialized", "structured", "fewshot", "own"]
Encoding = Literal["lossless", "jpeg"]
GROUPS, ENCODINGS, SPLITS = map(get_args, (Group, Encoding, Split))
NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""What a task may be called, a regular expression."""
PARTS = {"train800": {"train800"}, "val200": {"val200"}, "train800val200": {"train800", "val200"}, "test": {"test"}}
"""What each split is made of."""


@dataclass(frozen=True, kw_only=True)
class VTABTask:
    """One classification task, built from ``conf/dataset/<name>.yaml``.

    Args:
        name: the task's name here, in folders and tables.
        group: natural, specialized or structured; ``fewshot``; ``own`` for a user's images.
        num_classes: labels are 0 .. num_classes - 1.
        num_test: images of the official test split; None where there is no official split.
        folders: names a list-file tree may use for this task, the first is canonical; "." is the root itself.
        builder: name of the upstream data set (as tfds calls it), None for a user's images.
        config: the builder's config, if it has several.
        versions: acceptable versions of the builder, the preferred one first; ``*`` matches any number.
        splits: the upstream slices behind ``train``, ``val`` and ``test``, such as ``train[80%:90%]``. The first 800 of
            ``train`` are train800, the first 200 of ``val`` are val200, ``test`` is used whole.
        image_key: feature that holds the image.
        label_key: feature that holds the label, None where ``label_rule`` derives it.
        label_rule: function of ``headwise.data.labels`` that derives the label from the example's features.
        channels: 3, or 1 for grey images, which stay grey in memory and are repeated when they enter the network.
        pixel_scale: what upstream's stored values are multiplied with; 255 where it stores 0 and 1.
        depth: bits of a value of a user's own images where files have more than 8, 8 to 16; None: found.
        encoding: how upstream stores pixels; a JPEG copy of a ``lossless`` task is labelled ``lossy``.
        aliases: other names of the task in papers and tables.
        class_names: names in upstream's label order; empty if unknown.
        shots: training images per class of a few-shot set, None for every other task. Its ``splits`` may join slices
            with ``+``; see ``headwise.data.stores.fewshot``.
        draw: which of the three draws of these images.
        multi_label: whether an image has any number of classes, of a user's own images; they come from tables with a
            column for each class, or one of names with ``|`` or ``;`` between them (`headwise.data.stores.labelsets`).
    Raises:
        ConfigError: for a value outside of these ranges.
    """

    name: str
    group: Group
    num_classes: AtLeast2
    folders: Words
    num_test: Count | None = None
    builder: str | None = None
    config: str | None = None
    versions: Words = ()
    splits: Slices = field(default_factory=dict)
    image_key: str = "image"
    label_key: str | None = "label"
    label_rule: str | None = None
    channels: Channels = 3
    pixel_scale: PixelScale = 1
    depth: int | None = None
    encoding: Encoding = "jpeg"
    aliases: Words = ()
    class_names: Words = ()
    shots: int | None = None
    draw: int = 0
    multi_label: bool = False

    def __post_init__(self) -> None:
        check_fields(self, lambda key: f"task {self.name!r}: {key}")
        # the class is frozen; YAML gives lists, and numbers for names such as 0
        for key in ("folders", "versions", "aliases", "class_names"):
            object.__setattr__(self, key, tuple(str(item) for item in getattr(self, key)))
        object.__setattr__(self, "splits", {str(k): str(v) for k, v in self.splits.items()})
        where = f"task {self.name!r}"
        if not re.fullmatch(NAME, self.name):
            raise ConfigError(f"a task's name may hold letters, digits, '_', '-' and '.', got {self.name!r}")
        if self.depth is not None and not (self.is_own and 8 <= self.depth <= 16):
            allowed = "8 to 16 bits, or null" if self.is_own else "only a user's own images (group own) have one"
            raise ConfigError(f"{where}: dataset.depth={self.depth}: {allowed}")
        if self.multi_label and not self.is_own:
            raise ConfigError(f"{where}: only a user's own images (group own) may have several labels (multi_label)")
        if self.group == "fewshot" and self.shots not in SHOTS:
            given = "shots must be given" if self.shots is None else f"shots={self.shots} is not one of the published"
            raise ConfigError(f"{where}: {given}; add shots=K to the command, K one of {', '.join(map(str, SHOTS))}")
        if self.group == "fewshot" and self.draw not in DRAWS:
            raise ConfigError(f"{where}: draw must be one of {', '.join(map(str, DRAWS))}, got {self.draw}")
        if self.label_rule is not None:
            from headwise.data.labels import rule  # which needs numpy; a task without a rule does not

            rule(self.label_rule)
        for key in ("builder", "config"):
            if (name := getattr(self, key)) is not None and not re.fullmatch(NAME, name):
                raise ConfigError(f"{where}: {key} may hold letters, digits, '_', '-' and '.', got {name!r}")
        if not self.folders:
            raise ConfigError(f"{where}: folders must name at least one folder")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(f"{where}: {len(self.class_names)} class_names for num_classes={self.num_classes}")

    @property
    def is_own(self) -> bool:
        """Whether these are a user's own images, which are looked at, turned upright and read with all their bits."""
        return self.group == "own"

    @property
    def is_official(self) -> bool:
        """Whether the task has an official split, with 800, 200 and ``num_test`` images."""
        return self.num_test is not None

    def official_count(self, split: str) -> int | None:
        """Number of images of a split in the official data, None where there is no official split."""
        check_split(split)
        if not self.is_official or split == "test":
            return self.num_test
        if self.shots is not None:
            return None if split == "val200" else self.shots * self.num_classes
        return {"train800": 800, "val200": 200, "train800val200": 1000}[split]


def task_of(spec: Any) -> VTABTask:
    """The task that a record describes, ``_target_`` and fields; ConfigError for another class, or what is unfit."""
    own = {f"{VTABTask.__module__}.{VTABTask.__name__}": VTABTask}
    return targets.build(spec, own.get, lambda kind: False, "a task")


def check_split(split: str) -> None:
    """Raise ConfigError unless ``split`` is one of the four splits."""
    check_choice("split", split, SPLITS)


def check_apart(train_split: str, eval_split: str) -> None:
    """Raise ConfigError if images that are trained on would be tested on: equal splits, or one within the other."""
    check_split(train_split)
    check_split(eval_split)
    if both := PARTS[train_split] & PARTS[eval_split]:
        apart = [split for split in SPLITS if not PARTS[split] & PARTS[eval_split]]
        raise ConfigError(
            f"eval_split={eval_split} holds images of train_split={train_split} ({', '.join(sorted(both))}): they "
            f"would be tested after training on them; allowed: train_split={' or '.join(apart)}"
        )
