"""The variant of a run, from the choices that count: those without which it would be another run.

A choice that is the default anyway, or that nothing reads, does not count; to find out, the configuration is composed
again without it. Hydra composes what groups choose, once for all runs of a process; single values are set on a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.conf import HydraConf
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.composition import KeptLoader, Parts, Whole
from headwise.commands.shared import choices_on_demand
from headwise.errors import HeadwiseError
from headwise.protocol.variants import telling, variant_of
from headwise.results.fingerprint import LOCATIONS, leaves

Folders = tuple[tuple[str, str], ...]
Identify = Callable[[DictConfig, Sequence[str]], Mapping[str, Any]]


def variant(hydra: HydraConf, overrides: Sequence[str], own: Mapping[str, Any], identify: Identify) -> str:
    """The variant of a job of hydra's.

    Args:
        hydra: its own configuration of the job: where YAML files lie, and the name of the first one.
        identify: the identity that a configuration composed of other overrides has.
    """
    sources = tuple((source.provider, f"{source.schema}://{source.path}") for source in hydra.runtime.config_sources)
    composer = _composer(sources, str(hydra.job.config_name))

    def alike(some: Sequence[str]) -> bool:
        try:
            return identify(composer.compose(some), some) == own
        except (HeadwiseError, HydraException, InstantiationException, OmegaConfBaseException):
            return False  # nothing stands without that choice
        except (KeyError, TypeError, ValueError, OSError):
            return False

    choices = composer.spelled(telling(overrides, alike, composer.is_group), overrides)
    return variant_of(choices, contents=_contents(own))


class Composer:
    """Composes configurations from folders of YAML files."""

    def __init__(self, sources: Folders, name: str) -> None:
        path = ConfigSearchPathImpl()
        for provider, address in sources:
            path.append(provider, address)
        self.name, self.loader = name, KeptLoader(path)
        self._parts = Parts(self.loader.files, self._compose)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """What hydra composes of the overrides, without its own node."""
        parsed = [self.loader.parsed(override) for override in overrides]
        groups = [override for override in parsed if self.loader.is_group(override)]
        cfg = self._parts.joint(groups).copy()
        ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if override not in groups], cfg)
        return cfg

    def _compose(self, groups: tuple[str, ...]) -> Whole:
        """What groups choose, as hydra's loader merges it, but for hydra's own part, which takes most of its time."""
        repository = CachingConfigRepository(self.loader.files)
        parsed = [self.loader.parsed(override) for override in groups]
        with choices_on_demand():
            listed = create_defaults_list(repository, self.name, parsed, prepend_hydra=True, skip_missing=False)
        own = [default for default in listed.defaults if not str(default.config_path).startswith("hydra/")]
        cfg = self.loader._compose_config_from_defaults_list(own, repository)
        cfg.pop("hydra", None)
        # as hydra does: a key that the YAML files do not have is refused and not made
        OmegaConf.set_struct(cfg, True)
        return Whole.of(cfg, own, self.loader.files)

    def spelled(self, choices: Sequence[str], overrides: Sequence[str]) -> list[str]:
        """Choices within a group, or by its content, as the option that says the same: ``rank.global=8`` is r8."""
        values: dict[str, list[str]] = {}
        for word in choices:
            name, _, value = word.lstrip("+").partition("=")
            group = name.partition(".")[0]
            if self.loader.files.group_exists(group) and (name != group or not value[:1].isalpha()):
                values.setdefault(group, []).append(word)
        spelled = list(choices)
        for group, words in values.items():
            node = self.compose(overrides)[group]
            if option := self._option(group, OmegaConf.to_container(node)):
                first = spelled.index(words[0])
                spelled = [word for word in spelled if word not in words and not word.startswith(f"{group}=")]
                spelled.insert(first, f"{group}={option}")
        return spelled

    def _option(self, group: str, content: Any) -> str:
        """The shortest name, of those that begin with a letter, of an option with that content; empty if none has."""
        names = sorted(filter(lambda name: name[:1].isalpha(), self.loader.get_group_options(group)), key=len)
        return next((name for name in names if self._content(f"{group}/{name}") == content), "")

    def _content(self, path: str) -> Any:
        loaded = self.loader.files.looked_at(path)
        return None if loaded is None else OmegaConf.to_container(loaded.config)

    def is_group(self, override: str) -> bool:
        """Whether it chooses an option of a group."""
        return self.loader.is_group(self.loader.parsed(override))


@functools.cache
def _composer(sources: Folders, name: str) -> Composer:
    return Composer(sources, name)


def _contents(own: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> hash of the file that the key leads to."""
    flat = leaves(own, "")
    return {
        key: value
        for key, value in flat.items()
        if isinstance(value, str) and any(fnmatchcase(key, pattern) for pattern in LOCATIONS)
    }
