"""SPT-LoRA and SPT-Adapter (He et al., arXiv:2303.08566): train what is most sensitive, structured where it is dense.

Stage 1 adds up squared gradients of every parameter over some batches at the pretrained weights. Of the tau most
sensitive entries, a matrix (q, k, v, o, fc1, fc2) that holds at least r (I + O) / alpha gets a LoRA of rank r; any
other trains just its selected entries. A vector (norm, bias) that holds at least length / beta trains whole; of any
other, the bias of a projection trains its selected entries and a norm stays frozen. tau is the one of a grid whose
total is nearest to the budget. Stage 2 trains W + sparse, or W + B A, with the biases, the vectors, the CLS token and
the head.

SPT-Adapter puts a bottleneck of hidden width r behind the matrix in place of a LoRA, on its output y: y + U gelu(D y),
both with biases, which counts 2 O r + r + O. So a wide output (fc1) costs more and is chosen later.

Legend: I/O features, n selected entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from headwise.errors import ConfigError, check_choice
from headwise.methods._passes import each_gradient
from headwise.methods._selection import Selected, pack_entries, unpack_entries
from headwise.methods._structural import by_block, install_parts, plain_linear, put_beside, put_within, refuse_four_bits
from headwise.methods.base import Batches, Installed, Method, Plan, as_asked
from headwise.network.backbone import Backbone
from headwise.schema.kinds import Count, Factor, Positive, Rate, Text
from headwise.storage.hashes import file_sha256
from headwise.updates.adapted import Delta, Factors
from headwise.updates.fused import at_least_float32
from headwise.updates.lowrank import LowRank
from headwise.updates.sites import PROJECTIONS, Site
from headwise.wrappers.behind import BehindLinear, BottleneckDelta
from headwise.wrappers.bottleneck import Bottleneck
from headwise.wrappers.wrapping import pretrained_parameters

INITS = ("default", "upstream")
UNREAD = ("budget", "tau_step", "tau_max", "num_batches", "alpha", "beta")
"""Fields that choose; with a selection from a file they choose nothing."""
Structure = Literal["lora", "adapter"]


class SparseDelta(Delta):
    """Values at fixed entries of the weight, zero at the start. Parameters: n."""

    reads_base = False
    entries: Tensor

    def __init__(self, base: Tensor, entries: Tensor) -> None:
        super().__init__()
        self.shape = tuple(base.shape)
        self.values = nn.Parameter(torch.zeros(len(entries), device=base.device))
        self.register_buffer("entries", entries.to(device=base.device, dtype=torch.int32))

    def weight(self, base: Tensor) -> Tensor:
        # (O I,): entries are positions in the flattened weight
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_put((self.entries.long(),), self.values).view(self.shape).to(base.dtype)


class BiasEntries(Delta):
    """Nothing for the weight: the projection of a bias that trains at some entries (`Delta.have_bias_entries`)."""

    reads_base = False

    def weight(self, base: Tensor) -> Tensor:
        """Zeros, (O, I)."""
        return torch.zeros_like(base)

    def factors(self) -> Factors | None:
        """None: there is nothing to add to the projection's output."""
        return None


class Held(nn.Module):
    """Parameters of the network itself that train: the vectors of one block, or those outside blocks."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            # a module takes no name with a dot
            self.register_parameter(name.replace(".", "_"), parameter)


@dataclass(frozen=True, kw_only=True)
class SPTLoRA(Method):
    """LoRA, sparse entries and whole vectors where the task's gradients are largest; merges. Starts at the identity.

    In the authors' code an initialisation of the whole model runs after LoRA is put in, so that A and B both start
    normal with std 0.02, and the network off the pretrained one: ``init=upstream``.

    Parameters: near `budget`: r (I + O) per structured matrix, n per sparse one and per sparse bias, the length of each
    chosen vector, and the CLS token. Selected entries of norms below the threshold count in the budget but do not
    train, as upstream. Swin's position tables and patch merging stay frozen. Dropout acts on the hidden (upstream: on
    the input).

    Licence: No licence file found (ziplab/SPT).
    Not for: Runs that may not look at the training images before they train. Sizes that must be known before.

    Attributes:
        rank: r.
        budget: parameters, of the backbone; the paper sweeps 0.2 to 1.0 million and keeps each task's best.
        tau_step, tau_max: tau is looked for among step, 2 step, ... up to the largest; the authors' grid is 0.02 to
            1.58 million in steps of 0.02. A small budget, or a small network, needs finer steps.
        num_batches: of the training set, at most, that give the sensitivities.
        alpha: a matrix with r (I + O) / alpha selected entries is structured; larger than 0.
        beta: a vector with length / beta selected entries trains whole; larger than 0.
        scale: of LoRA, constant.
        dropout: of LoRA's hidden, in [0, 1).
        init: of LoRA: ``default`` (A Kaiming uniform, B zero), or ``upstream``. Of adapters likewise D and U.
        structure: of what a sensitive matrix gets: ``lora``, or ``adapter``, which stays in place.
        drop_path: probability with which an adapter leaves out a whole sample in training (0.1 upstream).
        param_req: a selection that the authors stored, ``param_req_*.pth``, in place of one from the training images.
    """

    targets: Sequence[str] = PROJECTIONS
    rank: Count
    budget: Count = 400_000
    tau_step: Count = 20_000
    tau_max: Count = 1_580_000
    num_batches: Count = 16
    alpha: Positive = 10.0
    beta: Positive = 5.0
    scale: Factor = 1.0
    dropout: Rate = 0.1
    init: str = "default"
    structure: Structure = "lora"
    drop_path: Rate = 0.0
    param_req: Text | None = None

    later: ClassVar[Mapping[str, Any]] = {"structure": "lora", "drop_path": 0.0, "param_req": None}

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """Adapters stay."""
        return self.structure == "lora"

    @property
    def identity_tolerance(self) -> float:  # type: ignore[override]
        """Upstream's start changes the logits."""
        return Method.identity_tolerance if self.init == "default" else 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_step > self.tau_max:
            raise ConfigError(
                f"tau_step of method {self.label!r} must be at most tau_max={self.tau_max}, got {self.tau_step}"
            )
        check_choice("init", self.init, INITS, f" of method {self.label!r}")
        if self.drop_path and self.structure == "lora":
            raise ConfigError(
                f"drop_path of method {self.label!r} is of adapters, got {self.drop_path}; allowed with lora: 0"
            )

        typed = [f.name for f in fields(self) if f.name in UNREAD and getattr(self, f.name) != f.default]
        if self.param_req is not None and typed:
            raise ConfigError(
                f"{', '.join(typed)} of method {self.label!r} choose nothing with param_req={self.param_req}; "
                "leave them out"
            )

    def rehearse(self, net: Backbone) -> None:
        """There is no plan yet to install, but what it would be made of."""
        self._candidates(net)
        if self.param_req is not None:
            as_asked(self, self.install(net, self._stored(net, self.param_req)))

    def prepare(self, net: Backbone, batches: Batches, num_steps: int) -> Plan:
        """Sensitivities, and what they select.

        Returns:
            ``structured`` (site keys), ``sparse`` (site key to packed entries), ``biases`` (the same, of a projection's
            bias), ``vectors`` (parameter names), ``tau``, ``total``, ``budget``; of a stored selection ``param_req``,
            the sha256 of its file, in place of ``tau`` and ``budget``.

        Raises:
            ConfigError: if every tau of the grid selects more than twice the budget.
        """
        if self.param_req is not None:
            return self._stored(net, self.param_req)
        return self.select(net, self.sensitivities(net, batches))

    def _stored(self, net: Backbone, file: str) -> Plan:
        """The plan that the authors stored; CheckpointError if it is none, ConfigError if of another network."""
        chosen, sha256 = Selected(Path(file)), file_sha256(file)
        candidates = self._candidates(net)
        plan, num_entries = chosen.plan(net.sites, len(net.blocks), candidates, _biases(net))
        token, sizes = self._token(net), self._sizes(net)
        total = sum(sizes[key] for key in plan["structured"]) + num_entries
        total += sum(candidates[name].numel() for name in plan["vectors"]) + (0 if token is None else token.numel())
        if abs(total - chosen.params) > 1:
            raise ConfigError(
                f"{file} says that it selects {chosen.params} parameters; at rank={self.rank} and "
                f"structure={self.structure} it selects {total}"
            )
        return {**plan, "total": total, "param_req": sha256}

    def sensitivities(self, net: Backbone, batches: Batches) -> dict[str, Tensor]:
        """Summed squared gradients of the target matrices (by site) and of the vectors (by name), in training mode."""
        wanted = self._candidates(net)
        sums = {
            name: torch.zeros_like(parameter, dtype=at_least_float32(parameter)) for name, parameter in wanted.items()
        }

        def add(gradients: Sequence[Tensor]) -> None:
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.to(total.dtype) ** 2

        each_gradient(net, list(wanted.values()), itertools.islice(batches(), self.num_batches), add)
        return sums

    def _candidates(self, net: Backbone) -> dict[str, nn.Parameter]:
        """Weights of the target projections under their site's key, and vectors of the blocks and the final norm.

        Raises:
            ConfigError: where a target matches nothing, or the network is held in 4 bits.
        """
        refuse_four_bits(net, self)
        # for its refusal alone, of targets that match nothing
        net.bases(self.targets)
        # by identity: the same tensor has other names once its network is split or wrapped
        weights = {id(plain_linear(net, site).weight): site.key for site in net.sites if site.proj in self.targets}
        skipped = {id(parameter) for parameter in net.head.parameters()}
        candidates: dict[str, nn.Parameter] = {}
        for name, parameter in pretrained_parameters(net.model).items():
            if id(parameter) in weights:
                candidates[weights[id(parameter)]] = parameter
            elif parameter.ndim == 1 and id(parameter) not in skipped and not name.startswith("patch_embed"):
                candidates[name] = parameter
        return candidates

    def select(self, net: Backbone, sensitivities: Mapping[str, Tensor]) -> Plan:
        """What the most sensitive entries select, for the number of them that comes nearest to the budget."""
        names = list(sensitivities)
        sizes = [sensitivities[name].numel() for name in names]
        flat = torch.cat([sensitivities[name].flatten() for name in names])
        taus = self.taus(len(flat))
        # sorted once, for the largest tau: every smaller choice is a prefix of it
        order = torch.topk(flat, taus[-1]).indices
        # entries of all tensors in one row: `member` tells by their ends which tensor each selected one is of
        ends = torch.tensor(sizes, device=order.device).cumsum(0)
        member = torch.bucketize(order, ends, right=True)
        lowrank = self._sizes(net)
        fixed = self._token(net)
        totals = []
        for tau in taus:
            counts = torch.bincount(member[:tau], minlength=len(names)).tolist()
            costs = (self._cost(*each, lowrank) for each in zip(names, counts, sizes, strict=True))
            totals.append((0 if fixed is None else fixed.numel()) + sum(costs))
        # of two that are as near the larger tau
        distance, _, tau, total = min(
            (abs(total - self.budget), -tau, tau, total) for tau, total in zip(taus, totals, strict=True)
        )
        if distance > self.budget:
            raise ConfigError(
                f"no tau of method {self.label!r} comes near its budget of {self.budget}: the nearest, {tau} of "
                f"{len(flat)} entries, selects {total} parameters; lower tau_step={self.tau_step}"
            )
        plan: Plan = {"structured": [], "sparse": {}, "biases": {}, "vectors": []}
        biases = _biases(net)
        starts = (ends - torch.tensor(sizes, device=ends.device)).tolist()
        for index, (name, size, start) in enumerate(zip(names, sizes, starts, strict=True)):
            entries = order[:tau][member[:tau] == index] - start
            if name in lowrank and len(entries) >= lowrank[name] / self.alpha:
                plan["structured"].append(name)
            elif name in lowrank and len(entries):
                plan["sparse"][name] = pack_entries(entries)
            elif name not in lowrank and len(entries) >= size / self.beta:
                plan["vectors"].append(name)
            elif name in biases and len(entries):
                plan["biases"][biases[name]] = pack_entries(entries)
        return {**plan, "tau": tau, "total": total, "budget": self.budget}

    def taus(self, num_entries: int) -> list[int]:
        """The grid, ascending, of a network of so many entries; rounded as the authors' code does (in millions)."""
        step = self.tau_step / 1e6
        grid = [math.ceil(number * step * 1e6) for number in range(1, self.tau_max // self.tau_step + 1)]
        return sorted({min(tau, num_entries) for tau in grid})

    def _sizes(self, net: Backbone) -> dict[str, int]:
        """Parameters of what each matrix gets where it is structured, by site."""
        bases = net.bases(self.targets)
        if self.structure == "lora":
            return {site.key: self.rank * sum(base.shape) for site, base in bases.items()}
        return {site.key: (2 * self.rank + 1) * base.shape[0] + self.rank for site, base in bases.items()}

    def _cost(self, name: str, count: int, size: int, lowrank: Mapping[str, int]) -> int:
        if name in lowrank:
            return lowrank[name] if count >= lowrank[name] / self.alpha else count
        return size if count >= size / self.beta else count

    @staticmethod
    def _token(net: Backbone) -> nn.Parameter | None:
        return getattr(net.model, "cls_token", None)

    def count(self, net: Backbone, plan: Plan | None = None) -> int:
        """What the plan names: LoRA or adapter of each structured matrix, n per sparse one and bias, vectors, CLS."""
        if plan is None:
            raise ConfigError(f"method {self.label!r} has no size before its prepare() has seen the training data")
        parameters = dict(net.model.named_parameters())
        sizes = self._sizes(net)
        structured = sum(sizes[key] for key in plan["structured"])
        entries = [*plan["sparse"].values(), *plan["biases"].values()]
        held = [*plan["vectors"], *(["cls_token"] if "cls_token" in parameters else [])]
        vectors = sum(parameters[name].numel() for name in held)
        return structured + sum(len(unpack_entries(text)) for text in entries) + vectors

    def install(self, net: Backbone, plan: Plan | None = None) -> Installed:
        """Put deltas at the selected projections and free the vectors.

        Raises:
            ConfigError: without a plan, with one of another network, or with one that selects nothing.
        """
        if plan is None:
            raise ConfigError(f"method {self.label!r} needs the plan that its prepare() makes from the training data")
        owners: dict[str, nn.Module] = {}
        parameters = dict(net.model.named_parameters())  # by the names of before
        for site, delta in self._deltas(net, plan).items():
            if isinstance(delta, BottleneckDelta):
                put_beside(net, {site: delta}, BehindLinear)
            else:
                put_within(net, site, delta)
            owners[site.key] = delta
        token = self._token(net)
        held = {name: parameters[name] for name in plan["vectors"]}
        if token is not None:
            held["cls_token"] = token
        owners |= {f"{owner}.vectors": Held(members) for owner, members in by_block(net, held).items()}
        if not owners:
            raise ConfigError(f"a budget of {self.budget} lets method {self.label!r} train nothing of this network")
        return install_parts(net, owners)

    def _deltas(self, net: Backbone, plan: Plan) -> dict[Site, Delta]:
        """What a plan puts at the projections; ConfigError if it names one that the network does not have."""
        structured, sparse, biases = set(plan["structured"]), plan["sparse"], plan.get("biases", {})
        bases = net.bases([proj for proj in PROJECTIONS if any(site.proj == proj for site in net.sites)])
        if not {*structured, *sparse, *biases} <= {site.key for site in bases}:
            raise ConfigError(f"the plan of method {self.label!r} names projections that this network does not have")
        deltas: dict[Site, Delta] = {}
        for site, base in bases.items():
            if site.key in sparse:
                deltas[site] = SparseDelta(base, unpack_entries(sparse[site.key]))
            elif site.key in structured and self.structure == "adapter":
                deltas[site] = BottleneckDelta(self._adapter(base.shape[0]))
            elif site.key in structured:
                low = LowRank(site, base, self.rank, scale=self.scale, dropout=self.dropout)
                if self.init == "upstream":
                    nn.init.normal_(low.A, std=0.02)
                    nn.init.normal_(low.B, std=0.02)
                deltas[site] = low
            elif site.key in biases:
                deltas[site] = BiasEntries()
            if site.key in biases:
                deltas[site].have_bias_entries(unpack_entries(biases[site.key]), base)
        return deltas

    def _adapter(self, width: int) -> Bottleneck:
        """The bottleneck behind a matrix with so many rows."""
        init = {"default": "lora_bias", "upstream": "bert"}[self.init]
        sizes = {"bias": True, "dropout": self.dropout, "scale": self.scale, "drop_path": self.drop_path}
        return Bottleneck(width, self.rank, activation="gelu", init=init, **sizes)  # type: ignore[arg-type]


def _biases(net: Backbone) -> dict[str, str]:
    """The projection's key by the name of its bias, for all that have one."""
    own: dict[int, str] = {}
    for site in net.sites:
        bias = getattr(plain_linear(net, site), "bias", None)
        if bias is not None:
            own[id(bias)] = site.key
    return {name: own[id(p)] for name, p in pretrained_parameters(net.model).items() if id(p) in own}
