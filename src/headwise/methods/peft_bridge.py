"""Any peft config as a method: peft's layers on the split projections, merged by peft when the phase ends.

Legend: O, I features, R rank.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._adalora import ADAPTER, schedule
from headwise.methods._passes import mean_gradients
from headwise.methods._peftconfig import (
    REFUSALS,
    build_config,
    check_config,
    is_adalora,
    is_lora_ga,
    starts_off,
    strict,
)
from headwise.methods._peftinstalled import PeftInstalled as PeftInstalled
from headwise.methods._peftinstalled import base_of
from headwise.methods._peftsizes import size_of
from headwise.methods.base import Batches, Installed, Method, Plan, as_asked, per_projection
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Positive
from headwise.schema.peftfields import PeftConfig
from headwise.updates.sites import PROJECTIONS, Site, select

NOMINAL_STEPS = 1000
"""Length of the run that an AdaLoRA is laid out for that is taken from a checkpoint, or installed without a plan."""
LORA_GA: Plan = {"start": "gradients"}
"""Plan of a LoRA-GA whose gradients have been taken."""
GRADIENT = "_peft_loraga_grad"
"""Where peft looks for the gradient of a projection, as its own ``preprocess_loraga`` leaves it."""


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Method):
    """A method of the peft library on our projections; its layers are called one by one, not fused. Not gateable.

    Licence: Apache-2.0 (huggingface/peft), whose layers compute it.
    Not for: Head gates, which need updates of our own; speed, since the layers are called one by one.

    Attributes:
        config: ``_target_`` (``peft.LoraConfig``) and the fields of that config, plain data. AdaLoRA's ``total_step``
            is filled in; its ``tinit`` and ``tfinal`` may be fractions of the run (floats below 1).
        targets: projections to adapt; [] leaves the choice to ``config.target_modules``.
        adapter_lr: peak learning rate of the update alone, above 0, scheduled like the head's; None takes the head's.
    """

    config: PeftConfig
    adapter_lr: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self.config)

    @property
    def identity_tolerance(self) -> float:  # type: ignore[override]
        """A config that draws its update at random instead of starting it at zero (FourierFT does) starts off it."""
        return 10.0 if starts_off(self.config) else Method.identity_tolerance

    def spec(self) -> dict[str, Any]:
        """As `Method.spec`; a learning rate that the update does not have is left out."""
        values = super().spec()
        if self.adapter_lr is None:
            del values["adapter_lr"]
        return values

    def count(self, net: Backbone, plan: Plan | None = None) -> int:
        """That of the config at each projection, see `size_of`."""
        each, shared = size_of(self.config)
        return per_projection(net, self.targets, each) + shared

    def rehearse(self, net: Backbone) -> None:
        """There are no gradients yet for LoRA-GA to start from; everything else is as it will be."""
        as_asked(self, self.install(net, LORA_GA if is_lora_ga(self.config) else None))

    def prepare(self, net: Backbone, batches: Batches, num_steps: int) -> Plan | None:
        """The number of steps for AdaLoRA, whose budget falls over the whole run; gradients for LoRA-GA's start.

        The gradients are left at the projections, where peft looks for them.
        """
        if is_adalora(self.config):
            return {"num_steps": num_steps or NOMINAL_STEPS}
        if not is_lora_ga(self.config):
            return None
        paths = {module: name for name, module in net.model.named_modules()}
        sites = {paths[net.linear(site)]: site for site in net.sites}
        reached = list(_reached(self._configure(net, sites, LORA_GA), net, sites))
        weights: list[nn.Parameter] = [net.linear(site).weight for site in reached]  # type: ignore[misc]
        # as peft's preprocess_loraga takes them; that counts calls of each projection by hooks, and q, k and v are not
        # called one by one here
        for site, gradient in zip(reached, mean_gradients(net, weights, batches()), strict=True):
            setattr(net.linear(site), GRADIENT, gradient)
        return dict(LORA_GA)

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Let peft replace the projections.

        Raises:
            ConfigError: for an unknown config or field, targets that match nothing, anything that is not an attention
                or MLP projection (the patch embedding, the head, norms), or an update that peft cannot merge.
        """
        paths = {module: name for name, module in net.model.named_modules()}
        sites = {paths[net.linear(site)]: site for site in net.sites}
        config = self._configure(net, sites, plan)
        # some starts (PiSSA, LoRA-GA) subtract themselves from the weight; the difference tells which projections
        before = {site: weight.clone() for site, weight in _reached(config, net, sites).items()}
        # SHiRA builds sparse tensors in every step; torch warns until somebody says whether they are to be checked
        torch.sparse.check_sparse_tensor_invariants.disable()
        try:
            with strict():
                tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](net.model, config, adapter_name=ADAPTER)
        except KeyError as error:
            raise ConfigError(f"peft cannot install {self.config['_target_']}: it needs {error}") from error
        except REFUSALS as error:
            raise ConfigError(f"peft cannot install {self.config['_target_']}: {error}") from error
        layers = {site: module for site in net.sites if isinstance(module := net.linear(site), BaseTunerLayer)}
        _check_merges(self.config["_target_"], layers.values())
        moves = is_lora_ga(self.config)  # without gradients, as of a finished phase, nothing has moved yet
        moved = [s for s, layer in layers.items() if moves or not torch.equal(base_of(layer).weight, before[s])]
        num_steps = None if plan is None else plan.get("num_steps")
        installed = PeftInstalled(net, tuner, layers, moved, num_steps, self.adapter_lr)
        _check_owned(net, installed)
        installed.freeze_rest()
        return installed

    def _configure(self, net: Backbone, sites: Mapping[str, Site], plan: Plan | None) -> Any:
        """The peft config of this network."""
        values = dict(self.config)
        given = values.get("target_modules")
        if given is not None and self.targets:
            raise ConfigError(
                f"both method.targets={list(self.targets)} and config.target_modules={given!r} are given; "
                "choose one: method.targets=[] leaves the choice to config.target_modules"
            )
        if given == "all-linear":
            values["target_modules"] = list(sites)
        elif given is None:
            chosen = set(select(net.sites, self.targets))
            values["target_modules"] = [name for name, site in sites.items() if site in chosen]
        if given in (None, "all-linear") and values.get("layers_to_transform") is not None:
            raise ConfigError(
                "config.layers_to_transform chooses among the names of config.target_modules: give those, such as "
                "[q,v], with method.targets=[]"
            )
        if is_lora_ga(self.config) and plan is None:
            raise ConfigError(
                f"method {self.label!r} starts from gradients (LoRA-GA): it needs the plan that its prepare() makes "
                "from the training data"
            )
        if is_adalora(self.config):
            values |= schedule(values, NOMINAL_STEPS if plan is None else plan["num_steps"])
        return build_config(values)


def _reached(config: Any, net: Backbone, sites: Mapping[str, Site]) -> dict[Site, Tensor]:
    """The weights, (O, I), of the projections that peft would adapt by its matching; ConfigError for none or others."""
    reached = [name for name, _ in net.model.named_modules() if name and check_target_module_exists(config, name)]
    given = config.target_modules
    shown = given if isinstance(given, str) else sorted(given)[:3]
    allowed = f"allowed: the projections {', '.join(PROJECTIONS)} of the blocks"
    if not reached:
        raise ConfigError(f"config.target_modules={shown!r} matches no module of this network; {allowed}")
    strays = [name for name in reached if name not in sites]
    if strays:
        raise ConfigError(f"config.target_modules={shown!r} reaches {', '.join(strays[:3])}; {allowed}")
    weights = {}
    for site in (sites[name] for name in reached):
        module = net.linear(site)
        if not isinstance(module, nn.Linear):
            raise ConfigError(f"{site.key} is a {type(module).__name__}, which peft cannot adapt; {allowed}")
        weights[site] = module.weight.detach()
    return weights


def _check_merges(target: str, layers: Iterable[nn.Module]) -> None:
    """Fold a copy of the first layer: what peft cannot fold is a ConfigError before it trains."""
    # one stands for all, since one config has made them
    for layer in itertools.islice(layers, 1):
        trial: Any = copy.deepcopy(layer)
        try:
            trial.merge()
        except REFUSALS as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(
                f"{target} makes an update that cannot be folded into the weights ({reason}); "
                "allowed: configs of peft whose layers merge"
            ) from error


def _check_owned(net: Backbone, installed: PeftInstalled) -> None:
    """What peft wants to train must lie in its layers, be something at all, and the head must still be ours."""
    if not installed.adapter():
        raise ConfigError("this peft config trains nothing (config.inference_mode, or a rank of 0 everywhere?)")
    owned = {id(tensor) for tensor in installed.state().values()}
    for name, parameter in net.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in owned:
            raise ConfigError(f"this peft config trains {name}, outside of its own layers; leave that option out")
    if any(isinstance(module, BaseTunerLayer) for module in net.head.modules()):
        raise ConfigError("this peft config wraps the head, which always trains as it is; leave that option out")
