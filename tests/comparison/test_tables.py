"""Statistics, what may share a column, and captions."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest

from headwise.comparison import lineup
from headwise.comparison.tables import AVERAGES, Table, compare, recorded, tables
from headwise.report.formats import render
from headwise.runs.experiment import summary
from made_cases import each
from made_results import FEWSHOT, LORA, PROTOCOL, few, gated, masked_suite, run, suite


def one(results, **options) -> Table:
    (table,) = tables(results, **options)
    return table


def cell(table, row, column, phase="P1", part="cells"):
    cells = getattr(table, part)
    found = cells[(cells["row"] == row) & (cells["column"] == column) & (cells["phase"] == phase)]
    assert len(found) <= 1
    return None if found.empty else found.iloc[0]


def said(table) -> str:
    return "\n".join(table.notes)


def test_mean_and_sample_deviation_over_seeds():
    values = [90.0, 91.0, 93.5]
    table = one([run(seed=seed, accuracy=(value,)) for seed, value in enumerate(values)])
    found = cell(table, "lora", "svhn")
    assert found["mean"] == pytest.approx(statistics.mean(values))
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert found["n"] == 3
    assert "3 results, seeds 0, 1, 2; weights: vit_b16" in said(table)
    assert "n = 1" not in said(table)


def test_one_seed_has_no_deviation_and_says_so():
    table = one([run()])
    assert math.isnan(cell(table, "lora", "svhn")["std"])
    assert "n = 1 rest on one seed" in said(table)


def test_phases_without_a_test_are_not_columns():
    table = one([run("heart", accuracy=(None, 80.0)), run("hs", accuracy=(70.0, 75.0))])
    assert cell(table, "heart", "svhn", "P1")["mean"] == 80.0
    assert cell(table, "heart", "svhn", "P2") is None
    assert cell(table, "hs", "svhn", "P2")["mean"] == 75.0


def test_costs_are_of_all_tested_phases():
    table = one([run("heart", accuracy=(None, 80.0)), run("hs", accuracy=(70.0, 75.0))])
    costs = table.costs.set_index("row")
    assert costs.loc["heart", "parameters"] == (200, 200)
    assert costs.loc["hs", "parameters"] == (300, 300)
    assert costs.loc["hs", "stored_bytes"] == (20, 20)
    assert costs.loc["hs", "epochs"] == (200, 200)


def test_both_averages_over_the_whole_suite():
    table = one(suite())
    nineteen, groups = cell(table, "lora", "mean_19"), cell(table, "lora", "mean_groups")
    assert nineteen["mean"] == pytest.approx(50 + 9 + 0.5)
    assert groups["mean"] == pytest.approx(50.5 + statistics.mean([3, 8.5, 14.5]))
    assert nineteen["std"] == groups["std"] == pytest.approx(statistics.stdev([0, 1]))
    assert nineteen["n"] == 2
    assert list(dict.fromkeys(table.cells["column"]))[-2:] == ["mean_19", "mean_groups"]
    assert "mean_19 is the mean over the 19 tasks" in said(table)


def test_no_average_of_a_partial_suite():
    table = one(suite(skip={("nat0", 0), ("nat1", 1)}))
    assert cell(table, "lora", "mean_19") is None
    assert "(19 of 19 tasks are here)" in said(table)
    table = one(suite(skip={("nat0", 0)}))
    assert cell(table, "lora", "mean_19")["n"] == 1
    table = one([r for r in suite() if r.key.dataset != "str7"])
    assert cell(table, "lora", "mean_19") is None
    assert "(18 of 19 tasks are here)" in said(table)


def test_group_means_need_their_group_only():
    table = one([r for r in suite() if r.key.dataset != "str7"])
    assert cell(table, "lora", "mean_natural")["mean"] == pytest.approx(50.5 + 3)
    assert cell(table, "lora", "mean_specialized")["n"] == 2
    assert cell(table, "lora", "mean_structured") is None
    assert cell(table, "lora", "mean_groups") is None


def test_a_task_that_is_there_twice_stands_for_no_other():
    results = [r for r in suite(seeds=(0,)) if r.key.dataset != "nat6"]
    results.append(run(dataset="nat0", accuracy=(0.0,), recipe={"x": 1}, variant="v", group="natural"))
    moved = dataclasses.replace(results[-1], key=dataclasses.replace(results[0].key, name="again"))
    table = one([*results[:-1], moved], pool=True)
    assert cell(table, table.cells["row"].iloc[0], "mean_natural") is None
    assert not (table.cells["column"] == "mean_19").any()


def test_tasks_of_other_benchmarks_do_not_enter_an_average():
    table = one(
        [*suite(), run(dataset="food", group="fewshot", accuracy=(0.0,)), run(dataset="food", seed=1, group="")]
    )
    assert cell(table, "lora", "mean_19")["mean"] == pytest.approx(59.5)
    assert list(dict.fromkeys(table.cells["column"]))[-6:] == [
        "food",
        *(name for name in AVERAGES if name != "mean_fewshot"),
    ]


def test_columns_stand_in_the_order_of_their_groups():
    table = one([run(dataset="a", group="structured"), run(dataset="b", group="specialized"), run(dataset="c")])
    assert list(table.cells["column"]) == ["c", "b", "a"]


def test_other_weights_or_protocol_stand_in_another_table():
    other = {**PROTOCOL, "lr": 5e-4}
    made = tables([run(), run(seed=1), run(seed=2, protocol=other)], "Table 1")
    assert [table.title for table in made] == ["Table 1, setting 1 of 2", "Table 1, setting 2 of 2"]
    assert "protocol.lr: 0.001 vs 0.0005" in said(made[1])
    assert [cell(table, "lora", "svhn")["n"] for table in made] == [2, 1]
    assert len(tables([run(), run(seed=1, weights={"name": "stand-in"})])) == 2


def test_other_images_stand_in_another_column():
    table = one([*suite(), run(seed=7, dataset="nat0", data="jpeg")])
    assert cell(table, "lora", "nat0")["n"] == 2
    assert cell(table, "lora", "nat0 [2]")["n"] == 1
    assert 'nat0 are kept apart as nat0 [2]: data.fingerprint: "data of nat0" vs "jpeg"' in said(table)
    assert "No average: some tasks were measured on more than one set of images" in said(table)
    assert cell(table, "lora", "mean_19") is None


def test_how_images_were_loaded_keeps_nothing_apart():
    fresh, reused = run(), run(seed=1)
    fresh.provenance["data"].update(splits={"test": 26032}, resize={"test": "none"}, source="folder")
    reused.provenance["data"].update(splits={}, resize={}, source=None)
    assert cell(one([fresh, reused]), "lora", "svhn")["n"] == 2


def test_seeds_of_another_configuration_stand_in_another_row():
    table = one([run(recipe={"rank": 8}), run(seed=1, recipe={"rank": 8}), run(seed=2, recipe={"rank": 16})])
    assert cell(table, "lora", "svhn")["n"] == 2
    assert cell(table, "lora [2]", "svhn")["n"] == 1
    assert "lora on svhn are kept apart as lora [2]: method.rank: 8 vs 16" in said(table)


def test_pooling_is_possible_and_said():
    results = [
        run(),
        run(seed=1, protocol={**PROTOCOL, "lr": 1}),
        run(seed=2, data="jpeg"),
        run(seed=3, recipe={"r": 1}),
    ]
    table = one(results, pool=True)
    assert cell(table, "lora", "svhn")["n"] == 4
    assert "(POOLED)" in said(table)
    assert "are pooled although they differ" in said(table)


def test_a_run_of_two_names_stands_in_the_rows_of_both():
    one_task = [run(name="few")]
    two_tasks = [run(name="many"), run(dataset="dtd", name="many")]
    assert one_task[0].fingerprint == two_tasks[0].fingerprint
    table = one([*one_task, *two_tasks])
    assert cell(table, "few: lora", "svhn")["n"] == 1
    assert cell(table, "many: lora", "svhn")["n"] == 1
    assert cell(table, "many: lora", "dtd")["n"] == 1
    assert "1 of them are runs that stand under another name as well, made once and shown in both." in table.notes
    assert "under another name" not in said(one(two_tasks))
    assert set(one(two_tasks).cells["row"]) == {"lora"}


def test_variants_are_rows():
    table = one([run("heart", variant="ne3-s10"), run("heart", variant="ne6-s10", recipe={"ne": 6})])
    assert set(table.cells["row"]) == {"heart (ne3)", "heart (ne6)"}
    assert "Every row: s10." in table.notes
    table = one([run("heart", variant="ne3-s10"), run("heart")])
    assert set(table.cells["row"]) == {"heart (ne3-s10)", "heart"}
    assert set(one([run("heart", variant="ne3-s10")]).cells["row"]) == {"heart (ne3-s10)"}


def test_draws_of_few_shot_sets_count_as_seeds():
    runs = [
        few("lora", name, 4, draw, accuracy=50.0 + draw + 5 * place)
        for place, name in enumerate(FEWSHOT)
        for draw in range(3)
    ]
    table = one([*runs, *(few("lora", "pets", 8, draw) for draw in range(2))])
    assert set(table.cells["row"]) == {"lora (shots4)", "lora (shots8)"}
    pets = cell(table, "lora (shots4)", "pets")
    assert (pets["mean"], pets["std"], pets["n"], pets["group"]) == (71.0, 1.0, 3, "fewshot")
    mean = cell(table, "lora (shots4)", "mean_fewshot")
    assert (mean["mean"], mean["std"], mean["n"]) == (61.0, 1.0, 3)
    assert not len(table.cells[(table.cells["row"] == "lora (shots8)") & (table.cells["column"] == "mean_fewshot")])
    assert "kept apart" not in said(table)
    assert "Draws of few-shot sets, which count as seeds do: 0, 1, 2." in table.notes
    assert "mean_fewshot is the mean over the 5 few-shot sets" in said(table)
    assert "all 19 tasks" not in said(table)


def test_rows_are_in_the_order_of_their_numbers():
    found = render([one([few("lora", "pets", number) for number in (16, 1, 2)])], "md")
    rows = [text for text in found.splitlines() if text.startswith("| lora")]
    assert [text.partition(" |")[0] for text in rows] == ["| lora (shots1)", "| lora (shots2)", "| lora (shots16)"]


def test_few_shot_rows_are_paired_draw_by_draw():
    ours = [few("bi_lora", "pets", 1, draw, accuracy=60.0 + draw) for draw in range(3)]
    theirs = [few("lora", "pets", 1, draw, accuracy=59.0 - draw) for draw in range(1, 3)]
    (table,) = compare([*ours, *theirs], "bi_lora", "lora")
    found = cell(table, "bi_lora", "pets", "P1 - lora P1", "paired")
    assert (found["mean"], found["n"]) == (4.0, 2)


def test_other_images_of_one_draw_are_told():
    other = few("bi_lora", "pets", 1, 0)
    other.provenance["data"]["fingerprint"] = "other"
    table = one([few("lora", "pets", 1, 0), other])
    assert "Results of pets on 1 shots, draw 0 are kept apart as pets [2]" in said(table)


def test_heads_off_are_measured_by_runs_without_and_with_random_ones():
    table = one(masked_suite())
    found = cell(table, "heart_lora (ne1)", "svhn", "P1 - no head off", "paired")
    assert (found["mean"], found["n"]) == (-0.5, 2)
    assert cell(table, "heart_lora (ne2)", "svhn", "P1 - random heads off", "paired")["mean"] == 2.5
    assert "NO CONTROL" not in said(table)
    assert set(table.paired["row"]) == {"heart_lora (ne1)", "heart_lora (ne2)"}
    assert table.answers[0] == (
        "Is switching heads off in heart_lora (ne1) better than its controls? Leans no: -0.50 against no head off "
        "(2 pairs), +2.50 against random heads off (2 pairs)."
    )


def test_heads_off_without_controls_cannot_be_overlooked():
    table = one([gated("heart_lora", 0, 89.0, 1)])
    assert "NO CONTROL (no head off) for heart_lora (ne1) on svhn: nothing says what switching heads off costs" in said(
        table
    )
    assert "NO CONTROL (random heads off) for heart_lora (ne1) on svhn: nothing says that the scores matter" in said(
        table
    )
    assert table.answers[0].endswith("No control: none against no head off, none against random heads off.")
    assert "random heads off" not in said(one([gated("heart_lora", 0, 89.0, 1, budget=8)]))


def test_labels_are_in_the_caption():
    table = one([run(labels=["synthetic", "stand-in weights"]), run(dataset="dtd", labels=["stand-in weights"])])
    assert "Label: stand-in weights (all results)." in table.notes
    assert "Label: synthetic (1 results: svhn)." in table.notes


def test_paired_differences_to_phase_one_and_to_the_matched_control():
    results = [run("hs", seed=seed, accuracy=(70.0 + seed, 75.0 + 3 * seed)) for seed in (0, 1)]
    results += [run("lora", seed=seed, accuracy=(74.0,), epochs=200, variant="e200") for seed in (0, 1)]
    results += [run("lora", seed=seed, accuracy=(10.0,)) for seed in (0, 1)]
    table = one(results)
    own = cell(table, "hs", "svhn", "P2 - P1", "paired")
    control = cell(table, "hs", "svhn", "P2 - longer P1", "paired")
    assert (own["mean"], own["n"]) == (6.0, 2)
    assert own["std"] == pytest.approx(statistics.stdev([5, 7]))
    assert control["mean"] == pytest.approx(2.5)
    assert set(table.paired["row"]) == {"hs"}


def test_the_control_of_equal_size_stands_on_the_same_first_phase():
    heads, plain, other = (
        run(name, accuracy=(70.0, last)) for name, last in (("hs", 75.0), ("then", 77.0), ("x", 1.0))
    )
    for made, address in ((heads, "a"), (plain, "a"), (other, "b")):
        made.phases[0] = dataclasses.replace(made.phases[0], fingerprint=address)
    heads.phases[1] = dataclasses.replace(heads.phases[1], method=HEADS)
    for made in (plain, other):
        made.phases[1] = dataclasses.replace(made.phases[1], method=PLAIN)
    table = one([heads, plain, other])
    assert cell(table, "hs", "svhn", "P2 - equal-size LoRA", "paired")["mean"] == -2.0
    assert cell(table, "then", "svhn", "P2 - equal-size LoRA", "paired") is None
    assert any(note.startswith("NO CONTROL (longer P1) for hs on svhn") for note in table.notes)
    assert not any(note.startswith("NO CONTROL (equal-size LoRA)") for note in table.notes)


HEADS = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "rank": 2, "targets": ["q", "v"], "scale": 1.0}
PLAIN = {"_target_": "headwise.methods.hs_lora.MatchedLoRA", "head_rank": 2, "targets": ["q", "v"], "scale": 1.0}


@each("change", [{"head_rank": 3}, {"scale": 2.0}, {"targets": ["q"]}, {"lr": 0.1}])
def test_the_control_of_equal_size_has_the_size_and_the_recipe(change):
    heads, plain = run("hs", accuracy=(70.0, 75.0)), run("then", accuracy=(70.0, 77.0))
    for made, spec in ((heads, HEADS), (plain, {**PLAIN, **change})):
        made.phases[0] = dataclasses.replace(made.phases[0], fingerprint="a")
        made.phases[1] = dataclasses.replace(made.phases[1], method=spec)
    table = one([heads, plain])
    assert cell(table, "hs", "svhn", "P2 - equal-size LoRA", "paired") is None
    assert any(note.startswith("NO CONTROL (equal-size LoRA) for hs on svhn") for note in table.notes)


def test_a_second_phase_with_heads_off_has_no_plain_lora_of_its_size():
    gate = {"mode": "heart", "count": 1, "score": "taylor_neg", "scope": "global", "budget": None}
    made = run("heart_hs", accuracy=(70.0, 75.0))
    heads = [{"stage": 0, "block": 0, "proj": "q", "active": [0, 1], "score": [0.5, -0.5]}]
    made.phases[1] = dataclasses.replace(
        made.phases[1], method={**HEADS, "gate": {"count": 1}}, extra={"gate": gate, "heads": heads}
    )
    notes = said(one([made]))
    assert "NO CONTROL (longer P1)" in notes
    assert "NO CONTROL (no head off)" in notes
    assert "NO CONTROL (equal-size LoRA)" not in notes


FIRST = {"_target_": "headwise.methods.lora.LoRA", "rank": 8, "targets": ["q", "v"], "scale": 1.0}
PERMUTED = {**HEADS, "_target_": "headwise.methods.hs_controls.PermutedLoRA"}
SCALED = {**HEADS, "_target_": "headwise.methods.hs_lora.ScaledHeadLoRA"}
JOINT = {**FIRST, "_target_": "headwise.methods.hs_controls.JointLoRA", "head_rank": 2}


def phased(method: str, accuracy: tuple[float, ...], *specs: dict, **fields):
    made = run(method, accuracy=accuracy, **fields)
    made.phases[:] = [
        dataclasses.replace(phase, method=spec, fingerprint=str(spec))
        for phase, spec in zip(made.phases, specs, strict=True)
    ]
    return made


def test_a_second_phase_is_measured_by_what_separates_its_causes():
    both = phased("hs", (70.0, 75.0), FIRST, HEADS)
    controls = {
        "random rows": phased("permuted", (70.0, 74.0), FIRST, PERMUTED),
        "equal steps": phased("scaled", (70.0, 75.5), FIRST, SCALED),
        "other order": phased("order", (68.0, 77.0), HEADS, FIRST),
        "joint": phased("joint", (71.0,), JOINT, epochs=200),
        "longer P1, restarted": phased("restart", (72.0,), {**FIRST, "cycles": 2}, epochs=200),
    }
    table = one([both, *controls.values()])
    gains = {kind: cell(table, "hs", "svhn", f"P2 - {kind}", "paired")["mean"] for kind in controls}
    assert gains == {
        "random rows": 1.0,
        "equal steps": -0.5,
        "other order": -2.0,
        "joint": 4.0,
        "longer P1, restarted": 3.0,
    }
    assert cell(table, "hs", "svhn", "P2 - longer P1", "paired") is None  # one cosine is another control
    # they claim nothing, and no claim needs them
    assert not any(f"for {row} on" in note for row in ("permuted", "scaled", "order", "joint") for note in table.notes)
    assert not any(f"NO CONTROL ({kind})" in said(one([both])) for kind in controls)


def searched(made, *chosen: dict, num_trials: int = 4, edges: tuple[str, ...] = ()):
    """A run whose phases were chosen by a search: the fields of each, which another search may choose differently."""
    made.phases[:] = [
        dataclasses.replace(
            phase,
            method={**phase.method, **fields},
            extra={**phase.extra, "search": {"num_trials": num_trials, "searched": sorted(fields), "edges": [*edges]}},
        )
        for phase, fields in zip(made.phases, chosen, strict=True)
    ]
    return made


def test_arms_that_chose_different_values_still_find_their_controls():
    both = searched(phased("hs", (70.0, 75.0), FIRST, HEADS), {"lr": 0.01}, {"lr": 0.003})
    controls = {
        "random rows": searched(phased("permuted", (70.0, 74.0), FIRST, PERMUTED), {"lr": 0.01}, {"lr": 0.1}),
        "equal-size LoRA": searched(phased("then", (70.0, 76.0), FIRST, PLAIN), {"lr": 0.01}, {"lr": 0.1}),
        "other order": searched(phased("order", (68.0, 77.0), HEADS, FIRST), {"lr": 0.1}, {"lr": 0.2}),
        "joint": searched(phased("joint", (71.0,), JOINT, epochs=200), {"lr": 0.3}),
        "longer P1": searched(phased("long", (72.0,), FIRST, epochs=200), {"lr": 0.3}),
        "longer P2": searched(phased("heads", (73.0,), HEADS, epochs=200), {"lr": 0.3}),
    }
    table = one([both, *controls.values()])
    for kind, control in controls.items():
        gain = cell(table, "hs", "svhn", f"P2 - {kind}", "paired")
        assert gain is not None, kind
        assert gain["mean"] == 75.0 - control.accuracy
    assert "hs 8, joint 4, long 4" in said(table)
    assert "UNTUNED" not in said(table)
    other_scale = searched(phased("then", (70.0, 76.0), FIRST, {**PLAIN, "scale": 2.0}), {"lr": 0.01}, {"lr": 0.1})
    assert cell(one([both, other_scale]), "hs", "svhn", "P2 - equal-size LoRA", "paired") is None


def test_a_control_of_another_search_is_none():
    def made(method: str, last: dict, rates: list[float]):
        protocol = {**PROTOCOL, "search": {"fields": {"heads.lr": rates}}}
        return searched(phased(method, (70.0, 75.0), FIRST, last, protocol=protocol), {"lr": 0.01}, {"lr": rates[0]})

    for rates, is_found in (([0.1, 0.2], True), ([0.1], False)):
        table = one([made("hs", HEADS, [0.1, 0.2]), made("then", PLAIN, rates)], pool=True)
        assert (cell(table, "hs", "svhn", "P2 - equal-size LoRA", "paired") is not None) == is_found


def test_a_rank_that_searches_chose_need_not_be_equal():
    both = searched(phased("hs", (70.0, 75.0), FIRST, HEADS), {"lr": 0.01}, {"rank": 4})
    plain = searched(phased("then", (70.0, 76.0), FIRST, PLAIN), {"lr": 0.01}, {"head_rank": 2})
    assert cell(one([both, plain]), "hs", "svhn", "P2 - equal-size LoRA", "paired")["mean"] == -1.0


def test_rows_without_a_search_beside_rows_with_one_are_called_untuned():
    tuned = searched(phased("lora", (70.0,), FIRST), {"lr": 0.01})
    notes = said(one([tuned, run("ssf")]))
    assert "Trials on the validation images behind a run: lora 4." in notes
    assert "UNTUNED beside rows that were: ssf." in notes
    assert "UNTUNED beside rows that were: lora (some runs)." in said(
        one([tuned, phased("lora", (71.0,), FIRST, seed=1)])
    )
    assert "Trials" not in said(one([run("ssf")]))


def test_values_at_the_end_of_what_was_tried_are_named():
    made = [
        searched(phased("hs", (70.0, 75.0), FIRST, HEADS, seed=seed), {"lr": 0.01}, {"lr": 0.01}, edges=("lr",))
        for seed in range(2)
    ]
    assert "beyond which a better value may lie: hs lr (4)." in said(one(made))
    assert "better value" not in said(one([searched(phased("lora", (70.0,), FIRST), {"lr": 0.01})]))


def test_numbers_of_heads_that_searches_chose_need_not_be_equal():
    def gated(method: str, mode: str, off: int):
        made = run(method)
        rows = [{"stage": 0, "block": 0, "proj": "q", "active": [0] * off + [1] * (4 - off), "score": [0.5] * 4}]
        gate = {"mode": mode, "count": off, "score": "taylor_neg", "scope": "global", "budget": None}
        search = {"num_trials": 5, "searched": ["ne"]}
        made.phases[0] = dataclasses.replace(
            made.phases[0], method={**FIRST, "gate": gate}, extra={"gate": gate, "heads": rows, "search": search}
        )
        return made

    table = one([gated("heart", "heart", 2), gated("random", "random", 1)])
    assert cell(table, "heart", "svhn", "P1 - random heads off", "paired")["mean"] == 0.0


@each(
    "kind, other",
    [
        ("random rows", phased("permuted", (70.0, 74.0), FIRST, {**PERMUTED, "rank": 3})),
        ("random rows", phased("permuted", (70.0, 74.0), {**FIRST, "rank": 4}, PERMUTED)),
        ("other order", phased("order", (68.0, 77.0), HEADS, {**FIRST, "rank": 4})),
        ("joint", phased("joint", (71.0,), {**JOINT, "rank": 4}, epochs=200)),
        ("joint", phased("joint", (71.0,), JOINT, epochs=100)),
        ("equal steps", phased("scaled", (70.0, 74.0), FIRST, {**SCALED, "rank": 3})),
        ("longer P1, restarted", phased("restart", (72.0,), FIRST, epochs=200)),
        ("longer P1, restarted", phased("restart", (72.0,), {**FIRST, "cycles": 4}, epochs=200)),
    ],
)
def test_no_other_recipe_is_such_a_control(kind, other):
    table = one([phased("hs", (70.0, 75.0), FIRST, HEADS), other])
    assert cell(table, "hs", "svhn", f"P2 - {kind}", "paired") is None


def test_per_head_updates_alone_are_measured_by_random_rows_and_larger_steps():
    others = [phased("permuted", (73.0,), PERMUTED), phased("scaled", (74.0,), SCALED)]
    table = one([phased("heads", (75.0,), HEADS), *others])
    assert cell(table, "heads", "svhn", "P1 - random rows", "paired")["mean"] == 2.0
    assert cell(table, "heads", "svhn", "P1 - equal steps", "paired")["mean"] == 1.0


def test_the_second_method_alone_is_a_control():
    both = run("hs", accuracy=(70.0, 75.0))
    both.phases[1] = dataclasses.replace(both.phases[1], method=HEADS)
    table = one([both, run("head_lora_long", accuracy=(76.0,), epochs=200, spec=HEADS)])
    assert cell(table, "hs", "svhn", "P2 - longer P2", "paired")["mean"] == -1.0
    assert not any(note.startswith("NO CONTROL (longer P2)") for note in table.notes)
    alone = one([both])
    (note,) = (note for note in alone.notes if note.startswith("NO CONTROL (longer P2)"))
    assert "method=hs_control_head" in note


def test_controls_are_sought_among_runs_of_other_names_where_they_lack():
    both = run("hs", accuracy=(70.0, 75.0))
    both.phases[1] = dataclasses.replace(both.phases[1], method=HEADS)
    longer = run("lora", accuracy=(74.0,), epochs=200, name="elsewhere")
    table = one([both], others=lambda: [longer])
    assert cell(table, "hs", "svhn", "P2 - longer P1", "paired")["mean"] == 1.0
    assert "Controls were also found among the runs of elsewhere." in table.notes
    assert "NO CONTROL (longer P1)" not in said(table)
    assert "NO CONTROL (longer P2) for hs on svhn" in said(table)
    assert set(table.cells["row"]) == {"hs"}

    def unneeded() -> list:
        raise AssertionError("nothing is lacking")

    assert not one([longer], others=unneeded).answers


@each(
    "size, said_of", [(1000, None), (1005, None), (950, "NOT OF EQUAL SIZE, the control called so has, of hs -5.0 %")]
)
def test_a_control_that_is_not_of_equal_size_says_so(size, said_of):
    """Issue 14, A4: the older control is one still, and its size is said in the table and in the run's summary."""
    heads, plain = run("hs", accuracy=(70.0, 75.0)), run("then", accuracy=(70.0, 77.0))
    for made, spec, num in ((heads, HEADS, 1000), (plain, PLAIN, size)):
        made.phases[0] = dataclasses.replace(made.phases[0], fingerprint="a")
        made.phases[1] = dataclasses.replace(made.phases[1], method=spec, num_tunable=num)
    table = one([heads, plain])
    assert cell(table, "hs", "svhn", "P2 - equal-size LoRA", "paired")["mean"] == -2.0
    notes = [note for note in table.notes if note.startswith("NOT OF EQUAL SIZE")]
    assert [note.startswith(said_of) for note in notes] == ([True] if said_of else [])
    assert ("-5.0 % parameters" in summary(heads, [plain])) == bool(said_of)


def test_of_two_controls_of_equal_size_the_newer_one_counts():
    made = []
    for name, accuracy, revision in (("a_then", 77.0, 1), ("b_then", 78.0, 2), ("c_then", 79.0, 1)):
        plain = run(name, accuracy=(70.0, accuracy))
        plain.phases[1] = dataclasses.replace(plain.phases[1], method={**PLAIN, "revision": revision})
        made.append(plain)
    heads = run("hs", accuracy=(70.0, 75.0))
    heads.phases[1] = dataclasses.replace(heads.phases[1], method={**HEADS, "revision": 1})
    for result in (heads, *made):
        result.phases[0] = dataclasses.replace(result.phases[0], fingerprint="a")
    assert cell(one([heads, *made]), "hs", "svhn", "P2 - equal-size LoRA", "paired")["mean"] == -3.0


def test_updates_per_head_meet_plain_lora_of_their_size():
    table = one([run("head_lora", accuracy=(76.0,), spec=HEADS), run("matched_lora", accuracy=(75.5,), spec=PLAIN)])
    assert cell(table, "head_lora", "svhn", "P1 - equal-size LoRA", "paired")["mean"] == 0.5
    assert any(answer.startswith("Are the per-head updates of head_lora better") for answer in table.answers)


@each(
    "fields",
    [{"spec": {**PLAIN, "head_rank": 3}}, {"spec": {**PLAIN, "scale": 2.0}}, {"spec": LORA, "epochs": 50}, {"seed": 1}],
)
def test_what_is_not_plain_lora_of_their_size(fields):
    made = tables([run("head_lora", accuracy=(76.0,), spec=HEADS), run("x", **{"accuracy": (75.5,), **fields})])
    assert all(table.paired.empty and not table.answers for table in made)


def test_a_control_may_get_its_epochs_from_the_protocol():
    control = run("lora", accuracy=(74.0,), epochs=200, protocol={**PROTOCOL, "epochs": 200})
    made = tables([run("hs", accuracy=(70.0, 75.0)), control])
    assert cell(made[0], "hs", "svhn", "P2 - longer P1", "paired")["mean"] == 1.0


@each(
    "fields",
    [
        {"epochs": 100},
        {"seed": 1},
        {"dataset": "dtd"},
        {"weights": {"name": "x"}},
        {"data": "jpeg"},
        {"protocol": {**PROTOCOL, "lr": 1}},
        {"spec": {**LORA, "rank": 16}},
        {"accuracy": (60.0, 74.0)},
    ],
)
def test_what_is_not_a_control(fields):
    control = run("lora", **{"accuracy": (74.0,), "epochs": 200, **fields})
    made = tables([run("hs", accuracy=(70.0, 75.0)), control])
    assert (
        not any((table.paired["phase"] == "P2 - longer P1").any() for table in made if len(table.paired))
        or "accuracy" in fields
    )
    for table in made:
        assert cell(table, "hs", "svhn", "P2 - longer P1", "paired") is None


def test_untested_results_give_no_line():
    table = one([run(accuracy=(None,)), run(seed=1)])
    assert cell(table, "lora", "svhn")["n"] == 1


def test_nothing_but_untested_results():
    table = one([run(accuracy=(None,))])
    assert table.cells.empty
    assert table.paired.empty


def test_what_is_not_recorded_is_said():
    result = dataclasses.replace(run(), provenance={})
    assert recorded(result, "weights") == "(not recorded)"
    assert "weights: (not recorded); protocol: (not recorded)" in said(one([result]))


def test_heads_off_as_a_ratio_to_none_off() -> None:
    """Issue line 29, Heart-LoRA Figure 3: first heads off over the same run with none off, seed by seed."""
    plain = [r for r in masked_suite() if r.key.method == "bi_lora"]
    front = [gated("heart_front", seed, 81.0 + seed, 3, "front") for seed in (0, 1)]
    table = one([*plain, *front])
    (cell,) = table.ratios.itertuples()
    assert (cell.row, cell.column, cell.n) == ("heart_front (ne3)", "svhn", 2)
    assert cell.mean == pytest.approx((81.0 / 90.0 + 82.0 / 90.0) / 2)
    assert "| heart_front (ne3) | 0.9056 \u00b1 0.0079 (2) |" in render([table], "md")
    assert [line for line in render([table], "csv").splitlines() if ",ratio," in line]
    assert "ratios to no head off" in render([table], "latex")
    assert "ratios" not in render([one(plain)], "md")


def test_a_row_measured_otherwise_stays_in_its_table_and_says_so() -> None:
    """Issue line 29: NOAH's row of Heart-LoRA Table 1 has inputs of its own."""
    own = {**PROTOCOL, "normalize": "imagenet"}
    others = {**PROTOCOL, "normalize": "none"}
    noah = run("noah", protocol=own)
    noah.config["protocol_of_others"] = others
    noah.provenance["data"]["mean"] = [0.5, 0.5, 0.5]
    table = one([run("lora", protocol=others), noah])
    assert set(table.cells["row"]) == {"lora", "noah"}
    assert set(table.cells["column"]) == {"svhn"}
    said = 'The experiment measures noah in its own way: normalize "imagenet", elsewhere "none".'
    assert said in table.notes
    assert not [note for note in one([run("lora", protocol=others)]).notes if "its own way" in note]


def test_rows_of_older_code_say_so() -> None:
    """Issue line 30: a kept record whose method has other numbers now is not shown as a present one."""
    now = {"_target_": "headwise.methods.spt_lora.SPTLoRA", "rank": 8}
    for recipe, is_older in ((now, True), ({**now, "revision": 2}, False), ({"first": now}, True)):
        table = one([run("spt_lora", recipe=recipe), run("lora")])
        older = [note for note in table.notes if note.startswith("OLDER CODE")]
        assert len(older) == is_older
        assert all("spt_lora (entries of biases train" in note and "lora (" in note for note in older)
        found = lineup.lineups([run("spt_lora", recipe=recipe), run("lora")])
        page = lineup.markdown(found)
        assert page.count("(older code)") == is_older
        assert ("OLDER CODE" in page) == is_older
