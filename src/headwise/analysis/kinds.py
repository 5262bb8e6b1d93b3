"""Which analyses there are, and what they are told. Torch is imported with the one that is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.errors import ConfigError, suggest

if TYPE_CHECKING:
    from headwise.analysis.made import Analysis
    from headwise.artifacts.saved import SavedRun

KINDS: dict[str, tuple[str, str]] = {
    "subspaces": ("headwise.analysis.singular", "singular vectors before and after tuning, whole and per head"),
    "overlap": (
        "headwise.analysis.overlapping",
        "what heads share, and whether a second phase is orthogonal to the first",
    ),
    "responsiveness": ("headwise.analysis.ground", "what each head's update is worth, and which score knows it"),
    "heads": ("headwise.analysis.lorenz", "accuracy that a head's update carries alone, and the best of them together"),
    "attention": ("headwise.analysis.looking", "where the class token looks, and rollout, runs side by side"),
    "curves": (
        "headwise.analysis.accuracies",
        "accuracy over shots, heads off and parameters; by seed; needs no weights",
    ),
}
"""By kind the module whose function ``analyse`` makes it, and what it shows.

No module has the name of a kind: the package's attribute of that name is the kind's function.
"""
SPLITS = ("train", "val", "test")
MOST = 2**31


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an analysis is told beside the runs; each kind reads what it needs.

    Attributes:
        seed: of everything that is drawn: random updates, chosen images.
        draws: random updates behind each null.
        weights: file of the pretrained weights, if it is not where the runs found it.
        data_root: folder of the images, if it has moved.
        split: of the images, one of `SPLITS`; ``val`` is VTAB's val200.
        images: how many of them; None for all.
        batch_size: of the forward passes; changes no number beyond rounding.
        greedy: heads' updates that ``responsiveness`` also switches off one after the other; each costs as much as all
            that are left one at a time.
        trust: modules of the user's own whose methods the records may name.
    """

    seed: int = 0
    draws: int = 12
    weights: Path | str | None = None
    data_root: Path | str | None = None
    split: str = "test"
    images: int | None = 200
    batch_size: int = 50
    greedy: int = 0
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("draws", 2), ("images", 1), ("batch_size", 1), ("greedy", 0)):
            value = getattr(self, name)
            if value is None and name == "images":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
                raise ConfigError(f"{name} of an analysis must be a whole number from {least}, got {value!r}")
        if self.split not in SPLITS:
            raise ConfigError(f"unknown split {self.split!r} of an analysis{suggest(str(self.split), SPLITS)}")


def module_of(kind: str) -> str:
    """Dotted name of the module that makes a kind.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of analysis {kind!r}{suggest(kind, KINDS)}")
    return KINDS[kind][0]


def analyse(kind: str, runs: Iterable[SavedRun | Path | str], options: Options | None = None) -> Analysis:
    """Make one kind of analysis of finished runs.

    Args:
        kind: one of `KINDS`.
        runs: their folders, or the runs as they are read.
        options: what it is told; the defaults if left out.

    Raises:
        ConfigError: for an unknown kind, no run, or runs that the kind cannot be made of.
    """
    module = module_of(kind)
    options = options or Options()
    from headwise.artifacts.saved import SavedRun, own_randomness

    read = [run if isinstance(run, SavedRun) else SavedRun.read(run, options.trust) for run in runs]
    if not read:
        raise ConfigError(f"an analysis of {kind} needs at least one run, got none")
    seen: set[Path] = set()
    for run in read:
        if run.folder.resolve() in seen:
            raise ConfigError(f"{run.folder} is given twice to the analysis of {kind}; give each run once")
        seen.add(run.folder.resolve())
    with own_randomness():
        made: Analysis = importlib.import_module(module).analyse(read, options)
    return made.of(read, options)


def function(kind: str) -> Callable[..., Analysis]:
    """The function of a kind as a notebook calls it: one run or several, and `Options` by name."""

    def made(runs: SavedRun | Path | str | Iterable[SavedRun | Path | str], **options: Any) -> Analysis:
        several: Any = runs if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
        return analyse(kind, several, _options(options))

    module_of(kind)
    made.__name__, made.__doc__ = kind, f"Make an analysis of finished runs: {KINDS[kind][1]}. Options are `Options`'."
    return made


def _options(given: dict[str, Any]) -> Options:
    """Options by name.

    Raises:
        ConfigError: for one that there is not.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown option {name!r} of an analysis{suggest(name, known)}")
    return Options(**given)
