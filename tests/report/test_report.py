"""The report: what it says, that text is escaped, that nothing is loaded, that every picture has its data."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from headwise.comparison.comparable import places
from headwise.comparison.controls import lacking, matches
from headwise.comparison.verdicts import Judgement, judged
from headwise.errors import ConfigError
from headwise.report import figures
from headwise.report.page import report
from headwise.results.records import Result
from headwise.results.store import ResultStore
from made_results import FEWSHOT, TASKS, few, gated, masked_suite, run, write
from made_scripts import loaded

REPO = Path(__file__).parents[2]
HEADS = {"_target_": "headwise.methods.hs_lora.HeadLoRA", "rank": 2}
MATCHED = {"_target_": "headwise.methods.hs_lora.MatchedLoRA", "head_rank": 2}
VOID = {"meta", "link", "br", "line", "path", "circle", "rect", "input"}


class Page(HTMLParser):
    """Tags with their attributes; the text outside of style and script; what is open when."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[list[tuple[str, dict[str, str | None]]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = (tag, dict(attrs))
        self.tags.append(found)
        if tag == "figure":
            self.figures.append([])
        if "figure" in self.open:
            self.figures[-1].append(found)
        if tag not in VOID or tag in ("circle", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def two_phase(
    seed: int, accuracy: tuple[float, float], method: str = "hs_lora", last: dict[str, Any] = HEADS, **fields
):
    """A run of two phases whose first is that of every other with this seed and task."""
    made = run(method, seed=seed, accuracy=accuracy, **fields)
    first, second = made.phases
    first = dataclasses.replace(first, fingerprint=f"{made.key.dataset}{seed}".encode().hex().ljust(16, "0"))
    return dataclasses.replace(made, phases=[first, dataclasses.replace(second, method=last)])


def controlled(seeds=range(3), gain: float = 2.0, **fields) -> list[Result]:
    """HS-LoRA with its controls: better by ``gain`` than the longer ones, by twice as much than that of equal size."""
    made = []
    for seed in seeds:
        made.append(two_phase(seed, (80.0, 85.0), **fields))
        made.append(two_phase(seed, (80.0, 85.0 - 2 * gain), "lora_then_lora", MATCHED, **fields))
        made.append(run("lora_long", seed=seed, accuracy=(85.0 - gain,), epochs=200, **fields))
        made.append(run("head_lora_long", seed=seed, accuracy=(85.0 - gain,), epochs=200, spec=HEADS, **fields))
    return made


def all_judged(results: list[Result]) -> list[Judgement]:
    where, _ = places(results)
    found = matches(results, results)
    return judged(found, where, lacking(results, where, found), results)


def missing(results: list[Result]) -> dict[tuple[str, str], Any]:
    return {(one.claim, one.row): one.lacking for one in all_judged(results)}


# ---- what is compared


def test_a_second_phase_is_compared_with_its_own_first_and_all_controls() -> None:
    (one,) = all_judged(controlled())  # the control of equal size is no row of its own
    found = {pairs.against: pairs for pairs in one.pairs}
    assert one.row == "hs_lora"
    assert list(found) == ["P1", "longer P1", "equal-size LoRA", "longer P2"]
    assert [c.mean for c in found.values()] == pytest.approx([5.0, 2.0, 4.0, 2.0])
    assert found["P1"].sum.pairs == 3
    assert found["P1"].num_repeats == 3


def test_heads_off_are_compared_with_the_run_without_and_with_random_ones() -> None:
    results = masked_suite()
    (two,) = (one for one in all_judged(results) if one.row == "heart_lora (ne2)")
    assert [(pairs.against, pairs.mean, len(pairs.differences)) for pairs in two.pairs] == [
        ("no head off", -1.5, 2),
        ("random heads off", 2.5, 2),
    ]
    assert missing(results) == {
        ("mask", f"heart_lora (ne{off})"): {"no head off": [], "random heads off": []} for off in (1, 2)
    }


def test_a_control_that_is_missing_on_one_seed_is_missing() -> None:
    results = controlled()
    assert missing(results) == {("phase", "hs_lora"): {"longer P1": [], "equal-size LoRA": [], "longer P2": []}}
    fewer = [r for r in results if not (r.key.method == "lora_long" and r.key.seed == 2)]
    assert missing(fewer) == {("phase", "hs_lora"): {"longer P1": ["svhn"], "equal-size LoRA": [], "longer P2": []}}


# ---- the page


def full() -> list[Result]:
    made = controlled(group="natural") + masked_suite()
    machine = {"cpu": "a cpu", "cores": 2}
    git = {"commit": "ab" * 20, "dirty": True}
    labels = ["stand-in weights"]
    return [dataclasses.replace(r, machine=machine, git=git, versions={"torch": "2"}, labels=labels) for r in made]


def test_the_page_answers_and_has_every_part() -> None:
    text = report(full(), "A title")
    page = Page(text)
    assert page.open == []
    assert "Did head-wise adaptation pay here?" in page.text
    assert "hs_lora leans yes" in page.text
    assert "hs_lora gains 5.00 against its own first phase; gains 2.00 against the first method" in page.text
    assert "n = 3: 1 task, 3 seeds" in page.text
    assert "Rows that gain: against the same run, no head off 0 of 2" in page.text
    for part in ("Accuracy", "Paired differences", "Accuracy against parameters", "Heads switched off", "Head scores"):
        assert f"{part} " in page.text
    for part in ("Cost", "Weights", "Data", "Protocol", "Software", "Code", "Machine", "Runs"):
        assert f"{part} CSV" in page.text
    assert "stand-in weights all runs" in page.text
    assert "abababababab + changes" in page.text


def test_every_picture_has_its_data() -> None:
    page = Page(report(full()))
    assert len(page.figures) >= 4
    for inner in page.figures:
        links = [a["href"] for tag, a in inner if tag == "a"]
        assert any(str(link).startswith("data:text/csv") for link in links)
        drawn = next(a for tag, a in inner if tag == "svg")
        assert drawn["aria-label"]
    tables = [inner for inner in page.figures if any(tag == "details" for tag, _ in inner)]
    assert tables


def test_data_are_those_of_the_picture() -> None:
    page = Page(report(masked_suite()))
    (link,) = [a for tag, a in page.tags if tag == "a" and str(a.get("download")).endswith("heads-off-1.csv")]
    rows = list(csv.DictReader(io.StringIO(unquote(str(link["href"]).partition(",")[2]))))
    assert [(row["gate"], row["heads off"], row["mean"], row["n"]) for row in rows] == [
        ("heart_lora: taylor_neg, global", "1.0", "89.5", "2"),
        ("heart_lora: taylor_neg, global", "2.0", "88.5", "2"),
        ("heart_random: random", "1.0", "87.0", "2"),
        ("heart_random: random", "2.0", "86.0", "2"),
        ("no head off", "0.0", "90.0", "2"),
    ]


def test_curves_of_two_warm_ups_are_two_lines() -> None:
    made = masked_suite()
    for result in list(made):
        if result.key.method == "heart_lora":
            (phase,) = result.phases
            extra = {**phase.extra, "gate": {**phase.extra["gate"], "warmup": 0.3}}
            spec = {**phase.method, "gate": {**phase.method["gate"], "warmup": 0.3}}
            later = dataclasses.replace(phase, method=spec, extra=extra, accuracy=phase.accuracy - 1.0)
            key = dataclasses.replace(result.key, variant=f"{result.key.variant}-warmup0.3")
            made.append(dataclasses.replace(result, key=key, phases=[later], fingerprint=""))
    page = Page(report(made))
    (link,) = [a for tag, a in page.tags if tag == "a" and str(a.get("download")).endswith("heads-off-1.csv")]
    rows = list(csv.DictReader(io.StringIO(unquote(str(link["href"]).partition(",")[2]))))
    means = {row["gate"]: row["mean"] for row in rows if row["heads off"] == "1.0"}
    assert means["heart_lora: taylor_neg, global, warm-up 0.3"] == "88.5"
    assert len(means) == 3


def test_curves_over_tasks_are_means_of_what_all_tasks_have() -> None:
    made = []
    for task, group in TASKS[:2]:
        for result in masked_suite():
            key = dataclasses.replace(result.key, dataset=task)
            if task == TASKS[1][0] and result.key.variant == "ne2":
                continue
            identity = {**result.identity, "task": task}
            config = {"dataset": {"name": task, "group": group}}
            made.append(dataclasses.replace(result, key=key, identity=identity, config=config, fingerprint=""))
    page = Page(report(made))
    titles = [text for text in page.words if text.endswith(": bi_lora")]
    assert titles[0] == "mean of 2 tasks: bi_lora"
    (link,) = [a for tag, a in page.tags if tag == "a" and str(a.get("download")).endswith("heads-off-1.csv")]
    rows = list(csv.DictReader(io.StringIO(unquote(str(link["href"]).partition(",")[2]))))
    assert {row["heads off"] for row in rows} == {"0.0", "1.0"}


def test_few_shot_curves_are_means_over_draws() -> None:
    made = [
        few(method, name, number, draw, accuracy=40.0 + number + draw + place)
        for method in ("lora", "bi_lora")
        for place, name in enumerate(FEWSHOT)
        for number in (1, 4)
        for draw in range(3)
    ]
    page = Page(report(made))
    assert "Images per class" in page.text
    assert [text for text in page.words if text.startswith("mean of 5 few-shot sets")]
    links = [a for tag, a in page.tags if tag == "a" and "-shots-" in str(a.get("download"))]
    assert len(links) == 1 + len(FEWSHOT)
    rows = list(csv.DictReader(io.StringIO(unquote(str(links[0]["href"]).partition(",")[2]))))
    assert [(row["method"], row["shots"], float(row["mean"]), float(row["std"]), row["n"]) for row in rows] == [
        (method, str(number), 43.0 + number, 1.0, "3") for method in ("bi_lora", "lora") for number in (1, 4)
    ]


def test_nothing_is_loaded_and_the_policy_forbids_it() -> None:
    text = report(full())
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=", text)
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "video", "audio", "use", "base")
        for name in ("href", "src", "action", "data"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_every_heading_of_a_table_sorts() -> None:
    page = Page(report(full()))
    heads = [a for tag, a in page.tags if tag == "th" and a.get("scope") == "col"]
    buttons = [a for tag, a in page.tags if tag == "button"]
    assert heads
    assert len(buttons) == len(heads)
    assert [a["aria-sort"] for a in heads if a["aria-sort"] != "none"] == ["descending"]  # the leaderboard's mean


def test_text_is_escaped_everywhere() -> None:
    evil = "<script>alert(1)</script>&\"'"
    name = "<img src=x onerror=alert(1)>"
    made = [
        dataclasses.replace(
            r,
            key=dataclasses.replace(r.key, name=f"<b>{r.key.name}", method=f"{name}{r.key.method}"),
            labels=[evil],
            machine={evil: evil},
            versions={"torch": evil},
            git={"commit": "<i>" * 10},
            provenance={**r.provenance, "weights": {"name": evil}},
        )
        for r in full()
    ]
    text = report(made, evil, [evil])
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"img", "i"} & {tag for tag, _ in page.tags}
    assert "alert(1)" in page.text
    assert len([a for _, a in page.tags if "onerror" in a]) == 0


def test_a_missing_control_cannot_be_overlooked() -> None:
    alone = [two_phase(0, (80.0, 85.0))]
    page = Page(report(alone))
    assert "It cannot be said: a control is missing." in page.text
    assert page.text.count("NO CONTROL (longer P1) for hs_lora on svhn") == 2  # in the summary and at its table
    assert "run method=hs_control_lora as well" in page.text
    assert "hs_lora no control" in page.text
    gate = Page(report([gated("heart_lora", 0, 89.0, 1)]))
    assert "NO CONTROL (no head off) for heart_lora (ne1) on svhn" in gate.text
    assert "No run to compare it with." in gate.text


def test_many_missing_controls_are_counted() -> None:
    results = [two_phase(0, (80.0, 85.0), dataset=task, group=group) for task, group in TASKS]
    assert "NO CONTROL (longer P1) for hs_lora on 19 tasks" in Page(report(results)).text


def test_without_anything_head_wise_it_says_so() -> None:
    assert "No run here can tell" in Page(report([run()])).text


def test_settings_are_chapters_of_their_own() -> None:
    other = run("linear", weights={"name": "another", "sha256": "cd"})
    page = Page(report([*controlled(), other]))
    sections = [a.get("id") for tag, a in page.tags if tag == "section"]
    assert sections == ["leaderboard", "summary", "runs-1", "runs-2-2", "provenance", "runs"]
    every = [a["id"] for _, a in page.tags if "id" in a]
    assert len(every) == len(set(every))
    assert "Other setting than runs:" in page.text


def test_damaged_records_are_named() -> None:
    page = Page(report([run()], damaged=["x/result.json is cut off"]))
    assert "1 damaged record is skipped" in page.text
    assert "x/result.json is cut off" in page.text


def test_the_same_results_give_the_same_page() -> None:
    results = full()
    assert report(results) == report(list(reversed(results)))


# ---- pictures


def test_ticks_are_round_and_within() -> None:
    assert figures.steps(59.2, 75.3) == [60, 65, 70, 75]
    assert figures.steps(0.0, 2.1, 6, least=1.0) == [0, 1, 2]
    axis = figures.Axis(1e5, 1e7, 0, 100, is_log=True, has_zero=True)
    assert axis.ticks()[:2] == [0, 1e5]
    assert axis.at(0) == 0
    assert axis.at(1e7) == pytest.approx(100)
    assert [figures.rounded(value) for value in (0.5, 6.1, 11, 0.0)] == [0.5, 8, 20, 1]


def test_layers_with_different_heads_are_drawn() -> None:
    rows = [
        {"stage": 0, "block": 0, "proj": "q", "active": [1, 0], "score": [0.5, -0.25]},
        {"stage": 1, "block": 0, "proj": "q", "active": [1] * 32, "score": None},
    ]
    drawn = str(figures.score_map(rows, "t"))
    assert drawn.count("<rect") == 34
    assert "q, layer 0.0, head 1, score -0.25, off" in drawn
    assert ">1.0</text>" in drawn


# ---- the command


def stored(root: Path, results: list[Result]) -> Path:
    store = ResultStore(root)
    for result in results:
        store.put(result.key, result)
    return root


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = stored(tmp_path / "results", [*controlled(), run("lora", name="other")])
    out = tmp_path / "report.html"
    assert loaded("make_report").main(["--root", str(root), "--name", "runs", "--out", str(out)]) == 0
    assert "12 runs" in capsys.readouterr().out
    assert "12 runs" in Page(out.read_text()).text
    assert loaded("make_report").main(["--root", str(root), "--name", "runs", "other", "--out", str(out)]) == 0
    assert "<title>runs, other</title>" in out.read_text()


def test_controls_under_another_name_count(tmp_path: Path) -> None:
    root = stored(tmp_path / "results", [r for r in controlled() if r.key.method == "hs_lora"])
    stored(root, [r for r in controlled(name="controls") if r.key.method != "hs_lora"])
    out = tmp_path / "report.html"
    assert loaded("make_report").main(["--root", str(root), "--name", "runs", "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert "NO CONTROL" not in page.text
    assert "hs_lora leans yes" in page.text
    assert "Controls were also found among the runs of controls." in page.text
    assert "lora_long" not in page.text


def test_a_corrupted_result_is_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = stored(tmp_path / "results", controlled())
    file = root / "runs" / "lora_long" / "svhn" / "base" / "seed-1" / "result.json"
    file.write_text(file.read_text()[:100])
    out = tmp_path / "report.html"
    assert loaded("make_report").main(["--root", str(root), "--out", str(out)]) == 0
    assert "lora_long/svhn/base/seed-1/result.json" in capsys.readouterr().err
    page = Page(out.read_text())
    assert "1 damaged record is skipped" in page.text
    assert "runs/lora_long/svhn/base/seed-1/result.json" in page.text
    assert "NO CONTROL (longer P1) for hs_lora on svhn" in page.text


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert loaded("make_report").main(["--root", str(tmp_path), "--out", str(out)]) == 1
    assert "no finished run" in capsys.readouterr().err
    root = stored(tmp_path / "results", [run(name="standins")])
    assert loaded("make_report").main(["--root", str(root), "--name", "standin", "--out", str(out)]) == 1
    assert "did you mean 'standins'?" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ConfigError, match="nothing to report"):
        report([run(accuracy=(None,))])


@pytest.mark.slow
def test_two_thousand_runs(tmp_path: Path) -> None:
    made = [
        two_phase(seed, (70.0 + place % 7, 80.0 - seed), f"m{number}", dataset=task, group=group, recipe={"m": number})
        for number in range(35)
        for seed in range(3)
        for place, (task, group) in enumerate(TASKS)
    ]
    for result in [*made, *(run("lora", seed=seed) for seed in range(5))]:
        write(result.key.path(tmp_path / "results") / "result.json", json.dumps(result.to_json()))
    out = tmp_path / "report.html"
    command = ["make_report", "--root", str(tmp_path / "results"), "--out", str(out)]
    code = f"""
import runpy, sys, time
sys.argv = {command!r}
try:
    runpy.run_path({str(REPO / "scripts" / "make_report.py")!r}, run_name="__main__")
except SystemExit:
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    told, numbers = done.stdout.splitlines()
    assert "2000 runs" in told
    kilobytes, seconds = map(float, numbers.split())
    assert seconds < 10
    assert kilobytes < 500_000
    assert out.stat().st_size < 10_000_000


# ---- in a browser

VIEWS = [(390, 844), (1280, 800)]
CONTRAST = """
() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const line = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
  const ground = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(parse(getComputedStyle(e).backgroundColor));
    return chain.reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest("script, style, title") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), back = ground(element);
    const front = over(parse(element.closest("svg") ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text]);
  }
  return found.sort(([a], [b]) => a - b);
}
"""
SORTED = """
(place) => {
  const table = document.querySelector("section:not(#summary, #leaderboard) table");
  const head = table.querySelector(`th[data-place="${place}"]`);
  head.querySelector("button").click();
  const names = [...table.tBodies[0].rows].map((row) => row.cells[0].innerText.split(" ")[0]);
  return [head.getAttribute("aria-sort"), names];
}
"""


def all_tasks() -> list[Result]:
    return [made for task, group in TASKS for made in controlled(dataset=task, group=group)]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", VIEWS, ids=str)
@pytest.mark.parametrize("results", [lambda: [*full(), two_phase(0, (80.0, 85.0), "hs_pissa")], all_tasks])
def test_in_a_browser(results: Callable[[], list[Result]], size: tuple[int, int], scheme: Any, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    file = tmp_path / "report.html"
    file.write_text(report(results(), "A title"))
    said, asked = [], []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        for _ in range(2):  # folded, then unfolded
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        contrast = page.evaluate(CONTRAST)
        assert len(contrast) > 300
        assert contrast[0][0] >= 4.5, contrast[:5]
        order, rows = page.evaluate(SORTED, 0)
        assert (order, rows) == ("ascending", sorted(rows))
        order, _ = page.evaluate(SORTED, 1)
        assert order == "descending"
        descending = "document.querySelectorAll('SECTION th[aria-sort=descending]').length"
        assert page.evaluate(descending.replace("SECTION", "section:not(#leaderboard)")) == 1
        assert page.evaluate(descending.replace("SECTION", "#leaderboard")) == 1
        chromium.close()
    assert said == []
    assert asked == [file.as_uri()]
