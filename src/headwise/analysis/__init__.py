"""Why a run is as it is: the papers' analyses, on any run, each number beside that of a random update.

One function per kind, for a notebook::

    from headwise import analysis

    made = analysis.subspaces("outputs/runs/hs_lora/svhn/base/seed-0", seed=1)
    made.figures["layers"], made.tables["matrices"], made.sentences
    made.write("outputs/figures/subspaces")

The functions are imported on first use, so that ``import headwise.analysis`` costs nothing.
"""

from __future__ import annotations

from typing import Any

from headwise.analysis.kinds import KINDS, Options, function

__all__ = ["KINDS", "Options"]


def __getattr__(name: str) -> Any:
    """A kind's function."""
    if name in KINDS:
        return function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; kinds of analysis: {', '.join(KINDS)}")
