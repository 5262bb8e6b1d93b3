"""Fingerprints: equal exactly when the numbers must be equal."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.results.fingerprint import IGNORED, differences, fingerprint, identity
from made_cases import each


def config() -> dict:
    return {
        "seed": 0,
        "root": "outputs",
        "name": "runs",
        "logger": {"dir": "somewhere"},
        "hydra": {"job": {"num": 3}},
        "labels": ["synthetic"],
        "method": {"label": "hs", "rank": 8, "first": {"label": "lora", "rank": 16, "checkpoint": None}},
        "dataset": {"name": "svhn", "labels": {"rule": "none"}},
        "data": {"root": "/somewhere/vtab", "workers": 4, "kind": "folder"},
        "trainer": {"precision": "32-true", "threads": 1, "enable_progress_bar": True},
    }


def test_fingerprint_ignores_order_and_spelling_of_numbers():
    assert fingerprint({"a": 1.0, "b": (1, 2)}) == fingerprint({"b": [1, 2.0], "a": 1})
    assert fingerprint({"lr": 1e-3}) == fingerprint({"lr": 0.001})
    assert fingerprint({"x": 0.0}) == fingerprint({"x": -0.0})


@each("other", [{"a": True}, {"a": "1"}, {"a": None}, {"a": 1.0000001}, {"a": [1]}, {}, {"A": 1}])
def test_fingerprint_tells_other_values_apart(other):
    assert fingerprint({"a": 1}) != fingerprint(other)


def test_fingerprint_is_stable_across_versions():
    expected = hashlib.sha256(b'{"a":{"b":[1,0.5,null,true,"x"]}}').hexdigest()
    assert fingerprint({"a": {"b": [1.0, 0.5, None, True, "x"]}}) == expected[:16]
    assert fingerprint({"a": {"b": [1.0, 0.5, None, True, "x"]}}, digits=64) == expected


@each(
    "value, text",
    [
        ({"a": {"b": {1}}}, r"a\.b is of type set"),
        ({"a": [0, Path("x")]}, r"a\.1 is of type .*Path.*hash of its content"),
        ({"a": {"lr": float("nan")}}, r"a\.lr is nan"),
        ({"a": {"lr": float("inf")}}, r"a\.lr is inf"),
        ({"a": {1: 2}}, r"a has the key 1 of type int"),
    ],
)
def test_fingerprint_rejects_what_json_cannot_hold(value, text):
    with pytest.raises(ConfigError, match=text):
        fingerprint(value)


def test_fingerprint_rejects_too_few_digits():
    with pytest.raises(ConfigError, match=r"8\.\.64, got 4"):
        fingerprint({}, digits=4)


def test_differences_gives_dotted_keys_with_both_values():
    a = {"method": {"rank": 8, "targets": ["q", "v"]}, "seed": 0, "same": 1.0}
    b = {"method": {"rank": 16, "targets": ["q"]}, "data": {"kind": "x"}, "same": 1, "seed": 0}
    assert differences(a, b) == [
        'data.kind: (absent) vs "x"',
        "method.rank: 8 vs 16",
        'method.targets: ["q", "v"] vs ["q"]',
    ]
    assert differences({"a": [{"x": 1}]}, {"a": [{"x": 2}]}) == ["a.0.x: 1 vs 2"]
    assert differences({"a": {}}, {"a": {"b": 1}}) == ["a: {} vs (absent)", "a.b: (absent) vs 1"]
    assert differences(a, a) == []


def test_identity_keeps_only_what_can_change_a_number():
    reduced = identity(config(), {"data.root": "sha256:abc", "backbone.weights": "sha256:def"})
    assert reduced == {
        "seed": 0,
        "method": {"rank": 8, "first": {"rank": 16, "checkpoint": None}},
        "dataset": {"name": "svhn", "labels": {"rule": "none"}},
        "data": {"root": "sha256:abc", "kind": "folder"},
        "trainer": {"precision": "32-true", "threads": 1},
        "backbone": {"weights": "sha256:def"},
    }


def test_identity_is_the_same_from_another_place_and_other_for_other_content():
    here, there = config(), config()
    there.update(root="elsewhere", name="again", logger=None, labels=[])
    there["data"].update(root="/mnt/vtab", workers=0)
    contents = {"data.root": "sha256:abc"}
    assert fingerprint(identity(here, contents)) == fingerprint(identity(there, contents))
    assert fingerprint(identity(here, contents)) != fingerprint(identity(here, {"data.root": "sha256:xyz"}))
    there["trainer"]["threads"] = 2
    assert fingerprint(identity(here, contents)) != fingerprint(identity(there, contents))


def test_identity_refuses_a_path_without_its_content():
    with pytest.raises(ConfigError, match=r"data\.root='/somewhere/vtab' says where files lie"):
        identity(config())


def test_identity_refuses_content_below_a_value():
    with pytest.raises(ConfigError, match="not a mapping"):
        identity({"backbone": "vit"}, {"backbone.weights": "abc"})


def test_every_ignored_key_has_a_reason():
    assert all(reason for reason in IGNORED.values())
