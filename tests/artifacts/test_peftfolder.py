"""Adapters in peft's format: out to peft's own library, and in from it, with equal logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import headwise
from headwise.artifacts.peftfolder import read_peft, write_peft
from headwise.errors import ConfigError
from made_cases import each
from made_networks import distance, images, logits, perturb, plain_timm

X = images(4)


@each(
    "network, method, fields",
    [
        ("vit", "lora", {"rank": 2, "scale": 3.0}),
        ("vit", "lora", {"rank": 2, "targets": ["q", "k", "v", "o", "fc1", "fc2"]}),
        ("vit", "dora", {"rank": 2, "targets": ["q", "v"]}),
        ("vit", "head_lora", {"rank": 2, "scale": 0.5}),
        ("vit", "head_lora", {"rank": 1, "targets": ["q", "k", "v"], "gate": {"mode": "front", "count": 1}}),
        ("swin", "lora", {"rank": 2}),
    ],
)
def test_out_and_in(network: str, method: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = plain_timm(network)
    net = headwise.adapt(model, method, **fields)
    perturb(net.trainable_parameters(), 0.1)
    expected = logits(net, X)
    write_peft(net, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path))
    assert distance(logits(theirs, X), expected) < 1e-4 < distance(logits(model, X), expected)
    if len({len(t) for n, t in theirs.named_parameters() if "lora_A" in n}) == 1:
        assert distance(logits(read_peft(tmp_path, model), X), expected) < 1e-4


@each("dora", [False, True])
def test_in_from_peft(dora: bool, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["qkv"], modules_to_save=["head"], use_dora=dora)
    model = plain_timm("vit")
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    perturb([p for p in theirs.parameters() if p.requires_grad], 0.1)
    theirs.save_pretrained(str(tmp_path))
    ours = read_peft(tmp_path, model)
    assert distance(logits(ours, X), logits(theirs, X)) < 1e-4
    assert distance(logits(ours.merge(), X), logits(theirs, X)) < 1e-4


@each("method", ["adaptformer", "fact_tt", "bitfit"])
def test_what_peft_cannot_say_is_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="peft has no form for"):
        write_peft(headwise.adapt(plain_timm("vit"), method), tmp_path)
    assert not list(tmp_path.iterdir()) and torch.is_grad_enabled()
