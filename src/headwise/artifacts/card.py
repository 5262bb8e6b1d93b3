"""The model card of a network that is published: what it is, what it was trained on, and what is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from headwise import __version__
from headwise.artifacts.adapting import Adapted
from headwise.artifacts.classifier import Classifier
from headwise.errors import on_one_line
from headwise.results.classes import reached
from headwise.results.records import Result

HEAD = """---
library_name: timm
pipeline_tag: image-classification
license: unknown
tags:
- image-classification
- timm
- headwise
---
"""
USE = """## Use

```python
import timm
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
print(model(transform(Image.open("image.png").convert("RGB"))[None]).softmax(-1))
```

`transformers.pipeline("image-classification", "FOLDER")` reads the folder as well.
"""
UNKNOWN = "unknown"


def card(net: Classifier, record: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Markdown with the header that Hugging Face's hub reads.

    Args:
        record: see `headwise.artifacts.published.described`, and ``parameters``, their number.
    """
    name = record["model"]["model_name"]
    lines = [f"# {_plain(name)}, {len(class_names)} classes", ""]
    lines += [f"Written by headwise {__version__}, with every update merged into the weights.", ""]
    lines += ["## Where it comes from", "", *_rows(("", ""), _facts(net, record)), ""]
    if net.result is not None:
        lines += ["Phases:", "", *_phases(net.result), ""]
    lines += [
        "The licence is unknown: those of the pretrained weights and of the images apply. State it before you publish.",
        "",
        USE,
    ]
    if net.preparation.resize.startswith("tf"):
        lines += ["Images were resized as TensorFlow does, without antialiasing, which timm's transform has.", ""]
    if record["grey"]:
        lines += ["Images were grey in training: convert with `L` before `RGB`.", ""]
    lines += ["## Classes", "", *(f"{index}. {_plain(one)}" for index, one in enumerate(class_names)), ""]
    return HEAD + "\n".join(lines)


def _facts(net: Classifier, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    transform, model = record["transform"], record["model"]
    facts = [
        ("network", _code(json.dumps(model))),
        ("pretrained weights", _weights(net)),
        ("parameters", f"{record['parameters']:,}"),
        ("input", f"{transform['input_size'][-1]} pixels, both sides resized ({transform['interpolation']})"),
    ]
    if isinstance(net, Adapted):
        for index, stage in enumerate(net.stages[: net.phase + 1]):
            facts.append((f"method of phase {index + 1}", _code(json.dumps(stage.method.spec()))))
        facts.append(("parameters trained", f"{sum(one.numel() for one in net.trainable_parameters()):,} in the last"))
        return [*facts, ("trained on", UNKNOWN), ("accuracy", "not measured")]
    if (result := net.result) is None:
        return [*facts, ("trained on", UNKNOWN), ("accuracy", "not measured")]
    data: Any = result.provenance.get("data") or {}
    splits = data.get("splits") if isinstance(data, Mapping) else None
    counts = (
        ", ".join(f"{split} {count}" for split, count in splits.items()) if isinstance(splits, Mapping) else UNKNOWN
    )
    accuracy = "not tested" if result.accuracy is None else f"{reached(result.phases[-1])} its test images"
    return [
        *facts,
        ("trained on", f"{_plain(result.key.dataset)}; images by split: {_plain(counts)}"),
        ("method", f"{_plain(result.key.method)}, variant {_plain(result.key.variant)}, seed {result.key.seed}"),
        (result.metric, accuracy),
        ("labels of the result", _plain(", ".join(result.labels) or "none")),
        ("run", f"{_code(result.fingerprint)}, {_plain(result.created)}"),
    ]


def _weights(net: Classifier) -> str:
    """What the network was before it was trained, with a hash."""
    stated: Any = (net.result.provenance.get("weights") if net.result is not None else None) or net.net.provenance
    known = dict(stated) if isinstance(stated, Mapping) else {}
    if isinstance(net, Adapted):
        known = {**known, "content": net.content}
    if isinstance(place := known.get("weights"), str) and not place.startswith("package:"):
        known["weights"] = PurePath(place).name  # a file's, and not where it lies
    parts = [
        f"{key} {known[key]}"
        for key in ("name", "timm_name", "weights", "stated", "loaded", "content")
        if known.get(key)
    ]
    return _plain(", ".join(parts)) or UNKNOWN


def _phases(result: Result) -> list[str]:
    rows = [
        (
            _plain(phase.label),
            f"{phase.num_tunable:,}",
            f"{phase.num_head:,}",
            f"{phase.epochs}",
            "" if phase.accuracy is None else f"{phase.accuracy:.2f}",
            "" if phase.num_test is None else f"{phase.num_test:,}",
            _code(json.dumps({name: value for name, value in phase.method.items() if name != "checkpoint"})),
        )
        for phase in result.phases
    ]
    return _rows(
        ("method", "parameters", "classifier's", "epochs", f"{result.metric}, %", "test images", "settings"), rows
    )


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(text: Any) -> str:
    """A text that somebody chose, so that it stays what it is in a cell or a list."""
    shown = on_one_line(str(text))
    return "".join(f"\\{char}" if char in "\\|<[" else char for char in shown)


def _code(text: str) -> str:
    """A text that is shown as it is, in a cell."""
    return f"`{on_one_line(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
