"""From a composed configuration to a plan: which run it is, where it lies, and what can change its numbers.

Nothing heavy is imported: an unknown option and a finished run answer without torch.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from headwise.commands.messages import instantiation, unmade
from headwise.data.found import with_classes
from headwise.data.sources import Source, source_of
from headwise.data.tasks import VTABTask, check_apart, task_of
from headwise.errors import ConfigError
from headwise.protocol import described as described  # registers what conf/ interpolates with
from headwise.protocol.earlier import Earlier
from headwise.protocol.filling import check_together, fill_method
from headwise.protocol.job import asked, overrides_of, sources, turn
from headwise.protocol.known import check_names
from headwise.protocol.naming import variant
from headwise.protocol.pertask import OTHERS, fill_protocol, fill_tasks
from headwise.protocol.ranges import check_package
from headwise.protocol.recipe import Protocol, precision_on
from headwise.protocol.revisions import fill_revisions
from headwise.protocol.space import Space
from headwise.protocol.subsets import check_subsets
from headwise.protocol.variants import BASE
from headwise.results.fingerprint import METHOD_FILES, fingerprint, identity
from headwise.results.records import FROM
from headwise.results.store import Result, RunKey
from headwise.schema.check import named
from headwise.schema.effective import effective
from headwise.schema.kinds import PUBLISHED
from headwise.schema.secret import refuse_secrets
from headwise.schema.source import literal_of_target
from headwise.schema.tree import check_config, check_method, check_nodes
from headwise.storage.atomic import at_home
from headwise.storage.hashes import file_sha256
from headwise.storage.plain import is_blocked
from headwise.storage.weights import network_name, weights_content

DEVICES = Path("/dev")
"""Where the system shows its GPUs."""
CHOICE = 2
"""Raised when the epoch that ``protocol.select=best_test`` takes, or what is kept of it, changes."""
ACCELERATORS = {"auto": "auto", "cpu": "cpu", "gpu": "gpu", "cuda": "gpu"}
"""What trainer.accelerator may be, and what it means."""
PIXELS = {"channels": 3, "pixel_scale": 1, "multi_label": False}
"""What turns stored images into pixels and labels, and its usual value, which a run's identity does not mention."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run before anything heavy is imported.

    Attributes:
        config: resolved, plain.
        identity: what can change a number, files by their content.
        task, source, protocol: built from their groups.
        resume: ``auto`` takes what is finished and continues what is not; ``force`` trains again and replaces the
            result at the end; ``never`` refuses if there is a result.
        wait: for another process that computes the same run; False is an error instead.
        auto: whether the device was left to us (trainer=auto).
        earlier: the run that it goes on from, if any.
        request: see `headwise.protocol.request`; empty outside of hydra's command line.
        overrides: what was asked on the command line or by a sweep.
        turn: of this job among those that run at the same time on this machine; they take its GPUs in turn.
    """

    key: RunKey
    config: dict[str, Any]
    identity: dict[str, Any]
    task: VTABTask
    source: Source
    protocol: Protocol
    root: Path
    resume: str = "auto"
    wait: bool = True
    auto: bool = False
    earlier: Earlier | None = None
    request: str = ""
    overrides: tuple[str, ...] = ()
    turn: int = 0

    @property
    def folder(self) -> Path:
        return self.key.path(self.root)

    @property
    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.config))

    def build_method(self) -> Any:
        """The method that the configuration describes; its class needs torch.

        Raises:
            ConfigError: if its class makes no method; whatever the method refuses.
        """
        with instantiation():
            method = instantiate(self.config["method"], _convert_="all")
            check_made("method", self.config["method"], hasattr(method, "phases"))
        return method

    def seeded(self, seed: int | None) -> Plan:
        """The same with another seed, whose images are those of this one; with None it is itself."""
        if seed is None:
            return self
        return replace(self, config={**self.config, "seed": seed}, identity={**self.identity, "seed": seed})

    def ground(self, protocol: Protocol) -> dict[str, Any]:
        """What every phase measured by `protocol` stands on; a search leaves no trace but in what it chose."""
        ground = {key: value for key, value in self.identity.items() if key != "method"}
        # how an epoch is chosen on the test set means nothing to a phase of which none is chosen
        apart = ("search",) if protocol.select == "best_test" else ("search", "choice")
        recipe = {key: value for key, value in ground["protocol"].items() if key not in apart}
        # the images on which a search looks are part of the run, not of the phases that it leads to
        ground["data"] = {"fingerprint": ground["data"]["fingerprint"]}
        splits = (protocol.train_split, protocol.eval_split)
        if (recipe["train_split"], recipe["eval_split"]) != splits:
            ground["data"] = {"fingerprint": self.source.fingerprint(self.task, splits)}
        names = ("train_split", "eval_split", "test_images", "select")
        looked_at = {name: getattr(protocol, name) for name in names}
        if any(recipe.get(name, getattr(Protocol, name)) != value for name, value in looked_at.items()):
            recipe |= looked_at
        return {**ground, "protocol": recipe}


def plan_run(cfg: DictConfig) -> Plan:
    """Resolve a configuration and name its run.

    Raises:
        ConfigError: for a missing value or one out of range.
    """
    config, task, source, protocol = settled(cfg, overrides_of(), sources())
    root = root_of(config["root"])
    resume, wait = config.pop("resume", "auto"), config.pop("wait", True)
    check_subsets(task, source, protocol)
    if (protocol.search or {}).get("trials"):
        check_package()
    identity = _reduced(config, task, [source.fingerprint(task, pair) for pair in _looked_at(config, protocol)])
    if earlier := Earlier.of(config):
        earlier.check(identity)
    key = RunKey(
        name=str(config["name"]),
        method=str(config["method"]["label"]),
        dataset=task.name,
        variant=config.get("variant") or _variant(config, identity),
        seed=config["seed"],
    )
    if task.is_own and (depth := getattr(source, "depth", lambda task: None)(task)) is not None:
        # as found in the images: whoever uses the network must scale other images alike
        config["dataset"]["depth"] = depth
    return Plan(
        key=key,
        config=config,
        identity=identity,
        task=task,
        source=source,
        protocol=protocol,
        root=root,
        resume=resume,
        wait=wait,
        auto=cfg.trainer.accelerator == "auto",
        earlier=earlier,
        request=asked(),
        overrides=overrides_of(),
        turn=turn(),
    )


def settled(
    cfg: DictConfig, overrides: Sequence[str], task_folders: tuple[str, ...]
) -> tuple[dict[str, Any], VTABTask, Source, Protocol]:
    """As `resolved`, with the source of images, which looks only whether its folder is there, and the protocol."""
    with instantiation():
        config, task = resolved(cfg, overrides, task_folders)
        source = instantiate(config["data"], _convert_="all")
        check_made(
            "data", config["data"], all(hasattr(source, name) for name in ("fingerprint", "labels", "count", "load"))
        )
        protocol = Protocol(**config["protocol"])
    check_apart(protocol.train_split, protocol.eval_split)
    return config, task, source, protocol


def check_made(group: str, node: Mapping[str, Any], is_right: bool) -> None:
    """Raise a ConfigError for a class that makes nothing its group is for."""
    if not is_right:
        raise ConfigError(f"{group}._target_={node['_target_']!r} makes nothing that {group} may be")


def root_of(given: Any) -> Path:
    """The folder of all results.

    Raises:
        ConfigError: if none is named: results do not go to wherever the command was given. For what is no folder's
            name on this machine.
    """
    text = "" if given is None else str(given)
    if not text.strip():
        raise ConfigError(f"root names the folder of all results, got {given!r}; leave it out for 'outputs'")
    if "://" in text or re.search(r"[\x00-\x1f\x7f]", text):
        raise ConfigError(
            f"root names a folder of this machine, got {text[:300]!r}; allowed: a path, no URL, no control characters"
        )
    root = at_home(text)
    if is_blocked(root):
        raise ConfigError(f"root names the folder of all results, but {text[:300]!r} is no folder and none can be made")
    return root


def resolved(
    cfg: DictConfig, overrides: Sequence[str], task_folders: tuple[str, ...]
) -> tuple[dict[str, Any], VTABTask]:
    """A configuration as plain values with nothing left open, and the task it names.

    Args:
        cfg: composed; stays as it is.
        overrides: that it was composed of.
        task_folders: folders of the configuration, which hold all tasks there are.

    Raises:
        ConfigError: for a field or a value that no run can have.
    """
    config = _plain(cfg)
    refuse_secrets(config)
    root_of(config.get("root"))
    check_config(config)
    config["dataset"] = with_classes(config["dataset"], config["data"])
    trainer = config["trainer"]
    trainer["accelerator"] = _accelerator(trainer["accelerator"])
    task = _task(json.dumps(config["dataset"], sort_keys=True))
    check_made("dataset", config["dataset"], isinstance(task, VTABTask))
    given = _given(overrides)
    if not task.is_own:
        check_names(config.get("per_task"), given, task_folders)
    own = fill_protocol(config, given)
    if own != config["protocol"]:
        config[OTHERS], config["protocol"] = config["protocol"], own
    for recipe in (config["protocol"], config.get(OTHERS, {})):
        if "precision" in recipe:
            recipe["precision"] = precision_on(trainer["accelerator"], recipe["precision"])
    if trainer["attention"] == "auto":
        plain = trainer["accelerator"] == "cpu" and config["protocol"].get("precision") == "bf16"
        trainer["attention"] = "plain" if plain else "timm"
    config["method"], published = fill_method(fill_tasks(config, given), task.name, config.get("ne"))
    # again: what the tables of tasks and of published values hold has not been looked at yet
    check_method(config["method"])
    config["method"] = fill_revisions(config["method"])
    check_together(trainer, config["method"])
    if published:
        config[PUBLISHED] = published
    config["backbone"]["name"] = network_name(config["backbone"], given)
    return config, task


@functools.lru_cache(maxsize=64)
def _task(dataset: str) -> Any:
    """What the group ``dataset`` makes, from its configuration as JSON: once for all that are composed beside a run."""
    return instantiate(json.loads(dataset), _convert_="all")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, every interpolation replaced."""
    plain: Any
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError as error:
        plain = OmegaConf.to_container(cfg)
        check_nodes(plain)
        raise ConfigError(unmade(named(error.full_key or "a value"), error)) from error
    return dict(plain)


def _accelerator(given: str) -> str:
    """What trainer.accelerator means here: cpu or gpu."""
    if given == "mps":
        raise ConfigError("trainer.accelerator=mps: Apple's GPUs have no float64, which methods need; use trainer=cpu")
    at_hand = "gpu" if _has_gpu() else "cpu"
    return at_hand if ACCELERATORS[given] == "auto" else ACCELERATORS[given]


def _has_gpu() -> bool:
    """Whether this process may use an NVIDIA GPU; torch is not asked, it would take seconds.

    What it says is part of a run's identity, so torch's own answer, which a trained run hears, can only contradict it.
    """
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and any(DEVICES.glob("nvidia[0-9]*"))


def _given(overrides: Sequence[str]) -> set[str]:
    """Keys that the command line or a sweep sets."""
    return {override.lstrip("+~").partition("=")[0] for override in overrides}


def _variant(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The variant of the job that hydra runs in this process; outside of hydra's command line nothing was chosen."""
    if not HydraConfig.initialized():
        return BASE
    images = [own["data"]["fingerprint"], *own["data"].get("searched", [])]

    def identify(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
        other, task = resolved(cfg, overrides, sources())
        looked_at, parts = (_looked_at(c, Protocol(**c["protocol"])) for c in (other, config)), ("dataset", "data")
        pairs, own_pairs = looked_at
        if pairs == own_pairs and all(other[part] == config[part] for part in parts):
            return _reduced(other, task, images)  # its images need not be looked at again
        parts_as_json = [json.dumps(other[part], sort_keys=True) for part in parts]
        return _reduced(other, task, [_images(*parts_as_json, *pair)[1] for pair in pairs])

    return variant(HydraConfig.get(), overrides_of(), own, identify)


def _looked_at(config: Mapping[str, Any], protocol: Protocol) -> list[tuple[str, str]]:
    """Pairs of splits that decide a number: those of training and test, and those on which a search chooses."""
    parts = [config["method"], config["method"].get("first", {})]
    searches = protocol.search is not None or any(isinstance(part, Mapping) and part.get("search") for part in parts)
    trial = protocol.for_search()
    pairs = [(protocol.train_split, protocol.eval_split), (trial.train_split, trial.eval_split)]
    return list(dict.fromkeys(pairs if searches else pairs[:1]))


def _reduced(config: Mapping[str, Any], task: VTABTask, images: Sequence[str]) -> dict[str, Any]:
    pixels = {name: value for name, usual in PIXELS.items() if (value := getattr(task, name)) != usual}
    compiled = ["compile"] if config["trainer"].get("compile") and _runs_blocks(config) else []
    reduced = {
        "method": fill_revisions(config["method"]),
        "backbone": config["backbone"],
        "dataset": {"name": task.name, "num_classes": task.num_classes, **pixels},
        "data": {"fingerprint": images[0], **({"searched": list(images[1:])} if images[1:] else {})},
        "protocol": config["protocol"],
        "trainer": {key: config["trainer"][key] for key in ("accelerator", "threads", "attention", *compiled)},
        "seed": config["seed"],
    }
    if _chooses_anew(config):
        reduced["protocol"] = {**config["protocol"], "choice": CHOICE}
    if search := config["protocol"].get("search"):
        # which seed searches is said even where it is the usual one: before, every seed searched for itself
        reduced["protocol"] = {**reduced["protocol"], "search": {"seed": Space.of(search).seed, **search}}
    contents = {"backbone.weights": weights_content(config["backbone"])}
    if earlier := Earlier.of(config):
        contents[FROM] = earlier.content
    for path, node in (("method", config["method"]), ("method.first", config["method"].get("first", {}))):
        for name in METHOD_FILES if isinstance(node, Mapping) else ():
            if node.get(name):
                contents[f"{path}.{name}"] = file_sha256(node[name])
    return effective(identity(reduced, contents))


def _runs_blocks(config: Mapping[str, Any]) -> bool:
    """Whether steps pass the blocks, as `headwise.training.features.are_fixed` tells of a method that is built."""
    is_probe = literal_of_target(str(config["method"]["_target_"]), "reads_features")
    return not is_probe or config["protocol"].get("augment", "none") != "none"


def _chooses_anew(config: Mapping[str, Any]) -> bool:
    """Whether the epoch chosen on the test set is another one than code before `CHOICE` 2 stored.

    On a CPU it kept the last epoch's tensors in place of the chosen one's. AdaLoRA could be taken from before its last
    pruning; heads that were to go off as well, but then the record says that none is (see `PhaseResult`).
    """
    if config["protocol"].get("select") != "best_test":
        return False
    return config["trainer"]["accelerator"] == "cpu" or "peft.AdaLoraConfig" in json.dumps(config["method"])


def still_holds(result: Result) -> bool:
    """Whether a stored result is what its own configuration would give now: same images, weights, checkpoints.

    Nothing is composed, and nothing that a record names is called: its task and its source of images are of our own
    classes, or it does not hold. Images are looked at once for all runs of a task in this process.
    """
    config = result.config
    try:
        protocol = Protocol(**config["protocol"])
        parts = [json.dumps(config[name], sort_keys=True) for name in ("dataset", "data")]
        looked_at = [_images(*parts, *splits) for splits in _looked_at(config, protocol)]
        task, images = looked_at[0][0], [content for _, content in looked_at]
        return fingerprint(_reduced(config, task, images)) == result.fingerprint
    except Exception:  # a record is a stranger's: whatever it leads to says that it does not hold
        return False


@functools.cache
def _images(dataset: str, data: str, *splits: str) -> tuple[VTABTask, str]:
    """A task and the fingerprint of its images, from their configurations as JSON."""
    task, source = task_of(json.loads(dataset)), source_of(json.loads(data))
    return task, source.fingerprint(task, splits)
