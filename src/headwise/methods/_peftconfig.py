"""Configs of the peft library from plain data: what may be asked for, and what peft leaves to whoever calls it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from headwise.errors import ConfigError, suggest
from headwise.methods._adalora import schedule
from headwise.schema.kinds import PROJECTIONS
from headwise.schema.peftfields import PREFIX, check_peft

OF_VALUES = (ValueError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
REFUSALS = (*OF_VALUES, ImportError, UserWarning)
"""What peft raises where a config cannot be, or needs a package that is not installed."""

MOST_STEPS = 10**9
"""Length of a run that has room for whatever an AdaLoRA asks for."""

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
    """The class that ``_target_`` names, see `headwise.schema.peftfields`."""
    kind: type[Any] = getattr(peft, str(values["_target_"]).removeprefix(PREFIX))
    return kind


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
