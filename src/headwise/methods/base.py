"""Method: a recipe for adapting a network. Installed: what it became in one network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning as L
from torch import Tensor, nn

from headwise import targets
from headwise.adapted import AdaptedLinear, BesideLinear, Delta
from headwise.backbone import Backbone
from headwise.errors import CheckpointError, ConfigError
from headwise.gate import Gate
from headwise.gating import HeadMasking
from headwise.named import check_names, copy_into
from headwise.quantized import QuantizedLinear
from headwise.schema.check import check_fields
from headwise.schema.kinds import Count, Positive, Text
from headwise.sites import Site
from headwise.wrapping import wrappers

Plan = dict[str, Any]
"""What `Method.prepare` found out before installing: plain data that JSON can hold."""
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives normalised images (B, 3, S, S) and labels (B,) of the training set in a fixed order, every image once."""


@runtime_checkable
class Packs(Protocol):
    """A module that is stored in another form than its tensors: deltas, quantised layers."""

    optional: tuple[str, ...]

    def pack(self) -> dict[str, Tensor]:
        """What is stored."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore it."""


class Installed:
    """A method at work in one network: everything training needs to know, asked by name of nothing.

    What a tensor is follows from the module that owns it. `owners` are the modules the method brought: deltas, or the
    wrappers' own parts. Their parameters and the head's train; everything else is frozen.
    """

    def __init__(self, net: Backbone, owners: Mapping[str, nn.Module]) -> None:
        self.net = net
        self.owners = dict(owners)
        self.masking: HeadMasking | None = None

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
        """What the optimiser gets."""
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
                if not tensor.numel() or tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    stored[f"{owner}.{name}"] = tensor
        return {name: t.detach().cpu().contiguous() for name, t in {**stored, **self._stored_head()}.items()}

    def _stored_head(self) -> dict[str, Tensor]:
        """What is kept of the classifier under ``head.*``: its parameters, or the codes of a quantised one."""
        head = self.net.head
        return {f"head.{name}": t for name, t in head.pack().items()} if isinstance(head, Packs) else self.head()

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `packed` kept.

        Raises:
            CheckpointError: naming what is missing, unexpected, or of another shape.
        """
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
        """Optimiser groups; parameters that their owner lists in ``undecayed`` get no weight decay."""
        undecayed = {
            id(tensor)
            for module in self.owners.values()
            for child in module.modules()
            for name, tensor in child.named_parameters(recurse=False)
            if name in getattr(child, "undecayed", ())
        }
        parameters = list(self.trainable().values())
        decayed = [p for p in parameters if id(p) not in undecayed]
        groups = [{"params": decayed, "weight_decay": weight_decay}]
        rest = [p for p in parameters if id(p) in undecayed]
        return [*groups, {"params": rest, "weight_decay": 0.0}] if rest else groups

    def penalty(self) -> Tensor | None:
        """A term to add to the loss (AdaLoRA's orthogonality), or None."""
        return None

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """First epoch, counted from 1, at whose end nothing but the weights will change any more.

        What is measured before is not yet the network of this method: heads that are to go off are still on (Heart), or
        ranks that are to go are still there (AdaLoRA). No earlier epoch may be chosen.

        Args:
            epochs: of the phase.
            steps_per_epoch: optimiser steps.
        """
        return 1 if self.masking is None else self.masking.final_from(epochs)

    def callbacks(self) -> list[L.Callback]:
        """Lightning callbacks of the method (Heart's mask, AdaLoRA's allocator)."""
        return [] if self.masking is None else [self.masking]

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
        for path, wrapper in wrappers(self.net.model):
            plain = wrapper.merged()
            if plain is None:
                wrapper.settle()
            else:
                self.net.wrap(path, functools.partial(_instead, plain))
        if isinstance(self.net.head, QuantizedLinear):
            self.net.set_head(self.net.head.plain())
        self.net.requires_grad_(False)

    def report(self) -> dict[str, Any]:
        """Facts for the record of the phase, plain data (active heads, chosen ranks)."""
        return {} if self.masking is None else self.masking.report()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe, built by Hydra from conf/method/<name>.yaml. Cheap, immutable, holds no tensors.

    A method with a ``scale`` (any constant factor of its update) has it checked here: 0 would train nothing.

    Attributes:
        label: names the run's folder and the table's row.
        targets: projections to adapt, of q, k, v, o, fc1, fc2.
        epochs: of this phase; None takes the protocol's.
        lr: peak learning rate of this phase; None takes the protocol's.
        checkpoint: a saved phase to start from instead of training, or None.
        gate: heads to switch off: a mode (``heart``), fields of `headwise.gate.Gate`, or None for no gate.
        revision: raised when the method's numbers change; part of the fingerprint.
    """

    label: Text
    targets: Sequence[str] = ("q", "v")
    epochs: Count | None = None
    lr: Positive | None = None
    checkpoint: Text | None = None
    gate: Mapping[str, Any] | str | None = None
    revision: Count = 1

    merges: ClassVar[bool] = True
    """Whether the update folds into the base weights without a trace."""
    identity_tolerance: ClassVar[float] = 1e-5
    """Largest change of any logit at installation; above the default, the method declares that it starts off zero."""
    networks: ClassVar[tuple[str, ...]] = ("vit", "swin")
    """Families of networks it is defined for; `install` raises ConfigError on any other."""
    gateable: ClassVar[bool] = False
    """Whether heads of its update can be switched off: its deltas multiply it by a buffer ``active``."""

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"{name} of method {self.label!r}")
        check_factor(self.label, "scale", getattr(self, "scale", 1.0))
        gate = self.gating()
        object.__setattr__(self, "gate", None if gate is None else gate.spec())

    def gating(self) -> Gate | None:
        """The gate, checked.

        Raises:
            ConfigError: if it is not one, or this method's update has no heads to switch off.
        """
        gate = Gate.of(self.gate)
        if gate is not None and not self.gateable:
            raise ConfigError(
                f"method {self.label} ({type(self).__name__}) has no gate on its heads, got gate={gate.mode}; allowed: "
                "lora, pissa, dora, cara, head_lora, bi_lora; not methods from peft or in wrapped modules"
            )
        return gate

    def build(self, site: Site, base: Tensor) -> Delta:
        """The delta of one projection; base is its weight, (O, I). The one thing most methods write."""
        raise NotImplementedError(f"{type(self).__name__} defines neither build, build_all nor install")

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """The deltas of all target projections; override to share factors between them (CaRA, FacT)."""
        return {site: self.build(site, base) for site, base in bases.items()}

    def rehearse(self, net: Backbone) -> None:
        """Find out, on a copy of the network, whether `install` will refuse it once earlier phases have trained.

        Raises:
            ConfigError: what `install` would raise.
        """
        self.install(net)

    def prepare(self, net: Backbone, batches: Batches, num_steps: int) -> Plan | None:
        """Look at the network and the training data before installing (SPT's sensitivities); None needs nothing.

        Args:
            net: with the head of this run.
            batches: see `Batches`.
            num_steps: optimiser steps the phase will take.
        """
        return None

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put the update into `net` and freeze everything else.

        Raises:
            ConfigError: where the method does not fit this network.
        """
        deltas = self.build_all(net.bases(self.targets))
        for site, delta in deltas.items():
            module = net.linear(site)
            if isinstance(module, nn.Linear):
                net.replace(site, AdaptedLinear.around(module, delta))
            else:
                net.replace(site, BesideLinear(module, delta))
        installed = Installed(net, {site.key: delta for site, delta in deltas.items()})
        installed.freeze_rest()
        gate = self.gating()
        if gate is not None:
            whole = installed.stored_bytes()
            installed.masking = HeadMasking(gate, deltas, lambda site: net.bases([site.proj])[site], whole)
        return installed

    def trunk(self, epochs: int) -> tuple[dict[str, Any], int] | None:
        """What runs share that differ only in which heads they switch off: the warm-up.

        Args:
            epochs: of the whole phase.

        Returns:
            The recipe without the gate's choices (but for what is kept of the last batch, if that is scored), and the
            epochs of the warm-up; None where heads are not scored.

        Raises:
            ConfigError: if the warm-up leaves no epoch.
        """
        gate = self.gating()
        if gate is None or not gate.is_scored or self.checkpoint:
            return None
        observed = gate.score_data if gate.score_data == "last_batch" else None
        return {**self.spec(), "gate": observed}, gate.warmup_epochs(epochs)

    def scout(self) -> Method | None:
        """A method that a run trains first, on the search's splits, to find out this one's fields (NOAH's subnet)."""
        return None

    def after(self, report: Mapping[str, Any]) -> Method:
        """This method with what its scout reported."""
        return self

    def phases(self) -> tuple[Method, ...]:
        """The phases of a run, in order; each ends by merging."""
        return (self,)

    def spec(self) -> dict[str, Any]:
        """The recipe as plain data: ``_target_`` and every field but the label, which changes no number."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "label"}
        if self.gate is None:
            del values["gate"]
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **_plain(values)}


def _instead(plain: nn.Module, wrapper: nn.Module) -> nn.Module:
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def check_factor(label: str, name: str, value: Any) -> None:
    """Check a number that multiplies the whole update: with 0 nothing would ever train.

    Raises:
        ConfigError: if it is 0 or not finite.
    """
    if isinstance(value, int | float) and not (math.isfinite(value) and value):
        raise ConfigError(f"{name} of method {label!r} must be a finite number other than 0, got {value}")


def build_method(spec: Mapping[str, Any], label: str, trust: Iterable[str] = ()) -> Method:
    """The method a `Method.spec` describes.

    Args:
        spec: ``_target_`` and fields, plain data.
        label: of the method.
        trust: modules of the user's own whose methods may be named as well.

    Raises:
        ConfigError: if ``_target_`` names no Method of headwise or of a trusted module, or the fields do not fit it.
    """
    labelled = {**spec, "label": label} if isinstance(spec, Mapping) else spec
    own = functools.partial(targets.below, Path(__file__).parent, __name__.rpartition(".")[0], Method)
    return targets.build(labelled, own, lambda kind: issubclass(kind, Method), "a method", trust)
