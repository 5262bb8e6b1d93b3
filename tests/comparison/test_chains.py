"""Runs that went on from others pair with what differs in one thing, and what a table asks for would pair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from headwise.comparison.controls import EQUAL_SIZE, HEADS, JOINT, ORDER, PHASE, controls_of, is_control, matches
from headwise.comparison.tables import tables
from headwise.protocol.earlier import Earlier
from headwise.report.ending import missing_controls, summary
from headwise.results.records import Result
from headwise.results.store import ResultStore
from made_cases import each
from made_results import LORA, run

HEAD = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "rank": 2}
SHARED = {"_target_": "headwise.methods.hs_lora.MatchedLoRA", "head_rank": 2}
PLAIN = {**LORA, "checkpoint": None}
TAKEN = {**LORA, "checkpoint": "/runs/lora/phase-1.safetensors"}


def chain(
    method: str, specs: list[dict], accuracy: tuple[float | None, ...], start: str | None = "a", **fields
) -> Result:
    """A run of these phases; `start` is what it went on from, whose phases have fingerprints of their own."""
    made = run(method, accuracy=accuracy, **fields)
    phases = [
        dataclasses.replace(phase, method={**spec, "label": method}, fingerprint=f"{start}{i}{spec if i else ''}")
        for i, (phase, spec) in enumerate(zip(made.phases, specs, strict=True))
    ]
    identity = {**made.identity, **({} if start is None else {"from": start})}
    return dataclasses.replace(made, phases=phases, identity=identity)


def alone(method: str, spec: dict, accuracy: float, epochs: int, **fields) -> Result:
    return run(method, accuracy=(accuracy,), epochs=epochs, spec=spec, **fields)


def against(result: Result, every: list[Result]) -> dict[str, float]:
    return {match.against: match.reached for match in matches([result], [result, *every])}


def test_two_phases_pair_with_what_the_table_asks_for() -> None:
    went_on = chain("heads", [TAKEN, HEAD], (90.0, 93.0))
    controls = [
        chain("matched", [TAKEN, SHARED], (90.0, 92.0)),
        alone("lora", PLAIN, 91.0, 200),
        alone("heads", HEAD, 89.0, 200, variant="long"),
    ]
    assert against(went_on, controls) == {"P1": 90.0, "longer P1": 91.0, EQUAL_SIZE: 92.0, "longer P2": 89.0}
    (table,) = tables([went_on])
    notes = " ".join(table.notes)
    assert "run method=matched_lora with the same from as well" in notes
    assert "run method=p0 protocol.epochs=200 without from as well" in notes
    assert "run method=p1 protocol.epochs=200 without from as well" in notes
    assert "hs_control" not in notes


def test_its_ending_and_that_of_its_sweep_ask_for_the_same_controls(tmp_path: Path) -> None:
    went_on = chain("heads", [TAKEN, HEAD], (90.0, 93.0))
    over_another = chain("over", [TAKEN, HEAD], (None, 93.0), seed=1)
    for said in (summary(went_on), "\n".join(missing_controls([went_on], ResultStore(tmp_path)))):
        assert ": method=matched_lora with the same from)" in said
        assert ": method=p0 protocol.epochs=200 without from)" in said
        assert ": method=p1 protocol.epochs=200 without from)" in said
        assert "hs_control" not in said
    assert controls_of(over_another)[HEADS] == {EQUAL_SIZE: "method=matched_lora with the same from"}


def test_a_first_phase_of_another_protocol_is_said_beside_controls_that_lack_it() -> None:
    went_on = chain("heads", [TAKEN, HEAD], (90.0, 93.0))
    apart = {"from": {"otherwise": ["protocol.lr: 0.1 vs 0.01"]}}
    otherwise = dataclasses.replace(went_on, provenance={**went_on.provenance, **apart})
    same_start, other = chain("matched", [TAKEN, SHARED], (90.0, 92.0)), alone("lora", PLAIN, 91.0, 200)
    note = "TRAINED OTHERWISE, before it went on and by the controls: heads protocol.lr: 0.1 vs 0.01 (svhn)."
    for result, controls, is_said in [
        (otherwise, [same_start, other], True),
        (otherwise, [same_start], False),
        (went_on, [same_start, other], False),
    ]:
        (table,) = tables([result, *controls])
        assert (note in table.notes) == is_said
        assert (
            "trained otherwise before it went on: protocol.lr: 0.1 vs 0.01)" in summary(result, controls)
        ) == is_said


def test_in_what_a_run_trains_otherwise_than_the_one_it_goes_on_from() -> None:
    def identity(**protocol: object) -> dict:
        recipe = {"name": "strict", "epochs": 5, "lr": 0.1, "search": None, **protocol}
        return {"protocol": recipe, "data": {"fingerprint": "ab" * 32}, "dataset": {"name": "svhn"}, "seed": 0}

    def said(before: dict, now: dict, earlier: tuple[str, ...] = ()) -> list[str]:
        provenance = {"from": {"otherwise": [*earlier]}} if earlier else {}
        result = dataclasses.replace(run("lora"), identity=before, provenance=provenance)
        return Earlier(Path("x"), result).provenance(now).get("otherwise", [])

    assert said(identity(), identity(name="x", epochs=9, search={"ne": [1]}, later=True)) == []
    assert said(identity(), identity(lr=0.01)) == ["protocol.lr: 0.1 vs 0.01"]
    images = {**identity(), "data": {"fingerprint": "cd" * 32}, "seed": 1}
    assert said(identity(), images, ("x",)) == ["x", 'data.fingerprint: "abababab" vs "cdcdcdcd"', "seed: 0 vs 1"]
    assert said(identity(), {**identity(lr=0.01), "dataset": {"name": "dtd"}}) == [], "its phases are not tested"


def test_a_control_of_another_start_does_not_pair() -> None:
    went_on = chain("heads", [TAKEN, HEAD], (90.0, 93.0))
    assert EQUAL_SIZE not in against(went_on, [chain("matched", [TAKEN, SHARED], (90.0, 92.0), start="b")])


def test_the_third_phase_is_measured_after_the_same_two() -> None:
    went_on = chain("heads", [TAKEN, {**TAKEN, "rank": 4}, HEAD], (90.0, 91.0, 93.0))
    control = chain("matched", [TAKEN, {**TAKEN, "rank": 4}, SHARED], (90.0, 91.0, 92.0))
    assert is_control(control.tested)
    found = against(went_on, [control, alone("lora", PLAIN, 91.5, 300)])
    assert found == {"P1": 90.0, EQUAL_SIZE: 92.0, "longer P1": 91.5}


def test_controls_of_two_phases_do_not_measure_three() -> None:
    joint = {**HEAD, "_target_": "headwise.methods.hs_controls.JointLoRA", "rank": 8, "head_rank": 2}
    for middle in ([], [{**TAKEN, "rank": 4}]):
        specs = [TAKEN, *middle, HEAD]
        went_on = chain("heads", specs, (90.0, 91.0, 93.0)[-len(specs) :])
        controls = [
            alone("joint", joint, 81.0, went_on.epochs),
            chain("order", [HEAD, PLAIN], (80.0, 82.0), start=None, epochs=went_on.epochs // 2),
        ]
        assert against(went_on, controls).keys() & {JOINT, ORDER} == (set() if middle else {JOINT, ORDER})


def test_heads_over_another_task_are_measured_over_the_same_one() -> None:
    went_on = chain("heads", [TAKEN, HEAD], (None, 93.0))
    assert list(controls_of(went_on)) == [HEADS]
    other = alone("matched", SHARED, 70.0, 200)
    same = chain("matched", [TAKEN, SHARED], (None, 92.0))
    assert against(went_on, [other]) == {}
    assert against(went_on, [other, same]) == {EQUAL_SIZE: 92.0}


def test_a_last_phase_of_shared_updates_has_no_twin_of_its_size() -> None:
    went_on = chain("lora", [TAKEN, HEAD, LORA], (90.0, 93.0, 94.0))
    assert list(controls_of(went_on)[PHASE]) == ["longer P1", "longer P2"]


@each("epochs", [100, 0])
def test_a_file_of_unknown_training_is_not_what_was_trained(epochs: int) -> None:
    went_on = chain("heads", [TAKEN, HEAD], (90.0, 93.0))
    first = dataclasses.replace(went_on.phases[0], epochs=epochs)
    went_on = dataclasses.replace(went_on, phases=[first, went_on.phases[1]])
    found = against(went_on, [alone("lora", PLAIN, 91.0, 100 + epochs)])
    assert ("longer P1" in found) == (epochs > 0)
