"""Tables in LaTeX, compiled: what a paper includes must be a page, whatever names and captions hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from headwise.comparison.tables import Table, tables
from headwise.report.formats import render
from headwise.report.selection import Selection
from made_cases import each
from made_results import masked_suite, run, suite

LATEX = shutil.which("pdflatex")
PAGE = r"""\documentclass{article}
%s
\begin{document}
\input{table.tex}
\end{document}
"""


def strange() -> list[Table]:
    evil = ["a_b & 100% #1 {x} ~^\\", "[0.5]", "*star", "--flag -1 \u00b1", "$x$"]
    return tables(
        [run(f"m{place} {name.replace(chr(92), '')}", accuracy=(70.0, 80.0)) for place, name in enumerate(evil)]
    )


def paper() -> list[Table]:
    return tables([*suite("lora"), *suite("hs_lora")])


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
@each("shown", [Selection(), Selection(is_short=True)])
@each("make", [strange, paper, lambda: tables(masked_suite())])
def test_tables_compile_and_fit_their_page(make: Callable[[], list[Table]], shown: Selection, tmp_path: Path) -> None:
    text = render(make(), "latex", shown)
    packages = re.findall(r"^% (\\usepackage.*)$", text, flags=re.MULTILINE)
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    (tmp_path / "page.tex").write_text(PAGE % "\n".join(packages))
    command = [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 0
    assert "Overfull" not in done.stdout
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")
