"""Adapters in the peft library's format, out and in: on timm's own network, whose q, k and v are one projection.

Of a fused projection peft knows one A (r, I) and one B (3 d, r). Updates of q, k and v that have factors of their own
are laid side by side: A of all of them, r = 3 R, and B with zeros outside of their rows. Per-head updates are BdLoRA,
whose B is block-diagonal by heads: r = 3 H R. Nothing of peft is needed.

Legend: I, O features, H heads, R rank of one update, d rows of q.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwise.artifacts.adapting import Adapted
from headwise.errors import CheckpointError, ConfigError
from headwise.methods.base import Method
from headwise.methods.dora import DoRA, DoRADelta
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.given import around, sharing
from headwise.storage import atomic, plain
from headwise.training.address import read_tensors, write_tensors
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import PROJECTIONS, QKV, Site

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


def module_of(net: Backbone, site: Site) -> str:
    """Path of a projection in timm's own network: ``blocks.0.attn.qkv``."""
    path = net.path(site).removeprefix("model.")
    return path.rpartition(".")[0] if site.proj in QKV else path


def write_peft(adapted: Adapted, folder: str | Path) -> Path:
    """Write a LoRA, DoRA or per-head update as a folder for ``peft.PeftModel.from_pretrained(timm_model, folder)``.

    Raises:
        ConfigError: for any other update, or one over phases that are merged already.
    """
    net, label = adapted.net, adapted.stage.method.label
    if adapted.phase:
        raise ConfigError(
            f"{label} stands on a phase that is merged, which peft's base network would lack; use merge()"
        )
    groups: dict[str, dict[str, AdaptedLinear]] = {}
    for site in net.sites:
        linear = net.linear(site)
        if isinstance(linear, AdaptedLinear):
            if not isinstance(linear.delta, LowRank | DoRADelta) or linear.delta.updates_bias:
                raise ConfigError(
                    f"peft has no form for {label} ({type(linear.delta).__name__}); allowed: LoRA, DoRA, HeadLoRA"
                )
            groups.setdefault(module_of(net, site), {})[site.proj] = linear
    if not groups:
        raise ConfigError(f"peft has no form for {label}; allowed: LoRA, DoRA and HeadLoRA")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    blocks = set()
    for module, parts in groups.items():
        named, nblocks = _written(net, module, parts)
        blocks.add(nblocks)
        ranks[module] = named["lora_A.weight"].shape[0]
        tensors |= {f"{PREFIX}{module}.{name}": tensor for name, tensor in named.items()}
    if len(blocks) > 1:
        raise ConfigError(f"peft's BdLoRA has one number of blocks for all layers; {label} has {sorted(blocks)}")
    head = next(name for name, module in net.model.named_modules() if module is net.head)
    tensors |= {f"{PREFIX}{head}.{name}": tensor for name, tensor in net.head.named_parameters()}
    nblocks = blocks.pop()
    first = next(iter(ranks.values()))
    config = {
        "peft_type": "LORA",
        "r": first,
        "lora_alpha": first,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != first},
        "alpha_pattern": {module: rank for module, rank in ranks.items() if rank != first},
        "target_modules": sorted(groups),
        "modules_to_save": [head],
        "use_dora": any(name.endswith("magnitude_vector") for name in tensors),
        "inference_mode": True,
        "use_bdlora": None if nblocks == 1 else {"target_modules_bd_b": ["qkv"], "nblocks": nblocks},
    }
    write_tensors(Path(folder) / TENSORS, tensors, {"format": "pt"})
    atomic.write_json(Path(folder) / CONFIG, config)
    return Path(folder)


@torch.no_grad()
def _written(net: Backbone, module: str, parts: Mapping[str, AdaptedLinear]) -> tuple[dict[str, Tensor], int]:
    """Peft's tensors of one module, and the number of blocks of its B; 1 if that is dense."""
    names = QKV if set(parts) <= set(QKV) else tuple(parts)
    some = next(iter(parts.values()))
    given: Any = some.delta.factors()
    num_groups, rank, num_inputs = given.down.shape
    num_rows = some.out_features
    # (G R, I) and (G, O // G, R) of each; a projection without an update has zeros
    downs, ups, sizes = [], [], []
    for proj in names:
        linear = parts.get(proj)
        factors: Any = None if linear is None else linear.delta.factors()
        downs.append(
            given.down.new_zeros(num_groups * rank, num_inputs) if factors is None else factors.down.flatten(0, 1)
        )
        ups.append(given.up.new_zeros(given.up.shape) if factors is None else factors.up)
        plain_linear: Any = linear or net.linear(
            next(s for s in net.sites if s.proj == proj and module_of(net, s) == module)
        )
        norms = plain_linear.weight.float().square().sum(dim=1).sqrt()
        if linear is not None and isinstance(linear.delta, DoRADelta):
            norms = torch.where(linear.delta.gate().bool(), linear.delta.magnitude, norms)
        sizes.append(norms)
    if num_groups > 1:
        up = torch.cat([up.reshape(num_rows, rank) for up in ups])  # (3 O, R): what BdLoRA keeps of its blocks
    else:
        up = torch.block_diag(*(up[0] for up in ups))
    named = {"lora_A.weight": torch.cat(downs), "lora_B.weight": up}
    if isinstance(some.delta, DoRADelta):
        named["lora_magnitude_vector"] = torch.cat(sizes)
    return named, num_groups * len(names) if num_groups > 1 else 1


def read_peft(folder: Path, model: nn.Module) -> Adapted:
    """A LoRA, DoRA or BdLoRA adapter of peft, put into the timm network that it was trained on.

    Layers may have ranks and scales of their own (``rank_pattern``, ``alpha_pattern``): smaller ones are filled up with
    zeros, which no gradient reaches, and the scale goes into B.

    Raises:
        CheckpointError: for a damaged folder, or an adapter of another network. ConfigError: for one of another kind.
    """
    net = around(model)
    return put_peft(Path(folder), net, sharing(net))


def put_peft(
    folder: Path, net: Backbone, bare: Backbone, spec: BackboneSpec | None = None, content: str | None = None
) -> Adapted:
    """The same, put into `net` itself; `bare`, `spec` and `content` are as for `Adapted`."""
    config = _config(folder)
    tensors = read_tensors(folder / TENSORS, "save it again")
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    _fill_head(folder, net, own)
    modules = {name.removesuffix(DOWN) for name in own if name.endswith(DOWN)}
    sites = [site for site in net.sites if module_of(net, site) in modules]
    if not sites or {module_of(net, site) for site in sites} != modules:
        raise CheckpointError(
            f"{folder}: its modules {sorted(modules)[:3]} are not those of {type(net.model).__name__}"
        )
    if any(tensor.ndim != 2 for name, tensor in own.items() if name.endswith((DOWN, UP))):
        raise CheckpointError(f"{folder / TENSORS} holds factors that are no matrices")
    has = {DOWN, UP, MAGNITUDE} if config.get("use_dora") else {DOWN, UP}
    if odd := sorted(set(own) ^ {f"{module}{name}" for module in modules for name in has}):
        raise ConfigError(f"{folder}: tensors such as {odd[0][:80]!r} are not read, or are missing")
    paths = {site: module_of(net, site) for site in sites}
    method, scales = _method(folder, config, own, paths)
    adapted = Adapted(net, [method], (), spec, bare, content)
    adapted.next_phase()
    for site, module in paths.items():
        linear: Any = net.linear(site)
        try:
            _fill(linear.delta, site, own, module, method, scales[module] / method.scale)
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: {module} is of another shape than in the network here") from error
    return adapted


def _fill_head(folder: Path, net: Backbone, own: dict[str, Tensor]) -> None:
    """Take the classifier out of the tensors into the network; where there is none, the network's own stays."""
    if not isinstance(net.model.get_classifier(), nn.Linear):  # type: ignore[operator]
        heads = sorted(name for name in own if name.endswith(".weight") and ".lora_" not in name and own[name].ndim)
        if len(heads) != 1:
            raise ConfigError(f"{folder} holds no classifier, and the network has none")
        net.new_head(len(own[heads[0]]))
    name = next(name for name, module in net.model.named_modules() if module is net.head)
    parts = {part: own.pop(f"{name}.{part}") for part in ("weight", "bias") if f"{name}.{part}" in own}
    if not parts:
        return
    weight, bias = parts.get("weight"), parts.get("bias")
    if weight is None or bias is None or bias.ndim != 1 or weight.shape != (len(bias), net.head.in_features):
        raise CheckpointError(f"{folder}: its classifier is not one of {net.head.in_features} features with a bias")
    like = next(net.parameters())
    net.new_head(len(weight))
    net.head.to(like.device, like.dtype).load_state_dict(parts)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = plain.read_json(folder / CONFIG)
        plain.mapping(config, "it")
        for key in ("r", "lora_alpha"):
            plain.number(config.get(key), key)
        if (blocks := config.get("use_bdlora")) is not None:
            plain.mapping(blocks, "use_bdlora")
            plain.count(blocks.get("nblocks"), "use_bdlora.nblocks")
        for key in ("alpha_pattern", "rank_pattern"):
            plain.maybe(plain.mapping)(config.get(key), key)
            for value in (config.get(key) or {}).values():
                plain.number(value, key)
    except plain.Misfit as error:
        raise CheckpointError(f"{folder / CONFIG} is no configuration of an adapter: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{folder}: adapters of peft's type {str(config.get('peft_type'))[:40]!r} are not read; allowed: LORA"
        )
    if config.get("bias") not in (None, "none"):
        raise ConfigError(f"{folder}: bias={str(config['bias'])[:40]} is not read")
    return dict(config)


def _method(
    folder: Path, config: Mapping[str, Any], own: Mapping[str, Tensor], paths: Mapping[Site, str]
) -> tuple[LoRA | DoRA | HeadLoRA, dict[str, float]]:
    """The method whose rank is the largest of all layers, and the scale of each module."""
    targets = [proj for proj in PROJECTIONS if proj in {site.proj for site in paths}]
    ranks = {module: len(own[f"{module}{DOWN}"]) for module in paths.values()}
    scales = {}
    for module, rank in ranks.items():
        stated = _of_pattern(folder, config, "rank_pattern", module, config["r"])
        if rank != stated or not rank:
            raise CheckpointError(f"{folder}: {module} has the rank {rank}, and {CONFIG} says {stated:g}")
        alpha = _of_pattern(folder, config, "alpha_pattern", module, config["lora_alpha"])
        scales[module] = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    rank, scale = max(ranks.values()), scales[max(ranks, key=lambda module: ranks[module])] or 1.0
    if blocks := config.get("use_bdlora"):
        num = blocks["nblocks"]
        heads = {site.num_heads for site in paths}
        if set(targets) != set(QKV) or heads != {num // 3} or num % 3 or any(rank % num for rank in ranks.values()):
            raise ConfigError(f"{folder}: a BdLoRA of {num} blocks is no update of {sorted(heads)} heads")
        return HeadLoRA(label="peft_bdlora", rank=rank // num, targets=targets, scale=scale), scales
    kind = DoRA if config.get("use_dora") else LoRA
    label = "peft_dora" if config.get("use_dora") else "peft_lora"
    return kind(label=label, rank=rank, targets=targets, scale=scale), scales


def _of_pattern(folder: Path, config: Mapping[str, Any], key: str, module: str, usual: float) -> float:
    """What a pattern says of a module, as peft reads it; `usual` where it says nothing.

    peft takes each key for a regular expression of the path's end. Of a file that somebody sent only paths are taken,
    any other expression is refused.
    """
    for pattern, value in (config.get(key) or {}).items():
        if not re.fullmatch(r"\^?\w+(\\?\.\w+)*", pattern):
            raise ConfigError(
                f"{folder}: {key} {pattern[:40]!r} is not read; allowed: the path of a module, or its end"
            )
        path = pattern.replace("\\", "")
        if module == path.removeprefix("^") or (path[0] != "^" and module.endswith(f".{path}")):
            return float(value)
    return usual


@torch.no_grad()
def _fill(delta: Any, site: Site, own: Mapping[str, Tensor], module: str, method: Method, ratio: float) -> None:
    """Put peft's tensors into the update of one projection: its third of a fused one, zeros beyond their rank.

    Args:
        delta: with A (G, R, I) and B (G, O // G, R).
        ratio: of the module's scale to that of the method.
    """
    down, up = own[f"{module}{DOWN}"], own[f"{module}{UP}"]
    index, parts = (QKV.index(site.proj), 3) if site.proj in QKV else (0, 1)
    up = up.chunk(parts)[index]
    if isinstance(method, HeadLoRA):
        down = down.chunk(parts)[index]
    num_groups, _, num_inputs = delta.A.shape
    down = down.reshape(num_groups, -1, num_inputs)
    up = up.reshape(num_groups, delta.B.shape[1], down.shape[1])
    delta.A.zero_()[:, : down.shape[1]] = down
    delta.B.zero_()[..., : down.shape[1]] = up.to(delta.B) * ratio
    if isinstance(method, DoRA):
        delta.magnitude.copy_(own[f"{module}{MAGNITUDE}"].chunk(parts)[index])
    delta.refresh()
