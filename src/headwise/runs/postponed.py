"""Packages that libraries import and a run hardly uses: their own code runs when something of them is asked for.

Lightning takes two classes of torchmetrics, which loads scipy, transformers and all that it measures with; timm tries
to import wandb for a function that nobody calls. Together they are a quarter of a small run. Nothing is replaced:
whoever asks for anything else of them gets the package as it is. Names such as ``__author__`` alone do not load it.
importlib's ``LazyLoader`` would load torchmetrics at once: an import of one of its parts asks for ``__path__``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
import threading
from typing import Any


def postpone() -> None:
    """Postpone what is installed and nobody has imported yet; loads torch, which torchmetrics' classes need."""
    _postponed("wandb")
    metrics = _postponed("torchmetrics")
    if metrics is None:
        return
    # its parts come alone, and ask it for this
    metrics.__path__, metrics._logger = metrics.__spec__.submodule_search_locations, logging.getLogger("torchmetrics")
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
    path = vars(module).pop("__path__")  # whoever imports a part asks for it

    def attribute(wanted: str) -> Any:
        nonlocal loading
        if wanted == "__version__":
            return importlib.metadata.version(name)
        if wanted.startswith("__") and wanted not in ("__all__", "__path__"):  # Python asks every module for such names
            raise AttributeError(wanted)
        with lock:  # other threads wait until it is whole
            if loading:  # its own code asks for what it has not come to
                raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
            if vars(module).get("__getattr__") is attribute:
                loading, module.__path__ = True, path
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
