"""A package that lightning imports and a run hardly uses: its own code runs when something of it is asked for.

Lightning takes two classes of torchmetrics, which loads scipy, transformers and all that it measures with. These two
come alone; whoever asks for anything else gets the package as it is. Names such as ``__author__``, for which Python
asks every module, do not load it, as they would under importlib's ``LazyLoader``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
import threading
from typing import Any


def postpone() -> None:
    """Postpone torchmetrics if nobody has imported it yet; loads torch, which its classes need."""
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
