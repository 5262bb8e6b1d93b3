"""Whatever the disk does at whichever write of a run: old file or new file, and the same run again is the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from made_disturbed import FAULTS, FINE, KILLS, REFUSED
from made_networks import REPO

SCRIPT = Path(__file__).parent / "made_disturbed.py"


def check(folder: Path, stride: int, faults: Sequence[str]) -> None:
    path = os.pathsep.join(map(str, (REPO / "src", REPO / "tests")))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(stride), *faults],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["calm"] == FINE, done.stderr[-4000:]
    assert found["writes"] > 15
    assert len(found["cases"]) >= len(faults)
    for case in found["cases"]:
        hits = (-signal.SIGKILL,) if case["fault"] in KILLS else (REFUSED, FINE)
        assert case["hit"] in hits, (case, done.stderr[-4000:])
        assert (case["broken"], case["again"], case["same"], case["left"]) == ([], FINE, True, []), case
    noticed = sum(case["hit"] != FINE for case in found["cases"])
    assert noticed > len(found["cases"]) / 2, "a fault that nobody notices tests nothing"


def test_each_fault_at_a_write_of_a_run(tmp_path: Path) -> None:
    check(tmp_path, 24, [fault for fault in FAULTS if fault != "broken"])  # which is told as "full" is


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_at_every_write_of_a_run(fault: str, tmp_path: Path) -> None:
    check(tmp_path, 1, [fault])
