"""Baselines without an update of their own: they only choose which of the network's parameters train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.methods._named import copy_into
from headwise.methods._structural import refuse_four_bits
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Positive
from headwise.wrappers.wrapping import pretrained_parameters


class BaseTuning(Installed):
    """Trains parameters of the network itself, named by their module path (q, k and v apart), beside the head.

    There is nothing to fold: merging freezes.
    """

    def __init__(self, net: Backbone, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(net, {})
        head = {id(parameter) for parameter in net.head.parameters()}
        self.parameters = {name: tensor for name, tensor in parameters.items() if id(tensor) not in head}
        self.freeze_rest()

    def adapter(self) -> dict[str, Tensor]:
        """The chosen parameters by module path, such as ``blocks.3.attn.qkv.q.bias``; never the head's."""
        return dict(self.parameters)

    def packed(self) -> dict[str, Tensor]:
        """The chosen parameters and the head."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.trainable().items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        copy_into(self.trainable(), tensors)


class Probe(BaseTuning):
    """Trains the head alone; the network stays in evaluation mode, or drop-path would add noise to fixed features."""

    def set_mode(self) -> None:
        """Keep the network in evaluation mode."""
        self.net.eval()


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """Linear probe: the head on frozen features. Parameters: none beside the head.

    Licence: None needed: nobody's code is used.
    Not for: Tasks whose answer the frozen features lack, such as counts and angles; it is the floor of a
    comparison.
    """

    reads_features: ClassVar[bool] = True
    targets: Sequence[str] = ()
    lr: Positive | None = 1e-2

    def count(self, net: Backbone) -> int:
        return 0

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Freeze everything but the head."""
        return Probe(net, {})


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full fine-tuning. Parameters: all of the network's, 85,798,656 on ViT-B/16.

    Licence: None needed: nobody's code is used.
    Not for: Storing a network per task, or the rates of small updates: it takes a tenth of them.
    """

    targets: Sequence[str] = ()
    lr: Positive | None = 1e-4

    def count(self, net: Backbone) -> int:
        return sum(_own_sizes(net).values())

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Free everything that is the network's own.

        Raises:
            ConfigError: if some of it is held in 4 bits.
        """
        refuse_four_bits(net, self)
        return BaseTuning(net, pretrained_parameters(net.model))


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit (Ben Zaken et al., arXiv:2106.10199): every bias that the network has; nothing is added.

    The key projection's bias cannot matter: it adds the same to all scores of a query, which softmax removes.
    Parameters: one per output of every linear, convolution and norm, 102,912 on ViT-B/16.

    Licence: MIT (benzakenelad/BitFit).
    Not for: Networks without biases. Tasks far from the pretraining: it has no way to mix features anew.
    """

    targets: Sequence[str] = ()

    def count(self, net: Backbone) -> int:
        """The length of every bias outside the head."""
        return sum(size for name, size in _own_sizes(net).items() if name.endswith(".bias"))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Let the biases train, and freeze everything else but the head."""
        own = pretrained_parameters(net.model)
        return BaseTuning(net, {name: bias for name, bias in own.items() if name.endswith(".bias")})


def _own_sizes(net: Backbone) -> dict[str, int]:
    """Entries of each of the pretrained network's parameters outside the head, by its path at this moment."""
    head = set(map(id, net.head.parameters()))
    return {name: own.numel() for name, own in pretrained_parameters(net.model).items() if id(own) not in head}
