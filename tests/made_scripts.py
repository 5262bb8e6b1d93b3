"""Scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from made_networks import REPO

SCRIPTS = REPO / "scripts"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
