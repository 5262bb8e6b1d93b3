"""Where runs look: attention of the class token and rollout, side by side on the same images.

Legend: B images, T tokens, g side of the grid of patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from headwise.analysis import style
from headwise.analysis.agreement import of_ranks, standard_ranks
from headwise.analysis.bands import COSINE, band
from headwise.analysis.changes import names_of, same_network
from headwise.analysis.made import Analysis
from headwise.analysis.opened import images_of
from headwise.analysis.switches import Batch
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.network.attending import Attention, attentions, rollout
from headwise.network.backbone import Backbone

if TYPE_CHECKING:
    from headwise.analysis.kinds import Options

SHOWN = 4
"""Images in the picture."""
MOST_BESIDE = 6
"""Networks in a picture, beside the one before tuning."""
PRETRAINED = "before tuning"
MOST_PAIRINGS = 199
"""Ways to pair different images, as many as of 200 images, spread over all of them."""


@dataclass(frozen=True)
class Looked:
    """Where one network looks.

    Attributes:
        maps: by kind, (B, g, g), each adding up to 1.
        correct: whether the class was found, (B,).
    """

    name: str
    maps: dict[str, Tensor]
    correct: Tensor


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Look at the same images with every run and with the network before tuning."""
    same_network(runs, "attention")
    for run in runs[1:]:
        if run.task.name != runs[0].task.name:
            raise ConfigError(
                f"attention shows runs on the same images: {runs[0].folder} is of {runs[0].task.name}, {run.folder} of "
                f"{run.task.name}; give runs of one task"
            )
    tokens: dict[str, int] = {}
    pretrained = runs[0].network(options.weights)
    images = images_of(runs[0], pretrained, options, kind="attention")
    looks = [looked(PRETRAINED, pretrained.eval(), images, tokens)]
    names = names_of(runs)
    for run, name in zip(runs, names, strict=True):
        net = pretrained if run is runs[0] else run.network(options.weights)
        *_, (_, last) = run.install(net)
        last.merge()
        looks.append(looked(name, net.eval(), images, tokens))
    table = _compare(looks)
    pixels, labels = (torch.cat(parts) for parts in zip(*images.first(SHOWN), strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pretrained.mean, pretrained.std))
    pictures = (pixels * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    figures: dict[str, Figure] = {}
    for kind in looks[0].maps:
        figures |= compared(looks, kind, pictures, labels)
    title = "Where the network looks, before and after tuning"
    return Analysis("attention", title, {"similarity": table}, figures, _sentences(table, options))


def looked(name: str, net: Backbone, images: Iterable[Batch], tokens: dict[str, int]) -> Looked:
    """Maps of one network.

    Args:
        images: normalised, in batches.
        tokens: of networks seen before, by name; this one's is added.

    Raises:
        ConfigError: if the number of tokens is another than theirs.
    """
    pieces: dict[str, list[Tensor]] = {}
    correct = []
    for part, labels in images:
        blocks, logits = attentions(net, part)
        tokens[name] = blocks[-1].num_tokens
        for other, count in tokens.items():
            if count != tokens[name]:
                raise ConfigError(
                    f"{name} has {tokens[name]} tokens, {other} has {count}: prompts change the token count, so their "
                    "maps cannot be laid side by side; allowed: methods without prompts"
                )
        prefix = int(getattr(net.model, "num_prefix_tokens", 0)) if blocks[0].windows is None else 0
        for kind, values in maps_of(blocks, prefix).items():
            pieces.setdefault(kind, []).append(values)
        correct.append(logits.argmax(-1) == labels)
    return Looked(name, {kind: torch.cat(parts) for kind, parts in pieces.items()}, torch.cat(correct))


def maps_of(blocks: list[Attention], prefix: int) -> dict[str, Tensor]:
    """Maps over the patches, (B, g, g) each, adding up to 1.

    Args:
        prefix: tokens before those of the patches, the class token first; 0 where there is none, and all tokens' mean
            is taken for its attention.
    """
    shares = rollout(blocks)
    last = blocks[-1]
    if prefix:
        maps = {"class token": last.weights.mean(1)[:, 0, prefix:], "rollout": shares[:, 0, prefix:]}
    else:
        maps = {"attention received": last.received(), "rollout": shares.mean(1)}
    return {kind: _square(values, blocks, kind) for kind, values in maps.items()}


def _square(values: Tensor, blocks: list[Attention], kind: str) -> Tensor:
    windows = blocks[0 if kind == "rollout" else -1].windows
    side = int(values.shape[1] ** 0.5)
    height, width = windows.grid if windows is not None else (side, values.shape[1] // max(side, 1))
    if height * width != values.shape[1]:
        raise ConfigError(f"{values.shape[1]} tokens of patches are no square grid, so they have no place in a map")
    whole = values / values.sum(1, keepdim=True)
    return whole.view(-1, height, width)


def _compare(looks: Sequence[Looked]) -> pd.DataFrame:
    """How alike two networks' maps of an image are, beside maps of two different images (the null).

    Both are means over the images; the null has one for each number of places by which one network's images move on,
    at most `MOST_PAIRINGS`.
    """
    rows = []
    for kind in looks[0].maps:
        for index, one in enumerate(looks):
            for other in looks[index + 1 :]:
                a, b = (seen.maps[kind].flatten(1).numpy() for seen in (one, other))
                ranks, others = standard_ranks(a), standard_ranks(b)
                places = np.unique(np.linspace(1, len(a) - 1, min(len(a) - 1, MOST_PAIRINGS)).round().astype(int))
                moved = [np.nanmean(of_ranks(ranks, np.roll(others, place, axis=0))) for place in places]
                apart = band(torch.tensor(moved), COSINE)
                rows.append(
                    {
                        "map": kind,
                        "one": one.name,
                        "other": other.name,
                        "images": len(a),
                        "spearman": float(np.nanmean(of_ranks(ranks, others))),
                        **{f"other_images{end}": float(v) for end, v in zip(("", "_low", "_high"), apart, strict=True)},
                        "total_variation": float(np.abs(a - b).sum(1).mean() / 2),
                    }
                )
    return pd.DataFrame(rows)


def compared(looks: Sequence[Looked], kind: str, pictures: NDArray[Any], labels: Tensor) -> dict[str, Figure]:
    """A row per image: the image, then every network's map over it, on one scale per image.

    The first network stands in every picture where there are too many for one.
    """
    high = [max(float(seen.maps[kind][row].max()) for seen in looks) for row in range(len(pictures))]
    first, others = looks[:1], looks[1:]
    return style.parted(
        kind.replace(" ", "_"),
        others,
        lambda part: _compared([*first, *part], kind, pictures, labels, high),
        MOST_BESIDE,
    )


def _compared(
    looks: Sequence[Looked], kind: str, pictures: NDArray[Any], labels: Tensor, high: Sequence[float]
) -> Figure:
    words = {"class token": "Attention of the class token in the last block", "rollout": "Attention rollout"}
    title = words.get(kind, "Attention that each token receives in the last block")
    with style.picture(len(pictures), len(looks) + 1, panel=(1.6, 1.6), title=title) as (made, axes):
        for row, picture in enumerate(pictures):
            axes[row, 0].imshow(picture)
            axes[row, 0].set_ylabel(f"class {int(labels[row])}")
            for axis, seen in zip(axes[row, 1:], looks, strict=True):
                axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1)
                side = pictures.shape[1] - 0.5
                image = axis.imshow(
                    seen.maps[kind][row].numpy(),
                    cmap=style.SEQUENTIAL,
                    alpha=0.65,
                    vmin=0,
                    vmax=high[row],
                    extent=(-0.5, side, side, -0.5),
                )
                if seen.name != PRETRAINED:
                    axis.set_xlabel("right" if seen.correct[row] else "wrong", fontsize=8)
                if row == 0:
                    axis.set_title(seen.name, fontsize=8)
            made.colorbar(image, ax=list(axes[row]), label="share of a patch", pad=0.01)
        axes[0, 0].set_title("image", fontsize=8)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    return made


def _sentences(table: pd.DataFrame, options: Options) -> list[str]:
    lines = []
    for row in table.itertuples():
        moved = f"{row.total_variation:.0%} of it moved"
        apart = f"{row.other_images:.2f} ({row.other_images_low:.2f} to {row.other_images_high:.2f})"
        lines.append(
            f"{row.map}, {row.one} against {row.other}: maps of the same image correlate by {row.spearman:.2f} "
            f"(Spearman, mean of {row.images} images of {options.split}), of different images by {apart}; {moved}."
        )
    lines.append("A high correlation of different images means that the place in the image decides, not what is there.")
    return lines
