"""A finished run's folder, read back: everything needed to build its network again. Hydra is not needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.data.decode import SHAPES, check_shape
from headwise.data.sources import Source, source_of
from headwise.data.tasks import VTABTask, task_of
from headwise.data.vtab import VTABDataModule
from headwise.errors import ConfigError, HeadwiseError, WeightsError
from headwise.methods._fitting import own_randomness as own_randomness
from headwise.methods.base import Installed, build_method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.protocol.recipe import Protocol
from headwise.results.reading import read_result
from headwise.results.records import PhaseResult, Result
from headwise.schema import targets
from headwise.schema.kinds import is_whole
from headwise.schema.source import fields_of_target
from headwise.storage.weights import weights_content
from headwise.training.loop import Machine, PhaseRun, restore

MOST_THREADS = 1024


@dataclass(frozen=True)
class SavedRun:
    """A finished run's folder, read back: ``result.json`` and ``phase-<i>.safetensors``.

    Attributes:
        trust: modules of the user's own whose methods and sources of images the record may name; no other code than
            headwise's is imported for it.
    """

    folder: Path
    result: Result
    trust: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: str | Path, trust: str | Iterable[str] = ()) -> SavedRun:
        """Read the record of a run.

        Raises:
            ConfigError: if there is no finished run; lists those below. ResultError: if its record is damaged.
        """
        if not isinstance(folder, str | Path):
            raise ConfigError(f"a run is named by the path of its folder, got {type(folder).__name__}")
        return cls(Path(folder), read_result(Path(folder)), targets.prefixes(trust))

    @property
    def spec(self) -> BackboneSpec:
        return targets.fit(BackboneSpec, self._part("backbone"), f"{self.folder}: config.backbone")

    @property
    def task(self) -> VTABTask:
        return task_of(self._part("dataset"))

    @property
    def shape(self) -> str:
        """What became of images that are no squares, see `headwise.data.decode.squared`."""
        return check_shape(str(self._part("data").get("resize", SHAPES[0])))

    @property
    def protocol(self) -> Protocol:
        return targets.fit(Protocol, self._part("protocol"), f"{self.folder}: config.protocol")

    @property
    def machine(self) -> Machine:
        """Where it was computed, without a bar; refused where the record does not say, or names what cannot be."""
        options = self._part("trainer")
        accelerator, threads, attention = (options.get(name) for name in ("accelerator", "threads", "attention"))
        if accelerator not in ("cpu", "gpu") or not isinstance(attention, str):
            raise ConfigError(f"{self.folder}: config.trainer names no machine: {accelerator!r}, {attention!r}")
        if not is_whole(threads, MOST_THREADS):
            raise ConfigError(f"{self.folder}: config.trainer.threads must be in 1..{MOST_THREADS}, got {threads!r}")
        return Machine(accelerator=accelerator, threads=threads, attention=attention, progress=False)

    def content(self, group: str, name: str) -> str:
        """What files were, by the hash in the run's identity; refused where the record does not hold it."""
        part = self.result.identity.get(group)
        recorded = part.get(name) if isinstance(part, dict) else None
        if not isinstance(recorded, str):
            raise ConfigError(f"{self.folder / 'result.json'} lacks identity.{group}.{name}")
        return recorded

    def _part(self, name: str) -> dict[str, Any]:
        """A group of the configuration; refused where the record does not hold it."""
        part = self.result.config.get(name)
        if not isinstance(part, dict):
            raise ConfigError(f"{self.folder / 'result.json'} lacks config.{name}")
        return part

    def source(self, data_root: str | Path | None = None) -> Source:
        """The images of the run.

        Args:
            data_root: where they lie now, if they have moved.

        Raises:
            DataError: if they are not there. ConfigError: if the record names a source that is not of headwise or of
                a trusted module, or one whose images lie in no folder that could move.
        """
        part = self._part("data")
        if data_root is not None and _takes_no_root(part.get("_target_")):
            raise ConfigError(
                f"data_root={str(data_root)!r} means nothing to {self.folder}: {part['_target_']} reads no folder; "
                "leave it out"
            )
        moved = {} if data_root is None else {"root": str(data_root)}
        return source_of({**part, **moved}, self.trust)

    def data(self, net: Backbone, source: Source, test_images: int | None = None) -> VTABDataModule:
        """The run's data module.

        Args:
            net: says what size and normalisation it takes.
            test_images: test on this many only; None does as the run did.
        """
        options = self.protocol.data_options(net.mean, net.std)
        if test_images is not None:
            options["test_images"] = min(test_images, options["test_images"] or test_images)
        return VTABDataModule(self.task, source, net.img_size, seed=self.result.key.seed, **options)

    def network(self, weights: str | Path | None = None) -> Backbone:
        """The pretrained network with an empty head, before any phase.

        Raises:
            WeightsError: if they are missing or not those of the run.
        """
        spec = self.spec if weights is None else dataclasses.replace(self.spec, weights=str(weights))
        expected = self.content("backbone", "weights")
        wanted = f"{self.folder} stands on the weights of {spec.name} with the content {expected}"
        try:
            actual = weights_content(dataclasses.asdict(spec), "weights=FILE")
        except WeightsError as error:
            raise WeightsError(f"{wanted}; {error}") from None
        if actual != expected:
            raise WeightsError(f"{wanted}; {spec.weights!r} is {actual}: name the right file with weights=FILE")
        net = spec.build()
        # of weights from timm's hub the identity holds the name only; what was loaded tells whether they have changed
        weights_then = self.result.provenance.get("weights")
        recorded = weights_then.get("loaded") if isinstance(weights_then, dict) else None
        if recorded is not None and recorded != net.provenance.get("loaded"):
            raise WeightsError(
                f"{self.folder} stands on other weights than timm's hub has now as {spec.timm_name}: tensors "
                f"{str(recorded)[:12]}, here {str(net.provenance.get('loaded'))[:12]}"
            )
        net.new_head(self.task.num_classes)
        return net

    def install(self, net: Backbone) -> Iterator[tuple[PhaseResult, Installed]]:
        """Install the phases in turn, each on the merged one before; the last one given stays unmerged.

        Raises:
            CheckpointError: if tensors are missing, damaged, or do not fit.
        """
        phases = self.result.phases
        for index, phase in enumerate(phases):
            run = PhaseRun(
                index=index,
                num_phases=len(phases),
                method=build_method(phase.method, phase.label, self.trust),
                fingerprint=phase.fingerprint,
                folder=self.folder,
                seed=self.result.key.seed,
            )
            try:
                installed = restore(run, net, phase, self.folder / f"phase-{index + 1}.safetensors")
            except HeadwiseError:
                raise
            except Exception as error:  # the record may be a stranger's: what it leads to says that it does not fit
                text = f"{type(error).__name__}: {error}"[:300]
                raise ConfigError(f"{self.folder}: phase {index + 1} does not fit its record: {text}") from error
            net.eval()
            yield phase, installed
            if index + 1 < len(phases):
                installed.merge()


def _takes_no_root(target: Any) -> bool:
    """Whether a source of ours plainly reads no folder; what is no source is refused elsewhere."""
    if not isinstance(target, str) or not target.startswith("headwise."):
        return False
    try:
        fields = fields_of_target(target)
    except ConfigError:
        return False
    return not fields.is_open and "root" not in fields.types
