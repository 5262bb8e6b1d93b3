"""Installed: what a method became in one network, as training, storing and merging see it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import lightning as L
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError
from headwise.methods._named import check_names, copy_into
from headwise.network.backbone import Backbone
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.masking import HeadMasking
from headwise.updates.noise import Noise
from headwise.wrappers.quantized import QuantizedLinear
from headwise.wrappers.settling import BesideLinear
from headwise.wrappers.wrapping import Wrapper, wrappers

LAYER = "get_base_layer"
"""What a library's own layer around a projection (peft's) calls the way to it."""


@runtime_checkable
class Packs(Protocol):
    """A module that is stored in another form than its tensors: deltas, quantised layers."""

    optional: tuple[str, ...]

    def pack(self) -> dict[str, Tensor]:
        """The tensors that are stored, by name."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `pack` gave."""


@runtime_checkable
class Reshapes(Protocol):
    """A callback that changes in training what the network is: switches heads off, takes ranks away."""

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """First epoch, counted from 1, at whose end it has done so for the last time."""


class Installed:
    """A method at work in one network: everything training needs to know, asked by name of nothing.

    What a tensor is follows from the module that owns it. `owners` are the modules the method brought: deltas, or the
    wrappers' own parts. Their parameters and the head's train; everything else is frozen.

    Attributes:
        masking: of heads, if there is a gate.
        more: further callbacks of Lightning's.
        facts: what else the record of the phase says, plain data.
    """

    def __init__(self, net: Backbone, owners: Mapping[str, nn.Module]) -> None:
        self.net = net
        self.owners = dict(owners)
        self.masking: HeadMasking | None = None
        self.more: list[L.Callback] = []
        self.facts: dict[str, Any] = {}

    def freeze_rest(self) -> None:
        """Set every requires_grad of the network from `trainable`."""
        owned = {id(tensor) for tensor in self.trainable().values()}
        for parameter in self.net.parameters():
            parameter.requires_grad_(id(parameter) in owned)

    def head(self) -> dict[str, Tensor]:
        """The classifier's parameters under ``head.*``; they always train."""
        return {f"head.{name}": tensor for name, tensor in self.net.head.named_parameters()}

    def adapter(self) -> dict[str, Tensor]:
        """The method's own parameters by owner, ``s0.b3.q.A``; tied tensors once, under their first name."""
        named: dict[str, Tensor] = {}
        seen: set[int] = set()
        for owner, module in self.owners.items():
            for name, tensor in module.named_parameters():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[f"{owner}.{name}"] = tensor
        return named

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that the optimiser gets: the method's own and the head's."""
        return {**self.adapter(), **self.head()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs for exact resume: `trainable` and the owners' buffers (masks, allocator state)."""
        buffers = {
            f"{owner}.{name}": tensor
            for owner, module in self.owners.items()
            for name, tensor in module.state_dict().items()
            if name not in dict(module.named_parameters())
        }
        tied = {id(tensor) for tensor in self.trainable().values()}
        return {**self.trainable(), **{name: b for name, b in buffers.items() if id(b) not in tied}}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a saved `state` into the network.

        Raises:
            CheckpointError: naming what is missing, unexpected, or of another shape.
        """
        copy_into(self.state(), tensors)
        for module in self.owners.values():
            if isinstance(module, Delta):
                module.refresh()

    def packed(self) -> dict[str, Tensor]:
        """What is kept when the phase is over: the owners' tensors (a delta's `pack`), tied ones once, and the head."""
        stored: dict[str, Tensor] = {}
        seen: set[int] = set()
        for owner, module in self.owners.items():
            own = module.pack() if isinstance(module, Packs) else module.state_dict()
            for name, tensor in own.items():
                # tied tensors share storage; an empty one has the address 0, as every other empty one
                if not tensor.numel() or tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    stored[f"{owner}.{name}"] = tensor
        return {name: t.detach().cpu().contiguous() for name, t in {**stored, **self._stored_head()}.items()}

    def _stored_head(self) -> dict[str, Tensor]:
        """What is kept of the classifier under ``head.*``: its parameters, or the codes of a quantised one."""
        head = self.net.head
        return {f"head.{name}": t for name, t in head.pack().items()} if isinstance(head, Packs) else self.head()

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `packed` kept; CheckpointError naming what is missing, unexpected, or of another shape."""
        expected = self.packed()
        optional = {
            f"{owner}.{name}"
            for owner, module in self.owners.items()
            if isinstance(module, Packs)
            for name in module.optional
        }
        check_names(set(expected) - optional, set(tensors) - optional)
        head = {name: t for name, t in tensors.items() if name in self._stored_head()}
        if isinstance(self.net.head, Packs):
            self.net.head.unpack({name.removeprefix("head."): t for name, t in head.items()})
        else:
            copy_into(self.head(), head)
        for owner, module in self.owners.items():
            prefix = f"{owner}."
            own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
            if isinstance(module, Packs):
                try:
                    module.unpack(own)
                except CheckpointError as error:
                    raise CheckpointError(f"{owner}: {error}") from error
            else:
                target = {n: t for n, t in module.state_dict(keep_vars=True).items() if n in own}
                copy_into(target, own)

    def stored_bytes(self) -> int:
        """Payload bytes of the stored adapter, without the classifier and the file's header."""
        names = set(self._stored_head())
        return sum(tensor.nbytes for name, tensor in self.packed().items() if name not in names)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups: no weight decay for parameters that their owner lists in ``undecayed``.

        A group whose owner gives it ``rates`` has the factor of its learning rate under ``rate``.
        """
        # asked of every child: a part may hold the module that declares it, as a quantised bottleneck does
        settings = {
            id(tensor): (name not in getattr(child, "undecayed", ()), getattr(child, "rates", {}).get(name, 1.0))
            for module in self.owners.values()
            for child in module.modules()
            for name, tensor in child.named_parameters(recurse=False)
        }
        members: dict[tuple[bool, float], list[Tensor]] = {(True, 1.0): []}  # first, as checkpoints have it
        for parameter in self.trainable().values():
            members.setdefault(settings.get(id(parameter), (True, 1.0)), []).append(parameter)
        groups = []
        for (decays, rate), parameters in members.items():
            group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
            groups.append(group if rate == 1.0 else {**group, "rate": rate})
        return groups

    def penalty(self) -> Tensor | None:
        """A term to add to the loss (AdaLoRA's orthogonality), or None."""
        return None

    def disturbable(self) -> dict[nn.Module, int]:
        """Deltas, wrappers and a library's layers of this phase, each with the number, from 0, of the block it is in.

        What stands between blocks counts to the one before it, what stands before them to the first.

        Raises:
            ConfigError: if a wrapper knows no noise on what it adds.
        """
        starts = {path: number for number, (_, _, path) in enumerate(self.net.blocks)}
        found: dict[nn.Module, int] = {}
        number = 0
        for path, module in self.net.model.named_modules():
            number = starts.get(path, number)
            if isinstance(module, AdaptedLinear) or (isinstance(module, BesideLinear) and not module.settled):
                found[module.delta] = number
            elif isinstance(module, Wrapper) and not module.settled:
                if not module.disturbable:
                    raise ConfigError(
                        f"{path} is wrapped by a {type(module).__name__}, which knows no noise on what it adds; "
                        "allowed with consistency: wrappers that pass it through `disturbed` and set disturbable = True"
                    )
                found[module] = number
            elif hasattr(module, LAYER):
                found[module] = number
        return found

    def disturb(self, module: nn.Module, noise: Noise) -> Callable[[], None]:
        """Put noise on what one of the modules of `disturbable` adds; what is returned takes it away again."""
        if hasattr(module, LAYER):
            return module.register_forward_hook(functools.partial(_disturbed, noise)).remove
        module.noise = noise  # type: ignore[assignment]
        return functools.partial(setattr, module, "noise", None)

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """First epoch, counted from 1, at whose end nothing but the weights will change any more.

        What is measured before is not yet the network of this method: heads that are to go off are still on (Heart), or
        ranks that are to go are still there (AdaLoRA). No earlier epoch may be chosen.
        """
        declared = (callback.final_from for callback in self.callbacks() if isinstance(callback, Reshapes))
        return max((first(epochs, steps_per_epoch) for first in declared), default=1)

    def callbacks(self) -> list[L.Callback]:
        """Lightning callbacks of the method (Heart's mask, AdaLoRA's allocator)."""
        return [*self.more] if self.masking is None else [self.masking, *self.more]

    def set_mode(self) -> None:
        """Put the network into training mode; a probe of a frozen network keeps it in evaluation mode."""
        self.net.train()

    def merge(self) -> None:
        """Fold the update into the base weights; what cannot be folded stays in place, frozen."""
        for site in self.net.sites:
            module = self.net.linear(site)
            if isinstance(module, AdaptedLinear):
                self.net.replace(site, module.merged())
            elif isinstance(module, BesideLinear):
                module.settle()
                # updates that earlier phases left stand around the projection; what merges is the innermost
                while isinstance(module.module, BesideLinear):
                    module = module.module
                if isinstance(module.module, AdaptedLinear):
                    module.module = module.module.merged()
        # inner wrappers first: what stands around one may fold into the plain module that it becomes
        for path, wrapper in wrappers(self.net.model):
            plain = wrapper.merged()
            if plain is None:
                wrapper.settle()
            else:
                self.net.wrap(path, lambda _, plain=plain: plain)  # type: ignore[misc]
        if isinstance(self.net.head, QuantizedLinear):
            self.net.set_head(self.net.head.plain())
        self.net.requires_grad_(False)

    def report(self) -> dict[str, Any]:
        """Facts for the record of the phase, plain data (active heads, chosen ranks)."""
        return {**({} if self.masking is None else self.masking.report()), **self.facts}


def _disturbed(noise: Noise, layer: Any, arguments: tuple[Any, ...], y: Tensor) -> Tensor | None:
    """The output of a library's layer with noise on what it changes; its projection is computed once more for that."""
    if not layer.training:
        return None
    plain: Tensor = layer.get_base_layer()(*arguments)
    return plain + noise(y - plain)
