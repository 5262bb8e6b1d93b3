"""The bridge to peft: what it reaches, what it refuses, AdaLoRA's budget and penalty, exact reload and resume."""

from __future__ import annotations

import dataclasses
import importlib.util
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from made_native import array
from safetensors.torch import load_file, save_file
from torch import Tensor

from headwise.errors import ConfigError
from headwise.methods.base import build_method
from headwise.methods.peft_bridge import PeftInstalled, PeftMethod
from headwise.results.store import ResultStore
from headwise.runs.experiment import run
from headwise.training import loop
from made_cases import each
from made_networks import batches, compose_config, composed_method, distance, images, logits, network, perturb
from made_runs import train
from made_words import TINY

BLOCKS = {"target_modules_bd_b": ["q", "v"], "nblocks": 4}
NAMES = ["peft_lora", "peft_dora", "peft_pissa", "adalora", "peft"]


def method(kind: str = "peft.LoraConfig", targets: tuple[str, ...] = ("q", "v"), **config: Any) -> PeftMethod:
    return PeftMethod(label="peft", targets=targets, config={"_target_": kind, **config})


def adalora(**config: Any) -> PeftMethod:
    options = {"init_r": 6, "target_r": 2, "tinit": 0.1, "tfinal": 0.3, "deltaT": 2, **config}
    return method("peft.AdaLoraConfig", ("q", "k", "v"), **options)


@each("name", NAMES)
@each("kind", ["vit", "swin"])
def test_merges_and_leaves_no_trace(name: str, kind: str) -> None:
    net, x = network(kind), images()
    keys, attributes = list(net.model.state_dict()), set(vars(net.model))
    before = logits(net, x)
    recipe = composed_method(name)
    installed = recipe.install(net, recipe.prepare(net, batches(), 20))
    assert distance(logits(net, x), before) < 1e-5
    perturb(list(installed.trainable().values()))
    want = logits(net, x)
    assert distance(want, before) > 1e-2
    installed.merge()
    assert distance(logits(net, x), want) < 1e-5
    assert list(net.model.state_dict()) == keys
    assert set(vars(net.model)) == attributes
    assert not any(type(module).__module__.startswith("peft") for module in net.modules())
    for block in net.blocks:
        qkv = net.model.get_submodule(f"{block[2]}.attn.qkv")
        assert qkv._is_joined()  # one GEMM again


@each("name", NAMES)
def test_configurations_are_plain_data_that_rebuild_the_method(name: str) -> None:
    recipe = composed_method(name)
    assert isinstance(recipe.config, dict)
    assert build_method(recipe.spec(), name) == recipe
    assert compose_config(f"method={name}", "rank=r8").method.epochs is None


def test_configuration_inside_a_two_phase_method_is_plain_too() -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    cfg = compose_config("method=hs_lora", "method@method.first=adalora")
    both = instantiate(OmegaConf.to_container(cfg, resolve=True)["method"], _convert_="all")  # type: ignore[index]
    assert both.first == composed_method("adalora")


@each("name", NAMES)
def test_reloads_exactly(name: str, tmp_path: Path) -> None:
    recipe, x = composed_method(name), images()
    net = network("vit")
    plan = recipe.prepare(net, batches(), 20)
    installed = recipe.install(net, plan)
    perturb(list(installed.trainable().values()))
    want = logits(net, x)
    save_file(installed.packed(), str(tmp_path / "phase.safetensors"))
    again = network("vit")
    recipe.install(again, plan).unpack(load_file(str(tmp_path / "phase.safetensors")))
    assert distance(logits(again, x), want) == 0.0
    resumed = network("vit")
    recipe.install(resumed, plan).load({name: tensor.clone() for name, tensor in installed.state().items()})
    assert distance(logits(resumed, x), want) == 0.0


def test_pissa_residual_follows_the_stored_start() -> None:
    recipe, x = composed_method("peft_pissa"), images()
    net = network("vit")
    installed = recipe.install(net)
    perturb(list(installed.trainable().values()))
    stored, want = installed.packed(), logits(net, x)
    assert "s0.b0.q.start.lora_A.default.weight" in stored
    again = network("vit")
    other = recipe.install(again)
    for site, start in other._starts.items():  # as if this machine's SVD had found other directions
        layer: Any = other.layers[site]
        layer.base_layer.weight.data += layer.get_delta_weight("default")
        for name, tensor in start.items():
            tensor.mul_(1.1)
            layer.get_parameter(name).data.copy_(tensor)
        layer.base_layer.weight.data -= layer.get_delta_weight("default")
    other.unpack(stored)
    assert distance(logits(again, x), want) < 1e-5


@each(
    "recipe, message",
    [
        (partial(method, "peft.LoraConfg", r=4), r"got 'peft\.LoraConfg' \(did you mean 'peft\.LoraConfig'\?\)"),
        (partial(method, "os.system"), r"must name a config of peft, got 'os\.system'"),
        (
            partial(method, "peft.PromptTuningConfig", num_virtual_tokens=4),
            r"must name a config of peft, got 'peft\.PromptTuningConfig'",
        ),
        (partial(method, rank=4), r"unknown key config\.rank"),
        (partial(method, r=4, targets=("q", "x")), "target 'x' matches no projection"),
        (partial(method, r=4, targets=(), target_modules=["query"]), r"\['query'\] matches no module"),
        (
            partial(method, r=4, targets=(), target_modules=["proj"]),
            r"reaches patch_embed\.proj; allowed: the projections q, k",
        ),
        (partial(method, r=4, targets=(), target_modules=["q", "head"]), "reaches head; allowed"),
        (
            partial(method, r=4, target_modules=["q"]),
            r"both method\.targets=\['q', 'v'\] and config\.target_modules=\['q'\]",
        ),
        (
            partial(method, r=4, modules_to_save=["head"]),
            r"config\.modules_to_save: \['head'\] is not supported: the head",
        ),
        (partial(method, r=4, bias="all"), r"config\.bias: 'all' is not supported.*method=bitfit"),
        (partial(method, r=0), r"config\.r must be a whole number of at least 1, got 0"),
        (partial(method, r=4, targets=(), target_modules=".*proj"), r"reaches patch_embed\.proj"),
        (partial(method, r=4, targets=(), target_modules="all-linears"), "'all-linears' matches no module"),
        (partial(method, r=4, targets=(), target_modules=["q"], exclude_modules=["q"]), r"\['q'\] matches no module"),
        (
            partial(method, r=4, layers_to_transform=[0]),
            r"config\.layers_to_transform chooses among the names of config",
        ),
        (
            partial(method, r=4, targets=(), target_modules=["q"], layers_to_transform=[9], layers_pattern="blocks"),
            "matches no module",
        ),
        (partial(adalora, r=4), r"peft\.AdaLoraConfig: .*`r` is not used"),
        (partial(method, r=4, inference_mode=True), r"trains nothing \(config\.inference_mode"),
        (partial(method, "peft.VeraConfg"), r"did you mean 'peft\.VeraConfig'"),
        (partial(method, "peft.VeraConfig", rank=4), r"unknown key config\.rank; allowed: .*projection_prng_key"),
        (
            partial(method, "peft.FourierFTConfig", n_frequency=3000),
            "less than or equal to .* 3000 and the product is 2304",
        ),
        (
            partial(method, "peft.OFTConfig", oft_block_size=7, r=0),
            r"install peft\.OFTConfig: Invalid `oft_block_size` \(7\)!",
        ),
        (
            partial(method, r=8, use_bdlora={"_target_": "peft.BdLoraConfig", **BLOCKS, "nblocks": 5}),
            "peft cannot install",
        ),
        (
            partial(method, r=4, init_lora_weights="eva"),
            r"config\.init_lora_weights: 'eva' is not supported: its start needs passes",
        ),
        (
            partial(method, r=4, eva_config={"_target_": "peft.EvaConfig"}),
            r"config\.eva_config: peft\.EvaConfig is not supported",
        ),
        (
            partial(method, r=4, init_lora_weights="corda"),
            r"init_lora_weights: 'corda' is not supported: its start needs cov",
        ),
        (
            partial(method, r=4, use_qalora=True),
            r"config\.use_qalora: true is not supported: peft has it for GPTQ layers only",
        ),
        (
            partial(method, r=4, kasa_config={"_target_": "peft.KasaConfig"}),
            r"kasa_config: .* leaves its regularisers to the",
        ),
        (
            partial(method, r=4, monteclora_config={"_target_": "peft.MontecloraConfig"}),
            r"monteclora_config: .* its regulariser",
        ),
        (
            partial(method, "peft.AdamssConfig", use_asa=True),
            r"config\.use_asa: true is not supported: peft leaves its allocation",
        ),
        (
            partial(method, r=4, init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
            "LoraConfig: it needs 'loftq_iter'",
        ),
        (partial(adalora, target_r=6), r"config\.target_r must be below init_r=6, got 6"),
        (partial(adalora, tinit=800, tfinal=300), "don't allow for a budgeting phase"),
    ],
)
def test_refuses(recipe: Callable[[], PeftMethod], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe().install(network("vit"))


def test_adalora_refuses_a_run_without_room_or_plan() -> None:
    with pytest.raises(ConfigError, match="at least 2 training steps to score its ranks, this phase has 1"):
        adalora().install(network("vit"), {"num_steps": 1})
    with pytest.raises(ConfigError, match="must know the number of training steps"):
        adalora().install(network("vit")).callbacks()


def test_the_updates_own_learning_rate_is_checked() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="adapter_lr of method 'peft' must be a number above 0, got"):
            dataclasses.replace(method(r=4), adapter_lr=wrong)
    assert "adapter_lr" not in method(r=4).spec()
    own = dataclasses.replace(composed_method("fourierft"), adapter_lr=0.1)
    assert build_method(own.spec(), "fourierft") == own


GA = {"_target_": "peft.LoraGAConfig"}
STARTS = {
    "loftq": {"loftq_config": {"_target_": "peft.LoftQConfig"}},
    "lora_ga": {"lora_ga_config": GA},
}
NAMED_STARTS = [
    start.replace("[number of iters]", "4")
    for kind in typing.get_args(typing.get_type_hints(peft.LoraConfig)["init_lora_weights"])
    for start in typing.get_args(kind)
]


@each("start", [*NAMED_STARTS, "lora_ga"])
def test_a_start_of_peft_is_its_own_or_refused(start: str) -> None:
    """E27: peft leaves some starts to its caller, and trains plain LoRA under their name if that does nothing."""

    def started(**config: Any) -> tuple[dict[str, Tensor], float]:
        net, recipe = network("vit"), method(r=4, **config)
        before = logits(net, images())
        plan = recipe.prepare(net, batches(), 20)
        torch.manual_seed(0)
        installed: Any = recipe.install(net, plan)
        tensors = {name: tensor.detach().clone() for name, tensor in installed._tensors().items()}
        return tensors, distance(logits(net, images()), before)

    assert NAMED_STARTS
    plain, _ = started()
    try:
        own, change = started(init_lora_weights=start, **STARTS.get(start, {}))
    except ConfigError as error:
        assert start in ("eva", "corda", "loftq"), error
        assert start in str(error).lower()
        return
    assert any(not torch.equal(own[name], tensor) for name, tensor in plain.items())
    assert change < (1.0 if start == "loftq" else 1e-5)


def test_lora_ga_starts_along_the_gradient_and_at_the_pretrained_network() -> None:
    """E27: B A is in the span of the leading singular vectors of the gradient, and taken out of the weight."""
    recipe, net = method(r=4, lora_alpha=8, init_lora_weights="lora_ga", lora_ga_config=GA), network("vit")
    sites = [site for site in net.sites if site.proj in ("q", "v")]
    weights = {site.key: net.linear(site).weight.detach().clone() for site in sites}
    net.train()
    parameters: Any = [net.linear(site).weight.requires_grad_(True) for site in sites]
    sums = [torch.zeros_like(p) for p in parameters]
    for x, y in batches()():
        loss = torch.nn.functional.cross_entropy(net(x), y)
        sums = [total + g for total, g in zip(sums, torch.autograd.grad(loss, parameters), strict=True)]
    net.eval().requires_grad_(False)
    before = logits(net, images())
    plan = recipe.prepare(net, batches(), 20)
    assert plan == {"start": "gradients"}
    installed: Any = recipe.install(net, plan)
    assert not net.training
    assert distance(logits(net, images()), before) <= 1e-5
    for site, total in zip(sites, sums, strict=True):
        layer = installed.layers[site]
        left, _, right = torch.linalg.svd(total)
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        assert distance(A, (A @ right[:4].T) @ right[:4]) <= 1e-3 * float(A.abs().max())  # "ArB2r": the first r rows
        assert distance(B, left[:, 4:8] @ (left[:, 4:8].T @ B)) <= 2e-2 * float(B.abs().max())  # the next r columns
        assert B.any()
        moved = weights[site.key] - 2.0 * B @ A
        assert distance(layer.base_layer.weight, moved) <= 1e-5
        assert not hasattr(layer.base_layer, "_peft_loraga_grad")


def test_lora_ga_trains_resumes_and_reloads(tmp_path: Path) -> None:
    recipe = method(r=4, init_lora_weights="lora_ga", lora_ga_config=GA)
    net = network("vit")
    (phase,), (file,) = train(net, [recipe], tmp_path, epochs=2)
    assert phase.extra["plan"] == {"start": "gradients"}
    recipe.rehearse(network("vit"))
    again = network("vit")
    restored = recipe.install(again, phase.extra["plan"])
    restored.unpack(load_file(str(file)))
    want = network("vit")
    (same,), _ = train(want, [recipe], tmp_path, epochs=2)
    assert same == phase
    assert distance(logits(again, images()), logits(want, images())) < 1e-5
    with pytest.raises(ConfigError, match=r"starts from gradients \(LoRA-GA\): it needs the plan that its prepare"):
        recipe.install(network("vit"))


def test_starts_off_zero_are_declared() -> None:
    assert composed_method("fourierft").identity_tolerance == 10.0
    assert method(init_lora_weights=False).identity_tolerance == 10.0
    for exact in (method(), method("peft.FourierFTConfig", init_weights=True), composed_method("peft")):
        assert exact.identity_tolerance == 1e-5


def test_a_config_within_a_config_needs_no_code() -> None:
    blocks = {"_target_": "peft.BdLoraConfig", **BLOCKS}
    net, x, recipe = network("vit"), images(), method("peft.LoraConfig", r=8, use_bdlora=blocks)
    before = logits(net, x)
    installed = recipe.install(net)
    assert distance(logits(net, x), before) < 1e-5
    perturb(list(installed.trainable().values()))
    want, stored = logits(net, x), installed.packed()
    again = network("vit")
    recipe.install(again).unpack(stored)
    assert distance(logits(again, x), want) == 0.0
    installed.merge()
    assert distance(logits(net, x), want) < 1e-4


def test_all_linear_means_every_projection_but_not_the_head() -> None:
    net = network("vit")
    installed = method(r=2, targets=(), target_modules="all-linear").install(net)
    assert isinstance(installed, PeftInstalled)
    assert {site.proj for site in installed.layers} == {"q", "k", "v", "o", "fc1", "fc2"}


def moved_weights(recipe: PeftMethod) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A method's tensors after noise was added, and the weights of its projections before and after merging."""
    net = network("vit")
    before = {site.key: array(base) for site, base in net.bases(recipe.targets).items()}
    installed: Any = recipe.install(net, recipe.prepare(net, batches(), 20))
    perturb(list(installed.adapter().values()), 0.3)
    tensors = {name: array(tensor) for name, tensor in installed._tensors().items()}
    installed.merge()
    after = {site.key: array(base) for site, base in net.bases(recipe.targets).items()}
    return tensors, before, after


def test_adalora_merges_p_e_q() -> None:
    tensors, before, after = moved_weights(adalora(lora_alpha=3))
    for key, weight in before.items():
        P, E, Q = (tensors[f"{key}.{part}.default"] for part in ("lora_B", "lora_E", "lora_A"))
        np.testing.assert_allclose(after[key], weight + 3 / (6 + 1e-5) * P @ np.diag(E[:, 0]) @ Q, atol=1e-5)


def test_fourierft_merges_the_inverse_transform_of_its_spectrum() -> None:
    recipe = method("peft.FourierFTConfig", n_frequency=20, scaling=6.5, random_loc_seed=777)
    places = torch.randperm(48 * 48, generator=torch.Generator().manual_seed(777))[:20].numpy()
    tensors, before, after = moved_weights(recipe)
    for key, weight in before.items():
        spectrum = np.zeros(48 * 48)
        spectrum[places] = tensors[f"{key}.fourierft_spectrum.default"]
        update = 6.5 * np.fft.ifft2(spectrum.reshape(48, 48)).real
        np.testing.assert_allclose(after[key], weight + update, atol=1e-5)


@each("kind", ["LilyConfig", "PolyConfig"])
def test_what_peft_cannot_merge_is_refused_before_it_trains(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"peft\.{kind} makes an update that cannot be folded"):
        method(f"peft.{kind}").install(network("vit"))


def test_configs_that_peft_cannot_read_here_say_why() -> None:
    with pytest.raises(ConfigError, match=r"peft\.ShadowConfig: Unable to automatically locate"):
        method("peft.ShadowConfig").install(network("vit"))
    if importlib.util.find_spec("sklearn") is None:
        with pytest.raises(ConfigError, match=r"peft\.AdamssConfig: scikit-learn is required"):
            method("peft.AdamssConfig").install(network("vit"))


def test_any_config_from_the_command_line(tmp_path: Path) -> None:
    tiny = [*TINY, "trainer=cpu"]
    chosen = ["method=peft", "method.config._target_=peft.VeraConfig", "+method.config.r=4", "method.label=vera"]
    run(
        compose_config(
            *tiny, *chosen, "trainer.threads=1", "trainer.progress=false", "logger.pictures=false", f"root={tmp_path}"
        )
    )
    (result,) = ResultStore(tmp_path).all()
    (phase,) = result.phases
    assert (phase.label, phase.num_tunable) == ("vera", 2 * 2 * (4 + 48))
    assert phase.steps > 0


def budget(tensors: dict[str, Tensor]) -> int:
    return sum(int(tensor.count_nonzero()) for name, tensor in tensors.items() if name.endswith("lora_E.default"))


def test_adalora_ends_at_its_target_budget(tmp_path: Path) -> None:
    (phase,), (file,) = train(network("vit"), [adalora()], tmp_path, epochs=4)
    matrices = 2 * 3
    assert phase.extra["plan"] == {"num_steps": 8}
    assert sum(phase.extra["ranks"].values()) == 2 * matrices
    assert budget(load_file(str(file))) == 2 * matrices
    assert phase.num_tunable == matrices * 6 * (48 + 48 + 1)
    kept = 2 * matrices * (48 + 48 + 1) * 4
    assert phase.stored_bytes == kept + matrices * (4 + 6)  # and of every matrix its scale and which ranks are left


def test_adalora_penalty_is_pefts_form_and_in_the_loss() -> None:
    net = network("vit")
    installed = adalora(orth_reg_weight=0.3).install(net, {"num_steps": 20})
    perturb(list(installed.adapter().values()), size=0.3)
    terms = []
    for name, p in installed.adapter().items():
        if ".lora_A." in name or ".lora_B." in name:
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(6)))
    penalty = installed.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.3 * float(torch.stack(terms).mean().detach()), rel=1e-5)
    penalty.backward()
    grads = [t.grad for name, t in installed.adapter().items() if ".lora_A." in name or ".lora_B." in name]
    assert all(grad is not None and grad.any() for grad in grads)


def test_adalora_rank_falls_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []
    install = PeftMethod.install

    def spy(self: PeftMethod, net: Any, plan: Any = None) -> Any:
        installed = install(self, net, plan)
        assert isinstance(installed, PeftInstalled) and installed.allocator is not None
        allocator, end = installed.allocator, installed.allocator.on_train_batch_end

        def count(*args: Any) -> None:
            end(*args)
            budgets.append(sum(allocator.ranks().values()))

        monkeypatch.setattr(allocator, "on_train_batch_end", count)
        return installed

    monkeypatch.setattr(PeftMethod, "install", spy)
    train(network("vit"), [adalora()], tmp_path, epochs=6)
    assert len(budgets) == 12
    assert budgets[0] == 36 and budgets[-1] == 12
    assert budgets == sorted(budgets, reverse=True) and len(set(budgets)) > 2


@each("killed_after", [1, 2, 3])
def test_adalora_resumes_exactly(killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (whole,) = train(network("vit"), [adalora()], tmp_path / "whole", epochs=4)
    save = loop.Saver.on_train_epoch_end

    def save_and_die(self: loop.Saver, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        if trainer.current_epoch + 1 == killed_after:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Saver, "on_train_epoch_end", save_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            train(network("vit"), [adalora()], tmp_path / "killed", epochs=4)
    _, (resumed,) = train(network("vit"), [adalora()], tmp_path / "killed", epochs=4)
    want, got = load_file(str(whole)), load_file(str(resumed))
    assert set(want) == set(got)
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name]), name


def test_a_step_that_overflowed_does_not_end_the_pruning() -> None:
    recipe, net = adalora(), network("vit")
    installed: Any = recipe.install(net, recipe.prepare(net, batches(), 10))
    trainer = SimpleNamespace(global_step=0)
    for step in range(1, 11):
        trainer.global_step = step
        for parameter in installed.adapter().values():
            parameter.grad = torch.randn_like(parameter) if step > 1 else torch.full_like(parameter, torch.inf)
        installed.allocator.on_train_batch_end(trainer, None, None, None, 0)
    ranks = installed.report()["ranks"]
    assert sum(ranks.values()) == 2 * len(ranks)


def test_adalora_of_a_checkpoint_needs_no_steps(tmp_path: Path) -> None:
    recipe, net = adalora(), network("vit")
    installed = recipe.install(net, recipe.prepare(net, batches(), 20))
    perturb(list(installed.trainable().values()))
    save_file(installed.packed(), str(tmp_path / "given.safetensors"))
    want = logits(net, images())
    again = network("vit")
    given = dataclasses.replace(recipe, checkpoint=str(tmp_path / "given.safetensors"))
    (phase,), _ = train(again, [given], tmp_path)
    assert phase.epochs == 0
    assert distance(logits(again, images()), want) < 1e-5


def test_biases_of_loras_b_are_counted() -> None:
    net = network("vit")
    own = method(r=4, lora_bias=True)
    installed = own.install(net)
    assert own.count(network("vit")) == sum(tensor.numel() for tensor in installed.adapter().values())
