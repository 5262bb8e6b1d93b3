"""Method: a recipe for adapting a network."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._installed import Installed as Installed
from headwise.methods._installed import Packs as Packs
from headwise.network.backbone import Backbone
from headwise.schema import targets
from headwise.schema.check import check_fields
from headwise.schema.effective import effective_method
from headwise.schema.kinds import Count, Positive, Text
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.consistency import Consistency
from headwise.updates.gate import Gate
from headwise.updates.masking import HeadMasking
from headwise.updates.sites import HEADED, Site
from headwise.wrappers.settling import BesideLinear

Plan = dict[str, Any]
"""What `Method.prepare` learned before installing: plain data that JSON can hold."""
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives normalised images (B, 3, S, S) and labels, (B,) or (B, K), of the training set in order, every image once."""


_DECLARED = "gateable: ClassVar[bool] = True"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe, built by Hydra from conf/method/<name>.yaml. Cheap, immutable, holds no tensors.

    A method with a ``scale`` (any constant factor of its update) has it checked here: 0 would train nothing.

    Attributes:
        label: names the run's folder and the table's row.
        targets: projections to adapt, of q, k, v, o, fc1, fc2. A class whose default is () has places of its own, and
            takes none.
        epochs: of this phase; None takes the protocol's.
        lr: peak learning rate of this phase; None takes the protocol's.
        cycles: times that the schedule runs over this phase, each with its warm-up, over an equal part of `epochs` and
            with a fresh state of the optimiser.
        checkpoint: a saved phase to start from instead of training, or None.
        gate: heads to switch off: a mode (``heart``), fields of `headwise.updates.gate.Gate`, or None for no gate.
        consistency: noise on what it adds, and equal answers under it (PACE): a mode (``pace``), fields of
            `headwise.updates.consistency.Consistency`, or None for none.
        revision: raised when the method's numbers change; part of the fingerprint.
    """

    label: Text
    targets: Sequence[str] = ("q", "v")
    epochs: Count | None = None
    lr: Positive | None = None
    cycles: Count = 1
    checkpoint: Text | None = None
    gate: Mapping[str, Any] | str | None = None
    consistency: Mapping[str, Any] | str | None = None
    revision: Count = 1

    merges: ClassVar[bool] = True
    """Whether the update folds into the base weights without a trace."""
    identity_tolerance: ClassVar[float] = 1e-5
    """Largest change of any logit at installation; above the default, the method declares that it starts off zero."""
    networks: ClassVar[tuple[str, ...]] = ("vit", "swin", "eva", "beit", "swinv2")
    """Families of networks it is defined for; `install` raises ConfigError on any other."""
    gateable: ClassVar[bool] = False
    """Whether heads of its update can be switched off: its deltas call `Delta.have_heads` and multiply by `Delta.gate`.
    Inserted parts (a `Wrapper`) have no heads."""
    reads_features: ClassVar[bool] = False
    """Whether the network before the classifier stays as it is: what it makes of an image is then computed once."""
    written: ClassVar[Mapping[str, str]] = {}
    """Fields that a run writes out in full before it is named, each with the dotted name of the class that reads it: by
    ``of(value)`` and ``spec()``, and without torch. A plain dictionary: it is read from the source."""

    later: ClassVar[Mapping[str, Any]] = {}
    """Fields that came when results were there already, each with the value at which it does nothing. There it is no
    part of what a run is, so that those results keep their address. A plain dictionary: it is read from the source."""

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"{name} of method {self.label!r}")
        scale = getattr(self, "scale", 1.0)
        if isinstance(scale, int | float) and not (math.isfinite(scale) and scale):
            raise ConfigError(f"scale of method {self.label!r} must be a finite number other than 0, got {scale}")
        if self.cycles > 1 and (not self.epochs or self.epochs % self.cycles):
            raise ConfigError(
                f"cycles of method {self.label!r} must divide its epochs, got {self.cycles} for {self.epochs} epochs"
            )
        gate = self.gating()
        # written out in full, so that two spellings of one gate are one method with one address
        object.__setattr__(self, "gate", None if gate is None else gate.spec())
        consistency = Consistency.of(self.consistency)
        object.__setattr__(self, "consistency", None if consistency is None else consistency.spec())
        if self.targets and not type(self).targets:  # of a dataclass the attribute of the class is the default
            raise ConfigError(
                f"method {self.label!r} does not choose projections, got targets={list(self.targets)}; allowed: []"
            )

    def gating(self) -> Gate | None:
        """The gate, checked.

        Raises:
            ConfigError: if it is not one, or this method's update has no heads to switch off.
        """
        gate = Gate.of(self.gate)
        if gate is not None and not self.gateable:
            raise ConfigError(
                f"method {self.label} ({type(self).__name__}) has no gate on its heads, got gate={gate.mode}; allowed: "
                f"methods of the classes {', '.join(_gateable())}, and classes of your own that set gateable = True"
            )
        return gate

    def count(self, net: Backbone) -> int:
        """Tunable parameters in closed form, without the head, from the sizes of the network alone.

        It builds nothing, so that the tests can hold what was declared against what is installed. A method whose
        `prepare` makes a plan is given that too: ``count(net, plan)``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not declare how many parameters it trains: count(net)")

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
        as_asked(self, self.install(net))

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
        return self.put(net, self.build_all(net.bases(self.targets)))

    def put(self, net: Backbone, deltas: Mapping[Site, Delta]) -> Installed:
        """Put deltas into `net`, with the gate if one is asked for, and freeze everything else."""
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
            # with every head on: the paper's formula takes its share of this size
            whole = installed.stored_bytes()
            installed.masking = HeadMasking(gate, deltas, functools.partial(_base_at, net), whole)
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
        asked = self.gating()
        gate = None if asked is None else asked.effective()
        if gate is None or not gate.is_scored or self.checkpoint:
            return None
        # the choice comes after the warm-up, but what is kept of its last batch is part of its checkpoint
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
        """The recipe as plain data: ``_target_`` and every field but the label, which changes no number.

        Of its gate, and of fields that came later, only what can change one, see `headwise.schema.effective`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "label"}
        values = {name: value for name, value in values.items() if name not in self.later or value != self.later[name]}
        if self.gating() is None:
            del values["gate"]
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **effective_method(_plain(values))}


def _base_at(net: Backbone, site: Site) -> Tensor:
    """The frozen weight of one projection. As a partial it goes with a copy of the network; a closure would not."""
    return net.bases([site.proj])[site]


def as_asked(method: Method, installed: Installed) -> Installed:
    """What a method installed, once it is known that a gate or noise which was asked for is at work in it.

    Raises:
        ConfigError: if an `install` of the method's own has left the gate out: the run would train with every head on;
            or if there is nothing whose change noise could disturb.
    """
    if method.consistency is not None and not installed.disturbable():
        raise ConfigError(
            f"method {method.label} ({type(method).__name__}) adds nothing to the network that noise could disturb, "
            "got consistency; allowed: methods with updates of projections or inserted parts"
        )
    if method.gating() is not None and installed.masking is None:
        raise ConfigError(
            f"method {method.label} ({type(method).__name__}) sets gateable = True, and its own install leaves the "
            "gate out; allowed: the Installed that Method.install gives, or one that takes over its masking"
        )
    return installed


def _gateable() -> list[str]:
    """Classes of this package that declare gates, read from their source: importing all would load peft as well."""
    names = []
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(line) == _DECLARED for line in node.body):
                names.append(node.name)
    return names


def check_heads(method: Method, site: Site) -> None:
    """Check that parts of a projection belong to heads.

    Raises:
        ConfigError: for fc1 and fc2.
    """
    if site.head_axis is None:
        raise ConfigError(
            f"method {method.label!r} updates what heads own, and {site.key} has no heads; "
            f"targets of {type(method).__name__} are among {', '.join(HEADED)}"
        )


def per_projection(net: Backbone, targets: Sequence[str], cost: Callable[[int, int, int], int]) -> int:
    """Sum of ``cost(O, I, H)`` over the projections in `targets`: rows, columns and heads of each."""
    return sum(cost(base.shape[0], base.shape[1], site.num_heads) for site, base in net.bases(targets).items())


def per_head(net: Backbone, targets: Sequence[str], rank: int) -> int:
    """Parameters of an update of `rank` for every head: r' (H I + O) per projection, r' (H O + I) of o."""
    return sum(rank * site.per_head_size(base.shape) for site, base in net.bases(targets).items())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


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
