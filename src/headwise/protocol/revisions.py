"""Settings of methods whose numbers have changed, so that a result of before is not taken for one of now.

A method's ``revision`` is part of a run's identity. A YAML can raise it for all that is made of it; where only some of
a method's settings compute something else than they did, the table here raises it for those. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headwise.results.fingerprint import at
from headwise.schema.nodes import Node, each_node


@dataclass(frozen=True)
class ChangedNumbers:
    """One change of numbers.

    Attributes:
        target: ``_target_`` of the method.
        revision: of its numbers since then.
        settings: values that its fields, by dotted name, have where the numbers changed, or conditions on them; {} for
            all.
        why: what changed.
    """

    target: str
    revision: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def _is_odd(value: Any) -> bool:
    return isinstance(value, int | float) and value % 2 == 1


CHANGES = (
    ChangedNumbers(
        "headwise.methods.peft_bridge.PeftMethod",
        2,
        {"config.init_lora_weights": "lora_ga"},
        "LoRA-GA starts from gradients; it started as LoRA",
    ),
    ChangedNumbers("headwise.methods.adapters.Adapters", 2, {"init": "houlsby"}, "the start is cut at two deviations"),
    ChangedNumbers(
        "headwise.methods.noah.NOAH", 2, {"init": "upstream"}, "prompts start as those of the authors' supernet"
    ),
    ChangedNumbers(
        "headwise.methods.hs_lora.MatchedLoRA",
        2,
        {"head_rank": _is_odd},  # of an even r', r' (H + 1) / 2 is whole
        "layers take the whole ranks around the exact one, so that the size is equal; it was up to 8 % off",
    ),
    ChangedNumbers(
        "headwise.methods.spt_lora.SPTLoRA", 2, {}, "entries of biases train; the authors' grid of thresholds"
    ),
)


def _concerns(change: ChangedNumbers, method: Mapping[str, Any]) -> bool:
    """Whether a method's numbers are those that changed."""
    if method.get("_target_") != change.target:
        return False
    pairs = ((wanted, at(method, name)) for name, wanted in change.settings.items())
    return all(wanted(value) if callable(wanted) else value == wanted for wanted, value in pairs)


def fill_revisions(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's configuration, and of every method in it, with at least the revision of its settings."""
    return each_node(method, lambda key, node: _with_revision(node))


def _with_revision(node: Node) -> Node:
    revisions = [change.revision for change in CHANGES if _concerns(change, node)]
    return {**node, "revision": max(node.get("revision") or 1, *revisions)} if revisions else node


def changed_since(method: Any) -> list[str]:
    """Why a method of a run's identity, or one in it, has other numbers now; empty if it has the same."""
    if not isinstance(method, Mapping):
        return []
    parts = [why for value in method.values() for why in changed_since(value)]
    for change in CHANGES:
        if (method.get("revision") or 1) < change.revision and _concerns(change, method):
            parts.append(change.why)
    return parts
