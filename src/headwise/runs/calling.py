"""train: what ``train.py`` does, called from Python. Names of runs, seeds and resuming are the same: so is the code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from headwise.commands.overrides import GROUPS, quoted, readable
from headwise.errors import ConfigError
from headwise.protocol.described import CONF
from headwise.protocol.plan import root_of
from headwise.results.store import Result
from headwise.runs.experiment import obtained, run
from headwise.runs.jobs import answered, requests_of
from headwise.runs.ledger import finished_requests
from headwise.schema.secret import refuse_secrets


def train(**overrides: Any) -> Result | list[Result]:
    """Run one configuration, or a sweep; what is finished is taken as it is, what was stopped goes on.

        result = headwise.train(method="hs_lora", dataset="eurosat", rank=8, protocol={"epochs": 10})
        results = headwise.train(method=["lora", "hs_lora"], seed=[0, 1, 2], dataset="svhn")

    Args:
        overrides: what the command line would say. A list holds the values of a sweep; a value that is itself a list is
            a tuple. Fields of a group are a mapping or have dots, ``**{"protocol.epochs": 10}``. ``experiment`` is a
            sweep.

    Returns:
        The record of the run; of a sweep those of all its runs, in order.

    Raises:
        HeadwiseError: as the command line says it. SweepError: after all other runs, if some failed.
    """
    words = readable(list(_words(overrides)), sweeps=_is_sweep(overrides))
    refuse_secrets(None, words)
    return _swept(words) if _is_sweep(overrides) else _one(words)


def _is_sweep(overrides: Mapping[str, Any]) -> bool:
    values = list(overrides.values())
    nested = any(isinstance(value, Mapping) and _is_sweep(value) for value in values)
    return nested or any(isinstance(value, list) for value in values) or overrides.get("experiment") is not None


def _one(words: list[str]) -> Result:
    results: list[Result | None] = []
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            results.append(obtained(cfg))
        except Exception as error:  # hydra would print an error of its own in front of ours
            failures.append(error)

    with _hydra() as hydra:
        hydra.run("config", job, words, with_log_configuration=False)
    if failures:
        raise failures[0]
    (result,) = results
    if result is None:
        raise ConfigError("the run has no result")
    return result


def _swept(words: list[str]) -> list[Result]:
    with _hydra() as hydra:
        hydra.multirun("config", run, words, with_log_configuration=False)
    with answered():
        cfg, jobs, _ = requests_of(CONF, words)
    root = root_of(cfg.root)
    finished = finished_requests(root)
    return [Result.read(finished[request].key.path(root) / "result.json") for request in jobs]


@contextlib.contextmanager
def _hydra() -> Iterator[Any]:
    """Hydra with our configuration; whatever the caller has made of hydra is there again afterwards."""
    own = HydraConfig.instance().cfg
    try:
        with answered(), initialize_config_dir(version_base="1.3", config_dir=str(CONF.resolve()), job_name="train"):
            yield GlobalHydra.instance().hydra
    finally:
        HydraConfig.instance().cfg = own


def _words(overrides: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The overrides as they are typed."""
    for name, value in overrides.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _words(value, f"{key}.")
        elif isinstance(value, list):
            if not value:
                raise ConfigError(f"{key}=[] is a sweep over nothing; a value that is an empty list is ()")
            yield f"{key}={','.join(_text(key, entry) for entry in value)}"
        else:
            yield f"{key}={_text(key, value)}"


def _text(key: str, value: Any) -> str:
    """A value as it is typed: without quotes where it can be."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{','.join(_text('x', entry) for entry in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str | Path):
        raise ConfigError(f"{key}={value!r}: allowed are text, numbers, booleans, None, tuples, and lists for a sweep")
    text = str(value)
    if key.lstrip("+").partition("@")[0] in GROUPS:
        return text
    parser: Any = OverridesParser.create()
    with contextlib.suppress(HydraException):
        if parser.parse_override(f"{key}={text}").value() == text:
            return text
    return quoted(text)
