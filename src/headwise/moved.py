"""Names that modules and what is in them had before: records and users' own methods still say them.

``import headwise.lowrank`` gives a module that hands out what `headwise.updates.lowrank` has. Standard library only.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "headwise.adalora": ("headwise.methods._adalora",),
    "headwise.adapted": ("headwise.updates.adapted",),
    "headwise.atomic": ("headwise.storage.atomic",),
    "headwise.backbone": ("headwise.network.backbone",),
    "headwise.bottleneck": ("headwise.wrappers.bottleneck",),
    "headwise.catalog": ("headwise.methods._catalog",),
    "headwise.command": ("headwise.commands.command",),
    "headwise.data.cache": ("headwise.data.stores.cache",),
    "headwise.data.cachebuild": ("headwise.data.preparing.cachebuild",),
    "headwise.data.drawn": ("headwise.data.synthetic.drawn",),
    "headwise.data.fewshot": ("headwise.data.stores.fewshot",),
    "headwise.data.folder": ("headwise.data.stores.folder",),
    "headwise.data.listfiles": ("headwise.data.stores.listfiles",),
    "headwise.data.membership": ("headwise.data.stores.membership",),
    "headwise.data.prepare": ("headwise.data.preparing.prepare",),
    "headwise.data.prepared": ("headwise.data.stores.prepared",),
    "headwise.data.tfds": ("headwise.data.stores.tfds",),
    "headwise.data.tfds_aircraft": ("headwise.data.preparing.tfds_aircraft",),
    "headwise.data.upstream": ("headwise.data.preparing.upstream",),
    "headwise.evolution": ("headwise.methods._evolution",),
    "headwise.experiment": (
        "headwise.runs.experiment",
        "headwise.report.ending",
    ),
    "headwise.export": ("headwise.artifacts.export",),
    "headwise.fitting": ("headwise.methods._fitting",),
    "headwise.fused": ("headwise.updates.fused",),
    "headwise.gate": (
        "headwise.updates.gate",
        "headwise.protocol.filling",
    ),
    "headwise.gating": ("headwise.updates.masking",),
    "headwise.heads": ("headwise.updates.heads",),
    "headwise.hub": ("headwise.network.hub",),
    "headwise.installed": ("headwise.methods._installed",),
    "headwise.layouts": ("headwise.network.layouts",),
    "headwise.loops": ("headwise.training.machine",),
    "headwise.lowrank": ("headwise.updates.lowrank",),
    "headwise.memory": ("headwise.training.memory",),
    "headwise.messages": ("headwise.commands.messages",),
    "headwise.methods.structural": ("headwise.methods._structural",),
    "headwise.named": ("headwise.methods._named",),
    "headwise.naming": ("headwise.protocol.naming",),
    "headwise.nf4": ("headwise.network.nf4",),
    "headwise.overrides": ("headwise.commands.overrides",),
    "headwise.peftconfig": ("headwise.methods._peftconfig",),
    "headwise.pertask": ("headwise.protocol.pertask",),
    "headwise.phasemodule": ("headwise.training.module",),
    "headwise.phases": ("headwise.training.address",),
    "headwise.plan": ("headwise.protocol.plan",),
    "headwise.plots": ("headwise.report.pictures",),
    "headwise.portions": ("headwise.network.portions",),
    "headwise.presets": ("headwise.protocol.presets",),
    "headwise.progress": ("headwise.training.progress",),
    "headwise.prompting": ("headwise.wrappers.prompting",),
    "headwise.protocol": ("headwise.protocol.recipe",),
    "headwise.protocol.plan": ("headwise.protocol.job",),
    "headwise.published": ("headwise.artifacts.released",),
    "headwise.qkv": ("headwise.updates.qkv",),
    "headwise.quantize": ("headwise.updates.quantize",),
    "headwise.quantized": ("headwise.wrappers.quantized",),
    "headwise.reading": ("headwise.network.reading",),
    "headwise.report.gains": ("headwise.comparison.verdicts",),
    "headwise.results.claims": ("headwise.storage.claims",),
    "headwise.results.effective": ("headwise.schema.effective",),
    "headwise.results.plain": ("headwise.storage.plain",),
    "headwise.revisions": ("headwise.protocol.revisions",),
    "headwise.saved": ("headwise.artifacts.saved",),
    "headwise.search": ("headwise.protocol.search",),
    "headwise.secret": ("headwise.schema.secret",),
    "headwise.selection": ("headwise.training.selection",),
    "headwise.sites": ("headwise.updates.sites",),
    "headwise.sizes": ("headwise.commands.sizes",),
    "headwise.supernet": ("headwise.methods._supernet",),
    "headwise.sweeps.ledger": ("headwise.runs.ledger",),
    "headwise.sweeps.lifeline": ("headwise.runs.lifeline",),
    "headwise.sweeps.request": ("headwise.protocol.request",),
    "headwise.sweeps.status": ("headwise.runs.status",),
    "headwise.sweeps.sweep": ("headwise.runs.jobs", "headwise.runs.sweep"),
    "headwise.tables.beside": ("headwise.comparison.beside",),
    "headwise.tables.build": ("headwise.comparison.tables",),
    "headwise.tables.cells": ("headwise.comparison.cells",),
    "headwise.tables.comparable": ("headwise.comparison.comparable",),
    "headwise.tables.compare": ("headwise.comparison.gaps",),
    "headwise.tables.controls": ("headwise.comparison.controls",),
    "headwise.tables.layout": ("headwise.report.layout",),
    "headwise.tables.lineup": ("headwise.comparison.lineup",),
    "headwise.tables.paired": (
        "headwise.comparison.contrast",
        "headwise.comparison.paired",
        "headwise.comparison.verdicts",
    ),
    "headwise.tables.printed": ("headwise.comparison.printed",),
    "headwise.tables.reading": ("headwise.results.reading",),
    "headwise.tables.render": ("headwise.report.formats",),
    "headwise.tables.twins": ("headwise.comparison.twins",),
    "headwise.targets": ("headwise.schema.targets",),
    "headwise.tracker": ("headwise.runs.tracker",),
    "headwise.training": (
        "headwise.training.loop",
        "headwise.training.phase",
    ),
    "headwise.updates.adapted": ("headwise.wrappers.settling",),
    "headwise.updates.gate": ("headwise.protocol.filling",),
    "headwise.updates.settling": (
        "headwise.wrappers.settling",
        "headwise.updates.fused",
    ),
    "headwise.updates.sites": ("headwise.methods._stages",),
    "headwise.variants": ("headwise.protocol.variants",),
    "headwise.weights": ("headwise.storage.weights",),
    "headwise.wrapping": (
        "headwise.wrappers.wrapping",
        "headwise.updates.fused",
    ),
    "headwise.written": ("headwise.commands.written",),
}
"""By its old name, the modules in which a name of it is sought, in order.

A module that still stands, but of which something moved, is named here too.
"""
RENAMED: dict[str, dict[str, str]] = {
    "headwise.cli": {"Found": "ReadResults"},
    "headwise.comparison.costs": {"said": "in_words"},
    "headwise.comparison.gaps": {"Cell": "ComparedCell"},
    "headwise.comparison.lineup": {"Entry": "LineupRow"},
    "headwise.data.own": {"Entry": "ListedImage"},
    "headwise.data.preparing.prepare": {"Status": "SetState"},
    "headwise.data.stores.fewshot": {"Entry": "ListedImage"},
    "headwise.data.stores.folder": {"Entry": "ListedImage"},
    "headwise.data.stores.listfiles": {"Entry": "ListedImage"},
    "headwise.data.stores.prepared": {"Prepared": "PreparedSet"},
    "headwise.data.stores.tfds": {"Prepared": "PreparedSet"},
    "headwise.methods._catalog": {"Entry": "CatalogRow"},
    "headwise.methods.dylora": {"Drawn": "DrawnRank"},
    "headwise.protocol.revisions": {"Change": "ChangedNumbers"},
    "headwise.protocol.search": {"Found": "SearchOutcome"},
    "headwise.report.summary": {"Drawn": "DrawnPairs"},
    "headwise.results.reading": {"Found": "ReadResults"},
    "headwise.runs.status": {"Status": "SweepStatus"},
    "headwise.schema.tree": {"Part": "ConfigPart"},
    "headwise.storage.atomic": {"told": "errors_naming"},
    "headwise.training.phase": {"Prepared": "PreparedPhase"},
}
"""Of modules that stand, by an old name in it the one that it has now."""


def sought_in(old: str) -> Callable[[str], Any]:
    """``__getattr__`` of a module that stands for one that moved, or of which something moved or has another name.

    Args:
        old: a key of `MOVED` or `RENAMED`, or one of `PACKAGES`.
    """

    def attribute(name: str) -> Any:
        places = MOVED.get(old, ())  # of a package of which every module has moved, none
        if now := RENAMED.get(old, {}).get(name):
            return getattr(sys.modules[old], now)
        if not name.startswith("__"):
            for new in places:
                module = importlib.import_module(new)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(
            f"module {old!r} has no attribute {name!r}; it is {' and '.join(places) or 'elsewhere'} now"
        )

    return attribute


class _Stand(Loader):
    """Makes a module that stands for one that moved."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make it."""

    def exec_module(self, module: ModuleType) -> None:
        """Let it hand out what the new modules have."""
        module.__getattr__ = sought_in(module.__name__)  # type: ignore[method-assign]


class _Kept(SourceFileLoader):
    """Loads a module that stands, of which something moved or has another name."""

    def exec_module(self, module: ModuleType) -> None:
        """Run its code, then let it hand out what is asked for by an old name."""
        super().exec_module(module)
        module.__getattr__ = sought_in(module.__name__)  # type: ignore[method-assign]


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer for modules with old names, whether they stand or not."""
        if not (name in MOVED or name in RENAMED or name in PACKAGES):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None:
            return ModuleSpec(name, _Stand(), is_package=name in PACKAGES)
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Kept(spec.loader.name, spec.loader.path)
        return spec


PACKAGES = frozenset({"headwise.tables", "headwise.sweeps"})
"""Packages of which every module has moved."""


def install() -> None:
    """Let old names be imported, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
