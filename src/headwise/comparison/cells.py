"""Text of records in files of other kinds: what a name or a label holds must not become syntax there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
"""Ends of lines, what moves a terminal's cursor, and what turns the direction of writing."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Beginnings of what a spreadsheet takes for a formula, blanks aside."""
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# "](" and "][" make a link of the text before them
_SHUT = re.compile(r"\](?=[(\[])")


def one_line(text: str) -> str:
    """The text without line ends and other control characters, a blank in their place."""
    return _CONTROL.sub(" ", text)


def in_csv(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would compute gets a quote before it; numbers stay numbers."""
    if not isinstance(value, str) or value == "-" or not value.lstrip(" ").startswith(_FORMULA):
        return value
    # "-0.5" begins like a formula, and is a number
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def in_markdown(text: str) -> str:
    """A sentence for Markdown: one line, no raw HTML, no link."""
    return _SHUT.sub(r"]\\", _TAG.sub("&lt;", one_line(text)))


def in_pipes(text: str) -> str:
    """A cell of a Markdown table: as `in_markdown`, and no bar that would end it."""
    # a backslash of the text before a bar would escape the backslash that escapes the bar
    return in_markdown(text).replace("\\|", "&#92;|").replace("|", "\\|")


def bullets(sentences: Iterable[str]) -> str:
    """A Markdown list of sentences, whatever they hold."""
    return "\n".join(f"- {in_markdown(sentence)}" for sentence in sentences)


def pipes(head: Sequence[str], body: Iterable[Sequence[str]], num_left: int = 1) -> list[str]:
    """Lines of a Markdown table, whatever its cells hold; columns after the first `num_left` are numbers."""
    rule = ["---" if place < num_left else "--:" for place in range(len(head))]
    lines = [[in_pipes(name) for name in head], rule, *([in_pipes(cell) for cell in line] for line in body)]
    return [f"| {' | '.join(line)} |" for line in lines]
