"""Wrong configurations made from right ones: every leaf as every other kind of value, every mapping with a strange key.

Run as a program it plans them all, without torch: ``python tests/made_faults.py CONF CHOICE ...`` writes what was not
refused by name, and why, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from headwise.errors import ConfigError, HeadwiseError
from headwise.protocol.plan import plan_run
from headwise.schema.tree import check_config

KINDS: dict[str, Any] = {"bool": True, "int": 3, "float": 0.5, "text": "fuzz", "null": None, "list": [], "mapping": {}}
"""A value of each kind."""
STRANGE = "fuzz_key"
NULLABLE = {
    *(
        "variant",
        "shots",
        "ne.count",
        "ne.ratio",
        "data.root",
        "data.cache_dir",
        "backbone.mean",
        "backbone.std",
        "backbone.img_size",
        *("backbone.weights_are", "dataset.depth"),
    ),
    *("dataset.config", "dataset.label_key", "dataset.label_rule", "dataset.builder", "dataset.num_test"),
    *("dataset.shots", "protocol.search"),
}
"""Keys that may be null, whatever they are; so may None itself be."""
NULLABLE_FIELDS = ("clip", "epochs", "lr", "gate", "checkpoint", "head_bits", "inference_rank", "alpha", "adapter_lr")
NULLABLE_FIELDS += ("eval_mode_after", "train_images", "test_images", "select_after", "task", "subnet", "search")
NULLABLE_FIELDS += ("count", "ratio", "budget")
TAKES: dict[str, set[str]] = {
    "variant": {"text"},
    "shots": {"int"},
    "ne.ratio": {"float"},
    "data.root": {"text"},
    "data.cache_dir": {"text"},
    "backbone.weights_are": {"text"},
    "dataset.config": {"text"},
    "dataset.depth": {"int"},
    "dataset.label_rule": {"text"},
    "dataset.label_key": {"text"},
    "dataset.num_test": {"int"},
    "dataset.shots": {"int"},
    "dataset.class_names": {"list"},
    "protocol.search": set(),
    "from": {"text"},
    "backbone.mean": set(),
    "backbone.std": set(),
}
"""What a leaf that is null may be instead."""
FIELDS: dict[str, set[str]] = {
    **{name: {"int", "float"} for name in ("clip", "lr", "alpha", "adapter_lr")},
    **{name: {"int"} for name in ("epochs", "eval_mode_after", "train_images", "test_images", "select_after")},
    **{name: {"int"} for name in ("budget", "inference_rank", "count")},
    "ratio": {"float"},
    "head_bits": set(),
    "checkpoint": {"text"},
    "task": {"text"},
    "gate": {"mapping"},
    "search": {"mapping"},
    "subnet": {"mapping"},
}
EMPTY_IS_FINE = ("overrides", "config", "class_names", "aliases", "versions", "targets", "splits", "subnet")
"""Lists and mappings that may be empty."""


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a list is one leaf, and each of its entries another."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


def mappings(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of all mappings, the top is empty."""
    if isinstance(node, dict):
        yield path
        for name, value in node.items():
            yield from mappings(value, f"{path}.{name}" if path else str(name))


def kind_of(value: Any) -> str:
    """Of `KINDS`."""
    for name, kind in (
        ("bool", bool),
        ("int", int),
        ("float", float),
        ("text", str),
        ("list", list),
        ("mapping", dict),
    ):
        if isinstance(value, kind):
            return name
    return "null"


def right_kinds(path: str, value: Any) -> set[str]:
    """Kinds that are no fault at a leaf."""
    last, kind = path.rpartition(".")[2], kind_of(value)
    kinds = {kind} | ({"int"} if kind == "float" else set())
    if value is None:
        kinds |= TAKES.get(path, FIELDS.get(last, set()))
    if path in NULLABLE or last in NULLABLE_FIELDS:
        kinds.add("null")
    if last == "search" and value is not None:
        kinds.add("mapping")
    if last in ("warmup", "lr_min", "lr_start", "std", "mean", "scale", "lora_alpha"):
        kinds |= {"int", "float"}
    if path.startswith("backbone.overrides."):  # timm takes one number for all stages
        kinds.add("int")
    return kinds


def faults(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and what is wrong there."""
    for path, value in leaves(config):
        right = right_kinds(path, value)
        if path == "dataset.num_classes" and config["dataset"]["group"] == "own":
            right = right | {"null"}  # found in the images
        yield from ((path, wrong) for kind, wrong in KINDS.items() if kind not in right)
    for path in mappings(config):
        if path != "backbone.overrides":  # whatever the network's constructor takes
            yield (f"{path}.{STRANGE}" if path else STRANGE), "fuzz"


@contextlib.contextmanager
def put(config: dict[str, Any], path: str, value: Any) -> Iterator[None]:
    """One value changed meanwhile."""
    node = config
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    before = node.get(last, STRANGE)
    node[last] = value
    yield
    node[last] = before
    if before == STRANGE:
        del node[last]


def answer(config: dict[str, Any], path: str) -> str | None:
    """What is wrong with the answer to a wrong configuration; None if it is one line that names the key."""
    last = path.rpartition(".")[2]
    try:
        check_config(config)  # the first thing that plan_run does, without OmegaConf's share of the time
        plan_run(OmegaConf.create(config))
    except ConfigError as error:
        text = str(error)
        return None if last in text and "\n" not in text and ("allowed" in text or "must be" in text) else text
    except HeadwiseError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"a traceback: {type(error).__name__}: {error}"
    return "accepted"


def survey(conf: str, choices: list[str]) -> dict[str, Any]:
    """Plan all faults of each choice (overrides joined by spaces)."""
    tried, missed = 0, []
    with initialize_config_dir(version_base="1.3", config_dir=conf):
        for choice in choices:
            cfg = compose("config", overrides=choice.split())
            config: Any = OmegaConf.to_container(cfg, resolve=True)
            check_config(config)  # right as it is
            for path, wrong in list(faults(config)):
                tried += 1
                with put(config, path, wrong):
                    why = answer(config, path)
                if why is not None:
                    missed.append([choice, path, wrong, why])
    return {"tried": tried, "missed": missed, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(survey(str(Path(sys.argv[1]).resolve()), sys.argv[2:])))
