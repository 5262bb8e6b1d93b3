"""Pictures are readable whatever is drawn: sizes of panels, words, scales of colours, legends."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from made_pictures import LONG, check_readable, heads_table, names, panels_of, sizes_of, words_of
from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.analysis.bands import Band
from headwise.analysis.looking import PRETRAINED, Looked, compared
from headwise.analysis.lorenz import Carried, curves
from headwise.analysis.responsive_pictures import MOST_RUNS, agreements, maps, matrix
from headwise.analysis.switches import Outcome
from made_cases import each

COUNTS = (1, 14)


@pytest.fixture(autouse=True)
def _no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "axes sizes collapsed to zero"
        yield


def legend(figure: Figure) -> str:
    return " ".join(text.get_text() for one in figure.legends for text in one.get_texts()).replace("\n", " ")


@each("diverging", [True, False])
@each(
    "values, color",
    [([[0.0, 0.0]], 0.0), ([[np.nan, 0.0]], 0.0), ([[3.0, 3.0]], 0.5), ([[3.0, np.nan]], 0.5), ([[1e-9, 1e-9]], 0.5)],
)
def test_what_does_not_vary_is_neutral(values: list[list[float]], color: float, diverging: bool) -> None:
    with style.picture(panel=(2, 2)) as (_, axes):
        image = style.head_map(axes[0, 0], values, layers=["0"], diverging=diverging)
    low, high = image.get_clim()
    largest = np.nanmax(np.abs(values))
    assert low == (-high if diverging else 0.0) and high >= largest
    shown = float(image.norm(largest))
    assert shown == pytest.approx(0.5 + color / 2 if diverging else color)
    if not largest and diverging:
        assert min(image.cmap(image.norm(0.0))[:3]) > 0.95, "white, not the deepest blue"


@each("values", [[[np.nan]], [[-1.0, 2.0]], [[0.5, 2.0]]])
def test_ends_of_a_scale(values: list[list[float]]) -> None:
    low, high = style.scale_of(values, diverging=True)
    assert -low == high == (2.0 if np.isfinite(values).any() else 1.0)
    low, high = style.scale_of(values)
    assert low == (-2.0 if values[0][0] == -1.0 else 0.0) and high > 0


def test_a_map_of_no_gain_is_white() -> None:
    table = heads_table(["a"]).assign(gain=0.0)
    (figure,) = maps(table, ["gain"], "A title", "alone").values()
    for axis in panels_of(figure):
        (image,) = axis.images
        assert min(image.cmap(image.norm(0.0))[:3]) > 0.95
        assert image.get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize("count", COUNTS)
def test_maps_of_many_runs(count: int) -> None:
    for projections in ("v", "qkv") if count < 10 else ("qv",):
        table = heads_table(names(count), projections, 2)
        figures = maps(table, ["loss_rise"], f"A long title of the whole picture, {LONG}", "truth")
        parts = -(-count // (style.MOST_PANELS // len(projections)))
        assert list(figures) == (["truth"] if parts == 1 else [f"truth-{i}" for i in range(1, parts + 1)])
        for figure in figures.values():
            check_readable(figure)
        panels = [axis for figure in figures.values() for axis in panels_of(figure)]
        assert len(panels) == count * len(projections)
        assert len({axis.images[0].get_clim() for axis in panels}) == 1, "one scale"
        sizes = [size for figure in figures.values() for _, size in sizes_of(figure)]
        assert sizes == pytest.approx([1.0] * len(sizes), abs=0.1), "the size does not depend on their number"


def test_runs_of_other_projections_leave_their_place_empty() -> None:
    table = pd.concat([heads_table(["a"], "qkv"), heads_table(["b"], "v")])
    (figure,) = maps(table, ["gain"], "A title", "alone").values()
    assert len(panels_of(figure)) == 4
    check_readable(figure)


def test_dead_heads_have_no_rank() -> None:
    table = heads_table(["a"]).assign(weight_l2=lambda t: t["taylor_neg"].abs())
    (figure,) = maps(table, ["loss_rise", "taylor_neg", "weight_l2"], "A title", "patterns").values()
    for axis in panels_of(figure):
        shown = np.ma.filled(axis.images[0].get_array(), np.nan)
        assert np.isnan(shown[:, -1]).all() and np.isfinite(shown[:, :-1]).all()
        assert len(axis.patches) == len(shown) and all(patch.get_hatch() for patch in axis.patches)
    ranks = np.concatenate([np.ma.filled(a.images[0].get_array(), np.nan)[:, :-1].ravel() for a in panels_of(figure)])
    assert ranks.max() == 1.0 and ranks.min() == pytest.approx(1 / 40), "the first and last of 40 live heads"
    assert style.ABSENT_WORDS in legend(figure)
    for color in (style.DIVERGING, style.SEQUENTIAL):
        colors = style.matplotlib.colormaps[color](np.linspace(0, 1, 256))[:, :3]
        assert np.abs(colors - matplotlib.colors.to_rgb(style.ABSENT)).sum(1).min() > 0.1 or color == style.DIVERGING


def agreement_rows(runs: list[str]) -> pd.DataFrame:
    scores = ("taylor_pos", "taylor_neg", "weight_l2")
    return pd.DataFrame(
        [
            {
                "run": run,
                "projections": "all",
                "truth": truth,
                "score": score,
                "spearman": 0.1 * place - 0.2,
                "low": -0.1 * (number % 5 + 1),
                "high": 0.1 * (number % 5 + 1),
            }
            for number, run in enumerate(runs)
            for truth in ("loss", "accuracy")
            for place, score in enumerate(scores)
        ]
    )


@each("count", COUNTS)
def test_each_run_has_its_own_band(count: int) -> None:
    rows = agreement_rows(names(count))
    figures = agreements(rows, "agreement")
    assert len(figures) == -(-count // MOST_RUNS)
    drawn = 0
    for figure in figures.values():
        check_readable(figure)
        axis = panels_of(figure)[0]
        spans = [segment[:, 0].tolist() for lines in axis.collections for segment in lines.get_segments()]
        drawn += len(spans)
        assert "band of random orders" in legend(figure)
    assert drawn == 3 * count, "a band beside each point"
    wanted = sorted({(low, high) for low, high in zip(rows["low"], rows["high"], strict=True)})
    assert count < 5 or len({tuple(span) for span in spans}) == len(wanted)


def test_a_correlation_that_is_not_there_is_hatched() -> None:
    scores = ("taylor_neg", "weight_l2", "accuracy_drop")
    rows = [
        {"run": "a", "one": one, "other": other, "spearman": np.nan if "accuracy_drop" in (one, other) else 0.5}
        for one in scores
        for other in scores
    ]
    figure = matrix(pd.DataFrame(rows))
    assert len(panels_of(figure)[0].patches) == 5 and "the same for all heads" in legend(figure)
    check_readable(figure)


def carried(name: str) -> Carried:
    none = Outcome(torch.zeros(4), torch.zeros(4))
    counts = [0, 1, 5, 100]
    values = np.array([0.0, 30.0, 50.0, 80.0])
    chooses = torch.tensor([True, False, True, False])
    random = np.stack([values / 3, values / 4])
    return Carried(name, (), (), none, none, chooses, "", 0.0, counts, values, values / 2, random)


@each("count", COUNTS)
def test_curves_of_many_runs(count: int) -> None:
    (figure,) = curves([carried(name) for name in names(count)], "curves").values()
    check_readable(figure)
    assert len(panels_of(figure)) == count
    assert all(width > 2.6 and height == pytest.approx(2.1, abs=0.1) for width, height in sizes_of(figure))


@pytest.mark.parametrize("count", (1, 7))
def test_attention_of_many_runs(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    looks = [
        Looked(name, {"rollout": torch.rand(3, 5, 5, generator=random)}, torch.ones(3))
        for name in (PRETRAINED, *names(count))
    ]
    figures = compared(looks, "rollout", np.random.default_rng(0).random((3, 20, 20, 3)), torch.arange(3))
    assert len(figures) == -(-count // 6)
    scales = set()
    for figure in figures.values():
        check_readable(figure)
        bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
        assert len(bars) == 3 and all(bar.get_ylabel() for bar in bars), "one of each row, since an image is a scale"
        by_row = np.reshape(panels_of(figure), (3, -1))
        assert PRETRAINED.split()[0] in by_row[0, 1].get_title(loc="left")
        for row in by_row:
            (scale,) = {axis.images[-1].get_clim() for axis in row[1:]}
            scales.add(scale)
    assert len(scales) == 3, "of an image the same in all pictures"


@each("count", [1, 2, 12])
def test_a_band_is_seen_over_a_single_place(count: int) -> None:
    values = torch.full((count,), 0.5)
    null = Band(values, values - 0.1, values + 0.1)
    with style.picture(panel=(3, 2)) as (figure, axes):
        style.banded(axes[0, 0], range(count), values, null, 0, "measured")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    band = np.abs(pixels - [199, 222, 237]).sum(-1) < 30  # the first colour at the band's strength
    assert band.sum() > 300


def test_lines_are_told_apart_without_colour() -> None:
    looks = [style.look(number) for number in range(98)]
    keys = {(one["color"], one["marker"], one["markerfacecolor"]) for one in looks}
    assert len(keys) == 98
    for start in range(0, 49, 7):
        assert len({one["marker"] for one in looks[start : start + 7]}) == 7


def test_more_than_a_picture_takes_is_split_evenly() -> None:
    drawn = style.parted("x", range(25), lambda part: list(part))  # type: ignore[arg-type, return-value]
    assert [(name, len(part)) for name, part in drawn.items()] == [("x-1", 13), ("x-2", 12)]  # type: ignore[arg-type]
    assert style.parted("x", [], lambda part: Figure()) == {}
    assert [style.across(count, 2.5) for count in (1, 2, 4, 5, 24)] == [1, 2, 4, 3, 4]
    assert style.across(3, 40.0) == 1, "a panel wider than a row stands alone"


def test_words_are_broken_where_names_are_put_together() -> None:
    text = style.wrapped(f"heart_lora, {LONG}\nseed 0", 1.5, 8)
    assert text.replace("\n", "").replace(" ", "") == f"heart_lora,{LONG}seed0"
    assert max(style._width(line, 8, "normal") for line in text.split("\n")) <= 1.5
    assert style.wrapped("x" * 200, 1.0, 8).replace("\n", "") == "x" * 200
    assert style.wrapped("", 1.0, 8) == "" and style.wrapped("a b", 9.0, 8) == "a b"


def test_words_of_a_picture_are_found() -> None:
    with style.picture(panel=(2, 2), title="The whole") as (figure, axes):
        axes[0, 0].set_title("a panel")
    assert {word for word, _ in words_of(figure)} == {"The whole", "a panel"}
