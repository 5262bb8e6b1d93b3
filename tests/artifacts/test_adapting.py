"""headwise.adapt: a method in a user's own network, in any training loop, merged, saved and read back."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import headwise
from headwise.artifacts.classifier import Classifier
from headwise.errors import CheckpointError, ConfigError, HeadwiseError, WeightsError
from headwise.methods.hs_lora import HeadLoRA
from made_cases import each
from made_networks import CLASSES, distance, images, logits, plain_timm

X, Y = images(8), torch.arange(8) % CLASSES
TINY = {"num_classes": CLASSES, "weights": "none"}


def steps(net: headwise.Adapted, count: int = 3) -> list[float]:
    """Losses of a plain loop."""
    optimizer, losses = torch.optim.AdamW(net.trainable_parameters(), lr=1e-2), []
    for _ in range(count):
        loss = nn.functional.cross_entropy(net(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def tiny(method: Any = "head_lora", **fields: Any) -> headwise.Adapted:
    torch.manual_seed(0)
    return headwise.adapt("vit_tiny_random", method, **{**TINY, **fields})


def test_a_module_is_adapted_and_stays_as_it_was() -> None:
    model = plain_timm("vit")
    before, names = logits(model, X), list(model.state_dict())
    net = headwise.adapt(model, "head_lora", rank=3, targets=["q", "k", "v"])
    assert distance(logits(net, X), before) < 1e-5, "its own classifier, and an update that starts at zero"
    assert net.stages[0].method == HeadLoRA(label="head_lora", rank=3, targets=["q", "k", "v"])
    sizes = [parameter.numel() for parameter in net.trainable_parameters()]
    assert sum(sizes) == 3 * 2 * 3 * (4 * 48 + 48) + 48 * CLASSES + CLASSES
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == sum(sizes)
    losses = steps(net)
    assert losses[-1] < losses[0] and net.training
    assert list(model.state_dict()) == names and distance(logits(model, X), before) == 0


def test_a_merged_network_is_timms_own_with_equal_logits() -> None:
    model = plain_timm("vit")
    net = headwise.adapt(model, "head_lora", rank=3)
    steps(net)
    plain = net.merge()
    assert type(plain) is type(model) and list(plain.state_dict()) == list(model.state_dict())
    assert not any(type(module).__module__.startswith("headwise") for module in plain.modules())
    assert not plain.training and not any(parameter.requires_grad for parameter in plain.parameters())
    assert distance(logits(plain, X), logits(net, X)) < 1e-5
    model.load_state_dict(plain.state_dict())
    assert distance(logits(model, X), logits(net, X)) < 1e-5
    steps(net)  # goes on


def test_names_of_timm_and_of_conf_mean_networks() -> None:
    net = headwise.adapt("vit_tiny_patch16_224", "lora", rank=2, weights="none", img_size=32, class_names=["a", "b"])
    assert net.task.num_classes == 2 and net.net.img_size == 32 and len(net.net.blocks) == 12
    assert tiny().net.model.embed_dim == 48  # type: ignore[comparison-overlap]


@each("model", ["vit_tiny_random", "module"])
def test_what_is_saved_is_read_back(model: str, tmp_path: Path) -> None:
    module = plain_timm("vit") if model == "module" else None
    net = tiny(rank=2, class_names=list("abcde")) if module is None else headwise.adapt(module, rank=2)
    steps(net)
    assert net.save(tmp_path / "mine") == tmp_path / "mine"
    assert {file.suffix for file in (tmp_path / "mine").iterdir()} == {".json", ".safetensors"}
    again = headwise.load(tmp_path / "mine", model=module)
    assert isinstance(again, headwise.Adapted) and not again.training
    assert distance(logits(again, X), logits(net, X)) == 0
    assert list(again.task.class_names) == list(net.task.class_names)
    assert steps(again.train())[0] == pytest.approx(steps(net)[0], abs=1e-6)
    merged = headwise.load(tmp_path / "mine", model=module, merged=True)
    assert type(merged) is Classifier and not any(p.requires_grad for p in merged.parameters())


def test_two_phases_follow_each_other_and_are_saved(tmp_path: Path) -> None:
    net = tiny("hs_lora", first={"rank": 2}, heads={"rank": 1})
    steps(net)
    before = logits(net, X)
    net.save(tmp_path / "first")
    net.next_phase()
    assert net.stages[net.phase].method.label == "head_lora" and distance(logits(net, X), before) < 1e-5
    steps(net)
    net.save(tmp_path / "both")
    assert distance(logits(headwise.load(tmp_path / "both"), X), logits(net, X)) < 1e-5
    first = headwise.load(tmp_path / "first")
    assert distance(logits(first, X), before) == 0
    first.next_phase()  # type: ignore[operator]
    with pytest.raises(ConfigError, match="head_lora is the last of 2 phases"):
        net.next_phase()


def test_heads_are_chosen_where_the_user_says(tmp_path: Path) -> None:
    net = tiny("lora", rank=2, gate={"mode": "heart", "count": 1})
    steps(net)
    for premature in (net.merge, net.next_phase):
        with pytest.raises(ConfigError, match=r"has not chosen its heads: call choose_heads|is the last of 1"):
            premature()
    net.choose_heads([(X, Y)])
    assert net.training
    masks = [delta.get_buffer("active") for delta in net.installed.masking.deltas.values()]  # type: ignore[union-attr]
    assert [int(mask.sum()) for mask in masks] == [3] * 4
    steps(net)
    net.save(tmp_path)
    again = headwise.load(tmp_path)
    assert distance(logits(again, X), logits(net, X)) < 1e-6
    assert distance(logits(again.merge(), X), logits(net, X)) < 1e-5  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no heads to choose"):
        net.choose_heads([(X, Y)])


class Module(L.LightningModule):
    def __init__(self, net: headwise.Adapted) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.trainable_parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_every_loop_trains_the_same_bits() -> None:
    def plain(net: headwise.Adapted, prepare: Any = None) -> None:
        optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.1)
        model, optimizer = (net, optimizer) if prepare is None else prepare.prepare(net, optimizer)
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(X), Y)
            optimizer.zero_grad()
            loss.backward() if prepare is None else prepare.backward(loss)
            optimizer.step()

    nets = [tiny() for _ in range(3)]
    plain(nets[0])
    plain(nets[1], Accelerator(cpu=True))
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    batches: Any = torch.utils.data.DataLoader([(X, Y)], batch_size=None)
    L.Trainer(accelerator="cpu", max_epochs=2, log_every_n_steps=1, **off).fit(Module(nets[2]), batches)
    expected = logits(nets[0], X)
    assert all(distance(logits(net, X), expected) == 0 for net in nets[1:])


def test_it_classifies_copies_and_pickles(tmp_path: Path) -> None:
    net = tiny(class_names=list("abcde"))
    steps(net)
    array = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    (guess,) = net.classify(array)
    assert guess.name in "abcde" and net.training and net.classify([]) == []
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert distance(logits(other, X), logits(net, X)) == 0
        before = logits(net, X)
        steps(other)
        assert distance(logits(net, X), before) == 0 < distance(logits(other, X), before)
        assert distance(logits(other.merge(), X), logits(other, X)) < 1e-5
    half = copy.deepcopy(net).to(torch.bfloat16)
    assert half.classify(array)[0].probability == pytest.approx(guess.probability, abs=0.02)


@each(
    "model, method, given, said",
    [
        ("vit_tiny_random", "head_lora", {"rnak": 3}, r"unknown key method\.rnak=3 \(did you mean 'method\.rank'"),
        ("vit_tiny_random", "head_lroa", {}, r"unknown method 'head_lroa' \(did you mean 'head_lora'"),
        ("vit_tiny_random", "head_lora", {"rank": 0}, r"method\.rank must be a whole number"),
        ("vit_tiny_random", "head_lora", {"rank": 49}, r"rank must be in 1\.\.12"),
        ("vit_tiny_random", "head_lora", {"targets": ["fc1"]}, r"updates what heads own, and s0\.b0\.fc1 has no heads"),
        ("vit_tiny_random", "head_lora", {"epochs": 3}, r"epochs=3 means nothing to adapt"),
        ("vit_tiny_random", "lora", {"consistency": "pace"}, r"consistency of method lora is of the training step"),
        ("vit_tiny_random", "head_lora", {"num_classes": None}, r"num_classes must be given"),
        ("vit_tiny_random", "head_lora", {"class_names": ["a"]}, r"1 class_names for a classifier of 5 classes"),
        ("vit_tiny_randm", "head_lora", {}, r"unknown timm network 'vit_tiny_randm'"),
        ("vit_tiny_random", "adalora", {}, r"method adalora steers its own training"),
        (
            "vit_tiny_random",
            "spt_lora",
            {"budget": 5000, "tau_step": 50},
            r"looks at training images first: give batches",
        ),
        (
            "vit_tiny_random",
            HeadLoRA(label="x", rank=1),
            {"rank": 3},
            r"rank belongs to the method, which was given whole",
        ),
        ("module", "head_lora", {"weights": "none"}, r"weights='none' belongs to a network's name"),
        ("resnet", "head_lora", {}, r"ResNet has neither blocks nor layers"),
    ],
)
def test_what_cannot_be_adapted_is_refused(model: str, method: Any, given: dict[str, Any], said: str) -> None:
    network: Any = {"module": plain_timm("vit"), "resnet": timm.create_model("resnet10t", pretrained=False)}.get(
        model, model
    )
    options = {**(TINY if isinstance(network, str) else {"num_classes": 5}), **given}
    with pytest.raises(HeadwiseError, match=said):
        headwise.adapt(network, method, **options)


def test_a_method_that_stays_in_place_is_saved_and_not_merged(tmp_path: Path) -> None:
    net = tiny("adaptformer")
    steps(net)
    with pytest.raises(CheckpointError, match="methods that stay in place"):
        net.merge()
    net.save(tmp_path)
    assert distance(logits(headwise.load(tmp_path), X), logits(net, X)) == 0


def test_a_folder_of_another_network_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    net = headwise.adapt(plain_timm("vit"), rank=2)
    net.save(tmp_path)
    with pytest.raises(ConfigError, match=r"was made of a module \(vit_tiny_patch16_224\): give it"):
        headwise.load(tmp_path)
    torch.manual_seed(5)
    other = plain_timm("vit")
    nn.init.normal_(other.blocks[0].attn.proj.weight)  # type: ignore[index, union-attr]
    with pytest.raises(WeightsError, match=r"give the right one with model="):
        headwise.load(tmp_path, model=other)
    record = json.loads((tmp_path / "adapter.json").read_text())
    for change, said in [({"format": "x/9"}, "format 'x/9'"), ({"phases": 3}, "no record of an adapted network")]:
        (tmp_path / "adapter.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(CheckpointError, match=said):
            headwise.load(tmp_path, model=plain_timm("vit"))
    record["phases"][0]["method"]["_target_"] = "os.system"
    (tmp_path / "adapter.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"os\.system"):
        headwise.load(tmp_path, model=plain_timm("vit"))


def test_hydra_is_not_imported() -> None:
    code = (
        "import sys, headwise; headwise.adapt('vit_tiny_random', weights='none', num_classes=3).merge();"
        "sys.exit('hydra' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parameters_with_a_rate_of_their_own_need_the_rate() -> None:
    net = headwise.adapt(plain_timm("vit"), "lora_plus", rank=2)
    fast, slow = sorted(net.param_groups(0.01, 1e-3), key=lambda group: -group.get("lr", 0.0))
    assert fast["lr"] == pytest.approx(16e-3) and "lr" not in slow and "rate" not in fast
    with pytest.raises(ConfigError, match=r"16 times the rate; say which: param_groups\(weight_decay, lr\)"):
        net.param_groups(0.01)
    with pytest.raises(ConfigError, match=r"at another rate; give the optimiser param_groups\(weight_decay, lr\)"):
        net.trainable_parameters()
    assert all("lr" not in group for group in headwise.adapt(plain_timm("vit"), "lora", rank=2).param_groups(0.01))
