"""What a folder or a file from somebody else can do here: be read, or be refused. Nothing in it is run or imported."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headwise
from headwise.artifacts.export import evaluate, export_merged
from headwise.data.sources import SOURCES, source_of
from headwise.data.stores.prepared import check_features
from headwise.data.tasks import task_of
from headwise.errors import ConfigError, DataError, HeadwiseError
from headwise.methods import base
from headwise.methods.base import Method, build_method
from headwise.protocol.plan import plan_run, still_holds
from headwise.results.records import Result
from headwise.results.store import ResultStore
from headwise.schema import targets
from headwise.schema.targets import prefixes
from headwise.storage.hashes import file_sha256
from made_cases import each
from made_networks import CONF, compose_config, run
from made_words import QUIET

TINY = ["backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "protocol=smoke", "rank=r4"]
FAST = [*TINY, *QUIET]

PAYLOAD = """
from pathlib import Path
Path({marker!r}).write_text("imported")
from headwise.methods.base import Method

class X(Method):
    pass

class Pixels:
    fingerprint = labels = count = load = None
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWISE_CACHE", str(root / "cache"))
        run(compose_config(*FAST, "method=peft_lora", f"root={root}"))
    (file,) = root.glob("runs/**/result.json")
    return file.parent


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once code of the received folder has run; the folder can be imported from."""
    folder = tmp_path / "received"
    (folder / "got").mkdir(parents=True)
    marker = tmp_path / "it ran"
    (folder / "got" / "__init__.py").write_text("")
    (folder / "got" / "payload.py").write_text(PAYLOAD.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if not k.startswith("got")})
    return marker


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def targets_of(marker: Path) -> list[Any]:
    """What a record may say to be called: each would leave the marker."""
    bomb = marker.parent / "bomb"
    bomb.write_bytes(pickle.dumps(Bomb(marker)))
    victim = str(marker)
    return [
        {"_target_": "got.payload.X"},
        {"_target_": "got.payload.Pixels"},
        {"_target_": "torch.load", "f": str(bomb), "weights_only": False},
        {"_target_": "numpy.load", "file": str(bomb), "allow_pickle": True},
        {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(bomb)},
        {"_target_": "pickle.loads", "_args_": [bomb.read_bytes().decode("latin-1")]},
        {"_target_": "builtins.open", "file": victim, "mode": "w"},
        {"_target_": "shutil.copyfile", "src": str(bomb), "dst": victim},
        {"_target_": "os.mkdir", "path": victim},
        {"_target_": "os.system", "_args_": [f"touch '{victim}'"]},
        {"_target_": "pathlib.Path.write_text", "_args_": [victim, "x"]},
        {"_target_": "subprocess.check_call", "args": ["touch", victim]},
        {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.mkdir", "path": victim}},
        {"_target_": "functools.partial", "_args_": [{"_target_": "os.mkdir", "path": victim}]},
        {"_target_": "headwise.storage.atomic.write_text", "path": victim, "text": "x"},
        {"_target_": "headwise.data.sources.log.root.manager.os.mkdir", "path": victim},
        {"_target_": "headwise.methods.base.importlib.import_module", "name": "got.payload"},
        {"_target_": "headwise.methods.base.Path", "_args_": [victim]},
        {"_target_": "headwise.results.store.PhaseStore", "root": {"_target_": "os.mkdir", "path": victim}},
        {"_target_": "headwise.schema.targets.build", "spec": {"_target_": "os.mkdir", "path": victim}},
        {"_target_": {"_target_": "os.mkdir", "path": victim}},
        {"_target_": ["os", "mkdir"], "path": victim},
        {"_target_": None, "path": victim},
        {"_target_": "x" * 100_000},
        {"_target_": "got/payload.X"},
        {"_target_": "got.payload"},
        {"_target_": ".got.payload.X"},
        {"_target_": "headwise.methods.../got.payload.X"},
        {},
        [],
        None,
        "got.payload.X",
    ]


NUM_TARGETS = len(targets_of(Path(os.devnull).with_name("shm") / "none")) if Path("/dev/shm").is_dir() else 32
"""The same number for every marker."""
TRICKS: list[dict[str, Any]] = [
    {"_partial_": True},
    {"_args_": [1]},
    {"_recursive_": True},
    {"_convert_": "all"},
    {"__class__": "x"},
    {"not an identifier": 1},
]
"""Of hydra; no class of ours takes them."""


def edited(folder: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run whose record says something else."""
    shutil.copytree(folder, to)
    record = json.loads((to / "result.json").read_text())
    change(record)
    (to / "result.json").write_text(json.dumps(record))
    return to


@pytest.mark.parametrize("number", range(NUM_TARGETS))
def test_no_record_chooses_what_is_called(marker: Path, trained: Path, number: int, tmp_path: Path) -> None:
    target = targets_of(marker)[number]
    for place in ("dataset", "data"):
        folder = edited(trained, tmp_path / f"run-{place}", lambda r, p=place: r["config"].update({p: target}))
        assert not still_holds(Result.read(folder / "result.json"))
        with pytest.raises(ConfigError):
            evaluate(folder)
    for build in (task_of, source_of, lambda spec: build_method(spec, "x")):
        with pytest.raises(ConfigError) as caught:
            build(target)
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("number", range(NUM_TARGETS))
def test_no_run_imports_its_method(marker: Path, trained: Path, number: int, tmp_path: Path) -> None:
    target = targets_of(marker)[number]
    folder = edited(trained, tmp_path / "run", lambda r: r["phases"][0].update(method=target))
    nested = edited(trained, tmp_path / "nested", lambda r: r["phases"][0]["method"].update(config=target))
    for place in (folder, nested):
        for use in (headwise.load, evaluate, lambda run: export_merged(run, tmp_path / "out.safetensors")):
            with pytest.raises(HeadwiseError) as caught:
                use(place)
                assert len(str(caught.value)) < 2000
    assert not marker.exists()
    assert not (tmp_path / "out.safetensors").exists()


@each("trick", TRICKS)
def test_hydras_own_words_are_refused(trick: dict[str, Any]) -> None:
    cfg = compose_config(*TINY, "method=lora")
    for group, build in (("dataset", task_of), ("data", source_of), ("method", lambda spec: build_method(spec, "x"))):
        with pytest.raises(ConfigError, match=r"plain arguments only"):
            build({"_target_": cfg[group]["_target_"], **trick})


def test_a_nested_target_stays_text(marker: Path) -> None:
    call = {"_target_": "os.mkdir", "path": str(marker)}
    for spec in (
        {"_target_": "headwise.data.sources.FolderSource", "root": call},
        {"_target_": "headwise.data.sources.CacheSource", "root": call},
        {"_target_": "headwise.data.sources.AutoSource", "cache_dir": call},
    ):
        with pytest.raises(ConfigError):
            source_of(spec)
    with pytest.raises(ConfigError, match="rank of method 'x' must be a whole number of at least 1, got"):
        build_method({"_target_": "headwise.methods.lora.LoRA", "rank": call}, "x")
    assert not marker.exists()


def test_the_closed_tables_are_all_that_conf_names() -> None:
    """Every source, task and method that a configuration of ours can choose is rebuilt from a record."""
    named = {
        group: {
            line.partition(":")[2].strip()
            for file in (CONF / group).rglob("*.yaml")
            for line in file.read_text().splitlines()
            if line.startswith("_target_:")  # peft's own configs stand below theirs
        }
        for group in ("data", "method")
    }
    assert len(named["method"]) > 20
    assert named["data"] <= set(SOURCES)
    composites = {"headwise.methods.hs_lora.TwoPhase", "headwise.methods.hs_lora.Longer"}  # phases name their parts
    own = functools.partial(targets.below, Path(base.__file__).parent, "headwise.methods", Method)
    kinds = {target: own(target) for target in named["method"] - composites}
    assert all(kind is not None and issubclass(kind, Method) for kind in kinds.values())
    assert own("headwise.methods.base.Method") is Method
    assert own("headwise.methods.base.Backbone") is None  # imported there, and no method


def test_a_record_of_ours_still_holds() -> None:
    for data in ("synthetic", "auto"):
        cfg = compose_config(*TINY, f"data={data}", "method=lora")
        plan = plan_run(cfg)
        made = Result.from_json(
            json.loads(json.dumps(record_of(plan))),
            Path("result.json"),
        )
        assert still_holds(made)


def record_of(plan: Any) -> dict[str, Any]:
    from made_results import phase

    return Result(key=plan.key, identity=plan.identity, config=plan.config, phases=[phase()]).to_json()


def test_what_the_user_trusts_is_imported(marker: Path) -> None:
    with pytest.raises(ConfigError, match=r"'got\.payload\.X' is not a method of headwise.*trust='got'.*--trust got"):
        build_method({"_target_": "got.payload.X"}, "x")
    for trust in ("other", ["got.pay"], ("got.payload.X",), "g"):
        with pytest.raises(ConfigError, match="is not a method of headwise"):
            build_method({"_target_": "got.payload.X"}, "x", trust)
    assert not marker.exists()
    with pytest.raises(ConfigError, match=r"is not a method$"):
        build_method({"_target_": "got.payload.Pixels"}, "x", "got")
    assert marker.exists()


@pytest.mark.parametrize("bad", ["", ".", "a..b", "a b", "../x", [""], [3], ["a", None], "a.", "x\n"])
def test_trust_names_modules(bad: Any, trained: Path) -> None:
    with pytest.raises(ConfigError, match="trust names modules of your own"):
        headwise.load(trained, trust=bad)
    with pytest.raises(ConfigError, match="trust names modules of your own"):
        prefixes(bad)


@pytest.mark.parametrize(
    "name", ["model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"]
)
def test_a_backbone_names_no_other_file(name: str, trained: Path, tmp_path: Path) -> None:
    folder = edited(trained, tmp_path / "run", lambda r: r["config"]["backbone"]["overrides"].update({name: "x"}))
    with pytest.raises(ConfigError, match=rf"backbone\.overrides cannot hold {name}: "):
        headwise.load(folder)


@pytest.mark.parametrize("field", ["megatron_config", "megatron_core", "base_model_name_or_path", "revision"])
def test_peft_is_not_told_to_import_or_fetch(field: str, trained: Path, tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["phases"][0]["method"]["config"][field] = "got.payload"

    with pytest.raises(ConfigError, match=rf"config\.{field}: .* is not supported"):
        headwise.load(edited(trained, tmp_path / "run", change))


FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@each(
    "text",
    [
        json.dumps({"pythonClassName": "got.payload.X"}),
        json.dumps({"python_class_name": "got.payload.X"}),
        json.dumps({"type": "got.payload.X", "content": {}}),
        json.dumps({"pythonClassName": FEATURES, "featuresDict": {"features": {"x": {"pythonClassName": "os.x"}}}}),
        json.dumps([{"pythonClassName": 3}]),
        "3",
        "{",
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_prepared_set_names_no_class_of_others(text: str, tmp_path: Path) -> None:
    file = tmp_path / "features.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"features\.json: (names the class|is damaged)"):
        check_features(file)


def test_the_data_librarys_own_classes_pass(tmp_path: Path) -> None:
    file = tmp_path / "features.json"
    kinds = {"type": {"pythonClassName": FEATURES}, "x": {"tensor": {"dtype": "int64"}}}
    file.write_text(json.dumps({"pythonClassName": FEATURES, "featuresDict": {"features": kinds}}))
    check_features(file)


def test_only_files_are_hashed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="cannot hash"):
            file_sha256(path)


PLACES = ["/dev/zero", "{tmp}/pipe", "{tmp}", "../../../../etc/passwd", "{tmp}/none", "", "\0", "x" * 5000, 5, None, []]


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_paths_in_records_are_answered(place: Any, trained: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    if isinstance(place, str):
        place = place.replace("{tmp}", str(tmp_path))
    for index, change in enumerate(
        (
            lambda r: r["config"]["backbone"].update(weights=place),
            lambda r: r["config"].update(data={"_target_": "headwise.data.sources.FolderSource", "root": place}),
            lambda r: r["config"].update(data={"_target_": "headwise.data.sources.TFDSSource", "root": place}),
            lambda r: r["config"].update(data={"_target_": "headwise.data.sources.CacheSource", "root": place}),
            lambda r: r["config"]["method"].update(checkpoint=place),
        )
    ):
        folder = edited(trained, tmp_path / f"run-{index}", change)
        result = Result.read(folder / "result.json")
        assert not still_holds(result), index
        if index == 0 and place not in (None, 5):
            with pytest.raises(HeadwiseError):
                headwise.load(folder)
        if 0 < index < 4 and place is not None:
            with pytest.raises(HeadwiseError):
                evaluate(folder)


def test_a_received_root_is_swept_without_running_anything(trained: Path, marker: Path, tmp_path: Path) -> None:
    """The documented way: records that somebody kept are the root of a sweep."""
    root = tmp_path / "root"
    store = ResultStore(root)
    result = Result.read(trained / "result.json")
    for number, target in enumerate(targets_of(marker)):
        for place in ("data", "dataset"):
            key = dataclasses.replace(result.key, variant=f"{place}-{number}")
            config = {**result.config, place: target}
            store.put(key, dataclasses.replace(result, key=key, config=config))
    held = [still_holds(found) for found in store.all()]
    assert len(held) == 2 * NUM_TARGETS
    assert not any(held)
    assert not marker.exists()


def test_the_bomb_goes_off_where_nobody_looks(marker: Path) -> None:
    """The files of these tests are what they claim to be: read without care, each runs something."""
    targets_of(marker)
    pickle.loads((marker.parent / "bomb").read_bytes())
    assert marker.is_dir()
    marker.rmdir()
