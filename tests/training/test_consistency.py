"""PACE: where its noise goes, what its loss is, and that a run without it is as it was."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headwise.errors import ConfigError
from headwise.methods.base import Installed, Method
from headwise.methods.hs_lora import HeadLoRA
from headwise.methods.lora import LoRA
from headwise.network.backbone import Backbone
from headwise.protocol.recipe import Protocol
from headwise.results.store import PhaseResult
from headwise.training import loop
from headwise.training.consistency import Disturbed, gap
from headwise.training.loop import CHECKPOINT, TENSORS, PhaseModule, chain
from headwise.updates.adapted import AdaptedLinear
from headwise.updates.consistency import Consistency
from headwise.updates.lowrank import LowRank
from headwise.updates.noise import Noise
from headwise.updates.sites import Site
from headwise.wrappers.wrapping import Wrapper
from made_cases import each
from made_networks import CLASSES, composed_method, images, logits, network, perturb, spec, toy_data
from made_runs import trained

RECIPE = Protocol(name="test", epochs=2, lr=1e-2, drop_path=0.2)
LORA = LoRA(label="lora", rank=4, dropout=0.1)
PACE = dataclasses.replace(LORA, consistency={"lam": 0.5, "sigma": 0.7})


@pytest.fixture(autouse=True)
def quiet() -> None:
    loop.hush()


def run(root: Path, *methods: Method, protocol: Protocol = RECIPE, network: str = "vit", parts: int = 1) -> Any:
    net = spec(network).build(protocol.drop_path)
    return net, trained(net, methods, root, protocol, ground={}, parts=parts)


def tensors_of(root: Path, result: PhaseResult) -> bytes:
    return (root / "phases" / result.fingerprint / TENSORS).read_bytes()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(method: Method, family: str = "vit") -> tuple[Backbone, Installed]:
    net = network(family)
    torch.manual_seed(0)
    installed = method.install(net)
    perturb(list(installed.trainable().values()), 0.1)
    return net.train(), installed


def at_work(method: Method, family: str = "vit", **changes: Any) -> tuple[Backbone, Disturbed]:
    net, installed = moved(method, family)
    recipe = Consistency(**{"lam": 1.0, "sigma": 1.0, **changes})
    found = Disturbed(
        net, installed, recipe, seed=lambda epoch: epoch, order=lambda epoch: torch.arange(8), batch_size=4
    )
    found.start(0, torch.device("cpu"))
    return net, found


def test_noise_has_mean_1_and_its_deviation_one_draw_for_a_sample_and_channel() -> None:
    change = torch.ones(400 * 3, 5, 50)
    factor = Noise(0.7, generator(), 400)(change)
    assert factor.shape == change.shape
    assert torch.equal(factor, factor[:, :1].expand_as(factor)), "tokens of a sample differ"
    windows = factor.view(400, 3, 5, 50)
    assert torch.equal(windows, windows[:, :1].expand_as(windows)), "windows of a sample differ"
    draws = windows[:, 0, 0]
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(draws.std()) == pytest.approx(0.7, abs=0.02)
    assert len(draws.unique()) > 0.99 * draws.numel()
    assert Noise(1.0, generator(), 2)(torch.ones(2, 7)).shape == (2, 7)
    assert Noise(1.0, generator(), 2)(torch.ones(2, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sigma_falls_with_depth_as_in_the_authors_code() -> None:
    """np.linspace(0, sigma, n)[-1:0:-1] of theirs: a ViT's first block has none, the logits the last value."""
    vit = [0.0, *np.linspace(0, 1.2, 13)[-1:0:-1]]
    assert Consistency(sigma=1.2).sigmas(12, 1) == pytest.approx(vit)
    swin = np.linspace(0, 1.2, 26)[-1:0:-1]
    assert Consistency(sigma=1.2).sigmas(24, 4) == pytest.approx(list(swin))
    assert Consistency(sigma=1.0, spare=2).sigmas(4, 1) == pytest.approx([0, 0, 1, 2 / 3, 1 / 3])
    assert Consistency(sigma=1.0, head=False).sigmas(2, 2)[-1] == 0
    assert Consistency().sigmas(1, 1) == pytest.approx([1.0, 0.5]), "the only block is not spared"
    with pytest.raises(ConfigError, match=r"consistency.spare leaves no block with noise, got 4; allowed: 0..3 of 4"):
        Consistency(spare=4).sigmas(4, 1)


def test_one_linear_layer_against_a_formula() -> None:
    torch.manual_seed(0)
    linear, site = nn.Linear(6, 8), Site(0, 0, "q", 2, 4, 8)
    delta = LowRank(site, linear.weight, 3, scale=2.0)
    layer = AdaptedLinear.around(linear, delta)
    perturb([delta.A, delta.B], 0.5)
    x = torch.randn(5, 4, 6)
    plain, change = F.linear(x, linear.weight, linear.bias), 2.0 * F.linear(F.linear(x, delta.A[0]), delta.B[0])
    outputs = []
    for seed in (0, 1):
        delta.noise = Noise(0.5, generator(seed), 5)
        factor = 1 + 0.5 * torch.randn(5, 8, generator=generator(seed))
        expected = plain + change * factor.unsqueeze(1)
        outputs.append(layer(x))
        assert torch.allclose(outputs[-1], expected, atol=1e-6)
    one, other = (y.flatten(1).detach().numpy() for y in outputs)
    assert gap(outputs[0].flatten(1), outputs[1].flatten(1)).item() == pytest.approx(
        float(np.mean(np.sum((one - other) ** 2, axis=1))), rel=1e-5
    )
    layer.eval()
    delta.noise = Noise(0.5, generator(), 5)
    assert torch.allclose(layer(x), plain + change, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(layer.merged()(x), plain + change, atol=1e-5)


def test_the_change_of_every_kind_of_delta_is_what_it_adds() -> None:
    """LoRA gives factors, DoRA a row scale, CaRA a dense weight, SPT values at entries with biases."""
    for name in ("lora", "dora", "cara", "fact_tt", "mora", "hs_lora", "bi_lora", "lora_xs"):
        _, installed = moved(composed_method(name).phases()[-1])
        installed.net.eval()
        x = torch.randn(2, 3, 48)
        for module in installed.net.modules():
            if isinstance(module, AdaptedLinear) and module.in_features == 48:
                added = module(x) - F.linear(x, module.weight, module.bias)
                assert torch.allclose(module.delta.change(x, module.weight, module.bias), added, atol=1e-5), name


METHODS = ["lora", "hs_lora", "dora", "cara", "adaptformer", "houlsby_b8", "repadapter", "ssf", "compacter", "convpass"]
METHODS += ["vpt_deep", "bi_adaptformer", "peft_lora", "qlora", "noah", "dylora", "heart_lora"]


# NOAH is for networks of one stage
@each("name, family", [(name, "vit") for name in METHODS] + [(name, "swin") for name in METHODS if name != "noah"])
def test_noise_reaches_what_every_method_adds_and_leaves_nothing_behind(name: str, family: str) -> None:
    part = composed_method(name).phases()[-1]
    net, found = at_work(part, family, head=False)
    x, state = images(), {name: id(module) for name, module in net.named_modules()}
    net.eval()
    before = net(x).detach()
    for module in net.modules():
        module.training = True
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for _, delta in found.places:
        assert delta > 0
    still = {name: p.p for name, p in net.named_modules() if isinstance(p, nn.Dropout)}
    with torch.no_grad():
        torch.manual_seed(0)
        plain = net(x)
        torch.manual_seed(0)
        one = found._logits(x)
        torch.manual_seed(0)
        other = found._logits(x)
    assert set(still.values()) <= {0.0}
    assert float((one - plain).abs().max()) > 1e-4
    assert float((one - other).abs().max()) > 1e-4
    assert torch.equal(logits(net, x), before)
    assert {name: id(module) for name, module in net.named_modules()} == state
    assert not any(getattr(module, "noise", None) or module._forward_hooks for module in net.modules())
    copy.deepcopy(net)


@pytest.mark.parametrize("name", ["full", "linear", "bitfit"])
def test_methods_that_add_nothing_refuse_it(name: str, tmp_path: Path) -> None:
    method = dataclasses.replace(composed_method(name), consistency="pace")
    with pytest.raises(ConfigError, match=rf"method {name} \(\w+\) adds nothing .* got consistency; allowed: methods"):
        run(tmp_path, method)
    with pytest.raises(ConfigError, match="adds nothing"):
        run(tmp_path, LORA, method)  # before the first phase has trained
    assert not list(tmp_path.rglob("*.json"))


def test_a_wrapper_that_knows_no_noise_is_refused() -> None:
    class Other(Wrapper):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.inner(x)
            return y

    net, installed = moved(LORA)
    net.wrap("blocks.0.mlp", Other)
    with pytest.raises(ConfigError, match=r"blocks\.0\.mlp is wrapped by a Other, which knows no noise"):
        installed.disturbable()


@each(
    "given, said",
    [
        ({"mode": "slow"}, r"unknown consistency.mode 'slow'.*allowed: fast, lazy, pace"),
        ({"sigm": 1.0}, r"unknown field consistency.sigm \(did you mean 'sigma'\?\)"),
        ({"sigma": -1.0}, "consistency.sigma must be a number of at least 0, got -1.0"),
        ({"every": 2}, r"consistency.every=2 is read in mode lazy only, got mode=pace"),
        (3, r"consistency must be null, a mode \(pace, lazy, fast\) or its fields, got 3"),
    ],
)
def test_what_it_refuses(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Consistency.of(given)


def test_it_is_part_of_an_address_only_where_it_is_asked_for() -> None:
    assert "consistency" not in LORA.spec()
    assert PACE.spec()["consistency"] == Consistency(lam=0.5, sigma=0.7).spec()
    assert chain([LORA], {}, 4) == chain([dataclasses.replace(LORA, consistency=None)], {}, 4)
    asked = [LORA, PACE, dataclasses.replace(LORA, consistency="pace")]
    assert len({chain([method], {}, 4)[0].phase for method in asked}) == 3


@pytest.mark.parametrize("mode", ["pace", "lazy"])
def test_without_noise_the_numbers_are_those_of_a_plain_run(mode: str, tmp_path: Path) -> None:
    """Two passes that share every mask agree to the bit, and no random number of the run is another one."""
    plain = run(tmp_path / "plain", LORA)[1][0]
    recipe = {"mode": mode, "sigma": 0.0, "lam": 1.0 if mode == "pace" else 0.0}
    still = run(tmp_path / "still", dataclasses.replace(LORA, consistency=recipe))[1][0]
    assert still.train_loss == plain.train_loss
    assert tensors_of(tmp_path / "still", still) == tensors_of(tmp_path / "plain", plain)
    noisy = run(tmp_path / "noisy", PACE)[1][0]
    assert noisy.train_loss != plain.train_loss


def test_the_loss_of_a_step() -> None:
    x, labels = images(), torch.arange(4) % CLASSES
    _, found = at_work(LORA, lam=0.5)
    torch.manual_seed(3)
    entropy, term = found.loss(x, labels, 0)
    _, again = at_work(LORA, lam=0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = again._logits(x)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    other = again._logits(x)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(entropy, F.cross_entropy(one, labels))
    assert term.item() == pytest.approx(0.5 * (one - other).square().sum(1).mean().item())
    assert term.item() > 0


def test_lazy_compares_half_of_a_batch_in_every_other_step() -> None:
    x, labels = images(), torch.arange(4) % CLASSES
    net, found = at_work(dataclasses.replace(LORA, dropout=0.0), mode="lazy", every=2)
    sizes: list[int] = []
    net.register_forward_hook(lambda module, arguments, y: sizes.append(len(y)))
    assert found.loss(x, labels, 0)[1].item() > 0
    assert found.loss(x, labels, 1)[1].item() == 0
    assert sizes == [2, 2, 4]


def test_fast_compares_with_the_epoch_before() -> None:
    x, labels = images(), torch.arange(4) % CLASSES
    _, found = at_work(LORA, mode="fast")
    assert found.history is not None
    found.begin(1)
    _, term = found.loss(x, labels, 0)
    first = found.history.clone()
    assert not first[:4].any()
    assert term.item() == pytest.approx(first[4:].square().sum(1).mean().item()), "zero before"
    found.begin(1)
    parts = [found.loss(x[:2], labels[:2], 1)[1], found.loss(x[2:], labels[2:], 1)[1]]
    assert [part.item() for part in parts] == [
        pytest.approx((found.history[rows] - first[rows]).square().sum(1).mean().item())
        for rows in (slice(4, 6), slice(6, 8))
    ]


@pytest.mark.parametrize("mode", ["pace", "fast"])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_two_phases_repeat_and_resume_to_the_same_bits(mode: str, family: str, tmp_path: Path) -> None:
    heads = HeadLoRA(label="heads", rank=2, gate={"ratio": 0.25}, consistency={"mode": mode, "sigma": 0.5}, epochs=3)
    first = dataclasses.replace(LORA, epochs=1)
    whole = run(tmp_path / "whole", first, heads, network=family)[1]
    step = PhaseModule.training_step

    def fail(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 1:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseModule, "training_step", fail)
        with pytest.raises(RuntimeError):
            run(tmp_path / "again", first, heads, network=family)
    assert list((tmp_path / "again").rglob(CHECKPOINT))
    net, resumed = run(tmp_path / "again", first, heads, network=family)
    assert [phase.train_loss for phase in resumed] == [phase.train_loss for phase in whole]
    assert tensors_of(tmp_path / "again", resumed[1]) == tensors_of(tmp_path / "whole", whole[1])
    data = toy_data()
    ((batch, labels),) = list(data.test_dataloader())
    right = (logits(net, data.preprocess(batch)).argmax(1) == labels).float().mean()
    assert resumed[-1].accuracy == pytest.approx(100 * right.item())


def test_a_batch_in_parts_has_the_loss_of_all_its_images(tmp_path: Path) -> None:
    quiet = dataclasses.replace(LORA, dropout=0.0, consistency={"mode": "fast", "sigma": 0.0, "lam": 0.1})
    still = dataclasses.replace(RECIPE, drop_path=0.0)
    losses = [run(tmp_path / f"{parts}", quiet, protocol=still, parts=parts)[1][0].train_loss for parts in (1, 4)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
