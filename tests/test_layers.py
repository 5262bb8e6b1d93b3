"""Who may import whom, and a few things that no source file may do. One test for each rule."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

from headwise import moved
from made_cases import each

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


@functools.cache
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


ROOMS = {
    "storage": set(),
    "schema": set(),
    "updates": {"schema"},
    "wrappers": {"updates"},
    "network": {"wrappers", "storage"},
    "methods": {"network"},
    "results": {"storage", "schema"},
    "data": {"storage", "schema"},
    "commands": {"storage", "schema"},
    "protocol": {"results", "data", "commands"},
    "training": {"protocol", "methods"},
    "comparison": {"protocol", "results"},
    "report": {"comparison"},
    "artifacts": {"training"},
    "runs": {"training", "report"},
    "analysis": {"artifacts", "report"},
}
"""By room those that it stands on; what these stand on, it may import as well."""
BESIDE = {("protocol", "updates/gate"), ("protocol", "updates/consistency")}
ANYONE = {"errors", "moved", "__init__"}
"""Modules that every room may import."""


def room_of(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def below(room: str) -> set[str]:
    """The rooms that a room may import from."""
    return {room}.union(*(below(other) for other in ROOMS[room]))


def test_every_module_has_a_room() -> None:
    assert {room_of(name) for name in FILES} - {""} == set(ROOMS)
    top = {name for name in FILES if "/" not in name} - {"train", "plugin", "sizes plugin"}
    assert top == ANYONE | {"cli"}


@each("room", ROOMS)
def test_a_room_imports_only_what_it_stands_on(room: str) -> None:
    upward = {
        f"{name} imports {other}"
        for name in FILES
        if room_of(name) == room
        for other in internal(name)
        if room_of(other) not in below(room) and other not in ANYONE and (room, other) not in BESIDE
    }
    assert upward == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    above: dict[str, set[str]] = {}

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in above:
            above[name] = internal(name, top_level_only=True)
            for other in sorted(above[name]):
                follow(other, (*path, name))

    for name in FILES:
        follow(name, ())


def test_only_the_network_imports_timm() -> None:
    assert {room_of(name) for name in importers("timm")} == {"network"}


def test_only_what_starts_runs_imports_hydra() -> None:
    allowed = {"protocol/plan", "protocol/naming", "protocol/job", "train", "plugin", "sizes plugin"}
    assert "protocol/described" not in importers("hydra")
    found = (importers("hydra") | importers("omegaconf")) - {"protocol/described"}
    assert {name for name in found if room_of(name) not in ("runs", "commands")} == allowed


def test_only_training_and_callbacks_of_methods_import_lightning() -> None:
    others = {name for name in importers("lightning") if room_of(name) not in ("training", "methods")}
    assert others == {
        "updates/masking",  # the callback of the gates
        "network/portions",
        "data/vtab",
        "artifacts/export",
    }


def test_only_prepare_imports_tensorflow() -> None:
    assert importers("tensorflow") <= {"data/preparing/prepare"}


def test_only_sources_and_generators_import_tensorflow_datasets() -> None:
    allowed = ("data/synthetic/", "data/stores/tfds", "data/preparing/prepare", "data/preparing/tfds")
    assert all(name.startswith(allowed) for name in importers("tensorflow_datasets"))


def test_only_the_bridge_imports_peft() -> None:
    bridge = ("peft_bridge", "_adalora", "_peftconfig", "_peftinstalled", "_peftsizes")
    assert importers("peft") <= {f"methods/{name}" for name in bridge}


def test_only_nf4_imports_bitsandbytes() -> None:
    assert importers("bitsandbytes") == {"network/nf4"}
    assert "bitsandbytes" not in reached("network/nf4")  # optional: imported where it is asked for


def test_onnx_is_loaded_where_it_is_asked_for() -> None:
    assert reached("artifacts/export") & {"onnx", "onnxruntime", "onnxscript", "transformers"} == set()


@each("room", ["storage", "results", "protocol", "comparison", "report", "commands", "schema"])
def test_a_room_of_words_and_numbers_never_imports_torch(room: str) -> None:
    heavy = {"torch", "lightning", "timm", "tensorflow", "peft"}
    assert {name: reached(name) & heavy for name in FILES if room_of(name) == room and reached(name) & heavy} == {}


def test_storage_needs_the_standard_library_only() -> None:
    names = [name for name in FILES if room_of(name) == "storage"]
    assert {name for name in names if not reached(name) <= set(sys.stdlib_module_names)} == set()


METHODS = sorted(name for name in FILES if name.startswith("methods/") and not name.rpartition("/")[2].startswith("_"))
COMPOSITES = {"methods/hs_lora"}


@each("name", sorted(set(METHODS) - COMPOSITES))
def test_methods_do_not_import_each_other(name: str) -> None:
    others = {other for other in internal(name) if other.startswith("methods/")}
    assert {other for other in others if not other.rpartition("/")[2].startswith("_")} <= {"methods/base"}


@each(
    "name",
    ["updates/gate", "updates/consistency", "methods/_evolution", "protocol/recipe", "data/tasks", "schema/tree"],
)
def test_what_a_configuration_means_needs_pydantic_and_no_more(name: str) -> None:
    assert reached(name) <= {*sys.stdlib_module_names, "pydantic", "typing_extensions"}


@each("name", ["data/sources", "data/labels", "runs/experiment", "runs/sweep", "plugin", "train"])
def test_torch_is_not_loaded(name: str) -> None:
    assert reached(name) & {"torch", "lightning", "timm", "tensorflow", "tensorflow_datasets"} == set()


def test_nothing_imports_the_runner() -> None:
    allowed = {"train", "cli", "runs/calling"}  # which is train.py, called from Python
    assert {name for name in FILES if "runs/experiment" in internal(name)} <= allowed


@each("package", sorted(moved.PACKAGES))
def test_a_package_that_is_gone_has_nothing_of_its_own(package: str) -> None:
    assert not hasattr(importlib.import_module(package), "x")


@each("old", sorted(moved.MOVED))
def test_old_names_still_lead_to_what_moved(old: str) -> None:
    for new in moved.MOVED[old]:
        assert new.removeprefix("headwise.").replace(".", "/") in FILES
    public = importlib.import_module(moved.MOVED[old][0])
    stand = importlib.import_module(old)
    for name, value in vars(public).items():
        if not name.startswith("_") and getattr(value, "__module__", "") == public.__name__:
            assert getattr(stand, name) is value


@each("module", sorted(moved.RENAMED))
def test_old_names_still_lead_to_what_has_another_name(module: str) -> None:
    stands = importlib.import_module(module)
    for old, now in moved.RENAMED[module].items():
        assert old not in vars(stands), "the name is taken again"
        assert getattr(stands, old) is vars(stands)[now]
    assert not hasattr(stands, "no_such_name")


def test_a_name_is_found_on_both_ways() -> None:
    from headwise.data.listfiles import Entry  # the module has moved, and its class has another name

    from headwise.data.stores.listfiles import ListedImage
    from headwise.protocol.plan import folders

    assert Entry is ListedImage
    assert folders.__module__ == "headwise.protocol.job"


def test_train_is_short() -> None:
    assert len(TRAIN.read_text().splitlines()) <= 20


@each("name", sorted(FILES))
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


LIGHT = {
    "headwise": ("torch", "timm", "lightning", "pandas", "matplotlib", "hydra", "tensorflow"),
    "headwise.analysis": ("torch", "matplotlib", "scipy"),
    "headwise.comparison.tables": ("torch",),
    "headwise.data.preparing.prepare": ("torch", "lightning", "tensorflow", "tensorflow_datasets", "hydra"),
    "headwise.report.formats": ("torch",),
    "headwise.report.pictures": ("torch",),
}
"""What importing a module must not load."""


@each("name", LIGHT)
def test_importing_a_module_loads_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}; sys.exit(any(heavy in sys.modules for heavy in {LIGHT[name]}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
