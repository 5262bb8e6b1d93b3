"""Networks and methods that do not go together are refused by name, before anything is fetched or trained."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from headwise.errors import ConfigError
from headwise.methods._catalog import measure
from headwise.methods._fitting import dry_forward, fitted, fitting, rehearse
from headwise.methods.base import Method
from headwise.network.backbone import Backbone, BackboneSpec
from made_cases import each
from made_networks import CLASSES, CONF, batches, composed_method, network

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 4}
TWINS = {"embed_dims": (16, 32, 48, 64), "num_heads": (2, 2, 2, 2), "depths": (1, 1, 1, 1)}
ALL_METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


def built(timm_name: str, img_size: int = 32, **overrides: Any) -> Backbone:
    recipe = BackboneSpec(name="x", timm_name=timm_name, img_size=img_size, weights="none", overrides=overrides)
    net = recipe.build()
    net.new_head(CLASSES)
    return net


REFUSED = {
    "deit-distilled": ("deit_tiny_distilled_patch16_224", 32, SIZES, "has no single linear classifier but a tuple"),
    "hiera": (
        "hiera_tiny_224",
        64,
        {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)},
        "attention MaskUnitAttention does not divide q, k and v into the same heads",
    ),
    "twins-svt": ("twins_svt_small", 64, TWINS, "Twins has blocks of ModuleList, not of one attention and one mlp"),
    "twins-pcpvt": ("twins_pcpvt_small", 64, TWINS, "Twins has blocks of ModuleList, not of one attention and one mlp"),
    "samvit": (
        "samvit_base_patch16",
        64,
        {**SIZES, "global_attn_indexes": (1,), "window_size": 2},
        "VisionTransformerSAM has no single linear classifier but a ClassifierHead",
    ),
    "parallel": ("vit_small_patch16_18x2_224", 32, SIZES, "has blocks of ParallelThingsBlock, not of one attention"),
    "diff-parallel": (
        "vit_dpwee_patch16_reg1_gap_256",
        32,
        SIZES,
        "has blocks of DiffParallelScalingBlock",
    ),
    "mixer": ("mixer_s16_224", 32, {}, "MlpMixer has blocks of MixerBlock, not of one attention and one mlp"),
    "crossvit": ("crossvit_tiny_240", 240, {}, "CrossVit has blocks of MultiScaleBlock, not of one attention"),
    "volo": ("volo_d1_224", 64, {}, "VOLO has neither blocks nor layers of them"),
}


@each("name", REFUSED)
def test_networks_of_another_build(name: str) -> None:
    timm_name, size, overrides, message = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"{message}.*; allowed: timm's ViT .* and Swin-V2"):
        built(timm_name, size, **overrides)


WORKING = {
    "rope": ("vit_small_patch16_rope_224", 32, SIZES),
    "relpos": ("vit_relpos_small_patch16_224", 32, SIZES),
    "xcit": ("xcit_nano_12_p8_224", 32, SIZES),
    "naflex": ("naflexvit_base_patch16_gap", 32, SIZES),
    "aimv2": ("aimv2_large_patch14_224", 28, SIZES),
    "cait": ("cait_xxs24_224", 32, {**SIZES, "patch_size": 8}),
    "registers": ("vit_small_patch14_reg4_dinov2", 28, SIZES),
    "grey": ("vit_tiny_patch16_224", 32, {**SIZES, "in_chans": 1}),
}


@each(
    "family, method",
    [
        *[(family, name) for family in ("rope", "relpos", "xcit", "naflex") for name in ("vpt_deep", "vpt_shallow")],
        ("xcit", "ssf"),
        ("aimv2", "repadapter"),
    ],
)
def test_a_method_that_a_network_was_not_made_for_is_refused_by_name(family: str, method: str) -> None:
    timm_name, size, overrides = WORKING[family]
    net, phase = built(timm_name, size, **overrides), composed_method(method).phases()[-1]
    message = rf"method {phase.label} does not work in {timm_name} \(\w+\): .*; allowed: timm's ViT .*Swin-V2"
    if family == "rope":
        message = (
            rf"method '{phase.label}' is defined for networks with positions that are added to the tokens, got Eva"
        )
    with pytest.raises(ConfigError, match=message):
        fitted(phase, built(timm_name, size, **overrides))
    with pytest.raises(ConfigError, match=message):
        rehearse(net, [composed_method("linear"), phase])
    (entry,) = measure(method, "", [phase], net)
    assert phase.label in entry.note


@each("method", ["adaptformer", "bi_adaptformer"])
def test_a_block_gets_what_its_network_gives_it_beside_the_tokens(method: str) -> None:
    timm_name, size, overrides = WORKING["naflex"]  # hands every block a mask, which is none
    net, x = built(timm_name, size, **overrides).eval(), torch.randn(2, 3, size, size)
    with torch.no_grad():
        before = net(x)
        phase = composed_method(method)
        fitted(phase, net)
        assert (net.eval()(x) - before).abs().max() < phase.identity_tolerance


@pytest.mark.parametrize(
    "family", ["naflex", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(WORKING) if name != "naflex")]
)
def test_no_method_in_any_network_ends_in_a_traceback(family: str) -> None:
    timm_name, size, overrides = WORKING[family]
    net = built(timm_name, size, **overrides)
    for name in ALL_METHODS:
        try:
            rehearse(net, composed_method(name).phases())
        except ConfigError as error:
            assert "\n" not in str(error)


def test_a_network_that_takes_other_images_is_refused_by_name() -> None:
    timm_name, size, overrides = WORKING["grey"]
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 \(VisionTransformer\) cannot be used: .*1 channels"):
        dry_forward(built(timm_name, size, **overrides))


def state_of(net: Backbone) -> dict[str, Any]:
    tensors = {name: tensor.clone() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    return {"tensors": tensors, "modes": {name: module.training for name, module in net.named_modules()}}


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@each("family", ["vit", "swin"])
@each("name", ALL_METHODS)
def test_a_dry_forward_leaves_no_trace(name: str, family: str) -> None:
    net, method = network(family), composed_method(name).phases()[-1]
    try:
        plan = method.prepare(net, batches(), 10)
        installed = method.install(net, plan)
    except ConfigError:  # not in this network
        assert family not in method.networks
        return
    installed.set_mode()
    before, drawn, report = state_of(net), random_states(), repr(installed.report())
    dry_forward(net, method)
    after = state_of(net)
    assert random_states() == drawn
    assert before["modes"] == after["modes"]
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(tensor, after["tensors"][key]) for key, tensor in before["tensors"].items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert repr(installed.report()) == report


def test_a_rehearsal_leaves_no_trace() -> None:
    net = network("vit")
    before, drawn = state_of(net), random_states()
    rehearse(net, composed_method("hs_lora").phases())
    after = state_of(net)
    assert random_states() == drawn
    assert before["modes"] == after["modes"]
    assert all(torch.equal(tensor, after["tensors"][key]) for key, tensor in before["tensors"].items())


def test_a_lack_of_memory_is_no_refusal() -> None:
    net = network("vit")
    with pytest.raises(torch.OutOfMemoryError), fitting(net):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_cannot_work_is_refused_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from headwise.runs.experiment import run
    from made_networks import compose_config

    monkeypatch.setattr(BackboneSpec, "_fetch", lambda self, model: pytest.fail("weights were asked for"))
    monkeypatch.setattr("headwise.network.backbone.kept", lambda name: None)
    options = ("backbone=vit_tiny_random", "backbone.weights=auto", "dataset=dsprites_loc", "protocol=smoke")
    for choices, message in (
        (("method=hs_lora", "rank.head=0"), "rank"),
        (("method=lora", "method.targets=[query]"), "target 'query' matches no projection"),
        (("method=lora", "+backbone.overrides.in_chans=1"), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(compose_config(*options, *choices, "data.synthetic=true", f"root={tmp_path}"))


UNGATED = sorted(name for name in ALL_METHODS if not any(phase.gateable for phase in composed_method(name).phases()))


@each("name", UNGATED)
def test_a_gate_is_never_left_out_in_silence(name: str) -> None:
    """Declaring a gate is not having one: an update without heads, or an install of its own, may not drop it."""
    (phase,) = composed_method(name).phases()

    class Declared(type(phase)):  # type: ignore[misc]
        gateable: ClassVar[bool] = True

    fields = {key: value for key, value in vars(phase).items() if key != "gate"}
    gated: Method = Declared(**fields, gate={"mode": "heart", "count": 1})
    try:
        installed = fitted(gated, network("vit"))
    except ConfigError as error:
        assert "\n" not in str(error)
        if "leaves the gate out" in str(error):  # else it was refused for another reason, as SPT is without a plan
            with pytest.raises(ConfigError, match="leaves the gate out"):
                rehearse(network("vit"), [composed_method("linear"), gated])
    else:
        assert installed.masking is not None
        assert installed.masking in installed.callbacks()
