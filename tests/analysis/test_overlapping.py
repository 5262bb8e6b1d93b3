"""Kind overlap: planted answers through to tables, and runs of one and two phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwise import analysis
from headwise.analysis.bands import band
from headwise.analysis.changes import Change
from headwise.analysis.kinds import Options
from headwise.analysis.mechanism import Gains
from headwise.analysis.overlapping import _said_across, _said_within, between_phases, heads_of
from headwise.results.records import Result
from headwise.updates.directions import random_like
from headwise.updates.sites import Site
from made_cases import each
from made_results import run

Finished = Callable[..., Path]
LAYERS, HEADS, ROWS = 6, 4, 4
WIDTH = HEADS * ROWS
OPTIONS = Options(draws=20, seed=3)


def change(label: str, update: Callable[[Site], Tensor]) -> Change:
    sites = [Site(0, block, "v", HEADS, ROWS) for block in range(LAYERS)]
    return Change(label, {s: torch.eye(WIDTH) for s in sites}, {s: torch.eye(WIDTH) + update(s) for s in sites})


def drawn(seed: int) -> Callable[[Site], Tensor]:
    values = torch.tensor([0.3, 0.2])
    return lambda site: random_like(values, (WIDTH, WIDTH), torch.Generator().manual_seed(50 * seed + site.block))


def test_two_phases_built_orthogonal_read_as_orthogonal() -> None:
    keep = torch.eye(WIDTH)
    keep[:, : WIDTH // 2] = 0
    first = change("one", lambda site: drawn(0)(site) @ (torch.eye(WIDTH) - keep))
    second = change("two", lambda site: drawn(1)(site) @ keep)
    for found in between_phases(first, second, OPTIONS):
        for name in ("cosine", "rows"):
            value = getattr(found.measured, name)
            assert torch.allclose(value, torch.zeros_like(value), atol=1e-5), name
        assert bool((band(found.random.rows).mean > 0.05).all()), "a random one is not"


def test_a_second_phase_along_the_first_reads_so() -> None:
    for found in between_phases(change("one", drawn(0)), change("two", lambda s: 0.5 * drawn(0)(s)), OPTIONS):
        assert torch.allclose(found.measured.cosine, torch.ones_like(found.measured.cosine), atol=1e-4)
        assert not band(found.random.rows).holds(found.measured.rows).any()


def test_random_phases_and_heads_fall_in_their_bands() -> None:
    for found in between_phases(change("one", drawn(0)), change("two", drawn(1)), OPTIONS):
        for name in ("cosine", "rows", "columns"):
            inside = band(getattr(found.random, name)).holds(getattr(found.measured, name)).float()
            assert float(inside.mean()) > 0.8, name
    (within,) = heads_of(change("one", drawn(2)), OPTIONS)
    assert float(within.null("shared", "joint").holds(within.heads.shared).float().mean()) > 0.8
    assert not within.null("shared", "apart").holds(within.heads.shared).any(), (
        "heads of a low rank share by construction"
    )


def test_an_update_of_two_heads_of_one_layer_lights_up_there_and_nowhere_else() -> None:
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0])

    def two_heads(site: Site) -> Tensor:
        return drawn(0)(site) * site.rows(mask)[:, None] * (site.block == 5)

    (within,) = heads_of(change("one", two_heads), OPTIONS)
    assert within.group.layers == ["5"]
    assert torch.equal(~within.heads.shared.isnan(), mask.bool()[None])
    assert torch.allclose(within.heads.shared[0, [1, 3]], torch.ones(2, dtype=torch.double), atol=1e-4)


@each("on, said", [((1,), "no layer has two heads with an update"), ((1, 3), "12 heads without an")])
def test_sentences_say_which_heads_are_compared(on: tuple[int, ...], said: str) -> None:
    mask = torch.zeros(HEADS)
    mask[list(on)] = 1.0
    gated = change("one", lambda site: drawn(0)(site) * site.rows(mask)[:, None])
    (within,) = heads_of(gated, OPTIONS)
    sentence = _said_within("", within, False)
    assert said in sentence and "nan" not in sentence
    other = change("two", lambda site: drawn(1)(site) * site.rows(1 - mask)[:, None])
    whole, heads = (_said_across("", one, False) for one in between_phases(gated, other, OPTIONS))
    assert "nan" not in whole and "no head was changed by both" in heads


@pytest.mark.parametrize("method, phases", [("lora", 1), ("hs_lora", 2), ("head_lora", 1)])
def test_the_analysis_of_a_run(finished: Finished, method: str, phases: int, request: pytest.FixtureRequest) -> None:
    if phases == 1:
        request.getfixturevalue("sketched")
    made = analysis.overlap(finished(f"method={method}"), draws=3)
    table = made.tables["heads"]
    assert len(table) == phases * 2 * 6 * 6
    assert set(made.figures) == {"pairs", "shares", *(["phases"] if phases > 1 else [])}
    assert ("phases" in made.tables) == ("gains" in made.tables) == (phases > 1)
    lora = table[table["phase"] == "lora"]
    assert (lora["shared"] > 0.98).all() and (lora["own"] < 0.001).all(), "all heads stand on one A"
    assert (table[table["phase"] == "head_lora"]["shared"] < 0.5).all()


@pytest.mark.usefixtures("sketched")
def test_runs_that_differ_in_their_variant_alone_are_told_apart(finished: Finished) -> None:
    made = analysis.overlap([finished("method=lora", f"rank=r{rank}") for rank in (4, 8)], draws=2)
    assert set(made.figures) == {"pairs_1", "shares_1", "pairs_2", "shares_2"}
    assert made.tables["heads"]["run"].nunique() == 2


@pytest.mark.usefixtures("sketched")
def test_runs_stand_side_by_side(finished: Finished) -> None:
    made = analysis.overlap([finished("method=hs_lora"), finished("method=lora")], draws=2)
    assert set(made.figures) == {"pairs_1", "shares_1", "phases_1", "pairs_2", "shares_2"}
    assert made.tables["heads"]["run"].nunique() == 2
    assert sum(sentence.startswith("lora, dsprites_loc") for sentence in made.sentences) == 2


@pytest.mark.usefixtures("sketched")
def test_gains_stand_beside_where_the_second_phase_lies(finished: Finished) -> None:
    made = analysis.overlap([finished("method=hs_lora"), finished("method=hs_lora", "seed=1")], draws=2)
    gains, heads, spaces = (made.tables[name] for name in ("gains", "heads", "phases"))
    assert "gains" in made.figures and len(gains) == 2
    for row in gains.itertuples():
        second = heads[(heads["run"] == row.run) & (heads["phase"] == "head_lora")]
        assert (row.shared, row.own) == (pytest.approx(second["shared"].mean()), pytest.approx(second["own"].mean()))
        by_head = spaces[(spaces["run"] == row.run) & (spaces["head"] != "whole")]
        assert row.rows == pytest.approx(by_head["rows"].mean())


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("words", [("method=hs_lora",), ("method=hs_lora", "method.heads.gate=heart", "ne=ne1")])
def test_the_record_of_a_run_says_what_the_analysis_finds(finished: Finished, words: tuple[str, ...]) -> None:
    folder = finished(*words)
    made = analysis.overlap(folder, draws=2)
    phases = Result.from_json(json.loads((folder / "result.json").read_text()), folder).phases
    (row,) = made.tables["gains"].itertuples()
    recorded = phases[1].mechanism
    assert set(recorded) == {"shared", "own", "rows", "columns"}
    for name, value in recorded.items():
        assert value == pytest.approx(getattr(row, name), abs=1e-5), name
    first = made.tables["heads"].query("phase == 'lora'")
    assert phases[0].mechanism == {name: pytest.approx(first[name].mean(), abs=1e-5) for name in ("shared", "own")}


def test_a_gain_that_follows_a_measure_is_said_to() -> None:
    results = {f"run {n}": run("hs_lora", seed=n, accuracy=(60.0, 61.0 + n)) for n in range(6)}
    heads = {name: (0.5, 0.1 * n) for n, name in enumerate(results)}
    gains = Gains.of(results, heads, {name: (0.3 - 0.01 * n, 0.2) for n, name in enumerate(results)})
    assert gains.table["gain"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    (said,) = gains.sentences(draws=200, seed=0)
    assert "outside all other heads' +1.00" in said and "first's row space -1.00" in said
    assert "energy in another head's row space" not in said, "it does not vary"
    other = {f"x {n}": run("hs_lora", "dtd", seed=n, accuracy=(60.0, 70.0 - n)) for n in range(4)}
    shares = {**heads, **{name: (0.5, 0.1 * n) for n, name in enumerate(other)}}
    both = Gains.of({**results, **other}, shares, dict.fromkeys(shares, (0.2, 0.2)))
    assert [("+1.00" in line, "-1.00" in line) for line in both.sentences(200, 0)] == [(True, False), (False, True)]
    few = Gains.of(dict(list(results.items())[:2]), heads, {"run 0": (0.1, 0.1), "run 1": (0.2, 0.2)})
    assert few.sentences(draws=200, seed=0) == [] and set(few.figures()) == {"gains"}
