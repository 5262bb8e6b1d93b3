"""Configurations of many jobs: put together from parts, and equal to what hydra composes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError

from headwise.commands import composition
from headwise.commands.composition import KeptFiles, KeptLoader, unlike
from headwise.commands.messages import text_of
from headwise.errors import ConfigError
from headwise.runs.jobs import jobs_of
from made_cases import each
from made_loaders import hydras_own

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
Loaders = tuple[KeptLoader, ConfigLoaderImpl]


@pytest.fixture(scope="module")
def files() -> KeptFiles:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return KeptFiles(GlobalHydra.instance().config_loader().get_search_path())


@pytest.fixture
def loaders(files: KeptFiles) -> Iterator[Loaders]:
    """Both have composed nothing yet."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        path = GlobalHydra.instance().config_loader().get_search_path()
        kept = KeptLoader(path)
        kept.files = kept.repository = files
        yield kept, hydras_own(path)


def anatomy(node: Any) -> Any:
    """A configuration with all that omegaconf knows of each node: order, kinds, flags, where interpolations lead."""
    if node is None:
        return None
    metadata = {**vars(node._metadata), "resolver_cache": None}  # times of day, which hydra takes anew
    facts = (type(node).__name__, metadata, node._get_flag("struct"), node._get_flag("readonly"))
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
        assert all(node._get_node(key)._get_parent() is node for key in node)
        return facts, [(key, anatomy(node._get_node(key))) for key in node]
    if isinstance(node, ListConfig) and not node._is_none():
        return facts, [anatomy(node._get_node(index)) for index in range(len(node))]
    return facts, node._value()


def alike(ours: DictConfig, hydras: DictConfig) -> None:
    task, other = ({key: anatomy(cfg._get_node(key)) for key in cfg if key != "hydra"} for cfg in (ours, hydras))
    assert list(task) == list(other)
    for key in task:
        assert task[key] == other[key], key
    assert OmegaConf.to_container(ours.hydra) == OmegaConf.to_container(hydras.hydra)
    assert anatomy(ours)[0] == anatomy(hydras)[0]


JOBS = 2
"""Of an experiment whose jobs are checked together; with ``-m slow`` all of them."""


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("most", [JOBS, pytest.param(None, marks=pytest.mark.slow)])
def test_jobs_of_an_experiment_are_what_hydra_composes(experiment: str, most: int | None, loaders: Loaders) -> None:
    kept, hydras = loaders
    rng = random.Random(experiment)
    master = hydras.load_configuration("config", [f"experiment={experiment}"], RunMode.MULTIRUN)
    params: Any = OmegaConf.to_container(master.hydra.sweeper.params)
    jobs = jobs_of(params, [f"experiment={experiment}"], kept)
    jobs = jobs if most is None else rng.sample(jobs, min(most, len(jobs)))
    kept.check(master, jobs)
    job = rng.choice(jobs)
    alike(kept.load_sweep_config(master, job), hydras.load_sweep_config(master, job))


SEVERAL = [
    ["method=hs_lora", "method@method.first=pissa", "dataset=dtd"],
    ["method=hs_lora", "method@method.first=lora", "dataset=svhn", "method.first.targets=[q,k]"],
    ["method=heart_lora", "gate@method.gate=front", "dataset=fewshot/pets", "shots=1"],
    ["method=lora", "+gate@method.gate=heart", "dataset=svhn", "method.gate.scope=layer"],
    ["method=lora", "dataset=svhn", "+per_task.svhn.lora.scale=3", "~per_task.svhn"],
    ["method=lora", "dataset=dtd", "experiment=hs_table2", "protocol=smoke"],
    ["method=noah", "dataset=dtd", "experiment=heart_table1", "protocol.search=null"],
    ["method=lora", "dataset=svhn", "hydra.run.dir=x", "hydra/launcher=basic", "logger=wandb"],
    ["dataset=svhn", "dataset=dtd", "rank=r8", "rank=r16", "seed=1", "seed=2", "method=nothing", "method=lora"],
    ["dataset={name:mine}", "rank={global:3,head:1}", "trainer=cpu", "backbone=vit_nano"],
    ["+method.note=a b", "++method.scale=2", "root='a,b=c'", "logger.offline=false", "logger=wandb"],
    ["ne=ne7", "rank=r5", "data=synthetic", "~logger.pictures"],
]


def test_any_jobs_are_what_hydra_composes_in_any_order(loaders: Loaders) -> None:
    kept, hydras = loaders
    expected = [hydras.load_configuration("config", job, RunMode.RUN) for job in SEVERAL]
    for seed in range(2):
        order = random.Random(seed).sample(range(len(SEVERAL)), len(SEVERAL))
        for index in order:
            alike(kept.load_configuration("config", SEVERAL[index], RunMode.RUN), expected[index])


@pytest.mark.parametrize(
    "job",
    [
        ["method=lor"],
        ["method=lora", "method.scal=3"],
        ["gate=heart"],
        ["seed=1,2"],
        ["~nothing"],
        ["+seed=1"],
        ["++method=lora"],
        ["method.scale.x=1"],
        ["dataset@method.first=svhn"],
    ],
)
def test_what_hydra_refuses_is_refused_in_its_words(job: list[str], loaders: Loaders) -> None:
    said = []
    for loader in loaders:
        loader.load_configuration("config", ["method=lora", "dataset=svhn"], RunMode.RUN)
        with pytest.raises((HydraException, ValueError)) as caught:
            loader.load_configuration("config", job, RunMode.RUN)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "wrong",
    [["method.scal=3"], ["method.scale=3"], ["seed.x=1"], ["protocol=no"], ["+seed=1"], ["method=no", "seed=1"]],
)
def test_a_job_that_hydra_refuses_is_found_among_others(wrong: list[str], loaders: Loaders) -> None:
    kept, hydras = loaders
    master = hydras.load_configuration("config", [], RunMode.MULTIRUN)
    right = [["method=lora", f"seed={seed}", "method.scale=3", "dataset=svhn"] for seed in range(3)]
    kept.check(master, right)
    job = ["method=linear", "dataset=dtd", *wrong]
    with pytest.raises(HydraException) as hydras_words:
        hydras.load_sweep_config(master, job)
    with pytest.raises(ConfigError) as words:
        kept.check(master, [*right, job, *right])
    own = [word for word in job if word not in ("seed=1", "method.scale=3")]
    assert str(words.value) == f"of the sweep's {' '.join(own)}: {text_of(hydras_words.value)}"


def test_jobs_that_differ_in_their_seed_are_one_kind() -> None:
    jobs = [["method=lora", f"seed={seed}"] for seed in ("0", "1", "x")] + [["seed=2", "method=dora"]]
    kinds = unlike(jobs)
    assert kinds == {
        ("method=lora",): ["method=lora", "seed=0"],
        ("method=lora", "seed=x"): ["method=lora", "seed=x"],
        ("method=dora",): ["seed=2", "method=dora"],
    }


def test_each_option_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[Any] = []
    whole = KeptLoader._whole

    def counted(self: KeptLoader, name: str | None, chosen: composition.Lines) -> composition.Whole:
        composed.append(chosen)
        return whole(self, name, chosen)

    monkeypatch.setattr(KeptLoader, "_whole", counted)
    methods, datasets = ["lora", "pissa", "hs_lora", "heart_lora"], ["svhn", "dtd", "dsprites_loc"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        kept = KeptLoader(GlobalHydra.instance().config_loader().get_search_path())
        for method in methods:
            for dataset in datasets:
                for seed in range(2):
                    job = [f"method={method}", f"dataset={dataset}", f"seed={seed}", "protocol.epochs=3"]
                    cfg = kept.load_configuration("config", job, RunMode.RUN)
                    assert (cfg.dataset.name, cfg.seed, cfg.hydra.runtime.choices["method"]) == (dataset, seed, method)
    assert len(composed) == len(methods) + len(datasets) - 1


def test_what_is_done_to_a_configuration_is_not_found_in_the_next(loaders: Loaders) -> None:
    kept, hydras = loaders
    jobs = [["method=lora", "dataset=svhn"], ["method=pissa", "dataset=dtd"]]
    for job in [*jobs, *jobs]:
        cfg = kept.load_configuration("config", job, RunMode.RUN)
        alike(cfg, hydras.load_configuration("config", job, RunMode.RUN))
        with pytest.raises(ConfigAttributeError):
            cfg.method.nothing = 1
        cfg.method.targets.append("k")
        cfg.dataset.splits.train = "other"
        cfg.hydra.job.num = 7
        cfg.hydra.runtime.choices["method"] = "other"


REACHING = {
    "a/x": "value: ax\n",
    "a/y": "defaults: [{override /b@_global_.b: y}]\nvalue: ay\n",
    "a/z": "# @package _global_\na: {value: az}\nb: {own: from_a}\n",
    "b/x": "own: bx\n",
    "b/y": "defaults: [/c@inner: x]\nown: by\n",
    "b/z": "own: bz\n",
    "c/x": "deep: cx\n",
    "c/y": "deep: cy\n",
    "c/z": "deep: cz\n",
}


@each("beside", ["c: x", "c@b.more: '${a}'", "c@other: '${b}'"])
def test_options_that_reach_into_each_other_are_composed_together(tmp_path: Path, beside: str) -> None:
    """An option that overrides another group, writes beside its own node, or is named by another choice."""
    files = {**REACHING, "config": f"defaults: [b: x, a: x, {beside}, _self_]\nroot: 1\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        path = GlobalHydra.instance().config_loader().get_search_path()
        kept, hydras = KeptLoader(path), hydras_own(path)
        expected: dict[tuple[str, ...], DictConfig] = {}
        for a in "xyzx":
            for b in (None, "x", "y", "z"):
                job = [f"a={a}", *([f"b={b}"] if b else [])]
                if tuple(job) not in expected:
                    expected[tuple(job)] = hydras.load_configuration("config", job, RunMode.RUN)
                alike(kept.load_configuration("config", job, RunMode.RUN), expected[tuple(job)])


def test_what_was_read_stays_as_it_is_whatever_is_composed_of_it(loaders: Loaders) -> None:
    ours, other = (KeptLoader(loaders[0].config_search_path) for _ in range(2))
    for job in (["method=heart_lora"], ["experiment=hs_table1", "ne=ne1"], ["method@method.first=lora"]):
        cfg = ours.load_configuration("config", job, RunMode.RUN)
        with open_dict(cfg):
            cfg.protocol.epochs, cfg.method.rank, cfg.extra = 7, 7, 7
    read = [name for name, found in ours.files.read.items() if found is not None]
    assert {"config", "experiment/hs_table1", "method/heart_lora"} <= set(read)
    for name in read:
        kept, fresh = ours.files.looked_at(name), other.files.looked_at(name)
        assert kept is not None and fresh is not None
        assert (anatomy(kept.config), kept.header) == (anatomy(fresh.config), fresh.header), name
