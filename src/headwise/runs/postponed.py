"""Packages that a run imports and hardly uses: their own code runs when something of them is asked for.

Lightning takes two classes of torchmetrics, which loads scipy, transformers and all that it measures with; timm would
log to wandb, which only a run with that tracker does. Whoever asks for anything else gets the package as it is. Names
such as ``__author__``, for which Python asks every module, do not load it, as they would under ``LazyLoader``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_rested = False
"""Whether the collector has left something alone before in this process."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load packages at once: the collector of garbage rests, and leaves alone ever after what was loaded meanwhile.

    A module's code makes hundreds of thousands of objects that stay. Python would look through all of them again and
    again for cycles that nobody needs, while it loads and when it exits. Only the first time in a process: later, the
    garbage of a run would be kept with them, its network too.
    """
    global _rested
    # to count what is frozen takes as long as to look through it: it is asked once
    _rested = _rested or bool(gc.get_freeze_count())
    if _rested or not gc.isenabled():  # the user's own choice, or that of a caller
        yield
        return
    before = len(sys.modules)
    gc.collect()  # what is garbage by now would stay for good
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            _rested = True
        gc.enable()


@loading()
def postpone() -> None:
    """Postpone torchmetrics and timm's wandb if nobody has imported them; loads torch and timm."""
    _postpone_metrics()
    with _stand_in("wandb"):
        import headwise.network.backbone  # noqa: F401  with it comes timm


def _postpone_metrics() -> None:
    metrics = _postponed("torchmetrics")
    if metrics is None:
        return
    metrics._logger = logging.getLogger("torchmetrics")  # its parts come alone, and ask it for this
    try:
        import torchmetrics.utilities  # noqa: F401  first: it and `metric` import each other
        from torchmetrics.collections import MetricCollection
        from torchmetrics.metric import Metric
    except Exception:  # a release whose parts cannot come alone; those that came belong to no package
        for part in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[part]
    else:
        metrics.Metric, metrics.MetricCollection = Metric, MetricCollection


def _postponed(name: str) -> Any:
    """A package whose code runs when it is asked for what it does not have yet; None if it is loaded, or is none."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        return None
    module, loader, lock, loading = importlib.util.module_from_spec(spec), spec.loader, threading.RLock(), False

    def attribute(wanted: str) -> Any:
        nonlocal loading
        if wanted == "__version__":
            return importlib.metadata.version(name)
        if wanted.startswith("__") and wanted != "__all__":  # Python asks every module for such names
            raise AttributeError(wanted)
        with lock:  # other threads wait until it is whole
            if loading:  # its own code asks for what it has not come to
                raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
            if vars(module).get("__getattr__") is attribute:
                loading = True
                try:
                    loader.exec_module(module)
                except BaseException:  # whoever imports it again hears why
                    sys.modules.pop(name, None)
                    raise
                finally:
                    loading = False
                if vars(module).get("__getattr__") is attribute:
                    del module.__getattr__
        return getattr(module, wanted)

    module.__getattr__ = attribute  # type: ignore[method-assign]
    sys.modules[name] = module
    return module


@contextlib.contextmanager
def _stand_in(name: str) -> Iterator[None]:
    """Whoever imports a package meanwhile gets a module that imports it when something of it is asked for.

    Afterwards nobody else does: a package whose parts do not come without the whole is imported as usual.
    """
    if name in sys.modules or importlib.util.find_spec(name) is None:
        yield
        return
    module = types.ModuleType(name, "Imports the package of its name when something of it is asked for.")

    def attribute(wanted: str) -> Any:
        if wanted.startswith("__"):  # Python asks every module for such names
            raise AttributeError(wanted)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), wanted)

    module.__getattr__ = attribute  # type: ignore[method-assign]
    sys.modules[name] = module
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]
