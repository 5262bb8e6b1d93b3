"""Requests: what asks for a run, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headwise.protocol import request
from headwise.protocol.request import request_of


@pytest.fixture
def conf(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "lora.yaml").write_text("rank: 8\n")
    request._content.cache_clear()
    yield tmp_path
    request._content.cache_clear()


def test_order_place_and_manner_do_not_count(conf):
    asked = request_of(["method=lora", "seed=0"], [conf])
    assert len(asked) == 16
    assert request_of(["seed=0", "method=lora"], [conf]) == asked
    more = ["root=/x", "resume=force", "wait=false", "logger=wandb", "logger.offline=false", "trainer.progress=False"]
    assert request_of(["seed=0", *more, "hydra.verbose=true", "hydra/launcher=joblib", "method=lora"], [conf]) == asked
    assert request_of(["seed=1", "method=lora", "seed=0"], [conf]) == asked


@pytest.mark.parametrize("more", [["seed=1"], ["name=x"], ["protocol.epochs=1"], ["+method.scale=2"], ["experiment=e"]])
def test_what_chooses_counts(conf, more):
    assert request_of(["method=lora", *more], [conf]) != request_of(["method=lora"], [conf])


def test_the_content_of_the_configuration_counts(conf):
    before = request_of(["method=lora"], [conf])
    (conf / "method" / "lora.yaml").write_text("rank: 16\n")
    assert request_of(["method=lora"], [conf]) == before, "read once a process"
    request._content.cache_clear()
    assert request_of(["method=lora"], [conf]) != before


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("# What it is.\n\n# Cost: 3\nrank: 8\n", True),
        ("# @package _global_\n# What it is.\nrank: 8\n", False),
        ("# What it is.\nrank: 9\n", False),
        ("rank: 8\ntext: >-\n  # no comment\n", False),
    ],
)
def test_opening_comments_do_not_count(conf, text, same):
    before = request_of(["method=lora"], [conf])
    (conf / "method" / "lora.yaml").write_text(text)
    request._content.cache_clear()
    assert (request_of(["method=lora"], [conf]) == before) is same


def test_other_experiments_do_not_count(conf):
    def asked(experiment="mine"):
        request._content.cache_clear()
        return request_of(["method=lora", f"experiment={experiment}"], [conf])

    (conf / "experiment" / "of").mkdir(parents=True)
    for name, text in {"mine": "defaults: [of/base]\n", "of/base": "seed: 0\n"}.items():
        (conf / "experiment" / f"{name}.yaml").write_text(text)
    before = asked()
    (conf / "experiment" / "table.yaml").write_text("seed: 1\n")
    assert asked() == before
    assert asked("table") != before
    (conf / "experiment" / "of" / "base.yaml").write_text("seed: 1\n")
    after = asked()
    assert after != before, "its own defaults count"
    (conf / "experiment" / "mine.yaml").write_text("defaults: [of/base]\nseed: 2\n")
    assert asked() != after


def copied(place):
    source = Path(request.__file__).parents[1]
    shutil.copytree(source, place / "headwise", ignore=shutil.ignore_patterns("__pycache__", "synthetic", "assets"))
    return place


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One that each test leaves as it was, and what its code counts as, once that is known."""
    return copied(tmp_path_factory.mktemp("kept")), []


@pytest.mark.parametrize(
    ("module", "line", "same"),
    [
        ("protocol/plan", "x = 1", False),
        ("protocol/revisions", "x = 1", False),  # imported by the plan
        ("schema/kinds", "x = 1", False),  # imported by what it imports
        ("methods/_evolution", "x = 1", False),  # reads a field of a method's own
        ("protocol/revisions", "# a comment", True),
        ("protocol/revisions", 'def f() -> None:\n    """What it does."""\n    return', False),
        ("data/stores/tfds", "x = 1", True),
        ("results/store", "x = 1", True),
        ("methods/lora", "x = 1", True),  # a method that computes something else raises its revision
        ("report/page", "x = 1", True),
    ],
)
def test_code_that_decides_what_a_configuration_becomes_counts(kept, module, line, same):
    package, before = kept
    before[:] = before or [request._code(package)]
    file = package / "headwise" / f"{module}.py"
    text = file.read_text()
    file.write_text(f"{text}\n{line}\n")
    request._code.cache_clear()
    assert (request._code(package) == before[0]) is same
    file.write_text(text)


def test_a_new_module_counts_as_soon_as_it_is_imported(package):
    def code():
        request._code.cache_clear()
        return request._code(package)

    first, new = code(), package / "headwise" / "new.py"
    new.write_text("x = 1\n")
    assert code() == first
    plan = package / "headwise" / "protocol" / "plan.py"
    plan.write_text(f"{plan.read_text()}\nfrom headwise import new\n")
    imported = code()
    new.write_text("x = 2\n")
    assert len({first, imported, code()}) == 3


def test_docstrings_do_not_count(package):
    before = request._code(package)
    file = package / "headwise" / "protocol" / "revisions.py"
    file.write_text(file.read_text().replace('"""One change of numbers.', '"""Another text.'))
    request._code.cache_clear()
    assert request._code(package) == before
    assert "Another text" in file.read_text()


def test_what_is_apart_is_there(package):
    assert all((package / name.replace(".", "/")).with_suffix(".py").is_file() for name in request.APART)
