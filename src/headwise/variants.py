"""Names of run folders, written from what was chosen on the command line; nobody types them. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OWN_FOLDER = ("method", "dataset", "seed")
"""Keys that have a level of their own in a run's path."""
NOT_THE_RUN = (
    *("root", "name", "experiment", "resume", "wait", "logger", "trainer.progress", "data.root", "data"),
    "backbone.weights_are",
)
"""Keys that say where things lie or are shown. What files hold is in the fingerprint."""
BASE = "base"
"""The variant of a run for which nothing that counts was chosen."""
WEIGHTS_BY_NAME = ("none", "auto")
"""Values of backbone.weights that say what the weights are; any other says where a file lies."""


def variant_of(overrides: Sequence[str], limit: int = 120) -> str:
    """The variant of a run from its overrides: ``ne3-scale10``; `BASE` if nothing that counts was chosen.

    Args:
        overrides: as given, ``key=value``, in any order; the last of a key wins.
        limit: characters; beyond them a hash of the rest keeps names apart.
    """
    chosen: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        if key in (*OWN_FOLDER, *NOT_THE_RUN) or group in OWN_FOLDER:
            continue
        if key.startswith(("hydra.", "hydra/", "logger.")):
            continue
        if key == "backbone.weights" and value not in WEIGHTS_BY_NAME:
            continue
        chosen[key] = value
    parts = [_part(key, value) for key, value in sorted(chosen.items())]
    text = "-".join(parts) or BASE
    if len(text) > limit:
        import hashlib

        text = f"{text[: limit - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def choices_of(variant: str) -> list[str]:
    """The choices that a variant names: ``ne3-scale-1`` is ``ne3``, ``scale-1``; none if it is `BASE`."""
    return [] if variant == BASE else re.split(r"-(?=[A-Za-z_])", variant)


def common_choices(variants: Iterable[str]) -> list[str]:
    """The choices that all variants name: they tell none from another."""
    first, *others = {variant: choices_of(variant) for variant in variants}.values() or [[]]
    return [choice for choice in first if all(choice in other for other in others)]


def beside_common(variant: str, common: Sequence[str]) -> str:
    """The variant without choices that are common to all; `BASE` if nothing is left."""
    return "-".join(choice for choice in choices_of(variant) if choice not in common) or BASE


def _part(key: str, value: str) -> str:
    """``rank=r8`` is ``r8``; ``protocol.epochs=10`` is ``epochs10``; ``method.first.rank=4`` is ``first_rank4``."""
    value = value.strip("'\"")
    sign = "-" if re.match(r"-[\d.]", value) else ""
    clean = sign + (re.sub(r"[^A-Za-z0-9.+_]+|\.\.+", "_", value).strip("_.") or "none")
    if "." not in key:
        return clean if clean[0].isalpha() else f"{key}{clean}"
    *_, parent, name = key.split(".")
    return f"{name}{clean}" if key.count(".") == 1 else f"{parent}_{name}{clean}"
