"""What every method costs on ViT-B/16, against numbers worked out by hand, and the sizes that the papers print."""

from __future__ import annotations

import functools
import re
from typing import Any

import peft
import pytest
import timm
import torch
from made_native import build, count, vit_b16
from torch import nn

from headwise.errors import ConfigError
from headwise.methods._catalog import measure, printed_sizes
from headwise.network.backbone import Backbone
from made_cases import each
from made_networks import CONF, NETWORKS, network, plain_timm

COUNTS = {
    "full": 85_798_656,
    "linear": 0,
    "bitfit": 12 * 11 * 768 + 2 * 768,
    "lora rank=r8": 294_912,
    "lora method.rank=13": 479_232,
    "lora rank=r8 method.fused=true method.targets=[q,k,v]": 294_912,
    "dylora": 294_912,
    "lora_plus": 589_824,
    "lora_fa": 12 * 2 * 16 * 768,
    "lora_fa method.fused=true method.targets=[q,k,v]": 12 * 3 * 16 * 768,
    "boft": 24 * (2 * 96 * 28 + 768),
    "boft method.block=4 method.factors=4": 24 * (4 * 192 * 6 + 768),
    "dora rank=r16": 912_384,
    "pissa rank=r16": 884_736,
    "mlae": 12 * 3 * 8 * (2 * 768 + 1),
    "hydra_lora": 24 * (4 * 768 + 3 * (4 * 768 + 768)),
    "shared_heads": 24 * (4 * 4 * (768 + 64) + 8 * (12 + 4)),
    "mora": 24 * 110**2,
    "mora method.type=1": 24 * 111**2,
    "fact_tt": 2 * 768 * 16 + 12 * 12 * 16**2,
    "fact_tk": 2 * 768 * 32 + 12 * 12 * 32 + 32**3,
    "fact_tt method.rank=8": 21_504,
    "fact_tt method.rank=4": 8_448,
    "fact_tk method.rank=16": 30_976,
    "lora_xs rank=r16": 6_144,
    "lora_xs rank=r16 method.targets=[q,k,v,o]": 12_288,
    "cara": 2_526 * 32 + 4_608,
    "cara method.rank=16": 45_024,
    "compacter": 38_464,
    "compacter method.bias=true": 57_664,
    "compacter method.plus_plus=true": 12 * 1600 + 64,
    "convpass": 327_552,
    "convpass_attn": 163_776,
    "convpass method.hidden=16": 24 * (2 * 768 * 16 + 9 * 16**2 + 32 + 768),
    "houlsby_b8": 313_536,
    "houlsby_b8 method.hidden=3": 129_096,
    "houlsby_b8 method.train_ln=true": 313_536 + 12 * 4 * 768,
    "vpt_adapter_rf64": 230_544,
    "vpt_adapter_rf256": 64_548,
    "pfeiffer": 147_456,
    "pfeiffer method.bias=true": 156_768,
    "adapter_post": 165_984,
    "adapter_post method.channel_scale=false +method.learned_scale=true": 156_768 + 12,
    "adapter_pre": 156_768,
    "adapter_parallel": 156_768,
    "adapter_intermediate": 156_768,
    "adapter_pfeiffer": 175_200,
    "adapter_houlsby": 313_536 + 36_864,
    "adaptformer": 147_456,
    "adaptformer method.bias=true": 156_768,
    "repadapter": 239_808,
    "ssf": 205_824,
    "vpt_shallow method.prompts=1": 768,
    "vpt_shallow method.prompts=50": 38_400,
    "vpt_deep method.prompts=1": 9_216,
    "vpt_deep method.prompts=10": 92_160,
    "head_lora method.rank=3": 718_848,
    "head_lora method.rank=2": 479_232,
    "head_lora method.rank=2 method.targets=[q,k,v]": 718_848,
    "head_lora method.rank=3 method.targets=[q,k,v]": 1_078_272,
    "head_lora method.rank=2 method.targets=[o]": 12 * 2 * (12 * 768 + 768),
}
"""Parameters of the backbone by method and overrides. NOAH's mean and SPT-LoRA's budget are in their own tests."""

NEEDING_WEIGHTS = [
    ("adalora", 12 * 3 * 16 * (768 + 768 + 1), None),
    ("qlora rank=r8", 294_912, None),
    ("fourierft", 72_000, 4 * 72_000),
    ("fourierft method.config.n_frequency=13107", 314_568, 4 * 314_568),
    ("bi_lora", 1_179_648, 147_840),
    ("heart_lora", 1_179_648, 147_840),
    ("bi_adaptformer", 589_824, 73_920),
]
"""The same, and stored bytes, of methods that read the weights or store codes of their own."""


def of(setting: str) -> Any:
    name, *overrides = setting.split()
    return build(name, *overrides)


@each("setting", COUNTS)
def test_count_on_vit_b16(setting: str) -> None:
    method = of(setting)
    assert count(method) == method.count(vit_b16()) == COUNTS[setting]


@each("family", NETWORKS)
def test_what_trains_of_the_network_itself_is_counted_as_timm_has_it(family: str) -> None:
    net, plain = network(family), plain_timm(family)
    sizes = {name: p.numel() for name, p in plain.named_parameters() if not name.startswith("head.")}
    assert of("full").count(net) == sum(sizes.values())
    assert of("bitfit").count(net) == sum(size for name, size in sizes.items() if name.endswith(".bias"))
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    layers = [m for name, m in plain.named_modules() if isinstance(m, kinds) and not name.startswith("head")]
    assert of("ssf").count(net) == sum(layer.weight.shape[0] * (1 + (layer.bias is not None)) for layer in layers)


@each("file", sorted((CONF / "method" / "peft").glob("*.yaml")))
def test_the_size_that_a_file_of_pefts_methods_names(file: Any) -> None:
    """The conformance tests hold the closed forms against what peft installs in tiny networks."""
    said = re.findall(r"\b([\d,]+) on q and v of ViT-B/16", file.read_text())
    assert [int(number.replace(",", "")) for number in said] == [of(f"peft/{file.stem}").count(vit_b16())]


def test_what_cannot_be_counted_says_why() -> None:
    with pytest.raises(ConfigError, match=r"'spt_lora' has no size before its prepare\(\) has seen"):
        of("spt_lora").count(vit_b16())
    beft = of("peft method.config._target_=peft.BeftConfig")
    with pytest.raises(ConfigError, match=r"size of peft\.BeftConfig is not known in closed form.*LoraConfig"):
        beft.count(vit_b16())
    uneven = of("peft/hira +method.config.rank_pattern={q:4}")
    with pytest.raises(ConfigError, match=r"size of peft\.HiraConfig with rank_pattern is not known in closed form"):
        uneven.count(vit_b16())


@each("size", [size for size in printed_sizes() if size.setting])
def test_what_is_said_of_a_printed_size(size: Any) -> None:
    setting = " ".join(size.setting).removeprefix("method=")
    expected = {**COUNTS, **{name: parameters for name, parameters, _ in NEEDING_WEIGHTS}}
    assert size.parameters == (expected[setting] if setting in expected else count(of(setting)))
    if "agrees" in size.why and "stored" not in size.why:
        here = size.parameters / {"M": 1e6, "MiB": 2**20 / 4}[size.unit]
        assert abs(here - float(size.printed)) < 10.0 ** -len(size.printed.partition(".")[2])


@functools.cache
def real() -> Backbone:
    """ViT-B/16 with memory behind it, all zeros."""
    net = vit_b16().to_empty(device="cpu")
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.data.zero_()
    return net


@each("setting, parameters, stored", NEEDING_WEIGHTS)
def test_counts_that_need_weights(setting: str, parameters: int, stored: int | None) -> None:
    (entry,) = measure(setting, "", of(setting).phases(), real())
    assert entry.num_tunable == of(setting).count(vit_b16()) == parameters
    assert stored is None or entry.stored_bytes == stored


FUSED = {
    "adalora": (peft.AdaLoraConfig(init_r=16, target_r=8, total_step=100), 12 * (16 * 3072 + 16), 590_016),
    "dora": (peft.LoraConfig(r=16, use_dora=True), 12 * (16 * 3072 + 2304), 617_472),
    "pissa": (peft.LoraConfig(r=16), 12 * 16 * 3072, 589_824),
    "fourierft": (peft.FourierFTConfig(n_frequency=3000), 12 * 3000, 36_000),
}
"""Configs of peft on timm's own network, where q, k and v are one projection; PiSSA has the parameters of LoRA."""


@each("name", FUSED)
def test_sizes_on_the_fused_projection(name: str) -> None:
    """What the library makes of timm's network as it is; here q, k and v are apart, which gives the sizes above."""
    config, formula, expected = FUSED[name]
    config.target_modules = {"qkv"}
    with torch.device("meta"):
        adapted = peft.get_peft_model(timm.create_model("vit_base_patch16_224", num_classes=10), config)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == formula == expected


def test_printed_sizes_name_every_paper_once() -> None:
    rows = [(size.paper, size.row) for size in printed_sizes()]
    assert len(set(rows)) == len(rows) - 1  # Adapter-256 is printed once and read in two ways
    assert {size.unit for size in printed_sizes()} == {"M", "MiB"}
