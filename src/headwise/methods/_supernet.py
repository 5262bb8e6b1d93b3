"""Parts of a supernet: each holds the largest size, and works at its leading slice of whatever size is in use.

Legend: B batch, T tokens, C channels, I/O features, R rank.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._evolution import Evolution, Evolved, Subnet, evolve
from headwise.updates.adapted import Delta, Factors
from headwise.updates.lowrank import check_rank, kaiming_
from headwise.updates.objective import Tally
from headwise.updates.sites import Site
from headwise.wrappers.bottleneck import ACTIVATIONS, Bottleneck
from headwise.wrappers.prompting import Prompts


class SlicedLowRank(Delta):
    """B[:, :r] A[:r] with r in use, A Kaiming uniform, B zero; nothing at r = 0. Parameters: R (I + O)."""

    reads_base = False

    def __init__(self, site: Site, base: Tensor, rank: int, dropout: float) -> None:
        super().__init__()
        check_rank(site, base, rank)
        self.dropout, self.used = dropout, rank
        self.A = nn.Parameter(torch.empty(1, rank, base.shape[1], device=base.device))
        self.B = nn.Parameter(torch.zeros(1, base.shape[0], rank, device=base.device))
        kaiming_(self.A)

    def factors(self) -> Factors:
        """A (1, r, I) and B (1, O, r); at r = 0 one rank of zeros."""
        rank = max(self.used, 1)
        # rank 0 is a rank-1 update times 0: shapes stay, and the parameters get a gradient of 0 instead of none
        up = self.B[..., :rank] * float(self.used > 0)
        return Factors(self.A[:, :rank], up, self.dropout)

    def weight(self, base: Tensor) -> Tensor:
        """Dense update at the rank in use, (O, I)."""
        down, up, *_ = self.factors()
        return (up[0] @ down[0]).to(base.dtype)


class SlicedPrompts(Prompts):
    """The first tokens of the largest number."""

    def __init__(self, count: int, width: int, bound: float, dropout: float) -> None:
        super().__init__(count, width, bound, dropout)
        self.used = count

    def forward(self, x: Tensor) -> Tensor:
        """Those in use for each sample of x (B, T, C): (B, p, C)."""
        return self.drop(self.tokens[: self.used].expand(x.shape[0], -1, -1)).to(x.dtype)


class SlicedBottleneck(Bottleneck):
    """The adapter of the first hidden channels; nothing where none is in use."""

    def __init__(self, width: int, hidden: int, **options: Any) -> None:
        super().__init__(width, hidden, **options)
        self.used = hidden

    def forward(self, x: Tensor) -> Tensor:
        if not self.used:
            return torch.zeros_like(x)
        bias = None if self.down.bias is None else self.down.bias[: self.used]
        hidden = nn.functional.linear(x, self.down.weight[: self.used], bias)
        hidden = self.drop(ACTIVATIONS[self.activation](hidden))
        return self.scale * nn.functional.linear(hidden, self.up.weight[:, : self.used], self.up.bias)


class SubnetSearch(L.Callback):
    """Trains a random subnet each step; once trained, breeds subnets for their accuracy on the validation images.

    Each step's subnet follows from its number and the phase's seed alone, so a resumed run draws the same ones. What
    the evolution chose is `evolved`, None before.
    """

    def __init__(
        self,
        recipe: Evolution,
        kinds: tuple[str, ...],
        num_blocks: int,
        cost: Callable[[Subnet], int],
        use: Callable[[Subnet], None],
    ) -> None:
        """Search for parts of these kinds; `cost` gives the parameters of a subnet, `use` puts it to work."""
        self.recipe, self.kinds, self.num_blocks, self.cost, self.use = recipe, kinds, num_blocks, cost, use
        self.evolved: Evolved | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Draw this step's subnet and put it to work."""
        module: Any = pl_module
        rng = random.Random(f"{module.seed_parts} subnet {trainer.global_step}")
        self.use(self.recipe.draw(self.kinds, self.num_blocks, rng))

    def final_from(self, epochs: int, steps_per_epoch: int) -> int:
        """Every step works on another subnet; the one that stays is chosen after the last epoch."""
        return epochs

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the subnet that is then tested; ConfigError on the test images, which choose nothing."""
        module: Any = pl_module
        if module.protocol.eval_split == "test":
            raise ConfigError("a supernet chooses its subnet on validation images; it cannot be tested on the test set")
        # subnets are compared without dropout, on the same images
        module.net.eval()
        batches: Any = trainer.test_dataloaders

        def score(subnet: Subnet) -> float:
            self.use(subnet)
            with trainer.precision_plugin.forward_context():
                return accuracy(module, batches)

        rng = random.Random(f"{module.seed_parts} evolution")
        self.evolved = evolve(self.recipe, self.kinds, self.num_blocks, self.cost, score, rng, trainer.print)
        self.use(self.evolved.subnet)


@torch.no_grad()
def accuracy(module: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Percent of the images in `batches` that a module's network, as it is, gets right; mAP of several labels."""
    tally = Tally()
    for images, labels in batches:
        tally.add(module.net(module.preprocess(images.to(module.device))), labels.to(module.device))
    return 100.0 * tally.share
