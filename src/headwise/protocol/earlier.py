"""A finished run that another one goes on from, ``from=RUN_DIR``. Torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headwise.errors import CheckpointError, ConfigError, HeadwiseError
from headwise.protocol.space import EVAL_SPLIT, TRAIN_SPLIT
from headwise.results.fingerprint import canonical, differences, fingerprint, leaves
from headwise.results.reading import read_result
from headwise.results.records import FROM, OTHERWISE, PhaseResult, Result
from headwise.storage.atomic import at_home
from headwise.storage.hashes import file_sha256

LABEL = "continued"
NOT_TRAINING = ("name", "epochs", "search", "choice", "per_task")
"""Of the protocol, what changes no step of a phase; epochs are compared as the sum over the phases."""


@dataclass(frozen=True)
class Earlier:
    """The run whose phases come first, as they are stored."""

    folder: Path
    result: Result

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Earlier | None:
        """From a run's configuration; None where it starts from pretrained weights alone.

        Raises:
            ConfigError: if there is no finished run, or one whose record does not say what its files held.
        """
        if not (given := config.get(FROM)):
            return None
        folder = at_home(str(given))
        try:
            result = read_result(folder)
        except HeadwiseError as error:
            raise ConfigError(f"from={given}: {error}") from error
        for number, phase in enumerate(result.phases, start=1):
            if phase.sha256 is None:
                raise ConfigError(
                    f"from={given}: the record of its phase {number} is of older code and does not say what its file "
                    "held; train it again with resume=force"
                )
            if phase.extra.get("plan"):
                raise ConfigError(
                    f"from={given}: phase {number} {phase.label} was laid out by a look at its images, which is not "
                    "repeated; go on from a run of another method, or from exported weights (backbone.weights=FILE)"
                )
        return cls(folder, result)

    @property
    def content(self) -> str:
        """What it hands on, as a hash: the phases and the content of their files."""
        phases = [{"method": phase.method, "sha256": phase.sha256} for phase in self.result.phases]
        return fingerprint({"phases": phases, "dataset": self.result.identity.get("dataset")}, 64)

    def file(self, index: int) -> Path:
        """The tensors of a phase, by its place from 0; refused if they are not what the record speaks of."""
        file = self.folder / f"phase-{index + 1}.safetensors"
        if not file.is_file() or file_sha256(file) != self.result.phases[index].sha256:
            raise CheckpointError(
                f"from={self.folder}: {file.name} is missing, or not the file that the record speaks of"
            )
        return file

    def keeps_head(self, identity: Mapping[str, Any]) -> bool:
        """Whether the classifier goes on as well: where the run of this identity has the same classes to tell apart."""
        return bool(self.result.identity.get("dataset") == identity["dataset"])

    @staticmethod
    def costly(taken: PhaseResult, trained: PhaseResult) -> PhaseResult:
        """The record of a phase that was taken from a file, with what its training cost."""
        spent = ("epochs", "steps", "seconds", "train_loss", "images_per_second", "peak_memory")
        return replace(taken, **{name: getattr(trained, name) for name in spent})

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the run of an identity can go on from it.

        Raises:
            ConfigError: if that stands on another network, or on other weights; if it would search on images that were
                trained on.
        """
        looks = identity["data"].get("searched") or identity["protocol"].get("eval_split") == EVAL_SPLIT
        for task, split in self.seen:
            if looks and task == identity["dataset"]["name"] and split != TRAIN_SPLIT:
                raise ConfigError(
                    f"from={self.folder} has trained on {split} of {task}, and this run would choose on {EVAL_SPLIT}, "
                    "which is part of it; leave the search out, or go on from runs with "
                    f"protocol.train_split={TRAIN_SPLIT}"
                )
        found = self.result.identity.get("backbone")
        apart = differences(
            {"backbone": found if isinstance(found, Mapping) else {}}, {"backbone": identity["backbone"]}
        )
        if apart:
            raise ConfigError(f"from={self.folder} stands on another network than this run: {'; '.join(apart[:3])}")

    @property
    def seen(self) -> list[list[str]]:
        """Images that the whole chain has trained on: names of tasks and of splits."""
        part, recipe = self.result.identity.get("dataset"), self.result.config.get("protocol")
        task = str(part.get("name")) if isinstance(part, Mapping) else ""
        own = [task, str(recipe.get("train_split")) if isinstance(recipe, Mapping) else ""]
        before = self.result.provenance.get(FROM)
        if not isinstance(before, Mapping):
            return [own]
        seen = before.get("seen")
        if not isinstance(seen, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in seen):
            seen = [[task, "all images"]]  # a chain that does not say what it has seen
        return [*(pair for pair in seen if pair != own), own]

    def otherwise(self, identity: Mapping[str, Any]) -> list[str]:
        """In what the run of an identity trains otherwise than the phases before it: ``protocol.lr: 0.1 vs 0.01``.

        Of another task, whose phases are not tested, nothing is said, nor of what older code does not record.
        """
        lines = self.result.otherwise
        if self.keeps_head(identity):
            sides = [_training(some) for some in (self.result.identity, identity)]
            common = sides[0].keys() & sides[1].keys()
            lines += differences(*({name: side[name] for name in common} for side in sides))
        return list(dict.fromkeys(lines))

    def provenance(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """For the record of the run of an identity: which run it goes on from, and how many phases are its."""
        run = self.result.key.path(Path()).as_posix()
        number, otherwise = len(self.result.phases), self.otherwise(identity)
        told = {"run": run, "fingerprint": self.result.fingerprint, "phases": number, "seen": self.seen}
        return {**told, **({OTHERWISE: otherwise} if otherwise else {})}


def _training(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What an identity says of how its phases are trained beside their method, by dotted name."""
    parts = {name: identity[name] for name in ("data", "protocol", "seed") if name in identity}
    apart = {*(f"protocol.{name}" for name in NOT_TRAINING), "data.searched"}
    flat = leaves(canonical(parts), "")
    flat |= {name: str(flat[name])[:8] for name in ("data.fingerprint",) if name in flat}
    return {name: value for name, value in flat.items() if not any(f"{name}.".startswith(f"{one}.") for one in apart)}
