"""The pictures of kind ``subspaces``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.updates.directions import Singular, cosines

if TYPE_CHECKING:
    from headwise.analysis.singular import Part

SIDES = {"left": "left (outputs)", "right": "right (inputs)"}


BAND = "random update (95 %)"
MOST_GROUPS = 8
"""Rows of a picture: projections of one shape."""
Both = tuple["Part", "Part"]
"""A projection whole, and by head."""


def draw(pieces: Sequence[Part]) -> dict[str, Figure]:
    """All of them by name."""
    wholes = [part for part in pieces if part.is_whole]
    heads = [part for part in pieces if not part.is_whole]
    pairs = list(zip(wholes, heads, strict=True))
    return {
        **{f"cosines_{whole.group.key}": _cosines(whole, part) for whole, part in pairs},
        **style.parted("layers", pairs, _layers, MOST_GROUPS),
        **style.parted("ranks", pairs, _ranks, MOST_GROUPS),
        **style.parted("heads", heads, _heads, MOST_GROUPS),
    }


def _cosines(whole: Part, heads: Part) -> Figure:
    """HS-LoRA's Figures 2 and 3 of the layer that changed most, below them a random update's."""
    head = int(heads.measures["relative"].value[heads.shown].argmax())
    leading = whole.ranks[-1]
    pick = [
        (whole.first, whole.tuned, whole.random, "whole matrix"),
        (*(Singular(*(t[head] for t in one)) for one in (heads.first, heads.tuned, heads.random)), f"head {head}"),
    ]
    title = f"Singular vectors of {whole.group.name}, layer {whole.group.layers[whole.shown]}, before and after"
    with style.picture(2, 4, panel=(2.1, 2.1), title=title, sharex=True, sharey=True) as (figure, axes):
        image: Any = None
        for column, (side, name, number) in enumerate((s, n, i) for i in (0, 1) for s, n in SIDES.items()):
            first, tuned, random, which = pick[number]
            for row, (after, said) in enumerate(((tuned, "tuned"), (random, "random update"))):
                table = cosines(getattr(first, side), getattr(after, side), leading).abs()
                axis = axes[row, column]
                image = axis.imshow(table.numpy(), cmap=style.SEQUENTIAL, vmin=0, vmax=1)
                diagonal = float(table.diagonal().mean())
                axis.set_title(f"{which}, {name}\n{said}: diagonal {diagonal:.3f}", fontsize=8, fontweight="normal")
                axis.locator_params(integer=True)
                style.bare(axis)
        figure.colorbar(image, ax=axes, label="absolute cosine", shrink=0.6)
        figure.supxlabel("singular vector after", fontsize=9, color=style.SOFT)
        figure.supylabel("singular vector before", fontsize=9, color=style.SOFT)
    return figure


def _layers(pairs: Sequence[Both]) -> Figure:
    """Mean absolute cosine of matching vectors, layer by layer."""
    title = "Matching singular vectors before and after"
    with style.picture(len(pairs), 2, panel=(3.6, 1.6), title=title, sharey=True, sharex="row") as (figure, axes):
        for row, both in enumerate(pairs):
            for axis, part in zip(axes[row], both, strict=True):
                for number, side in enumerate(SIDES):
                    measured = part.measures[f"{side}_match"]
                    shown = measured if part.is_whole else measured.mean([1])
                    _side(axis, range(len(part.group.layers)), shown, number, side)
                style.layer_ticks(axis, part.group.layers)
                axis.set_title(f"{part.group.name}, {'whole matrix' if part.is_whole else 'mean of the heads'}")
                axis.grid(axis="y")
        _named(axes, "layer", "mean |cosine|")
    return figure


def _ranks(pairs: Sequence[Both]) -> Figure:
    """Overlap of the leading spaces over their rank, mean of all layers."""
    title = "Overlap of the leading spaces before and after, mean of the layers"
    with style.picture(len(pairs), 2, panel=(3.6, 1.6), title=title, sharey=True, sharex=True) as (figure, axes):
        for row, both in enumerate(pairs):
            for axis, part in zip(axes[row], both, strict=True):
                for number, side in enumerate(SIDES):
                    measured = part.measures[f"{side}_overlap"]
                    _side(axis, part.ranks, measured.mean(range(measured.value.ndim - 1)), number, side)
                axis.set_xscale("log", base=2)
                axis.set_xticks(part.ranks, [str(rank) for rank in part.ranks])
                axis.minorticks_off()
                axis.set_title(f"{part.group.name}, {'whole matrix' if part.is_whole else 'heads'}")
                axis.grid(axis="y")
        _named(axes, "rank of the leading space", "overlap")
    return figure


def _side(axis: Any, x: Sequence[int], measured: Any, number: int, side: str) -> None:
    style.banded(axis, x, measured.value, measured.null, number, f"{SIDES[side]} singular vectors")


def _named(axes: Any, x: str, y: str) -> None:
    """Name the outer axes, and in the legend what bands are."""
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)
    axes[-1, -1].fill_between([], [], [], color=style.NULL, alpha=0.35, label=BAND)


def _heads(heads: Sequence[Part]) -> Figure:
    """Where the update is: size, effective rank, and how much more than at random the inputs' directions turned."""
    panels = (("relative", "size, share of the weight"), ("effective_rank", "effective rank"))
    num_layers = max(len(part.group.layers) for part in heads)
    num_heads = max(part.group.num_heads for part in heads)
    size = (max(2.2, 0.18 * num_heads), max(1.4, 0.16 * num_layers))
    title = "Heads: size and rank of updates, and what turned beyond random ones"
    with style.picture(len(heads), 3, panel=size, title=title) as (figure, axes):
        for row, part in enumerate(heads):
            for axis, (name, said) in zip(axes[row], panels, strict=False):
                image = style.head_map(axis, part.measures[name].value, layers=part.group.layers)
                figure.colorbar(image, ax=axis)
                axis.set_title(f"{part.group.name}: {said}")
            turned = part.measures["right_match"]
            image = style.head_map(
                axes[row, 2],
                turned.value - turned.null.mean,
                layers=part.group.layers,
                diverging=True,
                marked=~turned.null.holds(turned.value) & ~turned.value.isnan(),
                said="outside the band of random updates (95 %)",
            )
            figure.colorbar(image, ax=axes[row, 2])
            axes[row, 2].set_title(f"{part.group.name}: right |cosine| - random's")
            axes[row, 0].set_ylabel("layer")
        for axis in axes[-1]:
            axis.set_xlabel("head")
    return figure
