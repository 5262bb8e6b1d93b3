"""The jobs of a sweep: what its command line asks for, and whether any run can have it.

Nothing is launched here, and nothing read but YAML files.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.composition import KeptLoader, besides_seed, unlike
from headwise.commands.messages import not_given, text_of
from headwise.commands.overrides import check_sweep, readable, several_experiments
from headwise.commands.sizes import spelled
from headwise.errors import ConfigError, HeadwiseError, suggest
from headwise.protocol.job import folders
from headwise.protocol.plan import resolved
from headwise.protocol.request import request_of
from headwise.schema.secret import refuse_secrets
from headwise.schema.tree import check_config

MOST = 100_000
"""Runs that one sweep may have: what is beyond is a slip of the pen, and would take minutes to list."""
Composed = Callable[[list[str]], DictConfig]
Look = Callable[[DictConfig, Sequence[str], tuple[str, ...]], Any]


def jobs_of(params: Mapping[str, str], arguments: Sequence[str], loader: Any) -> list[list[str]]:
    """The overrides of every job: the product of all choices, as hydra's basic sweeper forms it.

    Args:
        arguments: of the command line; they beat `params`.
        loader: hydra's configuration loader, which knows what ``glob(*)`` stands for.
    Raises:
        ConfigError: for a choice that matches nothing, several experiments, or more runs than `MOST`.
    """
    given = [spelled(word) for word in (*(f"{key}={value}" for key, value in params.items()), *arguments)]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    for override in parsed:
        if override.is_sweep_override():
            _check(override, loader)
    swept = [override for override in parsed if override.is_sweep_override()]
    if math.prod(sum(1 for _ in itertools.islice(o.sweep_iterator(), MOST + 1)) for o in swept) > MOST:
        words = " ".join(str(override.input_line) for override in swept)
        raise ConfigError(f"{words[:300]}: more than {MOST:,} runs in one sweep; name fewer values")
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return [[spelled(word) for word in job] for job in jobs]


def _check(override: Override, loader: Any) -> None:
    """Refuse choices that are no sweep."""
    if override.key_or_group == "experiment":
        raise several_experiments(str(override.input_line))
    check_sweep(override)
    if next(iter(override.sweep_iterator()), None) is None:
        wanted = override.value()
        hint = ""
        if isinstance(wanted, Glob):
            hint = suggest(" ".join(wanted.include), loader.get_group_options(override.key_or_group))
        raise ConfigError(f"{override.input_line} matches nothing{hint}")


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Turn hydra's errors about what was asked for into `ConfigError` with the user's text."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(text_of(error)) from error


def checked_config(conf: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """One run's configuration, resolved and checked, its images and weights aside; what no run can have is refused."""
    with answered(), initialize_config_dir(version_base="1.3", config_dir=str(conf.resolve())):
        config: Any = OmegaConf.to_container(compose("config", overrides=readable(arguments)), resolve=True)
    refuse_secrets(config)
    check_config(config)
    return dict(config)


def requests_of(
    conf: Path, arguments: Sequence[str], check: bool = False
) -> tuple[DictConfig, dict[str, list[str]], list[str]]:
    """What ``train.py -m`` with these arguments would run, without running it.

    With `check`, one job is composed for every choice that a job has, as a run would.

    Returns:
        The configuration that all jobs share, the overrides of every job by its request, and the folders of the
        configuration.

    Raises:
        ConfigError: for choices that match nothing; with `check`, for one that no run can have.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(conf.resolve())):
        loader = KeptLoader(GlobalHydra.instance().config_loader().get_search_path())
        cfg = loader.load_configuration("config", readable(arguments, sweeps=True), RunMode.MULTIRUN)
        params: Any = OmegaConf.to_container(cfg.hydra.sweeper.params or OmegaConf.create({}))
        jobs = jobs_of(params, list(cfg.hydra.overrides.task), loader)
        sources = folders(cfg.hydra.runtime.config_sources)
        if check:
            composed = functools.partial(loader.load_sweep_config, cfg)
            check_jobs(jobs, composed, tuple(sources), without_images)
    return cfg, {request_of(job, sources): job for job in jobs}, sources


def check_jobs(jobs: Sequence[Sequence[str]], composed: Composed, sources: tuple[str, ...], look: Look) -> None:
    """Refuse, before anything is launched, what no run of a sweep can have.

    Jobs share most of their choices: as many are looked at as have every choice once.

    Args:
        composed: the configuration of a job, with hydra's node.
        sources: folders of the configuration.
        look: told a job's configuration, its overrides and `sources`; raises for what no run can have.
    Raises:
        ConfigError: beginning with the choices that only some jobs have, if not all are refused.
    """
    seen: set[str] = set()
    some = []
    for job in unlike(jobs).values():
        if not seen.issuperset(job):
            seen.update(job)
            some.append(list(job))
    accepted: list[list[str]] = []
    refused: list[tuple[list[str], HeadwiseError]] = []
    for job in some:
        try:
            cfg = composed(job)
            with open_dict(cfg):
                del cfg["hydra"]
            look(cfg, job, sources)
        except HeadwiseError as error:
            refused.append((job, error))
        else:
            accepted.append(job)
        if refused and accepted:  # it is known that it is not the fault of what all have
            break
    if refused:
        own, fault = refused[0]
        where = f"of the sweep's {' '.join(_blamed(own, accepted))}: " if accepted else ""
        raise ConfigError(f"{where}{fault}") from fault


def _blamed(job: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The choices of a refused job that no accepted one has; where each of them is accepted somewhere, those of it."""
    words = besides_seed(job)
    new = [word for word in words if not any(word in other for other in accepted)]
    return new or [word for word in words if any(word not in other for other in accepted)]


def without_images(cfg: DictConfig, job: Sequence[str], sources: tuple[str, ...]) -> None:
    """Look at a job of which only is asked how far it is: what has to be given to train it may be left out."""
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, str(cfg.root))
    if cfg.dataset.get("num_classes") is None:
        cfg.dataset.num_classes = 2  # as many as are found among the images
    resolved(cfg, job, sources)


def elsewhere(cfg: DictConfig, job: Sequence[str], sources: tuple[str, ...]) -> None:
    """Look at a job that another machine may run: its images need not be on this one, but it must be told of them."""
    for key in OmegaConf.missing_keys(cfg):
        raise not_given(key)
    without_images(cfg, job, sources)
