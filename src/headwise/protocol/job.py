"""The job that hydra runs in this process: what was asked for, where its YAML files lie, which of several it is."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig

from headwise.protocol.request import request_of
from headwise.schema.secret import hidden


def asked() -> str:
    """The request of the job; empty outside of hydra's command line."""
    return request_of(overrides_of(), list(sources())) if HydraConfig.initialized() else ""


def sources() -> tuple[str, ...]:
    """The configuration folders of the job; empty outside of hydra's command line."""
    return tuple(folders(HydraConfig.get().runtime.config_sources)) if HydraConfig.initialized() else ()


def folders(config_sources: Any) -> list[str]:
    """Configuration folders among hydra's ``runtime.config_sources``."""
    return [source.path for source in config_sources if source.schema == "file"]


def overrides_of() -> tuple[str, ...]:
    """What was asked for on the command line, or by a sweep for this job; values of secrets are hidden."""
    return tuple(hidden(str(given)) for given in HydraConfig.get().overrides.task) if HydraConfig.initialized() else ()


def turn() -> int:
    """The number of this job among joblib's processes, which run at the same time; any other job is alone."""
    if not HydraConfig.initialized() or "joblib" not in str(HydraConfig.get().launcher.get("_target_", "")):
        return 0
    return int(HydraConfig.get().job.num)
