"""Keys of a configuration that hold secrets: refused, for a configuration is written into every record of its run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headwise.errors import ConfigError

_SECRET = re.compile(
    r"(?:.*[_\-.])?(?:api_?key|access_?key|private_?key|(?:auth|access|api|hub|hf)?_?token|secret|password|passwd"
    r"|passphrase|credentials?)",
    re.IGNORECASE,
)
HIDDEN = "***"


def is_secret(key: str) -> bool:
    """Whether a dotted key holds a secret, by its last part."""
    return _SECRET.fullmatch(key.lstrip("+~").rpartition(".")[2]) is not None


def hidden(override: str) -> str:
    """An override without its value where that is a secret."""
    key, equals, _ = override.partition("=")
    return f"{key}={HIDDEN}" if equals and is_secret(key) else override


def refuse_secrets(config: Any, overrides: Iterable[str] = ()) -> None:
    """Check that neither a configuration nor overrides hold a secret; ConfigError naming the key, never its value."""
    given = [override.partition("=")[0].lstrip("+~") for override in overrides if "=" in override]
    for key in [*(key for key in given if is_secret(key)), *_secret_keys(config, "")]:
        raise ConfigError(
            f"{key} is a secret, and a configuration is written into every record: give it in the environment instead "
            "(WANDB_API_KEY for wandb, or `wandb login` once)"
        )


def _secret_keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if isinstance(value, Mapping | list | tuple):
                yield from _secret_keys(value, f"{prefix}{name}.")
            # a field that is left empty holds none
            elif value not in (None, "", True, False) and is_secret(str(name)):
                yield f"{prefix}{name}"
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _secret_keys(value, f"{prefix}{index}.")
