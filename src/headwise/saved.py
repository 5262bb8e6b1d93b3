"""A finished run's folder, read back: everything needed to build its network again. Hydra is not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headwise.backbone import Backbone, BackboneSpec
from headwise.data.sources import Source
from headwise.data.tasks import VTABTask
from headwise.data.vtab import VTABDataModule
from headwise.errors import ConfigError, WeightsError
from headwise.methods.base import Installed, build_method
from headwise.protocol import Protocol
from headwise.results.records import PhaseResult, Result
from headwise.training import PhaseRun, restore
from headwise.weights import weights_content


@dataclass(frozen=True)
class SavedRun:
    """A finished run's folder, read back: ``result.json`` and ``phase-<i>.safetensors``."""

    folder: Path
    result: Result

    @classmethod
    def read(cls, folder: str | Path) -> SavedRun:
        """Read the record of a run.

        Raises:
            ConfigError: if there is no finished run; lists those below. ResultError: if its record is damaged.
        """
        folder = Path(folder)
        try:
            return cls(folder, Result.read(folder / "result.json"))
        except (FileNotFoundError, NotADirectoryError):
            below = sorted(str(file.parent) for file in folder.glob("**/result.json"))[:5] if folder.is_dir() else []
            hint = f"; did you mean {' or '.join(below)}?" if below else ""
            raise ConfigError(f"no finished run in {folder}: it holds no result.json{hint}") from None

    @property
    def spec(self) -> BackboneSpec:
        """The backbone as configured."""
        return BackboneSpec(**self.result.config["backbone"])

    @property
    def task(self) -> VTABTask:
        """What was classified."""
        return VTABTask(**{key: value for key, value in self.result.config["dataset"].items() if key != "_target_"})

    @property
    def protocol(self) -> Protocol:
        """How it was measured."""
        return Protocol(**self.result.config["protocol"])

    def source(self, data_root: str | Path | None = None) -> Source:
        """The images of the run.

        Args:
            data_root: where they lie now, if they have moved.

        Raises:
            DataError: if they are not there.
        """
        options = dict(self.result.config["data"])
        module, _, name = str(options.pop("_target_")).rpartition(".")
        kind = getattr(importlib.import_module(module), name, None)
        if not (isinstance(kind, type) and hasattr(kind, "fingerprint")):
            raise ConfigError(f"{self.folder}: {module}.{name} is not a source of images")
        if data_root is not None:
            options["root"] = str(data_root)
        try:
            source: Source = kind(**options)
        except TypeError as error:
            raise ConfigError(f"{module}.{name}: {error}") from error
        return source

    def data(self, net: Backbone, source: Source, test_images: int | None = None) -> VTABDataModule:
        """The run's data module.

        Args:
            net: says what size and normalisation it takes.
            source: of the images.
            test_images: test on this many only; None does as the run did.
        """
        options = self.protocol.data_options(net.mean, net.std)
        if test_images is not None:
            options["test_images"] = min(test_images, options["test_images"] or test_images)
        return VTABDataModule(self.task, source, net.img_size, seed=self.result.key.seed, **options)

    def network(self, weights: str | Path | None = None) -> Backbone:
        """The pretrained network with an empty head, before any phase.

        Args:
            weights: file of the pretrained weights, if it is not where the run found it.

        Raises:
            WeightsError: if they are missing or not those of the run.
        """
        spec = self.spec if weights is None else dataclasses.replace(self.spec, weights=str(weights))
        expected = str(self.result.identity["backbone"]["weights"])
        wanted = f"{self.folder} stands on the weights of {spec.name} with the content {expected}"
        try:
            found = weights_content(dataclasses.asdict(spec))
        except WeightsError:
            raise WeightsError(f"{wanted}; {spec.weights!r} is not there: name the file with weights=FILE") from None
        if found != expected:
            raise WeightsError(f"{wanted}; {spec.weights!r} is {found}: name the right file with weights=FILE")
        net = spec.build()
        recorded = self.result.provenance.get("weights", {})
        if "loaded" in recorded and recorded["loaded"] != net.provenance.get("loaded"):
            raise WeightsError(
                f"{self.folder} stands on other weights than timm's hub has now as {spec.timm_name}: tensors "
                f"{recorded['loaded'][:12]}, here {str(net.provenance.get('loaded'))[:12]}"
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
                method=build_method(phase.method, phase.label),
                fingerprint=phase.fingerprint,
                folder=self.folder,
                seed=self.result.key.seed,
            )
            installed = restore(run, net, phase, self.folder / f"phase-{index + 1}.safetensors")
            net.eval()
            yield phase, installed
            if index + 1 < len(phases):
                installed.merge()


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave python's, numpy's and torch's random states as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
