"""The launcher gets a worker's checkpoint saved, whichever signal Slurm sends and whenever it sends it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.ranks import ROOT, free_port

# Like Megatron with --exit-signal-handler: a handler that is set late, a step under way, a save, the end.
WORKER = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
(folder / f"started_{rank}").touch()
time.sleep(1.5)
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
(folder / f"ready_{rank}").touch()
while not asked:
    time.sleep(0.05)
time.sleep(1.5)
(folder / f"saved_{rank}").write_text(str(len(asked)))
"""


def launcher_of(folder, workers):
    """The launcher's command line for ``workers`` processes of worker.py in ``folder``."""
    meeting = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    launcher = [sys.executable, "-m", "megatron_remit.launch.node", str(folder / "logs")]
    launcher += ["--nnodes=1", f"--nproc-per-node={workers}"]
    return [*launcher, *meeting, str(folder / "worker.py")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGUSR1, "started"), (signal.SIGTERM, "ready")])
def test_workers_are_asked_once_and_waited_for(number, moment, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = subprocess.Popen(
        [*launcher_of(tmp_path, 2), str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", SLURM_NODEID="0"),
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 240
        while not all((tmp_path / f"{moment}_{rank}").exists() for rank in range(2)):
            assert launcher.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        # To every process of the step, as scancel does on a cluster without control groups; workers have a session of
        # their own and are reached through the launcher.
        os.killpg(launcher.pid, number)
        assert launcher.wait(timeout=120) == 0
    finally:
        launcher.kill()
    assert [(tmp_path / f"saved_{rank}").read_text() for rank in range(2)] == ["1", "1"]


@pytest.mark.slow
def test_a_failed_worker_fails_the_launcher(tmp_path):
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    done = subprocess.run(launcher_of(tmp_path, 1), cwd=ROOT, timeout=240, capture_output=True, text=True)
    assert done.returncode == 1 and "exitcode  : 3" in done.stderr
