"""Passes over the training images before a phase: gradients of weights, inputs of projections, and what comes of them.

Legend: O/I features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwise.network.backbone import Backbone
from headwise.network.portions import more_parts, split
from headwise.updates.fused import at_least_float32
from headwise.updates.objective import loss as mean_loss
from headwise.updates.qkv import SplitQKV
from headwise.updates.sites import Site

START = "_headwise_start"
"""Where a projection holds what `prepare` found for its update, until `install` takes it."""


def each_gradient(
    net: Backbone,
    wanted: Sequence[nn.Parameter],
    batches: Iterable[tuple[Tensor, Tensor]],
    take: Callable[[Sequence[Tensor]], None],
) -> None:
    """Gradients of the mean loss of every batch, in training mode; afterwards the network is as it was.

    `take` is given those of one batch, images (B, 3, S, S) and labels (B,) or (B, K), in the order of `wanted`. A batch
    that does not fit the memory is computed in parts.
    """
    flags, mode = {parameter: parameter.requires_grad for parameter in net.parameters()}, net.training
    try:
        net.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        net.train()
        parts = 1  # what was needed once is kept for the next batch
        for batch in batches:
            gradients = None
            while gradients is None:
                try:
                    gradients = _gradients(net, wanted, batch, parts)
                except Exception as error:
                    parts = more_parts(error, parts, len(batch[1]))
            take(gradients)
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        net.train(mode)


def mean_gradients(
    net: Backbone, wanted: Sequence[nn.Parameter], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """Mean over the batches of `each_gradient`."""
    sums: list[Tensor] = [torch.zeros_like(parameter) for parameter in wanted]
    count = 0

    def take(gradients: Sequence[Tensor]) -> None:
        nonlocal count
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient
        count += 1

    each_gradient(net, wanted, batches, take)
    return [total / count for total in sums]


def _gradients(net: Backbone, wanted: Sequence[nn.Parameter], batch: tuple[Tensor, Tensor], parts: int) -> list[Tensor]:
    """Gradients of the mean loss of a batch, which is computed in parts."""
    sums: list[Tensor] = []
    for images, labels, share in split(batch, parts):
        scores = net(images)
        loss = mean_loss(scores.to(at_least_float32(scores)), labels) * share
        grads = torch.autograd.grad(loss, wanted)
        sums = [total + grad for total, grad in zip(sums, grads, strict=True)] if sums else list(grads)
    return sums


class Scatter:
    """Sum of outer products of inputs around their mean, (I, I), in double precision, added up batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in x, (..., I)."""
        rows = x.detach().flatten(0, -2)
        rows = rows.to(at_least_float32(rows))
        if self.shift is None:
            # near the mean, products of single precision lose nothing to a large common part
            self.shift = rows.mean(0)
            self.total = torch.zeros_like(self.shift, dtype=torch.float64)
            self.products = torch.zeros(len(self.shift), len(self.shift), dtype=torch.float64, device=rows.device)
        rows = rows - self.shift
        self.products += (rows.T @ rows).double()
        self.total += rows.sum(0).double()
        self.count += len(rows)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Right singular vectors of the centred inputs, (I, I), a row each, and the share of variance of each, (I,).

        The largest come first. The largest entry of every row is positive, so that signs do not depend on the machine.
        """
        # the shift was near the mean of all inputs, not at it: what is left of the mean goes out here
        centred = self.products - torch.outer(self.total, self.total) / self.count
        values, vectors = torch.linalg.eigh(centred)
        values, rows = values.flip(0).clamp_min(0.0), vectors.T.flip(0)
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        return rows * largest.sign(), values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)


def scatters(net: Backbone, sites: Sequence[Site], batches: Iterable[tuple[Tensor, Tensor]]) -> dict[Site, Scatter]:
    """The scatter of the inputs of each projection, in evaluation mode. q, k and v of a block share one."""
    found: dict[Site, Scatter] = {}
    by_module: dict[nn.Module, Scatter] = {}
    for site in sites:
        # q, k and v are not called one by one: the module that holds them is
        owner = net.get_submodule(net.path(site).rpartition(".")[0])
        module = owner if isinstance(owner, SplitQKV) else net.linear(site)
        found[site] = by_module.setdefault(module, Scatter())
    hooks = [module.register_forward_pre_hook(_adding(scatter)) for module, scatter in by_module.items()]
    mode = net.training
    try:
        net.eval()
        with torch.no_grad():
            for images, _ in batches:
                net(images)
    finally:
        for hook in hooks:
            hook.remove()
        net.train(mode)
    return found


def _adding(scatter: Scatter) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, arguments: scatter.add(arguments[0])


class Counted:
    """Batches, and how many of them and of their images have been passed on: what a run's record says of a pass."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.num_batches, self.num_images = batches, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            self.num_batches += 1
            self.num_images += len(labels)
            yield images, labels


def leave(net: Backbone, site: Site, start: Any) -> None:
    """Leave what was found for the update of a projection with it, for `taken`."""
    # a plain attribute and no buffer: it is no part of the network's state
    setattr(net.linear(site), START, start)


def taken(net: Backbone, site: Site) -> Any:
    """What `leave` left at a projection, which no longer holds it; None where nothing is, as for a finished phase."""
    return net.linear(site).__dict__.pop(START, None)
