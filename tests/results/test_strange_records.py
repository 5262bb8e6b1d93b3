"""A record that anybody may have written: it is read and works everywhere, or it is skipped by name and counted."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwise.comparison import gaps, lineup, twins
from headwise.comparison.tables import tables
from headwise.errors import HeadwiseError
from headwise.protocol.plan import still_holds
from headwise.report.formats import FORMATS, render
from headwise.report.page import report
from headwise.results import reading
from headwise.results.records import Result, ResultError
from headwise.results.store import PhaseStore, ResultStore
from headwise.runs.experiment import summary
from headwise.runs.ledger import Entry, Ledger, finished_requests
from headwise.runs.status import survey, text
from headwise.storage.plain import LIMIT
from made_cases import each
from made_results import few, full, gated, published_run, run

EXAMPLES = int(os.environ.get("HEADWISE_EXAMPLES", "6"))
"""Of each property; more are a matter of time."""
KINDS: dict[str, Callable[[], Result]] = {
    "two phases": lambda: run("hs_lora", accuracy=(70.0, 75.0)),
    "heads off": lambda: gated("heart_lora", 0, 90.5, 1),
    "few shots": few,
    "beside papers": lambda: published_run("lora", variant="x"),
}
BESIDE = [run("bi_lora", recipe={"m": "bi"}), run("lora", dataset="dtd", accuracy=(60.0,))]


def whole(kind: str) -> Result:
    """A record with every field filled."""
    made, more = KINDS[kind](), full()
    fields = {name: getattr(more, name) for name in ("versions", "git", "machine", "request")}
    return dataclasses.replace(made, labels=["synthetic"], created="2026-01-31T12:00:00+00:00", **fields)


def use(root: Path, page: bool = True) -> reading.ReadResults:
    """Everything that reads a root of results."""
    found = reading.read(root)
    made = tables(found.results, "all", others=lambda: found.results)
    for form in FORMATS:
        render(made, form)
    if page:
        report(found.results, "all", found.damaged)
    lineup.markdown(lineup.lineups(found.results))
    twins.markdown(*twins.pairs(found.results))
    status = survey(root, {result.request or "x": ["seed=0"] for result in found.results}, [])
    text(status, "x")
    json.dumps(status.to_json(), allow_nan=False)
    finished_requests(root)
    for result in found.results:
        summary(result, found.results).encode()
        json.dumps(result.to_json(), allow_nan=False)
        still_holds(result)
        try:
            gaps.text(gaps.comparisons([result]))
        except HeadwiseError:  # nothing to compare it with
            continue
    return found


def stored(root: Path, result: Result) -> Path:
    """The record's file, in a root with two others."""
    store = ResultStore(root)
    for other in BESIDE:
        store.put(other.key, other)
    return store.put(result.key, result)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON; of a list the first two."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))[:2]
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


def put(raw: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy that holds `value` at a place."""
    if not at:
        return value
    raw = copy.deepcopy(raw)
    node = raw
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return raw


def drop(raw: Any, at: tuple[Any, ...]) -> Any:
    """A copy without what is at a place."""
    raw = copy.deepcopy(raw)
    node = raw
    for key in at[:-1]:
        node = node[key]
    del node[at[-1]]
    return raw


ODD = [None, True, -1, 0, 2**62, 10**17, 1.5, 1e308, -1e308, "", "x", "\n|=<b>", "\x00", "9" * 300, [], {}, [1, None]]
ODD += [[[]], {"x": None}, {"_target_": "os.system"}, "2026-01-01", "0001-01-01T00:00:00", [{}], {"a": {"b": [1.5]}}]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_record_changed_anywhere_works_or_is_refused(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "root", ignore_errors=True)
    file = stored(tmp_path / "root", whole(kind))
    raw = whole(kind).to_json()
    for _ in range(data.draw(st.integers(1, 2))):
        known = places(raw)
        at = data.draw(st.sampled_from(known))
        removed = at and data.draw(st.booleans()) and data.draw(st.booleans())
        raw = drop(raw, at) if removed else put(raw, at, data.draw(VALUES))
    file.write_text(json.dumps(raw))
    try:
        Result.read(file)
        is_read = True
    except ResultError as error:
        is_read = False
        assert str(file) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < len(str(file)) + 500
    found = use(tmp_path / "root", page=data.draw(st.booleans()))
    assert len(found.results) + len(found.damaged) == 3
    assert len(found.damaged) <= (0 if is_read and raw["method"] == file.parts[-5] else 1)


@each("kind", KINDS)
def test_every_field_of_another_kind_is_read_or_refused(kind: str) -> None:
    """Reading alone, at every place, with odd values of every kind."""
    file, raw = Path("result.json"), whole(kind).to_json()
    refused = 0
    for at in places(raw):
        for value in ODD[::3]:
            try:
                Result.from_json(put(raw, at, value), file)
            except ResultError:
                refused += 1
    assert refused > 100


def strange_texts() -> dict[str, bytes]:
    """Whole files, by what is wrong with them."""
    raw = whole("heads off").to_json()
    phase = raw["phases"][0]
    texts = {
        "labels": {**raw, "labels": [1, None]},
        "created": {**raw, "created": 5},
        "created long ago": {**raw, "created": "0001-01-01T00:00:00"},
        "versions": {**raw, "versions": "x"},
        "format 99": {**raw, "format": 99},
        "format true": {**raw, "format": True},
        "no phases": {**raw, "phases": []},
        "a phase": {**raw, "phases": ["x"]},
        "NaN": {**raw, "phases": [{**phase, "accuracy": float("nan")}]},
        "infinity": {**raw, "config": {"x": float("inf")}},
        "surrogates": {**raw, "labels": ["\ud800"]},
        "many": {**raw, "phases": [{**phase, "num_tunable": 10**17}]},
        "epochs true": {**raw, "phases": [{**phase, "epochs": True}]},
    }
    plain = json.dumps(raw)
    return {
        **{name: json.dumps(value).encode() for name, value in texts.items()},
        "digits": plain.replace('"seed": 0', f'"seed": {"9" * 5000}', 1).encode(),
        "digits in config": plain.replace('"config": {', f'"config": {{"x": {"9" * 5000}, ', 1).encode(),
        "exponent": plain.replace('"config": {', '"config": {"x": 1e999, ', 1).encode(),
        "long float": plain.replace('"config": {', f'"config": {{"x": {"9" * 400}.0, ', 1).encode(),
        "nested": plain.replace('"config": {', f'"config": {{"x": {"[" * 100}{"]" * 100}, ', 1).encode(),
        "nested endlessly": b"[" * 10**6,
        "not UTF-8": plain.encode().replace(b"synthetic", b"\xff\xfe"),
        "UTF-16": plain.encode("utf-16"),
        "empty": b"",
        "cut off": plain.encode()[:-20],
        "a list": b"[]",
        "a number": b"3",
    }


STRANGE = strange_texts()
CHOSEN = {"scale": 1.0, "ne": 0, "score": None, "fields": {"lr": 0.1}}


@each(
    "search, message",
    [
        ({"searched": ["_target_"]}, "searched must name fields of the method, got '_target_'"),
        ({"searched": ["lr", "label"]}, "got 'label'"),
        ({"searched": ["rnak"]}, "got 'rnak'"),
        (
            {"searched": ["lr", "_target_"], "chosen": {**CHOSEN, "fields": {"lr": 1, "_target_": "x"}}},
            "got '_target_'",
        ),
        ({"searched": ["rank"], "chosen": CHOSEN}, "got 'rank'"),
        ({"searched": ["lr"], "edges": ["rank"]}, "edges must be among what was searched, got 'rank'"),
        ({"searched": ["lr", "ne", "scale", "score"], "edges": ["lr", "ne"], "chosen": CHOSEN}, ""),
        ({"searched": ["lr"], "edges": []}, ""),
    ],
)
def test_a_search_names_nothing_but_fields(search: dict[str, Any], message: str) -> None:
    raw = whole("two phases").to_json()
    raw["phases"][1]["method"] = {"_target_": "x.Y", "label": "x", "rank": 2, "lr": 0.1}
    raw["phases"][1]["extra"]["search"] = {"num_trials": 2, **search}
    if not message:
        assert Result.from_json(raw, Path("result.json")).phases[1].searched == set(search["searched"])
        return
    with pytest.raises(ResultError, match=re.escape(message)) as caught:
        Result.from_json(raw, Path("result.json"))
    assert "\n" not in str(caught.value) and "phases" in str(caught.value)


@each("what", STRANGE)
def test_one_bad_record_is_skipped_by_name_and_counted(what: str, tmp_path: Path) -> None:
    file = stored(tmp_path, whole("heads off"))
    file.write_bytes(STRANGE[what])
    check_skipped(tmp_path, file, page=what == "labels")


@each("kind", ["folder", "pipe", "device", "loop", "huge", "unreadable"])
def test_what_is_no_file_is_skipped_as_well(kind: str, tmp_path: Path) -> None:
    file = stored(tmp_path, whole("heads off"))
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "huge":
        with file.open("wb") as stream:
            stream.truncate(LIMIT + 1)
    else:
        file.write_text(json.dumps(whole("heads off").to_json()))
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("this user may read everything")
    check_skipped(tmp_path, file, page=False)


def check_skipped(root: Path, file: Path, page: bool) -> None:
    (root / "index.jsonl").unlink()
    found = use(root, page)
    assert len(found.results) == 2
    assert found.damaged == [file.relative_to(root).as_posix()]
    assert "1 damaged record(s) count as missing" in found.notes[0]
    status = survey(root, {"r": ["seed=0"]}, [])
    assert status.damaged == found.damaged


LINES = [
    '{"path": 3}',
    "[]",
    "3",
    "{",
    "[" * 10**5,
    '{"path": []}',
    '{"path": "x", "stamp": [], "fingerprint": [], "request": {}}',
]


@each("line", LINES)
def test_the_index_is_a_cache_that_may_hold_anything(line: str, tmp_path: Path) -> None:
    file = stored(tmp_path, whole("two phases"))
    path = file.relative_to(tmp_path).as_posix()
    status = file.stat()
    known = {"path": path, "stamp": [status.st_size, status.st_mtime_ns], "fingerprint": 3, "request": ["x"]}
    (tmp_path / "index.jsonl").write_text(
        f"{line}\n{json.dumps(known)}\n{line}\n\udc80".encode("utf-8", "replace").decode()
    )
    assert len(use(tmp_path, page=False).results) == 3
    assert all(isinstance(line.request, str) for line in ResultStore(tmp_path).finished().values())


ENTRIES: list[Any] = [
    3,
    [],
    {},
    {"overrides": 3},
    {"overrides": [1]},
    {"overrides": [], "path": "../../x"},
    {"overrides": [], "path": "/etc"},
    {"overrides": [], "path": 3},
    {"overrides": [], "path": "runs/a/b/c/seed-x"},
    {"overrides": [], "failure": ["x"]},
    {"overrides": [], "surplus": 1},
    {"overrides": [], "path": "runs/../../../x/seed-0"},
]


@each("entry", ENTRIES)
def test_a_ledger_leads_nowhere_else(entry: Any, tmp_path: Path) -> None:
    root = tmp_path / "a" / "root"
    stored(root, whole("two phases"))
    ledger = Ledger(root)
    ledger.write("0123456789abcdef", Entry(overrides=("seed=0",)))
    ledger.path("0123456789abcdef").write_text(json.dumps(entry))
    before = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(root))
    status = survey(root, {"0123456789abcdef": ["seed=0"], "1" * 16: ["seed=1"]}, [])
    text(status, "x")
    assert not any(str(run.path).startswith(("/etc", str(tmp_path / "x"))) for run in status.runs)
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(root)) == before


@each("what", STRANGE)
def test_a_phase_that_cannot_be_read_counts_as_missing(what: str, tmp_path: Path) -> None:
    bad: list[ResultError] = []
    store = PhaseStore(tmp_path, on_bad=bad.append)
    file = store.finish("0123456789abcdef", whole("two phases").phases[0])
    file.write_bytes(STRANGE[what])
    assert store.finished("0123456789abcdef") is None
    assert [error.path for error in bad] == [file]
