"""NOAH (Zhang et al., arXiv:2206.04673): prompts, LoRA and an adapter in every block, sized by a search per task.

Block l has p_l prompts (at the end of the sequence, in place of earlier ones), LoRA of rank r_l on q, k and v with one
A, and an adapter of width w_l on the MLP's output: m + U drop(quick_gelu(D m)), outside drop-path; 0 leaves a part out,
and the prompts of the block before stay. A subnet is sought in two stages, a supernet trained with a random subnet each
step on train800 and an evolution on val200, and then retrained from the pretrained weights. The nineteen subnets that
were published are part of the package (paper/noah_subnets.csv, from the authors' configuration files).

The search (``method.search=evolution``) trains a supernet, every part at its largest size; then breeds subnets for
their accuracy on val200 without training, the smaller of equal ones first; then retrains the best one. Test images
choose nothing. The supernet is a phase of its own, and the record holds the subnet and each generation's best
accuracy. Open or broken in the authors' code, and chosen here: sizes {1, 5, 10} as the published subnets have, where
the script names {5, 10, 50, 100}; depths as shares (the script's 3, 6, 9 and 12 of 12 blocks, though every published
subnet has all 12); a mutation draws depths and sizes, where the script draws depths alone; a
supernet as wide as the largest size, where the script's is 100 wide whatever the space.

Legend: C channels.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._evolution import Evolution, Subnet
from headwise.methods._structural import blocks, install_parts, place, require_plain_positions, require_vit, width_of
from headwise.methods._supernet import SlicedBottleneck, SlicedLowRank, SlicedPrompts, SubnetSearch
from headwise.methods.base import Installed, Method, Plan
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Rate
from headwise.updates.adapted import Delta
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import QKV, Site
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.prompting import Prompted, Prompts, chain
from headwise.wrappers.wrapping import After, check_block

KINDS = ("prompt_tokens", "lora_rank", "adapter_width")
INITS = ("default", "upstream")
SUPER_PROMPTS = 100
"""Prompts of a block of the authors' supernet."""


def published_subnets() -> dict[str, Subnet]:
    """The subnets by task: sizes of each of `KINDS`, block by block (12)."""
    file = importlib.resources.files("headwise") / "paper" / "noah_subnets.csv"
    subnets: dict[str, Subnet] = {}
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        sizes = [int(row[f"block{index}"]) for index in range(len(row) - 2)]
        subnets.setdefault(row["task"], {})[row["module"]] = sizes
    return subnets


def num_parameters(subnet: Subnet, width: int) -> int:
    """Parameters of a subnet at C = `width`: C per prompt, 4 C per rank, 2 C w + w + C per adapter of width w."""
    prompts, ranks, adapters = (subnet[kind] for kind in KINDS)
    return sum(
        width * (p + 4 * r) + (2 * width * w + w + width if w else 0)
        for p, r, w in zip(prompts, ranks, adapters, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class NOAH(Method):
    """A NOAH subnet, retrained; only its LoRA merges, the rest stays in place. Starts off the identity. ViT only.

    Parameters: `num_parameters`; ViT-B/16: 360,134 on average over the 19 tasks.
    Init: prompts and adapters Xavier uniform, LoRA Kaiming and zero. ``init=upstream`` starts as the authors' code:
    prompts are a leading slice of the supernet's, which are drawn as one (1, `super_prompts`, C) tensor, so within
    sqrt(6 / (C `super_prompts` + C)), 0.0088 for 100 and C = 768; and an initialisation of the whole model that runs
    last leaves LoRA's and the adapters' matrices normal with std 0.02.

    Licence: MIT (ZhangYuanhan-AI/NOAH).
    Not for: New tasks without a search (method.search=evolution), which costs far more than training. Swin.

    Attributes:
        task: whose published subnet to take; a task without one (few-shot) takes `default`.
        default: size of prompts, ranks and adapters in every block; 5 is the middle of the search space {1, 5, 10}.
        subnet: sizes of prompt_tokens, lora_rank and adapter_width, one per block, 0 for none; goes before `task`.
        dropout: of prompts and of both hiddens, in [0, 1).
        init: ``default`` or ``upstream``.
        super_prompts: prompts of a block of the authors' supernet; 100 in all of their configurations. Read with
            ``init=upstream`` only, and at least as many as any block has.
        search: fields of `headwise.methods._evolution.Evolution`, or the word ``evolution`` for its defaults: a run
            then finds the subnet itself, before `subnet` and `task`; None does not.

    A published subnet has twelve blocks; a network of L takes the sizes of blocks floor(12 i / L). What was used is in
    the record of the phase.
    """

    targets: Sequence[str] = QKV
    task: str | None = None
    default: Count = 5
    subnet: Mapping[str, Sequence[int]] | None = None
    dropout: Rate = 0.1
    init: str = "default"
    super_prompts: Count = SUPER_PROMPTS
    search: Mapping[str, Any] | str | None = None
    written: ClassVar[Mapping[str, str]] = {"search": "headwise.methods._evolution.Evolution"}
    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 10.0
    networks: ClassVar[tuple[str, ...]] = ("vit",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        if self.search is not None:
            object.__setattr__(self, "search", Evolution.of(self.search).spec())

    def scout(self) -> Method | None:
        """The supernet, if a search is to choose the subnet."""
        if self.search is None:
            return None
        recipe = Evolution.of(self.search)
        return Supernet(
            label="noah_supernet",
            search=recipe.spec(),
            dropout=self.dropout,
            init=self.init,
            super_prompts=self.super_prompts,
            epochs=recipe.epochs,
            lr=recipe.lr,
        )

    def spec(self) -> dict[str, Any]:
        """As `Method.spec`; the size of the authors' supernet only where it is read."""
        return _read(super().spec())

    def after(self, report: Mapping[str, Any]) -> Method:
        """This method with the subnet that the supernet reports."""
        return replace(self, subnet=report["subnet"], search=None)

    def sizes(self, num_blocks: int) -> tuple[Subnet, str]:
        """The subnet for a network of `num_blocks`, and where it comes from.

        Raises:
            ConfigError: if `subnet` lacks a kind, has another number of blocks, a size below 0, or no part at all.
        """
        if self.subnet is not None:
            given = {kind: list(self.subnet.get(kind, ())) for kind in KINDS}
            for kind, sizes in given.items():
                if len(sizes) != num_blocks or min(sizes, default=0) < 0:
                    raise ConfigError(f"subnet.{kind} of NOAH must be {num_blocks} sizes of at least 0, got {sizes}")
            if not any(map(any, given.values())):
                raise ConfigError(
                    "the subnet of NOAH has no part, its sizes are all 0; the head alone is method=linear"
                )
            return given, "given"
        published = published_subnets().get(self.task or "")
        if published is None:
            return {kind: [self.default] * num_blocks for kind in KINDS}, "default"
        total = len(published["lora_rank"])
        picked = {
            kind: [sizes[total * i // num_blocks] for i in range(num_blocks)] for kind, sizes in published.items()
        }
        return picked, f"published for {self.task}"

    def count(self, net: Backbone) -> int:
        keys = [key for key, _, _ in blocks(net)]
        return num_parameters(self.sizes(len(keys))[0], width_of(net, keys[0]))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put deltas at q, k and v, wrap every block, the end of its MLP branch, and the final norm.

        Raises:
            ConfigError: on a network that is no ViT, for sizes out of range, or while `search` is still to be done.
        """
        require_vit(net, self)
        require_plain_positions(net, self)
        if self.search is not None:
            raise ConfigError(
                f"method {self.label!r} has a search, which a run does first: headwise.protocol.search.explore"
            )
        subnet, source = self.sizes(len(list(blocks(net))))
        owners = dict(super().install(net, plan).owners)
        parts, _ = _insert(net, subnet, self.dropout, Prompts, Bottleneck)
        owners |= parts
        if self.init == "upstream":
            _upstream(owners.values(), self.super_prompts)
        installed = install_parts(net, owners)
        installed.facts = {"subnet": {**subnet, "source": source}}
        return installed

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """LoRA of each block's rank, one A for q, k and v; none at rank 0."""
        ranks = self.sizes(1 + max(site.block for site in bases))[0]["lora_rank"]
        used = {site: base for site, base in bases.items() if ranks[site.block]}
        return _one_a(used, lambda site, base: LowRank(site, base, ranks[site.block], dropout=self.dropout))


class SupernetInstalled(Installed):
    """Every part at its largest, and one subnet of it in use."""

    def __init__(
        self, net: Backbone, owners: Mapping[str, nn.Module], wrappers: Sequence[Prompted], recipe: Evolution
    ) -> None:
        super().__init__(net, owners)
        self.wrappers = list(wrappers)
        self.keys = [key for key, _, _ in blocks(net)]
        width = width_of(net, self.keys[0])
        cost = functools.partial(num_parameters, width=width)
        self.searching = SubnetSearch(recipe, KINDS, len(self.keys), cost, self.use)
        self.more = [self.searching]
        self.freeze_rest()

    def use(self, subnet: Subnet) -> None:
        """Let every part of the network work at the sizes of this subnet."""
        live = 0
        for index, key in enumerate(self.keys):
            prompts, rank, width = (subnet[kind][index] for kind in KINDS)
            owners: dict[str, Any] = self.owners
            owners[f"{key}.prompts"].used, owners[f"{key}.adapter"].used = prompts, width
            for proj in QKV:
                owners[f"{key}.{proj}"].used = rank
            # where a block has none of its own, those before pass on; the next block that has some replaces them
            self.wrappers[index].replaced = live if prompts else 0
            live = prompts or live
        self.wrappers[-1].replaced = live

    def report(self) -> dict[str, Any]:
        """The subnet that the search chose, and how; nothing before."""
        best = self.searching.evolved
        if best is None:
            return super().report()
        recipe = self.searching.recipe.spec()
        facts = {"parameters": best.cost, "num_tried": best.num_tried, "best": best.best, "recipe": recipe}
        return {**super().report(), "subnet": best.subnet, "evolution": facts}


@dataclass(frozen=True, kw_only=True)
class Supernet(Method):
    """Every part of NOAH at its largest; the network is thrown away once it has told the best subnet.

    Attributes:
        search: fields of `headwise.methods._evolution.Evolution`.
        dropout: of prompts and of both hiddens, in [0, 1).
        init, super_prompts: as of NOAH.
    """

    targets: Sequence[str] = QKV
    search: Mapping[str, Any] = field(default_factory=dict)
    dropout: Rate = 0.1
    init: str = "default"
    super_prompts: Count = SUPER_PROMPTS
    merges: ClassVar[bool] = False
    identity_tolerance: ClassVar[float] = 10.0
    networks: ClassVar[tuple[str, ...]] = ("vit",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        object.__setattr__(self, "search", Evolution.of(self.search).spec())

    def spec(self) -> dict[str, Any]:
        """As `Method.spec`; the start only where it is the authors'."""
        return _read(super().spec(), "init")

    def count(self, net: Backbone) -> int:
        """Those of the largest subnet, `num_parameters`."""
        keys = [key for key, _, _ in blocks(net)]
        largest = [max(Evolution.of(self.search).sizes)] * len(keys)
        return num_parameters(dict.fromkeys(KINDS, largest), width_of(net, keys[0]))

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """As NOAH, at the largest size everywhere; ConfigError on a network that is no ViT, or for wrong sizes."""
        require_vit(net, self)
        require_plain_positions(net, self)
        recipe = Evolution.of(self.search)
        owners = dict(super().install(net, plan).owners)
        whole = {kind: [max(recipe.sizes)] * len(list(blocks(net))) for kind in KINDS}
        parts, wrappers = _insert(net, whole, self.dropout, SlicedPrompts, SlicedBottleneck)
        owners |= parts
        if self.init == "upstream":
            _upstream(owners.values(), self.super_prompts)
        return SupernetInstalled(net, owners, wrappers, recipe)

    def build_all(self, bases: Mapping[Site, Tensor]) -> dict[Site, Delta]:
        """LoRA of the largest rank, one A for q, k and v."""
        rank = max(Evolution.of(self.search).sizes)
        return _one_a(bases, lambda site, base: SlicedLowRank(site, base, rank, self.dropout))


def _check(method: NOAH | Supernet) -> None:
    if set(method.targets) != set(QKV):
        raise ConfigError(f"NOAH's LoRA adapts q, k and v together, got targets={list(method.targets)}")
    check_choice("init", method.init, INITS, f" of method {method.label!r}")


def _one_a(bases: Mapping[Site, Tensor], build: Callable[[Site, Tensor], Any]) -> dict[Site, Delta]:
    """Deltas that share the A of their block."""
    deltas: dict[Site, Delta] = {}
    first: dict[int, Any] = {}
    for site, base in bases.items():
        delta = build(site, base)
        # q, k and v read the same x, so one A (1, r, d) stands for the fused projection's
        delta.A = first.setdefault(site.block, delta).A
        deltas[site] = delta
    return deltas


def _insert(
    net: Backbone, subnet: Subnet, dropout: float, prompts_of: type[Prompts], adapter_of: type[Bottleneck]
) -> tuple[dict[str, nn.Module], list[Prompted]]:
    """Put in prompts and adapters; the new modules by owner, and the wrappers of the blocks and of the final norm."""
    members = list(blocks(net))
    owners: dict[str, nn.Module] = {}
    wrappers: list[Prompted] = []
    # prompts that an earlier phase left at the end of each block's sequence; the new ones stand before them
    live = [sum(w.count for w in chain(block) if w.at_end) for _, _, block in members]
    previous = 0
    for index, (key, path, block) in enumerate(members):
        check_block(block)
        width = width_of(net, key)
        count, hidden = subnet["prompt_tokens"][index], subnet["adapter_width"][index]
        prompts = prompts_of(count, width, math.sqrt(6.0 / (count + width)), dropout) if count else None
        if prompts is not None:
            owners[f"{key}.prompts"] = prompts
        if hidden:
            adapter = adapter_of(width, hidden, activation="quick_gelu", bias=True, dropout=dropout, init="xavier")
            owners[f"{key}.adapter"] = adapter
            place(net, f"{path}.drop_path2", functools.partial(After, part=adapter))
        if prompts is not None:
            wrappers.append(_prompt(net, path, prompts, live[index - 1] if index else 0, previous))
            previous = count
    if previous:
        wrappers.append(_prompt(net, "norm", None, live[-1], previous))
    return owners, wrappers


def _prompt(net: Backbone, path: str, prompts: Prompts | None, behind: int, replaced: int) -> Prompted:
    # `place` gives back what the function made, here a Prompted
    wrapper: Any = place(net, path, lambda inner: Prompted(inner, prompts, behind, replaced, at_end=True))
    return wrapper


def _read(spec: dict[str, Any], *unread: str) -> dict[str, Any]:
    """A spec without the fields that are not read at the default start: `super_prompts`, and `unread`."""
    left_out = () if spec["init"] == "upstream" else ("super_prompts", *unread)
    return {name: value for name, value in spec.items() if name not in left_out}


def _upstream(modules: Iterable[nn.Module], super_prompts: int) -> None:
    """Start as the authors' code: prompts by the supernet's size, matrices normal with std 0.02, biases zero.

    Raises:
        ConfigError: if a block has more prompts than the supernet.
    """
    for module in modules:
        if isinstance(module, Prompts):
            count, width = module.tokens.shape
            if count > super_prompts:
                raise ConfigError(f"super_prompts={super_prompts} is less than the {count} prompts of a block")
            # Xavier of a (1, p, C) tensor counts p C as its inputs and C as its outputs
            bound = math.sqrt(6.0 / (width * super_prompts + width))
            nn.init.uniform_(module.tokens, -bound, bound)
        elif isinstance(module, Delta | Bottleneck):
            for name, parameter in module.named_parameters():
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.02)
