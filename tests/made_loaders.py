"""Hydra's own loader, for tests that compare with it: it composes everything anew, of files that are read once."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class ReadOnce(ConfigRepository):
    """Hydra's repository of YAML files; whoever asks for one gets a copy, and may change it."""

    read: dict[str, ConfigResult | None]

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        self.read = {}  # of these folders
        super().initialize_sources(config_search_path)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        return copy.copy(self)  # which hydra may send to other folders

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.read:
            self.read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.read[config_path])


_known: dict[tuple[tuple[str, str], ...], ReadOnce] = {}


def hydras_own(path: ConfigSearchPath) -> ConfigLoaderImpl:
    """Hydra's loader, for folders whose files stay as they are."""
    places = tuple((str(place.provider), str(place.path)) for place in path.get_path())
    loader = ConfigLoaderImpl(path)
    loader.repository = _known.setdefault(places, ReadOnce(path))
    return loader
