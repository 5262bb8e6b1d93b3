"""Tiny networks, configurations and tasks that tests share; networks are built once and copied."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from headwise.commands.composition import FAILURES
from headwise.data.sources import FINAL_SPLITS, Pixels
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.protocol.filling import fill_gates
from headwise.protocol.naming import Composer
from headwise.runs.experiment import run  # noqa: F401  registers the resolvers that conf/ uses

REPO = Path(__file__).parents[1]
CONF = REPO / "conf"
CLASSES = 5
SIDE = 32
NETWORKS = {"vit": "vit_tiny_random", "swin": "swin_tiny_random"}
_SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
FURTHER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "registers": ("vit", "vit_small_patch14_reg4_dinov2", _SMALL),
    "clip": ("vit", "vit_base_patch16_clip_224", _SMALL),
    "siglip": ("vit", "vit_base_patch16_siglip_224", _SMALL),
    "dinov3": ("eva", "vit_small_patch16_dinov3_qkvb", _SMALL),
    "eva02": ("eva", "eva02_tiny_patch14_224", {**_SMALL, "mlp_ratio": 2.0}),
    "beit": ("beit", "beit_base_patch16_224", _SMALL),
    "swinv2": (
        "swinv2",
        "swinv2_tiny_window8_256",
        {"embed_dim": 32, "depths": [1, 2], "num_heads": [4, 8], "window_size": 4},
    ),
}
"""Tiny networks of timm's other families: the family as `Method.networks` has it, timm's name, and what is changed."""


@functools.cache
def _composer() -> Composer:
    path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    return Composer(tuple((place.provider, place.path) for place in path), "config")


def compose_config(*overrides: str) -> DictConfig:
    """conf/config.yaml with overrides, as train.py sees it; test_naming.py shows that the composer gives hydra's."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        if any(
            word.lstrip("+~").startswith(("hydra.", "hydra/")) for word in overrides
        ):  # it may look in further folders
            return compose("config", overrides=list(overrides))
        composer = _composer()
        with contextlib.suppress(*FAILURES):  # which hydra is to tell, as it refuses several values
            if not any(composer.loader.parsed(word).is_sweep_override() for word in overrides):
                return composer.compose(overrides)
        cfg = composer.loader.load_configuration("config", list(overrides), RunMode.RUN, from_shell=False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


SIZES = {
    "fourierft": ("method.config.n_frequency=100", "method.config.scaling=6.5"),
    "spt_lora": ("method.budget=5000", "method.tau_step=50"),
    "peft/c3a": ("method.config.block_size=8",),
    "peft/fourierft": ("method.config.n_frequency=100", "method.config.scaling=6.5"),
    "peft/hira": ("method.config.r=16",),  # its update is a product with weights that are small here
    "peft/hra": ("method.config.r=4",),
    "peft/miss": ("method.config.r=4",),
    "peft/oft": ("method.config.oft_block_size=8",),
    "peft/psoft": ("method.config.r=4", "method.config.psoft_alpha=4"),
    "peft/randlora": ("method.config.r=4", "method.config.randlora_alpha=4"),
    "peft/road": ("method.config.group_size=16",),
    "peft/vblora": ("method.config.num_vectors=32", "method.config.vector_length=16"),
    "peft/vera": ("method.config.r=4",),
    "peft/waveft": ("method.config.n_frequency=100",),
    "mlae": ("method.drop=0.1",),  # with half of 8 experts out, a matrix may get no gradient in a step
    "spt_adapter": ("method.budget=5000", "method.tau_step=50"),
}
"""Where a method's published size does not fit tiny networks: its update is as large beside their weights as there."""


@functools.cache
def composed_method(name: str) -> Any:
    """conf/method/<name>.yaml built for tiny networks: rank 4, 3 per head, a quarter of the heads off."""
    cfg = compose_config(f"method={name}", "backbone=vit_tiny_random", "rank=r4", "ne=quarter", *SIZES.get(name, ()))
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return instantiate(fill_gates(plain["method"], plain["ne"]), _convert_="all")


@functools.cache
def spec(network: str) -> BackboneSpec:
    if network in FURTHER:
        _, name, overrides = FURTHER[network]
        return BackboneSpec(name=network, timm_name=name, img_size=SIDE, weights="none", overrides=overrides)
    cfg = compose_config(f"backbone={NETWORKS[network]}")
    return BackboneSpec(**OmegaConf.to_container(cfg.backbone, resolve=True))  # type: ignore[arg-type]


@functools.cache
def _built(name: str) -> Backbone:
    net = spec(name).build()
    torch.manual_seed(7)
    for module in net.modules():  # weights that make every part count: a fresh network has zero biases and unit scales
        if isinstance(module, nn.LayerNorm | nn.Linear) or name in FURTHER:
            for parameter in module.parameters(recurse=False):
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    for module in net.modules():
        if hasattr(module, "join"):
            module.join()
    net.new_head(CLASSES)
    return net.eval()


def network(name: str) -> Backbone:
    """A copy of the tiny "vit", "swin" or one of `FURTHER`, in evaluation mode, with a head; all copies are equal."""
    return copy.deepcopy(_built(name))


def plain_timm(name: str) -> nn.Module:
    """The same architecture as timm builds it, random weights, head of `CLASSES`."""
    recipe = spec(name)
    options: dict[str, Any] = {"img_size": recipe.img_size, "num_classes": CLASSES, **recipe.overrides}
    return timm.create_model(recipe.timm_name, pretrained=False, **options).eval()


def images(count: int = 4, seed: int = 0) -> Tensor:
    """Normalised images, (count, 3, SIDE, SIDE)."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def batches(num_batches: int = 2, size: int = 8) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    """Normalised training batches in a fixed order, as `Method.prepare` gets them."""
    labels = torch.arange(size) % CLASSES
    return lambda: [(images(size, seed), labels) for seed in range(num_batches)]


def logits(net: nn.Module, x: Tensor) -> Tensor:
    """Outputs in evaluation mode without gradients."""
    was_training = net.training
    net.eval()
    with torch.no_grad():
        y = net(x)
    net.train(was_training)
    return y


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).abs().max())


def perturb(tensors: Sequence[Tensor], size: float = 0.02, seed: int = 1) -> None:
    """Add normal noise in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.data.add_(size * torch.randn(tensor.shape, generator=generator).to(tensor))


TOY_TASK = VTABTask(name="toy", group="natural", num_classes=CLASSES, num_test=None, folders=["toy"])


class ToySource:
    """Noise with a bright square whose place is the class; 40 training and 20 test images."""

    COUNTS = {"train800": 32, "val200": 8, "train800val200": 40, "test": 20}

    def fingerprint(self, task: VTABTask, splits: Sequence[str] = FINAL_SPLITS) -> str:
        return "toy"

    def labels(self, task: VTABTask) -> list[str]:
        return ["synthetic"]

    def count(self, task: VTABTask, split: str) -> int:
        return self.COUNTS[split]

    def load(
        self, task: VTABTask, split: str, size: int, resize: str = "pil_bicubic", limit: int | None = None
    ) -> Pixels:
        count = min(limit or self.COUNTS[split], self.COUNTS[split])
        rng = np.random.default_rng(len(split))
        pixels = rng.integers(0, 128, (count, size, size, 3), dtype=np.uint8)
        classes = np.arange(count, dtype=np.int64) % task.num_classes
        for image, label in zip(pixels, classes, strict=True):
            image[6 * label : 6 * label + 6, 6 * label : 6 * label + 6] = 255
        keys = tuple(str(index) for index in range(count))
        return Pixels(pixels, classes, keys, {"source": "toy", "resize": resize})


def toy_data(seed: int = 0, batch_size: int = 16) -> VTABDataModule:
    """Two training batches an epoch."""
    return VTABDataModule(TOY_TASK, ToySource(), SIDE, batch_size, seed, eval_batch_size=20)
