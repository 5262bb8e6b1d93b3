"""Recipes of phases, and those of the phases that they are measured by. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shared_twin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of plain LoRA that has as many parameters as these per-head updates."""
    kind = str(spec.get("_target_")).replace(".HeadLoRA", ".MatchedLoRA")
    sizes = {"head_rank": spec["rank"]} if "rank" in spec else {}  # a search chose it, as it may the control's
    return {**without(spec, "rank", "gate"), "_target_": kind, **sizes}


def permuted_twin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of groups of random rows in the place of these heads."""
    return {**without(spec, "gate"), "_target_": "headwise.methods.hs_controls.PermutedLoRA"}


def scaled_twin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the same heads, of the scale with which plain LoRA of equal size moves."""
    return {**without(spec, "gate"), "_target_": "headwise.methods.hs_lora.ScaledHeadLoRA"}


def joint_twin(first: Mapping[str, Any], heads: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of plain LoRA and per-head updates in one phase; that of no method where the two differ in more."""
    shared = {name: first.get(name) for name in ("targets", "scale", "dropout", "lr")}
    if class_of(first) != "LoRA" or any(heads.get(name) != value for name, value in shared.items()):
        return {"_target_": ""}
    ranks = {"rank": first.get("rank"), "head_rank": heads.get("rank")}
    return {**without(heads, "rank", "gate"), "_target_": "headwise.methods.hs_controls.JointLoRA", **ranks}


def class_of(spec: Mapping[str, Any]) -> str:
    """Name of a recipe's class, without its module."""
    return str(spec.get("_target_", "")).rpartition(".")[2]


def recipe(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A method without its name and its epochs; a control of equal size without its revision, since `Match` says it."""
    return without(spec, "label", "epochs", *(("revision",) if is_matched(spec) else ()))


def without(spec: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A recipe, or another mapping, without some of its entries."""
    return {name: value for name, value in spec.items() if name not in names}


def is_matched(spec: Mapping[str, Any]) -> bool:
    """Whether a method is plain LoRA of the size of per-head updates."""
    return class_of(spec) == "MatchedLoRA"
