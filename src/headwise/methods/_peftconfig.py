"""Configs of the peft library from plain data: what may be asked for, and what peft leaves to whoever calls it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from headwise.errors import ConfigError
from headwise.methods._adalora import schedule
from headwise.schema.kinds import PROJECTIONS
from headwise.schema.peftfields import PREFIX, check_peft

OF_VALUES = (ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
REFUSALS = (*OF_VALUES, ImportError, UserWarning)
"""What peft raises where a config cannot be, or needs a package that is not installed."""

MOST_STEPS = 10**9
"""Length of a run that has room for whatever an AdaLoRA asks for."""

OFF_AT_START = ("VBLoRAConfig", "UniLoraConfig")
"""Configs whose update is drawn at random whatever they say, so that training starts off the pretrained network."""
ZERO_START = {"C3AConfig": "init_weights"}
"""Configs that draw it unless this field is true."""


def is_lora_ga(config: Mapping[str, Any]) -> bool:
    """Whether a config's start needs gradients (LoRA-GA, arXiv:2407.05000)."""
    return config.get("init_lora_weights") == "lora_ga"


def starts_off(config: Mapping[str, Any]) -> bool:
    """Whether a config draws its update at random, so that training does not start at the pretrained network."""
    kind = config_class(config)
    flags = [config.get(name, getattr(kind, name, True)) for name in ("init_weights", "init_lora_weights")]
    drawn = ZERO_START.get(kind.__name__)
    return (
        False in flags
        or kind.__name__ in OFF_AT_START
        or (drawn is not None and config.get(drawn, getattr(kind, drawn)) is not True)
        or bool(kind is peft.HRAConfig and config.get("apply_GS"))
    )


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
    """The class that ``_target_`` names, see `headwise.schema.peftfields`."""
    return getattr(peft, str(values["_target_"]).removeprefix(PREFIX))


def check_config(values: Mapping[str, Any]) -> None:
    """Check a method's config, and build it once: what peft itself refuses is told before there is a network.

    Raises:
        ConfigError: as `headwise.schema.peftfields.check_peft` and `build_config`.
    """
    check_peft(values, lambda name: f"config.{name}")
    steps = schedule(values, MOST_STEPS) if is_adalora(values) else {}
    build_config({"target_modules": list(PROJECTIONS), **values, **steps})


def build_config(values: Mapping[str, Any]) -> Any:
    """A peft config from plain data that is checked; a nested mapping with ``_target_`` is a config as well.

    Raises:
        ConfigError: for a value that peft refuses, or a method that adapts no projection.
    """
    kind = config_class(values)
    options = {
        name: build_config(value) if isinstance(value, Mapping) and "_target_" in value else value
        for name, value in values.items()
        if name != "_target_"
    }
    try:
        with strict():
            config = kind(**options)
    except REFUSALS as error:
        raise ConfigError(f"peft.{kind.__name__}: {error or type(error).__name__}") from error
    if hasattr(config, "peft_type") and config.peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise ConfigError(f"peft.{kind.__name__} adapts no projection, so it cannot be a method here")
    return config
