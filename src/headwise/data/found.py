"""Classes that a configuration leaves open, found where a user's images lie."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from headwise.data.stores.classfolders import layout, names_in
from headwise.data.stores.folder import OWN_LIST_NAMES
from headwise.data.stores.hf import DatasetsSource
from headwise.data.stores.labelsets import classes_of, read_table
from headwise.data.stores.listfiles import MOST_DIGITS, NUMBER, labels_in
from headwise.errors import ConfigError, DataError
from headwise.storage.atomic import at_home

MOST_TIMES = 100
"""As many times the number of labels that are there the largest may be: beyond it is a slip, and a huge classifier."""


def with_classes(dataset: Any, data: Any) -> Any:
    """A task's configuration with ``num_classes`` and ``class_names``, where they are null.

    Class folders give names in their order; list files names, or the number of their labels. Where the number is given
    and as many names are found, they are its classes. Both groups of the configuration are plain.

    Raises:
        ConfigError: where the number is left open and there are no images to find it in.
        DataError: there for labels that cannot be counted.
    """
    if not isinstance(dataset, Mapping) or dataset.get("group") != "own":
        return dataset
    if (given := dataset.get("num_classes")) is None:
        return _filled(dataset, data)
    found = dataset
    if not dataset.get("class_names"):
        # of labels that are numbers the given one counts, whatever they are
        with suppress(ConfigError, DataError):
            found = _filled(dataset, data)
    return found if found["num_classes"] == given else dataset


def _filled(dataset: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """As `with_classes`, whatever is given."""
    names, count = list(dataset.get("class_names") or ()), 0
    root = data.get("root") if isinstance(data, Mapping) else None
    if not names and isinstance(root, str):
        if not at_home(root).is_dir():
            raise ConfigError(f"data.root={root} is no folder; give one of class folders or list files")
        is_hf = str(data.get("_target_")).endswith(f".{DatasetsSource.__name__}")
        if is_hf:
            columns = {name: data.get(name) for name in ("image", "label")}
            names, count = DatasetsSource(root, **columns).classes(dataset.get("multi_label") is True)
        folders = [] if is_hf else [at_home(root) / str(name) for name in dataset.get("folders") or ()]
        for folder in [folder for folder in folders if folder.is_dir()][:1]:
            names, count = _sets(folder) if dataset.get("multi_label") is True else _found(folder)
        if not names and not count:
            raise ConfigError(
                f"data.root={root} holds neither two class folders nor list files of {dataset.get('name')!r}; give "
                "another folder, or dataset.num_classes=VALUE; Parquet files and saved datasets are read with data=hf"
            )
    count = len(names) or count
    if count < 2:
        raise ConfigError(
            "dataset.num_classes must be given: add dataset.num_classes=VALUE to the command, or data.root=PATH, a "
            "folder of class folders or list files"
        )
    return {**dataset, "num_classes": count, "class_names": names}


def _sets(folder: Path) -> tuple[list[str], int]:
    """As `_found`, of tables whose images have several labels."""
    lists = sorted(_lists(folder), key=lambda file: not file.name.startswith("train"))
    return classes_of(map(read_table, lists)) if lists else ([], 0)


def _found(folder: Path) -> tuple[list[str], int]:
    """Names of the classes, or none and how many numbers there are."""
    lists = _lists(folder)
    if not lists:
        return names_in(layout(folder)), 0
    labels = {label for file in lists for label in labels_in(file)}
    numbers = {label for label in labels if NUMBER.fullmatch(label)}
    if not numbers:
        return sorted(labels), 0
    if len(numbers) < len(labels):
        raise DataError(
            f"{folder}: labels are numbers in some lines and names in others; dataset.class_names says which"
        )
    # what is no label at all is refused with its line, when the lists are read
    largest = max((int(label[-MOST_DIGITS:]) for label in numbers if label[0] != "-"), default=0)
    if largest >= MOST_TIMES * len(numbers):
        raise DataError(
            f"{folder}: a label is {largest}, and there are {len(numbers)} labels; dataset.num_classes={largest + 1} "
            "says that it is meant"
        )
    return [], largest + 1


def _lists(folder: Path) -> list[Path]:
    return [folder / name for split in OWN_LIST_NAMES.values() for name in split if (folder / name).is_file()]
