"""A rank ends when torchrun is killed, also below a wrapper. Without torchrun nothing of the kind happens."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.ranks import ROOT, environment

# Stands for torchrun: starts a rank or its wrapper, says its number and waits.
TORCHRUN = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"
# A shell that runs its arguments and waits for them, in place of becoming them.
WRAPPER = ("bash", "-c", '"$@"; exit $?', "wrapper")
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

    def begin(run_id, late=0, wrapper=()):
        ready = tmp_path / "ready"
        variables = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
        rank = [*wrapper, sys.executable, "-c", RANK.format(root=str(ROOT), path=str(ready), late=late)]
        given = ["env", f"TORCHELASTIC_RUN_ID={run_id}"] if run_id else []  # becomes its command
        launcher = subprocess.Popen(
            [sys.executable, "-c", TORCHRUN, *given, *rank], stdout=subprocess.PIPE, text=True, env=variables
        )
        worker = psutil.Process(int(launcher.stdout.readline()))
        while wrapper and not worker.children():
            time.sleep(0.02)
        started.extend((launcher, worker, *worker.children()))
        return launcher, started[-1], ready

    yield begin
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
        process.wait(10)


def _appears(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def _ends(process, within):
    return psutil.wait_procs([process], timeout=within)[1] == []


@pytest.mark.parametrize("wrapper", [(), WRAPPER, WRAPPER * 2], ids=["alone", "wrapped", "wrapped twice"])
def test_a_rank_ends_with_a_torchrun_that_is_killed(start, wrapper):
    torchrun, rank, ready = start("one", wrapper=wrapper)
    _appears(ready)
    torchrun.send_signal(signal.SIGKILL)
    torchrun.wait()
    assert _ends(rank, within=10)


@pytest.mark.parametrize("wrapper", [(), WRAPPER], ids=["alone", "wrapped"])
def test_a_rank_whose_torchrun_is_gone_before_it_is_ready_ends_too(start, wrapper):
    torchrun, rank, ready = start("one", late=1, wrapper=wrapper)
    torchrun.kill()
    torchrun.wait()
    assert _ends(rank, within=20) and not ready.exists()


def test_a_program_that_torchrun_did_not_start_outlives_its_parent(start):
    parent, program, ready = start(None)
    _appears(ready)
    parent.kill()
    parent.wait()
    assert not _ends(program, within=1)


def test_the_training_program_ends_with_torchrun_below_a_wrapper_too(material, tmp_path):
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text('#!/bin/bash\n"$@"\nexit $?\n')
    wrapper.chmod(0o755)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--no-python"]
    command += [wrapper, sys.executable, "-m", "megatron_remit.pretrain", *material.flags(train_iters=100_000)]
    log = tmp_path / "log"
    with log.open("w") as output:
        torchrun = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
    ranks = []
    try:
        while " iteration " not in log.read_text():
            assert torchrun.poll() is None, log.read_text()
            time.sleep(0.2)
        below = psutil.Process(torchrun.pid).children(recursive=True)
        ranks = [process for process in below if "python" in process.name() and process.cwd() == str(ROOT)]
        assert len(ranks) == 1
        torchrun.kill()
        assert psutil.wait_procs(ranks, timeout=20)[1] == []
    finally:
        torchrun.kill()
        torchrun.wait()
        for rank in ranks:
            if rank.is_running():
                rank.kill()
