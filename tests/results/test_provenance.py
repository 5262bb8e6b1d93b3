"""Where a number was made."""

from __future__ import annotations

import json
import socket
import subprocess

from headwise.results.provenance import git_state, machine, now, versions


def test_versions_without_importing():
    found = versions(("pytest", "no-such-distribution"))
    assert found["pytest"]
    assert found["no-such-distribution"] is None


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    repo = tmp_path / "repo"
    repo.mkdir()
    assert git_state(repo) is None
    git(repo, "init")
    assert git_state(repo) is None
    (repo / "a").write_text("1")
    git(repo, "add", "a")
    git(repo, "commit", "-m", "first")
    state = git_state(repo)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (repo / "new").write_text("untracked")
    assert git_state(repo) == state
    (repo / "a").write_text("2")
    assert git_state(repo) == {**state, "dirty": True}


def test_git_state_never_raises(tmp_path, monkeypatch):
    assert git_state(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_machine_is_json_and_does_not_name_the_host():
    text = json.dumps(machine("NVIDIA A100", threads=2))
    assert socket.gethostname() not in text
    described = json.loads(text)
    assert described["accelerator"] == "NVIDIA A100"
    assert described["threads"] == 2
    assert described["cores"] >= described["cores_usable"] >= 1


def test_now_is_utc():
    assert now().endswith("+00:00")
