"""The catalogue of methods, and the command that prints it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from headwise.methods._catalog import UNITS, CatalogRow, markdown, measure, printed_sizes
from made_cases import each
from made_networks import CONF, composed_method, network
from made_scripts import loaded


def cells(out: str, name: str) -> list[str]:
    """Of the row of a method."""
    (row,) = [line for line in out.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_counts_are_those_of_the_network() -> None:
    (entry,) = measure("pfeiffer", "adapters", composed_method("pfeiffer").phases(), network("vit"))
    assert (entry.num_tunable, entry.num_head) == (2 * 2 * 48 * 8, 49 * 5)
    assert entry.stored_bytes == 4 * 2 * 2 * 48 * 8
    assert entry.acts_on == "adapter_mlp"
    assert not entry.merges


def test_phases_are_counted_one_by_one() -> None:
    first, second = measure("hs_lora", "two phases", composed_method("hs_lora").phases(), network("vit"))
    assert second.phase == "head_lora"
    assert second.acts_on == "q, v"
    assert first.merges


def test_a_method_that_is_not_defined_says_why() -> None:
    (entry,) = measure("noah", "subnets", composed_method("noah").phases(), network("swin"))
    assert entry.num_tunable is None
    assert "- noah: not on this backbone (method 'noah' is defined for networks with one" in markdown([entry], "swin")


@each("file", sorted([*(CONF / "method").glob("*.yaml"), *(CONF / "method" / "peft").glob("*.yaml")]))
def test_every_method_names_its_paper(file: Path) -> None:
    about = loaded("list_methods").about(file.relative_to(CONF / "method").with_suffix("").as_posix())
    is_own = about.startswith(("Baseline", "Control"))
    assert bool(CatalogRow(name=file.stem, about=about, phase=file.stem).paper) != is_own, about


def test_places_have_plain_names() -> None:
    expected = {
        "bitfit": "every bias",
        "compacter": "compacter_attn, compacter_mlp",
        "full": "everything",
        "linear": "head",
        "spt_lora": "vectors",
    }
    for name, places in expected.items():
        (entry,) = measure(name, "", composed_method(name).phases(), network("vit"))
        assert entry.acts_on.endswith(places), name
        assert "net." not in entry.acts_on and "s0." not in entry.acts_on


def test_printed_sizes_belong_to_methods() -> None:
    names = {file.stem for file in (CONF / "method").glob("*.yaml")}
    assert {size.method for size in printed_sizes()} <= names
    assert all(size.why and size.unit in UNITS for size in printed_sizes())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "methods.json"
    main = loaded("list_methods").main
    assert main(["ssf", "lora", "--backbone", "vit_tiny_random", "--json", str(file), "--set", "rank=r4"]) == 0
    out = capsys.readouterr().out
    assert cells(out, "ssf")[1:4] == [
        "ssf",
        "Lian et al., arXiv:2210.08823",
        "patch_embed.proj, norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2, norm",
    ]
    assert cells(out, "lora")[4:] == ["yes", "1,536", "490", "6,144", "1.13 MiB, 0.29 M", ""]
    assert len({len(line) for line in out.splitlines() if line.startswith("|")}) == 1  # it lines up in a terminal
    assert "- ssf: HS-LoRA prints 0.24 M (printed includes the mean head: 243,869)" in out
    found = json.loads(file.read_text())
    assert [entry["name"] for entry in found] == ["ssf", "lora"]
    assert found[1]["num_tunable"] == 2 * 2 * 4 * 96
    assert main(["lara"]) == 1
    assert "unknown method 'lara' (did you mean 'lora'?)" in capsys.readouterr().err
    assert main(["--backbone", "vit_b17"]) == 1
    assert "unknown backbone 'vit_b17'" in capsys.readouterr().err


def test_those_of_peft_are_listed_by_their_folder(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["peft/ln_tuning", "peft/rslora", "ssf", "--backbone", "vit_tiny_random", "--set", "rank=r4"]
    assert loaded("list_methods").main(wanted) == 0
    out = capsys.readouterr().out
    assert cells(out, "peft/rslora")[5:] == ["1,536", "490", "6,144", "", ""]
    assert cells(out, "ssf")[-1] == "off the network"
    assert "- peft/ln_tuning: as many parameters as the weights that it adapts have, full tuning in disguise" in out
    assert "- peft/rslora" not in out


def test_the_papers_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sizes.json"
    main = loaded("list_methods").main
    assert main(["bitfit", "adaptformer", "--papers", "--backbone", "vit_tiny_random", "--json", str(file)]) == 0
    lines = [re.sub(r" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert "| Heart-LoRA | BitFit | 0.39 MiB | 0.004 | 1,152 | 4,608 | method=bitfit | agrees |" in lines
    assert sum("method=adaptformer" in line for line in lines) == 2
    why = "printed is the mean over the 19 subnets: 360,134; each task has its own (dataset=NAME)"
    assert f"| HS-LoRA | NOAH | 0.361 M | | | | | {why} |" in lines
    assert [entry["num_tunable"] for entry in json.loads(file.read_text())] == [1_152, 1_536, 1_536 + 2 * (8 + 48)]
