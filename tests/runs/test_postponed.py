"""What a run does not use is not loaded, and whoever uses it gets it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from made_networks import REPO

START = "import sys; from headwise.runs import postponed; postponed.postpone(); postponed.postpone()\n"


def printed(code: str, *words: str, **options: Path) -> list[str]:
    """Lines that a process of its own prints."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def whole() -> list[str]:
    """What a process says that has all that a run has; such a process takes seconds to start."""
    code = """
print(postponed._postponed('headwise_not_there'), postponed._postponed('torch'))
import headwise.runs.execution, headwise.report.ending, headwise.methods.hs_lora
unused = "scipy", "transformers", "torchmetrics.functional", "pandas", "tensorflow", "datasets", "wandb", "wandb.sdk"
print([name for name in unused if name in sys.modules])
import torch, torchmetrics
from torchmetrics import Metric
from headwise.updates.objective import average_precisions
import torchmetrics.metric
print(Metric is torchmetrics.metric.Metric, torchmetrics.__version__[0].isdigit(), hasattr(torchmetrics, "__no_such__"))
print(average_precisions(torch.tensor([[0.1], [0.9]]), torch.tensor([[0], [1]])))
print(issubclass(torchmetrics.Accuracy(task="binary").__class__, Metric))
import wandb.sdk.lib
print(callable(wandb.sdk.lib.RunDisabled), callable(wandb.init))
"""
    return printed(START + code)


def test_a_run_loads_none_of_them_and_whoever_uses_one_gets_it_whole(whole: list[str]) -> None:
    assert whole[1:] == ["[]", "True True False", "[100.0]", "True", "True True"]


FAKE = """
import importlib.util, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from headwise.runs import postponed
"""


def fake(folder: Path, **files: str) -> None:
    """A package torchmetrics of a few files."""
    (folder / "torchmetrics").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (folder / "torchmetrics" / f"{name}.py").write_text(text)


def test_a_release_whose_parts_lie_elsewhere_is_loaded_as_usual(tmp_path: Path) -> None:
    fake(tmp_path, __init__="from torchmetrics.base import Metric", base="class Metric: pass")
    code = "postponed._postpone_metrics(); from torchmetrics import Metric; print(Metric.__module__)"
    assert printed(FAKE + code, str(tmp_path)) == ["torchmetrics.base"]


@pytest.mark.parametrize("use", ["import fake_package.part", "from fake_package import NAME", "fake_package.NAME"])
def test_a_package_and_its_parts_run_once(tmp_path: Path, use: str) -> None:
    (tmp_path / "fake_package").mkdir()
    (tmp_path / "fake_package" / "__init__.py").write_text("print('whole')\nfrom fake_package.part import NAME\n")
    (tmp_path / "fake_package" / "part.py").write_text("print('part')\nNAME = object()\n")
    code = f"postponed._postponed('fake_package'); import fake_package; print('late'); {use}; fake_package.NAME\n"
    code += "import fake_package.part; print(fake_package.part.NAME is fake_package.NAME)"
    first = ["part", "whole"] if "part" in use else ["whole", "part"]
    assert printed(FAKE + code, str(tmp_path)) == ["late", *first, "True"]


def test_a_package_that_fails_says_so_to_all(tmp_path: Path) -> None:
    (tmp_path / "fake_package").mkdir()
    (tmp_path / "fake_package" / "__init__.py").write_text("HALF = 1\nraise ImportError('why')\n")
    code = """
postponed._postponed('fake_package')
import fake_package
for _ in range(2):
    for use in ("fake_package.init", "import fake_package"):
        try:
            exec(use)
        except ImportError as error:
            print(error)
"""
    assert printed(FAKE + code, str(tmp_path)) == ["why"] * 4


def test_another_thread_waits_until_a_package_is_whole(tmp_path: Path) -> None:
    (tmp_path / "fake_package").mkdir()
    text = "import time\nfrom fake_package import part\ntime.sleep(0.5)\nNAME = 1\n"
    (tmp_path / "fake_package" / "__init__.py").write_text(text)
    (tmp_path / "fake_package" / "part.py").write_text("")
    code = """
from concurrent.futures import ThreadPoolExecutor
postponed._postponed('fake_package')
import fake_package
with ThreadPoolExecutor(2) as pool:
    print(*pool.map(lambda _: fake_package.NAME, range(2)))
"""
    assert printed(FAKE + code, str(tmp_path)) == ["1 1"]


def test_a_module_that_is_no_package_and_parts_that_do_not_fit_are_loaded_as_usual(tmp_path: Path) -> None:
    fake(tmp_path, utilities="", collections="raise AttributeError('moved')")
    code = "postponed._postpone_metrics(); import torchmetrics.utilities; print(torchmetrics.utilities.__name__)"
    assert printed(FAKE + code, str(tmp_path)) == ["torchmetrics.utilities"]
    (tmp_path / "fake_module.py").write_text("")
    assert printed(FAKE + "print(postponed._postponed('fake_module'))", str(tmp_path)) == ["None"]


TIMM = """
def log():
    import wandb
    return wandb.NAME
try:
    import wandb
except ImportError:
    pass
"""


@pytest.mark.parametrize("use", ["timm.wandb.NAME", "timm.log()", "import wandb.part", "from wandb.part import NAME"])
def test_what_timm_would_log_to_is_loaded_whole_when_it_is_used(tmp_path: Path, use: str) -> None:
    (tmp_path / "timm.py").write_text(TIMM)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("print('whole')\nfrom wandb.part import NAME\n")
    (tmp_path / "wandb" / "part.py").write_text("print('part')\nNAME = object()\n")
    code = f"""
with postponed._stand_in("wandb"):
    import timm
print("wandb" in sys.modules, hasattr(timm.wandb, "__file__"))
{use}
import wandb
print(wandb.NAME is timm.wandb.NAME, wandb.part.NAME is timm.wandb.NAME)
"""
    assert printed(FAKE + code, str(tmp_path)) == ["False False", "whole", "part", "True True"]


def test_a_package_that_is_used_while_another_stands_in_for_it_is_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("NAME = 1\n")
    code = """
with postponed._stand_in("wandb"):
    import wandb
    print(wandb.NAME, sys.modules["wandb"] is wandb)
print(sys.modules["wandb"].__name__, sys.modules["wandb"].NAME)
with postponed._stand_in("wandb"), postponed._stand_in("not_there"):
    print(sys.modules["wandb"].__file__ is not None, "not_there" in sys.modules)
"""
    assert printed(FAKE + code, str(tmp_path)) == ["1 False", "wandb 1", "True False"]


def test_the_collector_rests_while_packages_load_and_leaves_them_alone() -> None:
    code = """
import gc
from headwise.runs import postponed
def states(load):
    frozen = gc.get_freeze_count()
    try:
        with postponed.loading():
            print(gc.isenabled(), end=" ")
            exec(load)
    except ImportError:
        pass
    print(gc.isenabled(), gc.get_freeze_count() > frozen)
states("import json.tool")
states("pass")  # a later run: what it made is collected as ever
states("import colorsys, no_such_module")  # with it the garbage of a run would be kept
def anew():
    gc.unfreeze()
    postponed._rested = False
anew()
states("import pipes, no_such_module")
anew()
gc.freeze()  # the user's own choice
states("pass")
anew()
gc.disable()
states("import sndhdr")
"""
    assert printed(code) == [
        "False True True",
        "True True False",
        "True True False",
        "False True True",
        "True True False",
        "False False False",
    ]


def test_what_is_missing_stays_missing(whole: list[str]) -> None:
    assert whole[0] == "None None"


SCRIPTS = sorted(file.name for file in (REPO / "scripts").glob("*.py"))
TRAINS = {"pretrain_nano.py"}
"""Of torch from its first line to its last."""


def test_no_script_loads_torch_to_say_what_it_takes() -> None:
    code = """
import contextlib, io, runpy, sys
for file in sys.argv[1:]:
    main = runpy.run_path(file)["main"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["--help"])
    print(*[name for name in ("torch", "lightning", "timm", "matplotlib", "tensorflow") if name in sys.modules])
"""
    files = [str(REPO / "scripts" / name) for name in SCRIPTS if name not in TRAINS]
    assert printed(code, *files) == [""] * len(files)


def test_a_command_that_trains_nothing_loads_no_torch(tmp_path: Path) -> None:
    code = """
import atexit, runpy, sys
atexit.register(lambda: print(*[n for n in ("torch", "lightning", "pandas", "matplotlib") if n in sys.modules], "."))
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code)
"""
    lines = printed(code, "train.py", "method=no_such_method", f"root={tmp_path}", cwd=REPO)
    assert lines[-2:] == ["1", "."]
