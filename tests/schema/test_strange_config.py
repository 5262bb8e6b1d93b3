"""Configurations that anybody may have written: each is refused in one line, or planned with what was given."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.messages import one_line
from headwise.commands.overrides import PATHS, explained, quoted, readable, several
from headwise.errors import ConfigError, HeadwiseError
from headwise.protocol.plan import plan_run
from made_cases import each
from made_networks import compose_config

CHOICES = [
    "dataset=dsprites_loc method=hs_lora",
    "dataset=clevr_count method=heart_lora protocol=search logger=wandb backbone=swin_tiny_random",
    "dataset=fewshot/pets shots=4 method=peft protocol=fewshot",
    "dataset=smallnorb_azi method=noah method.search=evolution",
    "dataset=own/folder dataset.num_classes=2 method=adalora data=folder data.root=conf",
    "dataset=dsprites_loc method=spt_lora protocol=heart_paper",
    "dataset=dsprites_loc method=dylora",
]
USUAL = ("backbone=vit_tiny_random", "data=synthetic", "trainer=cpu", "protocol=smoke")
TAKEN = ("resume", "wait")
"""Keys that say how a run is done: fields of the plan, and not of its configuration."""
FILLED = ("trainer.accelerator", "trainer.attention", "backbone.name")
"""Keys whose value may mean another one."""


def bounded(examples: int) -> Any:
    """The same examples every time, so many of them."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


@functools.cache
def base(choice: str) -> dict[str, Any]:
    """A right configuration, its interpolations open."""
    plain: Any = OmegaConf.to_container(compose_config(*USUAL, *choice.split()))
    return dict(plain)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a configuration but the whole of it; of a list the first."""
    children = (
        list(node.items()) if isinstance(node, dict) else list(enumerate(node))[:1] if isinstance(node, list) else []
    )
    return [place for key, child in children for place in ((*at, key), *places(child, (*at, key)))]


def put(node: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy that holds `value` at a place."""
    made = copy.deepcopy(node)
    inner = functools.reduce(lambda found, key: found[key], at[:-1], made)
    inner[at[-1]] = value
    return made


ODD_TEXTS = [
    "",
    " ",
    "x",
    "1",
    "true",
    "\n|=<b>",
    "\0",
    "\ud800",
    "9" * 300,
    "x" * 5000,
    "/",
    "..",
    "../x",
    "a/b",
    "~",
    ".",
]
ODD_TEXTS += [
    "${seed}",
    "${x",
    "${x}",
    "${oc.env:NOPE}",
    "${mul:1,2}",
    "${mul:a,b}",
    "${nope:1}",
    "???",
    "$",
    "\\",
    "${seed} ",
]
ODD_TEXTS += [
    "published",
    "own",
    "none",
    "pretrained",
    "a.npz",
    "x" * 300,
    "/dev/null",
    "/proc/self/mem",
    "a\u2028b",
    "caf\u00e9",
]
NUMBERS = [-1, 0, 1, 2, 3, 16, 2**31, 2**63, 10**17, 10**100, 0.5, 1.5, -0.0, 1e308, -1e308, 1e-320, math.inf, math.nan]
ODD: list[Any] = [None, True, False, *NUMBERS, *ODD_TEXTS, [], {}, [1, None], [[]], {"x": None}, {1: 2}, ["q", "q"]]
ODD += [
    {"_target_": "os.system"},
    {"_target_": None},
    {"_target_": "headwise.methods.lora.LoRA"},
    {"${x}": 1},
    [0] * 300,
]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["", "\n", "a.b", "_target_", "_convert_", "__class__", "\ud800", "x" * 300, "search", "checkpoint", "gate"]
)
NAMES |= st.sampled_from(["epochs", "lr", "user", "subnet", "published", "others", "revision", "0"]) | st.text(
    max_size=8
)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, list[tuple[tuple[Any, ...], Any]]]:
    """A right configuration, and values for one or two of its places, which need not be there."""
    choice = draw(st.sampled_from(CHOICES))
    node, made = base(choice), []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        at = draw(st.sampled_from(places(node)))
        if draw(st.integers(0, 5)) == 0 and not isinstance(at[-1], int):
            at = (*at[:-1], draw(NAMES))
        made.append((at, draw(VALUES)))
        node = put(node, *made[-1])
    return choice, made


def refusal(text: str) -> str:
    """The text of a refusal as a terminal shows it, which must be a line that is not too long."""
    text = text.encode(errors="backslashreplace").decode()
    assert text.isprintable() and text.strip() and len(text) < 2000, text
    return text


def same(given: Any, found: Any) -> bool:
    """Whether values are equal and of the same kinds."""
    if isinstance(given, dict):
        return isinstance(found, dict) and all(name in found and same(given[name], found[name]) for name in given)
    if isinstance(given, list):
        return isinstance(found, list) and len(given) == len(found) and all(map(same, given, found))
    return type(given) is type(found) and given == found


def check_plan(choice: str, made: list[tuple[tuple[Any, ...], Any]], here: Path) -> None:
    node = base(choice)
    for at, value in made:
        node = put(node, at, value)
    try:
        cfg = OmegaConf.create(node)
        resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, TypeError):  # no composition gives that
        resolved = None
    try:
        plan = plan_run(OmegaConf.create(node))
    except OmegaConfBaseException as error:
        assert resolved is None
        refusal(one_line(error))
        return
    except HeadwiseError as error:
        refusal(str(error))
        return
    assert resolved is not None
    json.dumps(plan.config, allow_nan=False).encode()
    assert b"\0" not in os.fsencode(plan.folder) and not plan.folder.exists()
    json.dumps(plan.identity, allow_nan=False).encode()
    for at, _ in made:
        key = ".".join(map(str, at))
        given = functools.reduce(lambda found, name: found[name], at, resolved)
        if at[0] in TAKEN or key in FILLED or at[0] == "method":
            continue  # what a method's fields come to is checked by their own tests
        found = functools.reduce(lambda found, name: found[name], at, plan.config)
        assert same(given, found), (key, given, found)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it, and no cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@bounded(40)
@given(changes())
@example((CHOICES[0], [(("root",), "${mul:a,b}")]))
@example((CHOICES[0], [(("protocol", "\n"), 3)]))
@example((CHOICES[0], [(("\n",), "${nope:1}")]))
@example((CHOICES[0], [(("\x90",), "???")]))
@example((CHOICES[0], [(("backbone", "overrides", "patch_size"), "x" * 5000)]))
@example((CHOICES[0], [(("name",), "\ud800")]))
@example((CHOICES[0], [(("root",), "a\0b")]))
@example((CHOICES[2], [(("data",), {"_target_": "os.system"})]))
def test_any_value_at_any_key(here: Path, change: tuple[str, list[tuple[tuple[Any, ...], Any]]]) -> None:
    check_plan(*change, here)


@pytest.mark.slow
@bounded(2000)
@given(changes())
def test_many_values_at_many_keys(here: Path, change: tuple[str, list[tuple[tuple[Any, ...], Any]]]) -> None:
    check_plan(*change, here)


@each("key", ["dataset.folders", "dataset.class_names", "dataset.multi_label", "data.root", "data.image", "data.label"])
@each("num_classes", [None, 2])
def test_a_wrong_kind_is_refused_before_classes_are_sought(here: Path, key: str, num_classes: int | None) -> None:
    (here / "train.txt").write_text("a.png cat\nb.png dog\n")
    node = base(f"dataset=own/folder data={'hf' if key in ('data.image', 'data.label') else 'folder'} data.root=conf")
    for wrong in (3, 1.5, {"a": 1}, [[]], [None]):
        asked = put(put(node, ("dataset", "num_classes"), num_classes), tuple(key.split(".")), wrong)
        with pytest.raises(ConfigError, match=f"^{re.escape(key)} must be ") as caught:
            plan_run(OmegaConf.create(asked))
        refusal(str(caught.value))


TYPED = [text for text in ODD_TEXTS if "\0" not in text and len(text) < 1000]
"""What a shell can hand over."""
KEYS = st.sampled_from(
    ["name", "root", "data.root", "backbone.weights", "method.rank", "+user.note", "rank", "ne", "~x", "dataset"]
)
WORDS = st.text(st.sampled_from("abz019 .,:;=()[]{}'\"\\/~$@#%&*!?<>|+-\u00fc\n\t"), max_size=12) | st.sampled_from(
    TYPED
)


def read(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


def check_word(key: str, value: str) -> None:
    """A word of the command line: readable, or explained by one that is, which says what was typed."""
    word = f"{key}={value}"
    try:
        (typed,) = readable([word])
    except ConfigError as error:  # an option outside of its folder
        assert ".." in value
        refusal(str(error))
        return
    try:
        found = read(typed)
    except HydraException:
        answer = refusal(" ".join(explained(typed).split()))
        shown = explained(typed).rpartition("type ")[2]
        if "type " in answer and "is no key" not in answer:
            (spelled,) = shlex.split(shown)
            read(spelled)
        assert key not in PATHS or value[0] in "'\""
        return
    refusal(" ".join(several(typed).split()))
    if key in PATHS and typed != word and value.strip().partition("/")[0] != "~":
        assert found == value.strip()


@bounded(60)
@given(KEYS, WORDS)
@example("root", "a\\")
@example("root", "0 ")
@example("root", "x\\' (")
@example("name", "\\'")
def test_any_word_of_the_command_line(key: str, value: str) -> None:
    check_word(key, value)


@pytest.mark.slow
@bounded(3000)
@given(KEYS, WORDS)
def test_many_words_of_the_command_line(key: str, value: str) -> None:
    check_word(key, value)


@bounded(60)
@given(WORDS | st.text(max_size=20))
def test_any_text_can_be_quoted(text: str) -> None:
    assume("$" not in text)  # an interpolation is one within quotes as well
    assert read(f"name={quoted(text)}") == text


@bounded(40)
@given(st.text(max_size=20) | WORDS)
def test_any_word_at_all_is_answered(word: str) -> None:
    try:
        (typed,) = readable([word])
        OverridesParser.create().parse_override(typed)
    except ConfigError as error:
        refusal(str(error))
    except HydraException:
        refusal(" ".join(explained(word).split()))
