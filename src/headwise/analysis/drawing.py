"""The pictures of kind ``subspaces``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from headwise.analysis import style
from headwise.analysis.directions import Singular, cosines

if TYPE_CHECKING:
    from headwise.analysis.singular import Part

SIDES = {"left": "left (outputs)", "right": "right (inputs)"}


def draw(pieces: Sequence[Part]) -> dict[str, Figure]:
    """All of them by name."""
    wholes = [part for part in pieces if part.is_whole]
    heads = [part for part in pieces if not part.is_whole]
    with style.styled():
        made = {f"cosines_{w.group.key}": _cosines(w, h) for w, h in zip(wholes, heads, strict=True)}
        return {**made, "layers": _layers(wholes, heads), "ranks": _ranks(wholes, heads), "heads": _heads(heads)}


def _cosines(whole: Part, heads: Part) -> Figure:
    """HS-LoRA's Figures 2 and 3 of the layer that changed most, below them a random update's."""
    head = int(heads.measures["relative"].value[heads.shown].argmax())
    figure, axes = style.figure(2, 4, size=(11.5, 6.0), sharex=True, sharey=True)
    leading = whole.ranks[-1]
    pick = [
        (whole.first, whole.tuned, whole.random, "whole matrix"),
        (*(Singular(*(t[head] for t in one)) for one in (heads.first, heads.tuned, heads.random)), f"head {head}"),
    ]
    image: Any = None
    for column, (side, name, number) in enumerate((s, n, i) for i in (0, 1) for s, n in SIDES.items()):
        first, tuned, random, which = pick[number]
        for row, (after, said) in enumerate(((tuned, "tuned"), (random, "random update"))):
            table = cosines(getattr(first, side), getattr(after, side), leading).abs()
            axis = axes[row, column]
            image = axis.imshow(table.numpy(), cmap=style.SEQUENTIAL, vmin=0, vmax=1)
            diagonal = float(table.diagonal().mean())
            axis.set_title(f"{which}, {name}\n{said}: diagonal {diagonal:.3f}", fontweight="normal")
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="absolute cosine", shrink=0.6)
    figure.supxlabel("singular vector after", fontsize=9, color=style.SOFT)
    figure.supylabel("singular vector before", fontsize=9, color=style.SOFT)
    figure.suptitle(
        f"Singular vectors of {whole.group.name}, layer {whole.group.layers[whole.shown]}, before and after"
    )
    return figure


def _layers(wholes: Sequence[Part], heads: Sequence[Part]) -> Figure:
    """Mean absolute cosine of matching vectors, layer by layer."""
    figure, axes = style.figure(len(wholes), 2, size=(9.5, 0.9 + 2.5 * len(wholes)), sharey=True, sharex="row")
    for row, both in enumerate(zip(wholes, heads, strict=True)):
        for axis, part in zip(axes[row], both, strict=True):
            x = range(len(part.group.layers))
            for number, side in enumerate(SIDES):
                measured = part.measures[f"{side}_match"]
                shown = measured if part.is_whole else measured.mean([1])
                style.banded(axis, x, shown.value, shown.null, number, SIDES[side])
            axis.set_xticks(x, part.group.layers)
            axis.set_title(f"{part.group.name}, {'whole matrix' if part.is_whole else 'mean of the heads'}")
            axis.grid(axis="y")
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean |cosine|")
    _legend(figure, axes)
    figure.suptitle("Matching singular vectors before and after")
    return figure


def _ranks(wholes: Sequence[Part], heads: Sequence[Part]) -> Figure:
    """Overlap of the leading spaces over their rank, mean of all layers."""
    figure, axes = style.figure(len(wholes), 2, size=(9.5, 0.9 + 2.5 * len(wholes)), sharey=True, sharex=True)
    for row, both in enumerate(zip(wholes, heads, strict=True)):
        for axis, part in zip(axes[row], both, strict=True):
            for number, side in enumerate(SIDES):
                measured = part.measures[f"{side}_overlap"]
                shown = measured.mean(range(measured.value.ndim - 1))
                style.banded(axis, part.ranks, shown.value, shown.null, number, SIDES[side])
            axis.set_xscale("log", base=2)
            axis.set_xticks(part.ranks, [str(rank) for rank in part.ranks])
            axis.minorticks_off()
            axis.set_title(f"{part.group.name}, {'whole matrix' if part.is_whole else 'heads'}")
            axis.grid(axis="y")
    for axis in axes[-1]:
        axis.set_xlabel("rank of the leading space")
    for axis in axes[:, 0]:
        axis.set_ylabel("overlap")
    _legend(figure, axes)
    figure.suptitle("Overlap of the leading spaces before and after, mean of the layers")
    return figure


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes[0, 0].get_legend_handles_labels()
    band = axes[0, 0].fill_between([], [], [], color=style.NULL, alpha=0.35)
    labels = [f"{label} singular vectors" for label in labels]
    figure.legend([*handles, band], [*labels, "random update (95 %)"], loc="outside lower center", ncols=3)


def _heads(heads: Sequence[Part]) -> Figure:
    """Where the update is: size, effective rank, and how much more than at random the inputs' directions turned."""
    panels = (("relative", "size, share of the weight"), ("effective_rank", "effective rank"))
    num_heads = max(part.group.num_heads for part in heads)
    height = 0.9 + sum(0.7 + max(1.4, 0.16 * len(part.group.layers)) for part in heads)
    figure, axes = style.figure(len(heads), 3, size=(3 * (1.9 + 0.12 * num_heads), height))
    for row, part in enumerate(heads):
        for axis, (name, said) in zip(axes[row], panels, strict=False):
            image = style.head_map(axis, part.measures[name].value, layers=part.group.layers)
            figure.colorbar(image, ax=axis)
            axis.set_title(f"{part.group.name}: {said}")
        turned = part.measures["right_match"]
        excess = turned.value - turned.null.mean
        outside = ~turned.null.holds(turned.value) & ~turned.value.isnan()
        image = style.head_map(axes[row, 2], excess, layers=part.group.layers, diverging=True, marked=outside)
        figure.colorbar(image, ax=axes[row, 2])
        axes[row, 2].set_title(f"{part.group.name}: right |cosine| - random's")
        axes[row, 0].set_ylabel("layer")
    for axis in axes[-1]:
        axis.set_xlabel("head")
    figure.suptitle("Heads: crosses lie outside the band of random updates")
    return figure
