"""SPT-LoRA: sensitivities, selection by brute force, sparse updates, the plan as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_native import X, array, build, step

from headwise.errors import ConfigError
from headwise.methods.spt_lora import SparseDelta, pack_entries, unpack_entries
from headwise.wrappers.behind import BehindLinear
from made_networks import batches, distance, logits, network, perturb


def planned(budget: int) -> tuple[Any, Any, dict[str, Any]]:
    net, method = network("vit"), build("spt_lora", f"method.budget={budget}", "method.rank=2", "method.tau_step=20")
    return net, method, json.loads(json.dumps(method.prepare(net, batches(), 10)))


def test_sensitivities_are_summed_squared_gradients() -> None:
    net, method = network("vit"), build("spt_lora", "method.num_batches=2")
    found = method.sensitivities(net, batches(3))
    assert not net.training
    assert set(found) > {site.key for site in net.sites}
    assert {"blocks.0.norm1.weight", "blocks.1.mlp.fc2.bias", "norm.bias"} <= set(found)
    assert not [name for name in found if name.startswith(("head", "patch_embed", "cls_token", "pos_embed"))]
    net.requires_grad_(True)
    weight = net.linear(net.sites[4]).weight
    total = torch.zeros_like(weight)
    for images, labels in batches(2)():
        (grad,) = torch.autograd.grad(F.cross_entropy(net.train()(images), labels), [weight])
        total += grad**2
    torch.testing.assert_close(found[net.sites[4].key], total)


def test_selection_by_brute_force() -> None:
    net, method, plan = planned(3000)
    torch.manual_seed(0)
    values = method.sensitivities(net, batches())
    flat = torch.cat([v.flatten() for v in values.values()])
    threshold = flat.sort(descending=True).values[plan["tau"] - 1]
    total, shapes = 48, {site.key: net.linear(site).weight.shape for site in net.sites}
    for name, value in values.items():
        chosen = (value >= threshold).flatten().nonzero().flatten()
        if name in shapes:
            lora = 2 * sum(shapes[name])
            assert (name in plan["structured"]) == (len(chosen) >= lora / 10)
            if name in plan["structured"]:
                total += lora
            else:
                total += len(chosen)
                assert (name in plan["sparse"]) == bool(len(chosen))
                if len(chosen):
                    assert unpack_entries(plan["sparse"][name]).tolist() == chosen.tolist()
        else:
            assert (name in plan["vectors"]) == (len(chosen) >= value.numel() / 5)
            total += value.numel() if name in plan["vectors"] else len(chosen)
            own = [site.key for site in net.sites if net.linear(site).bias is dict(net.model.named_parameters())[name]]
            sparse = bool(own) and bool(len(chosen)) and name not in plan["vectors"]
            assert (plan["biases"].get(own[0]) if own else None) == (pack_entries(chosen) if sparse else None)
    assert total == plan["total"]
    assert abs(total - 3000) < 300


def test_entries_survive_json() -> None:
    entries = torch.randperm(2_359_296)[:5000]
    text = pack_entries(entries)
    assert text.isascii()
    assert unpack_entries(text).tolist() == sorted(entries.tolist())


def test_only_the_selected_train() -> None:
    net, method, plan = planned(600)
    assert plan["sparse"]
    assert plan["structured"]
    before = {name: tensor.clone() for name, tensor in net.export_state_dict().items()}
    installed = method.install(net, plan)
    assert distance(logits(net, X), logits(network("vit"), X)) <= 1e-6
    step(net, installed)
    net.zero_grad()
    step(net, installed)
    assert all(tensor.grad.any() for tensor in installed.adapter().values() if tensor.ndim > 1)
    key, text = next(iter(plan["sparse"].items()))
    moved = logits(net, X)
    site = next(site for site in net.sites if site.key == key)
    base = net.linear(site).weight.clone()
    installed.merge()
    assert distance(logits(net, X), moved) <= 1e-5
    changed = (net.linear(site).weight != base).flatten().nonzero().flatten()
    assert set(changed.tolist()) <= set(unpack_entries(text).tolist())
    assert len(changed)
    after = net.export_state_dict()
    assert not torch.equal(after["cls_token"], before["cls_token"])
    vectors = {
        f"{path}.bias" for path, _ in net.model.named_modules() if path.endswith((".qkv", ".proj", "fc1", "fc2"))
    }
    vectors |= {name.replace(".qkv.q.", ".qkv.").replace(".qkv.v.", ".qkv.") for name in plan["vectors"]}
    for name, tensor in before.items():
        if tensor.ndim == 1 and not name.startswith("head") and name not in vectors:
            assert torch.equal(after[name], tensor), name


def test_merged_weights_against_dense_numpy() -> None:
    net, method, plan = planned(600)
    plain = {site.key: array(base) for site, base in net.bases(method.targets).items()}
    installed = dataclasses.replace(method, scale=0.5).install(net, plan)
    perturb(list(installed.adapter().values()), 0.3)
    expected = dict(plain)
    for key in plan["structured"]:
        delta: Any = installed.owners[key]
        expected[key] = plain[key] + 0.5 * array(delta.B)[0] @ array(delta.A)[0]
    for key, text in plan["sparse"].items():
        flat = plain[key].flatten()
        flat[unpack_entries(text).numpy()] += array(installed.owners[key].values)
        expected[key] = flat.reshape(plain[key].shape)
    installed.merge()
    for site, base in net.bases(method.targets).items():
        np.testing.assert_allclose(array(base), expected[site.key], atol=1e-5)


def test_sparse_update_is_an_index_put() -> None:
    delta = SparseDelta(torch.zeros(3, 4), torch.tensor([1, 6, 11]))
    delta.values.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert delta.weight(torch.zeros(3, 4)).tolist() == [[0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3]]
    assert delta.pack()["entries"].dtype == torch.int32


def test_entries_of_biases_train_and_those_of_norms_do_not() -> None:
    """B8: below the threshold, in sparse, structured and otherwise untouched projections."""
    net, method, plan = planned(600)
    some = {"s0.b0.q": [1, 4], next(iter(plan["sparse"])): [0], plan["structured"][0]: [2, 3], "s0.b1.fc1": [100]}
    some = {key: entries for key, entries in some.items() if not any(key in name for name in plan["vectors"])}
    assert len(some) >= 3
    plan = {**plan, "vectors": [], "biases": {key: pack_entries(torch.tensor(e)) for key, e in some.items()}}
    before = {name: t.clone() for name, t in net.export_state_dict().items()}
    biases = {site.key: net.linear(site).bias.detach().clone() for site in net.sites}
    installed = method.install(net, json.loads(json.dumps(plan)))
    assert distance(logits(net, X), logits(network("vit"), X)) <= 1e-6
    step(net, installed)
    for key in some:
        assert installed.adapter()[f"{key}.bias_values"].grad.any() or key.endswith(".k")
    moved = logits(net, X)
    again = network("vit")
    method.install(again, plan).unpack(installed.packed())
    assert torch.equal(logits(again, X), moved)
    installed.merge()
    assert distance(logits(net, X), moved) <= 1e-5
    for site in net.sites:
        changed = (net.linear(site).bias != biases[site.key]).nonzero().flatten().tolist()
        assert set(changed) <= set(some.get(site.key, [])), site.key
        assert bool(changed) == (site.key in some), site.key
    after = net.export_state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items() if "norm" in name)


def test_selected_entries_of_biases_are_in_the_plan() -> None:
    net, method, plan = planned(1500)
    assert plan["biases"]
    assert not set(plan["biases"]) - {site.key for site in net.sites}
    installed = method.install(net, plan)
    trained = sum(t.numel() for t in installed.adapter().values())
    norms = plan["total"] - trained
    assert 0 <= norms < plan["total"] / 10  # entries of norms count and stay frozen


def test_the_grid_of_thresholds_is_the_authors() -> None:
    """B8: 0.02 to 1.58 million in steps of 0.02, with the rounding of ceil(i * 0.02 * 1e6)."""
    taus = build("spt_lora").taus(85_000_000)
    assert (len(taus), taus[:2], taus[-1]) == (79, [20_000, 40_000], 1_580_000)
    assert [tau for tau in taus if tau % 20_000] == [700_001, 820_001, 1_140_001, 1_400_001]
    assert build("spt_lora").taus(50_000) == [20_000, 40_000, 50_000]
    assert build("spt_lora", "method.tau_step=7", "method.tau_max=30").taus(100) == [7, 14, 21, 28]


def test_a_plan_of_before_biases_trained_still_installs() -> None:
    _, method, plan = planned(600)
    del plan["biases"]
    assert method.install(network("vit"), plan).adapter()


def test_upstream_starts_lora_off_zero() -> None:
    net, method, plan = planned(4000)
    assert plan["structured"]
    assert distance(logits(net, X), before := logits(network("vit"), X)) == 0.0
    installed = dataclasses.replace(method, init="upstream").install(net, plan)
    for key in plan["structured"]:
        for factor in (installed.owners[key].A, installed.owners[key].B):
            assert 0.012 < factor.std() < 0.028, key
    assert all(not installed.owners[key].values.any() for key in plan["sparse"])
    assert 1e-5 < distance(logits(net, X), before) <= dataclasses.replace(method, init="upstream").identity_tolerance
    step(net, installed)
    moved = logits(net, X)
    installed.merge()
    assert distance(logits(net, X), moved) <= 1e-5


def test_refuses() -> None:
    with pytest.raises(ConfigError, match=r"unknown init 'upsteam' of method 'spt_lora' \(did you mean 'upstream'"):
        build("spt_lora", "method.init=upsteam")
    with pytest.raises(ConfigError, match="tau_step of method 'spt_lora' must be at most tau_max=10, got 20000"):
        build("spt_lora", "method.tau_max=10")
    with pytest.raises(ConfigError, match=r"no tau of .* its budget of 600: the nearest, 20000 of .*; lower tau_step"):
        build("spt_lora", "method.budget=600").prepare(network("vit"), batches(), 10)
    with pytest.raises(ConfigError, match="needs the plan that its prepare"):
        build("spt_lora").install(network("vit"))
    with pytest.raises(ConfigError, match="budget of method 'spt_lora' must be a whole number of at least 1, got 0"):
        build("spt_lora", "method.budget=0")
    nothing = {"structured": [], "sparse": {}, "vectors": []}
    with pytest.raises(ConfigError, match=r"a budget of 400000 lets method 'spt_lora' train nothing of this network"):
        build("spt_lora").install(network("swin"), nothing)
    _, method, plan = planned(600)
    with pytest.raises(ConfigError, match="names projections that this network does not have"):
        method.install(network("vit"), {**plan, "structured": ["s7.b0.q"]})


def test_sensitivities_of_a_batch_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, method = network("vit"), build("spt_lora", "method.dropout=0")
    whole = method.sensitivities(net, batches())
    sizes: list[int] = []
    forward = type(net).forward

    def limited(self: Any, images: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return forward(self, images)

    monkeypatch.setattr(type(net), "forward", limited)
    parts = method.sensitivities(net, batches())
    assert sizes == [8, 4, *[2] * 8]
    assert parts.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-9)


def test_adapters_stand_behind_what_is_sensitive() -> None:
    """SPT-Adapter: y + drop(U gelu(D y + d) + u), y the output of the projection, at 2 O r + r + O parameters."""
    net = network("vit")
    method = build("spt_adapter", "method.budget=3000", "method.rank=2", "method.tau_step=20")
    assert not method.merges
    plan = json.loads(json.dumps(method.prepare(net, batches(), 10)))
    installed = method.install(net, plan)
    sizes = {name: p.numel() for name, p in installed.adapter().items()}
    assert sum(sizes.values()) == method.count(network("vit"), plan) == plan["total"]
    assert plan["structured"]
    perturb(list(installed.adapter().values()), 0.1)
    net.eval()
    for site in net.sites:
        layer = net.linear(site)
        if site.key not in plan["structured"]:
            assert not isinstance(layer, BehindLinear)
            continue
        assert isinstance(layer, BehindLinear)
        part, rows = layer.delta.part, layer.module.weight.shape[0]  # type: ignore[union-attr]
        own = sum(size for name, size in sizes.items() if name.startswith(f"{site.key}.part."))
        assert own == 2 * rows * 2 + 2 + rows
        x = torch.randn(3, layer.module.weight.shape[1])  # type: ignore[union-attr, arg-type]
        shift = torch.zeros(rows)
        if site.key in plan["biases"]:
            shift[unpack_entries(plan["biases"][site.key]).long()] = layer.delta.get_parameter("bias_values").detach()
        y = layer.module(x) + shift
        down, up = part.down, part.up  # type: ignore[union-attr]
        torch.testing.assert_close(layer(x), y + up(F.gelu(down(y))))
    before = logits(net, X)
    installed.merge()
    assert distance(logits(net, X), before) < 1e-5


def test_the_recipe_of_spt_lora_is_what_it_was() -> None:
    assert not {"structure", "drop_path"} & build("spt_lora").spec().keys()
    assert build("spt_adapter").spec()["structure"] == "adapter"
    with pytest.raises(
        ConfigError, match=r"drop_path of method 'spt_lora' is of adapters, got 0.1; allowed with lora: 0"
    ):
        build("spt_lora", "+method.drop_path=0.1")
