"""Names of tasks: which there are, and that no set is called by another's name. Standard library only."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from headwise.errors import ConfigError, suggest
from headwise.protocol.pertask import DEFAULT


def check_names(table: Any, given: Collection[str], folders: tuple[str, ...]) -> None:
    """Refuse names of tasks by which a number would stand under a wrong one, or a value would be read by nothing.

    Args:
        table: ``per_task`` of a configuration; None and what is no mapping are left to `fill_tasks`.
        given: keys that were chosen for the run, whose task is one of the sets in `folders`, not a user's own images.
        folders: of the configuration; their ``dataset`` holds all tasks there are. Empty if that is not known.
    """
    if "dataset.name" in given:
        raise ConfigError(
            "dataset.name may not be set: a set's results stand under its own name; another set is a file in "
            "conf/dataset/own, one's own images are dataset=own/folder dataset.name=NAME"
        )
    allowed = [DEFAULT, *_names_of_tasks(folders)]
    for name in map(str, table if folders and isinstance(table, Mapping) else {}):
        if name not in allowed:
            raise ConfigError(f"per_task.{name}: unknown task {name!r}{suggest(name, allowed)}")


@functools.cache
def _names_of_tasks(folders: tuple[str, ...]) -> list[str]:
    files = (file for folder in folders for file in Path(folder, "dataset").rglob("*.yaml"))
    return sorted(name for file in files for name in re.findall(r"(?m)^name: *(\S+)", file.read_text("utf-8")))
