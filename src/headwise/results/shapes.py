"""What a record must look like for everything that reads it to work on it. Standard library only.

Fields that are not named here may hold any JSON: what a later version adds, and what only people read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from headwise.storage.plain import (
    COUNTED,
    Misfit,
    Shape,
    anything,
    between,
    count,
    each,
    every,
    fields,
    flag,
    mapping,
    maybe,
    number,
    scalar,
    text,
    within,
)

FORMAT = 1
SEARCHED = ("scale", "ne", "score")
"""What a search may choose beside fields of a method, in the order of records."""


def _moment(value: Any, where: str) -> None:
    """A time as ISO 8601, in the years that every system can reckon with."""
    text(value, where)
    try:
        year = datetime.fromisoformat(value).year
    except ValueError:
        year = 0
    if not 1980 <= year <= 2200:
        raise Misfit(f"{where} must be a time such as 2026-01-31T12:00:00+00:00, got {value[:40]!r}")


def _format(value: Any, where: str) -> None:
    """The layout of this version."""
    if isinstance(value, bool) or value != FORMAT:
        raise Misfit(f"it is of format {str(value)[:40]!r}, this version reads {FORMAT}")


def _head_row(value: Any, where: str) -> None:
    """Of one projection: which heads are on, and their scores."""
    _HEAD_ROW(value, where)
    active, scores = value["active"], value["score"]
    if not active or (scores is not None and len(scores) != len(active)):
        raise Misfit(f"{where} must have a place, a mask and a score each or none")


def _bit(value: Any, where: str) -> None:
    """0 or 1."""
    if isinstance(value, bool) or value not in (0, 1):
        raise Misfit(f"{where} must be 0 or 1, got {str(value)[:40]}")


_HEAD_ROW = fields({"stage": count, "block": count, "proj": text, "active": each(_bit), "score": maybe(each(number))})
_AMOUNT = between(0, COUNTED)
_GATE = fields(
    {},
    {**dict.fromkeys(("mode", "score", "scope", "warmup", "count", "ratio", "budget", "score_data", "pooled"), scalar)}
    | {"scoring_seconds": maybe(_AMOUNT)},
)
_CHOSEN = fields({}, {**dict.fromkeys(SEARCHED, scalar), "fields": mapping})
_SEARCH = fields({}, {"num_trials": count, "searched": each(text), "edges": each(text), "chosen": maybe(_CHOSEN)})
EXTRA = fields(
    {},
    {
        "gate": maybe(_GATE),
        "heads": maybe(each(_head_row)),
        "paper_bytes": maybe(count),
        "search": maybe(_SEARCH),
        "mechanism": every(within(0, 1)),
        "mfu": fields({"flops_per_image": _AMOUNT, "peak": number, "share": _AMOUNT}),
        "average_precision": fields({"mean": within(0, 100), "classes": each(maybe(within(0, 100)))}),
        "classes": fields(dict.fromkeys(("balanced_accuracy", "macro_f1"), within(0, 100))),
    },
)
_PHASE_FIELDS = fields(
    {
        "label": text,
        "accuracy": maybe(number),
        "num_tunable": count,
        "num_head": count,
        "stored_bytes": count,
        "seconds": _AMOUNT,
    },
    {
        "num_test": maybe(count),
        "images_per_second": maybe(_AMOUNT),
        "peak_memory": maybe(count),
        "epochs": count,
        "steps": count,
        "fingerprint": text,
        "method": mapping,
        "train_loss": maybe(number),
        "extra": EXTRA,
    },
)


def phase(value: Any, where: str) -> None:
    """A phase, whose search names nothing but what it may have tried."""
    _PHASE_FIELDS(value, where)
    search = value.get("extra", {}).get("search") or {}
    searched, chosen = search.get("searched", ()), search.get("chosen")
    # records of older code do not say what was chosen: there it is the method that has the fields
    known = value.get("method", {}) if chosen is None else chosen.get("fields", {})
    for name in searched:
        if name not in SEARCHED and (name not in known or name.startswith("_") or name == "label"):
            raise Misfit(f"{where}.extra.search.searched must name fields of the method, got {name[:40]!r}")
    for name in search.get("edges", ()):
        if name not in searched:
            raise Misfit(f"{where}.extra.search.edges must be among what was searched, got {name[:40]!r}")


def _if_mapping(shape: Shape) -> Shape:
    """A value of another kind counts as not recorded."""
    return lambda value, where: shape(value, where) if isinstance(value, Mapping) else None


_TASK = _if_mapping(fields({}, {"group": scalar, "shots": maybe(count), "draw": maybe(count)}))
_FROM = _if_mapping(fields({}, {"otherwise": each(text)}))
_DATA = _if_mapping(fields({}, {"mean": maybe(each(number)), "std": maybe(each(number))}))
RESULT = fields(
    {
        **dict.fromkeys(("name", "method", "dataset", "variant", "seed"), anything),  # `RunKey` looks at them
        "fingerprint": text,
        "labels": each(text),
        "provenance": fields({}, {"data": _DATA, "from": _FROM}),
        "phases": each(phase),
    },
    {
        "format": _format,
        "identity": fields({}, {"dataset": _TASK}),
        "config": fields({}, {"dataset": _TASK}),
        "versions": every(maybe(text)),
        "git": maybe(fields({}, {"commit": maybe(text), "dirty": maybe(flag)})),
        "machine": every(scalar),
        "created": _moment,
        "request": text,
    },
)


def _three(value: Any, where: str) -> None:
    """A quartile, the median, a quartile."""
    each(between(0, 1e6))(value, where)
    if len(value) != 3:
        raise Misfit(f"{where} must be three numbers, got {len(value)}")


_RATIO = {
    "contender": text,
    "precision": text,
    "pairs": each(anything),
    "quartiles": _three,
    "flop_ratio": between(0, 1e6),
}
MEASURED = fields(
    {"backbone": fields({"name": text}), "batch": count, "results": each(fields(_RATIO))}, {"set": maybe(each(text))}
)
"""A record of benchmarks/method_cost.py."""
_LINE = {
    "method": text,
    "variant": text,
    "seed": count,
    "epochs": count,
    "parameters": count,
    "older_code": anything,
    "ms_per_step": maybe(number),
    "peak_memory": maybe(count),
}
LINED_UP = each(fields({"title": text, "lines": each(fields(_LINE))}))
"""The line-ups of an experiment, see `headwise.comparison.lineup`."""
