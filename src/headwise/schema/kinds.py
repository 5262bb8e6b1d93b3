"""Kinds of values: types with their range, and the words for it. A field is annotated with one and is checked thereby.

They are what their base type is to a type checker; pydantic checks them strictly: true is no number, 1.0 is not whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, Field

from headwise.errors import ConfigError, suggest
from headwise.schema.check import shown

PUBLISHED = "published"
"""In place of a value: what the method's authors published for the task."""
PROJECTIONS = ("q", "k", "v", "o", "fc1", "fc2")
"""What updates of projections may reach, in the order of a block."""
SAME_SIZE = 0.005
"""Share of parameters up to which a control counts as of equal size."""


def _other_than_0(value: float) -> float:
    if not value:
        raise ValueError("is 0")
    return value


def epochs_or_share(value: float) -> float:
    """For a count that may be a share below 1 of the whole: no other fraction."""
    if value >= 1 and not float(value).is_integer():
        raise ValueError("is neither whole nor below 1")
    return value


def _among(*allowed: int) -> AfterValidator:
    """Some whole numbers; a Literal would take true for 1."""

    def check(value: int) -> int:
        if value not in allowed:
            raise ValueError("is none of them")
        return value

    return AfterValidator(check)


def different(values: Any) -> Any:
    """For a list: no value twice."""
    if len(set(values)) < len(values):
        raise ValueError("repeats a value")
    return values


def _projections(names: Any) -> Any:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigError(f"target {shown(name)} stands there twice")
        if name not in PROJECTIONS:
            raise ConfigError(
                f"target {shown(name)} matches no projection of this backbone{suggest(name, PROJECTIONS)}"
            )
    return names


def _sizes(options: Any) -> Any:
    for name, value in options.items():
        if str(name).startswith(("depth", "num_")) or str(name).endswith(("_dim", "_size")):
            sizes = value if isinstance(value, list | tuple) and value else [value]
            if not all(type(size) is int and size >= 1 for size in sizes):
                raise ConfigError(f"{name} must be a whole number of at least 1, or a list of them, got {shown(value)}")
    return options


Text = Annotated[str, Field(min_length=1, pattern=r"\S", description="text that is not empty")]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Side = Annotated[int, Field(ge=1, description="the side of a square in pixels, a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number in 0..4294967295")]
Threads = Annotated[int, Field(ge=1, le=1024, description="a whole number in 1..1024")]
AtLeast2 = Annotated[int, Field(ge=2, description="a whole number of at least 2")]
PixelScale = Annotated[int, Field(ge=1, le=255, description="a whole number in 1..255")]
Positive = Annotated[float, Field(gt=0, description="a number above 0")]
AtLeast0 = Annotated[float, Field(ge=0, description="a number of at least 0")]
AtLeast1 = Annotated[float, Field(ge=1, description="a number of at least 1")]
Factor = Annotated[float, AfterValidator(_other_than_0), Field(description="a finite number other than 0")]
Rate = Annotated[float, Field(ge=0, lt=1, description="in [0, 1)")]
Share = Annotated[float, Field(gt=0, le=1, description="in (0, 1]")]
Probability = Annotated[float, Field(ge=0, le=1, description="in [0, 1]")]
Warmup = Annotated[
    float,
    Field(gt=0, description="a whole number of epochs, or a fraction of the run in (0, 1)"),
    AfterValidator(epochs_or_share),
]
HeadsOff = Annotated[
    float,
    Field(ge=0, description="a whole number of heads, or their share below 1"),
    AfterValidator(epochs_or_share),
]
Targets = Annotated[Sequence[Text], AfterValidator(_projections), Field(description="a list of projections")]
NumPrompts = Annotated[int, Field(ge=1, le=200, description="in 1..200")]
Split = Literal["train800", "val200", "train800val200", "test"]
SHOTS, DRAWS = (1, 2, 4, 8, 16), (0, 1, 2)
Shots = Annotated[int, _among(*SHOTS), Field(description="one of 1, 2, 4, 8, 16")]
Draw = Annotated[int, _among(*DRAWS), Field(description="one of 0, 1, 2")]
Channels = Annotated[int, _among(1, 3), Field(description="1 or 3")]
if TYPE_CHECKING:
    Words = Sequence[str]
    Slices = Mapping[str, str]
else:
    Words = Sequence[str | int | float]
    Slices = Mapping[Literal["train", "val", "test"], str]
"""Lists of names, where YAML takes 0 for a number (who takes one makes texts of them); upstream's slices of a task."""
CodeBits = Annotated[int, _among(1, 2, 4, 8), Field(description="one of 1, 2, 4, 8")]
Bits = Annotated[int, _among(1, 2, 4, 8, 32), Field(description="one of 1, 2, 4, 8, 32")]
"""Of stored numbers; 32 is no quantiser."""
Overrides = Annotated[Mapping[str, Any], AfterValidator(_sizes), Field(description="a mapping")]
"""Arguments of a network's constructor, whichever it takes: sizes are whole numbers."""
Colour = Annotated[Sequence[float], Field(min_length=3, max_length=3, description="a list of three numbers")]
Spread = Annotated[Sequence[Positive], Field(min_length=3, max_length=3, description="a list of three numbers above 0")]
Factors = Annotated[
    Sequence[Factor], AfterValidator(different), Field(description="a list of different values, numbers other than 0")
]
Amounts = Annotated[
    Sequence[HeadsOff],
    AfterValidator(different),
    Field(description="a list of different values, whole numbers, or shares below 1"),
]


def is_whole(value: Any, most: int | None = None) -> TypeGuard[int]:
    """Whether a value is a whole number of at least 1 and, where that is given, at most `most`; true is none."""
    return type(value) is int and value >= 1 and (most is None or value <= most)
