"""adapt: a method in anybody's network, for anybody's training loop; written to a folder and read back.

Nothing of hydra or Lightning is needed. What installs, merges and stores is what ``train.py`` uses.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from headwise.artifacts.classifier import Classifier, OwnClasses
from headwise.artifacts.shelf import Shelf
from headwise.artifacts.standing import classify_with, network_of
from headwise.data.preparation import Preparation
from headwise.errors import ConfigError
from headwise.methods._fitting import fitted, fitting, rehearse
from headwise.methods.base import Batches, Installed, Method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.given import body_content, plain_of, resize_of, sharing
from headwise.protocol.described import described
from headwise.storage import atomic
from headwise.training.address import write_tensors

RECORD = "adapter.json"
FORMAT = "headwise-adapter/1"
OF_A_RUN = ("epochs", "lr", "cycles", "checkpoint")
"""Fields of methods that only a run reads: a loop of the user's own decides how long and how fast it trains."""
Pairs = Iterable[tuple[Tensor, Tensor]]


@dataclass
class Stage:
    """One phase of an adapted network.

    Attributes:
        plan: what it learned of network and images before.
        tensors: of a phase that is over, as they are stored.
    """

    method: Method
    plan: dict[str, Any] | None = None
    tensors: dict[str, Tensor] | None = None


class Adapted(Classifier):
    """A network with a method in it: an ordinary module, of which `trainable_parameters` train.

    Attributes:
        stages: the phases of the method.
        phase: number of the one that trains, from 0.
        installed: the method of that phase at work.
    """

    def __init__(
        self,
        net: Backbone,
        methods: Sequence[Method],
        class_names: Sequence[str],
        spec: BackboneSpec | None,
        bare: Backbone | None = None,
        content: str | None = None,
    ) -> None:
        """Nothing is installed yet; `headwise.adapt` does that.

        Args:
            net: with its classifier.
            class_names: in the order of the logits.
            spec: of a network that has a name.
            bare: the network over the same tensors without the method's classifier, see `Shelf`.
            content: of the network, if it is known.
        """
        names = tuple(str(name) for name in class_names)
        task = OwnClasses(net.head.out_features, names)
        if names and len(names) != task.num_classes:
            raise ConfigError(f"{len(names)} class_names for a classifier of {task.num_classes} classes")
        super().__init__(net, task, Preparation(net.img_size, resize_of(net), net.mean, net.std), spec=spec)
        self.stages, self.phase = [Stage(method) for method in methods], -1
        self.content = content or body_content(net)
        self.shelf = Shelf(bare)
        self.installed: Installed

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a probe of a frozen network keeps that in evaluation mode."""
        super().train(mode)
        if mode and self.phase >= 0:
            self.installed.set_mode()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for net in self.shelf.nets():
            net._apply(fn, recurse)
        return self

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, sorted; the one that the network came with is ``default``."""
        return self.shelf.names

    @property
    def in_use(self) -> str | None:
        """Name of the adapter whose logits the network gives; None: none, the bare network."""
        return self.shelf.name

    def load_adapter(self, folder: str | Path, name: str, trust: str | Iterable[str] = ()) -> None:
        """Read one more adapter over the same pretrained weights, which are not copied; `use` switches to it.

        Args:
            folder: that `save` wrote, or in peft's format; of the same network.
            name: to be chosen by.
            trust: as for `headwise.load`.

        Raises:
            HeadwiseError: for a name that is taken, a damaged folder, or one of another network.
        """
        from headwise.artifacts.adapterfolder import read_beside

        self.shelf.check_new(name)
        self.shelf.lay(name, read_beside(Path(folder), self.shelf.base(), self.content, trust)._parts())

    def use(self, name: str | None) -> Self:
        """Answer, train, merge and save with this adapter from now on; None is the network without any.

        Each keeps its parameters, so an optimiser of one that was laid down still fits when it is taken again.

        Raises:
            ConfigError: for a name that is not there.
        """
        if name != self.in_use:
            if name is None:
                bare = self.shelf.base()
                task = OwnClasses(getattr(bare.head, "out_features", 0))
                parts = {"stages": [], "phase": -1, "task": task, "installed": Installed(bare, {}), "net": bare}
                self.shelf.laid.setdefault(None, parts)
            for part, value in self.shelf.swap(name, self._parts()).items():
                setattr(self, part, value)
            self.train(self.training)
        return self

    def _parts(self) -> dict[str, Any]:
        """What belongs to the adapter in use."""
        return {name: getattr(self, name) for name in ("net", "stages", "phase", "task", "installed")}

    @property
    def stage(self) -> Stage:
        """The phase that trains.

        Raises:
            ConfigError: while the bare network is in use.
        """
        if self.phase < 0:
            raise ConfigError(f"no adapter is in use; use(NAME) takes one: {', '.join(self.adapters)}")
        return self.stages[self.phase]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The update's parameters and the classifier's: what an optimiser gets. Everything else is frozen.

        Raises:
            ConfigError: where some of them have a rate of their own (LoRA+), which a list cannot say.
        """
        trained = self.installed.trainable() if self.stage else {}
        if self.stage and any("rate" in group for group in self.installed.param_groups(0.0)):
            raise ConfigError(
                f"method {self.stage.method.label} trains some parameters at another rate; give the optimiser "
                "param_groups(weight_decay, lr)"
            )
        return [tensor for tensor in trained.values() if isinstance(tensor, nn.Parameter)]

    def param_groups(self, weight_decay: float, lr: float | None = None) -> list[dict[str, Any]]:
        """The same for an optimiser with weight decay, which some parameters must not have (DoRA's magnitudes).

        Args:
            weight_decay: of those that have one.
            lr: needed where some parameters have a rate of their own, a multiple of it (LoRA+'s B).

        Raises:
            ConfigError: if it is needed and not given.
        """
        groups = self.installed.param_groups(weight_decay) if self.stage else []
        for group in groups:
            if (rate := group.pop("rate", None)) is not None:
                if lr is None:
                    raise ConfigError(
                        f"method {self.stage.method.label} trains some parameters at {rate:g} times the rate; "
                        "say which: param_groups(weight_decay, lr)"
                    )
                group["lr"] = rate * lr
        return groups

    def choose_heads(self, batches: Pairs) -> None:
        """Switch off the heads that the gate chooses, after as many epochs of warm-up as you like.

        It looks at batches of normalised images and labels, usually the whole training set.

        Raises:
            ConfigError: if there is no gate that scores, or its heads are chosen.
        """
        masking = self.installed.masking
        if masking is None or masking.is_done:
            raise ConfigError(f"method {self.stage.method.label} has no heads to choose now")
        masking.decide(self.net, batches)

    def next_phase(self, batches: Pairs | None = None) -> None:
        """End a phase: its update is merged, the next one's is installed. Make a new optimiser afterwards.

        Raises:
            ConfigError: after the last phase, or if heads are not chosen yet.
        """
        if self.phase + 1 >= len(self.stages):
            raise ConfigError(f"{self.stage.method.label} is the last of {len(self.stages)} phases")
        if self.phase >= 0:
            self._check_chosen()
            self.stage.tensors = self.installed.packed()
            self.installed.merge()
        stage = self.stages[self.phase + 1]
        if stage.method.scout() is not None:
            raise ConfigError(f"method {stage.method.label} searches first, which is left to headwise.train")
        with fitting(self.net, stage.method):
            stage.plan = stage.method.prepare(self.net, _batches(stage.method, batches), 0)
        self.install(stage)

    def install(self, stage: Stage) -> None:
        """Begin a phase; what its plan says was learned before.

        Raises:
            ConfigError: for a method that steers its own training.
        """
        self.installed = fitted(stage.method, self.net, stage.plan)
        if self.phase < 0:
            self.shelf.keep_apart(self.installed)
        others = [one for one in self.installed.callbacks() if one is not self.installed.masking]
        if others or self.installed.penalty() is not None:
            raise ConfigError(
                f"method {stage.method.label} steers its own training ({type(others[0]).__name__ if others else 'loss'}"
                "), which a loop of your own would not let it; use headwise.train"
            )
        self.phase += 1
        self.train(self.training)

    def merge(self) -> nn.Module:
        """A plain timm module with the update in its weights, frozen, in evaluation mode; this network stays as it is.

        Raises:
            CheckpointError: for a method that stays in place. ConfigError: if heads are not chosen yet.
        """
        self._check_chosen()
        other = copy.deepcopy(self.installed)
        other.merge()
        return plain_of(other.net)

    def _check_chosen(self) -> None:
        masking = self.installed.masking
        if masking is not None and not masking.is_done:
            raise ConfigError(
                f"method {self.stage.method.label} has not chosen its heads: call choose_heads(batches) "
                "when its warm-up is over"
            )

    def save(self, folder: str | Path) -> Path:
        """Write what was trained to a folder: safetensors and JSON. The network's own weights are not in it.

        Returns:
            The folder, which `headwise.load` reads.
        """
        place, phases, current = Path(folder), [], self.stage
        for index, stage in enumerate(self.stages):
            tensors = stage.tensors if index < self.phase else self.installed.packed() if stage is current else None
            sha = None if tensors is None else write_tensors(place / f"phase-{index + 1}.safetensors", tensors)
            spec = stage.method.spec()
            phases.append({"label": stage.method.label, "method": spec, "plan": stage.plan, "sha256": sha})
        record = {
            "format": FORMAT,
            "content": self.content,
            "network": str(self.net.provenance.get("timm_name")),
            "backbone": None if self.spec is None else dataclasses.asdict(self.spec),
            "num_classes": self.task.num_classes,
            "class_names": list(self.task.class_names),
            "phases": phases,
        }
        atomic.write_json(place / RECORD, record)
        return place


def adapt(
    model: nn.Module | str,
    method: str | Method = "head_lora",
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    weights: str | Path | None = None,
    img_size: int | None = None,
    batches: Pairs | None = None,
    **fields: Any,
) -> Adapted:
    """Put a method into a network.

        net = headwise.adapt("vit_base_patch16_224.augreg_in21k", "head_lora", rank=3, num_classes=10)
        optimizer = torch.optim.AdamW(net.trainable_parameters(), lr=1e-3)

    Attention stays as timm computes it. In bf16 on a CPU torch's fused attention is several times slower than plain
    products, most of all backward: `timm.layers.set_fused_attn(False)` before a network is made avoids it there.

    Args:
        model: a timm module, which is copied, or a name: timm's, or one of conf/backbone.
        method: name of a file of conf/method, whose values are the defaults, or a `Method` of your own.
        num_classes: of a fresh classifier; None keeps that of a module that was given.
        class_names: in the order of the logits; they say `num_classes` as well.
        weights: of a name: ``auto`` (pretrained), ``none`` (random) or a file; None: as the name has them.
        img_size: of a name: side of the square input; None: as the name has it.
        batches: normalised images and labels of the training set, for methods that look at them first (SPT-LoRA).
        fields: of the method, as on the command line: ``rank=3``, ``targets=["q", "v"]``, ``gate="heart"``. Of a method
            of two phases ``first`` and ``heads``: another method's name, or fields of the one that stands there.

    Returns:
        The adapted network in training mode, in the first phase of the method.

    Raises:
        ConfigError: for an unknown name or field (with the nearest spelling), or what does not fit the network.
        WeightsError: if pretrained weights cannot be had.
    """
    methods = _phases(method, fields)
    for phase in methods:
        if phase.consistency is not None:
            raise ConfigError(
                f"consistency of method {phase.label} is of the training step, which is yours here; leave it out"
            )
    num_classes = len(class_names) if num_classes is None and class_names else num_classes
    if isinstance(model, str) and num_classes is None:
        raise ConfigError(f"num_classes must be given: {model!r} is a network without a classifier of yours")
    net, spec = network_of(model, weights, img_size)
    bare = sharing(net)
    classify_with(net, num_classes)
    rehearse(net, methods)
    adapted = Adapted(net, methods, class_names, spec, bare)
    adapted.next_phase(batches)
    return adapted.train()


def _phases(method: str | Method, fields: Mapping[str, Any]) -> tuple[Method, ...]:
    if not isinstance(method, str):
        if fields:
            raise ConfigError(f"{next(iter(fields))} belongs to the method, which was given whole; set it there")
        return tuple(method.phases())
    for name in OF_A_RUN:
        if fields.get(name) is not None:
            raise ConfigError(
                f"{name}={fields[name]!r} means nothing to adapt: your training loop decides; leave it out"
            )
    return tuple(_built(described(method, fields)).phases())


def _built(node: Mapping[str, Any]) -> Any:
    """The method of a configuration of conf/, and those within it."""
    module, _, name = str(node["_target_"]).rpartition(".")
    options = {
        key: _built(value) if isinstance(value, Mapping) and {"_target_", "label"} <= value.keys() else value
        for key, value in node.items()
        if not re.fullmatch("_[a-z]+_", key)
    }
    return getattr(importlib.import_module(module), name)(**options)


def _batches(method: Method, given: Pairs | None) -> Batches:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        if given is None:
            raise ConfigError(f"method {method.label} looks at training images first: give batches of (images, labels)")
        yield from given

    return batches
