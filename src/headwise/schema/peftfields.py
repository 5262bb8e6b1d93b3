"""What a config of the peft library may hold, read from its source: neither peft nor torch is imported.

Its annotations say the kinds. What they leave open stands here by the name of a field: ranges, and what peft would need
more for than a config.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field

from headwise.errors import ConfigError
from headwise.schema.check import Fields, Key, named, nearest, shown
from headwise.schema.kinds import Count, Factor, Rate, Whole, epochs_or_share
from headwise.schema.source import Node, fields_of_target, module_of

PREFIX = "peft."
Steps = Annotated[
    float,
    Field(ge=0, description="a whole number of steps, or a fraction of the run below 1"),
    AfterValidator(epochs_or_share),
]
Decay = Annotated[float, Field(gt=0, lt=1, description="in (0, 1)")]
RANGES: tuple[tuple[str, Any], ...] = (
    ("hybrid_r|depth|boft_block_(size|num)|oft_block_size|OFTConfig.r", Whole),
    ("r|(init|target|mini)_r|subspace_rank|num_(subspaces|vectors|groups|B)|n_frequency|vector_length|topk|u", Count),
    ("stride_A|nblocks|gralora_k|group_size|block_size|boft_n_butterfly_factor|theta_d_length|deltaT", Count),
    (r".*dropout(_p)?", Rate),
    ("beta[12]", Decay),
    ("tinit|tfinal", Steps),
    ("((lora|psoft|randlora|shadow)_)?alpha|scaling", Factor),
    ("(rank|n_frequency|block_size)_pattern", Mapping[str, Count]),
    ("(alpha|lambda)_pattern", Mapping[str, Factor]),
    ("bias", Literal["none"]),
)
"""Fields, some of one class only, with a kind that is narrower than their annotation. The first that fits counts."""
HEAD = "the head always trains, biases train with method=bitfit"
FETCHING = "it would make peft import or load something of its own"
UNSUPPORTED: tuple[tuple[str, Any, str], ...] = (
    (r"adapters|auto_mapping|base_model.*|megatron_.*|prompt_tuning.*|revision|shadow_model|token.*", None, FETCHING),
    ("peft_type", None, "the class of the config says it"),
    ("modules_to_save|target_parameters", None, HEAD),
    ("bias", ("all", "lora_only", "delora_only", "oft_only"), HEAD),
    ("init_lora_weights", ("eva",), "its start needs passes over the data that also choose the ranks (see method=eva)"),
    ("init_lora_weights", ("corda",), "its start needs covariances of the inputs"),
    ("eva_config", None, "its start needs passes over the data that also choose the ranks"),
    ("corda_config", None, "its start needs covariances of the inputs"),
    ("use_qalora", (True,), "peft has it for GPTQ layers only and would train plain LoRA"),
    ("kasa_config", None, "peft leaves its regularisers to the training loop"),
    ("monteclora_config", None, "peft leaves its regulariser to the training loop"),
    ("arrow_config", None, "it routes between adapters that must be there already"),
    ("use_asa", (True,), "peft leaves its allocation to the training loop"),
)
"""Where peft would run something else than was asked for unless its caller did more, or something of its own: fields,
the values that ask for it (None: any but null), and why."""
PISSA = Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$", description="pissa_niter_N")]
STARTS = {"pissa_niter_[number of iters]": PISSA, "lora_ga": Literal["lora_ga"]}
"""Values of ``init_lora_weights`` that its annotation paraphrases or leaves out, with what they are."""


def _config(value: Any) -> Any:
    """A mapping whose ``_target_`` is a config that adapts projections."""
    return _of_class(value, [name for name in configs() if "target_modules" in fields_of_target(name).types])


def _part(value: Any) -> Any:
    """Anything, but of the mappings with a class only those of a config."""
    return _of_class(value, configs()) if isinstance(value, Mapping) and "_target_" in value else value


def _of_class(value: Mapping[str, Any], known: Collection[str]) -> Mapping[str, Any]:
    target = value.get("_target_")
    if target not in known:
        near = nearest(str(target).rpartition(".")[2], known)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ConfigError(
            f"_target_ must name a config of peft, got {shown(target)}{hint}; allowed: {', '.join(known)}"
        )
    return value


PeftConfig = Annotated[Mapping[str, Any], AfterValidator(_config), Field(description="a config of peft")]
"""Fields of a config that adapts projections, whose class is its ``_target_``."""


@functools.cache
def configs() -> tuple[str, ...]:
    """Dotted names of all configs that peft offers."""
    source = module_of("peft")
    nodes = ast.walk(source.tree) if source else ()
    names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return tuple(f"{PREFIX}{name}" for name in sorted(names) if name.endswith("Config"))


@functools.cache
def fields_of_config(target: str) -> Fields:
    """What a config of peft may hold; ConfigError if there is none of this name."""
    fields = fields_of_target(target)
    types = {name: _kind(target.removeprefix(PREFIX), name, kind) for name, kind in fields.types.items()}
    return Fields({**types, "_target_": str}, fields.required, fields.is_open)


def check_peft(values: Mapping[str, Any], key: Key) -> None:
    """Check a config and those within it, plain data, before peft is imported.

    Raises:
        ConfigError: for a class that is no config, an unknown field, or a value that is of another kind or unsupported.
    """
    _of_class(values, configs())
    fields_of_config(str(values.get("_target_"))).check(values, key)
    for name, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_peft(value, lambda inner, name=name: f"{key(name)}.{named(inner)}")  # type: ignore[misc]


def _kind(config: str, name: str, annotated: Any) -> Any:
    """The kind of a field: what its annotation says, within the range of its name, without what is unsupported."""
    refused = [(asked, why) for pattern, asked, why in UNSUPPORTED if re.fullmatch(pattern, name)]
    dropped = [value for asked, _ in refused for value in asked or ()]
    if name == "init_lora_weights":
        annotated = _union(_without(annotated, [*dropped, *STARTS]), *STARTS.values())
    kind = _ranged(config, name, annotated)
    for asked, why in refused:
        # before its kind is looked at: why it is not supported says more than what it would have to be
        kind = Annotated[kind, BeforeValidator(functools.partial(_refuse, asked=asked, why=why))]
    return kind


def _ranged(config: str, name: str, annotated: Any) -> Any:
    parts = get_args(annotated) if get_origin(annotated) is Union else (annotated,)
    null = [type(None)] if type(None) in parts else []
    if annotated is Any:
        return Annotated[Any, AfterValidator(_part)]
    if Node in parts:
        return Annotated[_union(Mapping[str, Any], *null), AfterValidator(_part)]
    names = (name, f"{config}.{name}")
    narrow = next((kind for pattern, kind in RANGES if any(re.fullmatch(pattern, one) for one in names)), None)
    return annotated if narrow is None else _union(narrow, *null)


def _union(*kinds: Any) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007  of any number


def _without(kind: Any, values: Collection[Any]) -> Any:
    """A union whose literals lack some values."""
    parts = get_args(kind) if get_origin(kind) is Union else (kind,)
    kept = [
        Literal[tuple(value for value in get_args(part) if value not in values)]
        if get_origin(part) is Literal
        else part
        for part in parts
    ]
    return _union(*kept)


def _refuse(value: Any, asked: Collection[Any] | None, why: str) -> Any:
    if value is not None and (asked is None or any(type(value) is type(one) and value == one for one in asked)):
        given = value.get("_target_", "a mapping") if isinstance(value, Mapping) else shown(value)
        raise ConfigError(f"{given} is not supported: {why}; leave it out")
    return value
