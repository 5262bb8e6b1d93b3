"""Folders of adapters, read back: those that `Adapted.save` wrote, and peft's. Nothing in them is executed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from headwise.artifacts.adapting import FORMAT, RECORD, Adapted
from headwise.artifacts.peftfolder import CONFIG, put_peft
from headwise.artifacts.standing import classify_with, network_of
from headwise.errors import CheckpointError, ConfigError, WeightsError
from headwise.methods.base import build_method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.given import sharing
from headwise.schema import targets
from headwise.storage import plain
from headwise.training.address import read_tensors

SHAPE = plain.fields(
    {
        "format": plain.text,
        "content": plain.text,
        "network": plain.text,
        "num_classes": plain.whole,
        "class_names": plain.each(plain.text),
        "phases": plain.each(
            plain.fields(
                {"label": plain.text, "method": plain.mapping},
                {"sha256": plain.maybe(plain.text), "plan": plain.maybe(plain.mapping)},
            )
        ),
    },
    {"backbone": plain.maybe(plain.mapping)},
)
MOST_CLASSES = 1_000_000
"""Beyond it a number of classes is damage, and a classifier that no memory holds."""


def is_adapted(folder: Path) -> bool:
    """Whether a folder is one that `Adapted.save` wrote."""
    return _has(folder, RECORD)


def is_peft(folder: Path) -> bool:
    """Whether a folder is an adapter in peft's format."""
    return _has(folder, CONFIG) and not is_adapted(folder)


def _has(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # a name that no folder can have
        return False


def read_adapted(
    folder: Path,
    model: nn.Module | str | None = None,
    weights: str | Path | None = None,
    trust: str | Iterable[str] = (),
) -> Adapted:
    """An adapter, in the network that it stands on.

    Args:
        folder: that `Adapted.save` wrote, or in peft's format.
        model: the network: a module or a name, where the folder names none.
        weights, trust: as for `headwise.load`.

    Raises:
        CheckpointError: for a damaged folder. WeightsError: if the network is another one.
    """
    if is_peft(folder):
        if model is None:
            raise ConfigError(f"{folder} is an adapter of peft: give its network, headwise.load(folder, model=net)")
        net, spec = network_of(model, weights)
        return put_peft(folder, net, sharing(net), spec)
    record = _record(folder)
    if model is not None:
        net, spec = network_of(model, weights if isinstance(model, str) else None)
    elif record.get("backbone") is None:
        raise ConfigError(
            f"{folder} was made of a module ({record['network']}): give it, headwise.load(folder, model=net)"
        )
    else:
        spec = targets.fit(BackboneSpec, record["backbone"], f"{folder}")
        spec = spec if weights is None else dataclasses.replace(spec, weights=str(weights))
        net = spec.build()
    return _filled(folder, record, _begun(folder, record, net, spec, sharing(net), None, trust))


def read_beside(folder: Path, bare: Backbone, content: str, trust: str | Iterable[str] = ()) -> Adapted:
    """An adapter over the tensors of a network that is there.

    Args:
        folder, trust: as for `read_adapted`.
        bare: the network without an adapter; it stays as it is.
        content: of its weights, see `body_content`.
    """
    if (kind := next(bare.parameters()).dtype).itemsize < 4:
        raise ConfigError(f"the network is in {kind}; load the adapters first, in float32, and narrow it then")
    if is_peft(folder):
        return put_peft(folder, sharing(bare), bare, None, content)
    if not is_adapted(folder):
        raise ConfigError(f"{folder} holds no adapter: neither {RECORD} nor {CONFIG} is there")
    record = _record(folder)
    adapted = _begun(folder, record, sharing(bare), None, bare, content, trust)
    if adapted.shelf.bare not in (None, bare):  # it trains the network's own tensors, which are not its own here
        adapted = _begun(folder, record, copy.deepcopy(bare), None, bare, content, trust)
    return _filled(folder, record, adapted)


def _record(folder: Path) -> Mapping[str, Any]:
    try:
        record = plain.read_json(folder / RECORD)
        SHAPE(record, "")
    except plain.Misfit as error:
        raise CheckpointError(f"{folder / RECORD} is no record of an adapted network: {error}") from error
    if record["format"] != FORMAT:
        raise CheckpointError(f"{folder / RECORD}: format {record['format'][:80]!r}, this version reads {FORMAT!r}")
    if not record["phases"] or record["phases"][0].get("sha256") is None:
        raise CheckpointError(f"{folder / RECORD} holds no phase")
    if not 1 <= record["num_classes"] <= MOST_CLASSES:
        raise CheckpointError(f"{folder / RECORD}: num_classes must be in 1..{MOST_CLASSES}")
    return dict(record)


def _begun(
    folder: Path,
    record: Mapping[str, Any],
    net: Backbone,
    spec: BackboneSpec | None,
    bare: Backbone,
    content: str | None,
    trust: str | Iterable[str],
) -> Adapted:
    """The network with the method of the first phase in it, whose tensors are still to be read."""
    classify_with(net, record["num_classes"])
    methods = [build_method(phase["method"], phase["label"], trust) for phase in record["phases"]]
    adapted = Adapted(net, methods, record["class_names"], spec, bare, content)
    if adapted.content != record["content"]:
        raise WeightsError(
            f"{folder} stands on {record['network']} with the content {record['content'][:12]}; the network here is "
            f"{adapted.content[:12]}: give the right one with model= or weights="
        )
    adapted.stages[0].plan = record["phases"][0].get("plan")
    adapted.install(adapted.stages[0])
    return adapted


def _filled(folder: Path, record: Mapping[str, Any], adapted: Adapted) -> Adapted:
    """The same with the tensors of every phase that was saved."""
    for index, (stage, phase) in enumerate(zip(adapted.stages, record["phases"], strict=True)):
        if phase.get("sha256") is None:
            break
        if index:
            stage.plan = phase.get("plan")
            adapted.stages[index - 1].tensors = adapted.installed.packed()
            adapted.installed.merge()
            adapted.install(stage)
        file = folder / f"phase-{index + 1}.safetensors"
        adapted.installed.unpack(read_tensors(file, "save it again", phase["sha256"]))
    if (masking := adapted.installed.masking) is not None:
        are_off = (delta.get_buffer("active") == 0 for delta in masking.deltas.values())
        masking.is_done = masking.is_done or any(bool(off.any()) for off in are_off)
    return adapted
