"""Named tensors that belong together: the same names, the same shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from headwise.errors import CheckpointError


def check_names(expected: Iterable[str], given: Iterable[str]) -> None:
    """Compare tensor names; CheckpointError listing up to three missing and three unexpected names."""
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            "the saved tensors belong to another network or method: "
            f"missing {missing[:3]} ({len(missing)} in all), unexpected {unexpected[:3]} ({len(unexpected)} in all)"
        )


def copy_into(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors over live ones; CheckpointError naming what is missing, unexpected, or of another shape."""
    check_names(targets, tensors)
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise CheckpointError(f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(target.shape)} here")
        target.data.copy_(tensors[name])
