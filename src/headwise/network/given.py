"""Networks that are given: a user's own timm module, or the name of one; and the way back to a plain module."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.catalog import check_name, record_of, side_of
from headwise.network.hub import content_of
from headwise.network.projections import put_back
from headwise.storage.weights import BY_NAME
from headwise.updates.qkv import SplitQKV

RESIZES = {"bilinear": "pil_bilinear"}
"""What timm says of a network's images, and how they are resized here; anything else is bicubic."""


def spec_of(name: str, conf: Path, weights: str | Path | None = None, img_size: int | None = None) -> BackboneSpec:
    """The network that a name means: one of conf/backbone, as ``vit_nano``, or one that timm knows, with its tag.

    `conf` is the configuration folder. `weights`, as of `BackboneSpec`, and `img_size` stand in place of those of the
    name. ConfigError for a name that neither knows.
    """
    files = {file.stem: file for file in (conf / "backbone").glob("*.yaml") if file.stem != BY_NAME}
    if name in files:
        values = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    else:
        check_name(name)
        values = {"name": name, "timm_name": name, "img_size": img_size or side_of(name)}
    given = {"weights": None if weights is None else str(weights), "img_size": img_size}
    return BackboneSpec(**{**values, **{key: value for key, value in given.items() if value is not None}})


def around(model: nn.Module) -> Backbone:
    """A copy of a user's timm network as a Backbone, with its classifier; the module that was given stays as it is.

    Raises:
        ConfigError: for a network that is not square, or whose attention cannot be adapted.
    """
    if isinstance(model, Backbone):
        return copy.deepcopy(model)
    record = record_of(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or record.get("input_size", (3, None))[1:]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ConfigError(f"{type(model).__name__} takes images of {tuple(size)} pixels; allowed: square ones")
    mean, std = record.get("mean", (0.5,) * 3), record.get("std", (0.5,) * 3)
    net = Backbone(copy.deepcopy(model), side, mean, std)
    net.provenance = {"timm_name": record.get("architecture") or type(model).__name__}
    return net


def sharing(net: Backbone) -> Backbone:
    """A network of its own modules over the same tensors; only the classifier's are copied.

    A method that is installed in one of the two is not seen by the other, unless it trains the network's own tensors.
    """
    for module in net.modules():
        if isinstance(module, SplitQKV):
            module.shared = True
    own = {id(tensor) for tensor in net.head.parameters()}
    # plain attributes too, such as the one storage of q, k and v: a copy of it would be another one
    values = (value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor))
    tensors = (*net.parameters(), *net.buffers(), *values)
    return copy.deepcopy(net, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})


def resize_of(net: Backbone) -> str:
    """How timm says that images of a network are resized, by the names of `headwise.data.decode.RESIZES`."""
    return RESIZES.get(record_of(net.model).get("interpolation", ""), "pil_bicubic")


def body_content(net: Backbone) -> str:
    """Hash of the weights of a network without an update, and without its classifier."""
    own = {id(tensor) for tensor in net.head.parameters()}
    names = {name for name, tensor in net.model.named_parameters() if id(tensor) in own}
    return content_of({name: tensor for name, tensor in net.export_state_dict().items() if name not in names})


def plain_of(net: Backbone) -> nn.Module:
    """timm's own module with the weights of a merged network: frozen, in evaluation mode, in the network's type.

    Raises:
        CheckpointError: while an update stands beside the weights, or a method stays in place.
    """
    state = net.export_state_dict()
    model = copy.deepcopy(net.model)
    put_back(model)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
