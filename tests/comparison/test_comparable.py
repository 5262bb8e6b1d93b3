"""What a row of a table may hide: values that differ between its tasks."""

from __future__ import annotations

from headwise.comparison.comparable import natural, places, varied
from headwise.comparison.tables import tables
from made_cases import each
from made_results import TASKS, run


def notes(results) -> list[str]:
    return varied(results, places(results)[0])


def tuned(*values: object, trainer: tuple[object, ...] = ()):
    made = []
    for (task, group), value in zip(TASKS, values, strict=False):
        for seed in (0, 1):
            made.append(run("cara", task, seed, group=group, recipe={"scale": value, "rank": 8, "seed": seed}))
    for place, value in enumerate(trainer):
        made[place].identity["trainer"] = {"accelerator": value}
    return made


def test_values_per_task_are_said() -> None:
    results = [*tuned(10.0, 0.1, 10, 100), *(run("lora", task, group=group) for task, group in TASKS)]
    assert notes(results) == ["Settings of cara differ between its tasks: method.scale: 0.1, 10, 100."]
    (table,) = tables(results)
    assert notes(results)[0] in table.notes


def test_one_value_needs_no_note() -> None:
    assert notes(tuned(1, 1, 1)) == []


def test_where_it_ran_counts_as_well() -> None:
    assert notes(tuned(1, 1, trainer=("cpu", "cpu", "gpu", "gpu"))) == [
        'Settings of cara differ between its tasks: trainer.accelerator: "cpu", "gpu".'
    ]


@each("several", [{"a": 1}, None])
def test_a_field_that_only_some_have(several: object) -> None:
    found = notes(tuned({"x": 1}, several))
    assert found
    assert "method.scale" in found[0]
    assert "(absent)" in found[0] or "null" in found[0]


def test_the_natural_order() -> None:
    names = ["lora", "lora (lr0.0003)", "lora (lr0.003)", "lora (lr0.01)", "lora (shots2)", "lora (shots16)", "lora.b"]
    assert sorted(set(names), key=natural) == names
