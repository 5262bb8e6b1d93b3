"""Kind subspaces: planted updates light up where they are, and what a run did is what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwise import analysis
from headwise.analysis.changes import Change, by_head, changes
from headwise.analysis.singular import Part, _sentences, parts
from headwise.artifacts.saved import SavedRun
from headwise.errors import ConfigError
from headwise.updates.directions import random_like
from headwise.updates.sites import Site
from made_cases import each
from made_networks import network

Finished = Callable[..., Path]
LAYERS, HEADS, ROWS = 8, 8, 4
WIDTH = HEADS * ROWS


def planted(update: Callable[[Site], Tensor]) -> Change:
    """A change of random weights of q, by layer."""
    before = {}
    for block in range(LAYERS):
        generator = torch.Generator().manual_seed(block)
        before[Site(0, block, "q", HEADS, ROWS)] = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    return Change("planted", before, {site: weight + update(site) for site, weight in before.items()})


def found(change: Change, draws: int = 20) -> dict[str, Part]:
    return {"whole" if part.is_whole else "heads": part for part in parts(change, draws, seed=1)}


def drawn(site: Site, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + site.block)
    return random_like(torch.tensor([0.3, 0.2]), (WIDTH, WIDTH), generator)


def test_an_update_of_two_heads_of_one_layer_lights_up_there_and_nowhere_else() -> None:
    def two_heads(site: Site) -> Tensor:
        mask = torch.zeros(HEADS)
        mask[[3, 7]] = 1.0
        return drawn(site) * site.rows(mask)[:, None] * (site.block == 5)

    change = planted(two_heads)
    assert [site.block for site in change.changed] == [5]
    heads = found(change)["heads"]
    assert heads.group.layers == ["5"]
    lit = torch.zeros(1, HEADS, dtype=torch.bool)
    lit[0, [3, 7]] = True
    measures = heads.measures
    assert torch.equal(measures["size"].value > 1e-6, lit)
    for name in set(measures) - {"size", "relative"}:
        there = ~measures[name].value.isnan()
        assert torch.equal(there if there.ndim == 2 else there.all(-1), lit), f"{name}: no update has no directions"
        assert float(measures[name].mean([0, 1]).value.sum()) == pytest.approx(
            float(measures[name].value[0, [3, 7]].mean(0).sum()), rel=1e-5
        ), "and counts in no mean"
    assert measures["right_match"].num_there == 2 and bool((measures["right_match"].value[lit] < 0.9999).all())
    assert torch.equal(measures["size"].value > measures["size"].null.high, lit), "a random one is in all heads"


def test_a_turned_right_space_reads_so_with_the_left_one_fixed() -> None:
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)))[0]
    plain = planted(lambda site: torch.zeros(WIDTH, WIDTH))
    change = planted(lambda site: plain.before[site] @ turn - plain.before[site])
    whole = found(change)["whole"]
    assert torch.allclose(whole.measures["left_match"].value, torch.ones(LAYERS), atol=1e-3)
    assert bool((whole.measures["right_match"].value < 0.5).all())
    for draws in (3, 20):
        left = found(change, draws)["whole"].measures["left_match"]
        assert bool((left.value > left.null.high).all()), "what is kept exactly is in no band, however few the draws"


@each("draws", [2, 5])
def test_every_null_has_as_many_draws_as_are_asked_for_and_is_possible(draws: int) -> None:
    for part in found(planted(drawn), draws).values():
        for name, measured in part.measures.items():
            assert len(measured.draws) == draws, name
            most = {"match": 1.0, "overlap": 1.0, "angle": 90.0}.get(name.split("_")[-1], torch.inf)
            for null in (measured.null, measured.mean().null):
                assert bool((null.low >= 0).all() and (null.high <= most + 1e-12).all()), name


def test_sentences_say_how_many_heads_count() -> None:
    mask = torch.tensor([0.0, 1.0] * (HEADS // 2))
    change = planted(lambda site: drawn(site) * site.rows(mask)[:, None])
    said = _sentences(found(change)["heads"])
    assert (
        sum(f"of {LAYERS * HEADS // 2} lie in their own bands ({LAYERS * HEADS // 2} without" in line for line in said)
        == 2
    )
    assert not any("nan" in line for line in said)
    assert not any("without" in line for line in _sentences(found(planted(drawn))["heads"]))


@each("which", ["heads", "whole"])
def test_a_random_update_falls_in_its_bands(which: str) -> None:
    part = found(planted(drawn))[which]
    for name in ("left_match", "right_match", "left_overlap", "right_overlap", "size", "effective_rank"):
        measured = part.measures[name]
        inside = measured.null.holds(measured.value).float()
        assert float(inside.mean()) > 0.8, name
        assert bool(measured.mean().null.holds(measured.mean().value)), name


def test_numbers_repeat_and_follow_the_seed() -> None:
    change = planted(drawn)
    one, same, other = (next(parts(change, 3, seed)).measures["right_match"].draws for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_changes_are_those_of_the_phases(finished: Finished) -> None:
    run = SavedRun.read(finished("method=hs_lora"))
    first, second, both = changes(run)
    assert (first.label, second.label, both.label) == ("lora", "head_lora", "all phases")
    for site in both.before:
        assert torch.equal(first.after[site], second.before[site])
        assert torch.equal(both.update(site), second.after[site] - first.before[site])
    assert {site.proj for site in both.changed} == {"q", "v"}
    ranks = torch.linalg.matrix_rank(torch.stack([first.update(site) for site in first.changed]), rtol=1e-3)
    assert ranks.unique().tolist() == [run.result.phases[0].method["rank"]]


@pytest.mark.parametrize("method", ["pissa", "qlora", "dora", "head_lora"])
def test_what_a_network_computes_is_what_changed(finished: Finished, method: str) -> None:
    run = SavedRun.read(finished(f"method={method}"))
    (change,) = changes(run)
    net = run.network()
    for _, _installed in run.install(net):
        pass
    for site in change.changed[:2]:
        x = torch.randn(3, change.before[site].shape[1], generator=torch.Generator().manual_seed(0))
        module = net.linear(site)
        with torch.no_grad():
            expected = module(x) - module(torch.zeros_like(x))
        assert torch.allclose(x @ change.after[site].T, expected, atol=1e-4)
    size = float(change.update(change.changed[0]).norm() / change.before[change.changed[0]].norm())
    assert size < 0.06, "a short training changes little: rounding to 4 bits is none of it"


@pytest.mark.usefixtures("sketched")
def test_the_analysis_of_a_run(finished: Finished) -> None:
    made = analysis.subspaces(finished("method=hs_lora"), draws=3)
    table = made.tables["matrices"]
    assert len(table) == 2 * 6 * (1 + 6), "q and v, six layers, whole and six heads"
    assert set(made.figures) == {"cosines_q", "cosines_v", "layers", "ranks", "heads"}
    assert not table.drop(columns=["projection", "stage", "block", "head"]).isna().any().any()
    assert not made.tables["overlap_by_rank"].isna().any().any() and table["draws"].eq(3).all()
    assert any("as a random update's" in s or "a random update's" in s for s in made.sentences)


def test_one_run_at_a_time(finished: Finished) -> None:
    with pytest.raises(ConfigError, match="looks at one run, got 2"):
        analysis.subspaces([finished("method=hs_lora"), finished("method=lora")])


def test_heads_are_rows_in_order() -> None:
    net = network("swin")
    for site, base in net.bases(["q"]).items():
        cut = by_head(base, site.num_heads)
        assert torch.equal(cut[-1], base[-site.head_dim :])
