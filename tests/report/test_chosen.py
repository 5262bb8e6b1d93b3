"""Tables for a paper: rows and columns by choice, other names, a short caption."""

from __future__ import annotations

import re

import pytest

from headwise.comparison.tables import Table, tables
from headwise.errors import ConfigError
from headwise.report.formats import left_out, notes_of, render
from headwise.report.selection import Selection, in_millions
from made_cases import each
from made_results import run, suite

MADE = [*suite("lora"), *suite("hs_lora"), *suite("dora")]


def lines(shown: Selection, form: str = "md") -> list[list[str]]:
    (table,) = tables(MADE)
    text = render([table], form, shown)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_rows_and_columns_stand_in_the_order_asked_for() -> None:
    head, _, *body = lines(Selection(rows=("hs_lora", "*lora"), columns=("mean_19", "parameters", "nat3")))[:4]
    assert head == ["method", "mean_19", "parameters", "nat3"]
    assert [line[0] for line in body] == ["hs_lora", "lora"]
    assert body[0][2] == "100" and body[0][3].startswith("53.50")


def test_names_are_replaced_and_those_of_other_tables_may_stand_there() -> None:
    shown = Selection(rows=("lora",), columns=("mean_19",), names={"lora": "LoRA (ours)", "mean_19": "Mean", "x": "y"})
    head, _, body = lines(shown)[:3]
    assert head == ["method", "Mean"] and body[0] == "LoRA (ours)"


def test_phases_of_a_task_are_columns_of_it() -> None:
    (table,) = tables([run("hs_lora", seed=seed, accuracy=(90.0, 91.0)) for seed in (0, 1)])
    both = render([table], "md", Selection(columns=("svhn",), names={"svhn": "SVHN"}))
    assert "| method | SVHN P1 | SVHN P2 |" in both
    assert "| method | svhn P2 |" in render([table], "md", Selection(columns=("svhn P2",)))


@each(
    "shown, message",
    [
        (Selection(rows=("hs_lor",)), "--rows: no row 'hs_lor' in the table (did you mean 'hs_lora'?)"),
        (Selection(columns=("mean19",)), "--columns: no column 'mean19' in the table (did you mean 'mean_19'?)"),
    ],
)
def test_what_the_table_lacks_is_refused(shown: Selection, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        lines(shown)


@each("form", ["csv", "json"])
def test_files_of_data_leave_nothing_out(form: str) -> None:
    with pytest.raises(ConfigError, match=f"are for md and latex; {form} holds everything"):
        render(tables(MADE), form, Selection(rows=("lora",)))


def test_a_short_caption_leaves_its_notes_to_another_file() -> None:
    (table,) = tables(MADE)
    text, notes = render([table], "latex", Selection(is_short=True)), notes_of([table], Selection(is_short=True))
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    assert "empty cell" not in caption and "empty cell" in notes
    assert len(caption) < 330 < len(notes) and "Test accuracy in percent" in caption
    assert all(note[:40] in notes for note in table.notes)
    assert text.count(r"\begin{table}") == 1


@each(
    "column, said",
    [
        (["718,848", "", "7,680"], ["0.72 M", "", "0.0077 M"]),
        (["480", "1,234 to 85,798,656", "0"], ["0.00048 M", "0.0012 M to 85.80 M", "0.00 M"]),
        (["718,848", "0.29 M", "0.29"], ["0.72 M", "0.29 M", "0.29"]),
        (["480", "7,680"], ["480", "7,680"]),
    ],
)
def test_one_column_of_counts_has_one_unit(column: list[str], said: list[str]) -> None:
    assert list(in_millions(column).values()) == said


def settings() -> list[Table]:
    """Two tables: the second has other weights, one method and one task."""
    return tables([*MADE, run("vpt", weights={"name": "another", "sha256": "cd"})])


@each("form", ["md", "latex"])
def test_a_pattern_has_to_match_in_one_table_only(form: str) -> None:
    both = render(settings(), form, Selection(rows=("lora", "vpt"), columns=("nat3", "svhn")))
    assert both.count("setting 1 of 2") >= 1 and both.count("setting 2 of 2") >= 1
    one = render(settings(), form, Selection(rows=("hs_*",)))
    assert "setting 1 of 2" in one and "setting 2 of 2" not in one
    assert "setting 1 of 2" not in render(settings(), form, Selection(columns=("svhn",)))


def test_a_pattern_that_matches_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("--rows: no row 'vtp' in any of the 2 tables (did you mean 'vpt'")):
        render(settings(), "md", Selection(rows=("lora", "vtp")))


def test_a_table_without_any_of_it_is_named_and_has_no_notes() -> None:
    made = [*tables(MADE, "one"), *tables(suite("pissa"), "two")]
    shown = Selection(rows=("pissa",), is_short=True)
    assert left_out(made, shown) == ["one"] and left_out(made, Selection()) == []
    notes = notes_of(made, shown)
    assert "## two" in notes and "## one" not in notes
