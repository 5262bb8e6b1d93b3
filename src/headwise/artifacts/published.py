"""A trained network for others: a folder for Hugging Face's hub, which timm and transformers read, and ONNX.

Both are read back, by timm and by onnxruntime, and their logits compared before anything is put in its place.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headwise.artifacts.adapting import Adapted
from headwise.artifacts.card import card
from headwise.artifacts.classifier import Classifier
from headwise.errors import CheckpointError, ConfigError
from headwise.network.given import plain_of
from headwise.network.hubfolder import CONFIG, WEIGHTS, arguments_of, configuration, read_back
from headwise.storage import atomic
from headwise.training.address import write_tensors

CARD = "README.md"
HUB_FILES = (WEIGHTS, CARD, CONFIG)
"""Of a folder for the hub, in the order in which they are put there: without the last none can be loaded."""
TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding."""
BATCHES = (1, 5)
"""Numbers of random images that are compared."""
INPUT, OUTPUT = "images", "logits"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def described(net: Classifier) -> dict[str, Any]:
    """How to build the network, prepare an image and name its class, as plain values.

    ``model`` are the arguments of timm.create_model, ``transform`` those of timm.data.create_transform.
    """
    preparation, side = net.preparation, net.preparation.side
    part = preparation.img_size / side
    if math.floor(preparation.img_size / part) != side:  # timm rounds down what it divides
        part = preparation.img_size / (side + 0.5)
    return {
        "model": arguments_of(net.net, net.spec),
        "transform": {
            "input_size": [3, preparation.img_size, preparation.img_size],
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "interpolation": preparation.resize.partition("_")[2],
            "crop_pct": part,
            # timm's words for what is done here; its bars have the colour of `mean`, not that of the image
            "crop_mode": {"squash": "squash", "crop": "center", "pad": "border"}[preparation.shape],
        },
        "class_names": list(net.task.class_names),
        "grey": net.task.channels == 1,
    }


def merged(net: Classifier) -> nn.Module:
    """timm's own network with the update in its weights; a method that stays in place is refused."""
    return net.merge() if isinstance(net, Adapted) else plain_of(net.net)


def _exact(net: Classifier) -> Classifier:
    """The network on the CPU in float32, where merging rounds least."""
    like = next(net.net.parameters())
    return net if like.device.type == "cpu" and like.dtype == torch.float32 else copy.deepcopy(net).cpu().float()


def write_hub(net: Classifier, folder: str | Path) -> float:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and transformers' pipelines load.

    Files of these names that lie there are replaced, others stay.

    Args:
        net: a run that `headwise.load` gave, or an adapted network.
        folder: for config.json, model.safetensors and README.md, a card that says what the network was trained on.

    Returns:
        Largest difference of a logit between the network and what timm made of the folder.

    Raises:
        CheckpointError: for a method that stays in place, or if timm reads another network.
    """
    if net.is_multi_label:
        raise ConfigError(
            "a folder for the hub is read by programs that expect one label an image, and this network gives several; "
            "write a state dict or ONNX"
        )
    net = _exact(net)
    place, plain, record = Path(folder), merged(net), described(net)
    names = record["class_names"] or [str(index) for index in range(net.task.num_classes)]
    part = place.parent / f".{uuid.uuid4().hex[:8]}{atomic.TEMPORARY}"
    try:
        header = {"format": "pt", "timm": json.dumps(record)}
        write_tensors(part / WEIGHTS, plain.state_dict(), header)
        size = sum(tensor.numel() for tensor in plain.parameters())
        atomic.write_text(part / CARD, card(net, {**record, "parameters": size}, names))
        atomic.write_json(part / CONFIG, configuration(plain, record["model"], record["transform"], names))
        apart = _compared(net, read_back(part), "what timm reads")
        with atomic.errors_naming(place):
            atomic.make_folder(place)
            (place / CONFIG).unlink(missing_ok=True)  # until all is there, what was there before is no network either
            for name in HUB_FILES:
                (part / name).replace(place / name)
            atomic.flush(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return apart


def check_onnx(file: Path) -> None:
    """Refuse a file that cannot be written as ONNX here: for its ending, or a package to install."""
    if file.suffix != ".onnx":
        raise ConfigError(f"the exported file must end in .onnx, got {str(file)!r}")
    for name in ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"ONNX needs the package {name} ({error}): pip install 'headwise[onnx]'") from error


def write_onnx(net: Classifier, file: str | Path) -> float:
    """Write an ONNX file: normalised ``images``, (batch, 3, S, S) float32, to ``logits``, (batch, K), for any batch.

    Its metadata entry ``timm`` is the JSON of `described`. Updates are merged; a method that stays in place is written
    as it stands.

    Args:
        net: a run that `headwise.load` gave, or an adapted network.
        file: ending in .onnx.

    Returns:
        Largest difference of a logit between the network and onnxruntime.

    Raises:
        ConfigError: if a package is missing, or the file has another ending. CheckpointError: if torch cannot write
            the network, or onnxruntime reads another one.
    """
    place = Path(file)
    check_onnx(place)
    net = _exact(net)
    try:
        model = merged(net)
    except CheckpointError:
        model = _copied(net)
    program = _traced(model, net.preparation.img_size)
    program.model.metadata_props["timm"] = json.dumps(described(net))
    with atomic.replacing(place) as part:
        program.save(part)
        return _compared(net, _running(part), "what onnxruntime reads")


def _copied(net: Classifier) -> nn.Module:
    """The network with the method in place, frozen, in evaluation mode."""
    return copy.deepcopy(net.net).requires_grad_(False).eval()


def _traced(model: nn.Module, side: int) -> Any:
    try:
        return torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"torch cannot write the network as ONNX ({type(error).__name__}: {said})") from error


def _running(file: Path) -> Callable[[Tensor], Tensor]:
    """A file as onnxruntime computes it, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def _compared(net: Classifier, other: Callable[[Tensor], Tensor], what: str) -> float:
    """Largest difference of a logit on random input; refused if it is more than rounding."""
    generator, side = torch.Generator().manual_seed(0), net.preparation.img_size
    reference, apart = _copied(net), 0.0
    for count in BATCHES:
        images = torch.randn(count, 3, side, side, generator=generator)
        difference = float((other(images) - reference(images)).abs().max())
        if not difference <= TOLERANCE:  # not `>`, which a NaN would pass
            raise CheckpointError(f"{what} differs by {difference:.3g} in a logit; nothing was written")
        apart = max(apart, difference)
    return apart
