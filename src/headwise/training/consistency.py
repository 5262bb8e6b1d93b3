"""The loss of a step under noise: two passes that must agree (`headwise.updates.consistency.Consistency`).

Legend: B images, K classes, N training images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from headwise.methods.base import Installed
from headwise.network.backbone import Backbone
from headwise.updates.consistency import Consistency
from headwise.updates.noise import Noise
from headwise.updates.objective import loss as mean_loss


class Disturbed:
    """A network whose updates are disturbed in training steps, and what its loss is. Outside of a step it is as ever.

    Attributes:
        history: in mode fast the logits of every training image when it was last seen, (N, K), zero before; else None.
    """

    def __init__(
        self,
        net: Backbone,
        installed: Installed,
        recipe: Consistency,
        *,
        seed: Callable[[int], int],
        order: Callable[[int], Tensor],
        batch_size: int,
    ) -> None:
        """Find out where noise goes in a network with the method installed; ConfigError if no block would have any.

        `seed` gives that of the noise of an epoch, counted from 0, and `order` the positions of the training images in
        it, (N,); `batch_size` is from one batch to the next.
        """
        self.net, self.installed, self.recipe = net, installed, recipe
        self.seed, self.order, self.batch_size = seed, order, batch_size
        sigmas = recipe.sigmas(len(net.blocks), len({stage for stage, _, _ in net.blocks}))
        places = installed.disturbable()
        # without noise a module computes as it does in any other run
        self.places = [(module, sigmas[block]) for module, block in places.items() if sigmas[block]]
        self.head_sigma = sigmas[-1]
        self.generator = torch.Generator()
        self.positions, self.next = order(0), 0
        shape = (len(self.positions), net.head.out_features)
        self.history = torch.zeros(shape) if recipe.mode == "fast" else None

    def start(self, epoch: int, device: torch.device) -> None:
        """Draw the noise of an epoch from its number alone, so that a resumed run repeats it."""
        self.generator = torch.Generator(device).manual_seed(self.seed(epoch))
        self.positions = self.order(epoch).to(device)
        if self.history is not None:
            self.history = self.history.to(device)

    def begin(self, batch: int) -> None:
        """Expect the images of a batch of this epoch, counted from 0, in their order, in one part or several."""
        self.next = batch * self.batch_size

    def loss(self, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy and the weighted difference of two outputs, both means over the images compared.

        Of images as the network takes them, (B, 3, S, S), and labels, (B,) or (B, K) of 0 and 1; steps count from 0.
        """
        recipe = self.recipe
        positions = self.positions[self.next : self.next + len(x)]
        self.next += len(x)
        compares = recipe.lam > 0 and recipe.mode != "fast" and step % recipe.every == 0
        if compares and recipe.mode == "lazy":
            half = max(1, len(x) // 2)
            x, labels = x[:half], labels[:half]
        with _repeated(x.device) if compares else contextlib.nullcontext():
            logits = self._logits(x)
        entropy = mean_loss(logits, labels)
        if compares:
            return entropy, recipe.lam * gap(logits, self._logits(x))
        if self.history is None:
            return entropy, torch.zeros_like(entropy)
        before = self.history[positions]
        self.history[positions] = logits.detach()
        return entropy, recipe.lam * gap(logits, before)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits of one disturbed pass, (B, K), in float32."""
        with disturbed(self.installed, self.places, self.generator, len(x)):
            logits: Tensor = self.net(x).float()
        if self.head_sigma and self.net.head.training:
            return Noise(self.head_sigma, self.generator, len(x))(logits)
        return logits


def gap(one: Tensor, other: Tensor) -> Tensor:
    """Squared distance of two rows of logits, (B, K) each, averaged over the rows."""
    return (one - other).square().sum(dim=-1).mean()


@contextlib.contextmanager
def disturbed(
    installed: Installed, places: Sequence[tuple[torch.nn.Module, float]], generator: torch.Generator, num_images: int
) -> Iterator[None]:
    """Noise on what some modules add, with their deviations, during one pass of so many images."""
    with contextlib.ExitStack() as stack:
        for module, sigma in places:
            stack.callback(installed.disturb(module, Noise(sigma, generator, num_images)))
        yield


@contextlib.contextmanager
def _repeated(device: torch.device) -> Iterator[None]:
    """Put torch's random state back afterwards: the next pass drops what this one dropped."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
