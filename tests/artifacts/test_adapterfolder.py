"""Adapters read back: peft's by headwise.load, ranks and scales of their own, and several over one network."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import headwise
from headwise.artifacts.peftfolder import write_peft
from headwise.errors import ConfigError, HeadwiseError
from headwise.network.given import body_content
from made_cases import each
from made_networks import CLASSES, FURTHER, distance, images, logits, perturb, plain_timm

X, Y = images(4), torch.arange(4) % CLASSES
LAYERS = ["qkv", "attn.proj", "fc1"]


def network() -> nn.Module:
    """The same module every time."""
    torch.manual_seed(3)
    return plain_timm("vit")


def made_by_peft(folder: Path, model: nn.Module, **options: Any) -> Tensor:
    """A perturbed adapter of peft, saved; returns its logits."""
    config = peft.LoraConfig(
        **{"r": 2, "lora_alpha": 6, "target_modules": LAYERS, "modules_to_save": ["head"]} | options
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    perturb([p for p in theirs.parameters() if p.requires_grad], 0.1)
    theirs.save_pretrained(str(folder))
    return logits(theirs, X)


def steps(net: headwise.Adapted) -> None:
    optimizer = torch.optim.AdamW(net.trainable_parameters(), lr=1e-2)
    for _ in range(2):
        loss = nn.functional.cross_entropy(net(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def loaded(folder: Path, model: Any) -> headwise.Adapted:
    net = headwise.load(folder, model=model)
    assert isinstance(net, headwise.Adapted) and not net.training
    return net


@each(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"proj": 3, "blocks.1.attn.qkv": 1}, "alpha_pattern": {"^blocks.0.mlp.fc1": 5}},
        {"rank_pattern": {r"blocks\.0\.attn\.qkv": 4}, "alpha_pattern": {"fc1": 1, "qkv": 9}, "use_dora": True},
        {"rank_pattern": {"qkv": 5}, "use_rslora": True, "modules_to_save": None},
    ],
)
def test_peft_is_loaded_whatever_its_ranks_and_scales(options: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    expected = made_by_peft(tmp_path / "theirs", model, **options)
    net = loaded(tmp_path / "theirs", model)
    assert distance(logits(net, X), expected) < 1e-4 < distance(logits(model, X), expected)
    assert distance(logits(net.merge(), X), expected) < 1e-4
    merged = headwise.load(tmp_path / "theirs", model=model, merged=True)
    assert not isinstance(merged, headwise.Adapted) and distance(logits(merged, X), expected) < 1e-4
    ranks = [int((delta.A.abs().sum(-1) > 0).sum()) for delta in net.installed.owners.values()]  # type: ignore[operator, union-attr]
    steps(net.train())
    assert [int((d.A.abs().sum(-1) > 0).sum()) for d in net.installed.owners.values()] == ranks, "no rank is gained"  # type: ignore[operator, union-attr]
    expected = logits(net, X)
    net.save(tmp_path / "ours")
    write_peft(net, tmp_path / "again")
    assert distance(logits(loaded(tmp_path / "ours", model), X), expected) < 1e-5
    back = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "again"))
    assert distance(logits(back, X), expected) < 1e-4
    assert distance(logits(loaded(tmp_path / "again", model), X), expected) < 1e-4


def test_a_name_is_a_network_too(tmp_path: Path) -> None:
    net = headwise.adapt("vit_tiny_random", rank=2, num_classes=CLASSES, weights="none")
    perturb(net.trainable_parameters(), 0.1)
    write_peft(net, tmp_path / "peft")
    again = loaded(tmp_path / "peft", "vit_tiny_random")
    assert distance(logits(again, X), logits(net, X)) < 1e-5
    again.save(tmp_path / "mine")
    assert distance(logits(headwise.load(tmp_path / "mine"), X), logits(net, X)) < 1e-5


METHODS = [
    "lora",
    "head_lora",
    "dora",
    "adaptformer",
    "vpt_deep",
    "ssf",
    "bitfit",
    "full",
    "linear",
    "hs_lora",
    "qlora",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of one module by method, trained a little; hs_lora in its second phase."""
    root, model = tmp_path_factory.mktemp("adapters"), network()
    for index, method in enumerate(METHODS):
        fields = {"num_classes": 3} if index % 2 else {"class_names": [*"abcd"]}
        net = headwise.adapt(model, method, **fields)  # type: ignore[arg-type]
        perturb(net.trainable_parameters(), 0.05, seed=index)
        if len(net.stages) > 1:
            net.next_phase()
            perturb(net.trainable_parameters(), 0.05, seed=index)
        net.save(root / method)
    made_by_peft(root / "peft", model)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.mark.parametrize("first", ["lora", "hs_lora", "bitfit", "full", "adaptformer"])
def test_several_adapters_over_one_network(first: str, folders: dict[str, Path]) -> None:
    model = network()
    alone = {name: logits(loaded(folder, model), X) for name, folder in folders.items()}
    net = loaded(folders[first], model)
    for name, folder in folders.items():
        net.load_adapter(folder, name)
    assert net.in_use == "default" and net.adapters == tuple(sorted([*folders, "default"]))
    assert distance(logits(net, X), alone[first]) == 0
    base = {tensor.data_ptr() for tensor in net.shelf.base().parameters()}
    for name in [*folders, None, *reversed(folders), None, "default"]:
        assert net.use(name).in_use == name and not net.training
        expected = logits(model, X) if name is None else alone[first if name == "default" else name]
        assert distance(logits(net, X), expected) < 1e-6, name
        assert net.task.num_classes == expected.shape[1]
        if name in ("lora", "dora", "adaptformer", "peft", "vpt_deep"):  # pretrained tensors are there once
            frozen = [p for p in net.net.parameters() if not p.requires_grad]
            assert sum(p.data_ptr() not in base for p in frozen) == 0, name
    assert body_content(net.shelf.base()) == net.content


def test_training_moving_and_copying_one_leaves_the_others(folders: dict[str, Path], tmp_path: Path) -> None:
    model = network()
    net = loaded(folders["lora"], model)
    for name in ("head_lora", "bitfit", "peft"):
        net.load_adapter(folders[name], name)
    before = {name: logits(net.use(name), X) for name in (*net.adapters, None)}
    for name in ("bitfit", "default"):
        steps(net.use(name).train())
        optimized = net.trainable_parameters()
        assert distance(logits(net, X), before[name]) > 1e-3
        net.eval()
        for other in {*before} - {"bitfit", "default"}:
            assert distance(logits(net.use(other), X), before[other]) == 0
        assert all(a is b for a, b in zip(net.use(name).trainable_parameters(), optimized, strict=True))
    now = {name: logits(net.use(name), X) for name in before}
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(distance(logits(other.use(name), X), now[name]) < 1e-6 for name in now)
        steps(other.use("peft").train())
        assert distance(logits(net.use("peft"), X), now["peft"]) == 0
    net.use("head_lora").save(tmp_path / "saved")
    assert distance(logits(loaded(tmp_path / "saved", model), X), now["head_lora"]) < 1e-6
    assert distance(logits(net.use(None).merge(), X), logits(model, X)) < 1e-6
    half = copy.deepcopy(net).to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"is in torch\.bfloat16; load the adapters first"):
        half.load_adapter(folders["dora"], "more")
    for name in now:
        kinds = {tensor.dtype for tensor in half.use(name).net.parameters()}
        assert torch.bfloat16 in kinds and torch.isfinite(logits(half, X.bfloat16())).all()


def test_the_bare_network_of_a_name_gives_features(folders: dict[str, Path]) -> None:
    net = headwise.adapt("vit_tiny_random", "lora", num_classes=CLASSES, weights="none")
    assert tuple(logits(net.use(None), X).shape) == (4, 48)
    for use in (net.trainable_parameters, net.next_phase, lambda: net.save("x"), lambda: net.choose_heads([(X, Y)])):
        with pytest.raises(ConfigError, match=r"no adapter is in use; use\(NAME\) takes one: default"):
            use()
    with pytest.raises(ConfigError, match="no classifier"):
        net.classify(X)


def test_what_cannot_be_beside_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    net = loaded(folders["lora"], network())
    other = network()
    nn.init.normal_(other.blocks[0].attn.proj.weight)  # type: ignore[index, union-attr]
    stranger = headwise.adapt(other, rank=2).save(tmp_path / "stranger")
    before = logits(net, X)
    for name, folder, said in [
        ("default", folders["dora"], r"there is an adapter 'default' already; there are: default"),
        ("", folders["dora"], "a text that is not empty, got ''"),
        (3, folders["dora"], "a text that is not empty, got 3"),
        ("x", tmp_path / "gone", "gone holds no adapter"),
        ("x", stranger, "give the right one"),
    ]:
        with pytest.raises(HeadwiseError, match=said):
            net.load_adapter(folder, name)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no adapter 'defualt' \(did you mean 'default'"):
        net.use("defualt")
    assert distance(logits(net, X), before) == 0 and net.adapters == ("default",)
    four_bits = headwise.adapt(network(), "qlora")
    with pytest.raises(ConfigError, match="put other weights in the place"):
        four_bits.use(None)


def test_what_peft_says_and_nothing_reads_is_refused(tmp_path: Path) -> None:
    model = network()
    made_by_peft(tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("fc1.lora_A.weight"))
    cases: list[tuple[dict[str, Any], dict[str, Tensor], str]] = [
        ({"alpha_pattern": {"(q|k)+": 3}}, {}, r"alpha_pattern '\(q\|k\)\+' is not read; allowed: the path"),
        ({"alpha_pattern": {"qkv": "x"}}, {}, "no configuration of an adapter"),
        ({"rank_pattern": {"qkv": 3}}, {}, "has the rank 2, and adapter_config.json says 3"),
        ({"bias": "all"}, {}, "bias=all is not read"),
        (
            {},
            {name.replace("lora_A.weight", "lora_B.bias"): torch.zeros(3)},
            r"tensors such as .*lora_B\.bias.* not read",
        ),
        ({}, {name: torch.zeros(2, 7)}, "another shape"),
        ({}, {name: torch.zeros(())}, "no matrices"),
        ({}, {"base_model.model.head.weight": torch.zeros(3)}, "its classifier is not one of 48 features"),
    ]
    for change, more, said in cases:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        save_file({**tensors, **more}, str(tmp_path / "adapter_model.safetensors"))
        with pytest.raises(HeadwiseError, match=said):
            headwise.load(tmp_path, model=model)
    with pytest.raises(ConfigError, match=r"is an adapter of peft: give its network"):
        headwise.load(tmp_path)


@each("family", sorted(FURTHER))
def test_networks_whose_attention_lacks_a_bias_hold_several_adapters_as_well(family: str, tmp_path: Path) -> None:
    model = plain_timm(family)
    expected = {}
    for name, method in (("one", "lora"), ("two", "bitfit")):
        own = headwise.adapt(model, method, **({"rank": 2} if method == "lora" else {}))
        perturb(own.trainable_parameters(), 0.05)
        expected[name] = logits(own.eval(), X)
        own.save(tmp_path / name)
    net = headwise.load(tmp_path / "one", model=model)
    assert isinstance(net, headwise.Adapted)
    net.load_adapter(tmp_path / "two", "two")
    for name in ("two", None, "two"):
        net.use(name)
        wanted = logits(model, X) if name is None else expected[name]
        assert distance(logits(net, X), wanted) < 1e-5, name


def test_a_number_of_classes_that_no_memory_holds_is_damage(tmp_path: Path) -> None:
    headwise.adapt(network(), "lora", rank=2).save(tmp_path / "a")
    record = json.loads((tmp_path / "a" / "adapter.json").read_text())
    (tmp_path / "a" / "adapter.json").write_text(json.dumps({**record, "num_classes": 10**12}))
    with pytest.raises(HeadwiseError, match=r"num_classes must be in 1\.\.1000000"):
        headwise.load(tmp_path / "a", model=network())
