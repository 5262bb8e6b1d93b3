"""EVA: agreement with peft and with a plain SVD, ranks shared out, the plan, storage."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
from made_native import array, build
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor, nn

from headwise.errors import ConfigError
from headwise.methods._passes import START, scatters
from headwise.methods.eva import EVA, distribute
from headwise.methods.qlora import QLoRA
from headwise.updates.sites import Site
from made_networks import batches, distance, logits, network


def eva(**fields: Any) -> EVA:
    return EVA(**{"label": "eva", "rank": 4, **fields})


def inputs_of(net: Any, module: nn.Module) -> Any:
    """What a module reads over all batches, (rows, I), in numpy."""
    rows: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].flatten(0, -2)))
    with torch.no_grad():
        for x, _ in batches()():
            net.eval()(x)
    hook.remove()
    return array(torch.cat(rows))


def test_a_is_the_papers_svd_of_the_inputs() -> None:
    net, method = network("vit"), eva(targets=["q", "v", "fc2"], rho=1.0)
    before = logits(net, images := next(iter(batches()()))[0])
    plan = method.prepare(net, batches(), 10)
    installed = method.install(net, plan)
    assert distance(logits(net, images), before) == 0.0
    assert not net.training
    plain = network("vit")
    blocks: Any = plain.model.blocks
    for index, block in enumerate(blocks):
        for proj, module in (("q", block.attn.qkv), ("v", block.attn.qkv), ("fc2", block.mlp.fc2)):
            x = inputs_of(plain, module)
            _, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
            down = array(installed.owners[f"s0.b{index}.{proj}"].A)[0]
            np.testing.assert_allclose(np.abs(np.sum(down * right[:4], axis=1)), 1.0, atol=1e-4)
            assert not installed.owners[f"s0.b{index}.{proj}"].B.any()
            shares = scatters(plain, [s for s in plain.sites if s.key == f"s0.b{index}.{proj}"], batches()())
            (scatter,) = shares.values()
            np.testing.assert_allclose(
                array(scatter.directions()[1])[:8], (values**2 / np.sum(values**2))[:8], rtol=1e-4
            )


def test_agrees_with_peft() -> None:
    """peft's runs batch by batch with a randomised SVD, so its directions agree as far as they have settled."""
    net = network("vit")
    config = peft.LoraConfig(
        r=3, target_modules=["proj", "fc1"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0, tau=0.9999)
    )
    (x, y), *_ = batches()()
    theirs = get_eva_state_dict(
        net.model,
        [x],
        config,
        forward_fn=lambda model, inputs: model(inputs),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    theirs = {name: rows for name, rows in theirs.items() if "patch_embed" not in name}
    method = eva(rank=3, targets=["o", "fc1"], num_batches=1)
    plan = method.prepare(net, lambda: iter([(x, y)]), 10)
    names = {"o": "attn.proj", "fc1": "mlp.fc1"}
    sites = [site for site in net.sites if site.proj in names]
    assert len(theirs) == len(sites)
    for site in sites:
        rows = theirs[f"blocks.{site.block}.{names[site.proj]}"]
        assert plan["ranks"][site.key] == len(rows)
        ours = getattr(net.linear(site), START)
        cosines = torch.nn.functional.cosine_similarity(ours, rows.to(ours.dtype)).abs()
        assert bool((cosines > 0.99).all())


def test_ranks_go_where_variance_is() -> None:
    first, second, third = (Site(0, index, "q", 1, 4) for index in range(3))
    shares = {first: [0.5, 0.3, 0.1], second: [0.2, 0.2, 0.2], third: [0.05, 0.04, 0.03]}
    assert distribute(shares, 4) == {first: 2, second: 2, third: 0}
    assert distribute(shares, 6) == {first: 3, second: 3, third: 0}
    even = {first: [0.25] * 2, second: [0.25] * 2}
    assert distribute(even, 3) == {first: 2, second: 1}


def test_the_plan_is_recorded_and_no_projection_exceeds_rho() -> None:
    net, method = network("vit"), eva(rho=1.5, num_batches=2, targets=["q", "v", "o"])
    plan = method.prepare(net, batches(3), 10)
    assert json.loads(json.dumps(plan)) == plan
    assert sum(plan["ranks"].values()) == 4 * len(net.bases(method.targets))
    assert max(plan["ranks"].values()) <= 6
    assert (plan["batches"], plan["images"]) == (2, sum(len(y) for _, y in list(batches(2)())))
    installed = method.install(net, {**plan, "ranks": {**plan["ranks"], "s0.b0.q": 0}})
    assert "s0.b0.q" not in installed.owners
    assert not any(hasattr(net.linear(site), START) for site in net.sites)


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"rho of method 'eva' must be a number of at least 1, got 0\.5"):
        eva(rho=0.5)
    net = network("vit")
    with pytest.raises(ConfigError, match="needs the plan that its prepare"):
        eva().install(net)
    with pytest.raises(ConfigError, match="has no size before"):
        eva().count(net)
    with pytest.raises(ConfigError, match="names projections that this network does not have"):
        eva().install(net, {"ranks": {"s9.b9.q": 4}})
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.48 for s0\.b0\.q"):
        eva(rank=64).rehearse(net)


def test_composes() -> None:
    method = build("eva", "rank=r8")
    assert (method.rank, method.rho, method.targets) == (8, 2.0, ["q", "v"])


def test_it_stands_beside_weights_in_four_bits() -> None:
    """EVA looks at inputs, which a quantised projection has as well."""
    net = network("vit")
    net.new_head(3)
    QLoRA(label="first", rank=2, targets=("q", "v")).install(net).merge()
    x = torch.randn(4, 3, net.img_size, net.img_size)
    before = net(x).detach()
    method = EVA(label="second", rank=2, targets=("q", "v"))
    plan = method.prepare(net, lambda: [(x, torch.zeros(4, dtype=torch.long))], 10)
    method.install(net, plan)
    assert torch.equal(net(x), before)
