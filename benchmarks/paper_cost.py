"""GPU-hours of every table and figure on paper: arithmetic counted by torch, runs counted from conf/experiment.

For each method of an experiment, one training step and one test are counted at one and at two images, which parts what
a step costs once from what an image costs (on the meta device, where nothing is computed). Phases that runs share are
counted once, as they are trained once; a search adds its trials. The arithmetic is divided by what a named GPU does of
it in a second (`GPU`, assumptions: our methods may run slower or faster): of an RTX 3090 what timm published of
ViT-B/16, of an H200 a share of its peak.

Run: python benchmarks/paper_cost.py --json benchmarks/results/paper_cost.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from headwise.cli import earlier_record, script
from headwise.commands.arguments import Parser, record_file
from headwise.errors import ConfigError, suggest
from headwise.methods._evolution import Evolution
from headwise.methods.base import Method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.protocol.filling import fill_gates
from headwise.protocol.pertask import fill_protocol, fill_tasks
from headwise.protocol.presets import fill_presets
from headwise.protocol.recipe import Protocol
from headwise.protocol.search import settle
from headwise.protocol.space import Space, phase_names
from headwise.results.records import PhaseResult
from headwise.runs.jobs import requests_of
from headwise.storage import atomic
from headwise.storage.plain import every, fields, flag, whole
from headwise.training.address import chain
from headwise.training.features import are_fixed
from headwise.training.utilisation import PEAKS, counter
from headwise.updates.gate import Gate

CONF = Path(__file__).resolve().parent.parent / "conf"
RESULTS = Path(__file__).resolve().parent / "results"
PAPERS = ("hs_", "heart_")
NOT_THE_PAPERS = ("heart_twins", "heart_variants")
OURS = ("hs_controls", "hs_fused", "hs_head_only", "hs_rank")
"""Of what is counted, the tables that neither paper has: controls, and claims that HS-LoRA makes without one."""
OUR_ROWS = ("method=heart/random",)
"""Runs of the papers' experiments that no paper has."""
TRAIN_IMAGES, SEARCH_IMAGES, SEARCH_TEST = 1000, 800, 200
SEARCH_LISTS = {
    "fewshot_food101": 20_200,
    "fewshot_cars196": 1_635,
    "fewshot_flowers102": 1_633,
    "fewshot_aircraft": 3_333,
    "fewshot_pets": 736,
}
"""Images on which the few-shot sets' searches are measured (Heart-LoRA Table 8); SEARCH_TEST of any other task."""


@dataclass(frozen=True)
class GPU:
    """What a GPU does.

    Attributes:
        name: of the card.
        peaks: dense multiplications and additions per second, by precision.
        rates: of each backbone, images per second in training (all of it, mixed precision, 224 pixels) and in testing,
            from public measurements; empty where `share` is assumed instead.
        share: of the peak that is reached.
        sources: where the numbers stand.
    """

    name: str
    peaks: dict[str, float]
    sources: tuple[str, ...]
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    share: float | None = None

    def seconds(self, made: Bill, backbone: str, reference: Cost, precision: str) -> float:
        """What a bill takes in a precision of `peaks`.

        Args:
            made: the bill.
            backbone: name of the network.
            reference: cost of full fine-tuning in it, which the rates are of.
            precision: other than bf16 at the ratio of the peaks, an assumption as well.
        """
        if self.share is not None:
            return (made.train_flops + made.test_flops) / (self.share * self.peaks[precision])
        train, test = self.rates[backbone]
        seconds = made.train_flops / (train * reference.image) + made.test_flops / (test * reference.test)
        return seconds * self.peaks["bf16"] / self.peaks[precision]


CARD = GPU(
    name="NVIDIA GeForce RTX 3090",
    rates={"vit_b16_in21k": (385.62, 1132.21), "swin_b_in22k": (279.66, 832.60)},
    peaks={precision: PEAKS["NVIDIA GeForce RTX 3090"][precision] for precision in ("bf16", "fp32")},
    sources=(
        "huggingface/pytorch-image-models results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv, "
        "deit_base_distilled_patch16_224 (ViT-B/16 and one token), swin_base_patch4_window7_224",
        "huggingface/pytorch-image-models results/benchmark-infer-amp-nchw-pt112-cu113-rtx3090.csv, "
        "vit_base_patch16_224, swin_base_patch4_window7_224",
        "NVIDIA Ampere GA102 GPU architecture whitepaper: RTX 3090, 35.6 TFLOPS FP32, 71 TFLOPS FP16 tensor with FP32 "
        "accumulation, dense",
    ),
)
LARGE = GPU(
    name="NVIDIA H200",
    share=0.35,
    peaks={precision: PEAKS["NVIDIA H200"][precision] for precision in ("bf16", "tf32")},
    sources=(
        "NVIDIA H200 datasheet: 1,979 TFLOPS BF16 and 989 TFLOPS TF32 with sparsity, half of it dense",
        "35 % of the peak: assumed",
    ),
)
CARDS = {"rtx3090": CARD, "h200": LARGE}
BANDWIDTH = 4.8e12
"""Bytes per second of an H200's memory (NVIDIA's datasheet)."""
SHARES = (0.3, 0.4)
"""Of the peak, at which images per second are told."""


@dataclass(frozen=True)
class Cost:
    """Arithmetic of one method in one network, multiplications and additions.

    Attributes:
        step: what a training step costs once.
        image: what it costs for each image.
        test: of one tested image.
    """

    step: int
    image: int
    test: int


@dataclass
class Bill:
    """What one experiment costs.

    Attributes:
        runs: of the sweep.
        phases: distinct phases that are trained, trials of searches left out.
        trials: of searches.
        train_flops, test_flops: of all of it.
    """

    runs: int = 0
    phases: int = 0
    trials: int = 0
    train_flops: float = 0.0
    test_flops: float = 0.0

    def plus(self, other: Bill) -> Bill:
        """Both."""
        return Bill(**{name: getattr(self, name) + value for name, value in asdict(other).items()})


def experiments() -> list[str]:
    """Those of the papers, then ours: what both train is the papers'."""
    names = [file.stem for file in sorted((CONF / "experiment").glob("*.yaml"))]
    names = [name for name in names if name.startswith(PAPERS) and name not in NOT_THE_PAPERS]
    return sorted(names, key=lambda name: name in OURS)


def is_ours(experiment: str, job: Sequence[str]) -> bool:
    """Whether a run is in neither paper."""
    return experiment in OURS or any(override in OUR_ROWS for override in job)


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """A configuration, images and weights left open."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides))


@functools.cache
def job(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The resolved configuration of one run, task and seed put in without composing anew."""
    own = ("dataset=", "shots=")
    cfg = composed(*(o for o in overrides if not o.startswith(own))).copy()
    OmegaConf.set_struct(cfg, False)
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "dataset":
            cfg.dataset = composed(override).dataset
        elif key == "shots":
            cfg.shots = int(value)
    cfg.data.root = "unused"
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    given = [o.partition("=")[0] for o in overrides]
    config["protocol"] = fill_protocol(config, given)
    config["method"] = fill_gates(fill_tasks(config, given), config.get("ne"))
    config["method"], _ = fill_presets(config["method"], config["dataset"]["name"])
    return config


@functools.cache
def spec_of(backbone: str) -> BackboneSpec:
    """A network of the papers, with random weights."""
    return BackboneSpec(**{**json.loads(backbone), "weights": "none"})


IRRELEVANT = (
    "label",
    "scale",
    "mean",
    "std",
    "lr",
    "adapter_lr",
    "epochs",
    "gate",
    "revision",
    "checkpoint",
    "seed",
    "search",
)
"""Fields that hardly change the arithmetic, and NOAH's subnet with them."""
_costs: dict[str, Cost] = {}
"""What is known, from an earlier record or counted."""
_asked: set[str] = set()
"""Of these, what was asked for: a record of a whole count holds nothing else."""
RECORD = fields({"methods": every(fields({"step": whole, "image": whole, "test": whole}))}, {"complete": flag})
"""What is read of an earlier record."""


def cost_of(method: Method, backbone: str) -> Cost:
    """Arithmetic of a method; counted once for settings that do not change it, gates among them."""
    method = replace(method, gate=None, **({"search": None} if hasattr(method, "search") else {}))
    shape = {name: value for name, value in method.spec().items() if name not in (*IRRELEVANT, "task")}
    key = json.dumps([shape, backbone], sort_keys=True, default=str)
    _asked.add(key)
    if key not in _costs:
        print(f"counting {method.label} {shape}", file=sys.stderr, flush=True)
        try:
            with torch.device("meta"), without_autocast():
                _costs[key] = _counted(method, backbone)
        except RuntimeError:  # it looks at numbers, which only real tensors have
            _costs[key] = _counted(method, backbone)
    return _costs[key]


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Spare the meta device the question whether autocast is on: it has none."""
    with (
        mock.patch("torch.is_autocast_enabled", lambda *_: False),
        mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        yield


def _counted(method: Method, backbone: str) -> Cost:
    net = spec_of(backbone).build()
    net.set_attention("plain")
    net.new_head(100)
    images = torch.randn(1, 3, net.img_size, net.img_size)
    plan = method.prepare(net, lambda: [(images, torch.zeros(1, dtype=torch.long))], 1500)
    installed = method.install(net, plan)
    installed.set_mode()
    train = [_count(net, number, train=True) for number in (1, 2)]
    net.eval().requires_grad_(False)
    test = [_count(net, number, train=False) for number in (1, 2)]
    image = train[1] - train[0]
    return Cost(train[0] - image, image, test[1] - test[0])


def _count(net: Backbone, number: int, train: bool) -> int:
    tunable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with torch.set_grad_enabled(train), counter() as counted:
        images = torch.randn(number, 3, net.img_size, net.img_size)
        loss = F.cross_entropy(net(images).float(), torch.zeros(number, dtype=torch.long))
        if train:
            torch.autograd.grad(loss, tunable, allow_unused=True)
    return int(counted.get_total_flops())


def bill(jobs: Iterable[Sequence[str]], seen: set[Any] | None = None) -> Bill:
    """Add up the runs of an experiment; what several share is counted once.

    Args:
        jobs: the runs.
        seen: addresses of what was trained before; what is trained now is added.
    """
    total, seen = Bill(), set() if seen is None else seen
    jobs = list(jobs)
    alike = Counter(tuple(o for o in job if not o.startswith(("seed=", "draw="))) for job in jobs)
    num_draws = len({word for job in jobs for word in job if word.startswith("draw=")}) or 1
    for overrides, times in alike.items():
        config = job(overrides)
        method = instantiate(config["method"], _convert_="all")
        counted = Counted(total, seen, config)
        total.runs += times
        shots = config["dataset"].get("shots")
        count = TRAIN_IMAGES if shots is None else shots * config["dataset"]["num_classes"]
        total.phases += counted.train(method.phases(), times, Images(count, config["dataset"]["num_test"]))
        num_test = SEARCH_LISTS.get(config["dataset"]["name"], SEARCH_TEST)
        num_test = min(num_test, (config["protocol"].get("search") or {}).get("images") or num_test)
        searched = Images(count if shots else SEARCH_IMAGES, num_test, is_search=True)
        for phase in method.phases():
            counted.scout(phase, times, searched)
        counted.search(method, times, num_draws, searched)
    return total


class Images(NamedTuple):
    """How many images phases are trained on and tested on, and whether a search does so."""

    train: int
    test: int
    is_search: bool = False


class Counted:
    """Adds what the runs of one job cost to a bill.

    Args:
        total: the bill.
        seen: addresses of phases and warm-ups that stand on it already.
        config: of the job.
    """

    def __init__(self, total: Bill, seen: set[Any], config: Mapping[str, Any]) -> None:
        self.total, self.seen = total, seen
        self.protocol = Protocol(**config["protocol"])
        self.backbone = json.dumps(config["backbone"], sort_keys=True)
        recipe = {key: value for key, value in config["protocol"].items() if key not in ("name", "search")}
        self.ground = {
            "task": config["dataset"]["name"],
            "shots": config["dataset"].get("shots"),
            "backbone": self.backbone,
            "protocol": recipe,
        }

    def train(self, methods: Sequence[Method], times: int, images: Images) -> int:
        """Phases one after the other, those that were not trained before; returns their number."""
        protocol, num_new = self.protocol, 0
        addresses = chain(methods, {**self.ground, "is_search": images.is_search}, protocol.epochs)
        for method, address in zip(methods, addresses, strict=True):
            if address.phase in self.seen:
                continue
            epochs = method.epochs or protocol.epochs
            is_warm = address.trunk is not None and address.trunk in self.seen
            warm = Gate.of(method.gate).warmup_epochs(epochs) if is_warm else 0  # type: ignore[union-attr]
            self.seen |= {address.phase, address.trunk}
            cost = cost_of(method, self.backbone)
            has_looks = protocol.select == "best_test" and not images.is_search
            looks = 1 + (epochs // protocol.select_every if has_looks else 0)
            if are_fixed(method, protocol.augment):  # its features are computed once
                self.total.train_flops += times * images.train * cost.test
            else:
                self.total.train_flops += times * (epochs - warm) * _epoch(cost, images.train, protocol)
            self.total.test_flops += times * looks * images.test * cost.test
            num_new += times
        return num_new

    def scout(self, method: Method, times: int, images: Images) -> None:
        """A method that finds its own fields: its supernet is trained, and every subnet tested, like itself."""
        if method.scout() is None:
            return
        recipe, cost = Evolution.of(getattr(method, "search")), cost_of(method, self.backbone)  # noqa: B009
        self.total.train_flops += times * recipe.epochs * _epoch(cost, images.train, self.protocol)
        tested = recipe.population * (1 + recipe.generations)
        self.total.test_flops += times * tested * images.test * cost.test

    def search(self, method: Any, times: int, num_draws: int, images: Images) -> None:
        """The trials of a run as it makes them, as if each were as good as the others."""
        if self.protocol.search is None:
            return
        space = Space.of(self.protocol.search)
        phases = [replace(phase, search=None) if phase.scout() is not None else phase for phase in method.phases()]
        # one search serves all seeds, but each draw has images of its own
        searches = times if space.seed is None else num_draws

        def attempt(tried: Sequence[Method], seed: int | None) -> PhaseResult:
            self.total.trials += self.train(tried, searches, images)
            return PhaseResult(label="trial", accuracy=0.0, num_tunable=1, num_head=1, stored_bytes=1, seconds=0.0)

        settle(phases, phase_names(method), space, attempt, self.protocol.epochs)


def _epoch(cost: Cost, count: int, protocol: Protocol) -> float:
    batch = min(protocol.batch_size, count)
    steps = count // batch if protocol.drop_last else math.ceil(count / batch)
    return steps * (cost.step + batch * cost.image)


@dataclass
class Total:
    """Several experiments, what they share once.

    Attributes:
        bill: of all.
        hours: of all, by card and precision.
    """

    bill: Bill = field(default_factory=Bill)
    hours: dict[str, Counter[str]] = field(default_factory=lambda: {key: Counter() for key in CARDS})

    def add(self, made: Bill, times: Mapping[str, Mapping[str, float]]) -> None:
        """Add an experiment, without what those before it trained."""
        self.bill = self.bill.plus(made)
        for key, by_precision in times.items():
            self.hours[key].update(by_precision)  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self.bill), "gpu_hours": {key: dict(value) for key, value in self.hours.items()}}


def hours(made: Bill, backbone: str, reference: Cost) -> dict[str, dict[str, float]]:
    """GPU-hours, by card and precision."""
    return {
        key: {precision: card.seconds(made, backbone, reference, precision) / 3600 for precision in card.peaks}
        for key, card in CARDS.items()
    }


def measured() -> dict[str, Any]:
    """Images per second of our own steps on a CPU, from the saved runs of step_time.py."""
    found = {}
    for file in sorted(RESULTS.glob("step_time*.json")):
        record = json.loads(file.read_text())
        for row in record["results"]:
            if row["contender"].startswith("HS-LoRA"):
                seconds = sorted(pair[1] for pair in row["pairs"])[len(row["pairs"]) // 2]
                found[row["precision"]] = {
                    "images_per_second": record["batch"] / seconds,
                    "file": file.name,
                    "cpu": record["machine"]["cpu"],
                    "threads": record["machine"]["threads"],
                }
    return found


def roofline() -> dict[str, Any]:
    """What HS-LoRA's second phase on ViT-B/16 would train at on an H200 in bf16, and what limits it there.

    What a step keeps for its backward pass is written once and read once at least; nothing else is counted as moved.
    """
    spec = OmegaConf.to_container(composed("method=head_lora").method, resolve=True)
    method: Method = instantiate(spec, _convert_="all")
    backbone = json.dumps(OmegaConf.to_container(backbone_of("hs_table2")), sort_keys=True)
    operations, peak = cost_of(method, backbone).image, LARGE.peaks["bf16"]
    kept = json.loads((RESULTS / "step_memory.json").read_text())["results"]
    moved = 2 * next(row["image"] for row in kept if row["contender"] == "head_lora")
    return {
        "flop_per_image": operations,
        "bytes_per_image": moved,
        "flop_per_byte": operations / moved,
        "flop_per_byte_of_the_gpu": peak / BANDWIDTH,
        "images_per_second": {f"{share:.0%}": share * peak / operations for share in SHARES},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    known = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
    parser.add_argument(
        "--only", nargs="+", choices=known, metavar="NAME", help="experiments; all of the papers if left out"
    )
    parser.add_argument(
        "--json",
        type=record_file,
        metavar="FILE",
        help="write the record there; methods in it are not recounted, a complete one stays until this is complete",
    )
    return parser.parse_args(arguments)


def backbone_of(experiment: str) -> DictConfig:
    """The network of an experiment.

    Raises:
        ConfigError: for one whose speed on the card is not known.
    """
    backbone: DictConfig = composed(f"experiment={experiment}").backbone
    if backbone.name not in CARD.rates:
        raise ConfigError(
            f"--only {experiment}: its network {backbone.name} has no rate on the {CARD.name}"
            f"{suggest(backbone.name, CARD.rates)}"
        )
    return backbone


def _cells(made: Bill) -> list[str]:
    counts = [f"{number:,}" for number in (made.runs, made.phases, made.trials)]
    return counts + [f"{flops / 1e15:,.0f}" for flops in (made.train_flops, made.test_flops)]


def _write(file: Path, record: Mapping[str, Any], known: Iterable[str]) -> None:
    """Write a record with the arithmetic of the methods that are `known`."""
    methods = {key: asdict(_costs[key]) for key in sorted(known)}
    atomic.write_text(file, json.dumps({**record, "methods": methods}, indent=1) + "\n")


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and write the record; returns the exit status."""
    options = parse(arguments)
    backbones = {name: backbone_of(name) for name in options.only or experiments()}
    earlier = earlier_record(options.json, RECORD)
    is_whole = bool(earlier) and earlier.get("complete", True)
    _asked.clear()
    _costs.clear()
    known = earlier.get("methods", {}).items()
    _costs.update({key: Cost(cost["step"], cost["image"], cost["test"]) for key, cost in known})
    gpus = {key: asdict(card) for key, card in CARDS.items()}
    record: dict[str, Any] = {"gpus": gpus, "measured_on_a_cpu": measured(), "experiments": {}, "methods": {}}
    columns = {f"h {key} {precision}": (key, precision) for key, card in CARDS.items() for precision in card.peaks}
    table = Table(title=f"GPU-hours on one {' or '.join(card.name for card in CARDS.values())}, assumed")
    for column in ("experiment", "runs", "phases", "trials", "PFLOP train", "PFLOP test", *columns):
        table.add_column(column, justify="left" if column == "experiment" else "right")

    def add_row(name: str, made: Bill, times: Mapping[str, Mapping[str, float]]) -> None:
        table.add_row(name, *_cells(made), *(f"{times[key][precision]:,.1f}" for key, precision in columns.values()))

    full: Method = instantiate(OmegaConf.to_container(composed("method=full").method), _convert_="all")
    seen = set[Any]()
    totals = {"papers": Total(), "ours": Total(), "together": Total()}
    for name, backbone in backbones.items():
        print(name, file=sys.stderr, flush=True)
        jobs = requests_of(CONF, [f"experiment={name}"])[1]
        reference = cost_of(full, json.dumps(OmegaConf.to_container(backbone), sort_keys=True))
        alone = bill(jobs.values())
        times = hours(alone, backbone.name, reference)
        for group in ("papers", "ours"):
            beside = bill([job for job in jobs.values() if is_ours(name, job) == (group == "ours")], seen)
            for key in (group, "together"):
                totals[key].add(beside, hours(beside, backbone.name, reference))
        record["experiments"][name] = {**asdict(alone), "backbone": backbone.name, "gpu_hours": times}
        add_row(name, alone, times)
        record |= {key: total.plain() for key, total in totals.items()}
        if options.json and not is_whole:
            # all that is known is kept, so that a count after an interrupted one goes on from there
            _write(options.json, {**record, "complete": False}, _costs)
    if not options.only:
        record["roofline"] = roofline()
    if options.json:
        _write(options.json, record, _asked)
    titles = {"papers": "the papers', what they share once", "ours": "ours, beside them", "together": "all"}
    for key, total in totals.items():
        add_row(titles[key], total.bill, total.hours)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
