"""timm's networks as Backbones: split QKV, sites, a fresh head, export in timm's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from headwise.errors import CheckpointError, ConfigError, WeightsError, suggest
from headwise.network.catalog import check_name, record_of, side_of
from headwise.network.compiling import compiled
from headwise.network.hub import compare, content_of, fetched, kept
from headwise.network.nf4 import FourBit
from headwise.network.projections import ALLOWED, exported, places, stages_of
from headwise.network.reading import load_weights
from headwise.schema.check import check_fields, shown
from headwise.schema.kinds import Colour, Overrides, Seed, Side, Spread, Text
from headwise.storage.weights import network_name, stated_weights, weights_file, weights_labels
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import Site, select
from headwise.wrappers.settling import BesideLinear
from headwise.wrappers.wrapping import Wrapper

ATTENTION = ("timm", "plain")
NOT_OVERRIDDEN = {
    **dict.fromkeys(("model_name", "pretrained", "num_classes", "drop_path_rate"), "the run decides it"),
    "img_size": "use backbone.img_size",
    **dict.fromkeys(
        ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"),
        "weights are named by backbone.weights",
    ),
}
"""Arguments of timm.create_model that are not part of an architecture, and what to use instead."""


class Backbone(nn.Module):
    """A pretrained network whose attention projections are addressed by `Site`.

    Attributes:
        model: the timm network, its fused qkv projections dissolved into `SplitQKV`.
        sites: every adaptable projection, in network order.
        img_size: side of the square input, pixels.
        mean, std: per channel, of inputs in [0, 1], that the weights expect.
        provenance: where the weights came from, plain data.
        notes: what was taken off, left out or renamed when a file was read.
    """

    def __init__(self, model: nn.Module, img_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.provenance: dict[str, Any] = {}
        self.notes: list[str] = []
        self._owners: dict[Site, tuple[nn.Module, str]] = {}
        for stage, blocks in enumerate(stages_of(model)):
            for index, block in enumerate(blocks):
                # each projection becomes a module of its own that can be replaced, (d, d) instead of (3 d, d)
                self._owners |= {site: (owner, name) for site, owner, name in places(model, stage, index, block)}
        self.sites = tuple(self._owners)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, C), for normalised images (B, 3, img_size, img_size)."""
        return self.model(x)

    @property
    def facts(self) -> dict[str, Any]:
        """What the network is and takes, plain data: class, side of the images, mean, std, pooling."""
        pooling = getattr(self.model, "global_pool", None)
        return {
            "class": type(self.model).__name__,
            "img_size": self.img_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "pooling": pooling if isinstance(pooling, str) else None,
        }

    @property
    def head(self) -> nn.Linear:
        """The classifier."""
        return self.model.get_classifier()  # type: ignore[operator]

    def new_head(self, num_classes: int) -> None:
        """Put a fresh classifier on top, drawn from torch's current random state: normal, std 0.02, zero bias."""
        model: Any = self.model
        model.reset_classifier(num_classes)
        if not isinstance(self.head, nn.Linear):
            raise ConfigError(
                f"{type(model).__name__} has no single linear classifier but a {type(self.head).__name__}; {ALLOWED}"
            )
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def set_head(self, head: nn.Linear) -> None:
        """Put another classifier in the place of the present one."""
        name = next(name for name, module in self.model.named_modules() if module is self.head)
        parent, _, attribute = name.rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, head)

    def set_attention(self, kind: str) -> None:
        """How attention is computed: ``timm`` leaves timm's choice, ``plain`` multiplies matrices one by one.

        On a CPU in bf16, torch's fused attention is slower than the plain products, most of all in backward.

        Raises:
            ConfigError: for another kind.
        """
        if kind not in ATTENTION:
            raise ConfigError(f"trainer.attention must be auto or one of {', '.join(ATTENTION)}, got {kind!r}")
        if kind == "plain":
            for module in self.model.modules():
                if hasattr(module, "fused_attn"):
                    setattr(module, "fused_attn", False)  # noqa: B010  a plain flag that mypy takes for a module

    def set_checkpointing(self) -> None:
        """Keep of each block its input only and compute it again in backward, dropout with the same random numbers.

        Raises:
            ConfigError: for a network of which timm cannot do so.
        """
        try:
            self.model.set_grad_checkpointing()  # type: ignore[operator]
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(f"trainer.checkpointing=true: timm has none for {type(self.model).__name__}") from error

    def compiled(self, backend: str | Callable[..., Any] = "inductor") -> AbstractContextManager[None]:
        """Inside, every block runs as torch.compile makes it, see `headwise.network.compiling.compiled`."""
        return compiled([block for stage in stages_of(self.model) for block in stage], backend)

    def linear(self, site: Site) -> nn.Module:
        """The module that stands at `site` now."""
        owner, attribute = self._owners[site]
        return getattr(owner, attribute)

    def replace(self, site: Site, module: nn.Module) -> None:
        """Put `module` at `site`."""
        owner, attribute = self._owners[site]
        setattr(owner, attribute, module)
        if isinstance(owner, SplitQKV):
            owner.child_replaced()

    def bases(self, targets: Sequence[str]) -> dict[Site, Tensor]:
        """The frozen weights, (O, I), of the projections in `targets`, detached; of a 4-bit one as it is used.

        Raises:
            ConfigError: where a target matches nothing, or a projection has no weight.
        """
        weights = {}
        for site in select(self.sites, targets):
            module = self.linear(site)
            # an update that a former phase left beside a layer hides it; phases may have stacked several
            while isinstance(module, BesideLinear):
                module = module.module
            if isinstance(module, FourBit):
                weights[site] = module.dense()
            elif isinstance(module, nn.Linear):
                weights[site] = module.weight.detach()
            else:
                raise ConfigError(f"{site.key} is a {type(module).__name__} without a dense weight")
        return weights

    def path(self, site: Site) -> str:
        """Module path of `site` at this moment, such as ``model.blocks.3.attn.qkv.q``."""
        owner, attribute = self._owners[site]
        for name, module in self.named_modules():
            if module is owner:
                return f"{name}.{attribute}"
        raise ConfigError(f"{site.key} is no longer part of the network")

    @property
    def blocks(self) -> list[tuple[int, int, str]]:
        """(stage, block, module path below `model`) of every block, in network order."""
        # the stages hold modules; `wrap` needs their paths, which differ by family
        names = {id(module): name for name, module in self.model.named_modules()}
        return [
            (stage, index, names[id(block)])
            for stage, blocks in enumerate(stages_of(self.model))
            for index, block in enumerate(blocks)
        ]

    def wrap(self, path: str, factory: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Replace the module at `path` (below `model`) by ``factory(module)`` and return that.

        Raises:
            ConfigError: if nothing is there; lists what is.
        """
        parent_path, _, attribute = path.rpartition(".")
        try:
            parent = self.model.get_submodule(parent_path)
            inner = parent.get_submodule(attribute)
        except AttributeError:
            names = [name for name, _ in self.model.named_modules() if name.count(".") == path.count(".")]
            raise ConfigError(f"no module at {path!r} to wrap{suggest(path, names)}") from None
        wrapper = factory(inner)
        setattr(parent, attribute, wrapper)
        if isinstance(parent, SplitQKV):
            parent.child_replaced()
        return wrapper

    def export_state_dict(self) -> dict[str, Tensor]:
        """The weights under timm's own keys, q, k and v fused again; loads strictly into the timm network.

        Raises:
            CheckpointError: while a projection still carries an update, or a method that cannot be folded is in place.
        """
        for name, module in self.model.named_modules():
            if isinstance(module, FourBit):
                raise CheckpointError(
                    f"{name} is a 4-bit projection, for which timm's network has no place (QLoRA and what stands on it "
                    "cannot be exported); use headwise.load(run_dir)"
                )
            is_settled = isinstance(module, BesideLinear) and module.settled
            if isinstance(module, AdaptedLinear | BesideLinear) and not is_settled:
                raise CheckpointError(f"{name} still carries a {type(module).__name__}; merge before exporting")
            is_around_4_bit = any(isinstance(inner, FourBit) for inner in module.modules())  # which is named further on
            if isinstance(module, Wrapper) or (is_settled and not is_around_4_bit):
                raise CheckpointError(
                    f"{name} is wrapped by {type(module).__name__}, for which timm's network has no place: methods "
                    "that stay in place (adapters, AdaptFormer, Compacter, HydraLoRA, prompts, NOAH) cannot be "
                    "exported; use headwise.load(run_dir)"
                )
        return exported(self.model)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What to build, from conf/backbone/<name>.yaml.

    Attributes:
        name: ours, names the row of a table.
        timm_name: architecture with its weights' tag.
        img_size: side of the square input, pixels; None reads timm's own record.
        weights: ``auto`` (from timm's hub), ``none`` (random), ``package:FILE`` or a path to .safetensors, .npz or a
            torch file (read with weights_only).
        overrides: keyword arguments of the timm constructor.
        mean, std: normalisation the weights expect; None reads timm's own record.
        seed: of the random weights, where `weights` is ``none``.
        stand_in: whether these are not the weights of the papers.
        weights_are: what the user says of a file: ``official`` (those that timm has under `timm_name`), or a name.
    """

    name: Text
    timm_name: Text
    img_size: Side | None = 224
    weights: Text = "auto"
    overrides: Overrides = field(default_factory=dict)
    mean: Colour | None = None
    std: Spread | None = None
    seed: Seed = 0
    stand_in: bool = False
    weights_are: Text | None = None

    def __post_init__(self) -> None:
        check_fields(self, lambda name: f"backbone.{name}")

    @property
    def labels(self) -> list[str]:
        """What must be said beside every number made with these weights."""
        return weights_labels(vars(self))

    @property
    def side(self) -> int:
        """Side of the square input, pixels, as given or of timm's record.

        Raises:
            ConfigError: if it is unknown, or the input not square.
        """
        return side_of(self.timm_name) if self.img_size is None else self.img_size

    @property
    def must_fetch(self) -> bool:
        """Whether the weights are on timm's hub only."""
        return self.weights == "auto" and kept(self.timm_name) is None

    def random(self) -> BackboneSpec:
        """The same network with random weights."""
        return replace(self, weights="none", weights_are=None)

    def build(self, drop_path: float = 0.0) -> Backbone:
        """Create the network and load its weights; the head is left for `Backbone.new_head`.

        Raises:
            ConfigError: unknown architecture, unusable attention, or a size the patches do not divide.
            WeightsError: weights missing, truncated, or of another architecture (names the first mismatch).
        """
        model = self._create(drop_path)
        name = network_name(vars(self))
        provenance = {"name": name, "timm_name": self.timm_name, "weights": Path(self.weights).name}
        notes: list[str] = []
        if (stated := stated_weights(vars(self))) is not None:
            provenance["stated"] = f"{stated}, stated by the user"
        if self.weights == "none":
            pass
        elif self.weights == "auto":
            self._fetch(model)
            provenance["loaded"] = content_of(model.state_dict())  # their name on the hub does not say what was fetched
        else:
            file = weights_file(self.weights)
            notes += load_weights(model, file)
        config = record_of(model)
        mean = self.mean or config.get("mean", (0.5,) * 3)
        std = self.std or config.get("std", (0.5,) * 3)
        net = Backbone(model, self.side, mean, std)
        net.provenance, net.notes = provenance, notes
        return net

    def arguments(self, num_classes: int) -> dict[str, Any]:
        """Arguments with which timm.create_model makes this architecture."""
        return {
            "model_name": self.timm_name,
            "num_classes": num_classes,
            "img_size": self.side,
            **self.overrides,
        }

    def plain(self, num_classes: int) -> nn.Module:
        """timm's own network, without these weights: what an exported state dict loads into."""
        return self._create(0.0, num_classes)

    def _create(self, drop_path: float, num_classes: int = 0) -> nn.Module:
        if taken := sorted(set(self.overrides) & set(NOT_OVERRIDDEN)):
            raise ConfigError(f"backbone.overrides cannot hold {taken[0]}: {NOT_OVERRIDDEN[taken[0]]}")
        check_name(self.timm_name)
        options: dict[str, Any] = {**self.arguments(num_classes), "drop_path_rate": drop_path}
        patch, size = options.get("patch_size", _patch_of(self.timm_name)), self.side
        patch = patch if isinstance(patch, int) else 1
        if size % patch:
            raise ConfigError(f"backbone.img_size must be a positive multiple of {patch}, got {size}")
        # random weights of a spec follow from its own seed and leave the run's random state alone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                return timm.create_model(pretrained=False, **options)
            except Exception as error:
                told = f" with backbone.overrides={shown(self.overrides)}" if self.overrides else ""
                raise ConfigError(
                    f"timm cannot build {self.timm_name!r} of {size} pixels{told} ({error}); {ALLOWED}"
                ) from error

    def _fetch(self, model: nn.Module) -> None:
        source = fetched(self.timm_name, self.side).state_dict()
        compare(self.timm_name, self.side, content_of(source))
        try:
            model.load_state_dict(source)
        except RuntimeError as error:
            raise WeightsError(
                f"timm's weights of {self.timm_name!r} do not fit backbone.overrides={shown(self.overrides)} "
                f"({' '.join(str(error).split())[:200]})"
            ) from error


def _patch_of(timm_name: str) -> int:
    for part in timm_name.partition(".")[0].split("_"):
        if part.startswith("patch") and part[5:].isdigit():
            return int(part[5:])
    return 1
