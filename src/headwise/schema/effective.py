"""Which configurations are one: a gate that switches nothing off, and fields that cannot change a number, do not count.

This is the one canonical form, of configurations and of stored records: addresses of phases, identities of runs and
their comparison use it. What does not matter is set to its default, so that what was stored with defaults keeps its
address; a field that came later is left out where it does nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

OURS = "headwise.methods."
LATER = {"cycles": 1, "consistency": None}
"""Fields of every method that came later, each with the value at which it does nothing; see `Method.later`."""

DEFAULTS = {"score": "taylor_neg", "scope": "global", "score_data": "full_pass", "pooled": False, "warmup": 0.1}
"""Of the fields of `headwise.updates.gate.Gate` that another field can make void."""


def effective_gate(gate: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a `Gate`, those that cannot change a number at their defaults; None for one that does nothing."""
    is_budget = gate.get("budget") is not None
    if not is_budget and not gate.get("count") and not gate.get("ratio") and {"count", "ratio"} & gate.keys():
        return None
    void: set[str] = set()
    if gate.get("mode") in ("front", "random"):
        void |= {"score", "score_data", "warmup"}  # masks stand from the start, without scores
    if gate.get("mode") == "front":
        void |= {"scope", "pooled"}  # the first heads are the first everywhere
    if is_budget or gate.get("scope") == "stage":
        void.add("scope")  # all layers are compared; global never mixes stages
    if gate.get("score") == "weight_l2":
        void.add("score_data")  # the weights are those after the last step, whatever is passed
    return {name: DEFAULTS[name] if name in void else value for name, value in gate.items()}


def effective_consistency(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a `Consistency`; None for one that does nothing.

    Without noise both passes give the same logits. Mode lazy trains on half of the batch all the same, and mode fast
    compares with another epoch.
    """
    is_void = recipe.get("sigma") == 0 and (recipe.get("lam") == 0 or recipe.get("mode") == "pace")
    return None if is_void else dict(recipe)


def effective_method(method: Mapping[str, Any], gates: bool = True) -> dict[str, Any]:
    """A method's fields, its gates (unless told otherwise) and those of the methods in it in their effective form.

    Of a class that ``_target_`` names, fields that came later are left out where they do nothing.
    """
    later = {**LATER, **_later(str(method.get("_target_", "")))}
    kept: dict[str, Any] = {}
    for name, value in method.items():
        part: Any = value
        if name in ("gate", "consistency") and isinstance(value, Mapping):
            part = effective_consistency(value) if name == "consistency" else effective_gate(value) if gates else value
            if part is None:
                continue
        elif isinstance(value, Mapping):
            part = effective_method(value, gates)
        if name not in later or part != later[name]:
            kept[name] = part
    return kept


@functools.cache
def _later(target: str) -> dict[str, Any]:
    """What a class of ours says of its later fields; nothing is imported, and others are not looked for."""
    if not target.startswith(OURS):
        return {}
    from headwise.schema.source import literal_of_target  # with pydantic, which records alone do not need

    return literal_of_target(target, "later") or {}


def effective(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run in its effective form; gates are left as they are where a search is to choose them."""
    protocol, method = identity.get("protocol"), identity.get("method")
    search = protocol.get("search") if isinstance(protocol, Mapping) else None
    searched = isinstance(search, Mapping) and (search.get("ne") or search.get("score"))
    if not isinstance(method, Mapping):
        return dict(identity)
    return {**identity, "method": effective_method(method, gates=not searched)}
