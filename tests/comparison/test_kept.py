"""Results in the documents: each has its records, or lies with those of older code and says so (issue line 30)."""

from __future__ import annotations

import json
import re
from collections import Counter

from headwise.protocol.revisions import changed_since
from headwise.results.records import Result
from made_cases import each
from made_networks import REPO

KEPT = REPO / "docs" / "results"
OLDER = KEPT / "older"
NO_RUNS = {"kill"}
"""What a benchmark wrote; no run of an experiment."""


def test_every_result_has_its_records() -> None:
    named = {file.stem for file in KEPT.iterdir() if file.is_file()} - NO_RUNS
    assert named == {folder.name for folder in (KEPT / "records").iterdir()}


def test_results_of_older_code_are_apart_and_say_so() -> None:
    page = (OLDER / "README.md").read_text(encoding="utf-8")
    names = {file.name for file in OLDER.iterdir()} - {"README.md"}
    assert names
    assert all(f"`{name}`" in page or f"`{name}/`" in page for name in names)


@each("page", ["docs/heart.md", "docs/results.md", "src/headwise/assets/vit_nano.md"])
def test_a_page_that_shows_older_results_says_so(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    assert "results/older" in text
    assert re.search(r"by older code", text)


def test_kept_records_of_older_code_are_those_that_the_documents_name() -> None:
    said = (REPO / "docs" / "results.md").read_text(encoding="utf-8")
    older: dict[str, Counter[str]] = {"methods": Counter(), "standins": Counter()}
    for experiment, counts in older.items():
        for file in sorted((KEPT / "records" / experiment).rglob("result.json")):
            result = Result.from_json(json.loads(file.read_text(encoding="utf-8")), file)
            counts[result.key.method] += bool(changed_since(result.identity.get("method")))
    assert +older["methods"] == {"houlsby_b8": 3, "spt_lora": 1}
    assert +older["standins"] == {
        "lora_then_lora": 3,
        "pissa_then_lora": 3,
        "dora_then_lora": 1,
        "adalora_then_lora": 1,
    }
    parts = [part for part in said.split("\n\n") if part.startswith("**Of older code**")]
    for counts, part in zip(older.values(), parts, strict=True):
        assert all(f"`{method}`" in part for method in +counts)
    assert (KEPT / "methods.md").read_text(encoding="utf-8").count("(older code)") == older["methods"].total()
