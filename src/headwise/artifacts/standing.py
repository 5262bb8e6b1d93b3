"""The network that an adapter stands on: a user's module or a name, with its classifier. Hydra is not needed."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from headwise.errors import ConfigError
from headwise.methods._fitting import dry_forward
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.given import around, spec_of
from headwise.protocol.described import CONF


def network_of(
    model: nn.Module | str, weights: str | Path | None = None, img_size: int | None = None
) -> tuple[Backbone, BackboneSpec | None]:
    """A network that is given, as for `adapt`: a copy of a module, or what a name means, with its specification.

    Raises:
        ConfigError: for an unknown name, or what belongs to a name beside a module. WeightsError: as `adapt`.
    """
    if isinstance(model, str):
        spec = spec_of(model, CONF, weights, img_size)
        return spec.build(), spec
    for name, value in (("weights", weights), ("img_size", img_size)):
        if value is not None:
            raise ConfigError(f"{name}={value!r} belongs to a network's name; the module that was given has its own")
    return around(model), None


def classify_with(net: Backbone, num_classes: int | None) -> None:
    """A fresh classifier, or the one that is there; two blank images pass it."""
    like = next(net.parameters())
    if num_classes is not None:
        net.new_head(num_classes)
        net.head.to(like.device, like.dtype)
    elif not isinstance(net.model.get_classifier(), nn.Linear):  # type: ignore[operator]
        raise ConfigError("num_classes must be given: the module has no linear classifier")
    if like.dtype.itemsize >= 4:  # blank images are float32
        dry_forward(net)
