"""Costs: a column that is added in one place stands in every form of a table."""

from __future__ import annotations

import pytest

from headwise.comparison.costs import COSTS, Cost
from headwise.comparison.lineup import lineups, markdown, plain
from headwise.comparison.tables import tables
from headwise.report.formats import FORMATS, render
from headwise.report.page import report
from made_cases import each
from made_results import run

EXTRA = Cost("number of phases", lambda result: 31_000 + len(result.phases))


@pytest.fixture(autouse=True)
def _extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COSTS, "num_phases", EXTRA)


@each("form", sorted(FORMATS))
def test_a_new_column_is_in_every_format(form: str) -> None:
    text = render(tables([run(), run("other", accuracy=(1.0, 2.0))]), form)
    assert "num_phases" in text if form in ("csv", "json") else "number of phases" in text
    assert all(number in text.replace(",", "") for number in ("31001", "31002"))


def test_a_new_column_is_on_the_page_and_in_line_ups() -> None:
    page = report([run(), run(seed=1)])
    assert "number of phases" in page
    assert ">31,001</td>" in page
    made = lineups([run()])
    assert "| number of phases | accuracy % |" in markdown(made)
    assert plain(made)[0]["lines"][0]["num_phases"] == 31_001
