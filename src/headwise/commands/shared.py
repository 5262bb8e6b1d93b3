"""The configuration that all jobs of a sweep share.

Hydra composes it of everything that is not swept. A field of a group whose options are tried, such as ``method.rank``
beside ``method=lora,dora``, has no place in it: it belongs to those, not to the group's default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import hydra._internal.hydra
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig


@contextlib.contextmanager
def choices_on_demand() -> Iterator[None]:
    """Let hydra list what is chosen so far only for files whose defaults read it: ``${dataset}`` in an option's name.

    Hydra lists it for every file, which takes half of the time of a composition; what it composes is the same.
    """
    listed = defaults_list._create_interpolation_map

    def asked_for(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig | None:
        reads = any("${" in str(value) for default in defaults for value in vars(default).values())
        return listed(overrides, defaults, self_added) if reads else None

    defaults_list._create_interpolation_map = asked_for  # type: ignore[assignment]
    try:
        yield
    finally:
        defaults_list._create_interpolation_map = listed


class SharedLoader(ConfigLoaderImpl):
    """Hydra's loader of configurations, which leaves the fields of swept groups to the jobs."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """What hydra composes; in a sweep the fields of swept groups are among the overrides of its jobs only."""

        def composed(lines: list[str]) -> DictConfig:
            with choices_on_demand():
                return super(SharedLoader, self).load_configuration(
                    config_name, lines, run_mode, from_shell, validate_sweep_overrides
                )

        if run_mode != RunMode.MULTIRUN:
            return composed(overrides)
        parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
        fields = [override for override in parsed if "." in override.key_or_group and not override.is_hydra_override()]
        others = [override for override in parsed if override not in fields]
        cfg = composed(_lines(others))
        if not validate_sweep_overrides:  # hydra looks for its mode only, before it composes for that
            return cfg
        swept = self._swept(others, cfg.hydra.sweeper.get("params") or {})
        left = [field for field in fields if field.key_or_group.startswith(swept)]
        if len(left) < len(fields):
            cfg = composed(_lines(override for override in parsed if override not in left))
        cfg.hydra.overrides.task = _lines(override for override in parsed if not override.is_hydra_override())
        return cfg

    def _swept(self, given: Sequence[Override], params: Mapping[str, str]) -> tuple[str, ...]:
        """How the fields of all groups begin whose options are tried: on the command line, or by an experiment."""
        options = {_node(override): override.is_sweep_override() for override in given}
        tried = {_package(key): True for key in params}
        return tuple(f"{node}." for node, is_tried in {**tried, **options}.items() if is_tried)


def install() -> None:
    """Let hydra's commands compose with `SharedLoader`; hydra itself names no way to another loader."""
    hydra._internal.hydra.ConfigLoaderImpl = SharedLoader  # type: ignore[misc]


def _node(override: Override) -> str:
    return (override.package or override.key_or_group).replace("/", ".")


def _package(key: str) -> str:
    """Where a group's option goes: ``method.first`` of ``method@method.first``."""
    return key.lstrip("+~").rpartition("@")[2].replace("/", ".")


def _lines(overrides: Iterable[Override]) -> list[str]:
    return [str(override.input_line) for override in overrides]
