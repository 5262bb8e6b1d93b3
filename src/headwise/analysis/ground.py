"""Responsiveness of heads and its ground truth: what really happens when a head's update is switched off.

Legend: U updates of heads, N images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from headwise.analysis.agreement import agreement, best_of, jaccard, jaccard_by_chance, spearman
from headwise.analysis.changes import names_of, same_network
from headwise.analysis.made import Analysis
from headwise.analysis.opened import (
    SCORE_NAMES,
    Opened,
    Place,
    head_columns,
    images_of,
    opened,
    place_of,
    recorded_masks,
    trained_on,
)
from headwise.analysis.responsive_pictures import agreements, maps, matrix
from headwise.analysis.switches import HeadUpdate, Outcome, greedy, toggled
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.results.fingerprint import leaves
from headwise.updates import heads
from headwise.updates.gate import Gate
from headwise.updates.sites import Site

if TYPE_CHECKING:
    from headwise.analysis.kinds import Options

TRUTHS = {"loss_rise": "loss", "accuracy_drop": "accuracy"}
"""Columns of what is true, larger where a head matters more, and their words."""
NULLS = 1000
"""Random orders behind a band: they cost nothing beside a forward pass."""
LEAST_HEADS = 3
NO_CHANGE = 2.0
"""Standard errors within which a head's effect is not told from none."""
CHANCE = float(2 * stats.norm.sf(NO_CHANGE))
"""Share of heads without any effect that lie outside all the same."""


@dataclass(frozen=True)
class Truth:
    """What switching each head's update off did, (U,) each, on N images.

    Attributes:
        loss_rise, loss_error: mean change of the loss, and its standard error over the images.
        accuracy_drop: percent points.
        loss, accuracy: of the network with every update on.
    """

    loss_rise: Tensor
    loss_error: Tensor
    accuracy_drop: Tensor
    loss: float
    accuracy: float
    num_images: int

    @classmethod
    def of(cls, base: Outcome, without: Outcome) -> Truth:
        """The differences, image by image, of `toggled`."""
        rise = without.loss - base.loss
        count = rise.shape[-1]
        return cls(
            loss_rise=rise.mean(-1),
            loss_error=rise.std(-1) / count**0.5,
            accuracy_drop=base.accuracy - without.accuracy,
            loss=float(base.mean_loss),
            accuracy=float(base.accuracy),
            num_images=count,
        )


@dataclass(frozen=True)
class Examined:
    """One run: its name in the tables, its scores, and what is true."""

    name: str
    opened: Opened
    truth: Truth
    split: str
    steps: Sequence[tuple[HeadUpdate, float, float]] = ()

    @property
    def updates(self) -> tuple[HeadUpdate, ...]:
        """Of all heads, in network order."""
        return self.opened.switches.updates

    @property
    def live(self) -> NDArray[np.bool_]:
        """Whether each is there to be ordered, (U,): of a head that a gate left off, nothing is."""
        return np.array([update in self.opened.switches.live for update in self.updates])

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Truths and scores, (U,), by name."""
        truths = {name: getattr(self.truth, name) for name in TRUTHS}
        return {name: values.double().numpy() for name, values in {**truths, **self.opened.scores}.items()}


def analyse(runs: Sequence[SavedRun], options: Options) -> Analysis:
    """Measure every run, and compare scores, runs and what is true."""
    same_network(runs, "responsiveness")
    examined = [_measure(run, name, options) for run, name in zip(runs, names_of(runs), strict=True)]
    table = pd.concat([heads_table(one) for one in examined], ignore_index=True)
    tables = {
        "heads": table,
        "agreement": pd.DataFrame([row for one in examined for row in against_truth(one, options.seed)]),
        "between_scores": pd.DataFrame([row for one in examined for row in between_scores(one)]),
    }
    chosen = [row for one in examined for row in masks(one, options.seed)]
    images = [row for one in examined for row in by_images(one)]
    between = [row for pair in itertools.combinations(examined, 2) for row in between_runs(*pair, options.seed)]
    steps = [
        {"run": one.name, "step": step, "head": update.key, "loss": loss, "accuracy": accuracy}
        for one in examined
        for step, (update, loss, accuracy) in enumerate(one.steps, 1)
    ]
    tables |= {
        name: pd.DataFrame(rows)
        for name, rows in {"masks": chosen, "images": images, "between_runs": between, "greedy": steps}.items()
        if rows
    }
    figures = {
        **maps(table, ["loss_rise"], "Rise of the loss when a head's update is switched off", "truth"),
        **maps(table, ["taylor_neg"], "Responsiveness: Taylor score, larger where the head helps", "responsiveness"),
        **agreements(tables["agreement"], "agreement"),
        "scores": matrix(tables["between_scores"]),
    }
    for index, one in enumerate(examined, 1):
        name = "patterns" if len(examined) == 1 else f"patterns-{index}"
        columns = [*TRUTHS, *one.opened.scores]
        figures |= maps(table[table["run"] == one.name], columns, f"The same heads by every score: {one.name}", name)
    title = "Which heads' updates matter, and which score knows"
    return Analysis("responsiveness", title, tables, figures, sentences(examined, tables))


def _measure(run: SavedRun, name: str, options: Options) -> Examined:
    one = opened(run, options)
    if len(one.switches.live) < LEAST_HEADS:
        raise ConfigError(
            f"responsiveness orders heads by what their updates do, and {run.folder} has "
            f"{len(one.switches.live)} with an update; it needs {LEAST_HEADS} or more"
        )
    images = images_of(run, one.switches.net, options, kind="responsiveness")
    one.switches.suffix.check(next(iter(images))[0])
    base, without = toggled(one.switches, images, one.switches.updates, one.switches.updates)
    steps = greedy(one.switches, images, options.greedy) if options.greedy else []
    return Examined(name, one, Truth.of(base, without), images.split, steps)


def heads_table(examined: Examined) -> pd.DataFrame:
    """A line per head's update."""
    columns = {
        **head_columns(examined.opened.run, examined.name, examined.updates, examined.opened.switches.live),
        "loss_error": examined.truth.loss_error.tolist(),
        **examined.columns(),
        "split": examined.split,
        "images": examined.truth.num_images,
    }
    return pd.DataFrame(columns)


def against_truth(examined: Examined, seed: int) -> list[dict[str, Any]]:
    """Every score against both truths, over all heads and within each projection, each beside its null."""
    columns, projections = examined.columns(), np.array([update.site.proj for update in examined.updates])
    sets = {"all": examined.live, **{p: examined.live & (projections == p) for p in dict.fromkeys(projections)}}
    rows = []
    for (part, chosen), truth, score in itertools.product(sets.items(), TRUTHS, examined.opened.scores):
        count = int(chosen.sum())
        if count < 3 or (len(sets) == 2 and part != "all"):
            continue
        seen = agreement(columns[score][chosen], columns[truth][chosen], max(1, count // 10), NULLS, seed)
        named = {"run": examined.name, "truth": TRUTHS[truth], "projections": part, "score": score}
        rows.append({**named, **vars(seen), "is_chance": seen.is_chance, "draws": NULLS})
    return rows


def between_scores(examined: Examined) -> list[dict[str, Any]]:
    """Rank correlation of every pair of scores and truths over all heads."""
    columns = {name: values[examined.live] for name, values in examined.columns().items()}
    return [
        {"run": examined.name, "one": one, "other": other, "n": int(examined.live.sum()), "spearman": spearman(a, b)}
        for (one, a), (other, b) in itertools.product(columns.items(), repeat=2)
    ]


def by_images(examined: Examined) -> list[dict[str, Any]]:
    """Rank correlation of a score of the first images with that of all."""
    return [
        {
            "run": examined.name,
            "score": score,
            "images": count,
            "all_images": examined.opened.scored_on,
            "n": int(examined.live.sum()),
            "spearman": spearman(values[examined.live], examined.opened.scores[score][examined.live]),
        }
        for count, scores in examined.opened.by_images.items()
        for score, values in scores.items()
    ]


def masks(examined: Examined, seed: int) -> list[dict[str, Any]]:
    """Which heads a gate would switch off by each score, against those the truth would: half of every layer's.

    Nothing of a run whose heads are off already: those would go first by any score.
    """
    if not examined.live.all():
        return []
    rows = []
    for score, scope in itertools.product(examined.opened.scores, ("layer", "global")):
        gate = Gate(ratio=0.5, scope=scope)  # type: ignore[arg-type]
        by_score, right = (
            _tables(
                {place_of(s): mask.int().tolist() for s, mask in heads.choose(gate, _by_site(examined, values)).items()}
            )
            for values in (examined.opened.scores[score], examined.truth.loss_rise)
        )
        off = sum(int((mask == 0).sum()) for mask in by_score.values())
        mean, low, high = jaccard_by_chance(by_score, right, scope == "global", NULLS, seed)
        rows.append(
            {"run": examined.name, "scope": scope, "score": score, "off": off, "heads": len(examined.updates)}
            | {"jaccard": jaccard(by_score, right)}
            | {"jaccard_by_chance": mean, "jaccard_low": low, "jaccard_high": high}
        )
    return rows


def _tables(masks: Mapping[Place, Sequence[int]]) -> dict[tuple[int, str], NDArray[Any]]:
    """Masks of projections by stage and projection, (layers, H)."""
    layers: dict[tuple[int, str], list[Sequence[int]]] = {}
    for (stage, _, proj), mask in masks.items():
        layers.setdefault((stage, proj), []).append(mask)
    return {name: np.array(rows, dtype=int) for name, rows in layers.items()}


def _by_site(examined: Examined, values: Tensor) -> dict[Site, Tensor]:
    """Values of heads, (U,), by projection, (H,)."""
    rows: dict[Site, list[Tensor]] = {}
    for update, value in zip(examined.updates, values.float(), strict=True):
        rows.setdefault(update.site, []).append(value)
    return {site: torch.stack(row) for site, row in rows.items()}


def between_runs(one: Examined, other: Examined, seed: int) -> list[dict[str, Any]]:
    """Whether two runs agree on which heads matter, by every score and by what is true, and on the heads they gate."""
    places = [dict(zip(examined.updates, range(len(examined.updates)), strict=True)) for examined in (one, other)]
    live = one.opened.switches.live & other.opened.switches.live
    updates = [update for update in places[0] if update in live]
    if len(updates) < 3:
        return []
    chosen = [[known[update] for update in updates] for known in places]
    a, b = one.columns(), other.columns()
    named: dict[str, Any] = {
        "one": one.name,
        "other": other.name,
        "differ_in": differing(one.opened.run, other.opened.run),
    }
    named["same_group"] = one.opened.run.task.group == other.opened.run.task.group
    gates = [_tables(recorded_masks(examined.opened.run)) for examined in (one, other)]
    index, chance = float("nan"), (float("nan"),) * 3
    if all(gates) and gates[0].keys() == gates[1].keys():
        is_global = other.opened.run.result.phases[-1].gate.get("scope") == "global"
        index, chance = jaccard(*gates), jaccard_by_chance(gates[0], gates[1], is_global, NULLS, seed)
    named |= {"gates_jaccard": index}
    named |= dict(zip(("gates_by_chance", "gates_low", "gates_high"), chance, strict=True))
    rows = []
    for what in (name for name in a if name in b):
        k = max(1, len(updates) // 10)
        seen = agreement(a[what][chosen[0]], b[what][chosen[1]], k, NULLS, seed)
        rows.append({**named, "by": what, **vars(seen), "is_chance": seen.is_chance})
    return rows


def differing(one: SavedRun, other: SavedRun) -> str:
    """What two runs differ in: dataset, seed, method, and fields of the method of the last phase."""
    parts = [
        part
        for part in ("method", "dataset", "seed")
        if getattr(one.result.key, part) != getattr(other.result.key, part)
    ]
    specs = [leaves(run.result.phases[-1].method, "") for run in (one, other)]
    fields = sorted(name for name in {*specs[0], *specs[1]} if specs[0].get(name) != specs[1].get(name))
    return ", ".join([*parts, *fields]) or "nothing"


def sentences(examined: Sequence[Examined], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What is to be seen, the answer first."""
    lines = []
    rows = tables["agreement"]
    for one in examined:
        own = rows[(rows["run"] == one.name) & (rows["projections"] == "all") & (rows["truth"] == "loss")]
        lines.append(f"{one.name}: {_verdict(own, one)}")
        lines.append(f"{one.name}: {_effect(one)}")
    if "between_runs" in tables:
        lines += _across(tables["between_runs"])
    lines.append(
        f"A band is what {NULLS} random orders of the same heads give, 2.5 to 97.5 percent. The truth is the change of "
        "the mean loss with one update off and every other on; interactions of several heads are not in it."
    )
    return lines


def _verdict(rows: pd.DataFrame, examined: Examined) -> str:
    best = rows.loc[rows["spearman"].fillna(-2).idxmax()]
    signs = {row.score: row.spearman for row in rows.itertuples()}
    taylor = rows[rows["score"] == "taylor_neg"].iloc[0]
    sign = "the opposite of the printed one" if signs["taylor_neg"] > 0 else "the printed one"
    is_told = not (pd.isna(taylor["is_chance"]) or taylor["is_chance"])
    right = sign if is_told else "not to be told from chance here"
    n, low, high = int(best["n"]), taylor["low"], taylor["high"]
    scored = f"Scores are of {examined.opened.scored_on} training images."
    if pd.isna(best["spearman"]):
        return (
            f"over {n} heads' updates no score, or not the true rise of the loss, varies: there is no order. {scored}"
        )
    bound = best_of(len(rows), n)
    chance = f"stays below {bound:.2f}" if bound < 1 else f"reaches 1 as well: {n} heads are too few to tell"
    return (
        f"over {n} heads' updates the best score of the true rise of the loss is {SCORE_NAMES[best['score']]!r} "
        f"(Spearman {best['spearman']:.2f}; the best of {len(rows)} random orders {chance}; "
        f"{best['top']:.0%} of the top {int(best['k'])} shared, a random order "
        f"{best['top_low']:.0%} to {best['top_high']:.0%}). Taylor's sign that orders "
        f"by use is {right} (Spearman {signs['taylor_neg']:+.2f}, random orders {low:.2f} to {high:.2f}); its size "
        f"alone gives {signs['taylor_abs']:+.2f}. {scored}"
    )


def _effect(examined: Examined) -> str:
    truth = examined.truth
    sure = truth.loss_rise.abs() > NO_CHANGE * truth.loss_error
    worse, better = int((sure & (truth.loss_rise > 0)).sum()), int((sure & (truth.loss_rise < 0)).sum())
    learned = " (images the run was trained on)" if trained_on(examined.opened.run, examined.split) else ""
    where = examined.opened.switches.words(examined.updates[int(truth.loss_rise.argmax())])
    off = len(examined.updates) - int(examined.live.sum())
    gated = f"; {off} more have none" if off else ""
    return (
        f"on {truth.num_images} images of {examined.split}{learned} (loss {truth.loss:.4f}, accuracy "
        f"{truth.accuracy:.1f} %) switching one update off raises the loss beyond {NO_CHANGE:g} standard errors for "
        f"{worse} of {int(examined.live.sum())} heads and lowers it for {better} "
        f"(about {CHANCE * int(examined.live.sum()):.0f} of these by chance){gated}; the most needed is {where} "
        f"({float(truth.loss_rise.max()):+.4f})."
    )


def _across(rows: pd.DataFrame) -> list[str]:
    lines = []
    for by, words in (("loss_rise", "what is true"), ("taylor_neg", "the Taylor score")):
        for same, group in rows[rows["by"] == by].groupby("same_group"):
            kind = "of one task group" if same else "of different task groups"
            lines.append(
                f"By {words}, two runs {kind} correlate by {group['spearman'].mean():.2f} on average "
                f"({len(group)} pairs, random orders {group['low'].mean():.2f} to {group['high'].mean():.2f})."
            )
    return lines
