"""Hydra's configurations of many jobs: every file is read once, every option of a group composed once.

The jobs of a sweep are combinations of options, and most options write to a node of their own: ``method`` to the
method, ``dataset`` to the data set. What hydra has composed for each of them alone is put together for any combination.
It is what hydra itself would give; where options reach into each other's nodes, hydra composes the combination.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.messages import text_of
from headwise.commands.shared import SharedLoader
from headwise.errors import ConfigError

COMPOSED = 128
"""Compositions that are kept: those of one table's rows and columns are some forty."""
FAILURES = (HydraException, OmegaConfBaseException, ValueError)
"""What cannot be composed raises; `ValueError` also where only hydra itself can."""
_SEED = re.compile(r"seed=\d{1,9}")
Lines = tuple[str, ...]
Nodes = tuple[tuple[str, Lines], ...]


class KeptFiles(ConfigRepository):
    """Hydra's repository of YAML files, which reads each of them once: a sweep composes hundreds of configurations.

    Hydra copies a repository for everything it composes; the copy of this one is itself.
    """

    def __init__(self, path: ConfigSearchPath) -> None:
        # both before hydra's own constructor, which calls `initialize_sources`
        self.path: list[tuple[Any, Any]] = []
        self.read: dict[str, ConfigResult | None] = {}
        super().__init__(path)

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptFiles:
        return self

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Take the files from other folders; from the same ones, what was read stays."""
        path: list[tuple[Any, Any]] = [(element.provider, element.path) for element in config_search_path.get_path()]
        if path != self.path:
            self.path = path
            self.read.clear()
            super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The content of a file, None if there is none; what it holds is not to be changed, see `KeptLoader`."""
        return copy.copy(self.looked_at(config_path))

    def looked_at(self, config_path: str) -> ConfigResult | None:
        """The same, not to be changed."""
        if config_path not in self.read:
            self.read[config_path] = super().load_config(config_path)
        return self.read[config_path]


@dataclass(frozen=True)
class Whole:
    """A configuration as hydra composed it; never changed.

    Attributes:
        config: with what was chosen of groups; single values are set on copies.
        files: that it was merged of, in order: the first node that each writes to, and its path.
        is_plain: whether none of them takes an option from a choice of another group.
    """

    config: DictConfig
    files: tuple[tuple[str, str], ...]
    is_plain: bool

    @classmethod
    def of(cls, config: DictConfig, merged: Sequence[ResultDefault], kept: KeptFiles) -> Whole:
        """A configuration and the list of defaults that it was merged of."""
        read = (kept.looked_at(str(file.config_path)) for file in merged)
        is_plain = not any("${" in str(default) for file in read if file for default in file.defaults_list or ())
        return cls(config, tuple((_top(file.package), str(file.config_path)) for file in merged), is_plain)

    def differs_in(self, node: str, other: Whole) -> bool:
        """Whether `other` was merged of the same files, but for some that write to `node` only."""
        both_have_it = node in self.config and node in other.config
        return both_have_it and other.is_plain and self._outside(node) == other._outside(node)

    def _outside(self, node: str) -> list[tuple[str, str]]:
        return [file for file in self.files if file[0] != node]


class Joint(NamedTuple):
    """A configuration that is made of others.

    Attributes:
        base: gives all nodes but some.
        others: by node those that give it.
    """

    base: Whole
    others: dict[str, Whole]

    def copy(self) -> DictConfig:
        """The configuration, to be changed at will."""
        # deepcopy takes a node that it is told of for copied: parts of other compositions come in place of base's own
        memo: dict[int, Any] = {
            id(self.base.config._get_node(node)): copy.deepcopy(other.config._get_node(node))
            for node, other in self.others.items()
        }
        return copy.deepcopy(self.base.config, memo)


class Parts:
    """Configurations put together from those that were composed before.

    Args:
        files: that they are composed of.
        compose: what hydra composes of overrides that choose options of groups.
    """

    def __init__(self, files: KeptFiles, compose: Callable[[Lines], Whole]) -> None:
        self.files, self.compose = files, compose
        self._first: dict[Lines, dict[str, Lines]] = {}
        self._whole = functools.lru_cache(maxsize=COMPOSED)(self._composed)

    def joint(self, chosen: Sequence[Override]) -> Joint:
        """What hydra composes of the overrides, which are in order and all that choose options of groups."""
        shared, nodes = self._apart(chosen)
        # combinations are told by what they change of the first one that was asked for
        first = self._first.setdefault(shared, nodes)
        base = self._whole(shared, _items(first))
        changed = [node for node in {**first, **nodes} if first.get(node) != nodes.get(node)]
        others = {node: self._whole(shared, _items({**first, node: nodes.get(node, ())})) for node in changed}
        if all(base.differs_in(node, other) for node, other in others.items()):
            return Joint(base, others)
        return Joint(self._whole(shared, _items(nodes)), {})

    def _composed(self, shared: Lines, nodes: Nodes) -> Whole:
        return self.compose((*shared, *(line for _, lines in nodes for line in lines)))

    def _apart(self, chosen: Sequence[Override]) -> tuple[Lines, dict[str, Lines]]:
        """Overrides that every part is composed with, and by node those that seem to write to it only."""
        shared: list[str] = []
        nodes: dict[str, Lines] = {}
        groups = [override.get_key_element().lstrip("+~") for override in chosen]
        for override, group in zip(chosen, groups, strict=True):
            line = str(override.input_line)
            node = self._node(override) if groups.count(group) == 1 else None  # of two options the last one counts
            if node is None:
                shared.append(line)
            else:
                nodes[node] = (*nodes.get(node, ()), line)
        return tuple(shared), nodes

    def _node(self, override: Override) -> str | None:
        """The first node that an option seems to write to; None for one that is added, removed or of no node."""
        value, group = override.value(), override.key_or_group
        if override.is_add() or override.is_delete() or not isinstance(value, str) or _is_of_hydra(override):
            return None
        option = self.files.looked_at(f"{group}/{value}")
        if option is None or option.header.get("package") is not None:
            return None
        return _top(override.package or group.replace("/", ".")) or None


class KeptLoader(SharedLoader):
    """Hydra's loader of configurations for jobs that are alike; it gives what hydra's own gives."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.files = KeptFiles(config_search_path)
        self.repository = self.files
        self.parsed = functools.lru_cache(maxsize=4096)(self._parsed)
        self._merged: Sequence[ResultDefault] = ()
        self._parts: dict[tuple[Any, ...], Parts] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptLoader, (self.config_search_path,)  # a worker composes its own jobs

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """What hydra composes."""
        if run_mode == RunMode.RUN:
            # an error is hydra's to tell, which composes once more below
            with contextlib.suppress(*FAILURES):
                return self._joined(config_name, overrides)
        return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    def check(self, master: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
        """Compose of a sweep's jobs what no other of them has: every option, and the values that are set beside it."""
        of_hydra: Any = OmegaConf.to_container(master.hydra.overrides.hydra)
        seen: dict[tuple[int, Lines], Whole] = {}
        for job in unlike(jobs).values():
            try:
                joint, values = self._apart(master.hydra.job.config_name, [*of_hydra, *job])
                owners = [joint.others.get(_top(value.key_or_group), joint.base) for value in values]
                for owner in {id(owner): owner for owner in owners}.values():
                    own = [value for value, other in zip(values, owners, strict=True) if other is owner]
                    key = id(owner), tuple(str(value.input_line) for value in own)
                    if key not in seen:
                        seen[key] = owner  # which is kept: nothing else gets its id
                        ConfigLoaderImpl._apply_overrides_to_config(own, copy.deepcopy(owner.config))
            except FAILURES:
                try:
                    self.load_sweep_config(master, list(job))
                except FAILURES as error:
                    words = [word for word in besides_seed(job) if any(word not in other for other in jobs)]
                    where = f"of the sweep's {' '.join(words)}: " if words else ""
                    raise ConfigError(where + text_of(error)) from error

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        return not isinstance(override.value(), dict) and self.files.group_exists(override.key_or_group)

    def _parsed(self, override: str) -> Override:
        (parsed,) = OverridesParser.create(config_loader=self).parse_overrides([override])
        return parsed

    def _apart(self, name: str | None, lines: Sequence[str]) -> tuple[Joint, list[Override]]:
        """What the groups of a job choose, and the single values that are set in it."""
        overrides = [self.parsed(line) for line in lines]
        if any(override.is_sweep_override() for override in overrides):
            raise ValueError("hydra refuses several values")
        chosen = [override for override in overrides if self.is_group(override) or _is_of_hydra(override)]
        return self._parts_of(name).joint(chosen), [override for override in overrides if override not in chosen]

    def _joined(self, name: str | None, lines: Sequence[str]) -> DictConfig:
        """The configuration of a job, from parts: what its groups choose, then single values, then what hydra notes."""
        joint, values = self._apart(name, lines)
        cfg = joint.copy()
        if cfg.hydra.job.env_copy:
            raise ValueError("the environment may be another one by now")
        OmegaConf.clear_cache(cfg)  # the time of day, which is that of each job
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        own, asked = joint.base.config.hydra.runtime.choices, cfg.hydra.runtime.choices
        for other in joint.others.values():
            theirs = other.config.hydra.runtime.choices
            for group in own.keys() - theirs.keys():
                del asked[group]
            asked.update({group: option for group, option in theirs.items() if option != own.get(group, theirs)})
        overrides = [self.parsed(line) for line in lines]
        task = [override for override in overrides if not override.is_hydra_override()]
        cfg.hydra.overrides.hydra = [line.input_line for line in overrides if line.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task]
        spelling = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            task, kv_sep=spelling.kv_sep, item_sep=spelling.item_sep, exclude_keys=spelling.exclude_keys
        )
        return cfg

    def _parts_of(self, name: str | None) -> Parts:
        """Compositions of a primary configuration, for the working folder and the job that hydra writes into them."""
        place = (name, Path.cwd(), JobRuntime.instance().get("name"))
        if place not in self._parts:
            self._parts = {place: Parts(self.files, functools.partial(self._whole, name))}
        return self._parts[place]

    def _whole(self, name: str | None, chosen: Lines) -> Whole:
        config = super().load_configuration(name, list(chosen), RunMode.RUN)
        return Whole.of(config, self._merged, self.files)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        """A file for its place; hydra copies it there, but for one of the whole configuration, whose nodes it takes."""
        placed = super()._load_single_config(default, repo)
        kept = self.files.looked_at(str(default.config_path))
        if kept is not None and placed.config is kept.config:
            placed = copy.copy(placed)
            placed.config = copy.deepcopy(kept.config)
        return placed

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        self._merged = tuple(defaults)
        return super()._compose_config_from_defaults_list(defaults, repo)


def besides_seed(job: Sequence[str]) -> Lines:
    """What runs that differ in their seed only have in common: how long they take, and whether they can be run."""
    return tuple(word for word in job if not _SEED.fullmatch(word))


def unlike(jobs: Iterable[Sequence[str]]) -> dict[Lines, Sequence[str]]:
    """One job of those that differ in their seed only, by what they have in common, in order."""
    first: dict[Lines, Sequence[str]] = {}
    for job in jobs:
        first.setdefault(besides_seed(job), job)
    return first


def _is_of_hydra(override: Override) -> bool:
    return override.key_or_group == "hydra" or override.is_hydra_override()


def _top(package: str | None) -> str:
    """The first node of a package; empty for the whole configuration."""
    return (package or "").partition(".")[0]


def _items(nodes: Mapping[str, Lines]) -> Nodes:
    return tuple((node, lines) for node, lines in nodes.items() if lines)
