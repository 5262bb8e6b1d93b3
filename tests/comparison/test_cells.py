"""Names and labels of records stay text: in Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

from headwise.comparison import cells, lineup, twins
from headwise.comparison.tables import tables
from headwise.report.formats import render
from headwise.report.page import report
from made_cases import each
from made_results import masked_suite, run

STRANGE = [
    "=cmd|' /C calc'!A0",
    "+1+cmd|x!A0",
    "-2+3+cmd|x!A0",
    "@SUM(1+1)*cmd|x!A0",
    "\t=1+1",
    "a | b | c",
    "a\\| b",
    "a\n| x | y |\n|---|---|",
    "a\r\n# heading",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://x.example/y.png)",
    '"><svg onload=alert(1)>',
    "\\input{/etc/passwd}",
    "\\write18{id}",
    "[1ex] & \\\\ \\hline",
    "* x",
    "100% $x^2$ #1 _a_ {b}",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
]
"""What a label, a variant or a note of a record may hold."""


def strange_suite(text: str) -> list[Any]:
    """Runs of every kind that repeat a text wherever one may stand."""
    found = masked_suite((0,))
    found += [run("hs_lora", seed=seed, accuracy=(70.0, 75.0 + seed)) for seed in (0, 1)]
    made = []
    for result in found:
        name = re.sub(r"[/\\\x00-\x1f\x7f]|\.\.", "", text).strip(" .") or "x"
        key = dataclasses.replace(result.key, method=f"{name}{result.key.method}"[:200], variant=name[:200])
        phases = [dataclasses.replace(phase, label=text) for phase in result.phases]
        config = {**result.config, "dataset": {**result.config["dataset"], "group": "natural", "note": text}}
        more = {"labels": [text], "machine": {"cpu": text}, "git": {"commit": text}, "versions": {text: text}}
        made.append(dataclasses.replace(result, key=key, phases=phases, config=config, request=text, **more))
    return made


def columns(line: str) -> int:
    """Cells of a line of a Markdown table, as GFM counts them."""
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@each("text", STRANGE)
def test_markdown_keeps_its_tables(text: str) -> None:
    results = strange_suite(text)
    pairs, notes = twins.pairs(results)
    made = [render(tables(results, text), "md"), lineup.markdown(lineup.lineups(results)), twins.markdown(pairs, notes)]
    for page in made:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", page)
        assert not re.search(r"<[A-Za-z/!?]", page)
        assert "](" not in page
        blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
        assert blocks
        for block in blocks:
            assert len({columns(line) for line in block.splitlines()}) == 1
        for line in page.splitlines():
            assert not line.strip() or line.startswith(("#", "- ", "|")) or line[0].isalpha(), line


@functools.cache
def page_of(text: str) -> str:
    return report(strange_suite(text), text)


@each("text", STRANGE)
def test_no_spreadsheet_computes_a_name(text: str) -> None:
    pages = [render(tables(strange_suite(text), text), "csv")]
    page = page_of(text)
    pages += [unquote(link) for link in re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', page)]
    assert len(pages) > 5
    for content in pages:
        for line in csv.reader(io.StringIO(content)):
            for cell in line:
                if cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and cell != "-":
                    float(cell)


@each("text", STRANGE)
def test_latex_is_escaped(text: str) -> None:
    page = render(tables(strange_suite(text), text), "latex")
    assert not re.search(r"\\(input|write|hline)", page)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", page)
    body = [line for line in page.splitlines() if line.endswith(r"\\")]
    assert body
    assert not any(line.startswith(("[", "*")) for line in body)


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@each("text", STRANGE)
def test_the_report_runs_nothing_of_a_record(text: str) -> None:
    page = Page()
    page.feed(page_of(text))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not page.handlers
    assert all(address.startswith(("#", "data:text/csv", "data:,")) for address in page.addresses)


@each(
    "given, kept",
    [
        ("=1+1", "'=1+1"),
        ("  @x", "'  @x"),
        ("-0.5", "-0.5"),
        ("+3", "+3"),
        ("-1e-3", "-1e-3"),
        ("-", "-"),
        ("-lora", "'-lora"),
        (-0.5, -0.5),
        (None, None),
        ("lora", "lora"),
        ("a=b", "a=b"),
    ],
)
def test_numbers_stay_numbers(given: Any, kept: Any) -> None:
    assert cells.in_csv(given) == kept
