"""Weights of timm's hub: asked for only where they are not on this machine, and compared with what came before."""

from __future__ import annotations

import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from headwise.errors import WeightsError
from headwise.storage import atomic
from headwise.storage.hashes import cache_folder
from headwise.storage.plain import read_json

PATIENCE = 5.0
"""Seconds in which a hub must answer at all; the download itself takes what it takes."""
WAY_OUT = "give a downloaded file with backbone.weights=FILE, or backbone=vit_nano, which ships with the package"
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names under which Hugging Face's hub holds weights, in timm's order."""


def fetched(timm_name: str, img_size: int) -> nn.Module:
    """timm's network of this name and image size, without classifier, with its pretrained weights.

    A file that was fetched before is taken without asking the hub again.

    Raises:
        WeightsError: if there are none, the hub does not answer, or the download fails; says what to do instead.
    """
    options: dict[str, Any] = {"pretrained": True, "num_classes": 0, "img_size": img_size}
    if file := kept(timm_name):
        options["pretrained_cfg_overlay"] = {"file": str(file)}
    else:
        _ask(timm_name)
    try:
        return timm.create_model(timm_name, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"pretrained weights of {timm_name!r} could not be fetched ({type(error).__name__}: {reason}); {WAY_OUT}"
        ) from error


def kept(timm_name: str) -> Path | None:
    """The file of these weights, if an earlier fetch left it in Hugging Face's cache; .safetensors only."""
    config: Any = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    if config is None or not config.hf_hub_id or config.custom_load:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    name = config.hf_hub_filename or FILES[0]
    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
    except ValueError:  # a name that the hub would not accept
        return None
    return Path(cached) if isinstance(cached, str) and cached.endswith(".safetensors") else None


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors: names, shapes, types and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # as bytes, since numpy has no bfloat16
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def compare(timm_name: str, img_size: int, content: str) -> None:
    """Compare what was fetched with what came first, which is noted in ``<cache>/hub``; a first fetch is noted.

    Raises:
        WeightsError: if the hub has given other tensors than before.
    """
    note = cache_folder() / "hub" / f"{timm_name.replace('/', '_')}@{img_size}.json"
    try:
        before = read_json(note)
        noted, since = str(before["content"]), str(before["since"])
    except (OSError, ValueError, KeyError, TypeError):
        try:
            atomic.write_json(note, {"content": content, "since": datetime.now(UTC).strftime("%Y-%m-%d")})
        except OSError:
            return  # a cache that cannot be written is no error; the record of the run names the content
        return
    if noted != content:
        raise WeightsError(
            f"timm's hub has other weights for {timm_name!r} than on {since}: tensors {content[:12]}, then "
            f"{noted[:12]}; numbers made with both do not compare: give the earlier file with backbone.weights=FILE, "
            f"or delete {note} to take the new ones from now on"
        )


def _ask(timm_name: str) -> None:
    """Find out within seconds whether anybody answers where these weights lie: timm's own attempts take a minute."""
    config: Any = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise WeightsError(
            f"timm has no pretrained weights for {timm_name!r}; name one of its tags (timm_name=NAME.TAG), or {WAY_OUT}"
        )
    address = huggingface_hub.constants.ENDPOINT if config.hf_hub_id else str(config.url)
    failure = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
            failure.clear()
        except urllib.error.HTTPError:
            failure.clear()  # an answer
        except (OSError, ValueError) as error:
            failure[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)  # a name server may keep us longer than any timeout
    asking.start()
    asking.join(PATIENCE + 1)
    if failure:
        raise WeightsError(
            f"pretrained weights of {timm_name!r} could not be fetched: {urlsplit(address).netloc} does not answer "
            f"({failure[0]}); {WAY_OUT}"
        )
