"""What a config of peft became in one network: its layers, what of them is stored, and how it folds in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._adalora import ADAPTER, Allocator
from headwise.methods._named import check_names, copy_into
from headwise.methods.base import Installed
from headwise.network.backbone import Backbone
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import Site


def base_of(layer: nn.Module) -> Any:
    """The projection inside of a peft layer."""
    return layer.get_base_layer()  # type: ignore[operator]


def _own(layer: nn.Module) -> dict[str, Tensor]:
    """Tensors of a peft layer but for those of the projection inside, live."""
    inside = {id(tensor) for tensor in base_of(layer).state_dict(keep_vars=True).values()}
    return {name: t for name, t in layer.state_dict(keep_vars=True).items() if id(t) not in inside}


class PeftInstalled(Installed):
    """peft's layers in one network, named by site: ``s0.b3.q.lora_A.default.weight``.

    Where an initialisation changed the projection itself (PiSSA: W minus the start's update), the start is kept too, as
    ``s0.b3.q.start.*``: on another machine the residual is then moved to the one that was trained beside.
    """

    def __init__(
        self,
        net: Backbone,
        tuner: BaseTuner,
        layers: Mapping[Site, nn.Module],
        moved: Iterable[Site],
        num_steps: int | None,
        adapter_lr: float | None = None,
    ) -> None:
        super().__init__(net, {})
        self.tuner, self.layers = tuner, dict(layers)
        self.num_steps, self.adapter_lr = num_steps, adapter_lr
        for layer in self.layers.values():
            # peft makes its layers in training mode, whatever mode the network is in
            layer.train(base_of(layer).training)
        self._trained = {id(p) for layer in self.layers.values() for p in layer.parameters() if p.requires_grad}
        self._starts = {site: {n: t.detach().clone() for n, t in _own(layers[site]).items()} for site in moved}
        self.allocator = Allocator(tuner, self.layers) if isinstance(tuner, AdaLoraModel) else None

    def _tensors(self) -> dict[str, Tensor]:
        """Everything peft brought, live; what several layers share once."""
        named: dict[str, Tensor] = {}
        seen: set[int] = set()
        for site, layer in self.layers.items():
            for name, tensor in _own(layer).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[f"{site.key}.{name}"] = tensor
        return named

    def _start_tensors(self) -> dict[str, Tensor]:
        return {f"{site.key}.start.{n}": t for site, start in self._starts.items() for n, t in start.items()}

    def adapter(self) -> dict[str, Tensor]:
        """Those of peft's tensors that train."""
        return {name: tensor for name, tensor in self._tensors().items() if id(tensor) in self._trained}

    def state(self) -> dict[str, Tensor]:
        """All of peft's tensors, the head, and AdaLoRA's averages and ranks."""
        extra = self.allocator.state() if self.allocator else {}
        return {**self._tensors(), **self._start_tensors(), **extra, **self.head()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._load(self.state(), tensors)
        if self.allocator:
            self.allocator.restore()

    def packed(self) -> dict[str, Tensor]:
        """All of peft's tensors and the head; of AdaLoRA the kept ranks only."""
        stored = {**self._tensors(), **self._start_tensors()}
        if self.allocator:
            stored = self.allocator.trim(stored)
        return {name: t.detach().cpu().contiguous() for name, t in {**stored, **self.head()}.items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        if self.allocator:
            check_names(self.packed(), tensors)
            tensors = self.allocator.spread(tensors, self._tensors())
        self._load({**self._tensors(), **self._start_tensors(), **self.head()}, tensors)

    @torch.no_grad()
    def _load(self, live: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Copy; where the start that is loaded differs from the one that was computed here, correct the residual."""
        before = {site: {n: t.clone() for n, t in start.items()} for site, start in self._starts.items()}
        copy_into(live, tensors)
        for site, computed in before.items():
            loaded = self._starts[site]
            if any(not torch.equal(loaded[name], tensor) for name, tensor in computed.items()):
                layer = self.layers[site]
                base_of(layer).weight.data += _update_of(layer, computed) - _update_of(layer, loaded)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """As for every method, DoRA's magnitudes undecayed, and the update at its own learning rate if it has one."""
        parts = [module for layer in self.layers.values() for module in layer.modules()]
        magnitudes = {id(p) for part in parts if isinstance(part, DoraLinearLayer) for p in part.parameters()}
        if self.adapter_lr is None and not magnitudes:
            return super().param_groups(weight_decay)
        rate = {} if self.adapter_lr is None else {"lr": self.adapter_lr}
        own = list(self.adapter().values())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in own if id(p) not in magnitudes], "weight_decay": weight_decay, **rate},
            {"params": [p for p in own if id(p) in magnitudes], "weight_decay": 0.0, **rate},
            {"params": list(self.head().values()), "weight_decay": weight_decay},
        ]
        return [group for group in groups if group["params"]]

    def penalty(self) -> Tensor | None:
        """AdaLoRA's orthogonality term; None for every other config."""
        return self.allocator.penalty() if self.allocator else None

    def callbacks(self) -> list[L.Callback]:
        """AdaLoRA's rank allocation; ConfigError if it was installed without the plan of `PeftMethod.prepare`."""
        if self.allocator is None:
            return []
        if self.num_steps is None:
            raise ConfigError("AdaLoRA must know the number of training steps: install it with the plan of prepare()")
        return [self.allocator]

    def merge(self) -> None:
        """Let peft fold its updates in and leave, then lay q, k and v out in one storage again."""
        self.tuner.merge_and_unload()
        # peft leaves three weights, (d, d), each in storage of its own: joined they are one GEMM again
        for module in self.net.model.modules():
            if isinstance(module, SplitQKV):
                module.join()
        self.net.requires_grad_(False)

    def report(self) -> dict[str, Any]:
        """AdaLoRA's rank of every projection."""
        return {"ranks": self.allocator.ranks()} if self.allocator else {}


def _update_of(layer: nn.Module, values: Mapping[str, Tensor]) -> Tensor:
    """The dense update, (O, I), that a peft layer would make with other values of its tensors."""
    own = _own(layer)
    kept = {name: tensor.detach().clone() for name, tensor in own.items()}
    # peft forms an update from the layer's own tensors: they hold the other values during the call
    copy_into(own, values)
    update: Tensor = layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
    copy_into(own, kept)
    return update
