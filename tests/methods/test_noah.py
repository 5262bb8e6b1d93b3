"""NOAH: the published subnets, counts, one block by hand; the supernet, and a subnet found by a run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_native import X, build, count, step
from torch import nn

from headwise.errors import ConfigError
from headwise.methods import _supernet, noah
from headwise.methods._evolution import Evolution, Subnet
from headwise.methods.base import build_method
from headwise.methods.noah import KINDS, NOAH, Supernet, SupernetInstalled, num_parameters, published_subnets
from headwise.protocol.search import settle
from headwise.results.store import PhaseResult, ResultStore
from headwise.runs.experiment import run
from headwise.wrappers.prompting import Prompts
from made_cases import each
from made_networks import CONF, compose_config, distance, logits, network, perturb
from made_runs import train
from made_words import FAST


def test_the_published_subnets_are_of_the_19_tasks() -> None:
    subnets = published_subnets()
    assert set(subnets) == {file.stem for file in (CONF / "dataset").glob("*.yaml")}
    for subnet in subnets.values():
        assert set(subnet) == set(KINDS)
        assert all(len(sizes) == 12 and set(sizes) <= {1, 5, 10} for sizes in subnet.values())


def test_mean_count_on_vit_b16() -> None:
    subnets = published_subnets()
    totals = {
        task: sum(
            768 * p + 3072 * r + (1536 * w + w + 768) for p, r, w in zip(*(subnet[k] for k in KINDS), strict=True)
        )
        for task, subnet in subnets.items()
    }
    assert round(sum(totals.values()) / 19) == 360_134
    assert count(build("noah", "dataset=svhn")) == totals["svhn"]
    assert count(build("noah", "dataset=clevr_count")) == totals["clevr_count"]


def test_a_task_without_a_subnet_takes_the_default_and_says_so() -> None:
    installed = build("noah", "method.task=aircraft").install(network("vit"))
    assert installed.report()["subnet"] == {**{kind: [5, 5] for kind in KINDS}, "source": "default"}
    installed = build("noah", "method.task=svhn").install(network("vit"))
    assert installed.report()["subnet"]["prompt_tokens"] == [10, 5]  # of blocks 0 and 6
    assert installed.report()["subnet"]["source"] == "published for svhn"


@each("file", sorted((CONF / "dataset" / "fewshot").glob("*.yaml")))
def test_few_shot_sets_take_the_default_even_where_their_images_are_a_vtab_tasks(file: Path) -> None:
    method = build("noah", f"dataset=fewshot/{file.stem}")
    assert method.sizes(12) == ({kind: [5] * 12 for kind in KINDS}, "default")


SUBNET = "method.subnet={prompt_tokens: [2, 3], lora_rank: [1, 4], adapter_width: [3, 2]}"


def test_forward_by_hand() -> None:
    net = network("vit")
    installed = build("noah", SUBNET).install(net)
    perturb(list(installed.adapter().values()), 0.2)
    model: Any = network("vit").model
    own: Any = net.model
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(X)))
        for index, block in enumerate(model.blocks):
            tokens = installed.owners[f"s0.b{index}.prompts"].tokens
            x = torch.cat([x[:, :17], tokens.expand(len(x), -1, -1)], dim=1)
            for site in (site for site in net.sites if site.block == index and site.proj in "qkv"):
                linear = getattr(block.attn.qkv, site.proj)
                delta: Any = installed.owners[site.key]
                linear.weight += delta.B[0] @ delta.A[0]
            block.attn.qkv.join()
            x = x + block.attn(block.norm1(x))
            m = block.mlp(block.norm2(x))
            part = installed.owners[f"s0.b{index}.adapter"]
            z = part.down(m)
            x = x + m + part.up(z * torch.sigmoid(1.702 * z))
        expected = model.forward_head(model.norm(x[:, :17]))
    assert distance(logits(net, X), expected) <= 1e-5
    own.blocks[1].inner.drop_path2.inner = nn.Threshold(1e9, 0.0)  # the adapter stands behind drop-path
    assert torch.isfinite(logits(net, X)).all()


def test_lora_merges_and_the_rest_stays() -> None:
    net = network("vit")
    installed = build("noah", SUBNET).install(net)
    step(net, installed)
    assert all(tensor.grad.any() for name, tensor in installed.adapter().items() if not name.endswith(".A"))
    before = logits(net, X)
    installed.merge()
    assert distance(logits(net, X), before) <= 1e-5
    assert all(type(net.linear(site)) is nn.Linear for site in net.sites)


def test_one_a_for_q_k_and_v() -> None:
    deltas: Any = build("noah", SUBNET).install(network("vit")).owners
    assert deltas["s0.b0.q"].A is deltas["s0.b0.k"].A is deltas["s0.b0.v"].A
    assert deltas["s0.b0.q"].A is not deltas["s0.b1.q"].A


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="'noah' is defined for networks with one token sequence"):
        build("noah").install(network("swin"))
    with pytest.raises(ConfigError, match=r"subnet.lora_rank of NOAH must be 2 sizes of at least 0, got \[1\]"):
        build("noah", SUBNET.replace("[1, 4]", "[1]")).install(network("vit"))
    with pytest.raises(ConfigError, match=r"number of a block's prompts must be in 1\.\.200, got 201"):
        build("noah", SUBNET.replace("[2, 3]", "[2, 201]")).install(network("vit"))
    nothing = "method.subnet={prompt_tokens: [0, 0], lora_rank: [0, 0], adapter_width: [0, 0]}"
    with pytest.raises(ConfigError, match=r"the subnet of NOAH has no part, its sizes are all 0; .*method=linear"):
        build("noah", nothing).install(network("vit"))
    with pytest.raises(ConfigError, match="adapts q, k and v together"):
        build("noah", "method.targets=[q]")
    with pytest.raises(ConfigError, match=r"unknown init 'upstram' of method 'noah' \(did you mean 'upstream'"):
        build("noah", "method.init=upstram")
    with pytest.raises(ConfigError, match="super_prompts of method 'noah' must be a whole number of at least 1, got 0"):
        build("noah", "+method.super_prompts=0")
    with pytest.raises(ConfigError, match="super_prompts=2 is less than the 3 prompts of a block"):
        build("noah", SUBNET, "method.init=upstream", "+method.super_prompts=2").install(network("vit"))
    with pytest.raises(ConfigError, match=r"unknown key search.population_size \(did you mean 'population'"):
        build("noah", "method.search={population_size: 3}")


def of(subnet: Subnet) -> NOAH:
    return NOAH(label="noah", subnet=subnet)


def test_a_part_of_size_0_is_absent() -> None:
    subnet = {"prompt_tokens": [2, 0], "lora_rank": [0, 3], "adapter_width": [0, 4]}
    net = network("vit")
    installed = of(subnet).install(net)
    assert set(installed.owners) == {"s0.b0.prompts", "s0.b1.q", "s0.b1.k", "s0.b1.v", "s0.b1.adapter"}
    assert sum(t.numel() for t in installed.adapter().values()) == num_parameters(subnet, 48)
    tokens: list[int] = []
    for block in net.model.blocks:  # type: ignore[union-attr]
        inner: Any = block
        while hasattr(inner, "inner"):
            inner = inner.inner
        inner.norm1.register_forward_hook(lambda module, args, out: tokens.append(out.shape[1]))
    logits(net, X)
    assert tokens == [19, 19]  # 17 of its own; block 1 keeps the prompts of block 0


@each("super_prompts, bound", [(100, 0.0088), (10, 0.0266)])
def test_upstreams_prompts_are_a_slice_of_the_supernets(super_prompts: int, bound: float) -> None:
    """B7: Xavier uniform of a (1, super, 768) tensor, whose fans are 768 super and 768."""
    like = torch.empty(1, super_prompts, 768)
    nn.init.xavier_uniform_(like)
    assert float(like.abs().max()) == pytest.approx(bound, rel=0.01)
    parts = {"s0.b0.prompts": Prompts(10, 768, 1.0, 0.0)}
    noah._upstream(parts.values(), super_prompts)
    tokens = parts["s0.b0.prompts"].tokens.detach()
    assert float(tokens.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(tokens.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_the_supernet_of_a_search_starts_as_its_subnet_does() -> None:
    found = build("noah", "method.init=upstream", "+method.super_prompts=20", "method.search=evolution")
    scout = found.scout()
    assert (scout.init, scout.super_prompts) == ("upstream", 20)
    net = network("vit")
    tokens = dataclasses.replace(scout, search=SEARCH).install(net).owners["s0.b0.prompts"].tokens.detach()
    assert float(tokens.abs().max()) <= (6.0 / (48 * 20 + 48)) ** 0.5


def test_the_identity_names_the_supernets_size_only_where_it_is_read() -> None:
    plain = build("noah")
    assert "super_prompts" not in plain.spec()
    assert not {"init", "super_prompts"} & set(build("noah", "method.search=evolution").scout().spec())
    upstream = build("noah", "method.init=upstream")
    assert upstream.spec()["super_prompts"] == 100
    assert build_method(upstream.spec(), "noah") == upstream
    assert build_method(plain.spec(), "noah") == plain


def test_upstream_starts_everything_off_zero() -> None:
    installed = build("noah", "method.init=upstream", SUBNET).install(network("vit"))
    for name, tensor in installed.adapter().items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif not name.endswith("tokens"):
            assert 0.012 < tensor.std() < 0.028, name


SEARCH = {
    "sizes": [1, 3],
    "depths": [0.5, 1.0],
    "epochs": 1,
    "population": 6,
    "parents": 2,
    "crossover": 2,
    "mutation": 2,
    "generations": 2,
}
RECIPE = Evolution.of(SEARCH)


def test_the_supernet_contains_every_subnet() -> None:
    whole = network("vit")
    _supernet: Any = Supernet(label="s", search=SEARCH).install(whole)
    perturb(list(_supernet.adapter().values()), 0.2)
    for seed in range(4):
        subnet = RECIPE.draw(KINDS, 2, random.Random(seed))
        alone = network("vit")
        installed: Any = of(subnet).install(alone)
        for name, tensor in installed.adapter().items():
            held = dict(_supernet.adapter())[name]
            if held.shape == tensor.shape:
                tensor.data.copy_(held)
            else:
                tensor.data.copy_(held[tuple(slice(size) for size in tensor.shape)])
        _supernet.use(subnet)
        assert distance(logits(whole, X), logits(alone, X)) <= 1e-5, subnet
        assert sum(t.numel() for t in installed.adapter().values()) == num_parameters(subnet, 48)


def test_a_step_trains_only_what_its_subnet_uses() -> None:
    net = network("vit")
    installed: Any = Supernet(label="s", search=SEARCH).install(net)
    installed.use({"prompt_tokens": [1, 0], "lora_rank": [1, 0], "adapter_width": [3, 1]})
    step(net, installed)
    owners = installed.owners
    assert owners["s0.b0.prompts"].tokens.grad[0].any()
    assert not owners["s0.b0.prompts"].tokens.grad[1:].any()
    assert owners["s0.b0.q"].B.grad[..., :1].any()
    assert not owners["s0.b0.q"].B.grad[..., 1:].any()
    assert not owners["s0.b1.q"].B.grad.any()
    assert owners["s0.b1.adapter"].down.weight.grad[:1].any()
    assert not owners["s0.b1.adapter"].down.weight.grad[1:].any()


def test_a_supernet_is_trained_and_bred_from_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Subnet] = []
    use = SupernetInstalled.use
    monkeypatch.setattr(SupernetInstalled, "use", lambda self, subnet: (used.append(subnet), use(self, subnet))[1])
    method = Supernet(label="s", search=SEARCH, epochs=1, lr=5e-4)
    splits = {"train_split": "train800", "eval_split": "val200"}
    (first,), _ = train(network("vit"), [method], tmp_path / "a", **splits)
    drawn = used[: first.steps]
    assert len({repr(subnet) for subnet in drawn}) > 1
    torch.manual_seed(9)
    (second,), _ = train(network("vit"), [method], tmp_path / "b", **splits)
    assert first.extra == second.extra
    assert first.accuracy == second.accuracy == first.extra["evolution"]["best"][-1]
    assert first.extra["evolution"]["num_tried"] <= 18
    assert num_parameters(first.extra["subnet"], 48) == first.extra["evolution"]["parameters"]
    with pytest.raises(ConfigError, match="chooses its subnet on validation images"):
        train(network("vit"), [method], tmp_path / "c")


FIND = [
    "method=noah",
    "method.search={sizes: [1, 3], epochs: 1, population: 4, parents: 2, crossover: 1, mutation: 1, generations: 1}",
    *FAST,
]


def test_a_run_finds_its_subnet_and_retrains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("power cut")

    install = NOAH.install

    def late(self: NOAH, *rest: Any) -> Any:
        """Fail where the subnet is to train; rehearsals before that are none of it."""
        return killed() if list(tmp_path.glob("phases/*/phase.json")) else install(self, *rest)

    monkeypatch.setattr(NOAH, "install", late)
    with pytest.raises(ConfigError, match="power cut"):
        run(compose_config(*FIND, f"root={tmp_path}"))
    monkeypatch.undo()
    (scout,) = tmp_path.glob("phases/*/phase.json")
    monkeypatch.setattr(_supernet, "evolve", killed)  # the supernet and its evolution are not repeated
    run(compose_config(*FIND, f"root={tmp_path}"))
    (result,) = ResultStore(tmp_path).all()
    (phase,) = result.phases
    found = phase.extra["scout"]
    assert phase.extra["subnet"] == {**found["subnet"], "source": "given"}
    assert phase.num_tunable == num_parameters(found["subnet"], 48)
    assert found["fingerprint"] == scout.parent.name
    assert found["evolution"]["recipe"]["population"] == 4
    assert phase.method["search"] is None
    assert result.config["method"]["search"]["limit"] == 640_000


def test_a_later_phase_is_searched_on_the_ones_before_it() -> None:
    asked: list[list[str]] = []
    subnet = {kind: [1, 3] for kind in KINDS}

    def attempt(methods: Sequence[Any], seed: int | None) -> PhaseResult:
        asked.append([method.label for method in methods])
        costs = {"num_tunable": 1, "num_head": 1, "stored_bytes": 1, "seconds": 1.0}
        return PhaseResult(label="x", accuracy=50.0, extra={"subnet": subnet, "plan": None}, **costs)

    first, said = build("lora"), []
    methods = [first, NOAH(label="noah", search=SEARCH)]
    chosen, facts = settle(methods, ["first", "heads"], None, attempt, 1, said.append)
    assert asked == [["lora", "noah_supernet"]]
    assert chosen[0] is first
    assert (chosen[1].subnet, chosen[1].search) == (subnet, None)
    assert list(facts) == [1]
    assert facts[1]["scout"]["subnet"] == subnet
    assert said == ["phase 2 noah: first noah_supernet, on train800 and val200"]


def test_the_whole_recipe_is_part_of_the_identity() -> None:
    found = build("noah", "method.search=evolution")
    assert found.spec()["search"] == Evolution().spec()
    scout = found.scout()
    assert (scout.epochs, scout.lr) == (500, 5e-4)
    with pytest.raises(ConfigError, match="method 'noah' has a search, which a run does first"):
        found.install(network("vit"))
    assert dataclasses.replace(found, search=None).scout() is None
