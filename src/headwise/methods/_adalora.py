"""AdaLoRA's rank allocation (Zhang et al., arXiv:2303.10512) around peft's layers: steps, penalty, and exact resume.

peft leaves three things to its caller, done here: when ranks are allocated, the penalty, and what an exact resume needs
(the moving averages and kept ranks are not in its state_dict).

Legend: O, I features, R rank; an update is P E Q, P (O, R), E (R, 1) the diagonal, Q (R, I).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._named import copy_into
from headwise.updates.sites import Site

ADAPTER = "default"
"""peft's name of the one adapter that is installed."""


def schedule(values: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    """total_step, tinit and tfinal in whole steps; the ranks are fixed before the last ``tfinal`` of them.

    Raises:
        ConfigError: where the run is too short, or the target rank is not below the initial one.
    """
    initial, target = values.get("init_r", 12), values.get("target_r", 8)
    if not target < initial:
        raise ConfigError(f"AdaLoRA lowers the rank: config.target_r must be below init_r={initial}, got {target}")
    if num_steps < 2:
        raise ConfigError(f"AdaLoRA needs at least 2 training steps to score its ranks, this phase has {num_steps}")

    def steps(name: str) -> int:
        value = values.get(name, 0)
        return round(value * num_steps) if isinstance(value, float) and value < 1 else int(value)

    final = steps("tfinal")
    if isinstance(values.get("tfinal"), float):
        final = min(final, num_steps - 2)  # one scored step must come before the ranks are fixed
    return {"total_step": num_steps, "tinit": steps("tinit"), "tfinal": final}


class Allocator(L.Callback):
    """AdaLoRA (Zhang et al., arXiv:2303.10512): W + P E Q, E diagonal; the least important entries of E are set to 0.

    peft scores and masks; this calls it after every step, while gradients exist, and keeps what peft does not save.
    Once the last allocation is done, exactly target_r entries per projection, on average, are kept.
    """

    def __init__(self, tuner: Any, layers: Mapping[Site, nn.Module]) -> None:
        self.tuner, self.layers = tuner, layers
        self.config = tuner.peft_config[ADAPTER]
        self.ranking = tuner.rankallocator
        names = {id(parameter): name for name, parameter in tuner.model.named_parameters()}
        self._scored: dict[str, str] = {}  # our name -> peft's, of every tensor that is scored
        self._diagonals: dict[str, Site] = {}  # peft's name of E -> site
        self._kept: dict[Site, Tensor] = {}
        for site, layer in layers.items():
            module: Any = layer
            for part in ("lora_A", "lora_B", "lora_E"):
                self._scored[f"{site.key}.{part}.{ADAPTER}"] = names[id(getattr(module, part)[ADAPTER])]
            diagonal = module.lora_E[ADAPTER]
            self._diagonals[names[id(diagonal)]] = site
            self._kept[site] = torch.ones(diagonal.shape[0], dtype=torch.uint8, device=diagonal.device)
        self._parameters = dict(tuner.model.named_parameters())
        # peft scores inside its own step, so the guard against overflow stands in the place of its scorer
        self._score, self.ranking.update_ipt = self.ranking.update_ipt, self._score_if_finite
        # peft makes them at its first score; a resumed run has values to put into them before that
        for averages in (self.ranking.ipt, self.ranking.exp_avg_ipt, self.ranking.exp_avg_unc):
            averages.update({name: torch.zeros_like(self._parameters[name]) for name in self._scored.values()})

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Score and mask; steps count from 1."""
        self.tuner.update_and_allocate(trainer.global_step)
        for name, kept in (self.config.rank_pattern or {}).items():
            mask = self._kept[self._diagonals[name]]
            # in place: `state` hands these very tensors out, and a resume copies into them
            mask.copy_(torch.tensor(kept, dtype=torch.uint8))

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """First epoch, counted from 1, at whose end the ranks are fixed: the one of step total_step - tfinal."""
        step = int(self.config.total_step - self.config.tfinal)
        return min(epochs, max(1, -(-step // steps_per_epoch)))

    def _score_if_finite(self, model: nn.Module) -> None:
        """Let peft score, but not a step that overflowed (fp16), which the optimiser skips: its NaN would stay."""
        grads = [grad for name in self._scored.values() if (grad := self._parameters[name].grad) is not None]
        if bool(torch.nn.utils.get_total_norm(grads).isfinite()):
            self._score(model)

    def penalty(self) -> Tensor:
        """peft's form: the weight times the mean over all P and Q of ||P'P - I||_F or ||QQ' - I||_F (not squared)."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for layer in self.layers.values():
            module: Any = layer
            for rows in (module.lora_A[ADAPTER], module.lora_B[ADAPTER].T):
                by_shape.setdefault(rows.shape, []).append(rows)
        norms = []
        for shape, matrices in by_shape.items():
            stack = torch.stack(matrices)
            # Gram matrices (n, R, R) near the identity: in bf16 their distance from it would be rounding alone
            with torch.autocast(stack.device.type, enabled=False):
                gram = stack @ stack.mT
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(shape[0], device=gram.device)))
        return self.config.orth_reg_weight * torch.cat(norms).mean()

    def masks(self) -> dict[str, Tensor]:
        """1 for every entry of E, (R,), that the last allocation kept, by site."""
        return {f"{site.key}.kept": mask for site, mask in self._kept.items()}

    def present(self) -> dict[Site, Tensor]:
        """Whether an entry of E, (R,), is kept, or has grown again since the last allocation."""
        modules: dict[Site, Any] = dict(self.layers)
        return {
            site: mask.bool() | (modules[site].lora_E[ADAPTER].detach() != 0).flatten()
            for site, mask in self._kept.items()
        }

    def ranks(self) -> dict[str, int]:
        """How many entries of E are kept, by site."""
        return {site.key: int(mask.sum()) for site, mask in self._kept.items()}

    def state(self) -> dict[str, Tensor]:
        """The moving averages of score and uncertainty, and the masks; zeros once peft has dropped the averages."""
        averages = {}
        for ours, name in self._scored.items():
            for kind, values in (("ipt", self.ranking.exp_avg_ipt), ("unc", self.ranking.exp_avg_unc)):
                tensor = values.get(name)
                averages[f"{ours}.{kind}"] = torch.zeros_like(self._parameters[name]) if tensor is None else tensor
        return {**averages, **self.masks()}

    def restore(self) -> None:
        """Hand the masks back to peft."""
        self.config.rank_pattern = {name: self._kept[site].bool().tolist() for name, site in self._diagonals.items()}

    def trim(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the triplets that are off (rows of Q and E, columns of P) and say which are left."""
        trimmed = dict(tensors)
        for site, present in self.present().items():
            trimmed[f"{site.key}.kept"] = present.to(torch.uint8)
            for name, axis in self._axes(site).items():
                trimmed[name] = trimmed[name].index_select(axis, present.nonzero().flatten())
        return trimmed

    def spread(self, tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `trim`, with zeros in what was left out, and take over the masks."""
        full = dict(tensors)
        for site, mask in self._kept.items():
            copy_into({f"{site.key}.kept": mask}, {f"{site.key}.kept": full.pop(f"{site.key}.kept")})
            # the file has R' of R triplets; they go back to their places along the axis of R, zeros elsewhere
            index = mask.nonzero().flatten()
            for name, axis in self._axes(site).items():
                part = live[name].detach().index_select(axis, index).clone()
                copy_into({name: part}, {name: full[name]})
                full[name] = torch.zeros_like(live[name], requires_grad=False).index_copy(axis, index, part)
        self.restore()
        return full

    @staticmethod
    def _axes(site: Site) -> dict[str, int]:
        """The axis of R in each tensor of a site."""
        return {f"{site.key}.{part}.{ADAPTER}": axis for part, axis in (("lora_A", 0), ("lora_E", 0), ("lora_B", 1))}
