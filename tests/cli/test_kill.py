"""A study that is killed loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proloc.study.results import load_study

DEADLINE = 120


@pytest.fixture(autouse=True)
def interruptible():
    """A background job of a shell ignores interrupts, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(study: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "proloc.cli", "study", str(study), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"no {what} within {DEADLINE} s"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill", "terminate", "interrupt"])
def test_a_killed_study_continues_to_the_numbers_of_an_undisturbed_one(study, tmp_path, how):
    study.write_text(study.read_text().replace("steps = 4", "steps = 60\ncheckpoint_every = 5"))
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    assert start(study, calm).wait(DEADLINE) == 0
    first = start(study, broken)
    wait_for(lambda: list(broken.glob("checkpoints/*/checkpoint-*/trainer_state.json")), "checkpoint")
    os.kill(first.pid, how)
    code = first.wait(DEADLINE)
    said = first.stderr.read().decode()
    if how is not signal.SIGKILL:
        assert code == 130
        assert "the same command continues" in said
        assert "Traceback" not in said
    wait_for(lambda: not survivors(first.pid), "end of the workers")
    assert not all(run.status == "finished" for run in load_study(broken)[1]) or len(load_study(broken)[1]) < 2
    assert start(study, broken).wait(DEADLINE) == 0
    for undisturbed, resumed in zip(load_study(calm)[1], load_study(broken)[1], strict=True):
        assert resumed.metrics == undisturbed.metrics
        assert resumed.training == undisturbed.training


def survivors(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
