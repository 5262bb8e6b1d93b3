"""A page for each method: no method escapes, and what a page says is what the method is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from headwise.errors import ConfigError
from headwise.protocol.described import method_names
from headwise.runs import method_page
from made_cases import each
from made_networks import REPO
from made_scripts import loaded

NAMES = method_names()
KEPT = REPO / "docs" / "results"


def own_conf(place: Path, name: str, text: str) -> Path:
    """A configuration folder with one method."""
    file = place / "method" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return place


@each("name", NAMES)
def test_every_method_says_where_it_is_from_and_when_not_to_use_it(name: str) -> None:
    facts = method_page.facts_of(name)
    for fact in ("Source", "Licence", "Not for"):
        assert facts[fact].endswith("."), f"{fact}: {facts[fact]}"
    assert method_page.read(name).commands[0].startswith("python train.py"), name
    if name.startswith("peft/"):
        assert facts["Formula"] and facts["Size"]


def test_a_method_without_its_facts_is_found(tmp_path: Path) -> None:
    comment = "# Mine (Me et al., arXiv:1).\n# Licence: MIT.\n# Run: python train.py\n"
    conf = own_conf(tmp_path, "mine", f"{comment}_target_: headwise.methods.base.Method\n")
    with pytest.raises(ConfigError, match=r"method mine lacks Not for: write 'Not for: \.\.\.' .*method/mine\.yaml"):
        method_page.facts_of("mine", conf)


def test_what_is_made_from_another_takes_over_its_facts() -> None:
    assert method_page.read("qkv/fused_matched").made_from == ("qkv/fused", "lora")
    assert method_page.facts_of("qkv/fused_matched")["Source"] == "Hu et al., arXiv:2106.09685."
    assert "microsoft" in method_page.facts_of("qkv/fused")["Licence"]
    assert "loraplus" in method_page.facts_of("lora_plus")["Licence"]
    assert method_page.facts_of("hs/pissa_long")["Source"] == "Control of this project."
    assert method_page.facts_of("hs/pissa")["Source"] == "HS-LoRA sec. 4.3 and 4.4."


def rows(page: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.*) \|$", page, flags=re.MULTILINE))


def test_a_page_of_two_phases_with_records() -> None:
    page = method_page.page("hs_lora", KEPT)
    assert rows(page)["parameters on ViT-B/16, without the head, phase head_lora"] == "718,848"
    assert "W1_i + s B_i A_i for the rows" in page and "## When not to use it\n\nClaims from its gain alone" in page
    lines = json.loads((KEPT / "methods.json").read_text())[0]["lines"]
    (line,) = [line for line in lines if (line["method"], line["variant"]) == ("hs_lora", "base")]
    assert f"{line['ms_per_step']:.0f} ms a step" in page
    records = [
        json.loads(file.read_text()) for file in KEPT.glob("records/standins/hs_lora/eurosat/base/*/result.json")
    ]
    mean = sum(record["phases"][-1]["accuracy"] for record in records) / len(records)
    stamps = ", ".join(records[0]["labels"])
    assert f"| standins | eurosat | base | vit_s14_dinov2 | {stamps} | {mean:.2f} | {len(records)} |" in page


def test_a_page_gives_the_step_that_was_measured_last() -> None:
    page = method_page.page("dylora", KEPT)  # measured twice
    again = json.loads((KEPT.parents[1] / "benchmarks/results/method_cost_again.json").read_text())
    (one,) = [one for one in again["results"] if one["contender"] == "dylora"]
    assert f"{one['quartiles'][1]:.2f} times one that trains" in page and f"{len(one['pairs'])} pairs" in page
    assert page.count("times its arithmetic") == 1


RATIO = {"contender": "lora", "precision": "fp32", "pairs": [], "quartiles": [1.0, 1.0, 1.0], "flop_ratio": 1.0}
MEASURED = "benchmarks/results/method_cost.json"
LINED_UP = "docs/results/methods.json"


def of(**changes: Any) -> str:
    return json.dumps({"backbone": {"name": "vit_b16"}, "batch": 8, "results": [{**RATIO, **changes}]})


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        *((name, text) for name in (MEASURED, LINED_UP) for text in ("", '[{"title": "x"}]', "null", '{"results": 1}')),
        *((MEASURED, of(quartiles=quartiles)) for quartiles in ([1.0, 1.0], [1.0, 1e300, 1.0], [-5.0, 1.0, 2.0], None)),
        (MEASURED, of(flop_ratio=-3)),
        (MEASURED, of(pairs=None)),
        (MEASURED, of()[:-5]),
    ],
)
def test_a_damaged_record_is_named_in_one_line(name: str, damaged: str, tmp_path: Path) -> None:
    file, kept = tmp_path / name, tmp_path / "docs" / "results"
    for folder in (file.parent, kept):
        folder.mkdir(parents=True, exist_ok=True)
    file.write_text(damaged)
    with pytest.raises(ConfigError, match=rf"{file.name} cannot be shown: .*make it again, or delete it"):
        method_page.page("lora", kept)
    if name == MEASURED:
        file.write_text(of())
        assert "A step of vit_b16, fp32, batch 8: 1.00 times" in method_page.page("lora", kept)
        file.write_text(json.dumps({**json.loads(of()), "compile": True}))  # not what the command runs
        assert "A step of" not in method_page.page("lora", kept)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    tables = json.loads((KEPT / "methods.json").read_text())
    for line in tables[0]["lines"]:
        line["ms_per_step"] = None
    kept = tmp_path / "docs" / "results"
    kept.mkdir(parents=True)
    (kept / "methods.json").write_text(json.dumps(tables))
    (kept / "methods_nano.json").write_text("[]")  # of another kind, which list_methods.py --json writes
    assert "Nothing kept measured it" in method_page.page("lora", kept)


def test_a_page_of_a_method_of_peft(tmp_path: Path) -> None:
    page = method_page.page("peft/osf", tmp_path)
    assert "14,164,992: as many parameters as the weights" in page and "full tuning in disguise" in page
    assert "No run of it is kept" in page and "Nothing kept measured it" in page
    assert "AdaLoRA" not in page.partition("## Defaults")[0]  # its own formula, not the bridge's docstring
    for name in ("peft/c3a", "ssf"):
        assert rows(method_page.page(name))["starts at the pretrained network"] == "no"


def test_a_size_that_images_decide_is_not_invented() -> None:
    page = method_page.page("spt_lora")
    assert rows(page)["parameters on ViT-B/16, without the head"] == "depends on the training images"


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = loaded("list_methods").main
    assert main(["peft/oft", "--out", str(tmp_path / "oft.md")]) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "oft.md").read_text() == method_page.page("peft/oft", KEPT)
    assert main(["peft/oftt"]) == 1
    assert "unknown method 'peft/oftt' (did you mean 'peft/oft'?)" in capsys.readouterr().err


@pytest.mark.slow
def test_every_page_and_the_list_of_them() -> None:
    listed = method_page.index()
    for name in NAMES:
        assert f"\n| [{name}]({name}.md) | " in listed
        assert f"# {name}\n" in method_page.page(name, KEPT)
