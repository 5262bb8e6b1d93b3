"""The online tracker of a run, which is optional: opened before training, closed with a true exit code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from headwise.errors import ConfigError
from headwise.results.records import RunKey


@contextlib.contextmanager
def tracked(config: Mapping[str, Any], key: RunKey) -> Iterator[Any]:
    """The tracker of this run, closed with a true exit code; None where curves stay in local files only."""
    options = dict(config["logger"])
    options.pop("pictures", None)
    if options.pop("kind", "csv") != "wandb":
        yield None
        return
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    if not options.get("offline", True):
        _check_tracker()
    options.setdefault("group", key.name)
    logger = WandbLogger(
        name=f"{key.method}/{key.dataset}/{key.variant}/{key.seed}",
        save_dir=config["root"],
        config=dict(config),
        **options,
    )
    # whatever leaves the block early, an interrupt too, is a failure to the tracker
    code = 1
    try:
        yield logger
        code = 0
    finally:
        wandb.finish(exit_code=code)


def _check_tracker() -> None:
    """Refuse an online tracker that would ask for a key, or wait for a host, in the middle of a sweep.

    Raises:
        ConfigError: with the ways out.
    """
    import wandb

    why = "wandb knows no key"
    try:
        if os.environ.get("WANDB_MODE", "online") != "online" or wandb.login(prompt=False):
            return
    except wandb.errors.Error as error:
        why = " ".join(str(error).split())
    raise ConfigError(
        f"logger.offline=false: {why}; run `wandb login`, set WANDB_API_KEY, or take logger.offline=true and "
        "`wandb sync` afterwards"
    )
