"""Tables over thousands of runs: the benchmark runs, and what it promises holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from made_scripts import loaded


@pytest.fixture(scope="module")
def table_scale() -> Any:
    return loaded("table_scale")


def test_its_results_are_whole_families(table_scale: Any, tmp_path: Path) -> None:
    table_scale.write(tmp_path, 4 * 57)
    out = tmp_path / "table.json"
    found = table_scale.measure(tmp_path, out)
    assert found["megabytes"] > 0
    (table,) = json.loads(out.read_text())["tables"]
    assert {cell["column"] for cell in table["cells"]} >= {"mean_19", "mean_groups", "svhn"}
    assert {one["pairs"] for one in table["contrasts"]} == {57}
    assert len(table["answers"]) == 1


@pytest.mark.slow
def test_two_thousand_results(table_scale: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Seconds of the processor, so that a busy machine does not decide; the promise is of the wall clock."""
    file = tmp_path / "scale.json"
    table_scale.main(["--json", str(file)])
    record = json.loads(file.read_text())
    assert record["results"] == 2000
    for row in record["measured"].values():
        assert row["cpu_seconds"] < table_scale.MOST_SECONDS
        assert row["megabytes"] < table_scale.MOST_MEGABYTES
    assert "2000 results" in capfd.readouterr().out
