"""Execution: a claimed run at work. Search, train, record: with the method itself, all of a run that needs torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headwise.commands.messages import instantiation
from headwise.data.kept import KeptImages
from headwise.data.vtab import VTABDataModule
from headwise.errors import ConfigError
from headwise.methods._fitting import rehearse
from headwise.methods.base import Method, build_method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.network.kept import Networks
from headwise.network.portions import more_parts
from headwise.protocol.earlier import LABEL, Earlier
from headwise.protocol.plan import DEVICES, Plan
from headwise.protocol.presets import preset_labels
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import settle
from headwise.protocol.space import Space, phase_names
from headwise.report.ending import around
from headwise.report.pictures import PICTURES, confusion, learning_curves, score_map
from headwise.results import provenance
from headwise.results.classes import CONFUSION, write_precisions
from headwise.results.records import FROM, MAP, PRECISION
from headwise.results.store import PhaseResult, PhaseStore, Result, ResultStore
from headwise.runs.tracker import tracked
from headwise.storage import atomic
from headwise.training.loop import TENSORS, Machine, chain, hush, run_phases
from headwise.training.progress import Tell

AGAIN = "again"
"""Folder of a run in which resume=force trains; it is taken over when it is complete."""
Facts = Mapping[int, Mapping[str, Any]]
"""By phase, what a search adds to its record."""
NETWORKS, IMAGES = Networks(), KeptImages()
"""The network and the task's images as the last run of this process had them before its training."""


class Trained(NamedTuple):
    """What training has made of a run's phases."""

    net: Backbone
    data: VTABDataModule
    phases: list[PhaseResult]


def execute(plan: Plan, method: Any) -> Result:
    """Train all phases of a method and record the result; the tracker's run ends with it, or fails."""
    with tracked(plan) as tracker:
        hush()
        execution = Execution(plan, method)
        methods, facts = execution.search(execution.method.phases())
        trained = execution.train(methods, plan.protocol, None if tracker is None else tracker.epoch)
        result = execution.record(trained, facts)
        if tracker is not None:
            pictures = [file for name in PICTURES if (file := plan.folder / name).is_file()]
            tracker.finish(result, around(result, ResultStore(plan.root)), pictures)
        return result


class Execution:
    """One run at work.

    Attributes:
        method: built, before any search.
        earlier: phases of the run that it goes on from.
        shared: finished phases of all runs.
        store: where this run's phases go: the shared store, or one of its own until all of them are trained again.
        made_with: versions, git and machine, as the record has them; of the moment at which it began.
    """

    def __init__(self, plan: Plan, method: Any) -> None:
        """Find the device, say what runs where, and prepare the run's folder.

        Raises:
            ConfigError: for a device that contradicts trainer=auto; whatever the network refuses.
        """
        self.plan, self.method = plan, method
        gpu, device = _device(plan)
        trainer = plan.config["trainer"]
        machine = provenance.machine(device or trainer["accelerator"], trainer["threads"])
        if device is not None:
            machine["accelerator_gib"] = round(torch.cuda.get_device_properties(gpu).total_memory / 2**30, 1)
        git = provenance.git_state(Path(__file__).parent)
        self.made_with: dict[str, Any] = {"versions": provenance.versions(), "git": git, "machine": machine}
        made = {"git": git, "torch": self.made_with["versions"]["torch"], "device": device or machine["cpu"]}
        self.machine = Machine(**trainer, gpu=gpu, made=made)
        say(f"run: {plan.folder}")
        place = device or f"CPU, {machine['cpu'] or 'of unknown kind'}"
        say(f"device: {place}{' (trainer=auto)' if plan.auto else ''}")
        earlier = plan.earlier
        self.earlier = [] if earlier is None else _phases_of(earlier)
        with instantiation():
            self.spec = BackboneSpec(**plan.config["backbone"])
        atomic.write_text(plan.folder / "config.yaml", plan.yaml)
        shutil.rmtree(plan.folder / AGAIN, ignore_errors=True)
        self.shared = PhaseStore(plan.root)
        self.store = PhaseStore(plan.folder / AGAIN) if plan.resume == "force" else self.shared
        self._noted: set[str] = set()

    def search(self, methods: Sequence[Method]) -> tuple[Sequence[Method], Facts]:
        """Choose on the validation images what the configuration leaves open.

        Returns:
            The phases with what was chosen, and what their records say of it.
        """
        recipe = self.plan.protocol.search
        space, epochs = None if recipe is None else Space.of(recipe), self.plan.protocol.epochs
        return settle(methods, phase_names(self.method), space, self._trial, epochs, say)

    def _trial(self, methods: Sequence[Method], seed: int | None) -> PhaseResult:
        """The last of these phases, measured on the validation images; trained only if the store lacks it."""
        trial, plan = self.plan.protocol.for_search(), self.plan.seeded(seed)
        address = chain([*self.earlier, *methods], plan.ground(trial), trial.epochs)[-1].phase
        return self.store.finished(address) or self.train(methods, trial, None, plan).phases[-1]

    def train(
        self, methods: Sequence[Method], protocol: Protocol, tell: Tell | None, trial: Plan | None = None
    ) -> Trained:
        """Train phases in turn, of the run, or of a trial of its search as that is planned.

        A batch that finds no room goes in twice as many parts, until it does.
        """
        parts = 1
        while True:
            try:
                return self._train(methods, protocol, replace(self.machine, tell=tell, parts=parts), trial)
            except Exception as error:
                parts = more_parts(error, parts, protocol.batch_size)
            size = -(-protocol.batch_size // parts)
            say(f"out of memory: going on with at most {size} images at a time, {protocol.batch_size} a step as before")

    def _train(self, methods: Sequence[Method], protocol: Protocol, machine: Machine, trial: Plan | None) -> Trained:
        plan, methods = trial or self.plan, [*self.earlier, *methods]
        seed = plan.config["seed"]
        net = self._network(methods, protocol)
        options = protocol.data_options(net.mean, net.std)
        options["eval_batch_size"] = -(-options["eval_batch_size"] // machine.parts)
        ground = plan.ground(protocol)
        source = IMAGES.of(plan.source, plan.config["data"], ground["data"]["fingerprint"])
        data = VTABDataModule(plan.task, source, net.img_size, seed=seed, **options)
        phases = run_phases(
            net,
            methods,
            data,
            protocol,
            self.store,
            ground,
            seed=seed,
            machine=machine,
            say=say,
            foreign=0 if plan.earlier is None or plan.earlier.keeps_head(plan.identity) else len(self.earlier),
            follow=trial is None,  # what a trial's record says beside its accuracy is never read
        )
        return Trained(net, data, phases)

    def _network(self, methods: Sequence[Method], protocol: Protocol) -> Backbone:
        """The pretrained network, without head; what is to be noted of its weights is said once."""
        # what cannot work is refused before hundreds of megabytes are asked for
        if not NETWORKS.has(self.spec, protocol.drop_path) and self.spec.must_fetch:
            rehearsal = self.spec.random().build()
            rehearsal.new_head(self.plan.task.num_classes)
            rehearse(rehearsal, methods)
        net = NETWORKS.give(self.spec, protocol.drop_path)
        for note in net.notes:
            if note not in self._noted:
                say(f"{Path(self.spec.weights).name}: {note}")
        self._noted.update(net.notes)
        return net

    def record(self, trained: Trained, facts: Facts) -> Result:
        """Write down what was reached; the result is the last file, and what makes the run a finished one."""
        plan, config = self.plan, self.plan.config
        num_earlier = len(self.earlier)
        extras = [{**phase.extra, **facts.get(index - num_earlier, {})} for index, phase in enumerate(trained.phases)]
        phases = [replace(phase, extra=extra) for phase, extra in zip(trained.phases, extras, strict=True)]
        if plan.earlier is not None:
            phases[:num_earlier] = map(plan.earlier.costly, phases[:num_earlier], plan.earlier.result.phases)
        # with resume=force: the phases of before stay in use until all of the new ones are there
        if self.store is not self.shared:
            self.shared.adopt(self.store)
        self._illustrate(phases)
        in_parts = ["batches in parts"] if any(phase.extra.get("batch_parts") for phase in phases) else []
        data_labels = plan.source.labels(plan.task)
        # what was true of the phases that come first, such as an epoch chosen on the test set, stays true of them
        continued = [LABEL, *plan.earlier.result.labels] if plan.earlier else []
        labels = [*continued, *self.spec.labels, *data_labels, *plan.protocol.labels, *preset_labels(config), *in_parts]
        weights = {**trained.net.provenance, "content": plan.identity["backbone"]["weights"]}
        sources = {"weights": weights, "data": trained.data.provenance(), "protocol": config["protocol"]}
        sources["network"] = trained.net.facts
        if plan.earlier is not None:
            sources[FROM] = plan.earlier.provenance(plan.identity)
        result = Result(
            key=plan.key,
            identity=plan.identity,
            phases=phases,
            config=config,
            labels=list(dict.fromkeys(labels)),
            provenance=sources,
            request=plan.request,
            **self.made_with,
        )
        ResultStore(plan.root).put(plan.key, result)
        return result

    def _illustrate(self, phases: Sequence[PhaseResult]) -> None:
        """Put tensors, curves and head maps of the phases into the run's folder."""
        folder, draw = self.plan.folder, self.plan.config["logger"].get("pictures", True)
        stored = [self.shared.path(phase.fingerprint) for phase in phases]
        for index, source in enumerate(stored, start=1):
            _link(source / TENSORS, folder / f"phase-{index}.safetensors")
        labels = [phase.label for phase in phases]
        learning_curves([source / "metrics.csv" for source in stored], labels, folder, draw)
        score_map([phase.extra.get("heads") for phase in phases], labels, folder, draw)
        task = self.plan.task
        names = task.class_names or [*map(str, range(task.num_classes))]
        confusion(stored[-1] / CONFUSION, names, folder, draw, phases[-1].num_test)
        if phases[-1].metric == MAP:
            write_precisions(folder, names, phases[-1].extra[PRECISION]["classes"])


def _phases_of(earlier: Earlier) -> list[Method]:
    """The phases of a finished run, taken from its files; refused if a method is none of headwise's."""
    phases = enumerate(earlier.result.phases)
    return [
        replace(build_method(phase.method, phase.label), checkpoint=str(earlier.file(index))) for index, phase in phases
    ]


def _device(plan: Plan) -> tuple[int, str | None]:
    """Which GPU the run takes, and what that is called; the latter is None on a CPU.

    Raises:
        ConfigError: where trainer=auto chose the CPU and torch can use a GPU all the same.
    """
    is_gpu = plan.config["trainer"]["accelerator"] == "gpu"
    gpu = plan.turn % max(torch.cuda.device_count(), 1) if is_gpu else 0
    seen = torch.cuda.get_device_name(gpu) if torch.cuda.is_available() else None
    if plan.auto and not is_gpu and seen is not None:
        raise ConfigError(
            f"trainer=auto: this system shows no NVIDIA GPU in {DEVICES}, but torch can use one ({seen}); "
            "say which it is to be: trainer=gpu or trainer=cpu"
        )
    return gpu, seen if is_gpu else None


def _link(source: Path, target: Path) -> None:
    """Put a phase's tensors into the run's folder, sharing the disk blocks where the file system can."""
    with atomic.replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def say(line: str) -> None:
    """Tell the user, at once even where the output is a file."""
    print(line, flush=True)
