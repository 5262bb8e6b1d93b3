"""Names of run folders, written from what was chosen on the command line; nobody types them. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath

from headwise.storage.weights import BY_NAME

OWN_FOLDER = ("method", "dataset", "seed")
"""Keys that have a level of their own in a run's path."""
NOT_THE_RUN = (
    *("root", "name", "experiment", "resume", "wait", "logger", "trainer.progress", "trainer.checkpointing"),
    *("data.root", "data"),
    "backbone.weights_are",
)
"""Keys that say where things lie or are shown. What files hold is in the fingerprint."""
BASE = "base"
"""The variant of a run for which nothing that counts was chosen."""
WEIGHTS_BY_NAME = ("none", "auto")
"""Values of backbone.weights that say what the weights are; any other says where a file lies."""
LIMIT = 120
"""Characters of a name; beyond them a hash of the rest keeps names apart."""
QUOTES = "'\""


def telling(
    overrides: Sequence[str], alike: Callable[[Sequence[str]], bool], is_group: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """The overrides that tell a run from the default one of its method, data set and experiment.

    What is default anyway, or is read by nothing, is left out. Of choices that say the same, those of a whole group
    stay.

    Args:
        overrides: as given, ``key=value``, in any order.
        alike: whether other overrides ask for the same run.
        is_group: whether an override chooses an option of a group.
    """
    kept = list(overrides)
    named = [override for override in overrides if _names(override)]
    if not named or alike([override for override in overrides if override not in named]):
        return []
    if len(named) > 1:
        # single keys are tried first: where a group's option says the same, they go and it stays
        for override in sorted(named, key=lambda override: (is_group(override), override)):
            rest = [other for other in kept if other != override]
            if alike(rest):
                kept = rest
    return [override for override in kept if override in named]


def variant_of(overrides: Sequence[str], contents: Mapping[str, str] | None = None) -> str:
    """The variant of a run from its overrides: ``ne3-scale10``; `BASE` if nothing that counts was chosen.

    Args:
        overrides: as given, ``key=value``, in any order; the last of a key wins.
        contents: hashes of the files that keys such as ``backbone.weights`` lead to. Such a choice is named by the
            file's name and by what it holds; a place alone says nothing.
    """
    chosen: dict[str, str] = {}
    for override in filter(_names, overrides):
        key, value = _split(override)
        content = "" if value in WEIGHTS_BY_NAME else (contents or {}).get(key, "")
        if content and key == "from":
            value = f"from_{content[:8]}"
        elif content:
            value = f"{PurePath(value.strip(QUOTES).removeprefix('package:')).stem[:40]}_{content[:8]}"
        elif key == "backbone.weights" and value not in WEIGHTS_BY_NAME:
            continue
        chosen[key] = value
    if "backbone.name" in chosen and chosen.get("backbone") == BY_NAME:
        chosen["backbone"] = chosen.pop("backbone.name")  # a name of timm's, beside which the group says nothing
    parts = [_part(key, value) for key, value in sorted(chosen.items())]
    text = "-".join(parts) or BASE
    if len(text) > LIMIT:
        import hashlib

        text = f"{text[: LIMIT - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _names(override: str) -> bool:
    """Whether an override may have a part in the name: not if it has a folder of its own, or says where things lie."""
    key, _ = _split(override)
    if key in (*OWN_FOLDER, *NOT_THE_RUN) or key.partition("@")[0] in OWN_FOLDER:
        return False
    return not key.startswith(("hydra.", "hydra/", "logger."))


def simplest(variants: Iterable[str]) -> str:
    """The variant that stands for all of them where they are spellings of one configuration."""
    return min(variants, key=lambda variant: (len(choices_of(variant)), len(variant), variant))


def choices_of(variant: str) -> list[str]:
    """The choices that a variant names: ``ne3-scale-1`` is ``ne3``, ``scale-1``; none if it is `BASE`."""
    # a dash before a digit is a minus: scale-1
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
    value = value.strip(QUOTES)
    sign = "-" if re.match(r"-[\d.]", value) else ""
    clean = sign + (re.sub(r"[^A-Za-z0-9.+_]+|\.\.+", "_", value).strip("_.") or "none")
    if "." not in key:
        return clean if clean[0].isalpha() else f"{key}{clean}"
    *_, parent, name = key.split(".")
    return f"{name}{clean}" if key.count(".") == 1 else f"{parent}_{name}{clean}"
