"""Pictures of the report: what lies over what."""

from __future__ import annotations

from headwise.report import figures


def test_an_interval_is_not_hidden_by_its_pairs() -> None:
    drawn = str(figures.strip([0.5] * 40, 0.5, (0.25, 0.75), 1.0, "t"))
    assert drawn.index('class="interval"') > drawn.rindex('class="pair many"')
    assert drawn.index('class="mean"') > drawn.index('class="interval"')
    assert "interval" not in str(figures.strip([0.5], 0.5, (None, None), 1.0, "t"))
