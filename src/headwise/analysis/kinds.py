"""Which analyses there are, and what they are told. Torch is imported with the one that is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.errors import ConfigError, suggest
from headwise.results.reading import read_result
from headwise.results.records import Result

if TYPE_CHECKING:
    from headwise.analysis.made import Analysis
    from headwise.artifacts.saved import SavedRun


@dataclass(frozen=True)
class AnalysisKind:
    """One kind of analysis.

    Attributes:
        module: whose function ``analyse`` makes it. None has the name of a kind: the package's attribute of that name
            is the kind's function.
        reads: the `Options` that it reads; it takes no other.
        least_images: fewer say nothing: half of them chooses, a deviation is taken, or other ones are the null.
    """

    module: str
    shows: str
    reads: tuple[str, ...]
    least_images: int = 1

    @property
    def opens_networks(self) -> bool:
        """Whether it builds the runs' networks, so that it is told where their weights are."""
        return "weights" in self.reads


_NETWORK = ("weights", "trust")
_IMAGES = (*_NETWORK, "data_root", "split", "images", "batch_size", "seed")
KINDS: dict[str, AnalysisKind] = {
    "subspaces": AnalysisKind(
        "headwise.analysis.singular",
        "singular vectors before and after tuning, whole and per head",
        (*_NETWORK, "seed", "draws"),
    ),
    "overlap": AnalysisKind(
        "headwise.analysis.overlapping",
        "what heads share, and whether a second phase is orthogonal to the first",
        (*_NETWORK, "seed", "draws"),
    ),
    "responsiveness": AnalysisKind(
        "headwise.analysis.ground",
        "what each head's update is worth, and which score knows it",
        (*_IMAGES, "greedy"),
        2,
    ),
    "heads": AnalysisKind(
        "headwise.analysis.lorenz",
        "accuracy that a head's update carries alone, and the best of them together",
        (*_IMAGES, "draws"),
        2,
    ),
    "attention": AnalysisKind(
        "headwise.analysis.looking", "where the class token looks, and rollout, runs side by side", _IMAGES, 3
    ),
    "curves": AnalysisKind(
        "headwise.analysis.accuracies",
        "accuracy over shots, heads off and parameters; by seed; needs no weights",
        (),
    ),
    "rates": AnalysisKind(
        "headwise.analysis.rate_effect",
        "training loss over learning rate and rank, shared and per-head updates; needs no weights",
        ("seed",),
    ),
    "ranking": AnalysisKind(
        "headwise.analysis.ranks",
        "methods ranked over tasks, with their critical difference; needs no weights, but the extra [ranking]",
        (),
    ),
}
SPLITS = ("train", "val", "test")
LEAST = {"seed": 0, "draws": 2, "images": 1, "batch_size": 1, "greedy": 0}
"""Of the whole numbers among `Options`."""
MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an analysis is told beside the runs; each kind reads what it needs.

    Attributes:
        seed: of everything that is drawn: random updates and orders, and which images.
        draws: random updates, or random orders, behind each null.
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
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None and name == "images":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
                raise ConfigError(f"{name} of an analysis must be a whole number from {least}, got {value!r}")
        if self.split not in SPLITS:
            raise ConfigError(f"unknown split {self.split!r} of an analysis{suggest(str(self.split), SPLITS)}")


@dataclass(frozen=True)
class Recorded:
    """A finished run by its record alone, for kinds that open no network: torch is not imported for it."""

    folder: Path
    result: Result

    @classmethod
    def read(cls, folder: Path | str) -> Recorded:
        """Read the record of a run; refuses what `read_result` does."""
        return cls(Path(folder), read_result(Path(folder)))


def kind_of(name: str) -> AnalysisKind:
    """A kind by its name; an unknown one is refused."""
    if name not in KINDS:
        raise ConfigError(f"unknown kind of analysis {name!r}{suggest(name, KINDS)}")
    return KINDS[name]


def check_images(kind: str, count: int) -> None:
    """Refuse so few images that a kind can say nothing of them."""
    if count < kind_of(kind).least_images:
        raise ConfigError(f"{kind} needs {KINDS[kind].least_images} images or more, got {count}")


def analyse(kind: str, runs: Iterable[SavedRun | Path | str], options: Options | None = None) -> Analysis:
    """Make one kind of analysis of finished runs.

    Raises:
        ConfigError: for an unknown kind, no run, or runs that the kind cannot be made of.
    """
    module = kind_of(kind).module
    options = options or Options()
    reader: Callable[[Path | str], Any] = Recorded.read
    meanwhile: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if KINDS[kind].opens_networks:
        from headwise.artifacts.saved import SavedRun, own_randomness

        reader, meanwhile = functools.partial(SavedRun.read, trust=options.trust), own_randomness()
    read = [reader(run) if isinstance(run, str | Path) else run for run in runs]
    if not read:
        raise ConfigError(f"an analysis of {kind} needs at least one run, got none")
    if options.images is not None and "images" in KINDS[kind].reads:
        check_images(kind, options.images)
    _check_apart(read, kind)
    with meanwhile:
        made: Analysis = importlib.import_module(module).analyse(read, options)
    return made.of(read, {name: getattr(options, name) for name in KINDS[kind].reads})


def _check_apart(runs: Sequence[SavedRun | Recorded], kind: str) -> None:
    """Refuse a run that counts twice."""
    folders: set[Path] = set()
    copies: dict[str, Path] = {}
    for run in runs:
        if run.folder.resolve() in folders:
            raise ConfigError(f"{run.folder} is given twice to the analysis of {kind}; give each run once")
        folders.add(run.folder.resolve())
        first = copies.setdefault(run.result.fingerprint, run.folder)
        if first != run.folder:
            raise ConfigError(
                f"{run.folder} holds the same run as {first} (fingerprint {run.result.fingerprint[:12]}), so it would "
                f"count twice in the analysis of {kind}; give each run once"
            )


def function(kind: str) -> Callable[..., Analysis]:
    """The function of a kind as a notebook calls it: one run or several, and `Options` by name."""

    def made(runs: SavedRun | Path | str | Iterable[SavedRun | Path | str], **options: Any) -> Analysis:
        several: Any = runs if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
        return analyse(kind, several, options_of(kind, options))

    reads = kind_of(kind).reads
    made.__name__ = kind
    made.__doc__ = f"Make an analysis of finished runs: {KINDS[kind].shows}. Reads of `Options`: {', '.join(reads)}."
    return made


def options_of(kind: str, given: Mapping[str, Any]) -> Options:
    """Options by name; refuses what there is not, what the kind does not read, and values out of range."""
    known, reads = [field.name for field in dataclasses.fields(Options)], kind_of(kind).reads
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown option {name!r} of an analysis{suggest(name, known)}")
        if name not in reads:
            value = str(given[name]) if isinstance(given[name], Path) else given[name]
            raise ConfigError(f"{kind} does not read {name}, got {value!r}; it reads {', '.join(reads) or 'none'}")
    return Options(**given)
