"""The schema: whatever is wrong in a configuration is refused by name, in one line, before torch is imported."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from headwise.data.tasks import check_apart
from headwise.errors import ConfigError
from headwise.protocol.plan import plan_run
from headwise.schema.check import describe, fields_of_class, shown, written
from headwise.schema.source import fields_of_target
from headwise.schema.tree import check_config
from made_cases import each
from made_networks import CONF, REPO, compose_config

TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu"]
CHOICES = [
    "dataset=clevr_count",
    "dataset=clevr_count method=heart_lora protocol=search logger=wandb backbone=swin_tiny_random",
    "dataset=fewshot/pets shots=4 method=peft protocol=fewshot data=folder data.root=conf",
    "dataset=own/folder dataset.num_classes=2 method=adalora data=tfds data.root=conf trainer=cpu",
    "dataset=smallnorb_azi method=noah method.search=evolution data=synthetic backbone=vit_nano",
    "dataset=dsprites_loc method=hs/cara data=cache protocol=cara_paper ne=quarter",
    "dataset=dsprites_loc method=spt_lora protocol=heart_paper",
    "dataset=dsprites_loc method=vpt_deep rank=r16_h2",
    "dataset=dsprites_loc method=dylora",
    "dataset=dsprites_loc method=compacter",
]


def composed(*overrides: str) -> dict[str, Any]:
    cfg: Any = OmegaConf.to_container(compose_config(*TINY, *overrides), resolve=True)
    return dict(cfg)


def test_every_leaf_of_a_wrong_kind_and_every_unknown_key_is_refused_before_torch() -> None:
    """14 C 14: the fuzz test of the issue; its faults are made in `made_faults`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "src"), *sys.path])}
    command = [sys.executable, str(REPO / "tests" / "made_faults.py"), str(CONF), *CHOICES]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["missed"] == []
    assert not report["torch"]
    assert report["tried"] > 4000


@each(
    "override, message",
    [
        ("+epochs=3", "unknown key epochs=3 (did you mean 'protocol.epochs'?); allowed: backbone, data, "),
        ("+sed=7", "unknown key sed=7 (did you mean 'seed'?); allowed: "),
        (
            "+trainer.devices=2",
            "unknown key trainer.devices=2; allowed: accelerator, attention, checkpointing, compile, progress, threads",
        ),
        ("+trainer.max_epochs=9", "unknown key trainer.max_epochs=9 (did you mean 'protocol.epochs'?)"),
        ("+logger.projekt=x", "unknown key logger.projekt='x' (did you mean 'logger.project' with logger=wandb?)"),
        ("+logger.api_key=abc", "logger.api_key is a secret"),
        ("+gate=front", "unknown key gate="),
        ("+protocol.epoch=3", "unknown key protocol.epoch=3 (did you mean 'protocol.epochs'?)"),
        ("+method.heads.scales=3", "unknown key method.heads.scales=3 (did you mean 'method.heads.scale'?)"),
        ("+data.sinthetic=3", "unknown key data.sinthetic=3"),
        ("+backbone.zzz=3", "unknown key backbone.zzz=3; allowed: img_size, mean, "),
        ("shots=4", "shots=4 means nothing to task 'dsprites_loc', which is no few-shot set; allowed: shots=null"),
        ("draw=1", "draw=1 means nothing to task 'dsprites_loc'"),
        ("protocol.drop_last=no", "protocol.drop_last must be true or false, got 'no'"),
        ("data.lossy=no", "data.lossy must be true or false, got 'no'"),
        ("wait=no", "wait must be true or false, got 'no'"),
        ("resume=newer", "unknown resume 'newer' (did you mean 'never'?); allowed: auto, force, never"),
        ("protocol.lr=-1", "protocol.lr must be a number above 0, got -1"),
        ("protocol.lr=true", "protocol.lr must be a number above 0, got true"),
        ("protocol.lr=fast", "protocol.lr must be a number above 0, got 'fast'"),
        ("protocol.lr=nan", "protocol.lr must be a number above 0, got nan"),
        ("protocol.lr_min=5", "protocol.lr_min must be at most protocol.lr=0.001, got 5"),
        ("protocol.clip=-1", "protocol.clip must be a number above 0, got -1; null is allowed"),
        ("protocol.epochs=0", "protocol.epochs must be a whole number of at least 1, got 0"),
        ("protocol.epochs=1.0", "protocol.epochs must be a whole number of at least 1, got 1.0"),
        ("protocol.resize=bicubic", "unknown protocol.resize 'bicubic' (did you mean 'pil_bicubic'?)"),
        ("protocol.train_split=train", "unknown protocol.train_split 'train' (did you mean 'train800'?)"),
        ("ne.warmup=abc", "ne.warmup must be a whole number of epochs, or a fraction of the run in (0, 1), got 'abc'"),
        ("ne.ratio=0.5", "ne.count=3 and ne.ratio=0.5 exclude each other"),
        ("rank.head=0", "rank.head must be a whole number of at least 1, got 0"),
        ("dataset.num_classes=two", "dataset.num_classes must be a whole number of at least 2, got 'two'"),
        ("dataset.channels=true", "dataset.channels must be 1 or 3, got true"),
        ("+dataset.splits.dev=x", "unknown key dataset.splits.dev; allowed: test, train, val"),
        ("trainer.threads=0", "trainer.threads must be a whole number in 1..1024, got 0"),
        ("trainer.threads=100000", "trainer.threads must be a whole number in 1..1024, got 100000"),
        ("trainer.accelerator=gpus", "unknown trainer.accelerator 'gpus' (did you mean 'gpu'?)"),
        ("name=null", "name must be text that is not empty, got null"),
        ("name=5", "name must be text that is not empty, got 5; as text: name=\"'5'\""),
        ("root=", "root names the folder of all results, got ''"),
        ("seed=-1", "seed must be a whole number in 0..4294967295, got -1"),
        ("seed=1.5", "seed must be a whole number in 0..4294967295, got 1.5"),
        ("~seed", "seed must be given: a whole number"),
        ("method.first=lora", "method.first must be a node with _target_, chosen by GROUP@KEY=OPTION, got 'lora'"),
        ("method.heads.rank=-1", "method.heads.rank must be a whole number of at least 1, got -1"),
        ("method.heads.targets=[q,w]", "method.heads.targets: target 'w' matches no projection"),
        ("method.heads.dropout=1.5", "method.heads.dropout must be in [0, 1), got 1.5"),
        ("method.heads.gate={mode: heart, count: two}", "gate.count must be a whole number of at least 0, got 'two'"),
        ("method.heads.gate=3", "method.heads.gate must be a mapping or text, got 3; null is allowed"),
        ("method.heads.rank=${x.y}", "method.heads.rank cannot be made from what was given: "),
        (
            "method._target_=headwise.methods.lora.LoRAA",
            "method._target_='headwise.methods.lora.LoRAA' cannot be found",
        ),
        ("method._target_=5", "method._target_ must be the dotted name of a class, got 5"),
        ("+per_task.default.lora=3", "per_task must be a mapping, got "),
        ("+per_task=5", "per_task must be a mapping, got 5"),
    ],
)
def test_a_refusal_names_key_value_and_what_is_allowed(override: str, message: str) -> None:
    """14 C 14 and 15.13."""
    overrides = [override] if "method" in override else [override, "method=lora"]
    if "method.first" in override or "method.heads" in override:
        overrides = ["method=hs_lora", override]
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        plan_run(compose_config(*TINY, *overrides))
    assert "\n" not in str(refused.value)


def test_keys_of_a_users_own_have_a_place() -> None:
    cfg = compose_config(*TINY, "method=lora", "+user.size=2", "+user.note=first", "method.rank=${user.size}")
    plan = plan_run(cfg)
    assert plan.config["method"]["rank"] == 2
    assert plan.identity == plan_run(compose_config(*TINY, "method=lora", "method.rank=2")).identity


def test_phases_are_named_as_such() -> None:
    """A word where a node stands is refused by its own key, although another value is made of it."""
    with pytest.raises(ConfigError, match=r"method\.heads must be a node with _target_, chosen by GROUP@KEY=OPTION"):
        plan_run(compose_config(*TINY, "method=hs_lora", "method.heads=lora"))


@each(
    "train, test",
    [("train800", "train800"), ("train800val200", "val200"), ("val200", "train800val200"), ("test", "test")],
)
def test_images_that_are_trained_on_are_not_tested(train: str, test: str) -> None:
    """14 C 17."""
    with pytest.raises(ConfigError, match=rf"eval_split={test} holds images of train_split={train} .*allowed: t"):
        plan_run(compose_config(*TINY, f"protocol.train_split={train}", f"protocol.eval_split={test}"))
    with pytest.raises(ConfigError, match="would be tested after training on them"):
        check_apart(train, test)
    check_apart("train800", "val200")
    check_apart("train800val200", "test")


RECORDS = sorted((REPO / "docs" / "results" / "records").rglob("result.json"))


def test_what_was_run_before_is_no_fault() -> None:
    assert len(RECORDS) > 10
    for file in RECORDS:
        config = json.loads(file.read_text())["config"]
        check_config({key: value for key, value in config.items() if key != "published"})


OWN = """
import torch  # not there
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, ClassVar, List, Literal, Optional, Union
from enum import Enum
from headwise.methods.base import Method
from nowhere import Thing
from {name} import Kind as Sort

raise RuntimeError("is not to be imported")

Kind = Literal["a", "b"]
class Colour(Enum):
    RED = 1

@dataclass(frozen=True, kw_only=True)
class Own(Method):
    shared: ClassVar[int] = 1
    size: int
    kind: Kind = "a"
    sort: "Sort | None" = None
    share: Optional[float] = 0.5
    names: List[str] = field(default_factory=list)
    other: Union[int, Thing] = 1
    colour: Colour = Colour.RED
    part: Method | None = None
    made: int = field(init=False, default=3)

class Plain:
    def __init__(self, root: str, *, flag: bool = False): ...

class Child(Plain):
    pass

class Open(Plain):
    def __init__(self, root: str, **options): ...

class Foreign(Thing):
    pass

def build(size: int, rest=None): ...
alias = build
"""


def test_a_signature_is_read_from_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text(OWN.format(name="own_module"))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = fields_of_target("own_module.Own")
    assert {"label", "targets", "epochs", "size", "names", "colour"} < set(own.types)
    assert not {"shared", "made", "gateable"} & set(own.types)
    assert set(own.required) == {"label", "size"} and not own.is_open
    right = {"label": "x", "size": 1, "kind": "b", "sort": None, "share": 1, "names": [], "other": "?", "part": None}
    own.check(right, str)
    for wrong in ({"size": 1.5}, {"kind": "c"}, {"sort": "c"}, {"share": "x"}, {"names": [1]}, {"part": "lora"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            own.check({**right, **wrong}, str)
    plain = fields_of_target("own_module.Child")
    assert (list(plain.types), list(plain.required), plain.is_open) == (["root", "flag"], ["root"], False)
    assert fields_of_target("own_module.Open").is_open and fields_of_target("own_module.Foreign").is_open
    assert list(fields_of_target("own_module.build").types) == ["size", "rest"]
    assert fields_of_target("own_module.alias").is_open
    for target, message in (
        ("own_module.Owm", "own_module has no 'Owm' (did you mean 'Own'?)"),
        ("nowhere_at_all.X", "there is no module 'nowhere_at_all'"),
        ("X", "there is no module 'X'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            fields_of_target(target)
    assert "own_module" not in sys.modules


@each(
    "value, text",
    [
        ({"a": 1, "b": {"c": None, "d": [True, 0.5]}}, "{a: 1, b: {c: null, d: [true, 0.5]}}"),
        (OmegaConf.create({"a": [1, {"b": "x"}]}), "{a: [1, {b: 'x'}]}"),
        ({"a\nb": "c\nd"}, "{'a\\nb': 'c\\nd'}"),
        ({"api_key": "secret"}, "{api_key: ***}"),
        (("q", "v"), "['q', 'v']"),
        ({}, "{}"),
    ],
)
def test_values_are_shown_as_hydra_takes_them(value: Any, text: str) -> None:
    assert shown(value) == written(value) == text


def test_a_part_of_another_class_is_taken_as_it_is() -> None:
    @dataclasses.dataclass
    class Part:
        size: int = 1

    @dataclasses.dataclass
    class Whole:
        part: Any
        count: int = 1

    Whole.__annotations__ |= {"part": Part, "count": int}
    fields = fields_of_class(Whole)
    fields.check({"part": Part(), "count": 2}, str)
    with pytest.raises(ConfigError, match=r"part must be Part, got {}"):
        fields.check({"part": {}, "count": 2}, str)


def test_every_class_of_ours_is_known_as_python_knows_it() -> None:
    """What the source says and what `dataclasses` says is the same, for every method and the rest."""
    targets = {
        line for file in CONF.rglob("*.yaml") for line in re.findall(r"^_target_: (\S+)", file.read_text(), re.M)
    }
    targets |= {"headwise.protocol.recipe.Protocol", "headwise.network.backbone.BackboneSpec"}
    for target in targets:
        module, _, name = target.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        read = fields_of_target(target)
        assert not read.is_open
        if dataclasses.is_dataclass(kind):
            real = fields_of_class(kind)
            assert list(read.types) == list(real.types) and set(read.required) == set(real.required)
            for field, found in real.types.items():
                assert describe(read.types[field]) == describe(found) or "node" in describe(read.types[field])
        else:
            assert list(read.types) == list(inspect.signature(kind).parameters)
