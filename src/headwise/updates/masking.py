"""Head gating during training: score every head once, switch the least responsive off, and go on (Heart-LoRA, sec. 3).

Legend: B batch, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.updates import heads
from headwise.updates.adapted import Delta
from headwise.updates.gate import Gate
from headwise.updates.heads import Evidence
from headwise.updates.objective import loss as mean_loss
from headwise.updates.sites import Site

REPORTED = ("active_heads", "gate", "heads", "paper_bytes")
"""What the record of a phase holds of `HeadMasking.report`."""


class HeadMasking(L.Callback):
    """Applies a `Gate` to the deltas of one phase.

    Fixed masks are set at once. Scored ones are set before the first step after the warm-up; until then every head is
    on. Nothing else of the training changes: no optimiser or schedule is restarted, no random number is drawn.

    Attributes:
        gate: what to do.
        evidence: what was measured at the choice, by site; empty before it.
        is_done: whether the masks are final.
        seconds: spent on scoring.
    """

    def __init__(
        self, gate: Gate, deltas: Mapping[Site, Delta], bases: Callable[[Site], Tensor], full_bytes: int = 0
    ) -> None:
        """Check the gate against the deltas; set the masks if they need no scores.

        `bases` gives the frozen weight of a projection, (O, I); `full_bytes` is the stored size with every head on.
        ConfigError where the gate does not fit: no heads, no gate on the update, amounts out of range.
        """
        heads.check(gate, deltas)
        for site, delta in deltas.items():
            active = dict(delta.named_buffers(recurse=False)).get("active")
            if active is None or len(active) != site.num_heads:
                why = ", which own columns of o; allowed targets: q, k, v" if site.head_axis == "input" else ""
                raise ConfigError(f"{type(delta).__name__} at {site.key} has no gate on its heads{why}")
        effective = gate.effective()
        self.gate, self.deltas, self.bases, self.full_bytes = effective or gate, dict(deltas), bases, full_bytes
        self.evidence: dict[Site, Evidence] = {}
        self.last: dict[Site, Evidence] = {}
        self.is_done = not gate.is_scored
        self.seconds = 0.0
        self.warmup = 0
        if gate.mode != "heart" and effective is not None:
            self._switch(heads.fixed(gate, self.deltas))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epochs of the warm-up, after whose last one the heads are chosen."""
        module: Any = pl_module
        # a phase that is taken from a file brings its masks along
        self.warmup = self.gate.warmup_epochs(module.epochs) if self.gate.is_scored and module.epochs else 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose, in the first epoch after the warm-up, before its random state is set."""
        if self.is_done or trainer.current_epoch < self.warmup:
            return
        start = time.perf_counter()
        module: Any = pl_module
        evidence = self.last  # of last_batch: left behind by the last step of the warm-up, see on_train_batch_end
        if self.gate.score_data == "full_pass":
            with trainer.precision_plugin.forward_context():
                evidence = self._passed(module.net, module.batches())
        self._choose(evidence)
        self.seconds = time.perf_counter() - start

    def _choose(self, evidence: dict[Site, Evidence]) -> None:
        self.evidence = evidence
        scores = {site: heads.responsiveness(seen, self.gate.score) for site, seen in evidence.items()}
        self._switch(heads.choose(self.gate, scores))
        self.is_done = True

    def decide(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Choose the heads now, in a loop that is not Lightning's, by a pass over normalised images and labels."""
        self._choose(self._passed(net, batches))

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """First epoch, counted from 1, at whose end the masks are final."""
        return 1 + self.gate.warmup_epochs(epochs) if self.gate.is_scored else 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the gates take part in the last step before the choice."""
        if self._is_last(trainer, batch_idx):
            self._require(True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the evidence of that step: the gradients before it, the weights after it."""
        if self._is_last(trainer, batch_idx):
            gates = {site: delta.get_buffer("active").grad for site, delta in self.deltas.items()}
            ups = {site: up.grad for site, delta in self.deltas.items() if (up := _up(delta)) is not None}
            self.last = self._measure(gates, ups)
            self._require(False)

    def _is_last(self, trainer: L.Trainer, batch_idx: int) -> bool:
        return (
            not self.is_done
            and self.gate.score_data == "last_batch"
            and trainer.current_epoch == self.warmup - 1
            and batch_idx == int(trainer.num_training_batches) - 1
        )

    def _require(self, wanted: bool) -> None:
        for delta in self.deltas.values():
            gate = delta.get_buffer("active")
            # only while it is asked for: else every training step would pay for gradients that nobody reads
            gate.grad = None
            gate.requires_grad_(wanted)

    def _passed(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[Site, Evidence]:
        """Evidence of the mean loss over all images in their order, in evaluation mode."""
        # module by module: a network with settled parts is not in one mode throughout
        modes = {child: child.training for child in net.modules()}
        net.eval()
        self._require(True)
        try:
            return self.score(net, batches)
        finally:
            self._require(False)
            for child, mode in modes.items():
                child.training = mode

    def score(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[Site, Evidence]:
        """Evidence of the mean loss of `net` over `batches` of (images, labels); the gates require grad."""
        # the gate is the buffer of ones that multiplies a head's update, (H,): dL/dgate is Eq. 5's sum over the head
        gates = {site: delta.get_buffer("active") for site, delta in self.deltas.items()}
        ups: dict[Site, nn.Parameter] = {}
        if self.gate.score == "grad_l2":
            ups = {site: up for site, delta in self.deltas.items() if (up := _up(delta)) is not None}
        inputs = [*gates.values(), *ups.values()]
        sums = [torch.zeros_like(tensor) for tensor in inputs]
        count = 0
        with torch.enable_grad():
            for images, labels in batches:
                # sums over images, divided once at the end: batches of unequal size then weigh as their images
                loss = mean_loss(net(images).float(), labels) * len(labels)
                for total, grad in zip(sums, torch.autograd.grad(loss, inputs), strict=True):
                    total += grad
                count += len(labels)
        means = [total / count for total in sums]
        return self._measure(dict(zip(gates, means, strict=False)), dict(zip(ups, means[len(gates) :], strict=True)))

    @torch.no_grad()
    def _measure(self, gates: Mapping[Site, Tensor | None], ups: Mapping[Site, Tensor | None]) -> dict[Site, Evidence]:
        """Evidence from gradients of the gates and of the up-projections."""
        evidence = {}
        for site, delta in self.deltas.items():
            gate, up, grad = gates[site], _up(delta), ups.get(site)
            # an update without a B of its own (CaRA) is judged by its dense form: (O, I), a head is head_dim rows of it
            parts = site.head_parts(delta.weight(self.bases(site))) if up is None else delta.head_parts(up)
            evidence[site] = Evidence(
                gate=torch.zeros(site.num_heads) if gate is None else gate.float().cpu(),
                weight=heads.head_norms(parts, site.num_heads).cpu(),
                grad=None if grad is None else heads.head_norms(delta.head_parts(grad), site.num_heads).cpu(),
            )
        return evidence

    def _switch(self, masks: Mapping[Site, Tensor]) -> None:
        for site, mask in masks.items():
            self.deltas[site].switch(mask.to(self.deltas[site].get_buffer("active")))

    def state_dict(self) -> dict[str, Any]:
        """Whether the choice was made, and the evidence; the masks themselves are buffers of the deltas."""
        return {
            "is_done": self.is_done,
            "seconds": self.seconds,
            "evidence": {site.key: measured.to_lists() for site, measured in self.evidence.items()},
            "last": {site.key: measured.to_lists() for site, measured in self.last.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; a checkpoint of the warm-up alone serves every gate."""
        # fixed masks are final from the start, whatever the warm-up that they share says
        self.is_done = self.is_done or bool(state_dict["is_done"])
        self.seconds = float(state_dict["seconds"])
        by_key = {site.key: site for site in self.deltas}
        self.evidence, self.last = (
            {by_key[key]: Evidence.from_lists(lists) for key, lists in state_dict[name].items()}
            for name in ("evidence", "last")
        )

    def report(self) -> dict[str, Any]:
        """Plain data for the record.

        ``active_heads`` on per projection; the ``gate``; of every projection in ``heads`` the scores and the mask;
        ``paper_bytes``, the paper's formula for the size: that with every head on times the share of heads that are on
        (what is really stored is larger, since heads share A).
        """
        masks = {site: delta.get_buffer("active").int().tolist() for site, delta in self.deltas.items()}
        counts = [sum(mask) for mask in masks.values()]
        rows = []
        for site, mask in masks.items():
            seen = self.evidence.get(site)
            scores = None if seen is None else heads.responsiveness(seen, self.gate.score).tolist()
            rows.append({"stage": site.stage, "block": site.block, "proj": site.proj, "active": mask, "score": scores})
        # the paper prices a head that is off as if its share of A went too; here A is shared, (1, R, I), and stays
        share = sum(counts) / sum(len(mask) for mask in masks.values())
        return {
            "active_heads": counts[0] if len(set(counts)) == 1 else counts,
            "gate": {**self.gate.spec(), "warmup_epochs": self.warmup, "scoring_seconds": self.seconds},
            "heads": rows,
            "paper_bytes": round(self.full_bytes * share),
        }


def _up(delta: Delta) -> nn.Parameter | None:
    """The delta's own up-projection B, or A where that alone divides into heads (o); None where it has none."""
    name = "A" if "A" in delta.by_head and "B" not in delta.by_head else "B"
    up = dict(delta.named_parameters(recurse=False)).get(name)
    return up if isinstance(up, nn.Parameter) else None
