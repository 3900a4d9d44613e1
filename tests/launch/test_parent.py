"""A rank ends when torchrun is killed, and without torchrun nothing of the kind happens."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.ranks import ROOT

# Stands for torchrun: starts a rank, says its number and waits.
TORCHRUN = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"
RANK = """
import sys, time
sys.path.insert(0, {root!r})
from megatron_remit.launch.parent import end_with_torchrun
time.sleep({late})
end_with_torchrun()
open({path!r}, "w").close()
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts torchrun's stand-in and its rank, and returns the two and the file that says "ready"."""
    started = []

    def begin(run_id, late=0):
        ready = tmp_path / "ready"
        environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
        environment |= {"TORCHELASTIC_RUN_ID": run_id} if run_id else {}
        rank = [sys.executable, "-c", RANK.format(root=str(ROOT), path=str(ready), late=late)]
        launcher = subprocess.Popen(
            [sys.executable, "-c", TORCHRUN, *rank], stdout=subprocess.PIPE, text=True, env=environment
        )
        worker = psutil.Process(int(launcher.stdout.readline()))
        started.extend((launcher, worker))
        return launcher, worker, ready

    yield begin
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
        process.wait(10)


def _appears(path):
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def _ends(process, within):
    return psutil.wait_procs([process], timeout=within)[1] == []


def test_a_rank_ends_with_a_torchrun_that_is_killed(start):
    torchrun, rank, ready = start("one")
    _appears(ready)
    torchrun.send_signal(signal.SIGKILL)
    torchrun.wait()
    assert _ends(rank, within=5)


def test_a_rank_whose_torchrun_is_gone_before_it_is_ready_ends_too(start):
    torchrun, rank, ready = start("one", late=1)
    torchrun.kill()
    torchrun.wait()
    assert _ends(rank, within=10) and not ready.exists()


def test_a_program_that_torchrun_did_not_start_outlives_its_parent(start):
    parent, program, ready = start(None)
    _appears(ready)
    parent.kill()
    parent.wait()
    assert not _ends(program, within=1)
