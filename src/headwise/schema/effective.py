"""Which configurations are one: a gate that switches nothing off, and fields that cannot change a number, do not count.

This is the one canonical form, of configurations and of stored records: addresses of phases, identities of runs and
their comparison use it. What does not matter is set to its default, so that what was stored with defaults keeps its
address. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS = {"score": "taylor_neg", "scope": "global", "score_data": "full_pass", "pooled": False, "warmup": 0.1}
"""Of the fields of `headwise.updates.gate.Gate` that another field can make void."""


def effective_gate(gate: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a gate, those that cannot change a number at their defaults; None for one that does nothing.

    Args:
        gate: fields of `headwise.updates.gate.Gate`.
    """
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


def effective_method(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's fields, its gates and those of the methods in it in their effective form."""
    kept: dict[str, Any] = {}
    for name, value in method.items():
        if name == "gate" and isinstance(value, Mapping):
            gate = effective_gate(value)
            if gate is not None:
                kept[name] = gate
        else:
            kept[name] = effective_method(value) if isinstance(value, Mapping) else value
    return kept


def effective(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run in its effective form; gates are left as they are where a search is to choose them."""
    protocol, method = identity.get("protocol"), identity.get("method")
    search = protocol.get("search") if isinstance(protocol, Mapping) else None
    searched = isinstance(search, Mapping) and (search.get("ne") or search.get("score"))
    if searched or not isinstance(method, Mapping):
        return dict(identity)
    return {**identity, "method": effective_method(method)}
