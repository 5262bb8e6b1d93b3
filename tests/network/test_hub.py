"""timm's hub: a silent one is noticed within seconds, what it gave first is what it must give again."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm

from headwise.errors import WeightsError
from headwise.network import hub
from headwise.network.backbone import BackboneSpec
from made_cases import each

NAME = "vit_tiny_patch16_224"
SPEC = BackboneSpec(name="x", timm_name=NAME, img_size=32, overrides={"depth": 1, "embed_dim": 48, "num_heads": 4})
WAY_OUT = r"give a downloaded file with backbone\.weights=FILE, or backbone=vit_nano"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "kept", lambda name: None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_does_not_answer(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    begun = time.monotonic()
    with pytest.raises(WeightsError, match=rf"could not be fetched: 127.0.0.1:\d+ does not answer \(.*\); {WAY_OUT}"):
        BackboneSpec(name="x", timm_name=NAME).build()
    assert time.monotonic() - begun < 5


@each("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid", "nonsense"])
def test_a_hub_that_is_not_there(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    with pytest.raises(WeightsError, match=rf"could not be fetched: .*does not answer \(.*\); {WAY_OUT}"):
        BackboneSpec(name="x", timm_name=NAME).build()


def test_a_network_without_weights_on_the_hub() -> None:
    with pytest.raises(WeightsError, match=rf"timm has no pretrained weights for 'vit_base_patch32_plus.*{WAY_OUT}"):
        hub.fetched("vit_base_patch32_plus_256", 256)


def serve(monkeypatch: pytest.MonkeyPatch, seed: int, **options: Any) -> None:
    """Let the hub give a network that is drawn from `seed`."""
    import torch

    def fetched(name: str, img_size: int) -> Any:
        torch.manual_seed(seed)
        return timm.create_model(name, num_classes=0, img_size=img_size, **{**SPEC.overrides, **options})

    monkeypatch.setattr("headwise.network.backbone.fetched", fetched)


def test_what_was_fetched_first_is_what_is_compared_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, 0)
    first = SPEC.build().provenance["loaded"]
    assert SPEC.build().provenance["loaded"] == first
    (note,) = (tmp_path / "cache" / "hub").iterdir()
    assert json.loads(note.read_text())["content"] == first
    serve(monkeypatch, 1)
    with pytest.raises(
        WeightsError, match=rf"other weights for '{NAME}' than on \d.*, then {first[:12]}; .*delete {note}"
    ):
        SPEC.build()
    note.unlink()
    assert SPEC.build().provenance["loaded"] != first


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"content": 3}'])
def test_a_damaged_note_is_written_again(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, 0)
    SPEC.build()
    (note,) = (tmp_path / "cache" / "hub").iterdir()
    whole = note.read_text()
    note.write_text(content)
    SPEC.build()
    assert note.read_text() == whole


def test_fetched_weights_that_do_not_fit_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, 0, depth=2)
    with pytest.raises(WeightsError, match=r"weights of 'vit_tiny_.*' do not fit backbone.overrides=\{depth: 1"):
        SPEC.build()


def test_a_file_that_was_fetched_before_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    source = timm.create_model(NAME, num_classes=0)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "kept", lambda name: tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "_ask", lambda name: pytest.fail("the hub was asked"))
    net = BackboneSpec(name="x", timm_name=NAME).build()
    assert (net.model.norm.weight == source.norm.weight).all()
