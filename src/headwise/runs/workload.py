"""How much work a run is, from its configuration alone: what a sweep hands out first. Never imports torch.

Numbers only compare runs of one sweep. What runs share is counted for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

NODES = ("method", "protocol", "dataset", "backbone")
TRAIN_IMAGES = 1000
"""Of a VTAB-1k task; of other sets nothing is known before their images are read."""
SIZES = {"nano": 0.02, "tiny": 0.07, "small": 0.26, "base": 1.0, "large": 3.5, "huge": 9.5, "giant": 15.0}
"""Arithmetic of one image by the word for a network's size, in those of the base size at 224 pixels."""
FORWARD_AND_BACK = 3
"""Forward passes that a training step costs."""


def work_of(loader: Any, master: Any, job: Sequence[str]) -> float:
    """The work of a job of a sweep, from what hydra's loader composes of its overrides and the `master` configuration.

    The unit is the forward pass of one image of 224 pixels through a base network. A job with a node that is missing or
    has no value counts as none: it fails at once, and says why itself.
    """
    cfg = loader.load_sweep_config(master, list(job))
    try:
        return work({name: OmegaConf.to_container(cfg[name], resolve=True) for name in NODES})
    except (OmegaConfBaseException, ValueError):
        return 0.0


def work(config: Mapping[str, Any]) -> float:
    """The same of a configuration's `NODES`, as plain data."""
    if not all(isinstance(config[name], Mapping) for name in NODES):
        return 0.0
    method, protocol, dataset, backbone = (config[name] for name in NODES)
    shots, classes = _number(dataset.get("shots"), 0), _number(dataset.get("num_classes"), 1)
    train = _number(protocol.get("train_images"), shots * classes or TRAIN_IMAGES)
    test = _number(protocol.get("test_images"), _number(dataset.get("num_test"), 0))
    epochs = _epochs(method, _number(protocol.get("epochs"), 1))
    training = FORWARD_AND_BACK * epochs * train
    looks = epochs / _number(protocol.get("select_every"), 10) if protocol.get("select") == "best_test" else 0
    return (training * (1 + _trials(protocol.get("search"))) + (1 + looks) * test) * _size(backbone)


def _epochs(method: Mapping[str, Any], default: float) -> float:
    """Epochs of all phases; a method within another one is a phase of it unless the outer one says how long it is."""
    phases = [part for part in method.values() if isinstance(part, Mapping) and "_target_" in part]
    if method.get("epochs") or not phases:
        return _number(method.get("epochs"), default)
    return sum(_epochs(phase, default) for phase in phases)


def _trials(search: Any) -> float:
    """Trainings of a search."""
    if not isinstance(search, Mapping):
        return 0
    lists = [search.get(name) for name in ("scale", "ne", "score")]
    lists += [*search["fields"].values()] if isinstance(search.get("fields"), Mapping) else []
    product = math.prod(max(1, len(values)) for values in lists if isinstance(values, list))
    return _number(search.get("trials"), product)


def _size(backbone: Mapping[str, Any]) -> float:
    """Arithmetic of an image: by the first word for a size in the network's name, and by the image's area."""
    words = str(backbone.get("timm_name")).replace(".", "_").split("_")
    size = next((SIZES[word] for word in words if word in SIZES), SIZES["base"])
    return size * (_number(backbone.get("img_size"), 224) / 224) ** 2


def _number(value: Any, default: float) -> float:
    """A number above 0, else the default: what is wrong with a value, the run itself says."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else default
