"""One table of hostile and odd inputs, grown by every new fault: each is refused in words, or means what is said here.

A row says what is given and a fragment of the answer. Whatever happens, nobody sees a traceback, the status tells, and
the files are those of before. What a loader does with hostile files is in `test_loaders`, every leaf of a configuration
as every other kind of value in `test_schema`, records changed anywhere in `results/test_strange_records`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from safetensors.torch import save_file

from headwise.cli import finished_run
from headwise.commands.arguments import (
    Letters,
    OutFile,
    Real,
    Whole,
    folder,
    module,
    names_file,
    old_file,
    old_folder,
    old_place,
    out_folder,
    patterns,
    record_file,
    weights,
)
from headwise.commands.command import _in_order
from headwise.commands.messages import one_line
from headwise.commands.overrides import FUNCTIONS, readable
from headwise.data.stores.folder import FolderSource
from headwise.data.tasks import VTABTask
from headwise.errors import HeadwiseError
from headwise.network.reading import load_weights
from headwise.protocol.plan import plan_run
from headwise.results.store import ResultStore
from headwise.runs.experiment import run as run_one
from headwise.schema.secret import refuse_secrets
from headwise.storage.claims import standing
from made_cases import each
from made_networks import REPO, compose_config, network
from made_results import gated, run
from made_scripts import COMMANDS, loaded, parser_of, started

TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "trainer=cpu")
PEFT = "method=peft ;; method.label=x"
NO_CONFIG = "method.config: _target_ must name a config of peft, got"
WEIRD = "\udcff"
"""A byte of the command line that is no text, as Python passes it on."""


def state(folder: Path) -> dict[str, Any]:
    """What lies below a folder: files with their bytes, links with their goals."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = path.stat().st_mode
    return found


def is_clear(text: str, fragment: str) -> bool:
    """Whether an answer is one line in words of the project that holds a fragment."""
    foreign = ("Traceback", "hydra.cc", "full_key", "object_type", "weights_only=False", "Error merging")
    return fragment in text and "\n" not in text.strip() and not any(word in text for word in foreign)


# ----------------------------------------------------------------------------------------------- the command line

REFUSED: list[tuple[str, str]] = [
    ("seed=", "seed must be a whole number in 0..4294967295, got ''"),
    ("seed=007", "got '007'"),
    ("root=", "root names the folder of all results"),
    ("seed=0,1", "seed=0,1 holds several values: add -m for a sweep over them; a list is seed=[0,1]"),
    ("seed=99999999999999999999", "in 0..4294967295"),
    ("seed=${seed}", "seed cannot be made from what was given: Recursive"),
    ("seed={_target_:os.getcwd}", "seed must be a whole number"),
    *(
        (f"seed={call}", f"seed={call} holds several values: add -m for a sweep over them")
        for call in ("choice(1,2)", "range(0,3)", "sort(2,1)", "tag(a,choice(1,2))", "glob(*)", "int(1,2)")
    ),
    *(
        (f"seed={call}(", f"seed={call}(: {call}() does not take this; allowed in a sweep (-m): A,B or choice(A,B), ")
        for call in FUNCTIONS
    ),
    *(
        (f"{key}={call}({given})", f"{call}() does not take this; allowed in a sweep (-m): A,B or choice(A,B), ")
        for key, call, given in (
            *(("seed", "tag", given) for given in ("x", "x,1", "")),
            *(("rank", "range", given) for given in ("", "r4", "1,2,3,4")),
            ("seed", "choice", ""),
            ("protocol.lr", "interval", "0"),
            ("method", "glob", ""),
            ("seed", "sort", "1,a"),
            ("seed", "int", "inf"),
        )
    ),
    ("seed=choices(1,2)", "choices() is no function (did you mean choice()?); allowed in a sweep (-m): A,B or "),
    ("rank=choice(r4,r8)", "choose one, or add -m for a sweep over them: -m 'rank=choice(r4,r8)'"),
    ("method=glob(*)", "choose one, or add -m for a sweep over them: -m 'method=glob(*)'"),
    ("protocol.lr=interval(0,1)", "is no list of values; name them, or give range(FIRST,END)"),
    ("seed=range(0,10,0)", "has no end; allowed: A,B or choice(A,B), "),
    *(
        (word, "holds a sweep inside of a value; allowed, alone and with -m: A,B or choice(A,B), ")
        for word in ("method=[glob(*)]", "seed=[choice(1,2)]", "seed=1,choice(2,3)", "seed={a:range(0,3)}")
    ),
    ("seed =3", "'seed ' is no key"),
    ("seed: 3", "choices are KEY=VALUE"),
    ("--seed=3", "unknown flag '--seed=3'"),
    ("-", "is no choice"),
    ("=", "'' is no key"),
    ("+=3", "'+' is no key"),
    ("a.=3", "'a.' is no key"),
    ("method..rank=3", "'method..rank' is no key"),
    ("method.rank.x=3", "unknown configuration key 'method.rank.x'; it has no keys"),
    ("METHOD=lora", "unknown configuration key 'METHOD'"),
    ("dataset=shvn", "unknown dataset 'shvn' (did you mean 'svhn'?); allowed: "),
    ("rank=s16", "unknown rank 's16' (did you mean 'r16'?)"),
    ("backbone=vit_b16", "unknown backbone 'vit_b16' (did you mean 'vit_b16_in21k'?)"),
    ("method=hs_lora ;; method@method.first=pisa", "unknown method 'pisa' (did you mean 'pissa'?)"),
    ("protocol.epoch=3", "epoch"),
    ("sed=1", "unknown configuration key 'sed' (did you mean 'seed'?); allowed: backbone, data, "),
    (
        "protocol.search=null",
        "'protocol.search': its YAML leaves this field out; set it with +protocol.search=VALUE",
    ),
    ("epochs=1", "unknown configuration key 'epochs' (did you mean 'protocol.epochs'?)"),
    (
        "method=hs_lora ;; method.first.lr=1",
        "unknown configuration key 'method.first.lr': its YAML leaves this field out; set it with +",
    ),
    ("protocol.epochs=0", "protocol.epochs must be a whole number of at least 1, got 0"),
    ("protocol.schedule=cosin", "unknown protocol.schedule 'cosin' (did you mean 'cosine'?)"),
    ("name=../../x", "name of a run names a folder"),
    ("name='x\ny'", "no control character"),
    ("name=tables", "may not be 'tables': that folder holds tables of results"),
    (f"name='{'x' * 201}'", "1 to 200 characters"),
    (f"name='{WEIRD}'", "name must be text"),
    ("name=${oc.env:HOME}", "name of a run names a folder"),
    ("variant=a/b", "variant of a run names a folder"),
    ("method.label=../x", "method of a run names a folder"),
    ("root='a\x00b'", "root names a folder of this machine"),
    ("root='a\nb'", "no control characters"),
    ("root=s3://bucket/x", "no URL"),
    *((f"root={given}", f"'{given}' is no folder and none") for given in ("/etc/passwd", "/etc/passwd/x", "/dev/null")),
    ("root=${nothing}", "root cannot be made from what was given: Interpolation key 'nothing' not found"),
    ("root=${oc.env:NOT_THERE}", "root cannot be made from what was given"),
    ("root=${", "root='${' cannot be taken"),
    ("~root", "root names the folder of all results, got None"),
    ("rank=null", "unknown rank 'null'"),
    ("ne=nan", "unknown ne 'nan'"),
    ("ne=-inf", "unknown ne '-inf'"),
    ("rank=8x0", "rank.head must be a whole number of at least 1, got 0"),
    ("method=null", "unknown method 'null'"),
    ("~method.rnak", "method.rnak is not there, so it cannot be removed"),
    ("+method.label=x", "method.label is there already; without '+', method.label=x sets it"),
    ("method=vera", "unknown method 'vera'; there is method=peft/vera"),
    ("dataset=folder", "unknown dataset 'folder'; there is dataset=own/folder"),
    ("dataset=sun397x", "unknown dataset 'sun397x' (did you mean 'sun397'?); allowed: "),
    ("--method ;; lora", "unknown flag '--method'; choices have no dashes: method=VALUE"),
    ("--protocol.lr=1", "unknown flag '--protocol.lr=1'; choices have no dashes: protocol.lr=VALUE"),
    ("data=null", "unknown data 'null'"),
    ("+method=dora", "without '+', method=OPTION replaces the choice"),
    ("++method=dora", "type method=dora"),
    ("~method=dora", "method=dora is not chosen here, so it cannot be removed"),
    ("consistency=pace", "none can be replaced; a method's own is +method.consistency=pace"),
    ("gate=front", "no option of 'gate' is chosen here, so none can be replaced; a method's own is method.gate=heart"),
    ("method@method.first=dora", "no option of 'method@method.first' is chosen here"),
    ("hydra=x", "no option of 'hydra' is chosen here"),
    ("backbone.overrides=[]", "backbone.overrides=[] cannot be taken"),
    ("backbone.overrides={pretrained:true}", "unknown configuration key 'backbone.overrides.pretrained'"),
    (
        "backbone.img_size=0",
        "backbone.img_size must be the side of a square in pixels, a whole number of at least 1, got 0",
    ),
    *(
        (f"backbone.weights={given}", f"weights file '{given}' {why}; give an existing file with backbone.weights=FILE")
        for given, why in (
            ("/etc", "is a folder"),
            ("/etc/", "is a folder"),
            (".", "is a folder"),
            ("/dev/zero", "is a device or a pipe"),
            ("/etc/passwd/x", "does not exist"),
            ("package:nothing", "does not exist"),
        )
    ),
    ("method.targets=[Q]", "target 'Q' matches no projection"),
    ("method.checkpoint=/etc", "cannot hash /etc: it is a folder; a readable file is needed"),
    ("method.checkpoint=/dev/zero", "cannot hash /dev/zero: it is a device or a pipe; a readable file is needed"),
    ("method.checkpoint=a ;; method.epochs=3", "method.epochs=3 would train nothing: method.checkpoint is taken as"),
    ("+consistency@method.consistency=pace ;; trainer.checkpointing=true", "method.consistency do not go together"),
    ("method.gate={mode:heart,count:3,ratio:0.5}", "one of count, ratio and budget"),
    *(
        (
            f"{PEFT} ;; method.config._target_={given}",
            f"method.config: _target_ must name a config of peft, got {shown}",
        )
        for given, shown in (
            ("NOSUCH", "'NOSUCH'; allowed: peft.AdaLoraConfig, "),
            ("peft.LoraConfg", "'peft.LoraConfg' (did you mean 'peft.LoraConfig'?)"),
            ("LoraConfig", "'LoraConfig' (did you mean 'peft.LoraConfig'?)"),
            ("peft.LoraModel", "'peft.LoraModel'; allowed: "),
            ("peft.PromptTuningConfig", "'peft.PromptTuningConfig'"),
            ("builtins.dict", "'builtins.dict'"),
            ("os.system", "'os.system'"),
            ("null", "null"),
            ("3", "3"),
        )
    ),
    *(
        (f"{PEFT} ;; method.config={given}", f"method.config must be a config of peft, got {shown}")
        for given, shown in (("null", "null"), ("3", "3"), ("lora", "'lora'"))
    ),
    (f"{PEFT} ;; ~method.config", "method.config must be given: a config of peft"),
    *(
        (f"{PEFT} ;; method.config._target_=peft.{config} ;; +method.config.{given}", f"method.config.{said}")
        for config, given, said in (
            *(
                ("LoraConfig", f"r={given}", f"r must be a whole number of at least 1, got {shown}")
                for given, shown in (("-1", "-1"), ("0", "0"), ("abc", "'abc'"), ("1.5", "1.5"), ("nan", "nan"))
            ),
            ("LoraConfig", "lora_alhpa=3", "lora_alhpa=3 (did you mean 'method.config.lora_alpha'?); allowed: "),
            ("LoraConfig", "lora_dropout=1.5", "lora_dropout must be in [0, 1), got 1.5"),
            ("LoraConfig", "init_lora_weights=gausian", "init_lora_weights 'gausian' (did you mean 'gaussian'?)"),
            ("LoraConfig", "target_modules=3", "target_modules must be a list, each text or text, got 3"),
            ("LoraConfig", "rank_pattern={q:-1}", "rank_pattern must be a mapping, each value a whole number of at"),
            ("LoraConfig", "use_bdlora={_target_:os.system}", "use_bdlora: _target_ must name a config of peft"),
            ("LoraConfig", "use_bdlora={_target_:peft.BdLoraConfig,nblocks:-1}", "use_bdlora.nblocks must be a whole"),
            ("LoraConfig", "revision=main", "revision: 'main' is not supported: it would make peft import"),
            ("AdaLoraConfig", "deltaT=0", "deltaT must be a whole number of at least 1, got 0"),
            ("AdaLoraConfig", "tfinal=2.5", "tfinal must be a whole number of steps, or a fraction of the run"),
            ("VeraConfig", "r=0", "r must be a whole number of at least 1, got 0"),
            ("FourierFTConfig", "scaling=nan", "scaling must be a finite number other than 0, got nan"),
        )
    ),
    ("method._target_=", "must be the dotted name of a class"),
    ("method._target_=headwise..methods.lora.LoRA", "must be the dotted name of a class"),
    ("method._target_=headwise.methods.lora", "headwise.methods has no 'lora'; there is none"),
    ("data._target_=builtins.dict", "data._target_='builtins.dict' makes nothing that data may be"),
    ("dataset._target_=builtins.dict", "dataset._target_='builtins.dict' makes nothing that dataset may be"),
    ("dataset.name=x/y", "a task's name may hold"),
    ("dataset.label_rule=clevr_cuont", "unknown label_rule 'clevr_cuont' (did you mean 'clevr_count'?)"),
    ("dataset.folders=[]", "folders must name at least one folder"),
    ("data=folder ;; data.root=", "data.root='' is not a folder"),
    ("data=folder ;; data.root=/dev/null", "data.root='/dev/null' is not a folder"),
    ("data=folder ;; data.root=~nobody_at_all/x", "there is no user 'nobody_at_all' here; a folder of that"),
    ("root=~nobody_at_all/x", "'~nobody_at_all/x': there is no user 'nobody_at_all' here"),
    ("data=tfds ;; data.root=", "data.root='' is not a folder"),
    *(
        (f"data={source} ;; data.{key}={given}", f"the caches' folder '{given}' is none; leave it out for $HEADW")
        for source, key in (("auto", "cache_dir"), ("cache", "root"))
        for given in ("/dev/null", "/etc/passwd", "/etc/passwd/x")
    ),
    ("data=auto ;; data.root=/dev/null", "data.root='/dev/null' is not a folder"),
    ("protocol.lr=0,001", "protocol.lr=0,001 holds several values"),
    ("protocol.lr=${protocol}", "protocol.lr cannot be made from what was given"),
    ("+logger.api_key=abc", "logger.api_key is a secret"),
    ("user=5", "user is not there yet: keys of your own are added, +user.KEY=VALUE"),
    ("user.size=5", "user is not there yet: keys of your own are added, +user.KEY=VALUE"),
    ("dataset=../config", "dataset=../config: an option is a file below conf/dataset, named without '..'"),
    ("+gate@method.gate=../ne/ne1", "an option is a file below conf/gate, named without '..'"),
    ("--hydra-help ;; method=pissa", "--hydra-help takes no choices, got method=pissa; --help takes them"),
    ("name=${oc.decode:'[1,2'}", "name cannot be made from what was given: missing BRACKET_CLOSE"),
    ("++user.b=${oc.env:NOBODY_SETS_IT}", "user.b cannot be made from what was given: "),
    ("name=a${nothing}", "name cannot be made from what was given: Interpolation key 'nothing' not found"),
    ("+_target_=os.system", "unknown key _target_='os.system'"),
    ("dataset=svhn,dtd", "add -m for a sweep over them: -m dataset=svhn,dtd"),
    *(
        (f"{group}=[a,b]", f"holds several options: choose one, or add -m for a sweep over them: -m {group}=a,b")
        for group in ("dataset", "method", "protocol", "experiment", "rank", "+gate@method.gate")
    ),
    ("method.targets=[q,v,q]", "target 'q' stands there twice"),
    ("dataset.config=../../x", "config may hold letters"),
    ("dataset.builder=/etc", "builder may hold letters"),
    ("dataset.num_test=0", "dataset.num_test must be a whole number of at least 1, got 0"),
    *(
        (f"{flag} ;; /dev/null", "--experimental-rerun is not offered: it reads a pickle")
        for flag in ("--experimental-rerun", "--experimental-r")
    ),
    ("-m ;; --cfg ;; job", "-m and --cfg exclude each other"),
    ("-r ;; -m", "--run and -m exclude each other"),
    ("--resolve", "--resolve belongs to --cfg or --help"),
    *(
        (words, "--shell-completion takes one of install, uninstall and query")
        for words in ("--shell-completion", "-sc ;; install=nothing")
    ),
]
ACCEPTED: list[tuple[str, str, Any]] = [
    ("root=.", "root", Path()),
    ("root=/", "root", Path("/")),
    ("root=./~nobody_at_all/x", "root", Path("~nobody_at_all/x")),
    ("root=2024", "root", Path("2024")),
    ("seed=1_000", "key.seed", 1000),
    ("seed=-0", "key.seed", 0),
    ("name='a b'", "key.name", "a b"),
    ("variant='=1+1'", "key.variant", "=1+1"),
    ("method=[lora]", "key.method", "lora"),
    ("protocol.epochs=${mul:2,3}", "protocol.epochs", 6),
    ("method.rank=${oc.decode:'3'}", "config.method.rank", 3),
    ("~protocol.lr", "protocol.lr", 0.001),
]
"""What is given, and what of the plan it is then."""


def planned(words: str) -> Any:
    """The plan of a command line, or the text of its refusal, as `headwise.commands.command` gives it."""
    given = [] if words.startswith("-") else [*TINY, "method=lora"]
    given += words.split(" ;; ")
    try:
        read = readable(_in_order(given))
        refuse_secrets(None, read)
        return plan_run(compose_config(*read))
    except (HeadwiseError, HydraException, OmegaConfBaseException) as error:
        return one_line(error, limit=None)


@each("words, answer", REFUSED)
def test_a_choice_is_refused_in_words(words: str, answer: str) -> None:
    text = planned(words)
    assert isinstance(text, str), "accepted"
    assert is_clear(text, answer), text


@each("words, where, meant", ACCEPTED)
def test_an_odd_choice_means_what_it_says(words: str, where: str, meant: Any) -> None:
    found = planned(words)
    assert not isinstance(found, str), found
    for name in where.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    assert found == meant


CLASSES: list[tuple[str, str]] = [
    ("method._target_=headwise.methods.lora.Lora", "has no 'Lora' (did you mean 'LoRA'?)"),
    ("method._target_=headwise.methods.lroa.LoRA", "there is no module 'headwise.methods.lroa'"),
    ("method._target_=builtins.dict", "method._target_='builtins.dict' makes nothing that method may be"),
    ("method._target_=numpy.array", "Error in call to target 'numpy.array'"),
    ("method._target_=torch.nn.Linear", "Error in call to target 'torch.nn.modules.linear.Linear'"),
    ("method._target_=torch.nn.Linea", "Error locating target 'torch.nn.Linea'"),
    ("method._target_=os.system", "'os.system' may not be named by a configuration: it can run"),
    ("method._target_=headwise.data.tasks.VTABTask", "unknown key method.label='lora'"),
    ("method=hs_lora ;; method.first._target_=builtins.dict", "must be a single-phase method, got dict"),
    (f"{PEFT} ;; method.config._target_=builtins.dict", "must name a config of peft"),
    (f"{PEFT} ;; method.config._target_=peft.RoadConfig ;; +method.config.variant=abc", "Invalid variant abc"),
    ("method=adalora ;; method.config.target_r=100", "config.target_r must be below init_r"),
    ("dataset._target_=headwise.data.tasks.VTABTak", "has no 'VTABTak' (did you mean 'VTABTask'?)"),
    ("dataset._target_=torch.nn.Linear", "Error in call to target 'torch.nn.modules.linear.Linear'"),
    ("dataset._target_=torch.nn.Linea", "Error locating target 'torch.nn.Linea'"),
    ("data._target_=headwise.data.sources.SynteticSource", "has no 'SynteticSource'"),
    ("data._target_=builtins.dict", "makes nothing that data may be"),
    ("data._target_=torch.nn.Linea", "Error locating target 'torch.nn.Linea'"),
]
"""A class that is none of its group's, and the answer."""


@each("words, said", CLASSES)
def test_a_wrong_class_is_refused_before_anything_is_made(words: str, said: str, tmp_path: Path) -> None:
    given = [*TINY, "trainer.threads=1", "trainer.progress=false", "logger.pictures=false", "method=lora"]
    with pytest.raises(HeadwiseError) as caught:
        run_one(compose_config(*given, f"root={tmp_path / 'root'}", *words.split(" ;; ")))
    assert is_clear(str(caught.value), said), caught.value
    assert "HYDRA_FULL" not in str(caught.value)
    assert state(tmp_path) == {}


# ------------------------------------------------------------------------------------------------------ scripts

PLACES = [
    ("--root dir", "under dir"),
    ("--out file.md", "file.md was not written by this tool"),
    ("--out link.md", "link.md was not written by this tool"),
    ("--out dangling/x.md", "dangling/x.md cannot be written: dangling is no folder"),
    ("--out pipe.md --force", "pipe.md is a pipe or a device"),
    ("--out \0.md", "holds a zero byte"),
]
RUNS = [
    ("run/result.json", "run/result.json is no folder"),
    ("pipe.md", "pipe.md is no folder"),
    ("loop", "loop"),
    ("run", "is not a usable record"),
    ("{root}", "did you mean"),
    ("\0", "holds a zero byte"),
]
SCRIPTS: list[tuple[str, str, str]] = [
    *((f"{name} {{name}} --root {{root}}", *row) for name in ("make_tables", "compare_twins") for row in PLACES),
    *((name, *row) for name in ("evaluate", "export_merged --out e.safetensors") for row in RUNS),
    ("make_tables {name} --root {root}", "--out o", "has none of the suffixes .md, .tex, .csv, .json"),
    ("make_tables {name} --root {root}", "--out o.md --json ./o.md", "written twice"),
    ("make_tables {name} --root {root}", "--out o.md --json dir/../o.md", "written twice"),
    ("make_tables {name} --root {root}", "--compare lora lora", "are the same runs"),
    ("make_tables {name} --root {root}", "--compare lora:P9 bi_lora", "no tested phase 'P9'"),
    ("make_tables {name} --root {root}", "--published sometimes", "invalid choice: 'sometimes'"),
    ("make_tables {name} --root {root}", "--paper", "--paper writes its notes beside the table"),
    ("make_tables {name} --root {root}", "--rows nothing", "--rows: no row 'nothing' in the table"),
    ("make_tables {name} --root {root}", "--rows lora,,x", "--rows must be different names separated by commas"),
    ("make_tables {name} --root {root}", "--names none.json", "name a file that can be read"),
    ("make_tables {name} --root {root} --format csv", "--rows lora", "are for md and latex; csv holds everything"),
    ("make_tables --root {root}", "../../etc", "no finished run of '../../etc'"),
    ("make_report --root {root}", "--out .", ". is a folder"),
    ("make_report --root {root} --out r.html", "--name nothing", "no finished run of 'nothing'"),
    ("list_methods --runs {name} --root {root}", "--out .", ". is a folder"),
    ("list_methods --runs {name} --root {root}", "--out m.json --json ./m.json", "m.json is to be written twice"),
    ("list_methods --runs {name} --root {root}", "--out file.md", "file.md was not written by this tool"),
    ("keep_records {name} --root {root}", "--to {root}", "is the root itself"),
    ("keep_records {name} --root {root}", "--to dir/../root", "is the root itself"),
    ("keep_records --root {root} --to k", "..", "no finished run of '..'"),
    ("keep_records {name} --root {root}", "--to {root}/{name}", "lies among the runs of root"),
    ("keep_records {name} --root {root}", "--to {root}/{name}/new/x", "lies among the runs of root"),
    *(
        (line, option, f"{option.rstrip('= ')} is empty")
        for option in ("--root ", "--root=", "--out ", "--out=", "--json ")
        for line in ("make_tables {name} --root {root}",)
    ),
    ("keep_records {name} --root {root}", "--to ", "--to is empty"),
    ("make_report --root {root}", "--name ", "--name is empty"),
    ("evaluate", "", "an argument is empty"),
    ("compare", "", "an argument is empty"),
    ("sweep_status", "", "an argument is empty"),
    ("list_methods --root {root}", "--runs ", "--runs is empty"),
    ("list_methods --root {root} --runs {name}", "--backbone vit_nano", "--backbone vit_nano means nothing beside"),
    ("list_methods --root {root} --runs {name}", "--classes 3", "--classes 3 means nothing beside --runs"),
    ("make_tables {name} --root {root}", "--name other", "are two names; give one"),
    ("make_tables {name} --root {root}", "--out o.md --format json", "exclude each other"),
    ("make_tables {name} --root {root} --compare lora bi_lora", "--published never", "means nothing beside --compare"),
    ("compare {run}", "--name x", "--name x means nothing beside"),
    ("compare {run}", "--variant x", "--variant x means nothing beside"),
    ("compare", "{run}/result.json", "is no folder; give the one of a finished run"),
    ("show_task --data synthetic svhn", "--shots 4", "--shots 4 means nothing to task svhn"),
    ("show_task --data synthetic svhn", "--draw 0", "--draw 0 means nothing to task svhn"),
    ("show_task --data synthetic svhn", "--num-classes 3", "--num-classes 3 means nothing to task svhn"),
    ("show_task --data synthetic svhn", "--root dir", "--root dir means nothing to drawn images"),
    ("prepare_vtab --tasks svhn", "--verify", "--verify means nothing without --status"),
    ("compare --root {root}", "lora nothing", "no finished run with dataset 'nothing'"),
    ("compare --root {root}", "nothing", "no finished run with method 'nothing'"),
    ("compare --root {root}", "lora --row nothing", "nothing"),
    ("compare", "run", "result.json is not a usable record"),
    ("compare", "dir", "no finished run in dir"),
    ("compare --root {root} lora", "--json /dev/null --force", "/dev/null is a pipe or a device"),
    ("export_merged {run}", "--out e.bin", "must end in .safetensors"),
    ("export_merged {run}", "--out own.safetensors", "was not written by this tool"),
    ("import_bilora empty o.safetensors", "--bits 3", "--bits: invalid choice: 3; allowed: 1, 2, 4, 8"),
    ("import_bilora", "empty o.safetensors", "0 bytes are no checkpoint"),
    ("import_cara", "file o.safetensors", "file cannot be read as tensors"),
    ("import_cara", "empty o.safetensors", "the file is empty or cut off"),
    ("import_cara file o.safetensors", "--task nothing", "no published 'scale' of task 'nothing'"),
    ("import_cara file o.safetensors", "--backbone o.safetensors", "written twice"),
    ("import_cara file", "file --force", "file is read here"),
    ("import_cara file o.safetensors", "--backbone dir/../file --force", "dir/../file is read here"),
    ("import_bilora empty", "empty --force", "empty is read here"),
    ("list_methods lora", "--root {root}", "--root root means nothing without --runs"),
    ("list_methods lora", "--set method=hs_lora", "name the method without --set"),
    ("list_methods lora", "--backbone nothing", "unknown backbone 'nothing'"),
    ("list_methods", "../method/lora", "unknown method '../method/lora'"),
    ("list_methods lora --backbone vit_tiny_random", "--set rank", "'rank' is no choice"),
    ("list_methods lora --backbone vit_tiny_random", "--set method.rank=0", "method.rank must be a whole number"),
    ("list_methods lora --backbone vit_tiny_random", "--set nothing=3", "unknown configuration key 'nothing'"),
    ("list_methods lora --backbone vit_tiny_random", "--set name=dog's", "holds characters that need quotes"),
    ("list_methods lora --backbone vit_tiny_random", "--set +logger.api_key=abc", "is a secret"),
    ("show_task --data synthetic", "nothing", "unknown task 'nothing'"),
    ("show_task --data synthetic", "/etc/passwd", "unknown task '/etc/passwd'"),
    ("show_task --data synthetic svhn", "--side 100000", "more than 100 million pixels"),
    ("show_task --data synthetic svhn", "--rows 99999999", "more than 100 million pixels"),
    ("show_task --data synthetic svhn", "--split train", "unknown split 'train'"),
    ("show_task --data synthetic svhn", "--out x.jpg", "--out names a PNG file, got 'x.jpg'"),
    ("show_task svhn", "--lossy", "--lossy is for drawn images"),
    ("prepare_vtab", "--tasks all nothing", "unknown task 'nothing'"),
    ("prepare_vtab --dry-run --tasks svhn", "--cache /proc/x", "/proc/x cannot be written: /proc takes no file"),
    ("prepare_vtab --status", "--resize nothing", "unknown resize 'nothing'"),
    ("prepare_vtab", "--status --tasks svhn", "not allowed with argument"),
    ("prepare_vtab", "--status --dry-run", "--dry-run is for --tasks"),
    ("prepare_vtab --dry-run", "--tasks svnh", "unknown task 'svnh' (did you mean 'svhn'?)"),
    ("evaluate {run}", "--data-root dir", "lacks config.data"),
    (
        "gate_step --repeats 1 --batch 1",
        "--off 7",
        "--off must be at most 6, the heads of a layer of this network, got 7",
    ),
    ("gate_step", "--timm-name nothing", "unknown timm network 'nothing'"),
    ("method_cost --backbone tiny --only lora", "--set nothing", "'nothing' is no choice"),
    ("method_cost --backbone tiny --only lora", "--set method.rank=0", "method.rank must be a whole number"),
    ("step_time", "--only LoRA nothing", "--only nothing is part of no contender's name"),
    ("packing", "--runs 3", "--runs goes with --backbone; allowed: tiny, "),
    ("paper_cost", "--only lossy", "its network vit_nano has no rate"),
    ("paper_cost --only hs_rank", "--json {run}/result.json", "no record of this benchmark: it lacks methods"),
    ("kill_sweep --launcher pair", "--json {run}/result.json", "no record of this benchmark: it lacks sweep"),
    ("data_memory", "--task fewshot/pets", "invalid choice: 'fewshot/pets' (did you mean"),
    ("sweep_status", "nothing", "unknown experiment 'nothing'"),
    ("sweep_status method=lora", "--json file.md", "file.md was not written by this tool"),
    ("sweep_status", "method=glob(x*)", "matches nothing"),
    ("sweep_status method=lora", "seed=a", "seed must be a whole number"),
    ("sweep_status method=lora,dora dataset=svhn", "method.rank=8,0", "method.rank must be a whole number"),
    ("sweep_status method=lora", "seed=range(0,1e9)", "more than 100,000 runs in one sweep"),
    ("sweep_status method=lora,dora", "seed=range(0,50001)", "more than 100,000 runs in one sweep"),
    ("sweep_status method=lora", "seed=interval(0,1)", "seed=interval(0,1) is no list of values"),
    ("sweep_status method=lora", "seed=tag(x)", "tag() does not take this; allowed in a sweep (-m): A,B or choice"),
    ("sweep_status method=lora", "rank=choice(r4,r8", "choice() does not take this; allowed in a sweep (-m): A,B or"),
    ("sweep_status method=lora", "seed=choice(choice(1,2),3)", "holds a sweep inside of a value"),
    ("sweep_status method=lora", "seed=range(0,10,0)", "has no end; allowed: A,B or choice(A,B), "),
    ("sweep_status method=lora", "seed=range(nan,3)", "has no end; allowed: A,B or choice(A,B), "),
    ("sweep_status", "hs_table2 lossy", "one experiment at a time"),
    ("sweep_status method=lora", "~method", "method must be given: a mapping"),
    ("sweep_status dataset=dtd,eurosat", "dataset.name=svhn", "a set's results stand under its own name"),
    ("sweep_status", "=3", "'' is no key"),
]
"""A script with what is right, what is wrong, and the answer."""
WRITE: list[tuple[str, str]] = [
    (f"make_report --root {{root}} --out r.html --title a{WEIRD}b", "r.html"),
    (f"make_tables {{name}} --root {{root}} --out t{WEIRD}.md", f"t{WEIRD}.md"),
    ("compare_twins {name} --root {root} --out new/folder/t.md", "new/folder/t.md"),
    ("keep_records {name} --root {root} --to kept", "kept"),
    ("sweep_status method=lora --root missing --json s.json", "s.json"),
    ("keep_records {name} --root {root} --to notes", "notes/runs"),
]
"""Odd, and right: what is written."""


STEPS = ("method_cost", "step_time")
"""Benchmarks whose options are those of a module that needs torch."""


@pytest.fixture(scope="module")
def scripts() -> Callable[[str], ModuleType]:
    known: dict[str, ModuleType] = {}

    def script(name: str) -> ModuleType:
        if name not in known:
            known[name] = loaded(name)
        return known[name]

    return script


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ResultStore(tmp_path_factory.mktemp("records"))
    for result in (run("bi_lora", recipe={"m": "bi"}), run("lora", dataset="dtd"), gated("heart_lora", 0, 90.5, 1)):
        store.put(result.key, result)
    list(store.all())
    return store.root


@pytest.fixture
def place(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of things that are not what a script wants, and of a root with finished runs."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(records, here / "root")
    for name in ("dir", "dir.md", "run", "outputs"):
        (here / name).mkdir()
    for name in ("file", "file.md", "own.safetensors", "run/result.json"):
        (here / name).write_text("somebody's own\n")
    (here / "empty").touch()
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nowhere/x")
    (here / "link.md").symlink_to("file")
    (here / "notes").mkdir()
    (here / "notes/index.jsonl").write_text("somebody's own\n")
    os.mkfifo(here / "pipe.md")
    return here


def words_of(line: str, place: Path) -> list[str]:
    (folder,) = {file.parent for file in (place / "root").glob("*/lora/**/result.json")}
    values = {"root": "root", "name": folder.relative_to(place / "root").parts[0], "run": str(folder)}
    return [word.format(**values) for word in line.split(" ")]


def answer(script: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and the line that says why."""
    status = started(script, words)
    lines = capsys.readouterr().err.splitlines()
    return status, next((line for line in lines if "error: " in line), "")


@pytest.mark.parametrize(("right", "wrong", "said"), SCRIPTS, ids=[f"{a.split()[0]} {b!r}" for a, b, _ in SCRIPTS])
def test_a_script_refuses_and_leaves_everything(
    right: str,
    wrong: str,
    said: str,
    place: Path,
    scripts: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *words = words_of(f"{right} {wrong}", place)
    before = state(place)
    status, line = answer(scripts(name), words, capsys)
    assert status in (1, 2)
    assert is_clear(line, said), line
    assert state(place) == before


NO_NUMBER = ("abc", "nan", "inf", "-inf", "1000000000000", "0x1", "1,5")
NO_PLACE = ("file/x", "pipe.md", "a\nb", *(("/proc/x/y",) if Path("/proc").is_dir() else ()))
"""Words for files and folders that can be neither made nor written to, see `place`."""
WRONG: dict[Any, tuple[str, ...]] = {
    folder: ("file", "file/x", "pipe.md", "loop", "a\nb"),
    old_place: ("pipe.md", "loop", "a\nb", "missing"),
    old_folder: ("file", "file/x", "pipe.md", "loop", "a\nb", "missing"),
    out_folder: ("file", "loop", "dangling", *NO_PLACE),
    old_file: ("dir", "file/x", "pipe.md", "loop", "a\nb", "missing", "/dev/zero"),
    weights: ("dir", "file/x", "pipe.md", "a\nb", "missing", "/dev/zero", "package:nothing"),
    record_file: ("dir", "file", *NO_PLACE),
    module: ("../x", "os.system()", "a b"),
    patterns: (",", "a,a", "a,,b"),
    names_file: ("dir", "file", "file/x", "pipe.md", "loop", "a\nb", "missing", "/dev/zero"),
    finished_run: ("dir", "file", "file/x", "pipe.md", "loop", "missing", "run"),
}
"""By type of argument what is refused."""


def wrong_words(action: argparse.Action) -> tuple[str, ...]:
    """Words that an argument must refuse, besides the empty one; none of those that are text."""
    kind = action.type
    if action.choices is not None:
        return tuple(f"{choice}9" for choice in action.choices)
    if isinstance(kind, Whole):
        return (str(kind.least - 1), str(kind.most + 1), "1.5", *NO_NUMBER)
    if isinstance(kind, Real):
        low = kind.least - 1 if kind.above is None else kind.above
        return (str(low), str(kind.most + 1), *NO_NUMBER)
    if isinstance(kind, Letters):
        return ("a", f"{kind.allowed}{kind.allowed[0]}", kind.allowed.upper())
    if isinstance(kind, OutFile):
        return ("dir", *NO_PLACE, *(("o.bin",) if kind.suffix else ()))
    return () if kind is None else WRONG[kind]


def arguments_of(name: str, scripts: Callable[[str], ModuleType]) -> list[tuple[str, list[str]]]:
    """Every argument of a command with every wrong word: how it is named, and the command line."""
    lines = []
    before: list[str] = []
    for action in parser_of(scripts(name))._actions:
        if action.nargs == 0 or isinstance(action, argparse._HelpAction):
            continue
        option = action.option_strings[-1:]
        times = action.nargs if isinstance(action.nargs, int) else 1
        where = option[0] if option else str(action.metavar or action.dest)
        for word in ("", *wrong_words(action)):
            named = where if word or option else "argument"
            lines.append((named, [*option, *[word] * times] if option else [*before, word]))
        if not option and action.nargs is None:
            before.append("curves" if action.type is None else "empty")
    return lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_refuses_what_it_cannot_be(
    name: str, scripts: Callable[[str], ModuleType], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kind of fault in one table: each argument of each script and benchmark, each word that its type refuses."""
    before, wrong = state(place), []
    for where, words in arguments_of(name, scripts):
        status = started(scripts(name), words)
        said = capsys.readouterr()
        is_refused = status in (1, 2) and said.out == "" and said.err.startswith("error: ")
        if not (is_refused and is_clear(said.err, where)):
            wrong.append((words, status, said.err))
    assert wrong == []
    assert state(place) == before


def test_nothing_heavy_is_imported_for_a_refusal(scripts: Callable[[str], ModuleType], place: Path) -> None:
    """Every script but the one that trains, and every benchmark that measures other processes."""
    names = [name for name in COMMANDS if "\nimport torch" not in COMMANDS[name].read_text() and name not in STEPS]
    assert len(names) > 15
    lines = [[str(COMMANDS[name]), *arguments_of(name, scripts)[-1][1]] for name in names]
    code = (
        "import json, runpy, sys\nsys.modules['torch'] = None\n"
        "for sys.argv in json.loads(sys.argv[1]):\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as left: print(left.code, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) <= {"1", "2"}, done.stderr
    assert len(done.stdout.split()) == len(done.stderr.splitlines()) == len(names), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--thread", "0"], "--threads must be a whole number in 1..1024, got '0'"),
        (["--thraeds", "2"], "unknown argument '--thraeds' (did you mean '--threads'?)"),
        (["--backbone", "vit_b61"], "--backbone: invalid choice: 'vit_b61' (did you mean 'vit_b16'?)"),
        (["--batch", "-inf"], "--batch must be a whole number in 1..65536, got '-inf'"),
        (["--batch", "9" * 5000], "got '999"),
        (["--json", "x" * 5000], "File name too long"),
        (["stray\nword"], "unknown argument 'stray"),
        (["--pairs"], "--pairs: expected one argument"),
    ],
)
def test_a_command_line_is_answered_in_one_line(
    words: list[str], said: str, scripts: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started(scripts("step_time"), words) == 2
    assert is_clear(text := capsys.readouterr().err, said), text
    assert len(text) < 6000


@pytest.mark.parametrize(("line", "written"), WRITE, ids=range(len(WRITE)))
def test_a_script_writes_under_odd_names(
    line: str, written: str, place: Path, scripts: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = words_of(line, place)
    before = state(place)
    status, error = answer(scripts(name), words, capsys)
    assert (status, error) == (0, "")
    assert (place / written).exists()
    assert {key: value for key, value in state(place).items() if key in before} == before


# ------------------------------------------------------------------------------------------- list files and images


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 12), form: str = "PNG", noise: bool = False) -> bytes:
    out = io.BytesIO()
    image = Image.effect_noise(size, 50) if noise else Image.new(mode, size, 1)
    image.save(out, form)
    return out.getvalue()


def animated(form: str) -> bytes:
    out = io.BytesIO()
    first, *others = [Image.new("RGB", (20, 12), color) for color in ("red", "blue", "green")]
    first.save(out, form, save_all=True, append_images=others)
    return out.getvalue()


SOUND = picture()
NOISE = picture(noise=True)
HUGE = SOUND[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + SOUND[24:]
TOP = "test.txt, line 1"
LISTS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "test.txt"),
    ("blank lines only", b"\n \n\n", "test.txt"),
    ("no label", b"a.png\n", TOP),
    ("label only", b"1\n", TOP),
    ("text for a label", b"a.png one\n", TOP),
    ("negative", b"a.png -1\n", TOP),
    ("too large", b"a.png 3\n", TOP),
    ("a fraction", b"a.png 1.0\n", TOP),
    ("an exponent", b"a.png 1e0\n", TOP),
    ("underscores", b"a.png 1_0\n", TOP),
    ("other digits", "a.png \u0661\n".encode(), TOP),
    ("many digits", b"a.png " + b"9" * 5000 + b"\n", TOP),
    ("blanks around", b"  a.png   1  \n\n", TOP),
    ("upward", b"../a.png 1\n", TOP),
    ("far upward", b"images/../../../etc/passwd 1\n", TOP),
    ("absolute", b"/etc/passwd 1\n", TOP),
    ("device", b"/dev/zero 1\n", TOP),
    ("home", b"~/a.png 1\n", TOP),
    ("an address", b"https://x.invalid/a.png 1\n", TOP),
    ("missing image", b"b.png 1\n", TOP),
    ("a folder", b"images 1\n", TOP),
    ("a pipe", b"pipe.png 1\n", TOP),
    ("a link in a circle", b"loop.png 1\n", TOP),
    ("a link to nowhere", b"gone.png 1\n", TOP),
    ("a zero byte", b"a\0.png 1\n", "test.txt"),
    ("a long name", b"x" * 5000 + b" 1\n", TOP),
    ("not UTF-8", b"\xff\xfe 1\n", "test.txt"),
    ("UTF-16", "a.png 1\n".encode("utf-16"), "test.txt"),
    ("binary", SOUND, "test.txt"),
    ("two labels", b"a.png 1\na.png 2\n", "with two labels"),
]
FINE: list[tuple[str, bytes, list[int]]] = [
    ("Windows line ends", b"a.png 1\r\nc d.png 2\r\n", [1, 2]),
    ("a mark of order", b"\xef\xbb\xbfa.png 1\n", [1]),
    ("no last line end", b"a.png 2", [2]),
    ("dots in a path", b"./images/../a.png 1\n", [1]),
    ("umlauts", "\u00fc.png 0\n".encode(), [0]),
]
IMAGES: list[tuple[str, bytes, str]] = [
    ("0 bytes", b"", "is empty (0 bytes)"),
    ("cut off", NOISE[: len(NOISE) // 2], "cannot be decoded"),
    ("text", b"not an image\n", "cannot be decoded"),
    ("a page", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
    ("zeros", bytes(1000), "cannot be decoded"),
    ("huge", HUGE, "cannot be decoded"),
    ("floats", picture("F", form="TIFF"), "no 8-bit equivalent"),
    ("an archive", b"PK\x03\x04" + bytes(100), "cannot be decoded"),
    ("program", b"\x7fELF" + bytes(100), "cannot be decoded"),
    ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x {} def\nshowpage\n", "cannot be decoded"),
    ("JPEG cut off", picture(form="JPEG")[:-40], "cannot be decoded"),
]
READ: list[tuple[str, bytes]] = [
    ("one pixel", picture(size=(1, 1))),
    ("thin", picture(size=(400, 1))),
    ("CMYK", picture("CMYK", form="JPEG")),
    ("grey", picture("L")),
    ("one bit", picture("1")),
    ("palette", picture("P")),
    ("alpha", picture("RGBA")),
    ("16 bits", picture("I;16")),
    ("animated GIF", animated("GIF")),
    ("animated PNG", animated("PNG")),
    ("animated WebP", animated("WEBP")),
    ("BMP in name of PNG", picture(form="BMP")),
    ("bytes behind it", SOUND + b"<?php echo 1 ?>" * 100),
]


def own_images(folder: Path, listed: bytes, image: bytes = SOUND) -> list[int]:
    """Labels of a user's own test images, read as a run reads them."""
    (folder / "images").mkdir(parents=True)
    for name, content in (("a.png", image), ("c d.png", picture("L")), ("\u00fc.png", picture(size=(9, 9)))):
        (folder / name).write_bytes(content)
    (folder / "t.png").write_bytes(picture(size=(30, 30)))
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "train.txt").write_bytes(b"t.png 0\n")
    (folder / "test.txt").write_bytes(listed)
    task = VTABTask(name="folder", group="own", num_classes=3, num_test=None, folders=["."])
    source, before = FolderSource(folder), state(folder)
    try:
        source.fingerprint(task)
        pixels = source.load(task, "test", 16)
    finally:
        assert state(folder) == before
    assert pixels.images.shape[0] == len(pixels.labels)
    return [int(label) for label in pixels.labels]


@each("listed, said", [row[1:] for row in LISTS])
def test_a_list_is_refused_with_its_line(listed: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(HeadwiseError) as caught:
        own_images(tmp_path / "own", listed)
    assert is_clear(str(caught.value), said), caught.value
    assert len(str(caught.value)) < 1000


@each(
    "make, why",
    [
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is a device or a pipe"),
        (lambda file: file.symlink_to("/dev/zero"), "is a device or a pipe"),
        (lambda file: file.symlink_to("nowhere"), "does not exist"),
    ],
)
@each("fewshot", [False, True])
def test_a_list_that_is_no_file_is_refused(
    make: Callable[[Path], None], why: str, fewshot: bool, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"name": "pets", "group": "fewshot", "shots": 1, "draw": 0} if fewshot else {"name": "x"}
    task = VTABTask(**{"group": "own", **options}, num_classes=3, num_test=None, folders=["."])
    file = tmp_path / ("annotations/test_meta.list" if fewshot else "test.txt")
    file.parent.mkdir(exist_ok=True)
    make(file)
    with pytest.raises(HeadwiseError) as caught:
        FolderSource(tmp_path).load(task, "test", 16)
    assert is_clear(str(caught.value), f"{file.name}: {why}; a list file is needed"), caught.value


@each("listed, labels", [row[1:] for row in FINE])
def test_an_odd_list_means_what_it_says(listed: bytes, labels: list[int], tmp_path: Path) -> None:
    assert own_images(tmp_path / "own", listed) == labels


@pytest.mark.filterwarnings("ignore")  # PIL's, of the damage
@each("image, said", [row[1:] for row in IMAGES])
def test_an_image_is_refused_with_its_line(image: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(HeadwiseError) as caught:
        own_images(tmp_path / "own", b"a.png 1\n", image)
    assert is_clear(str(caught.value), said), caught.value
    assert TOP in str(caught.value)


@each("image", [row[1] for row in READ])
def test_an_odd_image_is_read(image: bytes, tmp_path: Path) -> None:
    assert own_images(tmp_path / "own", b"a.png 1\n", image) == [1]


# ------------------------------------------------------------------------------------------------- weights and claims


def odd_weights() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Files of weights by what is odd, with their names and what writes them."""
    sound = network("vit").timm_state_dict() if hasattr(network("vit"), "timm_state_dict") else {}
    name, tensor = "blocks.0.norm1.weight", torch.ones(4)
    return {
        "empty": ("x.safetensors", lambda file: file.touch()),
        "a folder": ("x.safetensors", lambda file: file.mkdir()),
        "text": ("x.pth", lambda file: file.write_text("not weights")),
        "npz of text": ("x.npz", lambda file: file.write_text("not weights")),
        "no tensors": ("x.safetensors", lambda file: save_file({}, file)),
        "one tensor": ("x.safetensors", lambda file: save_file({name: tensor}, file)),
        "other names": ("x.safetensors", lambda file: save_file({"a": tensor}, file)),
        "torch of a list": ("x.pth", lambda file: torch.save([1, 2], file)),
        "torch of a number": ("x.pth", lambda file: torch.save(3, file)),
        "torch of a tensor": ("x.pth", lambda file: torch.save(tensor, file)),
        "torch of numbers": ("x.pth", lambda file: torch.save({name: 3, "x": "y"}, file)),
        "torch of odd keys": ("x.pth", lambda file: torch.save({3: tensor, None: tensor}, file)),
        "torch in itself": ("x.pth", lambda file: torch.save({"model": {"model": {"model": {}}}}, file)),
        "npz of other names": ("x.npz", lambda file: np.savez(file, a=np.ones(3))),
        "npz of objects": ("x.npz", lambda file: np.savez(file, a=np.array([{}], dtype=object))),
        "no suffix": ("x", lambda file: file.write_bytes(bytes(100))),
        "sound but for a shape": ("x.safetensors", lambda file: save_file({**sound, name: tensor}, file)),
    }


WEIGHTS = odd_weights()


@each("what", WEIGHTS)
def test_weights_are_refused_by_name(what: str, tmp_path: Path) -> None:
    name, write = WEIGHTS[what]
    write(tmp_path / name)
    net = network("vit").model
    before, files = {key: value.clone() for key, value in net.state_dict().items()}, state(tmp_path)
    with pytest.raises(HeadwiseError) as caught:
        load_weights(net, tmp_path / name)
    assert is_clear(str(caught.value), name), caught.value
    assert len(str(caught.value)) < 1000
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert state(tmp_path) == files


INDEXES: dict[str, Callable[[Path], object]] = {
    "text": lambda file: file.write_text("somebody's own\n"),
    "a torn word": lambda file: file.write_text("no line end"),
    "other JSON": lambda file: file.write_text('{"id": 1, "text": "x"}\n{"id": 2}\n'),
    "JSON with a path": lambda file: file.write_text('{"name": "a", "path": "x"}\n'),
    "a list": lambda file: file.write_text("[]\n"),
    "null": lambda file: file.write_text("null"),
    "binary": lambda file: file.write_bytes(SOUND),
    "zeros": lambda file: file.write_bytes(bytes(100)),
    "UTF-16": lambda file: file.write_bytes('{"path": "x"}'.encode("utf-16")),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to another's": lambda file: (file.with_name("own").write_text("own\n"), file.symlink_to("own")),
    "a link to nowhere": lambda file: file.symlink_to("nowhere"),
}


@each("what", INDEXES)
def test_an_index_of_somebody_else_stays_as_it_is(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    INDEXES[what](tmp_path / "index.jsonl")
    before, stored = state(tmp_path), run("lora", request="asked")
    store = ResultStore(tmp_path)
    store.put(stored.key, stored)
    store.recognise(stored, "again")
    ResultStore(tmp_path).rebuild()
    assert list(ResultStore(tmp_path).finished()) == [stored.key]
    assert {name: state(tmp_path).get(name) for name in before} == before
    assert not os.path.exists(tmp_path / "nowhere")  # noqa: PTH110
    assert "index.jsonl was not written by headwise: it stays as it is" in caplog.text


@each("begun", ["", "\n\n", "\n{", '\n{"path": "runs/lo', '{"path": "x\n'])
def test_an_index_that_was_begun_goes_on(begun: str, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(begun)
    stored = run("lora")
    ResultStore(tmp_path).put(stored.key, stored)
    assert '"fingerprint"' in (tmp_path / "index.jsonl").read_text()


CLAIMS = [
    '{"expiry": "abc"}',
    '{"expiry": -1}',
    '{"expiry": 1e308}',
    '{"expiry": null, "pid": "x", "host": []}',
    '{"expiry": true, "pid": -5}',
    '{"pid": 99999999999999999999, "host": "elsewhere"}',
    '{"host": "\\u0000", "started": {}}',
    "[]",
    "",
    "9" * 5000,
    "[" * 100_000,
    "\x00" * 100,
]


@each("content", CLAIMS)
def test_an_odd_claim_is_held_an_hour_at_most(content: str, tmp_path: Path) -> None:
    file = tmp_path / "claim-1"
    file.write_text(content)
    assert standing(tmp_path)[0] in ("held", "stale")
    for when in (time.time() - 4000, time.time() + 10**6):
        os.utime(file, (when, when))
        assert standing(tmp_path)[0] != "held"


# -------------------------------------------------------------------------------------------- processes: make, train.py

MAKE: list[tuple[str, str]] = [
    ("reproduce-tables ROOT=", "ROOT names one folder, without blanks; got ''"),
    ("reproduce-tables ROOT=a\\ b", "ROOT names one folder, without blanks; got 'a b'"),
    ("reproduce-tables EXPERIMENTS=nothing ROOT={here}/new", "unknown experiment 'nothing'; there are: "),
    ("reproduce-tables EXPERIMENTS=nothing INSTALLED={here}/none", "unknown experiment 'nothing'; there are: "),
    ("reproduce-tables EXPERIMENTS=../x ROOT={here}/new", "unknown experiment '../x'"),
    ("reproduce-tables EXPERIMENTS=lossy ROOT={here}/file", "file"),
    ("prepare TASKS=nothing", "unknown task 'nothing'"),
    ("nothing", "No rule to make target 'nothing'"),
    ("setup BASE=/nowhere/python INSTALLED={here}/none", "is missing or older than Python 3.11"),
]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@each("given, said", MAKE)
def test_make_refuses_before_anything_is_made(given: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "installed").touch()
    words = [word.replace("\0", " ") for word in given.replace("\\ ", "\0").format(here=tmp_path).split(" ")]
    before = state(tmp_path)
    settings = [f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv"]
    settings += [] if "INSTALLED" in given else [f"INSTALLED={tmp_path}/installed"]
    done = subprocess.run(
        ["make", "--no-print-directory", *settings, *words], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert state(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="it takes a shell")
def test_an_answer_that_nobody_could_read_is_not_worked_out(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} scripts/show_task.py svhn --data synthetic >&-"
    done = subprocess.run(["sh", "-c", command], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output is closed")


def test_a_name_that_no_terminal_shows_is_printed(tmp_path: Path) -> None:
    """A folder whose name is no text of the terminal's, from the first line to the last."""
    folder = os.fsencode(tmp_path) + b"/\xff"
    command = [sys.executable, "scripts/make_tables.py", "--root", folder, "--out", folder + b"/t.md"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 1
    assert b"error: no finished run under" in done.stderr
    assert b"Traceback" not in done.stderr
