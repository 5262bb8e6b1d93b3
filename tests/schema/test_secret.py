"""A key or a password never reaches a file: the configuration that holds it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwise.errors import ConfigError
from headwise.protocol.plan import plan_run
from headwise.schema.secret import hidden, is_secret, refuse_secrets
from made_cases import each
from made_networks import CONF, REPO, compose_config

TINY = [
    "backbone=vit_tiny_random",
    "dataset=dsprites_loc",
    "data=synthetic",
    "protocol=smoke",
    "rank=r4",
    "method=lora",
]
VALUE = "c0ffee0123456789"
KEYS = ["api_key", "apikey", "WANDB_API_KEY", "token", "hf_token", "auth_token", "password", "secret", "client_secret"]


@each("key", KEYS)
def test_a_secret_is_refused_without_its_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"logger\.{key} is a secret.*WANDB_API_KEY") as caught:
        plan_run(compose_config(*TINY, f"+logger.{key}={VALUE}"))
    assert VALUE not in str(caught.value)
    assert hidden(f"+logger.{key}={VALUE}") == f"+logger.{key}=***"


def test_a_secret_of_the_environment_is_refused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", VALUE)
    with pytest.raises(ConfigError, match=r"logger\.settings\.api_key is a secret"):
        plan_run(compose_config(*TINY, "+logger.settings={api_key:${oc.env:MY_KEY}}"))


def test_nothing_of_ours_is_taken_for_a_secret() -> None:
    """No key of any configuration file looks like one."""
    for file in CONF.rglob("*.yaml"):
        for line in file.read_text(encoding="utf-8").splitlines():
            key = line.split("#")[0].partition(":")[0].strip(" -")
            assert not is_secret(key), (file, key)
    for key in ("image_key", "label_key", "trainable_token_indices", "num_virtual_tokens", "class_token_width"):
        assert not is_secret(key)
    refuse_secrets({"model": {"class_token": True, "token": None}, "secret": ""})


@each("launch", [[], ["-m"], ["-m", "seed=0,1"]])
def test_it_reaches_no_file(launch: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *launch, *TINY, f"root={tmp_path / 'out'}", f"+logger.api_key={VALUE}"]
    environment = {**os.environ, "HEADWISE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "logger.api_key is a secret" in done.stderr
    assert "Traceback" not in done.stderr
    assert VALUE not in done.stdout + done.stderr
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and VALUE.encode() in file.read_bytes()]
