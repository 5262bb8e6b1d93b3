"""Every conf/method/*.yaml in one of timm's other families, one of each class in a Swin, and those of `FEW` in all.

What they all must do is in test_conformance.py; here is what another attention or block could break.
"""

from __future__ import annotations

import copy

import pytest
import torch

from headwise.methods.base import Method
from headwise.network.backbone import Backbone
from made_networks import FURTHER, composed_method, distance, logits, network, perturb, plain_timm
from made_phases import FEW, KINDS, METHODS, Phase, X, declared_count, leftovers, tensors_of, train, unfolded

FAMILIES = ("swin", *FURTHER)
CASES = [
    f"{name}-{family}"
    for place, family in enumerate(FAMILIES)
    for number, name in enumerate(METHODS)
    if name in FEW or (family == "swin" and name in KINDS) or number % len(FAMILIES) == place
]


@pytest.mark.parametrize("case", CASES)
def test_a_method_in_a_family(case: str) -> None:
    name, _, family = case.rpartition("-")
    phases = unfolded(composed_method(name), family)
    if not phases:
        pytest.skip(f"{name} declares that it is not defined for {family}")
    check(phases, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FURTHER)
def test_every_method_in_every_family(family: str) -> None:
    failed = []
    for name in METHODS:
        try:
            check(unfolded(composed_method(name), family), family)
        except Exception as error:
            error.add_note(f"{name} in {family}")
            failed.append(error)
    if failed:
        raise ExceptionGroup(family, failed)


def check(phases: tuple[Phase, ...], family: str) -> None:
    merges = True
    for phase in phases:
        net, installed = phase.install()
        assert sum(tensor.numel() for tensor in installed.adapter().values()) == declared_count(phase)
        if phase.method.identity_tolerance == Method.identity_tolerance:
            assert distance(logits(net, X), logits(phase.base, X)) <= 1e-5
        tunable = {id(tensor) for tensor in installed.trainable().values()}
        before = {key: tensor.detach().clone() for key, tensor in tensors_of(net).items()}
        train(net, installed, 1)
        changed = {key: tensor for key, tensor in tensors_of(net).items() if not torch.equal(tensor, before[key])}
        assert changed and {id(tensor) for tensor in changed.values()} <= tunable
        perturb(list(installed.trainable().values()))
        moved = logits(net.eval(), X)
        assert distance(moved, logits(phase.base, X)) > 1e-6
        installed.merge()
        assert distance(logits(net, X), moved) <= 1e-5
        merges = merges and phase.method.merges
        if merges:
            assert leftovers(net) == []
            plain = plain_timm(family)
            plain.load_state_dict(net.export_state_dict(), strict=True)
            assert distance(logits(plain, X), moved) <= 1e-5


@pytest.mark.parametrize("family", FURTHER)
def test_logits_and_tensors_are_timms(family: str) -> None:
    model = plain_timm(family)
    perturb(list(model.parameters()), 0.05)
    net = Backbone(copy.deepcopy(model), 32, (0.5,) * 3, (0.5,) * 3)
    assert distance(logits(net, X), logits(model, X)) <= 1e-5
    state = net.export_state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FURTHER)
def test_every_projection_is_called(family: str) -> None:
    """An update of each projection of each block changes the logits, and it has the rows that its site says."""
    net = network(family)
    before = logits(net, X)
    for site in net.sites:
        moved = copy.deepcopy(net)
        linear = moved.linear(site)
        assert linear.weight.shape[0] == site.num_rows
        linear.weight.data.add_(0.5 * torch.randn_like(linear.weight))
        assert distance(logits(moved, X), before) > 1e-6, site.key
