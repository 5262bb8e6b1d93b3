"""Settings of every test: one thread, so that numbers repeat, and no cache outside of the test's own folder."""

from __future__ import annotations

import gc
import os

import pytest

gc.disable()  # until all tests are collected: what is imported meanwhile stays
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported; inherited by subprocesses


def pytest_collection_finish() -> None:
    """Take the modules and thousands of tests for what stays: each search for garbage would look at all of them."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def warn_always() -> None:
    """Let torch warn each time and not once a process: whether a test fails must not depend on those before it."""
    import torch

    torch.set_warn_always(True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
