"""A finished run opened for measuring: its network with every head's update switchable, its images, its scores.

Legend: U updates of heads, B batch, S side of the network's input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from headwise.analysis.kinds import check_images
from headwise.analysis.switches import Batch, HeadUpdate, Rows, Switches, rows_of, with_heads
from headwise.artifacts.saved import SavedRun
from headwise.data.bulk import release
from headwise.data.pixels import Pixels
from headwise.data.tasks import PARTS
from headwise.data.vtab import VTABDataModule, to_tensor
from headwise.errors import ConfigError
from headwise.methods.base import Installed
from headwise.network.backbone import Backbone
from headwise.updates import heads
from headwise.updates.adapted import Delta
from headwise.updates.gate import SCORES, Gate
from headwise.updates.heads import Evidence
from headwise.updates.masking import HeadMasking
from headwise.updates.sites import Site

if TYPE_CHECKING:
    from headwise.analysis.kinds import Options

POOL = 8
"""Images are drawn from a fixed subset of so many times as many, whose pixels alone are read."""
UPDATE = "update_l2"
"""The score that needs no gradient and no factor: the norm of what the head's rows gained."""
DENSE = {"grad_l2": "dense_grad_l2"}
"""What a score is called where the update has no B of its own."""
SCORE_NAMES = {
    "taylor_pos": "Taylor, as printed",
    "taylor_neg": "Taylor, opposite sign",
    "taylor_abs": "Taylor, its size",
    "weight_l2": "norm of B",
    "grad_l2": "norm of B's gradient",
    DENSE["grad_l2"]: "norm of the weight's gradient",
    UPDATE: "norm of the update",
}
"""Every score in words."""


Scores = dict[HeadUpdate, dict[str, float]]
"""By head, its scores by name."""


@dataclass(frozen=True)
class Images:
    """Normalised batches of some images of a run, read again at each pass.

    Attributes:
        split: its name.
        data: says how they are resized and normalised.
        pixels: what they are drawn from, as stored.
        places: of the images among the pixels, in order, see `drawn`.
        batch_size: B.
    """

    split: str
    data: VTABDataModule
    pixels: Pixels
    places: NDArray[np.int64]
    batch_size: int

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            places = self.places[start : start + self.batch_size]
            images = to_tensor(self.pixels.images[places])
            release(self.pixels.images)
            yield self.data.preprocess(images), torch.from_numpy(np.array(self.pixels.labels[places]))

    def first(self, count: int) -> Images:
        """The first of them: these, too, are drawn from every class."""
        return replace(self, places=self.places[:count])


def drawn(labels: Any, count: int | None, seed: int) -> NDArray[np.int64]:
    """Places of random images, (N,) for labels (M,): each first part of them has of every class its share.

    Args:
        labels: in any order, as lists are sorted by class.
        count: N; None for all.
        seed: decides which, and their order.
    """
    labels, random = np.asarray(labels), np.random.default_rng(seed)
    mixed = random.permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    rank = np.concatenate([np.arange(size) for size in sizes])
    turns = (rank + random.random(len(labels))) / np.repeat(sizes, sizes)
    return by_class[np.argsort(turns, kind="stable")][:count]


def images_of(run: SavedRun, net: Backbone, options: Options, split: str | None = None, kind: str = "") -> Images:
    """Random images of a run, see `drawn`.

    Args:
        options: says how many, where they lie, and the seed.
        split: ``train`` for those that it was trained on, ``val`` or ``test``; None for that of the options.
        kind: of the analysis, if that needs more than one.

    Raises:
        DataError: if they are not there. ConfigError: if they are too few for the kind.
    """
    if run.task.multi_label:
        raise ConfigError(f"{run.folder}: analyses of images count each under one class, and these have several")
    data = run.data(net, run.source(options.data_root))
    name = {"train": data.train_split, "val": "val200", "test": "test"}[split or options.split]
    # a run of few training images is scored on those, not on others of the split: smaller subsets lie within larger
    pool = None if options.images is None else POOL * options.images
    limits = (pool, data.train_images if name == data.train_split else None)
    limit = min((count for count in limits if count is not None), default=None)
    pixels = data.source.load(run.task, name, data.stored_size, data.resize, limit)
    images = Images(name, data, pixels, drawn(pixels.labels, options.images, options.seed), options.batch_size)
    if kind:
        check_images(kind, len(images))
    return images


def trained_on(run: SavedRun, split: str) -> bool:
    """Whether the run learned from images of a split."""
    return bool(PARTS[run.protocol.train_split] & PARTS[split])


@dataclass(frozen=True)
class Opened:
    """A run whose heads can be switched, and what the scores say of them; a head without an update has the score 0.

    Attributes:
        scores: (U,) each, by name, in the order of `Switches.updates`.
        by_images: the same from the first eighth, quarter and half of the images only, by their number.
        scored_on: images behind the scores.
    """

    run: SavedRun
    switches: Switches
    scores: Mapping[str, Tensor]
    by_images: Mapping[int, Mapping[str, Tensor]]
    scored_on: int


def opened(run: SavedRun, options: Options) -> Opened:
    """Build a run's network again, score its heads on its training images, and make them switchable.

    The scores are what a gate would see at the end of the run. Of a run of one phase whose update has gates they are
    the gate's own; of any other, those of the whole update's dense form.

    Raises:
        HeadwiseError: what is missing: weights, tensors, images; and a run that changed no head.
    """
    net, before, last = _installed(run, options)
    images = images_of(run, net, options, "train")
    counts = sorted({max(1, len(images) // share) for share in (8, 4, 2, 1)})
    gated = _gated(run, net, last)
    by_count = {count: _of_gates(gated, net, images.first(count)) for count in counts} if gated else {}
    last.merge()
    switches = Switches(net, before)
    if not gated:
        by_count = {count: of_weights(switches, images.first(count)) for count in counts}
    sizes = torch.stack([switches.difference(*update).norm() for update in switches.updates])
    live = torch.tensor([update in switches.live for update in switches.updates])
    known = {
        count: {**{name: rows * live for name, rows in _in_order(scores, switches.updates).items()}, UPDATE: sizes}
        for count, scores in by_count.items()
    }
    whole = known.pop(len(images))
    return Opened(run, switches, whole, known, len(images))


def unscored(run: SavedRun, options: Options) -> Switches:
    """A run's network with its heads switchable; refuses what `opened` does."""
    net, before, last = _installed(run, options)
    last.merge()
    return Switches(net, before)


def _installed(run: SavedRun, options: Options) -> tuple[Backbone, dict[Site, Rows], Installed]:
    """The network with the last phase unmerged, and the rows of its projections before any phase."""
    net = run.network(options.weights)
    sites = with_heads(net)
    if not sites:
        raise ConfigError(f"{run.folder}: {run.spec.name} has no projection of several heads to switch off")
    before = {site: rows_of(net, site) for site in sites}
    *_, (_, last) = run.install(net)
    _check_masks(run, net, last)
    return net, before, last


def _check_masks(run: SavedRun, net: Backbone, installed: Installed) -> None:
    """Refuse a run whose record has other masks of the last phase than lie beside its tensors."""
    recorded, by_key = recorded_masks(run), {site.key: site for site in net.sites}
    stored = {
        place_of(by_key[key]): owner.get_buffer("active").int().tolist()
        for key, owner in installed.owners.items()
        if key in by_key and "active" in owner._buffers
    }
    for place in dict.fromkeys((*stored, *recorded)):
        there = stored.get(place)
        said = recorded.get(place, None if there is None else [1] * len(there))
        if said != there:
            stage, block, proj = place
            raise ConfigError(
                f"{run.folder / 'result.json'} says of {proj} in stage {stage}, block {block} that heads are on (1) or "
                f"off (0) as {said}, but the stored tensors say {there}: record and tensors are not of one run"
            )


def _gated(run: SavedRun, net: Backbone, installed: Installed) -> dict[Site, Delta]:
    """The deltas whose own gates say how much a head matters; none where another phase changed the heads as well."""
    if len(run.result.phases) > 1:
        return {}
    by_key = {site.key: site for site in with_heads(net)}
    return {
        by_key[key]: delta
        for key, delta in installed.owners.items()
        if key in by_key and isinstance(delta, Delta) and "active" in delta._buffers
    }


def _of_gates(deltas: Mapping[Site, Delta], net: Backbone, batches: Iterable[Batch]) -> Scores:
    """Scores from gradients of the gates, as `HeadMasking` takes them."""
    owns = all("B" in delta._parameters for delta in deltas.values())
    gate = Gate(ratio=0.5, score="grad_l2" if owns else "taylor_neg")
    masking = HeadMasking(gate, deltas, lambda site: net.bases([site.proj])[site])
    gates = [delta.get_buffer("active") for delta in deltas.values()]
    for active in gates:
        active.requires_grad_(True)
    try:
        evidence = masking.score(net, batches)
    finally:
        for active in gates:
            active.requires_grad_(False)
    return _scores(evidence, owns)


def of_weights(switches: Switches, batches: Iterable[Batch]) -> Scores:
    """Scores from the gradient of the merged weights, for any update.

    The gate g of a head multiplies its update dW, so dL/dg at 1 is the sum over the head's rows of dW * dL/dW.
    """
    sites = list(dict.fromkeys(update.site for update in switches.updates))
    weights = [part for site in sites for part in _parameters(switches.net, site)]
    before = [(parameter, parameter.requires_grad) for parameter in switches.net.parameters()]
    switches.net.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    sums = [torch.zeros_like(weight) for weight in weights]
    count = 0
    try:
        with torch.enable_grad():
            for images, labels in batches:
                loss = F.cross_entropy(switches.net(images).float(), labels, reduction="sum")
                for total, grad in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                    total += grad
                count += len(labels)
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
    grads = iter(total / count for total in sums)
    evidence = {}
    for site in sites:
        # (O, I) and, with a bias, (O,) as a last column, as in `Switches.difference`
        parts = [next(grads) for _ in _parameters(switches.net, site)]
        grad = torch.cat([parts[0], *(part.unsqueeze(-1) for part in parts[1:])], dim=-1)
        change = torch.cat([switches.difference(site, head) for head in range(site.num_heads)])
        evidence[site] = Evidence(
            gate=(grad * change).reshape(site.num_heads, -1).sum(1),
            weight=heads.head_norms(change, site.num_heads),
            grad=heads.head_norms(grad, site.num_heads),
        )
    return _scores(evidence, False)


def _parameters(net: Backbone, site: Site) -> list[Tensor]:
    module = net.linear(site)
    return [module.get_parameter(name) for name, _ in module.named_parameters(recurse=False)]


def _scores(evidence: Mapping[Site, Evidence], owns: bool) -> Scores:
    """Every score of every head.

    Args:
        owns: whether the norms are of a B of the update's own. If not they are of its dense form: that of the update is
            `UPDATE` already, and that of the gradient has another name.
    """
    scores: dict[HeadUpdate, dict[str, float]] = {}
    for site, seen in evidence.items():
        names = {name: name for name in SCORES if name != "grad_l2" or seen.grad is not None}
        if not owns:
            names = {name: DENSE.get(name, name) for name in names if name != "weight_l2"}
        rows = {shown: heads.responsiveness(seen, name).tolist() for name, shown in names.items()}
        for head in range(site.num_heads):
            scores[HeadUpdate(site, head)] = {name: values[head] for name, values in rows.items()}
    return scores


def _in_order(scores: Mapping[HeadUpdate, Mapping[str, float]], updates: Sequence[HeadUpdate]) -> dict[str, Tensor]:
    """By name, (U,); a head that has no score has zero."""
    names = list(next(iter(scores.values())))
    none = dict.fromkeys(names, 0.0)
    return {name: torch.tensor([scores.get(update, none)[name] for update in updates]) for name in names}


def head_columns(
    run: SavedRun, name: str, updates: Sequence[HeadUpdate], live: Collection[HeadUpdate]
) -> dict[str, Any]:
    """The columns of a table that name the heads of a run, a line each; ``live`` says whether there is an update."""
    gates = recorded_masks(run)
    return {
        "run": [name] * len(updates),
        "dataset": run.result.key.dataset,
        "group": run.task.group,
        "seed": run.result.key.seed,
        "stage": [update.site.stage for update in updates],
        "block": [update.site.block for update in updates],
        "projection": [update.site.proj for update in updates],
        "head": [update.head for update in updates],
        "heads": [update.site.num_heads for update in updates],
        "gate": [gates[place_of(site)][head] if place_of(site) in gates else 1 for site, head in updates],
        "live": [int(update in live) for update in updates],
    }


Place = tuple[int, int, str]
"""Stage, block and name of a projection."""


def recorded_masks(run: SavedRun) -> dict[Place, list[int]]:
    """What the gate of the last phase left on, 1 or 0 by head; empty without a gate."""
    return {(row["stage"], row["block"], row["proj"]): row["active"] for row in run.result.phases[-1].masks}


def place_of(site: Site) -> Place:
    """Where a projection stands."""
    return site.stage, site.block, site.proj
