"""run(cfg): from a composed configuration to a recorded result. The only importer of hydra, with train.py.

Nothing heavy is imported until a run is really needed: an unknown option, ``--help`` and a finished run answer without
torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from headwise import atomic, provenance
from headwise.data.sources import Source
from headwise.data.tasks import VTABTask
from headwise.errors import ConfigError, HeadwiseError, Interrupted, suggest
from headwise.fingerprint import file_sha256, identity
from headwise.gate import fill_gates
from headwise.protocol import Protocol
from headwise.results import PhaseResult, PhaseStore, Result, ResultStore, RunKey
from headwise.search import Space, search
from headwise.variants import variant_of
from headwise.weights import weights_content

if TYPE_CHECKING:
    from headwise.backbone import Backbone
    from headwise.data.vtab import VTABDataModule
    from headwise.methods.base import Method

OmegaConf.register_new_resolver("mul", lambda a, b: a * b, replace=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run before anything heavy is imported.

    Attributes:
        key: its folder.
        config: resolved, plain.
        identity: what can change a number, files by their content.
        task, source, protocol: built from their groups.
        root: of all results.
    """

    key: RunKey
    config: dict[str, Any]
    identity: dict[str, Any]
    task: VTABTask
    source: Source
    protocol: Protocol
    root: Path


def run(cfg: DictConfig) -> float | None:
    """Run one configuration, or return the stored accuracy of its last phase if it is finished.

    Returns:
        Accuracy of the last phase, percent.

    Raises:
        HeadwiseError: for anything the user can mend. The traceback is in the run's folder, nothing finished is lost.
    """
    plan = plan_run(cfg)
    done = ResultStore(plan.root).get(plan.key, plan.identity)
    if done is None:
        folder = plan.key.path(plan.root)
        try:
            done = _execute(plan)
        except BaseException as error:
            if not isinstance(error, Interrupted | KeyboardInterrupt):
                atomic.write_text(folder / "failure.txt", traceback.format_exc())
                print(f"failed: {folder}: {_text(error)}", file=sys.stderr, flush=True)
            raise
        (folder / "failure.txt").unlink(missing_ok=True)
    else:
        print(f"already finished: {plan.key.path(plan.root)}")
    print(summary(done), flush=True)
    return done.accuracy


def plan_run(cfg: DictConfig) -> Plan:
    """Resolve a configuration and name its run.

    Raises:
        ConfigError: for a missing value or one out of range.
    """
    with _instantiation():
        cfg = cfg.copy()
        OmegaConf.set_struct(cfg, False)
        if cfg.trainer.accelerator == "auto":
            cfg.trainer.accelerator = "gpu" if Path("/dev/nvidia0").exists() else "cpu"
        if cfg.trainer.attention == "auto":
            plain = cfg.trainer.accelerator == "cpu" and cfg.protocol.precision == "bf16"
            cfg.trainer.attention = "plain" if plain else "timm"
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        config["method"] = fill_gates(config["method"], config.get("ne"))
        task = instantiate(config["dataset"], _convert_="all")
        source = instantiate(config["data"], _convert_="all")
        protocol = Protocol(**config["protocol"])
    if task.num_test is not None and (protocol.test_images or 0) >= task.num_test:
        raise ConfigError(
            f"protocol.test_images={protocol.test_images} is not a subset of the {task.num_test} test images of "
            f"{task.name}; use null for all"
        )
    key = RunKey(
        name=str(config["name"]),
        method=str(config["method"]["label"]),
        dataset=task.name,
        variant=config.get("variant") or _variant(),
        seed=config["seed"],
    )
    return Plan(
        key=key,
        config=config,
        identity=_identity(config, task, source, protocol),
        task=task,
        source=source,
        protocol=protocol,
        root=Path(config["root"]),
    )


def _variant() -> str:
    if not HydraConfig.initialized():
        return "base"
    choices = HydraConfig.get()
    return variant_of(list(choices.overrides.task))


def _identity(config: Mapping[str, Any], task: VTABTask, source: Source, protocol: Protocol) -> dict[str, Any]:
    splits = (protocol.train_split, protocol.eval_split)
    reduced = {
        "method": config["method"],
        "backbone": config["backbone"],
        "dataset": {"name": task.name, "num_classes": task.num_classes},
        "data": {"fingerprint": source.fingerprint(task, splits)},
        "protocol": config["protocol"],
        "trainer": {key: config["trainer"][key] for key in ("accelerator", "threads", "attention")},
        "seed": config["seed"],
    }
    contents = {"backbone.weights": weights_content(config["backbone"])}
    for path, node in (("method", config["method"]), ("method.first", config["method"].get("first", {}))):
        if isinstance(node, Mapping) and node.get("checkpoint"):
            contents[f"{path}.checkpoint"] = file_sha256(node["checkpoint"])
    return identity(reduced, contents)


def _ground(plan: Plan, protocol: Protocol) -> dict[str, Any]:
    """What every phase measured by `protocol` stands on; a search leaves no trace but in what it chose."""
    ground = {key: value for key, value in plan.identity.items() if key != "method"}
    recipe = {key: value for key, value in ground["protocol"].items() if key != "search"}
    splits = {"train_split": protocol.train_split, "eval_split": protocol.eval_split}
    if any(recipe[key] != split for key, split in splits.items()):
        images = plan.source.fingerprint(plan.task, tuple(splits.values()))
        ground["data"] = {"fingerprint": images}
        recipe |= {**splits, "test_images": protocol.test_images, "select": protocol.select}
    return {**ground, "protocol": recipe}


def _execute(plan: Plan) -> Result:
    """Train all phases and record the result; the only part that needs torch."""
    import torch

    from headwise.backbone import BackboneSpec
    from headwise.data.vtab import VTABDataModule
    from headwise.plots import learning_curves, score_map
    from headwise.training import TENSORS, Machine, chain, hush, run_phases

    hush()
    config, protocol = plan.config, plan.protocol
    print(f"run: {plan.key.path(plan.root)}", flush=True)
    with _instantiation():
        method = instantiate(config["method"], _convert_="all")
        spec = BackboneSpec(**config["backbone"])
    folder = plan.key.path(plan.root)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    store = PhaseStore(plan.root)
    methods = method.phases()
    found = None

    def say(line: str) -> None:
        print(line, flush=True)

    def train(
        methods: Sequence[Method], protocol: Protocol, logger: Any
    ) -> tuple[Backbone, VTABDataModule, list[PhaseResult]]:
        net = spec.build(protocol.drop_path)
        options = protocol.data_options(net.mean, net.std)
        data = VTABDataModule(plan.task, plan.source, net.img_size, seed=config["seed"], **options)
        machine = Machine(
            accelerator=config["trainer"]["accelerator"],
            threads=config["trainer"]["threads"],
            attention=config["trainer"]["attention"],
            progress=config["trainer"]["progress"],
            logger=logger,
        )
        ground = _ground(plan, protocol)
        seed = config["seed"]
        phases = run_phases(net, methods, data, protocol, store, ground, seed=seed, machine=machine, say=say)
        return net, data, phases

    def attempt(methods: Sequence[Method]) -> PhaseResult:
        trial = protocol.for_search()
        address = chain(methods, _ground(plan, trial), trial.epochs)[-1].phase
        return store.finished(address) or train(methods, trial, None)[2][-1]

    if protocol.search is not None:
        found = search(methods, Space.of(protocol.search), attempt, say)
        methods = tuple(found.methods)
    with _logger(config, plan.key) as logger:
        net, data, phases = train(methods, protocol, logger)
    if found is not None:
        phases[-1] = replace(phases[-1], extra={**phases[-1].extra, "search": found.report()})
    for index, phase in enumerate(phases, start=1):
        _link(store.path(phase.fingerprint) / TENSORS, folder / f"phase-{index}.safetensors")
    histories = [store.path(phase.fingerprint) / "metrics.csv" for phase in phases]
    learning_curves(histories, [phase.label for phase in phases], folder)
    score_map([phase.extra.get("heads") for phase in phases], [phase.label for phase in phases], folder)
    device = torch.cuda.get_device_name() if config["trainer"]["accelerator"] == "gpu" else None
    result = Result(
        key=plan.key,
        identity=plan.identity,
        phases=phases,
        config=config,
        labels=list(dict.fromkeys([*spec.labels, *plan.source.labels(plan.task), *protocol.labels])),
        provenance={
            "weights": {**net.provenance, "content": plan.identity["backbone"]["weights"]},
            "data": data.provenance(),
            "protocol": config["protocol"],
        },
        versions=provenance.versions(),
        git=provenance.git_state(Path(__file__).parent),
        machine=provenance.machine(device, config["trainer"]["threads"]),
    )
    ResultStore(plan.root).put(plan.key, result)
    return result


@contextlib.contextmanager
def _logger(config: Mapping[str, Any], key: RunKey) -> Iterator[Any]:
    """The tracker of this run, closed with a true exit code; None where curves stay in local files only."""
    options = dict(config["logger"])
    if options.pop("kind", "csv") != "wandb":
        yield None
        return
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    options.setdefault("group", key.name)
    logger = WandbLogger(
        name=f"{key.method}/{key.dataset}/{key.variant}/{key.seed}",
        save_dir=config["root"],
        config=dict(config),
        **options,
    )
    code = 1
    try:
        yield logger
        code = 0
    finally:
        wandb.finish(exit_code=code)


def _link(source: Path, target: Path) -> None:
    """Put a phase's tensors into the run's folder, sharing the disk blocks where the file system can."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        import shutil

        shutil.copyfile(source, target)


def summary(result: Result) -> str:
    """A small table of what each phase reached and gained."""
    lines = [
        f"{result.key.method} on {result.key.dataset}, seed {result.key.seed}"
        + (f" [{', '.join(result.labels)}]" if result.labels else ""),
        f"{'phase':<28}{'accuracy':>10}{'gain':>8}{'tunable':>12}{'head':>9}{'stored':>12}{'seconds':>9}",
    ]
    before: float | None = None
    for index, phase in enumerate(result.phases, start=1):
        gain = "" if before is None or phase.accuracy is None else f"{phase.accuracy - before:+.2f}"
        accuracy = "-" if phase.accuracy is None else f"{phase.accuracy:.2f} %"
        lines.append(
            f"{f'{index} {phase.label}':<28}{accuracy:>10}{gain:>8}{phase.num_tunable:>12,}{phase.num_head:>9,}"
            f"{phase.stored_bytes:>10,} B{phase.seconds:>9.1f}"
        )
        before = phase.accuracy
    if len(result.phases) > 1 and not result.phases[-1].method.get("_target_", "").endswith(".MatchedLoRA"):
        lines.append(
            "The second phase also brings training and parameters. Its controls, with the same options: "
            "method=hs_control_long (equal length), method=hs_control_lora (equal size)."
        )
    return "\n".join(lines)


def launch(main: Callable[[], Any]) -> None:
    """Run a hydra main; whatever goes wrong becomes a readable message and an exit status that is not 0."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (KeyboardInterrupt, Interrupted) as error:
        print(f"\n{_text(error) or 'stopped by the user: run the same command to resume'}", file=sys.stderr)
        sys.exit(130)
    except (HeadwiseError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {_text(error)}", file=sys.stderr)
        sys.exit(1)


def _text(error: BaseException) -> str:
    """The user's text of an error, with the nearest right spelling where hydra only lists."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"unknown {group or 'configuration'} {name!r}{suggest(name, error.options)}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HeadwiseError):
            return str(cause)
        key = getattr(cause, "full_key", None)
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key and isinstance(parent, DictConfig):
            name = str(key).rpartition(".")[2]
            keys = [str(k) for k in parent]
            hint = f"; a field of a class that its YAML leaves out: +{key}=..."
            return f"unknown configuration key {key!r}{suggest(name, keys)}{hint}"
        cause = cause.__cause__ or cause.__context__
    return str(error)


@contextlib.contextmanager
def _instantiation() -> Iterator[None]:
    """Turn hydra's instantiation errors into ConfigError with the user's part of the text."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given: add {error.full_key}=VALUE to the command") from error
    except InstantiationException as error:
        raise ConfigError(_text(error)) from error
    except TypeError as error:
        raise ConfigError(str(error)) from error
