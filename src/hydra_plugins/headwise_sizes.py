"""Hydra's way to numbers as options: ``rank=8`` and ``ne=3`` without a file for each; see `headwise.commands.sizes`."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from headwise.commands.sizes import option


class SizesSource(ConfigSource):
    """Options of ``rank`` and ``ne`` that are numbers; files in conf/ come first."""

    @staticmethod
    def scheme() -> str:
        """Of the address in hydra's search path."""
        return "sizes"

    def load_config(self, config_path: str) -> ConfigResult:
        """The option as a configuration.

        Raises:
            ConfigLoadError: for a path that is none.
        """
        found = option(*_parts(config_path))
        if found is None:
            raise ConfigLoadError(f"no size: {config_path}")
        return ConfigResult(
            config=OmegaConf.create(found),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": None},
        )

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Never: there is no end of numbers to list."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether it is ``rank/NUMBER`` or ``ne/NUMBER``."""
        return option(*_parts(config_path)) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing."""
        return []


class SizesPath(SearchPathPlugin):
    """Puts `SizesSource` behind the folders of the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """As hydra asks."""
        search_path.append(provider="headwise", path="sizes://")


def _parts(config_path: str) -> tuple[str, str]:
    group, _, name = config_path.removesuffix(".yaml").strip("/").rpartition("/")
    return group, name
