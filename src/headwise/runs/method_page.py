"""A page for each method: what its YAML and its docstrings say, what is counted, and the kept records of its runs.

A method's facts stand in its YAML's comment or in its class's docstring, each on a line that begins with its name:
``Licence: MIT (owner/repository).`` and ``Not for: tasks of this kind.``; ``Formula:`` and ``Source:`` where the
module's docstring and the citation of the YAML do not say it. A YAML that is made from another takes over its facts.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import get_class, instantiate

from headwise.commands.messages import instantiation
from headwise.comparison.cells import pipes
from headwise.errors import ConfigError, suggest
from headwise.methods._catalog import DISGUISE, is_disguised
from headwise.methods.base import Method
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.protocol.described import CONF, described, method_names
from headwise.results.records import Result
from headwise.results.shapes import LINED_UP, MEASURED
from headwise.storage.plain import Misfit, Shape, read_json

LINEUPS = ("methods", "methods_standins")
"""Experiments whose line-ups are kept in docs/results."""
FACTS = ("Formula", "Source", "Licence", "Size", "Not for")
"""Names of facts; a fact ends at a blank line or at the next."""
CITED = re.compile(r"\(([^()]*(?:arXiv:|et al\.|HS-LoRA|Heart-LoRA|ICML)[^()]*)\)")
BENCHMARKS = "benchmarks/results"
"""Of the repository, two folders above the kept records."""


@dataclass(frozen=True)
class Written:
    """What is written about a method.

    Attributes:
        name: of its YAML, such as ``lora`` or ``peft/oft``.
        comment: of its YAML, without facts and commands.
        commands: how to run it, the first line first.
        facts: by name, its own before those of what it is made from.
        body: its YAML without the comment.
        made_from: names of the YAMLs that it takes over.
    """

    name: str
    comment: str
    commands: tuple[str, ...]
    facts: Mapping[str, str]
    body: str
    made_from: tuple[str, ...]


def about(name: str) -> str:
    """First sentence of a method's file."""
    return re.split(r"(?<=\.)\s+(?=[A-Z])", read(name).comment, maxsplit=1)[0]


@functools.cache
def read(name: str, conf: Path = CONF) -> Written:
    """A method's YAML and those that it is made from; an unknown one is refused."""
    file = conf / "method" / f"{name}.yaml"
    if conf == CONF and name not in method_names():
        raise ConfigError(f"unknown method {name!r}{suggest(name, method_names())}")
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    commands = [line.removeprefix("Run:").strip() for line in head if line.startswith(("Run:", "python "))]
    text = [line for line in head if not line.startswith(("Run:", "python "))]
    body = "\n".join(lines[len(head) :])
    # bi_lora or /method/lora@_here_; what goes into a field (a mapping, /method@first) is a method of its own
    entries = [entry for entry in yaml.safe_load(body).get("defaults", []) if isinstance(entry, str)]
    below = [entry.removeprefix("/method/").removesuffix("@_here_") for entry in entries if entry != "_self_"]
    facts, rest = _facts(text)
    for other in below:
        facts = {**read(other, conf).facts, **facts}
        below += read(other, conf).made_from
    return Written(name, " ".join(rest), tuple(commands), facts, body, tuple(below))


def _facts(lines: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The facts among lines of text, and the other lines."""
    facts: dict[str, str] = {}
    rest: list[str] = []
    current = None
    for line in lines:
        begun = re.match(rf"({'|'.join(FACTS)}): (.*)$", line.strip())
        if begun:
            current = begun[1]
            facts[current] = begun[2]
        elif current and line.strip():
            facts[current] += f" {line.strip()}"
        else:
            current = None
            rest.append(line)
    return facts, rest


def _of_class(kind: type) -> tuple[dict[str, str], str, str]:
    """Of a class: its facts, its docstring without them, and what that says of its fields."""
    whole, _, fields = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    facts, rest = _facts(whole.splitlines())
    return facts, "\n".join(rest).strip(), inspect.cleandoc(f"\n{fields}")


@functools.cache
def built(name: str) -> Any:
    """A method at its defaults."""
    with instantiation():
        return instantiate(described(name, {}), _convert_="all")


@functools.cache
def vit_b16() -> Backbone:
    """ViT-B/16 as shapes alone, with ten classes."""
    with torch.device("meta"):
        net = BackboneSpec(name="vit_b16", timm_name="vit_base_patch16_224", weights="none").build()
        net.new_head(10)
    return net


def kind_of(name: str, conf: Path = CONF) -> type:
    """The class of a method, as its YAML or one that it is made from names it."""
    targets = [yaml.safe_load(read(each, conf).body).get("_target_") for each in (name, *read(name, conf).made_from)]
    return get_class(next(target for target in targets if target))


def facts_of(name: str, conf: Path = CONF) -> dict[str, str]:
    """Source, licence and the other facts of a method, from its YAML, those below it, and its class.

    Raises:
        ConfigError: if it does not say its source, its licence, or what it is not for.
    """
    written, kind = read(name, conf), kind_of(name, conf)
    facts = {**_of_class(kind)[0], **written.facts}
    if written.comment.startswith(("Baseline", "Control")):
        facts["Source"] = f"{re.split('[ :,]', written.comment)[0]} of this project."
    for comment in (written.comment, *(read(other, conf).comment for other in written.made_from)):
        cited = CITED.search(comment)
        if "Source" not in facts and cited:
            facts["Source"] = f"{cited[1]}."
    missing = [fact for fact in ("Source", "Licence", "Not for") if not facts.get(fact)]
    if missing:
        raise ConfigError(
            f"method {name} lacks {' and '.join(missing)}: write '{missing[0]}: ...' on a line of its own into the "
            f"comment of conf/method/{name}.yaml or the docstring of {kind.__name__}"
        )
    return facts


def sizes(method: Any) -> list[tuple[Method, int | None]]:
    """Its phases with the parameters that each trains on ViT-B/16, without the head; None where images decide."""
    found: list[tuple[Method, int | None]] = []
    for phase in method.phases():
        try:
            found.append((phase, phase.count(vit_b16())))
        except ConfigError:
            found.append((phase, None))
    return found


def page(name: str, kept: Path | None = None) -> str:
    """The page of one method, in Markdown that also reads as plain text.

    Args:
        kept: ``docs/results``, with records of runs; None or a folder that is not there leaves them out.

    Raises:
        ConfigError: for an unknown method, or one that does not say its facts.
    """
    written, method, facts = read(name), built(name), facts_of(name)
    _, described, fields = _of_class(type(method))
    module = inspect.cleandoc(sys.modules[type(method).__module__].__doc__ or "")
    computed = [facts.get("Formula", ""), *(() if "Formula" in written.facts else (module, described))]
    formula = "\n\n".join(text for text in computed if text)
    rows = [("source", facts["Source"]), ("licence of the authors' code", facts["Licence"]), *_counted(method)]
    if "Size" in facts:
        rows.append(("size", facts["Size"]))
    table = "\n".join(f"| {key} | {value.replace('|', '/')} |" for key, value in rows)
    parts = [
        f"# {name}",
        written.comment,
        "```bash\n" + "\n".join(written.commands) + "\n```",
        f"| fact | |\n| --- | --- |\n{table}",
        f"## What it computes\n\n```text\n{formula.strip()}\n```",
        f"## When not to use it\n\n{_sentence(facts['Not for'])}",
        f"## Defaults\n\nconf/method/{name}.yaml, with the authors' values where the comments name them:",
        f"```yaml\n{written.body.strip()}\n```",
    ]
    if written.made_from:
        parts.append(f"Everything else is as in {', '.join(written.made_from)}.")
    if fields:
        parts.append(f"Fields:\n\n```text\n{fields}\n```")
    label = str(method.label)
    costs = "\n".join(filter(None, [_step(kept, name), _cost(kept, label)]))
    parts.append("## Cost\n\n" + (costs or "Nothing kept measured it."))
    parts.append("## Records\n\n" + (_records(kept, label) or "No run of it is kept in docs/results/records."))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _counted(method: Any) -> list[tuple[str, str]]:
    """Rows of the table that follow from the method itself, phase by phase."""
    rows = []
    phases = sizes(method)
    for phase, trained in phases:
        where = f", phase {phase.label}" if len(phases) > 1 else ""
        size = "depends on the training images" if trained is None else f"{trained:,}"
        if trained and is_disguised(phase, vit_b16(), trained):
            size += f": {DISGUISE}"
        exact = phase.identity_tolerance <= Method.identity_tolerance
        rows += [
            (f"parameters on ViT-B/16, without the head{where}", size),
            (f"starts at the pretrained network{where}", "yes" if exact else "no"),
            (f"merges into the weights{where}", "yes" if phase.merges else "no, it stays in place"),
        ]
    return rows


def _checked(file: Path, shape: Shape) -> Any:
    """What a kept file holds.

    Raises:
        ConfigError: if that is not what the benchmark or the line-up writes.
    """
    try:
        value = read_json(file)
        shape(value, "it")
    except Misfit as error:
        raise ConfigError(f"{file} cannot be shown: {error}; make it again, or delete it") from error
    return value


def _step(kept: Path | None, name: str) -> str:
    """What a step takes over one that trains the classifier alone, by the last record of benchmarks/method_cost.py."""
    found = ""
    for file in () if kept is None else sorted((kept.resolve().parents[1] / BENCHMARKS).glob("method_cost*.json")):
        record = _checked(file, MEASURED)
        # with other options it is no step of this page's
        asked = () if record.get("set") or record.get("compile") else record["results"]
        for one in (one for one in asked if one["contender"] == name):
            low, ratio, high = one["quartiles"]
            found = (
                f"- A step of {record['backbone']['name']}, {one['precision']}, batch {record['batch']}: "
                f"{ratio:.2f} times one that trains the classifier alone (quartiles {low:.2f} .. {high:.2f}, "
                f"{len(one['pairs'])} pairs on a CPU), {one['flop_ratio']:.2f} times its arithmetic."
            )
    return found


def _cost(kept: Path | None, label: str) -> str:
    """Time and memory of a step in the line-ups of methods, as they were run on one thread of a CPU."""
    files = [file for name in LINEUPS if (file := kept / f"{name}.json").is_file()] if kept else []
    tables = [(file.stem, table) for file in files for table in _checked(file, LINED_UP)]
    lines = [
        f"- {name}: {table['title']} ({line['variant']}, seed {line['seed']}, {line['epochs']} epochs): "
        f"{line['ms_per_step']:.0f} ms a step, peak memory {line['peak_memory'] / 2**20:,.0f} MiB, "
        f"{line['parameters']:,} parameters{', older code' if line['older_code'] else ''}"
        for name, table in tables
        for line in table["lines"]
        if line["method"] == label and None not in (line["ms_per_step"], line["peak_memory"])
    ]
    return "" if not lines else "\n".join([*lines, "", "Of runs on one thread of a CPU, see docs/results.md."])


def _records(kept: Path | None, label: str) -> str:
    """Its kept records by experiment, task and variant: mean accuracy, n and weights."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for file in sorted((kept / "records").glob(f"*/{label}/*/*/*/result.json")) if kept is not None else ():
        record = Result.read(file)
        if record.phases[-1].accuracy is not None:  # tested at all
            groups.setdefault((record.key.name, record.key.dataset, record.key.variant), []).append(record)
    if not groups:
        return ""
    body = []
    for (experiment, task, variant), records in groups.items():
        mean = statistics.mean(accuracy for record in records if (accuracy := record.phases[-1].accuracy) is not None)
        backbone = records[0].config.get("backbone")
        weights = backbone.get("name", "") if isinstance(backbone, Mapping) else ""
        stamps = ", ".join(dict.fromkeys(stamp for record in records for stamp in record.labels))
        body.append([experiment, task, variant, weights, stamps, f"{mean:.2f}", str(len(records))])
    lines = pipes(["experiment", "task", "variant", "weights", "stamps", "accuracy %", "n"], body, num_left=5)
    lines += ["", "Accuracy after the last phase, the mean over n seeds. Files: docs/results/records."]
    return "\n".join(lines)


def index() -> str:
    """The list of all methods, each leading to its page beside the list."""
    lines = [
        "# All methods",
        "",
        "Made from `conf/method`, the docstrings and the kept records. Parameters are of ViT-B/16, without the head, "
        "of all phases. As text: `python scripts/list_methods.py NAME`.",
        "",
        "| method | | parameters | starts at the network | merges |",
        "| --- | --- | --: | --- | --- |",
    ]
    for name in method_names():
        phases = sizes(built(name))
        total = None if any(count is None for _, count in phases) else sum(count or 0 for _, count in phases)
        exact = all(phase.identity_tolerance <= Method.identity_tolerance for phase, _ in phases)
        merges = all(phase.merges for phase, _ in phases)
        said = about(name).replace("|", "\\|")
        cells = ["by task" if total is None else f"{total:,}", "yes" if exact else "no", "yes" if merges else "no"]
        lines.append(f"| [{name}]({name}.md) | {said} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
