"""Whether methods work in a network: tried with two blank images before anything is fetched or trained."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headwise.errors import ConfigError, HeadwiseError
from headwise.methods.base import Installed, Method, as_asked
from headwise.network.backbone import Backbone
from headwise.network.portions import is_out_of_memory
from headwise.network.projections import ALLOWED


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave python's, numpy's and torch's random states as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def fitting(net: Backbone, method: Method | None = None) -> Iterator[None]:
    """Turn what a network or a method in it was not made for into a refusal that names both.

    Raises:
        ConfigError: for any error but our own and a lack of memory.
    """
    try:
        yield
    except HeadwiseError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        network = f"{net.provenance.get('timm_name') or 'the network'} ({type(net.model).__name__})"
        what = f"method {method.label} does not work in {network}" if method else f"{network} cannot be used"
        # errors of libraries may run over many lines, ours are one
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{what}: {type(error).__name__}: {said}; {ALLOWED}") from error


def dry_forward(net: Backbone, method: Method | None = None) -> None:
    """Pass two blank images through a network in evaluation mode; nothing of it changes, nor any random state.

    ConfigError, which names the `method` that is installed, if that fails or gives anything but a row of logits per
    image.
    """
    modes = [(module, module.training) for module in net.modules()]
    try:
        for module, _ in modes:
            # flags are set one by one: eval() would also call train() of the modules that override it
            module.training = False
        with fitting(net, method), own_randomness(), torch.no_grad():
            images = torch.zeros(2, 3, net.img_size, net.img_size, device=next(net.parameters()).device)
            logits: Any = net(images)
            wanted = (2, net.head.out_features)
            if (given := tuple(getattr(logits, "shape", ()))) != wanted:
                raise TypeError(f"two images give {given or type(logits).__name__} instead of logits {wanted}")
    finally:
        for module, mode in modes:
            module.training = mode


def fitted(method: Method, net: Backbone, plan: Mapping[str, Any] | None = None) -> Installed:
    """Install a method and pass two images through it; ConfigError where it does not fit this network."""
    with fitting(net, method):
        installed = as_asked(method, method.install(net, None if plan is None else dict(plan)))
    dry_forward(net, method)
    return installed


def rehearse(net: Backbone, methods: Sequence[Method], first: bool = True) -> None:
    """Rehearse phases in copies of a network, so that one that does not fit is refused before any has trained.

    What merges leaves the network as it was; what stays in place is put there first. `net` has its classifier, and
    stays as it is. Without `first` the first phase is not rehearsed: its caller installs it next. ConfigError where the
    network or a method in it does not work.
    """
    dry_forward(net)
    stage = net
    for index, method in enumerate(methods):
        if index or first:
            trial = copy.deepcopy(stage)
            with own_randomness(), fitting(trial, method):
                method.rehearse(trial)
            dry_forward(trial, method)
        # where it would go is decided by a look at the images, which is still to come
        is_planned = type(method).prepare is not Method.prepare
        if not method.merges and not is_planned and index + 1 < len(methods):
            stage = copy.deepcopy(stage)
            with own_randomness(), fitting(stage, method):
                method.install(stage).merge()
