"""One verdict: the rule, its words, and that table, page and a run's ending print the same of the same pairs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from headwise.comparison.controls import CONTROLS, EQUAL_SIZE, HEADS, PHASE
from headwise.comparison.tables import tables
from headwise.comparison.verdicts import Difference, Judgement, Pairs, Verdict
from headwise.protocol.recipe import MEANINGLESS, SMOKE, Protocol
from headwise.report.ending import around, summary
from headwise.report.page import report
from headwise.results.records import Result
from headwise.results.store import ResultStore
from headwise.storage.weights import weights_labels
from made_cases import each
from made_networks import CONF, compose_config
from made_results import LORA, PROTOCOL, gated, run

KINDS = tuple(CONTROLS[PHASE])
HEAD = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "rank": 2}
SHARED = {"_target_": "headwise.methods.hs_lora.MatchedLoRA", "head_rank": 2}


def judgement(lacking: tuple[str, ...] = (), **gains: list[float]) -> Judgement:
    """A claim of a second phase with these differences to longer P1, equal-size LoRA and longer P2, a task each."""
    known = dict(zip(("first", "equal", "second"), KINDS, strict=True))
    made = [
        Pairs(known[name], tuple(Difference(f"t{place}", (0, 0), value) for place, value in enumerate(values)))
        for name, values in gains.items()
        if values
    ]
    lack = {kind: ["t9"] if kind in lacking or kind not in {p.against for p in made} else [] for kind in KINDS}
    return Judgement(PHASE, "hs", tuple(made), lack)


UP, DOWN, BOTH = [0.5 + place / 10 for place in range(8)], [-0.5] * 8, [-1.0, 1.5] * 4


@each(
    "first, equal, expected",
    [
        (UP, UP, Verdict.YES),
        (UP, BOTH, Verdict.LEANS_YES),
        (UP[:5], UP[:5], Verdict.LEANS_YES),
        (UP, [0.0] * 8, Verdict.EVEN),
        (UP, [-2.0, 1.0] * 4, Verdict.LEANS_NO),
        (UP[:3], DOWN[:3], Verdict.LEANS_NO),
        (UP, DOWN, Verdict.NO),
        (UP, [], Verdict.NO_CONTROL),
        ([], [], Verdict.NO_CONTROL),
        (DOWN, [], Verdict.NO),
        (DOWN[:1], [], Verdict.LEANS_NO),
    ],
)
def test_the_rule(first: list[float], equal: list[float], expected: Verdict) -> None:
    assert judgement(first=first, equal=equal, second=UP[: len(first)]).verdict is expected


def test_a_control_that_some_tasks_lack_is_no_yes() -> None:
    assert judgement((EQUAL_SIZE,), first=UP, equal=UP, second=UP).verdict is Verdict.NO_CONTROL
    assert judgement((EQUAL_SIZE,), first=UP, equal=DOWN, second=UP).verdict is Verdict.NO


def test_verdicts_have_a_rank_and_words() -> None:
    assert [verdict.value for verdict in sorted(Verdict, key=lambda verdict: verdict.rank)] == [
        "yes",
        "leans yes",
        "no difference",
        "leans no",
        "no",
        "no control",
        "SMOKE",
    ]
    assert all(verdict.headline for verdict in Verdict)


def test_the_sentence_says_what_it_rests_on() -> None:
    asked, _, said = str(judgement(first=UP, equal=[1.0], second=[])).partition("? ")
    assert asked == "Is the second phase of hs better than its controls"
    assert said.startswith("No control: +0.85 against longer P1 (+0.")
    assert said.endswith("8 pairs), +1.00 against equal-size LoRA (1 pair), none against longer P2.")
    alone = Judgement(HEADS, "x", (Pairs(EQUAL_SIZE, (Difference("t", (0, 0), 0.5),)),), {EQUAL_SIZE: []})
    assert str(alone) == (
        "Are the per-head updates of x better than shared ones of their size? "
        "Leans yes: +0.50 against equal-size LoRA (1 pair)."
    )


def second_phases(seeds: int, gain: float, missing: str) -> list[Result]:
    """HS-LoRA on one task with controls that it beats by `gain`; `missing` is left out of the last seed."""
    made = []
    for seed in range(seeds):
        heads, plain = (run(name, seed=seed, accuracy=(80.0, 85.0)) for name in ("hs_lora", "lora_then_lora"))
        for result, spec, reached in ((heads, HEAD, 85.0), (plain, SHARED, 85.0 - 2 * gain)):
            result.phases[0] = dataclasses.replace(result.phases[0], fingerprint=f"{seed}a")
            result.phases[1] = dataclasses.replace(result.phases[1], method=spec, accuracy=reached)
        longer = run("lora_long", seed=seed, accuracy=(85.0 - gain,), epochs=200)
        second = run("head_long", seed=seed, accuracy=(85.0 - gain,), epochs=200, spec=HEAD)
        controls = dict(zip(KINDS, (longer, plain, second), strict=True))
        if seed == seeds - 1:
            controls.pop(missing, None)
        made += [heads, *controls.values()]
    return made


def heads_off(seeds: int, gain: float, missing: str) -> list[Result]:
    """One head off by score, better than none off and random ones by `gain`."""
    made = []
    for seed in range(seeds):
        made.append(gated("heart_lora", seed, 89.0, 1))
        plain = run("bi_lora", seed=seed, accuracy=(89.0 - gain,), recipe={"m": "bi"})
        made.append(dataclasses.replace(plain, phases=[dataclasses.replace(plain.phases[0], method=LORA)]))
        made.append(gated("heart_random", seed, 89.0 - gain, 1, "random"))
        if seed == seeds - 1 and missing:
            made.pop()
    return made


@pytest.mark.parametrize("make", [second_phases, heads_off])
@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize("gain", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("missing", ["", "longer P1"])
def test_table_page_and_ending_say_the_same(make, seeds: int, gain: float, missing: str, tmp_path: Path) -> None:
    results = make(seeds, gain, missing)
    (table,) = tables(results)
    (judged,) = (one for one in table.judgements if one.claim != HEADS)
    sure = seeds >= 6
    if gain < 0:
        expected = Verdict.NO if sure else Verdict.LEANS_NO
    elif missing:
        expected = Verdict.NO_CONTROL
    elif gain == 0:
        expected = Verdict.EVEN
    else:
        expected = Verdict.YES if sure else Verdict.LEANS_YES
    assert judged.verdict is expected
    assert f"? {expected.value.capitalize()}: " in table.answers[0]
    page = report(results)
    assert f'<span class="verdict {expected.value.replace(" ", "-")}">{expected.value}</span>' in page
    store = ResultStore(tmp_path)
    for result in results:
        store.put(result.key, result)
    for result in results:
        if result.key.method in ("hs_lora", "heart_lora"):
            said = summary(result, around(result, store))
            assert re.search(rf"\? {expected.value.capitalize()}: ", said), said
            assert table.answers[0].partition("? ")[2] in said


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def stamped(labels: list[str], gain: float = 2.0, **fields) -> list[Result]:
    return [dataclasses.replace(result, labels=labels, **fields) for result in second_phases(6, gain, "")]


def said(results: list[Result], folder: Path) -> set[str]:
    """The verdict on HS-LoRA by tables, page and the ending of a run."""
    shown = re.findall(r'<span class="verdict [\w-]+">([^<]*)</span>', report(results))
    store = ResultStore(folder)
    for result in results:
        store.put(result.key, result)
    ended = summary(results[0], around(results[0], store))
    asked = [line for line in ended.splitlines() if "better than its controls" in line]
    texts = [tables(results)[0].answers[0], *asked]
    return {*shown, *(re.split("[:,]", text.partition("? ")[2])[0] for text in texts)}


@each("gain", [2.0, 0.0, -2.0])
@each("label", MEANINGLESS)
def test_numbers_that_mean_nothing_are_no_verdict(label: str, gain: float, tmp_path: Path) -> None:
    assert said(stamped([label, "subset"], gain), tmp_path) == {"SMOKE"}
    page = report(stamped([label], gain))
    assert "these runs show that everything works. Their numbers mean nothing." in page
    assert "gains 2.00" not in page and '<strong class="badge">SMOKE</strong>' in page


def test_records_of_the_smoke_protocol_without_its_label_mean_as_little(tmp_path: Path) -> None:
    old = stamped(["subset"])
    for result in old:
        result.provenance["protocol"] = {**PROTOCOL, "name": SMOKE}
    assert said(old, tmp_path) == {"SMOKE"}


def test_of_all_protocols_and_networks_only_those_in_miniature_mean_nothing(tmp_path: Path) -> None:
    labels = {}
    for name in options("protocol"):
        values = {key: value for key, value in compose_config(f"protocol={name}")["protocol"].items() if key[0] != "_"}
        found = Protocol(**values).labels
        says = "No number made with it" in (CONF / "protocol" / f"{name}.yaml").read_text()
        assert (SMOKE in found) == says, name
        labels |= dict.fromkeys(found)
    for name in options("backbone"):
        for weights in ("none", "file.npz"):
            choices = [f"backbone={name}", f"backbone.weights={weights}"]
            choices += ["backbone.name=vit_tiny_patch16_224"] if name == "timm" else []
            labels |= dict.fromkeys(weights_labels(compose_config(*choices)["backbone"]))
    for file in (CONF.parent / "docs" / "results" / "records").rglob("result.json"):
        labels |= dict.fromkeys(json.loads(file.read_text())["labels"])
    assert {"smoke", "subset", "TEST-SELECTED", "stand-in weights", "random weights", "synthetic"} <= labels.keys()
    for place, label in enumerate(labels):
        expected = {"SMOKE"} if label in MEANINGLESS else {"Yes", "yes"}
        assert said(stamped([label]), tmp_path / str(place)) == expected, label
