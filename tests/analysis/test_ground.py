"""Scores, truth and pictures of heads on small runs, and on a loss whose answer is known."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from test_switches import BATCHES, everywhere, trained

from headwise import analysis
from headwise.analysis import ground, looking
from headwise.analysis.ground import Truth, differing
from headwise.analysis.kinds import MOST, Options
from headwise.analysis.lorenz import carried, counted, half
from headwise.analysis.opened import drawn, images_of, of_weights, opened
from headwise.analysis.switches import HeadUpdate, Switches, toggled
from headwise.artifacts.saved import SavedRun
from headwise.errors import CheckpointError, ConfigError, WeightsError
from made_cases import each

pytestmark = pytest.mark.usefixtures("sketched")
FEW = {"images": 24, "batch_size": 8}
SMALL = (
    *("backbone.weights=none", "backbone.img_size=32"),
    *(f"backbone.overrides.{name}={value}" for name, value in {"embed_dim": 64, "depth": 3, "num_heads": 4}.items()),
)
"""A network of a tenth of the cost: what is asked here holds of any."""


@pytest.fixture(scope="module")
def finished(finished):
    return lambda *words, **other: finished(*words, **other) if other else finished(*SMALL, *words)


@pytest.fixture(scope="module")
def lora(finished):
    return finished("method=lora", "rank=r4")


def test_scores_of_the_weights_are_those_of_the_gates(lora):
    run = SavedRun.read(lora)
    options = Options(**FEW)
    one = opened(run, options)
    again = of_weights(one.switches, images_of(run, one.switches.net, options, "train"))
    for name in ("taylor_pos", "taylor_neg", "taylor_abs"):
        other = torch.tensor([again[update][name] for update in one.switches.updates])
        assert torch.allclose(one.scores[name], other, atol=1e-6, rtol=1e-3), name
    assert torch.equal(one.scores["taylor_neg"], -one.scores["taylor_pos"])
    assert list(one.by_images) == [3, 6, 12]


def test_the_taylor_score_foretells_a_small_update():
    """With a small update the loss is linear in the gates: switching one off raises it by -dL/dgate."""
    net, before = trained("vit", everywhere("vit"), size=1e-3)
    switches = Switches(net, before)
    base, without = toggled(switches, BATCHES, switches.updates, switches.updates)
    scores = of_weights(switches, BATCHES)
    rise = Truth.of(base, without).loss_rise
    said = torch.tensor([scores[update]["taylor_neg"] for update in switches.updates]).double()
    assert torch.corrcoef(torch.stack([rise, said]))[0, 1] > 0.99


def test_the_score_is_zero_where_nothing_changed():
    net, before = trained("vit", [(0, 1, "v", 2)])
    switches = Switches(net, before)
    scores = of_weights(switches, BATCHES)
    planted = HeadUpdate(switches.updates[0].site, 2)
    for update, values in scores.items():
        assert (values["taylor_abs"] > 0) == (update == planted)
        assert "weight_l2" not in values, "it would be the norm of the update"


def test_everything_of_one_run(lora, tmp_path):
    made = analysis.responsiveness(lora, **FEW, greedy=1)
    assert set(made.tables) == {"heads", "agreement", "between_scores", "masks", "images", "greedy"}
    heads = made.tables["heads"]
    assert len(heads) == heads["heads"].iloc[0] * len(heads[["block", "projection"]].drop_duplicates())
    least = heads.loc[heads["loss_rise"].idxmin()]
    name = f"s{least['stage']}.b{least['block']}.{least['projection']}.h{least['head']}"
    assert made.tables["greedy"]["head"].tolist() == [name], "the first to go is the one least missed"
    agreed = made.tables["agreement"]
    varied = heads["loss_rise"].nunique(), heads["accuracy_drop"].nunique()
    for truth, several in zip(("loss", "accuracy"), varied, strict=True):
        own = agreed[(agreed["truth"] == truth) & (agreed["projections"] == "all")]
        assert (own["low"] < own["high"]).all() if several > 1 else own["low"].isna().all()
    files = made.write(tmp_path / "out")
    assert (tmp_path / "out" / "patterns.png") in files


def test_runs_side_by_side(lora, finished):
    other = finished("method=heart_lora", "ne=quarter", "seed=1")
    made = analysis.responsiveness([lora, other], **FEW)
    between = made.tables["between_runs"]
    assert between["one"].nunique() == 1
    assert "method" in between["differ_in"].iloc[0] and "seed" in between["differ_in"].iloc[0]
    assert between["gates_jaccard"].isna().all(), "one of the two has no gate"
    gated = made.tables["heads"].query("gate == 0")
    assert len(gated) > 0, "heads that are off are shown"
    assert (gated[["loss_rise", "taylor_abs", "update_l2"]] == 0).all(axis=None)


def test_gates_of_two_runs_are_compared(finished):
    made = analysis.responsiveness([finished("method=heart_lora", "ne=quarter", f"seed={s}") for s in (0, 1)], **FEW)
    heads, between = made.tables["heads"], made.tables["between_runs"]
    assert (between["gates_low"] <= between["gates_by_chance"]).all()
    assert "masks" not in made.tables, "of heads that are off already no gate can choose"
    off = [set(part.query("gate == 0").index - part.index[0]) for _, part in heads.groupby("run", sort=False)]
    assert len(off[0]) == len(off[1]) > 0
    assert (between["gates_jaccard"] == len(off[0] & off[1]) / len(off[0] | off[1])).all()
    rows = made.tables["agreement"].query("projections == 'all'")
    assert (rows["n"] == (heads["gate"] == 1).groupby(heads["run"]).sum().iloc[0]).all(), "only what is on is ordered"


def test_what_heads_that_are_on_carry(finished):
    made = analysis.heads(finished("method=heart_lora", "ne=quarter"), **FEW, draws=2)
    alone = made.tables["alone"]
    assert (alone.loc[alone["gate"] == 0, ["gain", "loss_saved"]] == 0).all(axis=None)
    assert made.tables["curves"]["heads_on"].max() == (alone["gate"] == 1).sum() < len(alone)


def test_stages_of_a_swin_are_told_apart(finished, tmp_path):
    run = finished("method=lora", backbone="swin_tiny_random")
    heads = analysis.responsiveness(run, **FEW).tables["heads"]
    assert heads["stage"].nunique() > 1 and not heads.duplicated(["stage", "block", "projection", "head"]).any()
    made = analysis.subspaces(run, draws=2)
    stages = [f"q_stage{stage}" for stage in sorted(set(heads["stage"]))]
    assert [name for name in made.figures if name.startswith("cosines_q")] == [f"cosines_{name}" for name in stages]
    assert not made.tables["matrices"].duplicated(["stage", "block", "projection", "head"]).any()
    assert len(set(made.sentences)) == len(made.sentences)
    assert len(made.files(tmp_path)) == 1 + len(made.tables) + 2 * len(made.figures)
    shared = analysis.overlap(run, draws=2)
    assert not shared.tables["heads"].duplicated(["stage", "block", "projection", "head"]).any()
    assert len(set(shared.sentences)) == len(shared.sentences)


def test_a_run_of_few_images_is_scored_on_those(finished):
    run = SavedRun.read(finished("method=lora", "rank=r4", "protocol.train_images=40"))
    net = run.network()
    trained_images = set(run.data(net, run.source()).pixels("train800val200").keys)
    for wanted, count in ((24, 24), (None, 40), (300, 40)):
        chosen = images_of(run, net, Options(images=wanted, batch_size=8), "train")
        assert len(chosen) == count and {chosen.pixels.keys[place] for place in chosen.places} <= trained_images


def test_two_phases(finished):
    made = analysis.responsiveness(finished("method=hs_lora", "rank=r4"), **FEW)
    assert made.tables["heads"]["taylor_abs"].gt(0).any()


def test_what_heads_carry(lora, tmp_path):
    made = analysis.heads(lora, **FEW, draws=3)
    assert made.tables["curves"]["orders"].eq(3).all()
    assert made.tables["curves"]["best_first"].iloc[-1] == made.tables["curves"]["worst_first"].iloc[-1]
    made.write(tmp_path / "out")


def test_a_planted_head_carries_all():
    net, before = trained("vit", [(0, 0, "v", 1)], size=1.0)
    switches = Switches(net, before)
    labels = [net(x).argmax(-1) for x, _ in BATCHES]  # what the trained network says is taken for the truth
    found = carried(switches, [(x, y) for (x, _), y in zip(BATCHES, labels, strict=True)], "toy", 2, 0)
    assert found.counts == [0, 1] and "head 1 of v in layer 0" in found.first, "no head without an update is the best"
    assert found.gain == found.best[1] - found.best[0]
    assert float(found.alone.accuracy[1]) == 100.0 > float(found.alone.accuracy[0]) == float(found.none.accuracy)
    assert found.best[-1] == 100.0
    assert found.needed(found.best) == 1


def test_a_head_without_an_update_is_never_the_best():
    """Also where every update that there is does harm."""
    net, before = trained("vit", [(0, 1, "v", 2)], size=1.0)
    switches = Switches(net, before)
    switches.set(())
    labels = [net(x).argmax(-1) for x, _ in BATCHES]  # what the network says without the update
    switches.set(switches.updates)
    found = carried(switches, [(x, y) for (x, _), y in zip(BATCHES, labels, strict=True)], "toy", 2, 0)
    assert "head 2 of v in layer 1" in found.first and found.gain <= 0


def test_the_size_of_batches_changes_nothing():
    net, before = trained("vit", everywhere("vit"), size=0.5)
    switches = Switches(net, before)
    x, y = (torch.cat(parts) for parts in zip(*BATCHES, strict=True))
    found = [
        carried(switches, list(zip(x.split(size), y.split(size), strict=True)), "toy", 3, 0) for size in (1, 5, 12)
    ]
    for other in found[1:]:
        assert torch.equal(other.chooses, found[0].chooses) and other.first == found[0].first
        for name in ("best", "worst", "random", "gain"):
            assert (
                (getattr(other, name) == getattr(found[0], name)).all()
                if name != "gain"
                else other.gain == found[0].gain
            )
    assert 0 < found[0].num_measured < len(y)
    none = found[0].none.correct[~found[0].chooses].double().mean() * 100
    assert found[0].best[0] == found[0].worst[0] == pytest.approx(float(none)), "one set of images"


def test_the_size_of_batches_changes_no_table(lora):
    one, other = (analysis.heads(lora, images=24, batch_size=size, draws=2).tables for size in (5, 24))
    for name in ("alone", "curves"):
        pd.testing.assert_frame_equal(one[name], other[name], atol=1e-5, rtol=1e-3)
    one, other = (opened(SavedRun.read(lora), Options(images=24, batch_size=size)) for size in (5, 24))
    assert list(one.by_images) == list(other.by_images)
    for count, scores in {**one.by_images, 24: one.scores}.items():
        for name, values in scores.items():
            expected = {**other.by_images, 24: other.scores}[count][name]
            assert torch.allclose(values, expected, atol=1e-6, rtol=1e-3), (count, name)


@each("sizes", [[50, 50], [90, 10], [3] * 40, [1, 99], [200]])
def test_images_are_drawn_from_every_class_by_the_seed(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)  # as lists have them
    total = len(labels)
    for count in (total // 4, total // 2, total):
        chosen = drawn(labels, count, 1)
        assert len(set(chosen.tolist())) == count
        for part in (count // 2, count):
            there = np.bincount(labels[chosen[:part]], minlength=len(sizes))
            assert (np.abs(there - np.array(sizes) * part / total) <= 1 + 1e-9).all(), "a share of each class"
        halves = half(torch.from_numpy(labels[chosen])).numpy()
        one, other = (np.bincount(labels[chosen][part], minlength=len(sizes)) for part in (halves, ~halves))
        assert (np.abs(one - other) <= 1).all() and 0 <= halves.sum() - (~halves).sum() <= 1
    assert drawn(labels, None, 1).tolist() == drawn(labels, total, 1).tolist()
    assert drawn(labels, total // 4, 1).tolist() == chosen[: total // 4].tolist(), "fewer are the first of more"
    assert set(drawn(labels, total // 4, 1)) != set(drawn(labels, total // 4, 2))


@pytest.mark.parametrize("kind", ["responsiveness", "heads", "attention"])
def test_the_seed_chooses_the_images(lora, kind):
    run = SavedRun.read(lora)
    net = run.network()
    keys = [
        {images.pixels.keys[place] for place in images.places}
        for images in (images_of(run, net, Options(images=24, seed=seed), kind=kind) for seed in (0, 0, 1))
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("kind, least", [("responsiveness", 2), ("heads", 2), ("attention", 3)])
def test_too_few_images_are_refused_and_few_are_told_in_words(lora, kind, least):
    with pytest.raises(ConfigError, match=f"{kind} needs {least} images or more, got {least - 1}"):
        getattr(analysis, kind)(lora, images=least - 1)
    made = getattr(analysis, kind)(lora, images=least, **({} if kind != "heads" else {"draws": 2}))
    assert not any("nan" in sentence.split() or "nan)" in sentence for sentence in made.sentences)


def test_more_images_than_there_are(lora):
    run = SavedRun.read(lora)
    net = run.network()
    counts = [len(images_of(run, net, Options(images=count), "val")) for count in (100_000, MOST, None)]
    assert counts == [200] * 3


def test_different_images_are_paired_in_few_ways(monkeypatch):
    maps = torch.rand(40, 3, 3, generator=torch.Generator().manual_seed(0))
    looks = [looking.Looked(name, {"rollout": m}, torch.ones(40)) for name, m in (("a", maps), ("b", maps + 0.1))]
    row = looking._compare(looks).iloc[0]
    assert row["spearman"] == pytest.approx(1.0) and row["other_images_low"] < 0 < row["other_images_high"] < 0.5
    monkeypatch.setattr(looking, "MOST_PAIRINGS", 10)
    assert looking._compare(looks).iloc[0]["other_images"] == pytest.approx(row["other_images"], abs=0.1)


def test_a_run_of_too_few_heads_has_no_order(lora, monkeypatch):
    monkeypatch.setattr(ground, "LEAST_HEADS", 100)
    with pytest.raises(ConfigError, match=r"has 24 with an update; it needs 100 or more"):
        analysis.responsiveness(lora, **FEW)


@pytest.mark.parametrize("change", ["on", "off", "missing", "elsewhere"])
@pytest.mark.parametrize("kind", ["responsiveness", "heads"])
def test_masks_that_the_tensors_contradict_are_refused(finished, kind, change):
    run = SavedRun.read(finished("method=heart_lora", "ne=quarter"))
    phase = run.result.phases[-1]
    rows = [dict(row, active=list(row["active"])) for row in phase.extra["heads"]]
    head = rows[0]["active"].index(0 if change == "on" else 1)
    if change in ("on", "off"):
        rows[0]["active"][head] = int(change == "on")
    elif change == "missing":
        del rows[0]
    else:
        rows[0]["proj"] = "k"
    changed = dataclasses.replace(phase, extra={**phase.extra, "heads": rows})
    broken = SavedRun(run.folder, dataclasses.replace(run.result, phases=[changed]))
    with pytest.raises(ConfigError, match=r"result\.json says of [qk] in stage 0, block 0 .* stored tensors say"):
        getattr(analysis, kind)(broken, **FEW)


@each("total", [1, 2, 13, 144])
def test_numbers_of_heads_on_a_curve(total):
    counts = counted(total)
    assert counts[0] == 0 and counts[-1] == total
    assert all(a < b for a, b in itertools.pairwise(counts))


def test_looking(lora, finished, tmp_path):
    made = analysis.attention([lora, finished("method=lora", "rank=r4", "seed=1")], **FEW)
    assert set(made.figures) == {"class_token", "rollout"}
    assert made.tables["similarity"]["spearman"].notna().all()
    made.write(tmp_path / "out")


def test_prompts_have_other_tokens(lora, finished):
    prompted = finished("method=vpt_shallow", "method.prompts=2")
    with pytest.raises(ConfigError, match="prompts change the token count"):
        analysis.attention([lora, prompted], **FEW)


@pytest.mark.parametrize("kind", ["responsiveness", "heads"])
@pytest.mark.parametrize("method", ["linear", "vpt_shallow"])
def test_a_run_without_heads(finished, kind, method):
    more = ["method.prompts=2"] if method == "vpt_shallow" else []
    with pytest.raises(ConfigError, match="changed no weight of q, k or v"):
        getattr(analysis, kind)(finished(f"method={method}", *more), **FEW)


@pytest.mark.parametrize("kind", ["responsiveness", "heads", "attention"])
def test_other_networks_and_missing_files(lora, kind, tmp_path):
    run = SavedRun.read(lora)
    config = {**run.result.config, "backbone": {**run.result.config["backbone"], "name": "another"}}
    other = SavedRun(tmp_path, dataclasses.replace(run.result, config=config, fingerprint="0" * 64))
    with pytest.raises(ConfigError, match=rf"{kind} compares runs of one network"):
        getattr(analysis, kind)([run, other], **FEW)
    with pytest.raises(WeightsError):
        getattr(analysis, kind)(lora, **FEW, weights=tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError):
        getattr(analysis, kind)(SavedRun(tmp_path, run.result), **FEW)


def test_what_runs_differ_in(lora):
    run = SavedRun.read(lora)
    assert differing(run, run) == "nothing"
    phase = run.result.phases[-1]
    changed = dataclasses.replace(phase, method={**phase.method, "gate": {"warmup": 0.2}})
    assert differing(run, SavedRun(lora, dataclasses.replace(run.result, phases=[changed]))) == "gate.warmup"
