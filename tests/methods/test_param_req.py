"""Selections that SPT's authors store: their layout made by hand, read, refused, trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_native import build

from headwise.errors import CheckpointError, ConfigError
from headwise.methods._selection import PLACES, unpack_entries
from headwise.protocol.plan import plan_run
from headwise.storage.hashes import file_sha256
from made_cases import each
from made_networks import batches, compose_config, network

WIDTH, RANK = 48, 2
SHAPES = {
    "blocks.0.attn.k.weight": torch.Size([WIDTH, WIDTH]),
    "blocks.0.norm1.weight": torch.Size([WIDTH]),
    "blocks.1.mlp.fc1.bias": torch.Size([4 * WIDTH]),
}
INDEXES = [3, 50, WIDTH * WIDTH + 1, WIDTH * WIDTH + WIDTH + 7, WIDTH * WIDTH + WIDTH + 9]


def stored(folder: Path, **changes: Any) -> str:
    """A file as get_sensitivity of ziplab/SPT writes it: two matrices, three vectors, five entries."""
    matrices = 2 * WIDTH * RANK + WIDTH * RANK + 4 * WIDTH * RANK
    total = matrices + 2 * WIDTH + WIDTH + len(INDEXES) + WIDTH
    content: Mapping[str, Any] = {
        "unstructured_name_shapes": SHAPES,
        "unstructured_name_shapes_int": {name: np.cumprod(list(shape))[-1] for name, shape in SHAPES.items()},
        "params": torch.tensor(float(total)) / 1e6,
        "unstructured_params": torch.tensor(float(len(INDEXES))),
        "structured_params": matrices + 3 * WIDTH,
        "unstructured_indexes": torch.tensor(INDEXES),
        "tuned_matrices": [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
        "tuned_vectors": ["blocks.0.attn.q.bias", "blocks.1.norm2.bias", "norm.weight"],
        **changes,
    }
    file = folder / "param_req_0.4.pth"
    torch.save(content, file)
    return str(file)


def test_a_stored_selection_is_a_plan(tmp_path: Path) -> None:
    net, file = network("vit"), stored(tmp_path)
    method = build("spt_lora", f"+method.param_req={file}", f"method.rank={RANK}")
    method.rehearse(network("vit"))
    plan = method.prepare(net, batches(), 10)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["structured"] == ["s0.b0.v", "s0.b1.fc2"]
    assert {key: unpack_entries(text).tolist() for key, text in plan["sparse"].items()} == {"s0.b0.k": [3, 50]}
    assert {key: unpack_entries(text).tolist() for key, text in plan["biases"].items()} == {"s0.b1.fc1": [7, 9]}
    assert plan["vectors"] == ["blocks.0.attn.qkv.q.bias", "blocks.1.norm2.bias", "norm.weight"]
    assert plan["param_req"] == file_sha256(file)
    installed = method.install(net, plan)
    trained = sum(tensor.numel() for tensor in installed.adapter().values())
    assert trained == method.count(network("vit"), plan) == plan["total"] - 1  # the norm's entry counts, and stays


def test_a_selection_of_adapters(tmp_path: Path) -> None:
    sizes = (2 * RANK + 1) * 2 * WIDTH + 2 * RANK
    total = sizes + 3 * WIDTH + len(INDEXES) + WIDTH
    file = stored(tmp_path, params=total / 1e6)
    method = build("spt_adapter", f"+method.param_req={file}", f"method.rank={RANK}")
    assert method.prepare(network("vit"), batches(), 10)["total"] == total


@each(
    "changes, message",
    [
        ({"tuned_matrices": [[0] * 6] * 12}, "is of a network of 12 blocks, this one has 2"),
        (
            {"tuned_matrices": [[0, 2, 0, 0, 0, 0]] * 2},
            "a block of tuned_matrices has 6 flags",
        ),
        ({"tuned_vectors": ["blocks.7.norm1.bias"]}, r"selects blocks\.7\.norm1\.bias, which this network does not"),
        ({"tuned_vectors": [3]}, "names are text, got int"),
        ({"unstructured_indexes": torch.tensor([10**6])}, r"unstructured_indexes must be in 0\.\.2543"),
        ({"unstructured_indexes": torch.tensor([3, 3])}, "names an entry twice"),
        ({"unstructured_indexes": torch.tensor([0.5])}, r"must be whole numbers, \(n,\)"),
        ({"params": 0.4}, "says that it selects 400000 parameters; at rank=2 and structure=lora it selects"),
    ],
)
def test_refuses_what_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    method = build("spt_lora", f"+method.param_req={stored(tmp_path, **changes)}", f"method.rank={RANK}")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        method.prepare(network("vit"), batches(), 10)


def test_refuses_fields_that_choose_nothing_and_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget of method 'spt_lora' choose nothing with param_req=x\.pth"):
        build("spt_lora", "+method.param_req=x.pth", "method.budget=600000")
    torch.save({"tuned_matrices": []}, tmp_path / "x.pth")
    method = build("spt_lora", f"+method.param_req={tmp_path / 'x.pth'}")
    with pytest.raises(CheckpointError, match="lacks tuned_vectors, unstructured_name_shapes"):
        method.prepare(network("vit"), batches(), 10)
    with pytest.raises(CheckpointError, match=r"missing\.pth cannot be read"):
        build("spt_lora", f"+method.param_req={tmp_path / 'missing.pth'}").prepare(network("vit"), batches(), 10)


def test_its_content_is_part_of_the_run(tmp_path: Path) -> None:
    def identity(file: str) -> Any:
        words = (f"+method.param_req={file}", "backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic")
        return plan_run(compose_config("method=spt_lora", *words)).identity["method"]

    file = stored(tmp_path)
    assert identity(file)["param_req"] == file_sha256(file)
    assert list(PLACES) == ["q", "k", "v", "o", "fc1", "fc2"]
