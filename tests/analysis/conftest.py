"""Finished runs of a small network on drawn images, each trained once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from headwise.analysis import ground, style
from made_networks import compose_config, run
from made_words import QUIET


@contextlib.contextmanager
def _sketched(
    num_rows: int = 1, num_columns: int = 1, *, panel: Any = None, title: str = "", **options: Any
) -> Iterator[tuple[Figure, Any]]:
    made = Figure()
    yield made, made.subplots(num_rows, num_columns, squeeze=False, **options)


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures without the search for the size of panels and words, which takes most of an analysis's time.

    That is looked at in test_readable_pictures.py, and by tests of overlap and subspaces that draw as a user does.
    """
    monkeypatch.setattr(style, "picture", _sketched)
    monkeypatch.setattr(ground, "NULLS", 100)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the folder of a finished run: one epoch of a tiny network on drawn images, of what is named."""
    root = tmp_path_factory.mktemp("analysed")
    known: dict[tuple[str, ...], Path] = {}

    def trained(*words: str, backbone: str = "vit_nano") -> Path:
        overrides = (f"backbone={backbone}", *words)
        if overrides not in known:
            place = root / str(len(known))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HEADWISE_CACHE", str(root / "cache"))
                run(
                    compose_config(
                        "dataset=dsprites_loc",
                        "data=synthetic",
                        "protocol=smoke",
                        *([] if any("train_images" in word for word in words) else ["protocol.train_images=24"]),
                        *QUIET,
                        f"root={place}",
                        *overrides,
                    )
                )
            (known[overrides],) = (file.parent for file in place.glob("runs/**/result.json"))
        return known[overrides]

    return trained
