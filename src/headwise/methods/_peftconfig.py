"""Configs of the peft library from plain data: what may be asked for, and what peft leaves to whoever calls it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from headwise.errors import ConfigError, suggest

REFUSALS = (ValueError, TypeError, ImportError, UserWarning)
"""What peft raises where a config cannot be, or needs a package that is not installed."""

FETCHING = re.compile("adapters|auto_mapping|base_model.*|megatron_.*|prompt_tuning.*|revision|shadow_model|token.*")
"""Fields by which a config makes peft import modules, read files or fetch other models."""

UNPREPARED: tuple[tuple[str, Any, str], ...] = (
    ("init_lora_weights", "eva", "its start needs passes over the data that also choose the ranks"),
    ("init_lora_weights", "corda", "its start needs covariances of the inputs"),
    ("eva_config", None, "its start needs passes over the data that also choose the ranks"),
    ("corda_config", None, "its start needs covariances of the inputs"),
    ("use_qalora", True, "peft has it for GPTQ layers only and would train plain LoRA"),
    ("kasa_config", None, "peft leaves its regularisers to the training loop"),
    ("monteclora_config", None, "peft leaves its regulariser to the training loop"),
    ("arrow_config", None, "it routes between adapters that must be there already"),
    ("use_asa", True, "peft leaves its allocation to the training loop"),
)
"""Where peft would run something else than was asked for unless its caller did more: the field, the value that asks for
it (None: any), and why."""


SIZES: Mapping[str, tuple[tuple[str, ...], Callable[..., int]]] = {
    "LoraConfig": (("r", "use_dora"), lambda o, i, r, use_dora: r * (i + o) + (o if use_dora else 0)),
    "AdaLoraConfig": (("init_r",), lambda o, i, init_r: init_r * (i + o + 1)),
    "FourierFTConfig": (("n_frequency",), lambda o, i, n_frequency: n_frequency),
    "VeraConfig": (("r",), lambda o, i, r: r + o),
}
"""By config: the fields that its number of parameters at one projection depends on, and the number, of O, I and them.
AdaLoRA's is that of its initial ranks."""


def size_of(config: Mapping[str, Any]) -> Callable[[int, int, int], int]:
    """Parameters that a config trains at one projection, as a function of its rows O, columns I and heads.

    Raises:
        ConfigError: if that is not known here in closed form.
    """
    kind = config_class(config)
    if kind.__name__ not in SIZES:
        raise ConfigError(f"the size of {config['_target_']} is not known in closed form{suggest('', SIZES)}")
    fields, cost = SIZES[kind.__name__]
    given = {name: config.get(name, getattr(kind, name)) for name in fields}
    return lambda num_rows, num_inputs, _: cost(num_rows, num_inputs, **given)


def refuse_unprepared(values: Mapping[str, Any]) -> None:
    """Refuse what peft leaves to its caller and is not done here.

    Raises:
        ConfigError: naming the field.
    """
    for field, asked, why in UNPREPARED:
        given = values.get(field)
        if given not in (None, False) and asked in (None, given):
            raise ConfigError(f"config.{field}={_shown(given)} is not supported: {why}; allowed: leave it out")


def _shown(value: Any) -> str:
    return str(value.get("_target_", "a mapping")) if isinstance(value, Mapping) else repr(value)


def is_lora_ga(config: Mapping[str, Any]) -> bool:
    """Whether a config's start needs gradients (LoRA-GA, arXiv:2407.05000)."""
    return config.get("init_lora_weights") == "lora_ga"


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Take peft's warnings as errors: they say that it ignores or alters what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module=r"peft\.tuners")
        yield


def is_adalora(config: Mapping[str, Any]) -> bool:
    """Whether a config is AdaLoRA's."""
    return config_class(config) is peft.AdaLoraConfig


def config_class(values: Mapping[str, Any]) -> type[Any]:
    """The class that ``_target_`` names.

    Raises:
        ConfigError: if it is not one of peft's configs; lists them.
    """
    target = str(values.get("_target_", ""))[:200] if isinstance(values, Mapping) else repr(values)[:200]
    module, _, name = target.rpartition(".")
    kind = getattr(peft, name, None) if module == "peft" else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and name.endswith("Config")):
        names = [f"peft.{name}" for name in dir(peft) if name.endswith("Config")]
        raise ConfigError(f"config._target_ must name a config of peft, got {target!r}{suggest(target, names)}")
    return kind


def build_config(values: Mapping[str, Any]) -> Any:
    """A peft config from plain data; a nested mapping with ``_target_`` is a config as well.

    Raises:
        ConfigError: for an unknown field, a value that peft refuses, or a method that adapts no projection.
    """
    kind = config_class(values)
    allowed = {field.name for field in dataclasses.fields(kind) if field.init}
    options = {}
    for name, value in values.items():
        if name == "_target_":
            continue
        if name not in allowed:
            raise ConfigError(f"peft.{kind.__name__} has no field {name!r}{suggest(name, allowed)}")
        if FETCHING.fullmatch(name) and value is not None:
            raise ConfigError(f"config.{name} is not supported: it would make peft import or load something of its own")
        options[name] = build_config(value) if isinstance(value, Mapping) and "_target_" in value else value
    try:
        with strict():
            config = kind(**options)
    except REFUSALS as error:
        raise ConfigError(f"peft.{kind.__name__}: {error}") from error
    if hasattr(config, "peft_type") and config.peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise ConfigError(f"peft.{kind.__name__} adapts no projection, so it cannot be a method here")
    return config
