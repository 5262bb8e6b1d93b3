"""Head gating in training: what is scored, when heads go off, and that stopped or shared runs give the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method
from headwise.methods.bi_lora import BiLoRA
from headwise.methods.cara import CaRA
from headwise.methods.dora import DoRA
from headwise.methods.fact import FacT
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.methods.mora import MoRA
from headwise.methods.peft_bridge import PeftMethod
from headwise.methods.pissa import PiSSA
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult, PhaseStore
from headwise.training.loop import PhaseModule
from headwise.updates.adapted import AdaptedLinear, Delta
from headwise.updates.gate import Gate
from headwise.updates.heads import least_responsive, responsiveness
from headwise.updates.masking import HeadMasking
from headwise.updates.sites import Site
from made_cases import each
from made_networks import batches, distance, images, logits, network, perturb
from made_runs import trained

ONE = {"count": 1}
METHODS: dict[str, Callable[..., Method]] = {
    "lora": lambda **more: LoRA(label="lora", rank=3, **more),
    "fused": lambda **more: LoRA(label="fused", rank=3, fused=True, targets=("q", "k", "v"), **more),
    "head_lora": lambda **more: HeadLoRA(label="head_lora", rank=2, **more),
    "bi_lora": lambda **more: BiLoRA(label="bi_lora", rank=5, **more),
    "pissa": lambda **more: PiSSA(label="pissa", rank=3, **more),
    "dora": lambda **more: DoRA(label="dora", rank=3, **more),
    "cara": lambda **more: CaRA(label="cara", rank=5, targets=("q", "k", "v"), **more),
    "fact tt": lambda **more: FacT(label="fact_tt", kind="tt", rank=3, targets=("q", "v", "o"), **more),
    "fact tk": lambda **more: FacT(label="fact_tk", kind="tk", rank=3, targets=("q", "v", "o"), **more),
    "mora sharing": lambda **more: MoRA(label="mora_1", rank=2, type=1, targets=("q", "o"), **more),
    "mora rotation": lambda **more: MoRA(label="mora_6", rank=2, targets=("q", "o"), **more),
    "lora on o": lambda **more: LoRA(label="lora_o", rank=3, targets=("q", "o"), **more),
    "head_lora on o": lambda **more: HeadLoRA(label="head_lora_o", rank=2, targets=("q", "o"), **more),
    "pissa on o": lambda **more: PiSSA(label="pissa_o", rank=3, targets=("q", "o"), **more),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param](gate=ONE)


def install(method: Method, family: str = "vit", moved: bool = True) -> tuple[Any, Installed, dict[Site, Delta]]:
    net = network(family)
    torch.manual_seed(0)
    installed = method.install(net)
    if moved:
        perturb(list(installed.trainable().values()))
    assert installed.masking is not None
    return net.eval(), installed, installed.masking.deltas


def evidence(net: Any, installed: Installed) -> dict[Site, Any]:
    assert installed.masking is not None
    installed.masking._require(True)
    try:
        return installed.masking.score(net, batches()())
    finally:
        installed.masking._require(False)


def dense_gradients(net: Any, deltas: dict[Site, Delta]) -> dict[Site, tuple[Tensor, Tensor]]:
    """Update and gradient of the mean loss by it, (O, I) each, with the adapted weights as free matrices."""
    updates, weights = {}, {}
    for site, delta in deltas.items():
        linear = net.linear(site)
        updates[site] = delta.weight(linear.weight).detach()
        plain = linear.merged()
        plain.weight.requires_grad_()
        net.replace(site, plain)
        weights[site] = plain.weight
    parts = batches()()
    loss = torch.stack([F.cross_entropy(net(x), y) for x, y in parts]).mean()
    return {site: (updates[site], grad) for site, grad in zip(weights, grads(loss, weights), strict=True)}


def grads(loss: Tensor, weights: dict[Site, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(weights.values()))


def per_head(site: Site, rows: Tensor) -> Tensor:
    return rows.view(site.num_heads, -1).sum(1)


def test_gate_gradient_is_update_times_its_gradient(method: Method) -> None:
    """dL/dgate_i = sum(dW_i * dL/dW_i), head by head, whatever makes up the update."""
    net, installed, deltas = install(method)
    found = evidence(net, installed)
    for site, (update, grad) in dense_gradients(net, deltas).items():
        expected = site.head_parts(update * grad).sum((1, 2))
        assert distance(found[site].gate, expected) <= 2e-4 * float(expected.abs().max()) + 1e-7, site.key


def test_gate_gradient_of_lora_is_sum_of_b_times_g() -> None:
    """Heart-LoRA Eq. 5: r_i = sum(B_i * G_i); norms of the rows of B and of G."""
    net, installed, deltas = install(METHODS["lora"](gate={"count": 1, "score": "grad_l2"}))
    found = evidence(net, installed)
    net.zero_grad()
    torch.stack([F.cross_entropy(net(x), y) for x, y in batches()()]).mean().backward()
    for site, delta in deltas.items():
        b, g = delta.get_parameter("B").detach(), delta.get_parameter("B").grad
        assert g is not None
        assert distance(found[site].gate, per_head(site, b * g)) <= 1e-6
        assert distance(found[site].weight, per_head(site, b.square()).sqrt()) <= 1e-6
        assert distance(found[site].grad, per_head(site, g.square()).sqrt()) <= 1e-6


def test_on_o_the_scores_are_of_the_columns_of_a() -> None:
    """The gate of a head of o multiplies its columns of A: r_i = sum(A_i * G_i), G = dL/dA."""
    net, installed, deltas = install(METHODS["lora on o"](gate={"count": 1, "score": "grad_l2"}))
    found = evidence(net, installed)
    net.zero_grad()
    torch.stack([F.cross_entropy(net(x), y) for x, y in batches()()]).mean().backward()
    for site, delta in deltas.items():
        if site.proj != "o":
            continue
        a, g = delta.get_parameter("A").detach(), delta.get_parameter("A").grad
        assert g is not None
        for seen, values in ((found[site].gate, a * g), (found[site].weight, a.square()), (found[site].grad, g * g)):
            by_head = values[0].view(3, site.num_heads, site.head_dim).sum((0, 2))
            assert distance(seen, by_head if seen is found[site].gate else by_head.sqrt()) <= 1e-6


def test_mask_on_the_update_is_zeroed_rows(method: Method) -> None:
    net, _, deltas = install(method)
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    net.requires_grad_(False)
    bases = {site: net.linear(site).weight for site in deltas}
    expected = {}
    for site, delta in deltas.items():
        switches = site.rows(mask)[None, :] if site.proj == "o" else site.rows(mask)[:, None]
        expected[site] = delta.weight(bases[site]) * switches
    for delta in deltas.values():
        delta.switch(mask)
    masked = logits(net, images())
    for site, delta in deltas.items():
        assert distance(delta.weight(bases[site]), expected[site]) <= 1e-7
        linear = net.linear(site)
        plain = torch.nn.Linear(linear.in_features, linear.out_features)
        plain.weight.data, plain.bias.data = linear.weight.data + expected[site].detach(), linear.bias.data.clone()
        net.replace(site, plain)
    assert distance(logits(net, images()), masked) <= 1e-5


def test_rows_that_are_off_get_no_gradient(method: Method) -> None:
    if isinstance(method, BiLoRA):
        method = dataclasses.replace(method, stats="active_rows")
    net, _, deltas = install(method)
    for delta in deltas.values():
        delta.switch(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    net(images()).square().sum().backward()
    for site, delta in deltas.items():
        for name in delta.by_head:
            grad = dict(delta.named_parameters()).get(name)
            if grad is not None and grad.grad is not None:
                found = delta.head_parts(grad.grad).abs().sum(1) > 0
                assert found.tolist() == [False, True, True, False], f"{site.key}.{name}"


@pytest.mark.parametrize("mask", [[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
def test_heads_that_are_off_are_left_out_of_the_file(method: Method, mask: list[int]) -> None:
    net, installed, deltas = install(method)
    whole = installed.stored_bytes()
    for delta in deltas.values():
        delta.switch(torch.tensor(mask).float())
    stored = installed.packed()
    fresh, again, _ = install(method, moved=False)
    again.unpack(stored)
    assert torch.equal(logits(fresh, images()), logits(net, images()))
    on = sum(mask)
    assert ("s0.b0.q.active" in stored) == (on < 4)
    if isinstance(method, HeadLoRA):
        assert installed.stored_bytes() == whole * on // 4 + (len(deltas) if on < 4 else 0)
        assert stored["s0.b0.q.A"].shape == (on, 2, 48)
        assert stored["s0.b0.q.B"].shape == (on, 12, 2)
    elif on < 4 and any(delta.by_head for delta in deltas.values()):
        assert installed.stored_bytes() < whole
    elif on < 4:  # what its heads share stays whole
        assert installed.stored_bytes() == whole + len(deltas)
    assert installed.report()["paper_bytes"] == round(whole * on / 4)


def test_groups_that_are_off_are_not_computed() -> None:
    net, _, deltas = install(METHODS["head_lora"](gate=ONE))
    delta = next(iter(deltas.values()))
    delta.switch(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    factors = delta.factors()
    assert factors is not None
    assert factors.runs == ((1, 3),)
    delta.switch(torch.zeros(4))
    assert delta.factors().runs == ()  # type: ignore[union-attr]
    delta.switch(torch.ones(4))
    assert delta.factors().runs is None  # type: ignore[union-attr]
    assert torch.isfinite(logits(net, images())).all()


@each("score", ["taylor_neg", "taylor_abs", "weight_l2", "taylor_pos"])
def test_a_planted_useful_head_ranks_first(score: str) -> None:
    """Labels that only the update of head 2 explains: with the wrong sign it is the first to go."""
    net, installed, deltas = install(METHODS["lora"](gate=ONE), moved=False)
    with torch.no_grad():
        for site, delta in deltas.items():
            if site.key == "s0.b1.v":
                delta.get_parameter("B")[0, 24:36].normal_(std=3.0, generator=torch.Generator().manual_seed(1))
    x = images(32)
    labels = logits(net, x).argmax(1)
    assert installed.masking is not None
    installed.masking._require(True)
    found = installed.masking.score(net, [(x, labels)])
    key = next(site for site in deltas if site.key == "s0.b1.v")
    order = least_responsive(responsiveness(found[key], score), 4).flip(0).tolist()
    assert order[3 if score == "taylor_pos" else 0] == 2


def train(
    methods: list[Method], folder: Path, epochs: int = 3, said: list[str] | None = None, family: str = "vit"
) -> list[PhaseResult]:
    recipe = Protocol(epochs=epochs, batch_size=16, lr=1e-2, drop_path=0.1)
    return trained(network(family), methods, folder, recipe, say=([] if said is None else said).append)


def comparable(result: PhaseResult, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Everything of a phase that no clock changes."""
    record = result.to_json()
    record.pop("seconds")
    record.pop("images_per_second")
    record.pop("peak_memory")
    record["extra"]["gate"].pop("scoring_seconds")
    return record, load_file(str(PhaseStore(folder).path(result.fingerprint) / "phase.safetensors"))


def assert_same(first: tuple[Any, dict[str, Tensor]], second: tuple[Any, dict[str, Tensor]]) -> None:
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(tensor, second[1][name]) for name, tensor in first[1].items())


HEART = BiLoRA(label="heart", rank=5, gate={"count": 1})


@each("score_data", ["full_pass", "last_batch"])
def test_a_shared_warmup_changes_nothing(score_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked from a stored warm-up or trained in one go: the same bits, and the warm-up is trained once."""
    methods = [
        dataclasses.replace(HEART, gate={"count": count, "scope": scope, "score_data": score_data})
        for count, scope in ((1, "global"), (3, "layer"))
    ]
    said: list[str] = []
    forked = [comparable(*train([method], tmp_path / "a", said=said), tmp_path / "a") for method in methods]
    assert sum("its warm-up is already trained" in line for line in said) == 1
    monkeypatch.setattr(Method, "trunk", lambda self, epochs: None)
    for method, found in zip(methods, forked, strict=True):
        (alone,) = train([method], tmp_path / "b")
        assert_same(comparable(alone, tmp_path / "b"), found)
    assert forked[0][0]["active_heads"] == 3
    assert forked[1][0]["active_heads"] == 1


def crash_in(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    step = PhaseModule.training_step

    def crashing(self: PhaseModule, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == epoch and batch_idx == 1:
            raise KeyError("power")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", crashing)


@each("epoch", [0, 1, 2])
def test_a_stopped_run_gives_the_same_mask_and_numbers(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = dataclasses.replace(HEART, gate={"count": 2, "warmup": 1})
    (whole,) = train([method], tmp_path / "a")
    with monkeypatch.context() as patch:
        crash_in(patch, epoch)
        with pytest.raises(KeyError, match="power"):
            train([method], tmp_path / "b")
    (resumed,) = train([method], tmp_path / "b")
    assert_same(comparable(whole, tmp_path / "a"), comparable(resumed, tmp_path / "b"))
    assert whole.active_heads == 2


def test_before_the_choice_it_is_the_ungated_run(tmp_path: Path) -> None:
    """Nothing but the masks differs: with no head to switch off, the run is that without a gate."""
    gated, plain = (
        train([dataclasses.replace(HEART, gate=gate)], tmp_path / str(index))[0]
        for index, gate in enumerate(({"count": 0}, None))
    )
    assert (gated.accuracy, gated.train_loss, gated.stored_bytes) == (
        plain.accuracy,
        plain.train_loss,
        plain.stored_bytes,
    )
    assert gated.active_heads == 4
    assert plain.active_heads is None


@each("name", METHODS)
def test_every_gated_method_trains(name: str, tmp_path: Path) -> None:
    method = METHODS[name](gate={"count": 1, "scope": "layer"})
    (result,) = train([method], tmp_path, epochs=2)
    assert result.active_heads == 3
    rows = result.extra["heads"]
    assert [sum(row["active"]) for row in rows] == [3] * len(rows)
    for row in rows:
        assert row["score"][row["active"].index(0)] == min(row["score"])
    assert result.extra["gate"]["warmup_epochs"] == 1
    (again,) = train([method], tmp_path, epochs=2)
    assert again == result


def test_swin_switches_a_quarter_off_in_each_stage(tmp_path: Path) -> None:
    (result,) = train([dataclasses.replace(HEART, gate={"ratio": 0.25})], tmp_path, epochs=2, family="swin")
    off = {(row["stage"], len(row["active"])): row["active"].count(0) for row in result.extra["heads"]}
    assert off == {(0, 4): 1, (1, 8): 2}
    second = [row["active"] for row in result.extra["heads"] if row["stage"] == 1 and row["proj"] == "q"]
    assert len(second) == 2
    assert second[0] == second[1]


def test_front_and_random_masks_stand_from_the_start() -> None:
    for mode in ("front", "random"):
        net, installed, deltas = install(METHODS["lora"](gate={"count": 2, "mode": mode}), moved=False)
        assert all(int(delta.get_buffer("active").sum()) == 2 for delta in deltas.values())
        assert installed.masking is not None
        assert installed.masking.is_done
        twin = network("vit")
        torch.manual_seed(0)
        plain = METHODS["lora"]().install(twin)
        assert all(torch.equal(tensor, plain.adapter()[name]) for name, tensor in installed.adapter().items())
        assert torch.isfinite(logits(net, images())).all()


def errors() -> Iterator[Any]:
    yield "swin", lambda: METHODS["lora"](gate=ONE), "gate.count=1 on layers of 4, 8 heads: .*ne=quarter"
    yield "vit", lambda: METHODS["lora"](gate={"count": 4}), "0..3 for 4 heads, got 4"
    yield "vit", lambda: LoRA(label="lora", rank=2, targets=("fc1", "q"), gate=ONE), "fc1 has no heads to gate"
    yield "vit", lambda: FacT(label="fact", kind="tt", rank=2, gate=ONE), "fc1, fc2 has no heads to gate"
    columns = r"at s0\.b0\.o has no gate on its heads, which own columns of o; allowed targets: q, k, v"
    for make in (DoRA, BiLoRA, CaRA):
        yield "vit", lambda make=make: make(label="x", rank=2, targets=("q", "o"), gate=ONE), columns
    yield (
        "vit",
        lambda: PeftMethod(label="peft", config={"_target_": "peft.LoraConfig"}, gate="heart"),
        "got none; choose one with ne=ne3",
    )
    yield (
        "vit",
        lambda: PeftMethod(label="peft", config={"_target_": "peft.LoraConfig"}, gate=ONE),
        r"method peft \(PeftMethod\) has no gate on its heads, got gate=heart; allowed: methods of the classes "
        r"BiLoRA, CaRA, DoRA, EVA, FacT, HeadLoRA, LoRA, LoRAGA, MoRA, PiSSA, SharedHeads, and classes of your own "
        r"that set gateable = True",
    )


@each("family, make, message", list(errors()))
def test_gates_that_cannot_be(family: str, make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().install(network(family))


def test_a_warmup_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gate\.warmup=3 is 3 of 3 epoch\(s\): at least one must follow"):
        train([dataclasses.replace(HEART, gate={"count": 1, "warmup": 3})], tmp_path)


def test_a_delta_without_a_gate_is_refused() -> None:
    class Bare(Delta):
        pass

    site = Site(0, 0, "q", 4, 12)
    with pytest.raises(ConfigError, match=r"Bare at s0\.b0\.q has no gate on its heads"):
        HeadMasking(Gate(count=1), {site: Bare()}, lambda site: torch.zeros(48, 48))


def test_only_adapted_projections_are_gated() -> None:
    net, _, deltas = install(METHODS["lora"](gate=ONE))
    adapted = [site for site in net.sites if isinstance(net.linear(site), AdaptedLinear)]
    assert adapted == list(deltas)
