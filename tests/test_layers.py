"""Who may import whom, and a few things that no source file may do. One test for each rule."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "headwise"
TRAIN = PACKAGE.parents[1] / "train.py"
PLUGINS = PACKAGE.parent / "hydra_plugins"
FILES = {file.relative_to(PACKAGE).with_suffix("").as_posix(): file for file in PACKAGE.rglob("*.py")} | {
    "train": TRAIN,
    "plugin": PLUGINS / "headwise_sweeper.py",
    "sizes plugin": PLUGINS / "headwise_sizes.py",
}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(name: str, top_level_only: bool = False) -> set[str]:
    """Dotted names of everything a file imports; names taken from a module count as its children."""
    found: set[str] = set()
    nodes = _executed_on_import(tree(name)) if top_level_only else ast.walk(tree(name))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _executed_on_import(node: ast.AST) -> list[ast.AST]:
    """Nodes outside of functions and of ``if TYPE_CHECKING``."""
    nodes = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        nodes += [child, *_executed_on_import(child)]
    return nodes


def importers(library: str) -> set[str]:
    return {name for name in FILES if any(_is_part(module, library) for module in imported(name))}


def _is_part(module: str, library: str) -> bool:
    return module == library or module.startswith(f"{library}.")


def internal(name: str, top_level_only: bool = False) -> set[str]:
    """Files of the package that a file imports."""
    paths = (module.removeprefix("headwise.").replace(".", "/") for module in imported(name, top_level_only))
    return {path if path in FILES else f"{path}/__init__" for path in paths} & set(FILES)


def reached(name: str) -> set[str]:
    """Libraries that importing a file loads, through the package's own files."""
    seen, waiting, libraries = set(), [name], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        waiting += internal(current, top_level_only=True)
        libraries |= {module.partition(".")[0] for module in imported(current, top_level_only=True)}
    return libraries - {"headwise"}


def test_only_the_network_imports_timm() -> None:
    assert importers("timm") == {"backbone", "reading", "hub"}


def test_only_what_starts_runs_imports_hydra() -> None:
    assert importers("hydra") | importers("omegaconf") == {
        *(
            "plan",
            "messages",
            "naming",
            "overrides",
            "command",
            "experiment",
            "sweeps/sweep",
            "plugin",
            "sizes plugin",
            "train",
        )
    }


def test_only_prepare_imports_tensorflow() -> None:
    assert importers("tensorflow") <= {"data/prepare"}


def test_only_sources_and_generators_import_tensorflow_datasets() -> None:
    allowed = {
        name for name in FILES if name.startswith(("data/synthetic/", "data/sources", "data/tfds", "data/prepare"))
    }
    assert importers("tensorflow_datasets") <= allowed


def test_only_the_bridge_imports_peft() -> None:
    assert importers("peft") <= {"methods/peft_bridge", "adalora", "peftconfig"}


def test_only_nf4_imports_bitsandbytes() -> None:
    assert importers("bitsandbytes") == {"nf4"}
    assert "bitsandbytes" not in reached("nf4")  # optional: imported where it is asked for


METHODS = sorted(name for name in FILES if name.startswith("methods/") and not name.endswith("__init__"))
COMPOSITES = {"methods/hs_lora"}
SHARED_PARTS = {"methods/base", "methods/structural"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_know_no_runner(name: str) -> None:
    above = {"phasesteps", "training", "execution", "experiment", "results/store", "cli", "saved", "export"}
    assert {other for other in internal(name) if other in above or other.startswith("data/")} == set()


@pytest.mark.parametrize("name", sorted(set(METHODS) - COMPOSITES))
def test_methods_do_not_import_each_other(name: str) -> None:
    assert {other for other in internal(name) if other.startswith("methods/")} <= SHARED_PARTS


CORE = (
    "errors",
    "sites",
    "fused",
    "adapted",
    "lowrank",
    "qkv",
    "nf4",
    "backbone",
    "methods/base",
    "phasesteps",
    "training",
    "execution",
    "experiment",
)


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_a_chain(name: str) -> None:
    assert internal(name) & set(CORE[CORE.index(name) :]) == set()


STDLIB_ONLY = (
    "errors",
    "atomic",
    "results/fingerprint",
    "results/provenance",
    "results/claims",
    "results/records",
    "results/store",
    "sizes",
    "variants",
    "sweeps/request",
    "sweeps/ledger",
    "sweeps/lifeline",
    "sweeps/status",
    "presets",
    "tables/comparable",
    "tables/controls",
    "tables/printed",
    "tables/twins",
)


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_results_need_the_standard_library_only(name: str) -> None:
    assert reached(name) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["gate", "evolution", "protocol", "data/tasks", "schema/tree", "tables/compare"])
def test_what_a_configuration_means_needs_pydantic_and_no_more(name: str) -> None:
    assert reached(name) <= {*sys.stdlib_module_names, "pydantic", "typing_extensions"}


@pytest.mark.parametrize(
    "name",
    [
        "tables/build",
        "tables/beside",
        "tables/paired",
        "tables/layout",
        "tables/render",
        "tables/reading",
        "plots",
        "report/page",
        "data/sources",
        "data/labels",
        "experiment",
        "sweeps/sweep",
        "plugin",
        "sizes plugin",
        "train",
    ],
)
def test_torch_is_not_loaded(name: str) -> None:
    assert reached(name) & {"torch", "lightning", "timm", "tensorflow", "tensorflow_datasets"} == set()


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("data/")))
def test_data_knows_no_network(name: str) -> None:
    above = {"backbone", "adapted", "lowrank", "phasesteps", "training", "execution", "experiment"}
    assert {other for other in internal(name) if other in above or other.startswith("methods/")} == set()


def test_nothing_imports_the_runner() -> None:
    assert {name for name in FILES if "experiment" in internal(name)} <= {"train", "cli"}


def test_train_is_short() -> None:
    assert len(TRAIN.read_text().splitlines()) < 20


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_is_unsafe_or_overlong(name: str) -> None:
    source = FILES[name].read_text(encoding="utf-8")
    assert source.isascii()
    assert len(source.splitlines()) <= 400
    assert imported(name) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} == set()
    for node in ast.walk(tree(name)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert is no check of what a user gave"
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert options.get("weights_only") == "True", f"line {node.lineno}"
        if called in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False", f"line {node.lineno}"
        assert called not in ("eval", "exec"), f"line {node.lineno}"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not {name for name in FILES if Path(name).name in ("utils", "helpers", "common", "misc")}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "('torch', 'timm', 'lightning', 'pandas', 'matplotlib', 'hydra', 'tensorflow')"
    code = f"import sys, headwise; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
