"""Planted answers: an update in one head alone matters there alone, and computing the rest only is exact."""

import copy

import pytest
import torch
import torch.nn.functional as F

from headwise.analysis.switches import HeadUpdate, Switches, cumulative, greedy, rows_of, toggled, with_heads
from headwise.errors import ConfigError
from made_cases import each
from made_networks import CLASSES, images, network

BATCHES = [(images(6, seed), torch.arange(6) % CLASSES) for seed in range(2)]


def trained(name, places, size=0.3, bias=False):
    """A network with noise added in these (stage, block, projection, head), and its rows before."""
    net = network(name)
    before = {site: rows_of(net, site) for site in with_heads(net)}
    generator = torch.Generator().manual_seed(3)
    for site in before:
        for head in range(site.num_heads):
            if (site.stage, site.block, site.proj, head) in places:
                rows = slice(head * site.head_dim, (head + 1) * site.head_dim)
                linear = net.linear(site)
                linear.weight.data[rows] += size * torch.randn(site.head_dim, linear.in_features, generator=generator)
                if bias:
                    linear.bias.data[rows] += size
    return net, before


def everywhere(name):
    net = network(name)
    return [(s.stage, s.block, s.proj, h) for s in with_heads(net) for h in range(s.num_heads)]


def brute_force(net, before, off):
    """Loss and success of each image with some heads' rows as before, by whole forward passes of a copy."""
    net = copy.deepcopy(net)
    for site, head in off:
        rows = slice(head * site.head_dim, (head + 1) * site.head_dim)
        net.linear(site).weight.data[rows] = before[site].weight[rows]
        net.linear(site).bias.data[rows] = before[site].bias[rows]
    with torch.no_grad():
        logits = [net(x) for x, _ in BATCHES]
    loss = [F.cross_entropy(y.double(), t, reduction="none") for y, (_, t) in zip(logits, BATCHES, strict=True)]
    correct = [y.argmax(-1) == t for y, (_, t) in zip(logits, BATCHES, strict=True)]
    return torch.cat(loss), torch.cat(correct)


@each("name", ["vit", "swin"])
def test_one_off_at_a_time_equals_brute_force(name):
    net, before = trained(name, everywhere(name), bias=True)
    switches = Switches(net, before)
    base, without = toggled(switches, BATCHES, switches.updates, switches.updates)
    assert len(switches.updates) == len(everywhere(name)) == len(without.loss)
    loss, correct = brute_force(net, before, [])
    assert torch.equal(base.loss, loss) and torch.equal(base.correct, correct)
    for index, update in enumerate(switches.updates):
        loss, correct = brute_force(net, before, [update])
        assert torch.equal(without.loss[index], loss), update.key
        assert torch.equal(without.correct[index], correct)


@each("name", ["vit", "swin"])
def test_one_on_at_a_time_equals_brute_force(name):
    net, before = trained(name, everywhere(name))
    switches = Switches(net, before)
    base, alone = toggled(switches, BATCHES, (), switches.updates)
    assert torch.equal(base.loss, brute_force(net, before, switches.updates)[0])
    for index, update in enumerate(switches.updates):
        off = set(switches.updates) - {update}
        assert torch.equal(alone.loss[index], brute_force(net, before, off)[0])


def test_an_update_of_one_head_matters_there_alone():
    net, before = trained("vit", [(0, 1, "v", 2)])
    switches = Switches(net, before)
    (only,) = switches.live
    assert [update.head for update in switches.updates] == list(range(only.site.num_heads)), "the whole projection"
    assert (only.site.block, only.site.proj, only.head) == (1, "v", 2)
    heads = [HeadUpdate(site, head) for site in before for head in range(site.num_heads)]
    base, without = toggled(switches, BATCHES, switches.updates, heads)
    changed = (without.loss != base.loss).any(-1)
    assert [update for update, differs in zip(heads, changed, strict=True) if differs] == [only]


@each("name", ["vit", "swin"])
def test_one_after_the_other_equals_brute_force(name):
    net, before = trained(name, everywhere(name))
    switches = Switches(net, before)
    shuffled = torch.randperm(len(switches.updates), generator=torch.Generator().manual_seed(0)).tolist()
    order = [switches.updates[i] for i in shuffled]
    counts = [0, 1, 2, 3, 5, len(order) - 1, len(order)]
    found = cumulative(switches, BATCHES, order, counts)
    for row, count in enumerate(counts):
        loss, correct = brute_force(net, before, order[count:])
        assert torch.equal(found.loss[row], loss)
        assert torch.equal(found.correct[row], correct)


def test_greedy_takes_the_least_each_time():
    net, before = trained("vit", [(0, 0, "q", 0), (0, 0, "v", 1), (0, 1, "v", 3)])
    switches = Switches(net, before)
    steps = greedy(switches, BATCHES, 5)
    assert len(steps) == 3
    off = []
    for update, loss, accuracy in steps:
        left = [u for u in switches.updates if u in switches.live and u not in off]
        tried = [brute_force(net, before, [*off, u])[0].mean() for u in left]
        assert loss == pytest.approx(float(min(tried)), abs=1e-12)
        assert left[int(torch.stack(tried).argmin())] == update
        off.append(update)
        assert accuracy == pytest.approx(100 * float(brute_force(net, before, off)[1].double().mean()))


def test_everything_is_as_before_afterwards():
    net, before = trained("vit", everywhere("vit"))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    switches = Switches(net, before)
    toggled(switches, BATCHES, (), switches.updates)
    cumulative(switches, BATCHES, switches.updates, [0, 2])
    with pytest.raises(ConfigError, match="no image"):
        toggled(switches, [], (), switches.updates)
    assert switches.is_on == set(switches.updates)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


def test_a_network_whose_heads_did_not_change():
    net, before = trained("vit", [])
    with pytest.raises(ConfigError, match="changed no weight of q, k or v"):
        Switches(net, before)
