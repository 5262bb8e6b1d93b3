"""Settings of methods whose numbers have changed since older records were made."""

from __future__ import annotations

import importlib

from headwise.protocol.plan import plan_run
from headwise.protocol.revisions import CHANGES, fill_revisions
from made_cases import each
from made_networks import compose_config

TINY = ("backbone=vit_tiny_random", "dataset=dsprites_loc", "data=synthetic", "trainer=cpu", "trainer.threads=1")


@each("change", CHANGES)
def test_a_change_names_a_method_its_fields_and_why(change) -> None:  # type: ignore[no-untyped-def]
    module, _, name = change.target.rpartition(".")
    fields = getattr(importlib.import_module(module), name).__dataclass_fields__
    assert {setting.partition(".")[0] for setting in change.settings} <= set(fields)
    assert change.revision > 1
    assert change.why


@each(
    "overrides, revision",
    [
        (("method=houlsby_b8",), 2),
        (("method=houlsby_b8", "method.init=lora"), None),
        (("method=pfeiffer",), None),
        (("method=pfeiffer", "method.init=houlsby"), 2),
        (("method=noah",), None),
        (("method=noah", "method.init=upstream"), 2),
        (("method=spt_lora",), 2),
        (("method=spt_lora", "+method.revision=5"), 5),
        (("method=lora",), None),
        (("method=peft_lora",), None),
        (("method=matched_lora", "rank=r16_h2"), None),
        (("method=matched_lora", "rank=r16_h1"), 2),
        (("method=peft_lora", "+method.config.init_lora_weights=pissa"), None),
        (("method=peft_lora", "+method.config.init_lora_weights=lora_ga"), 2),
    ],
)
def test_the_identity_has_the_revision_where_the_numbers_changed(
    overrides: tuple[str, ...], revision: int | None
) -> None:
    plan = plan_run(compose_config(*TINY, *overrides))
    assert plan.config["method"].get("revision") == plan.identity["method"].get("revision") == revision


def test_methods_within_a_method_have_theirs() -> None:
    plan = plan_run(compose_config(*TINY, "method=hs_lora", "method@method.first=houlsby_b8"))
    assert plan.identity["method"]["first"]["revision"] == 2
    assert "revision" not in plan.identity["method"]


def test_filling_twice_changes_nothing() -> None:
    once = fill_revisions({"_target_": CHANGES[0].target, **CHANGES[0].settings})
    assert fill_revisions(once) == once
