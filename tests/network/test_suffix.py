"""Going on from the input of a block gives what the whole network gives, to the last bit."""

import pytest
import torch

from headwise.errors import ConfigError
from headwise.methods.vpt import VPT
from headwise.network.suffix import Suffix
from made_cases import each
from made_networks import images, network


@each("name", ["vit", "swin"])
def test_from_every_block_to_the_end(name):
    suffix = Suffix(network(name))
    with torch.no_grad():
        inputs, logits = suffix.inputs(images())
        assert torch.equal(logits, suffix.net(images()))
        assert len(inputs) == len(suffix.places)
        for index, x in enumerate(inputs):
            assert torch.equal(suffix.resume(index, x), logits)


@each("name", ["vit", "swin"])
def test_from_every_block_to_every_other(name):
    suffix = Suffix(network(name))
    with torch.no_grad():
        inputs, _ = suffix.inputs(images())
        for start, x in enumerate(inputs):
            for end in range(start, len(inputs)):
                assert torch.equal(suffix.resume(start, x, end), inputs[end])


def test_no_hook_stays_behind():
    suffix = Suffix(network("vit"))
    suffix.inputs(images())
    assert not any(module._forward_pre_hooks for module in suffix.net.modules())


@each("deep", [False, True])
def test_prompts_are_part_of_their_blocks(deep):
    net = network("vit")
    VPT(label="vpt", deep=deep, prompts=3).install(net)
    Suffix(net.eval()).check(images())


def test_what_is_computed_elsewhere_is_noticed():
    net = network("vit")
    net.model.norm.register_forward_pre_hook(lambda module, x: (x[0] + 1,))
    suffix = Suffix(net)
    suffix.check(images())  # the norm is run either way
    net.model.register_forward_hook(lambda module, x, y: y + 1)
    with pytest.raises(ConfigError, match="computes more between block"):
        suffix.check(images())
