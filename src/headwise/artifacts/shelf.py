"""Several adapters over one network: each has modules of its own, and the pretrained tensors are there once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from headwise.errors import ConfigError, suggest
from headwise.methods.base import Installed
from headwise.network.backbone import Backbone

FIRST = "default"
"""Name of the adapter that a network came with."""


class Shelf:
    """The adapters of one network that are not in use, and the network without any.

    Attributes:
        bare: the network without an adapter, with the classifier that it came with, frozen; None where a method has put
            other weights in the place of its own.
        name: of the adapter in use; None for the bare network.
        laid: by name, what `headwise.Adapted` holds of an adapter that is not in use.
    """

    def __init__(self, bare: Backbone | None) -> None:
        self.bare = None if bare is None else bare.requires_grad_(False)
        self.name: str | None = FIRST
        self.laid: dict[str | None, Mapping[str, Any]] = {}

    def keep_apart(self, installed: Installed) -> None:
        """After the first phase was installed: leave the bare network its own tensors, or give it up."""
        if self.bare is None:
            return
        own, head = ids(self.bare), {id(tensor) for tensor in self.bare.head.parameters()}
        if own & {id(tensor) for tensor in installed.trainable().values()}:  # full fine-tuning, BitFit
            self.bare = copy.deepcopy(self.bare).requires_grad_(False)
        elif own & ids(installed.net) and own - head - ids(installed.net):
            self.bare = None  # four bits took the place of weights, whose memory is not held for this

    def base(self) -> Backbone:
        """The bare network; refused where there is none."""
        if self.bare is None:
            raise ConfigError("the method has put other weights in the place of the network's own; load it anew")
        return self.bare

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in {self.name, *self.laid} if name is not None))

    def lay(self, name: str, parts: Mapping[str, Any]) -> None:
        self.laid[name] = parts

    def check_new(self, name: str) -> None:
        """Refuse a name that is none, or taken; says which there are."""
        if not isinstance(name, str) or not name:
            raise ConfigError(f"an adapter's name is a text that is not empty, got {name!r}")
        if name in self.names:
            raise ConfigError(f"there is an adapter {name!r} already; there are: {', '.join(self.names)}")

    def swap(self, name: str | None, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take an adapter by its name, an unknown one is refused, and lay down the one in use."""
        if name not in self.laid:
            raise ConfigError(f"no adapter {name!r}{suggest(str(name), self.names)}")
        taken = self.laid.pop(name)
        self.laid[self.name], self.name = parts, name
        return taken

    def nets(self) -> Iterator[Backbone]:
        """Every network but the one in use: what moves to another device or type with it."""
        yield from (parts["net"] for parts in self.laid.values())
        if self.bare is not None:
            yield self.bare


def ids(net: Backbone) -> set[int]:
    """Of its parameters."""
    return {id(tensor) for tensor in net.parameters()}
