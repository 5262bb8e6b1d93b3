"""Methods without hydra: what the command line composes, and its refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.protocol.described import CONF, described, method_names
from headwise.protocol.plan import resolved
from made_cases import each
from made_networks import REPO, compose_config


def composed(*overrides: str) -> Any:
    cfg = compose_config(*overrides, "dataset=own/folder", "dataset.num_classes=2", "dataset.name=own")
    return resolved(cfg, list(overrides), ())[0]["method"]


def test_every_method_of_conf_is_known() -> None:
    files = (REPO / "conf" / "method").rglob("*.yaml")
    assert set(method_names()) == {file.relative_to(REPO / "conf" / "method").as_posix()[:-5] for file in files}


@each("name", method_names())
def test_a_method_is_what_the_command_line_composes(name: str) -> None:
    assert described(name, {}) == composed(f"method={name}")


@each(
    "name, fields, overrides",
    [
        ("head_lora", {"rank": 5, "targets": ["q", "k"]}, ["method.rank=5", "method.targets=[q,k]"]),
        ("head_lora", {"rank": 5, "targets": ("q",)}, ["method.rank=5", "method.targets=[q]"]),
        ("lora", {"gate": "heart", "scale": 2.0}, ["method.gate=heart", "method.scale=2.0"]),
        ("hs_lora", {"first": "pissa"}, ["method@method.first=pissa"]),
        ("hs_lora", {"heads": {"rank": 1}}, ["method.heads.rank=1"]),
        ("hs_lora", {"first": "dora", "heads": {"rank": 1}}, ["method@method.first=dora", "method.heads.rank=1"]),
        (
            "peft_lora",
            {"config": {"r": 2, "use_rslora": True}},
            ["method.config.r=2", "+method.config.use_rslora=true"],
        ),
    ],
)
def test_fields_mean_what_they_mean_on_the_command_line(name: str, fields: Any, overrides: list[str]) -> None:
    assert described(name, fields) == composed(f"method={name}", *overrides)


@each(
    "name, fields, said",
    [
        ("head_lroa", {}, r"unknown method 'head_lroa' \(did you mean 'head_lora'\?\); allowed: adalora, "),
        ("../config", {}, r"unknown method '\.\./config'"),
        ("head_lora", {"rnak": 3}, r"unknown key method\.rnak=3 \(did you mean 'method\.rank'\?\); allowed: .*targets"),
        ("head_lora", {"rank": -1}, r"method\.rank must be a whole number of at least 1, got -1"),
        ("head_lora", {"rank": "many"}, r"method\.rank must be a whole number"),
        ("head_lora", {"targets": ["q", "x"]}, r"method\.targets: target 'x' matches no projection"),
        ("head_lora", {"_target_": "os.system"}, r"method\._target_: a class is chosen by the name of its method"),
        ("head_lora", {"first": "lora"}, r"unknown key method\.first='lora'"),
        ("hs_lora", {"first": "no"}, r"unknown method 'no'"),
        ("hs_lora", {"heads": {"rnak": 1}}, r"unknown key method\.heads\.rnak=1 \(did you mean 'method\.heads\.rank'"),
        ("hs_lora", {"heads": {"_target_": "os.system"}}, r"method\.heads: a class is chosen by"),
        ("hs_lora", {"heads.rank": 1}, r"method\.heads\.rank"),
        ("lora", {"gate": "hart"}, r"hart"),
        ("lora", {"scale": "published"}, r"method\.scale=published: the authors' values are of tasks"),
    ],
)
def test_what_is_no_method_is_refused(name: str, fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        described(name, fields)


def test_neither_hydra_nor_torch_is_imported() -> None:
    code = (
        "import sys; from headwise.protocol.described import described; described('hs_lora', {});"
        "sys.exit(bool({'hydra', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_files_of_the_package_are_those_of_the_repository() -> None:
    assert CONF.samefile(REPO / "conf")
